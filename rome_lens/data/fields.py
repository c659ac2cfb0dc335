"""Checked access to the fields of a file's objects; every error names the place and the field."""

import reprlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from rome_lens.data.facts import FactError
from rome_lens.data.record_type import Question, RecordError

Fields = Mapping[str, Any]
Made = TypeVar("Made")


class Repeated(dict[str, Any]):
    """An object of a file in which a field occurs more than once."""


def fields_of(value: object, where: str, *, error: type[FactError] = FactError) -> dict[str, Any]:
    """The fields of an object in the file.

    Raises:
        FactError: the value is not an object, or a field occurs in it twice.
    """
    if not isinstance(value, Mapping):
        raise error(f"{where}: expected an object, got {shown(value)}.")
    if isinstance(value, Repeated):
        raise error(
            f"{where}: a field occurs more than once among {shown(list(value))}, so it cannot be "
            "told which one is meant."
        )
    return dict(value)


def shown(value: object) -> str:
    """The beginning of a value, for messages; nothing that a file holds is too long or too deep."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100
_SHORT.maxlevel = 3


def grouped_questions(item: Fields, name: str, where: str) -> Iterator[tuple[str, Question]]:
    """The questions of ``locality`` or ``portability``, each with the name of its group.

    Questions without an answer are left out; some of KnowEdit's have an empty list of them.
    """
    if item.get(name) is None:
        return
    groups = fields_of(item[name], f"{where}, field {name!r}", error=RecordError)
    for kind, entries in groups.items():
        place = f"{where}, field '{name}.{kind}'"
        if not isinstance(entries, list | Mapping | None):
            raise RecordError(f"{place}: expected a list of questions, got {shown(entries)}.")
        for entry in [entries] if isinstance(entries, Mapping) else entries or ():
            asked = fields_of(entry, place, error=RecordError)
            prompt = words(asked, "prompt", place)
            if prompt and asked.get("ground_truth") not in (None, "", [], [[]]):
                answer = first_answer(asked, "ground_truth", place)
                yield kind, made(place, Question, prompt=prompt, target=answer)


def first_answer(item: Fields, name: str, where: str) -> str:
    """The first of the answers, which may be a text, a list, or a list of lists of synonyms."""
    answer = item.get(name)
    while isinstance(answer, list) and answer:
        answer = answer[0]
    if isinstance(answer, str):
        return answer.strip()
    if name not in item:
        raise RecordError(f"{where} lacks {name!r}: it has {shown(sorted(item))}.")
    raise RecordError(
        f"{where}, field {name!r}: expected an answer in words, or a list of them, got "
        f"{shown(item[name])}."
    )


def several_words(item: Fields, name: str, where: str) -> list[str]:
    """The texts of a field that holds one, a list of them, or nothing."""
    value = item.get(name)
    texts = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise RecordError(
            f"{where}, field {name!r}: expected a text or a list of texts, got {shown(value)}."
        )
    return [text.strip() for text in texts if text.strip()]


def words(item: Fields, name: str, where: str, *, strip: bool = True) -> str:
    """The text of a field, by default without the white space around it."""
    if name not in item:
        raise RecordError(f"{where} lacks {name!r}: it has {shown(sorted(item))}.")
    if not isinstance(item[name], str):
        raise RecordError(f"{where}, field {name!r}: expected words, got {shown(item[name])}.")
    return str(item[name]).strip() if strip else str(item[name])


def made(where: str, make: Callable[..., Made], *args: Any, **fields: Any) -> Made:
    """What ``make`` returns; its errors name the file and the index."""
    try:
        return make(*args, **fields)
    except FactError as error:
        raise RecordError(f"{where}: {error}") from error
