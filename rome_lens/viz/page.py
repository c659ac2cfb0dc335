"""Self-contained HTML pages, about one edit or about the limits of many: they open from disk, with the network off."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from rome_lens import viz
from rome_lens.checks.average import LimitsAverage
from rome_lens.checks.limits import Limits
from rome_lens.editing.firing import EditFiring
from rome_lens.editing.rank_one_edit import RankOneEdit
from rome_lens.errors import ArgumentError
from rome_lens.evaluation.scores import markdown
from rome_lens.forward.answers import TopAnswers
from rome_lens.results import Result
from rome_lens.storage import installed_versions, whole_or_nothing
from rome_lens.tracing.results import CausalTrace


@dataclass(frozen=True, kw_only=True, repr=False)
class BeforeAfter(Result):
    """A prompt's likeliest answers without and with the edit; ``kind`` says what the prompt is to the edit."""

    kind: str
    expected: str
    before: TopAnswers
    after: TopAnswers


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
    """Write the page and return its path; a file that was there is replaced only by a whole one.

    Args:
        traces: the first one's prompt is also shown as coloured tokens.
        answers, limits, firing: shown where given.

    Raises:
        ValueError: there is no trace.
    """
    if not traces:
        raise ArgumentError("The report needs at least one trace.")
    path = Path(path)
    page = _template("report.html").render(
        title=_title(traces[0], edit),
        model_name=model_name,
        traces=traces,
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
    """Write what the checks found over facts, and return the path: an HTML page, or tables alone where it ends in ``.md``.

    Raises:
        ValueError: the path ends otherwise.
    """
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
            figure=viz.figure_html(
                viz.limits(average), alt="Effects and controls of every check, by fact"
            ),
            table=average.table().to_html(escape=True),
            further=average.further().to_html(escape=True),
            firing=average.firing().to_html(escape=True),
            versions=installed_versions(),
        )
    with whole_or_nothing(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")
    return path


def _title(trace: CausalTrace, edit: RankOneEdit) -> str:
    fact = trace.fact if edit.fact is None else edit.fact
    return f"{fact.text} {fact.target}" + (
        "" if fact.new_target is None else f" → {fact.new_target}"
    )


def _template(name: str) -> Any:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rome_lens.viz"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(name)
