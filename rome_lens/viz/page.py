"""Self-contained HTML pages, about one edit or about the checks of many edits."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jinja2

from rome_lens import viz
from rome_lens.arguments import check_characters
from rome_lens.checks.average import LimitsAverage
from rome_lens.checks.limits import Limits
from rome_lens.data.joining import joined
from rome_lens.editing.firing import EditFiring
from rome_lens.editing.rank_one_edit import RankOneEdit
from rome_lens.errors import ArgumentError
from rome_lens.evaluation.scores import markdown
from rome_lens.forward.next_tokens import TopAnswers
from rome_lens.results import Result
from rome_lens.storage import installed_versions, whole_or_nothing
from rome_lens.tracing.results import CausalTrace
from rome_lens.viz.axes import NAMES
from rome_lens.viz.overview import not_drawn, readings

Shown = TypeVar("Shown", bound=Result)


@dataclass(frozen=True, kw_only=True, repr=False)
class BeforeAfter(Result):
    """The most likely answers to a prompt without and with an edit."""

    kind: str
    """How the prompt relates to the edit, such as ``"fact"`` or ``"neighbour"``."""
    expected: str
    """The true answer."""
    before: TopAnswers
    """The answers without the edit."""
    after: TopAnswers
    """The answers with the edit."""


def report(
    path: str | Path,
    *,
    model_name: str,
    traces: Sequence[CausalTrace],
    edit: RankOneEdit,
    answers: Sequence[BeforeAfter] = (),
    limits: Limits | None = None,
    firing: Sequence[EditFiring] = (),
) -> Path:
    """Write an HTML page about one edit and return its path.

    An existing file is replaced only when the new page is complete.

    Args:
        path: where to write.
        model_name: the model's name, for the page.
        traces: traces of the fact. The first one is also shown as coloured tokens.
        edit: the edit.
        answers: answers to some prompts before and after the edit.
        limits: what :func:`check_limits` found.
        firing: how the edit fires on some prompts.

    Raises:
        ArgumentError: there is no trace; an argument is not of the type that it should be. A trace
            of severed modules is not shown here: :func:`rome_lens.viz.severed` draws it.
    """
    traces = _listed("traces", traces, CausalTrace)
    if not traces:
        raise ArgumentError("traces is empty: the report needs at least one trace.")
    answers = _listed("answers", answers, BeforeAfter)
    firing = _listed("firing", firing, EditFiring)
    _check_type("edit", edit, RankOneEdit)
    if limits is not None:
        _check_type("limits", limits, Limits)
    _check_name(model_name)
    path = Path(path)
    page = _template("report.html").render(
        shown=_shown,
        share=_share,
        contents=_contents(bool(answers), bool(firing), limits is not None),
        verdicts=readings(limits) if limits else [],
        unread=not_drawn(limits) if limits else [],
        overview=_picture(limits) if limits else "",
        title=_title(traces[0], edit),
        model_name=model_name,
        traces=traces,
        component=NAMES[traces[0].component],
        edit=edit,
        answers=answers,
        limits=limits,
        heatmaps=[
            viz.figure_html(viz.trace(t), alt=f"{t.component} trace of: {t.fact.text}")
            for t in traces
        ],
        trace_tokens=viz.trace_tokens(traces[0]).source,
        firing=viz.firing(firing).source if firing else "",
        versions=installed_versions(),
    )
    with whole_or_nothing(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")
    return path


def limits_report(path: str | Path, *, model_name: str, average: LimitsAverage) -> Path:
    """Write what the checks found for many edits and return the path.

    A path that ends in ``.html`` gives a page. One that ends in ``.md`` gives the tables alone.

    Args:
        path: where to write.
        model_name: the model's name, for the page.
        average: what :func:`average_limits` or :func:`check_records` gave.

    Raises:
        ArgumentError: the path has another ending; an argument is not of the type that it should
            be.
    """
    _check_type("average", average, LimitsAverage)
    _check_name(model_name)
    path = Path(path)
    if path.suffix not in (".html", ".md"):
        raise ArgumentError(f"The path is {str(path)!r}, expected one that ends in .html or .md.")
    if path.suffix == ".md":
        tables = (average.table(), average.further(), average.firing())
        page = "\n\n".join(map(markdown, tables)) + "\n"
    else:
        page = _template("limits.html").render(
            model_name=model_name,
            average=average,
            figure=_picture(average),
            table=average.table().to_html(escape=True, border=0, index_names=False),
            further=average.further().to_html(escape=True, border=0, index_names=False),
            firing=average.firing().to_html(escape=True, border=0, index_names=False),
            versions=installed_versions(),
        )
    with whole_or_nothing(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")
    return path


def _picture(result: Limits | LimitsAverage) -> str:
    """The picture of the checks that were asked; nothing if none was."""
    if not readings(result):
        return ""
    return viz.figure_html(viz.limits(result), alt="Every check with its control, on one scale")


def _contents(answers: bool, firing: bool, limits: bool) -> list[tuple[str, str]]:
    """The parts of a page about one edit: where each begins, and its heading."""
    parts = [
        ("trace", "Where the fact is read out", True),
        ("edit", "The edit", True),
        ("answers", "Before and after", answers),
        ("firing", "Where the edit fires", firing),
        ("limits", "What the edit does not do", limits),
    ]
    return [(place, heading) for place, heading, there in parts if there]


def _shown(token: str) -> str:
    """A token without the space before it, or a sign for one that is white space alone."""
    return token if token.strip() else "␣"


def _share(value: float) -> str:
    """A share with two digits, and no sign if it is zero."""
    return f"{round(value, 2) + 0.0:.2f}"


def _listed(name: str, values: object, kind: type[Shown]) -> list[Shown]:
    """The results as a list; a single one is taken as a list of one."""
    if isinstance(values, kind):
        return [values]
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ArgumentError(
            f"{name} is of type {type(values).__name__}, expected a list of {kind.__name__}."
        )
    listed = list(values)
    for index, value in enumerate(listed):
        _check_type(f"{name}[{index}]", value, kind)
    return listed


def _check_type(name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise ArgumentError(f"{name} is of type {type(value).__name__}, expected {kind.__name__}.")


def _check_name(model_name: object) -> None:
    if not isinstance(model_name, str):
        raise ArgumentError(
            f"model_name is {model_name!r}, expected the model's name for the page."
        )
    check_characters("model_name", model_name)


def _title(trace: CausalTrace, edit: RankOneEdit) -> str:
    fact = trace.fact if edit.fact is None else edit.fact
    return joined(fact.text, fact.target) + (
        "" if fact.new_target is None else f" → {fact.new_target}"
    )


def _template(name: str) -> Any:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rome_lens.viz"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(name)
