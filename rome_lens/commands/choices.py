"""Which records, layers, preset and texts a command uses."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import rome_lens as rl
from rome_lens.commands.console import say
from rome_lens.data.joining import joined
from rome_lens.data.record_type import Half, Record, names_subject
from rome_lens.data.relations import relation_of
from rome_lens.editing.presets import PRESETS, Preset
from rome_lens.errors import ArgumentError
from rome_lens.models.lens import LensModel

_TEXTS_TO_READ = 12


def choose_record(model_name: str, record_id: str | None) -> Record:
    """The record of this id, or the one that the demo takes for this model."""
    if record_id is not None:
        return rl.data.record(record_id)
    if model_name == "toy":
        # One that was also taught backwards and under another name, so that controls can be high.
        return next(each for each in rl.data.records(known_by="toy") if each.one_way is False)
    return rl.data.record("eiffel-tower")


def choose_records(
    model_name: str,
    file: Path | None,
    only: Sequence[str] | None = None,
    half: Half | Literal["all"] | None = None,
    *,
    many: bool = False,
) -> list[Record]:
    """The records of the file, or else the bundled ones, optionally only some of them.

    The toy model's facts are invented. It knows no others, and no other model knows them.

    Args:
        model_name: the model that is asked.
        file: a file of records; None takes the bundled ones.
        only: the ids of the records to take; None takes all.
        half: the half to take. None takes the report half of the bundled records of real models,
            because presets were chosen on the development half, and all records otherwise.
        many: take all that the toy was taught, in place of its few bundled records.

    Raises:
        ArgumentError: there is no record of an id in ``only``.
    """
    records: list[Record]
    if file is not None:
        records = rl.data.read_records(file)
    elif many and model_name == "toy":
        records = rl.data.toy_people()
    else:
        is_toy = model_name == "toy"
        records = [each for each in rl.data.records() if ("toy" in each.known_by) == is_toy]
        half = half or (None if is_toy else "report")
    every = {str(record.id) for record in records}
    if half not in (None, "all"):
        records = [record for record in records if record.half == half]
    if only is None:
        return records
    if missing := set(only) - {str(record.id) for record in records}:
        if missing <= every:
            raise ArgumentError(
                f"The records {sorted(missing)} are not of the half {half!r}: "
                "--half all takes both halves."
            )
        raise ArgumentError(
            f"There is no record {sorted(missing)}; there are: "
            f"{', '.join(str(record.id) for record in records)}."
        )
    return [record for record in records if str(record.id) in only]


def read_layers(text: str, *, name: str = "--layers") -> list[int]:
    """The layers, or other numbers, that a text such as ``"2-14"`` or ``"0,3,8-10"`` names.

    The ends are included.

    Raises:
        ArgumentError: the text is something else, or the last layer of a range is below its first.
    """
    layers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", part)
        chosen = range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)
        if not chosen:
            what = "layers" if name == "--layers" else "numbers"
            raise ArgumentError(f"{name} is {text!r}, expected {what} such as 2-14 or 0,3,8-10.")
        layers += chosen
    return layers


def trace_window(model: LensModel) -> int:
    """How many layers MLP and attention traces restore: 5, or fewer in a small model."""
    return max(1, min(5, model.cfg.n_layers // 3))


def choose_bos(model_name: str) -> bool | None:
    """Whether the model reads text after a BOS token: as its preset says, or by its default."""
    preset = PRESETS.get(model_name)
    return None if preset is None else preset.prepend_bos


def choose_preset(model_name: str, *, layer: int | None, suggested: int) -> Preset:
    """The model's preset, at ``layer`` if one is given.

    A model without a preset is edited at ``layer``, or else at the suggested layer, and the value's
    optimisation stops early.
    """
    preset = PRESETS.get(model_name)
    if preset is None:
        return Preset(
            model=model_name,
            layer=suggested if layer is None else layer,
            config=rl.RomeConfig(stop_probability=0.5),
        )
    return preset if layer is None else replace(preset, layer=layer)


def edit_preset(
    model: LensModel, model_name: str, record: Record, layer: int | None, *, progress: bool
) -> Preset:
    """The model's preset. Without one, an MLP trace of the record suggests the layer."""
    suggested = 0
    if layer is None and model_name not in PRESETS:
        trace = rl.causal_trace(
            model,
            record,
            component="mlp",
            window=trace_window(model),
            prepend_bos=choose_bos(model_name),
            progress=progress,
        )
        suggested = rl.choose_layer(trace)
        say(f"Layer {suggested}, from the MLP trace of {record.fact.text!r}.")
    return choose_preset(model_name, layer=layer, suggested=suggested)


def unrelated_texts(model_name: str, records: Sequence[Record]) -> list[str] | None:
    """Texts to read that name none of the records' subjects; None for the bundled English texts.

    The toy model knows no English, so it reads sentences about neighbours.
    """
    if model_name != "toy":
        return None
    sentences = dict.fromkeys(
        f"{joined(question.prompt, question.target)}."
        for record in records
        for question in record.neighborhood
    )
    unrelated = [
        text
        for text in sentences
        if not any(names_subject(record.fact.subject, text) for record in records)
    ]
    return unrelated[:_TEXTS_TO_READ]


def first_of_each_relation(records: Sequence[Record], most: int) -> list[Record]:
    """The first records of each relation, at most so many, in their order."""
    taken: Counter[str] = Counter()
    chosen = []
    for record in records:
        relation = relation_of(record)
        taken[relation] += 1
        if taken[relation] <= most:
            chosen.append(record)
    return chosen
