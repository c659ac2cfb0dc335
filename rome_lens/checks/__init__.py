"""The limits of an edit: what it does not do. Each check has its control.

Inspired by the critique "But is it really in Rome?"; the prompts are this project's own. Every
check is a function ``check(model, edit, record)`` that returns a :class:`CheckResult`: rows of
prompts before and after the edit; an effect with its 95 % interval; a control that tells "the edit
does not do this" from "the model never could"; and a sentence.

How it works: a check lists the questions that it asks of a record. The questions of all checks are
asked together, without and with the edit. Each check then reads the answers to its own.

* ``claims/``: one file for each claim, with the questions and the reader of its check.
* ``limits.py``: all checks of one edit.
* ``average.py``, ``many_facts.py``: the checks of many edits, averaged over facts.
* ``comparison.py``: editors side by side on the same facts.
* ``mass_curve.py``, ``mass_curve_scores.py``, ``mass_curve_result.py``: edits of more and more
  facts at once.
* ``check.py``: what a check is, and how checks are run.
* ``asking.py``: asks the model. ``writing.py``: has it write texts.
* ``answered.py``, ``result.py``: what a check reads, and what it returns.
"""

from rome_lens.checks.average import LimitsAverage, average_limits
from rome_lens.checks.claims.association import association, description
from rome_lens.checks.claims.bleed_over import bleed_over
from rome_lens.checks.claims.consequence import consequence
from rome_lens.checks.claims.direction import direction
from rome_lens.checks.claims.essence import essence
from rome_lens.checks.claims.fidelity import fidelity
from rome_lens.checks.claims.generalisation import generalisation
from rome_lens.checks.claims.localisation import localisation
from rome_lens.checks.claims.overfit import overfit
from rome_lens.checks.claims.specificity import specificity
from rome_lens.checks.comparison import compare_limits
from rome_lens.checks.limits import Limits, check_limits
from rome_lens.checks.limits_comparison import LimitsComparison
from rome_lens.checks.many_facts import check_records
from rome_lens.checks.mass_curve import mass_edit_curve
from rome_lens.checks.mass_curve_result import MassCurve
from rome_lens.checks.numbers_by_fact import average_by_fact
from rome_lens.checks.result import CheckResult, CheckRow, Measure

dominance = overfit
"""The name of :func:`overfit` in version 0.1, which asked less."""

__all__ = [
    "CheckResult",
    "CheckRow",
    "Limits",
    "LimitsAverage",
    "LimitsComparison",
    "MassCurve",
    "Measure",
    "association",
    "average_by_fact",
    "average_limits",
    "bleed_over",
    "check_limits",
    "check_records",
    "compare_limits",
    "consequence",
    "description",
    "direction",
    "dominance",
    "essence",
    "fidelity",
    "generalisation",
    "localisation",
    "mass_edit_curve",
    "overfit",
    "specificity",
]
