"""What a notebook shows for each type of result.

Importing this module registers a function for each type with :func:`rome_lens.results.to_html`,
which every result calls.
"""

import html

from rome_lens.checks.average import LimitsAverage
from rome_lens.checks.limits import Limits
from rome_lens.checks.limits_comparison import LimitsComparison
from rome_lens.checks.mass_curve_result import MassCurve
from rome_lens.checks.result import CheckResult
from rome_lens.composing.attention import AttentionComparison
from rome_lens.composing.attribution import LogitAttribution
from rome_lens.composing.lens import LogitLens
from rome_lens.composing.log_probs import LogProbComparison
from rome_lens.composing.texts import TextComparison
from rome_lens.editing.edit import Edit
from rome_lens.editing.firing import EditFiring
from rome_lens.evaluation.comparison import Comparison
from rome_lens.evaluation.results import Evaluation
from rome_lens.evaluation.scores import Scores, score_table
from rome_lens.evaluation.settings_sweep import EditSweep
from rome_lens.keys.statistics import KeyStatistics
from rome_lens.localisation.edit_trace_result import EditTrace
from rome_lens.localisation.edit_value import ValueComparison
from rome_lens.localisation.results import LayerSweep
from rome_lens.localisation.variance import VarianceExplained, variance_table
from rome_lens.results import to_html
from rome_lens.sweeps.results import Sweep
from rome_lens.tracing.averages import TraceAverage
from rome_lens.tracing.results import CausalTrace, SeveredTrace
from rome_lens.viz.average_plots import averages
from rome_lens.viz.check_plots import limits
from rome_lens.viz.comparison_plots import limits_by_editor
from rome_lens.viz.composing_plots import attention, lens, logit_attribution
from rome_lens.viz.html import figure_html
from rome_lens.viz.layer_plots import layer_sweep
from rome_lens.viz.mass_plots import mass_curve
from rome_lens.viz.severed_plots import severed
from rome_lens.viz.sweep_plots import sweep
from rome_lens.viz.tables import text
from rome_lens.viz.trace_plots import heads, trace
from rome_lens.viz.value_plots import values
from rome_lens.viz.words import firing


@to_html.register
def _(result: CausalTrace) -> str:
    return figure_html(heads(result) if result.heads else trace(result))


@to_html.register
def _(result: EditTrace) -> str:
    figure = heads(result) if result.heads else trace(result)
    return f"{figure_html(figure)}<p>{html.escape(result.reading)}</p>"


@to_html.register
def _(result: ValueComparison) -> str:
    table = result.to_frame().to_html(index=False, float_format="{:.3f}".format)
    return f"{figure_html(values(result))}<p>{html.escape(result.reading)}</p>{table}"


@to_html.register
def _(result: SeveredTrace) -> str:
    return figure_html(severed(result))


@to_html.register
def _(result: TraceAverage) -> str:
    return figure_html(averages([result]))


@to_html.register
def _(result: KeyStatistics) -> str:
    return str(result.to_frame().to_html(index=False))


@to_html.register
def _(result: Edit) -> str:
    filled = result.to_frame().dropna(axis="columns", how="all")
    return str(filled.to_html(index=False, na_rep="", float_format="{:.4g}".format))


@to_html.register
def _(result: EditFiring) -> str:
    return firing(result).source


@to_html.register
def _(result: Evaluation) -> str:
    return str(result.to_frame().to_html(index=False, float_format="{:.4f}".format))


@to_html.register
def _(result: Scores) -> str:
    return str(score_table([result]).to_html())


@to_html.register(Comparison)
@to_html.register(EditSweep)
def _(result: Comparison | EditSweep) -> str:
    return str(result.table().to_html())


@to_html.register
def _(result: LayerSweep) -> str:
    return figure_html(layer_sweep(result))


@to_html.register
def _(result: Sweep) -> str:
    table = str(result.table().to_html())
    if not result.measures:
        return table
    return table + figure_html(sweep(result), alt="Measures by layer and editor")


@to_html.register
def _(result: VarianceExplained) -> str:
    return str(variance_table([result]).to_html()) + f"<p>{html.escape(result.reading)}</p>"


@to_html.register
def _(result: CheckResult) -> str:
    words = (
        f"<p><b>{html.escape(result.name)}</b>: {html.escape(result.asks)}</p>"
        f"<p>{html.escape(result.reading)}</p>"
    )
    if not result.rows and not result.further:
        return words
    rows = (
        result.to_frame()
        .drop(columns="check")
        .to_html(index=False, float_format="{:.4f}".format, na_rep="")
    )
    return f"{words}{result.table().to_html()}{rows}"


@to_html.register
def _(result: Limits) -> str:
    table = str(result.table().to_html(index=False))
    if not any(check.asked for check in result.results):
        return table
    return table + figure_html(limits(result), alt="Effect and control of every check")


@to_html.register
def _(result: LimitsAverage) -> str:
    tables = str(result.table().to_html()) + str(result.further().to_html())
    if not any(result.of(name) for name in result.checks):
        return tables
    return tables + figure_html(limits(result), alt="Effect and control of every check, by fact")


@to_html.register
def _(result: LimitsComparison) -> str:
    table = str(result.table().to_html())
    if not result.numbers:
        return table
    return table + figure_html(limits_by_editor(result), alt="Every check, by editor")


@to_html.register
def _(result: TextComparison) -> str:
    return text(result).source


@to_html.register
def _(result: LogitLens) -> str:
    return figure_html(lens(result), alt=f"Logit lens of: {result.fact.text}")


@to_html.register
def _(result: LogitAttribution) -> str:
    return figure_html(logit_attribution(result), alt=f"Logit attribution of: {result.fact.text}")


@to_html.register
def _(result: AttentionComparison) -> str:
    return figure_html(attention(result), alt=f"Attention on: {result.text}")


@to_html.register
def _(result: LogProbComparison) -> str:
    return str(result.to_frame().to_html(index=False, float_format="{:.3f}".format))


@to_html.register
def _(result: MassCurve) -> str:
    table = str(result.table().to_html())
    return table + figure_html(mass_curve(result), alt="Every measure, by the number of facts")
