"""Arguments are taken as plain values, whichever library they are from, or refused in one way."""

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import pytest
import torch

from rome_lens import arguments
from rome_lens.errors import ArgumentError, RomeLensError

pytestmark = pytest.mark.usefixtures("unchecked")

Fruit = Literal["apple", "pear"]
NAN, INFINITE = float("nan"), float("inf")
TWOS: list[Any] = [2, np.int64(2), np.uint8(2), np.array(2), torch.tensor(2), torch.tensor([2])]
NOT_WHOLE: list[Any] = [True, False, np.bool_(True), torch.tensor(True), 2.0, np.float64(2.0)]
NOT_WHOLE += [torch.tensor(2.0), "2", NAN, None, [2], torch.tensor([2, 3]), Decimal(2)]


class OwnError(RomeLensError):
    """The class that a caller asks for."""


def wrongly_taken(check: Callable[[Any], object], values: list[Any], words: str) -> list[Any]:
    """The values that are not refused by the class asked for, with the name and these words."""
    wrong = []
    for value in values:
        try:
            wrong.append((value, check(value)))
        except OwnError as error:
            message = str(error)
            if not message.startswith("size ") or words not in message:
                wrong.append((value, message))
    return wrong


def test_whole_numbers_of_every_library_are_plain_ints() -> None:
    for value in TWOS:
        number = arguments.whole_number("size", value)
        assert (number, type(number)) == (2, int)


def test_anything_else_is_not_a_whole_number() -> None:
    def check(value: Any) -> int:
        return arguments.whole_number("size", value, least=1, error=OwnError)

    assert wrongly_taken(check, NOT_WHOLE, "expected a whole number of at least 1.") == []
    assert wrongly_taken(check, [0, -1, np.int64(0), torch.tensor(0)], "of at least 1.") == []


def test_bounds_are_inclusive_and_named() -> None:
    for value in (1, 3):
        assert arguments.whole_number("size", value, least=1, most=3) == value
        assert arguments.real_number("size", value, least=1, most=3) == value
    for check in (arguments.whole_number, arguments.real_number):
        for value in (0, 4):
            with pytest.raises(ArgumentError, match=f"size is {value}, .*number from 1 to 3"):
                check("size", value, least=1, most=3)
            with pytest.raises(ArgumentError, match=r"of at most -1\.$"):
                check("size", value, most=-1)


def test_a_whole_number_has_64_bits_at_most() -> None:
    largest = arguments.LARGEST
    assert arguments.whole_number("steps", largest, least=1) == largest
    for number, bounds in ((largest + 1, "from 1 to"), (10**30, "from 1 to")):
        with pytest.raises(ArgumentError, match=f"{bounds} {largest}"):
            arguments.whole_number("steps", number, least=1)
    with pytest.raises(ArgumentError, match=f"from -{largest} to {largest}"):
        arguments.whole_number("pos", -(10**30))


def test_real_numbers_are_plain_floats() -> None:
    for value in (2, 2.0, np.float32(2), np.int64(2), Fraction(2)):
        number = arguments.real_number("size", value)
        assert (number, type(number)) == (2.0, float)
    for value in (INFINITE, -INFINITE):
        assert arguments.real_number("size", value) == value
    assert arguments.real_number("size", 10**400) == INFINITE


def test_anything_else_is_not_a_real_number() -> None:
    def check(value: Any) -> float:
        return arguments.real_number("size", value, error=OwnError)

    def finite(value: Any) -> float:
        return arguments.real_number("size", value, finite=True, error=OwnError)

    wrong = [True, np.bool_(True), "2", NAN, np.float64(NAN), None, [2.0], 2j]
    assert wrongly_taken(check, wrong, "expected a number.") == []
    assert wrongly_taken(finite, [INFINITE, -INFINITE, 10**400], "expected a finite number.") == []


def test_a_seed_is_what_torch_takes() -> None:
    generator = torch.Generator()
    for value in (0, np.int64(5), arguments.LARGEST):
        generator.manual_seed(arguments.seed_number("size", value))

    def check(value: Any) -> int:
        return arguments.seed_number("size", value, error=OwnError)

    assert wrongly_taken(check, [-1, 2**63, *NOT_WHOLE], "expected a whole number from 0 to") == []


def test_several_whole_numbers_are_a_tuple_of_plain_ints() -> None:
    several: list[Any] = [range(1, 3), [1, 2], (1, 2), np.array([1, 2]), torch.tensor([1, 2])]
    several += [iter([1, 2]), [np.int64(1), torch.tensor(2)]]
    for values in several:
        numbers = arguments.whole_numbers("size", values)
        assert numbers == (1, 2)
        assert {type(number) for number in numbers} == {int}
    assert arguments.whole_numbers("size", []) == ()


def test_anything_else_is_not_several_whole_numbers() -> None:
    def check(value: Any) -> tuple[int, ...]:
        return arguments.whole_numbers("size", value, error=OwnError)

    wrong = [2, "12", b"12", None, torch.tensor(2), np.array(2), *([1, each] for each in NOT_WHOLE)]
    assert wrongly_taken(check, wrong, "expected whole numbers, such as range(4)") == []


def test_an_option_is_one_of_those_of_its_type() -> None:
    def check(value: Any) -> Any:
        return arguments.one_of("size", value, Fruit, error=OwnError)

    assert [check(value) for value in ("apple", "pear")] == ["apple", "pear"]
    wrong = ["Apple", "", None, 2, ["apple"], {}]
    assert wrongly_taken(check, wrong, "expected one of 'apple', 'pear'.") == []


def test_several_texts_are_a_tuple() -> None:
    def check(value: Any) -> tuple[str, ...]:
        return arguments.texts("size", value, error=OwnError)

    for values in (["a", "b"], ("a", "b"), iter("ab")):
        assert check(values) == ("a", "b")
    assert wrongly_taken(check, ["ab"], "is the single text 'ab', expected a list of texts") == []
    wrong = [3, None, torch.tensor(2), ["a", 3], ["a", None], b"ab"]
    assert wrongly_taken(check, wrong, "expected a list of texts") == []


def test_contexts_are_a_tuple_of_templates() -> None:
    assert arguments.templates(iter(["{}", "It rained. {}"])) == ("{}", "It rained. {}")
    with pytest.raises(ArgumentError, match=r"contexts is the text '{}'.*write \['{}'\]"):
        arguments.templates("{}")
    for wrong in (3, None, ["{}", 3], torch.tensor(2)):
        with pytest.raises(ArgumentError, match=r"contexts is .*expected a list of templates"):
            arguments.templates(wrong)


def test_a_wrong_argument_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"^samples is 0, expected a whole number of at least 1"):
        arguments.whole_number("samples", 0, least=1)


def test_half_a_character_is_refused_in_texts() -> None:
    """No tokenizer takes it."""
    with pytest.raises(ArgumentError, match=r"A text of prompts is 'a.*lone surrogate"):
        arguments.texts("prompts", ["b", "a\ud83d"])
    assert arguments.texts("prompts", ["😀", "a\0b"]) == ("😀", "a\0b")
