"""The rows of a sweep's table, always read from the finished units.

So a row does not depend on whether its numbers were computed in this run or in an earlier one.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from rome_lens.checks.limits import Limits
from rome_lens.data.record_type import Record
from rome_lens.editing.edit import LayerEdit
from rome_lens.editing.mass_edit import MassEdit
from rome_lens.evaluation.results import Evaluation
from rome_lens.results import Stored
from rome_lens.storage import installed_versions
from rome_lens.sweeps.results import SCORES
from rome_lens.sweeps.units import Failure, Plan, Units
from rome_lens.tracing.many_facts import NotKnown
from rome_lens.tracing.results import CausalTrace


def read_rows(plan: Plan, records: Sequence[Record], source: str) -> pd.DataFrame:
    """The table: a row for each fact, editor and layer, in this order."""
    same = {
        "settings": json.dumps(_settings(plan)),
        "model": source,
        "model_fingerprint": plan.model_fingerprint,
        "versions": json.dumps(installed_versions()),
    }
    frame = pd.DataFrame(
        [{**row, **same} for record in records for row in _rows_of_fact(plan, record)]
    )
    return frame.astype({name: "boolean" for name in ("known", "already") if name in frame})


def _settings(plan: Plan) -> dict[str, Any]:
    """All settings, as JSON can hold them."""
    settings = {
        name: getattr(plan, name)
        for name in plan.__dataclass_fields__
        if name not in ("directory", "identity", "model_fingerprint", "layers")
    }
    return {
        **settings,
        "noise": repr(plan.noise),
        "editors": {
            name: {"kind": type(each).__name__, **asdict(each)}
            for name, each in plan.editors.items()
        },
        "statistics": {layer: words for layer, (words, _) in plan.statistics.items()},
    }


def _rows_of_fact(plan: Plan, record: Record) -> list[dict[str, Any]]:
    units = Units(plan)  # it keeps what it has read, so each fact has a new one
    fact = record.fact
    about = {
        "id": str(record.id),
        "prompt": fact.prompt,
        "subject": fact.subject,
        "target": fact.target,
        "new_target": fact.new_target or "",
        "relation": record.relation,
    }
    text = json.dumps(asdict(record))
    trace = None
    if "trace" in plan.stages:
        trace = units.result("trace", units.trace(fact))
    return [
        {
            **about,
            "editor": editor,
            "layer": layer,
            **_numbers(units, record, layer, editor, trace),
            "record": text,
        }
        for editor in plan.editors or ("",)
        for layer in plan.layers
    ]


def _numbers(
    units: Units, record: Record, layer: int, editor: str, trace: Stored | None
) -> dict[str, Any]:
    """The columns of all stages, and the errors of those that failed."""
    plan = units.plan
    found: dict[str, Stored | None] = {"trace": trace} if "trace" in plan.stages else {}
    if plan.cell_stages:
        names = units.cell(record, layer, editor)
        found |= {stage: units.result(stage, names[stage]) for stage in plan.cell_stages}
    errors = [f"{stage}: {e.error}" for stage, e in found.items() if isinstance(e, Failure)]
    columns: dict[str, Any] = {"error": "; ".join(errors)}
    if "trace" in found:
        columns |= _of_trace(found["trace"], layer)
    if "edit" in found:
        columns |= _of_edit(found["edit"])
    if "evaluate" in found:
        columns |= _of_evaluation(found["evaluate"])
    return columns | _of_limits(found.get("limits"))


def _of_trace(trace: Stored | None, layer: int) -> dict[str, Any]:
    if not isinstance(trace, CausalTrace):
        known = False if isinstance(trace, NotKnown) else None
        nothing = dict.fromkeys(("clean", "total_effect", "effect"), math.nan)
        return {"known": known, **nothing}
    effects = trace.indirect_effects[:, 0].double()
    return {
        "known": True,
        "clean": float(trace.clean),
        "total_effect": float(trace.total_effect),
        "effect": float(effects[trace.layers.index(layer)]),
    }


def _of_edit(edit: Stored | None) -> dict[str, Any]:
    if isinstance(edit, MassEdit):
        return _of_mass_edit(edit)
    if not isinstance(edit, LayerEdit):
        return {**dict.fromkeys(("norm", "loss", "probability", "steps"), math.nan), "stopped": ""}
    losses = () if edit.losses is None else edit.losses
    return {
        "norm": edit.norm,
        "loss": _number(edit.loss),
        "probability": _number(edit.probability),
        "steps": float(len(losses)),
        "stopped": edit.stopped or "",
    }


def _of_evaluation(evaluation: Stored | None) -> dict[str, Any]:
    if not isinstance(evaluation, Evaluation):
        return {"already": None, **dict.fromkeys(SCORES, math.nan)}
    scores = {name: _number(getattr(evaluation, name)) for name in SCORES}
    return {"already": evaluation.already, **scores}


def _of_limits(limits: Stored | None) -> dict[str, Any]:
    """Each check's mean effect and mean control. One that was not asked is NaN."""
    if limits is None:
        return {}
    if not isinstance(limits, Limits):
        return {"effects": "{}"}
    effects = {result.name: result.effect_is for result in limits.results if result.asked}
    return {"effects": json.dumps(effects)} | {
        column: math.nan if average is None else average.mean
        for result in limits.results
        for column, average in (
            (f"{result.name} effect", result.effect),
            (f"{result.name} control", result.control),
        )
    }


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _of_mass_edit(edit: MassEdit) -> dict[str, Any]:
    """The same of an edit of one fact at one layer by MEMIT, EMMET or AlphaEdit."""
    (part,), (losses,) = edit.edits, edit.losses
    return {
        "norm": part.norm,
        "loss": float(losses[-1].sum()),
        "probability": float(edit.probabilities[0]),
        "steps": float(len(losses)),
        "stopped": edit.stopped[0],
    }
