"""Decoys that need not be written by hand: the other subjects that the records already name."""

import dataclasses
import re
from collections.abc import Iterable, Sequence

from rome_lens.data.facts import SLOT, Fact
from rome_lens.data.questions import Decoys
from rome_lens.data.record_type import Record, as_records

MOST = 3
"""At most this many decoys of each group are derived."""


def with_decoys(records: Iterable[Record]) -> list[Record]:
    """The records, with decoys taken from their neighbours and from each other.

    A neighbour whose prompt has the form of the fact's prompt names another subject. So do the
    other records of the same relation with the same prompt, and their descriptions are those of
    other subjects. Groups of decoys that a record already has stay as they are. No decoy is made
    of a subject whose answer is the new target, nor of one with one of the two targets among
    ``other_answers``, and none is invented.

    Raises:
        FactError: there is no record, or an entry is neither a record nor a fact.

    Example:
        >>> import rome_lens as rl
        >>> record = rl.data.record("eiffel-tower")
        >>> record.decoys.same_answer[0]
        'The Louvre'
        >>> own = rl.data.Record(id=1, fact=record.fact, neighborhood=record.neighborhood)
        >>> rl.data.with_decoys([own])[0].decoys.other_answer[0]
        'The Space Needle'
    """
    listed = as_records(records)
    return [_with_decoys(listed, i) for i in range(len(listed))]


def words_in_slot(fact: Fact, prompt: str) -> str | None:
    """The words that stand in the slot, if a prompt has the form of the fact's prompt.

    Example:
        >>> import rome_lens as rl
        >>> from rome_lens.data.deriving import words_in_slot
        >>> fact = rl.data.record("eiffel-tower").fact
        >>> words_in_slot(fact, "The Louvre is located in the city of")
        'The Louvre'
        >>> words_in_slot(fact, "The capital of Italy is the city of") is None
        True
    """
    before, after = fact.prompt.split(SLOT)
    found = re.fullmatch(f"{re.escape(before)}(.+){re.escape(after)}", prompt, re.DOTALL)
    return found[1].strip() or None if found else None


def _with_decoys(records: Sequence[Record], place: int) -> Record:
    own = records[place]
    # From the record on, so that not all records have the same decoys.
    following = [*records[place + 1 :], *records[:place]]
    others = [
        each
        for each in following
        if own.relation
        and each.relation == own.relation
        and each.fact.prompt == own.fact.prompt
        and not {own.fact.target, own.fact.new_target} & set(each.other_answers)
    ]
    names = [
        (words, question.target)
        for question in own.neighborhood
        if (words := words_in_slot(own.fact, question.prompt))
    ]
    names += [(each.fact.subject, each.fact.target) for each in others]
    # The first description of each other record comes before the second of any.
    most = max((len(each.descriptions) for each in others), default=0)
    described = [
        (each.descriptions[i], each.fact.target)
        for i in range(most)
        for each in others
        if i < len(each.descriptions)
    ]
    return dataclasses.replace(
        own,
        decoys=_filled(own, own.decoys, names),
        description_decoys=_filled(own, own.description_decoys, described),
    )


def _filled(record: Record, decoys: Decoys, found: Sequence[tuple[str, str]]) -> Decoys:
    """The decoys, with empty groups filled from pairs of a name and its true answer."""
    fact = record.fact
    own = {name.casefold() for name in (fact.subject, *record.aliases, *record.descriptions)}
    others = [(name, answer) for name, answer in found if name.casefold() not in own]
    same = [name for name, answer in others if answer == fact.target]
    other = [name for name, answer in others if answer not in (fact.target, fact.new_target)]
    return dataclasses.replace(
        decoys,
        same_answer=decoys.same_answer or tuple(dict.fromkeys(same))[:MOST],
        other_answer=decoys.other_answer or tuple(dict.fromkeys(other))[:MOST],
    )
