"""Tokenizers of converted models, stored in the form that is quickest to load.

A tokenizer of 262 144 words has a file of 33 MB. transformers parses it twice in Python, keeps its
merges as Python tuples, and hands them to the ``tokenizers`` library, which can read the file by
itself. TransformerLens then loads the tokenizer once more, unless it adds BOS already.
"""

import json
from pathlib import Path
from typing import Any


def store_for_quick_loading(tokenizer: Any, directory: Path) -> None:
    """Rewrite the files that ``tokenizer.save_pretrained`` wrote. The tokens stay the same.

    The class is transformers' general one, which lets ``tokenizers`` read ``tokenizer.json``. The
    settings list the added tokens, so that nothing else parses that file.
    """
    words, settings = directory / "tokenizer.json", directory / "tokenizer_config.json"
    content = json.loads(words.read_text(encoding="utf-8"))
    compact = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    words.write_text(compact, encoding="utf-8")
    added = {
        str(token["id"]): {name: value for name, value in token.items() if name != "id"}
        for token in content["added_tokens"]
    }
    changed = {
        **json.loads(settings.read_text(encoding="utf-8")),
        "tokenizer_class": "PreTrainedTokenizerFast",
        "padding_side": tokenizer.padding_side,
        "added_tokens_decoder": added,
    }
    settings.write_text(json.dumps(changed, indent=1, ensure_ascii=False), encoding="utf-8")


def tokenizer_that_adds_bos(directory: Path) -> Any:
    """The tokenizer in a directory, as TransformerLens wants it.

    From one that does not add BOS, TransformerLens would load a second one that does.
    """
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory, local_files_only=True, add_bos_token=True)
