"""Prompts in the form of a tokenizer's chat template."""

from collections.abc import Mapping, Sequence
from typing import Any

from rome_lens.data.slots import SLOT, FactError


def chat_prompt(tokenizer: Any, messages: str | Sequence[Mapping[str, str]]) -> str:
    """What the chat template makes of the messages, up to where the answer begins.

    A BOS token at its start is left out, unless it also marks the turns of the chat.

    Raises:
        FactError: the tokenizer has no chat template, the template refuses the messages, or the
            slot does not stand exactly once in the prompt.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise FactError(
            f"The tokenizer {type(tokenizer).__name__} has no chat template. Give the tokenizer of "
            "a chat model, such as model.tokenizer, or write the prompt yourself: Fact(...)."
        )
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    try:
        turns = [dict(message) for message in messages]
        answered = turns[-1]["role"] == "assistant"
        prompt = tokenizer.apply_chat_template(
            turns,
            tokenize=False,
            add_generation_prompt=not answered,
            continue_final_message=answered,
        )
    except Exception as error:  # the template is code of the model's author, and raises anything
        raise FactError(
            f"The messages are {str(messages)[:200]!r}, and the chat template refuses them: "
            f"{error}. Expected a text, or a list of {{'role': ..., 'content': ...}}."
        ) from error
    if prompt.count(SLOT) != 1:
        raise FactError(
            f"The chat template makes the prompt {prompt!r}, which has {prompt.count(SLOT)} slots "
            "{}. Write {} once in the messages, where the subject stands."
        )
    rest = prompt.removeprefix(tokenizer.bos_token or "")
    return prompt if tokenizer.bos_token and tokenizer.bos_token in rest else rest
