"""The shapes of facts in the files of the field, one function each, and the table of them.

A function takes the fields of one entry and gives its cases: facts, each with what else the entry
asks about it. What has no exact meaning in a :class:`~rome_lens.data.record_type.Record` is left
out; each function says what that is.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rome_lens.data.counterfact import rewritten_fact
from rome_lens.data.facts import SLOT, Fact
from rome_lens.data.fields import (
    Fields,
    fields_of,
    first_answer,
    grouped_questions,
    made,
    several_words,
    shown,
    words,
)
from rome_lens.data.record_type import (
    Question,
    Record,
    RecordError,
    names_subject,
    without_article,
)
from rome_lens.data.whole_words import places

_NATURAL_QUESTIONS = "nq question: "
"""The task's name before zsRE's unrelated questions, which models other than T5 do not know."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A fact of an entry, and the fields of its record."""

    fact: Fact
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A shape of entries: how one is recognised, and how it is read."""

    name: str
    fields: str
    """The fields, for messages."""
    mark: str
    """The field by which an entry of this shape is recognised."""
    cases: Callable[[Fields, str], list[Case]]


def cases_of(entry: object, where: str) -> list[Case]:
    """The facts of an entry of any shape in :data:`SHAPES`, each with the fields of its record.

    Args:
        where: the file and the index, for messages.

    Raises:
        RecordError: the entry has none of the shapes, or lacks a field of its shape, or a field
            does not hold what it should.
    """
    item = fields_of(entry, where, error=RecordError)
    for shape in SHAPES:
        if shape.mark in item:
            return shape.cases(item, where)
    raise RecordError(
        f"{where} lacks the fields of a fact: it has {shown(sorted(item))}. The shapes that are "
        f"read are {'; '.join(f'{shape.name} ({shape.fields})' for shape in SHAPES)}."
    )


def records_of(entry: object, where: str, *, default_id: int) -> list[Record]:
    """The records of an entry; :func:`cases_of` with an id for each.

    An id is the entry's ``case_id``, ``known_id`` or ``id``, or else its index in the file. The
    records of an entry with several facts are numbered: ``"7-0"``, ``"7-1"``.
    """
    cases = cases_of(entry, where)
    item = fields_of(entry, where, error=RecordError)
    given = (item.get(name) for name in ("case_id", "known_id", "id"))
    ids = (each for each in given if isinstance(each, int | str) and not isinstance(each, bool))
    own_id = next(ids, default_id)
    relation = item.get("relation_id")
    common = {"relation_id": relation} if isinstance(relation, str) else {}
    records = []
    for number, case in enumerate(cases):
        try:
            name = own_id if len(cases) == 1 else f"{own_id}-{number}"
            records.append(Record(id=name, fact=case.fact, **{**common, **case.fields}))
        except RecordError as error:
            raise RecordError(f"{where}: {error}") from error
    return records


def _ours(item: Fields, where: str) -> list[Case]:
    """``prompt``, with ``{}`` or with the subject written out; ``new_target`` is optional."""
    target = words(item, "target", where)
    return [Case(fact=_fact(item, where, target=target, new=_optional_new_target(item, where)))]


def _our_record(item: Fields, where: str) -> list[Case]:
    """The fact alone; :func:`~rome_lens.data.records_file.read_records` reads the rest."""
    return _ours(fields_of(item["fact"], f"{where}, field 'fact'", error=RecordError), where)


def _known(item: Fields, where: str) -> list[Case]:
    """``template`` tells where the subject is; ``prompt`` may go on where the template ends."""
    target = words(item, "attribute", where)
    return [Case(fact=_fact(item, where, target=target, new=_optional_new_target(item, where)))]


def _counterfact(item: Fields, where: str) -> list[Case]:
    """One rewrite; :func:`~rome_lens.data.counterfact.read_counterfact` reads the rest."""
    return [Case(fact=rewritten_fact(item["requested_rewrite"], where))]


def _counterfact_or_mquake(item: Fields, where: str) -> list[Case]:
    several = isinstance(item["requested_rewrite"], list)
    return _mquake(item, where) if several else _counterfact(item, where)


def _mquake(item: Fields, where: str) -> list[Case]:
    """A case for each rewrite, with its own question as a paraphrase.

    The multi-hop questions follow from all rewrites together. So they are consequences only where
    there is a single one. Aliases of answers and the single hops are left out.
    """
    if not item["requested_rewrite"]:
        raise RecordError(f"{where}, field 'requested_rewrite': the list is empty.")
    cases = []
    for number, rewrite in enumerate(item["requested_rewrite"]):
        name = f"requested_rewrite[{number}]"
        fact = rewritten_fact(rewrite, where, name=name)
        questions = several_words(rewrite, "question", f"{where}, field {name!r}")
        fields: dict[str, Any] = {"paraphrases": _naming(fact, questions)}
        if isinstance(rewrite.get("relation_id"), str):
            fields["relation_id"] = rewrite["relation_id"]
        cases.append(Case(fact=fact, fields=fields))
    if len(cases) == 1 and "answer" in item and "new_answer" in item:
        old, new = words(item, "answer", where), words(item, "new_answer", where)
        cases[0].fields["consequences"] = tuple(
            made(where, Question, prompt=prompt, target=old, new_target=new)
            for prompt in several_words(item, "questions", where)
        )
    return cases


def _tracing(item: Fields, where: str) -> list[Case]:
    """counterfact-tracing: the prompt is prefix, subject and suffix, each with its own space."""
    subject = words(item, "subject", where, strip=False)
    parts = [
        words(item, name, where, strip=False) for name in ("relation_prefix", "relation_suffix")
    ]
    spaces = [subject[: len(subject) - len(subject.lstrip())], subject[len(subject.rstrip()) :]]
    template = f"{parts[0]}{spaces[0]}{SLOT}{spaces[1]}{parts[1]}".rstrip()
    target = words(item, "target_true", where)
    new_target = words(item, "target_false", where)
    fact = made(where, Fact, template, subject=subject, target=target, new_target=new_target)
    prompt = item.get("prompt")
    if isinstance(prompt, str) and prompt.strip() != fact.text.strip():
        raise RecordError(
            f"{where}: the prompt {prompt!r} is not its prefix, subject and suffix, {fact.text!r}."
        )
    return [Case(fact=fact)]


def _zsre(item: Fields, where: str) -> list[Case]:
    """zsRE: ``src`` is a question, ``answers`` holds the true answer, ``alt`` the new one.

    The first of several answers is taken. ``pred`` (another model's answer) is left out.
    """
    answers = first_answer(item, "answers", where)
    question = {**item, "prompt": words(item, "src", where)}
    fact = _fact(question, where, target=answers, new=words(item, "alt", where))
    fields: dict[str, Any] = {"paraphrases": _naming(fact, several_words(item, "rephrase", where))}
    if "loc" in item and "loc_ans" in item:
        prompt = words(item, "loc", where).removeprefix(_NATURAL_QUESTIONS).rstrip("?").rstrip()
        answer = first_answer(item, "loc_ans", where)
        asked = [made(where, Question, prompt=f"{prompt}?", target=answer)]
        fields["neighborhood"] = _about_others(fact, asked)
    return [Case(fact=fact, fields=fields)]


def _easy_edit(item: Fields, where: str) -> list[Case]:
    """EasyEdit's ``counterfact-edit``, and KnowEdit.

    * Paraphrases: ``rephrase_prompt`` or ``rephrase``.
    * Neighbours: ``locality_prompt``, and what ``locality`` asks about other subjects. What it asks
      about the subject itself is left out, because a neighbour is another subject.
    * Aliases: prompts of ``Subject_Aliasing`` that are the fact's own, with another name.
    * Reverse: prompts of ``Logical_Generalization`` about the new target, answered by the subject.

    The rest of ``portability`` is left out, because it does not give the answer before the edit.
    """
    target = first_answer(item, "ground_truth", where)
    fact = _fact(item, where, target=target, new=first_answer(item, "target_new", where))
    asked = [question for _, question in grouped_questions(item, "locality", where)]
    if "locality_prompt" in item:
        prompt = words(item, "locality_prompt", where)
        answer = first_answer(item, "locality_ground_truth", where)
        asked.append(made(where, Question, prompt=prompt, target=answer))
    rephrased = [
        text
        for name in ("rephrase_prompt", "rephrase")
        for text in several_words(item, name, where)
    ]
    carried = list(grouped_questions(item, "portability", where))
    fields = {
        "paraphrases": _naming(fact, rephrased),
        "neighborhood": _about_others(fact, asked),
        "aliases": _aliases(fact, [q for kind, q in carried if kind == "Subject_Aliasing"]),
        "reverse": _reverse(fact, [q for kind, q in carried if kind == "Logical_Generalization"]),
    }
    return [Case(fact=fact, fields=fields)]


SHAPES = (
    Shape(
        name="a record of this project",
        fields="id, fact",
        mark="fact",
        cases=_our_record,
    ),
    Shape(
        name="CounterFact or MQuAKE",
        fields="requested_rewrite with prompt, subject, target_true, target_new, or a list of them",
        mark="requested_rewrite",
        cases=_counterfact_or_mquake,
    ),
    Shape(
        name="counterfact-tracing",
        fields="relation_prefix, subject, relation_suffix, target_true, target_false",
        mark="relation_prefix",
        cases=_tracing,
    ),
    Shape(name="zsRE", fields="src, subject, answers, alt", mark="src", cases=_zsre),
    Shape(
        name="known_1000",
        fields="prompt or template, subject, attribute",
        mark="attribute",
        cases=_known,
    ),
    Shape(
        name="EasyEdit or KnowEdit",
        fields="prompt, subject, ground_truth, target_new",
        mark="target_new",
        cases=_easy_edit,
    ),
    Shape(
        name="a fact of this project",
        fields="prompt, subject, target, and optionally new_target",
        mark="target",
        cases=_ours,
    ),
)
"""The shapes that are read, in the order in which they are tried."""


def _fact(item: Fields, where: str, *, target: str, new: str | None) -> Fact:
    """The fact of an entry with a ``prompt``, a ``subject`` and perhaps a ``template``.

    The template tells where the subject is. The prompt is what is asked: in known_1000 it goes on
    where the template ends ("{} is located in the continent", "... in the continent of").
    """
    subject = words(item, "subject", where)
    rest = {"subject": subject, "target": target, "new_target": new}
    if item.get("template") is not None:
        template = words(item, "template", where, strip=False)
        filled = template.replace(SLOT, subject)
        prompt = item.get("prompt", filled)
        if template.count(SLOT) == 1 and isinstance(prompt, str) and prompt.startswith(filled):
            return made(where, Fact, template + prompt[len(filled) :], **rest)
    prompt = words(item, "prompt", where, strip=False)
    return made(where, Fact if SLOT in prompt else Fact.from_text, prompt, **rest)


def _optional_new_target(item: Fields, where: str) -> str | None:
    return None if item.get("new_target") is None else words(item, "new_target", where)


def _naming(fact: Fact, texts: list[str]) -> tuple[str, ...]:
    """The texts that name the subject, as a paraphrase does."""
    subject = without_article(fact.subject)
    return tuple(text for text in texts if names_subject(subject, text))


def _about_others(fact: Fact, questions: list[Question]) -> tuple[Question, ...]:
    return tuple(each for each in questions if not names_subject(fact.subject, each.prompt))


def _aliases(fact: Fact, questions: list[Question]) -> tuple[str, ...]:
    """The names that fill the slot of the fact's own prompt in these questions."""
    before, after = map(re.escape, fact.prompt.split(SLOT))
    found = (re.fullmatch(f"{before}(.+){after}", each.prompt, re.DOTALL) for each in questions)
    names = dict.fromkeys(match[1].strip() for match in found if match)
    return tuple(each for each in names if each.casefold() != fact.subject.casefold())


def _reverse(fact: Fact, questions: list[Question]) -> tuple[Question, ...]:
    """The questions about the new target that the subject answers, with a slot for the object."""
    new = str(fact.new_target)
    asked = [each for each in questions if each.target.casefold() == fact.subject.casefold()]
    found = [(each, places(new, each.prompt)) for each in asked if SLOT not in each.prompt]
    return tuple(
        Question(
            prompt=each.prompt[: at[0]] + SLOT + each.prompt[at[0] + len(new) :],
            target=each.target,
        )
        for each, at in found
        if len(at) == 1
    )
