"""While the tests run, every call in the package is checked against its annotations."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rome_lens.forward.runs import log_probabilities
from rome_lens.forward.tokens import ScoredAnswer, shared_length

LOGITS = torch.zeros(2, 5)
WRONG: dict[str, Callable[[], Any]] = {
    "a type": lambda: shared_length({1, 2}, {1, 2}),
    "a field": lambda: ScoredAnswer(given=[1], tokens=(2,), scoring="whole"),
    "a number of axes": lambda: log_probabilities(LOGITS, LOGITS.long()),
    "a length that two arguments share": lambda: log_probabilities(LOGITS, torch.arange(1)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_an_annotation_does_not_allow_is_refused(wrong: str) -> None:
    with pytest.raises(TypeError, match="violates type hint"):
        WRONG[wrong]()


@pytest.mark.parametrize("wrong", ["a field", "a length that two arguments share"])
def test_nothing_is_refused_where_the_checks_are_off(wrong: str, unchecked: Any) -> None:
    WRONG[wrong]()
