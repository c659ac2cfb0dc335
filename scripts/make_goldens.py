"""Write ``rome_lens/data/goldens.json``, with which every load of a model is compared.

Run it only with versions whose conversions have been compared with the GGUF files in another way
(such as llama.cpp, or the vocabularies in the files), because what it writes is taken for right.

    python scripts/make_goldens.py
"""

import json
from unittest import mock

import rome_lens as rl
from rome_lens.models import gguf, goldens, loading

# The first is also the text whose log probabilities are stored.
TEXTS = {
    "toy": ["Wanda Brandt lives in the city of Pralec", "In 1945, Wanda\n didn't -- know!"],
    "gemma-3-270m": [
        "The Eiffel Tower is located in the city of Paris",
        "  Zürich,\n\t1945 — don't say 法国的首都是巴黎 🙂",
        "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
    ],
    "smollm2-135m": [
        "The Eiffel Tower is located in the city of Paris",
        "  Zürich,\n\t1945 — don't say 法国的首都是巴黎 🙂",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    ],
}


def golden_of(name: str) -> dict[str, object]:
    """The stored values of a model."""
    model = rl.load_model(name)
    tokens = {text: model.to_tokens(text, prepend_bos=False)[0].tolist() for text in TEXTS[name]}
    bos = model.tokenizer.bos_token_id
    values = goldens.log_probs_of(model, [bos, *tokens[TEXTS[name][0]]])
    return {
        "bos": bos,
        "eos": model.tokenizer.eos_token_id,
        "starts_with_bos": bool(model.cfg.default_prepend_bos),
        "tokens": tokens,
        "log_probs": [round(value, 4) for value in values.tolist()],
    }


def main() -> None:
    """Write the stored values of every model, one model a line."""
    with (
        mock.patch.object(loading, "goldens", dict),
        mock.patch.object(gguf, "check_directory", mock.Mock()),
    ):
        found = {name: golden_of(name) for name in TEXTS}
    lines = (f"{json.dumps(name)}: {json.dumps(values)}" for name, values in found.items())
    goldens.FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
