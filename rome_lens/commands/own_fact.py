"""The facts that a command is about: one of the user's own, those of a file, or a bundled one."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import rome_lens as rl
from rome_lens.commands.choices import choose_record
from rome_lens.data.record_type import Record, as_record
from rome_lens.data.slots import SLOT
from rome_lens.errors import ArgumentError

_OPTIONS = ("prompt", "subject", "target", "new_target")


def add_fact_arguments(command: argparse.ArgumentParser, *, record: bool = False) -> None:
    """Add the options that name a fact.

    Args:
        record: whether the command may also take a bundled record by its id.
    """
    group = command.add_argument_group("a fact of your own")
    group.add_argument("--prompt", help="the prompt, with {} for the subject or the subject itself")
    group.add_argument("--subject", help="the words of the subject, as they stand in the prompt")
    group.add_argument("--target", help="the true answer")
    group.add_argument("--new-target", help="the answer that an edit gives instead")
    command.add_argument("--facts", type=Path, help="a file of facts or records, of any shape")
    if record:
        command.add_argument("--record", help="the id of a bundled record")


def own_fact(args: argparse.Namespace) -> rl.Fact | None:
    """The fact that the options spell out; None if they do not.

    Raises:
        ArgumentError: some of the options are missing.
        FactError: they do not make a fact.
    """
    given = {name: getattr(args, name) for name in _OPTIONS if getattr(args, name) is not None}
    if not given:
        return None
    if missing := [name for name in _OPTIONS[:3] if name not in given]:
        raise ArgumentError(
            f"--{missing[0]} is missing: a fact of your own needs --prompt, --subject and --target,"
            " and --new-target for an edit."
        )
    prompt = given.pop("prompt")
    if SLOT in prompt:
        return rl.Fact(prompt, **given)
    return rl.Fact.from_text(prompt, **given)


def asked_records(args: argparse.Namespace, *, edited: bool) -> list[Record]:
    """The records that a command is about: the user's own fact, a file's, or a bundled one.

    Args:
        edited: whether the facts are to be edited, so that they need a new target.

    Raises:
        ArgumentError: several of these are given, or a fact that is edited has no new target.
    """
    fact, file, named = own_fact(args), args.facts, getattr(args, "record", None)
    if sum(each is not None for each in (fact, file, named)) > 1:
        raise ArgumentError("Give one of --prompt (with its fact), --facts and --record.")
    if fact is not None:
        records: Sequence[Record] = [as_record(fact)]
    elif file is not None:
        records = rl.data.read_records(file)
    else:
        records = [choose_record(args.model, named)]
    lacking = [each.fact.text for each in records if each.fact.new_target is None]
    if edited and lacking:
        raise ArgumentError(
            f"{lacking[0]!r} has no new target: give --new-target, the answer that the edit is to "
            "give."
        )
    return list(records)
