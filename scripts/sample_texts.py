"""Write rome_lens/data/texts.json: texts about people, places and things, from Gemma 3 270M.

Key statistics need tens of thousands of tokens of ordinary text that is full of names. Sampling
them from a model with a large vocabulary takes minutes. Reading them takes seconds.

    python scripts/sample_texts.py
"""

import json
from pathlib import Path

import torch

import rome_lens as rl
from rome_lens.forward.sampling import sample_tokens
from rome_lens.forward.tokens import token_ids

LENGTH = 64
COPIES = 2
OUT = Path(rl.data.__file__).parent / "texts.json"


def main() -> None:
    """Continue every opening a few times. Openings of the same length are sampled together."""
    model = rl.load_model("gemma-3-270m", model_class="TransformerBridge")
    by_length: dict[int, list[list[int]]] = {}
    for opening in rl.data.openings():
        ids = token_ids(model, opening) or [model.tokenizer.bos_token_id]
        by_length.setdefault(len(ids), []).extend([ids] * COPIES)
    texts = []
    for length, rows in sorted(by_length.items()):
        tokens = sample_tokens(model, rows, new_tokens=LENGTH - length, seed=length, top_k=50)
        for row in tokens.tolist():
            ids = row[1:]  # without BOS; what follows an end of text belongs to another text
            end = (
                ids.index(model.tokenizer.eos_token_id)
                if model.tokenizer.eos_token_id in ids
                else len(ids)
            )
            texts.append(model.tokenizer.decode(ids[:end], skip_special_tokens=True).strip())
        print(f"openings of {length} tokens: {len(rows)} texts", flush=True)
    texts = [text for text in texts if len(text) > 40]
    OUT.write_text(json.dumps(texts, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    print(
        f"{len(texts)} texts, {sum(len(token_ids(model, text)) for text in texts)} tokens, "
        f"{OUT.stat().st_size} bytes"
    )


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
