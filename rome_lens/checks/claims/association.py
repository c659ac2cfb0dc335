"""Association and description: does the edit hold for the subject under another name, or none?

If it holds under the edited name only, the edit changed an association between words and not a
concept.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rome_lens.checks.check import run_check
from rome_lens.checks.claims.other_names import UnderOtherNames
from rome_lens.checks.claims.spill import within_sentence
from rome_lens.checks.result import CheckResult
from rome_lens.data.facts import Fact
from rome_lens.data.questions import Decoys
from rome_lens.data.record_type import Record
from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel

WITH_NAME = "description with the name"


@visits_model
def association(
    model: LensModel, edit: Any, record: Fact | Record, *, prepend_bos: bool | None = None
) -> CheckResult:
    """The share of the edit's effect that is kept when an alias stands for the subject.

        effect = mean over aliases of  [p_edited(o* | alias) - p(o* | alias)] / [p_edited(o* | s) -
        p(o* | s)]

    Decoys tell a concept from spill: other subjects with the same true answer, subjects with
    another answer, and invented ones. The result has the share that each kind keeps, and the share
    kept *minus* it, paired by fact. An edit is ``"followed"`` to the alias if at least half of what
    the alias keeps is more than any kind of decoy keeps; otherwise it has ``"spilled"``, or is
    ``"not kept"`` (a share below 0.1). Each of the three is a further number, the share of facts.

    Control: ``p(o | alias)`` in the unedited model, which tells whether the model knows the fact
    under the alias (``effect_where_known``). That does not show that it knows who is meant.
    ``effect_where_identified`` is the mean over aliases for which the unedited model gives the
    subject after a naming prompt, such as "La Tour Eiffel is another name of", with a probability
    of at least 0.1.

    The result also has the same share in ``log p``. If the edit does not hold for the subject
    itself (``p`` grows by less than 0.1), there is no effect to keep a share of, and the check says
    so. An alias is asked about in its own language too, where the record has such a prompt; the
    answers are then in that language.

    An alias with the subject's last word ("Leo Messi" for "Lionel Messi") contains the very token
    that the edit is keyed to. It says nothing about the concept. Such aliases have rows and an
    average of their own, and are left out of the effect.

    Source: "Cheese is not Fromage" in "But is it really in Rome?"; "subject aliasing" in Cohen et
        al. 2023, "Evaluating the Ripple Effects of Knowledge Editing in Language Models".

    Raises:
        ArgumentError, RecordError, ModelError: as for :func:`rome_lens.check_limits`.
    """
    return run_check(Association(), model, edit, record, prepend_bos)


@visits_model
def description(
    model: LensModel, edit: Any, record: Fact | Record, *, prepend_bos: bool | None = None
) -> CheckResult:
    """The share of the edit's effect that is kept when a description stands for the subject.

    See :func:`association` for the equation, the decoys and the identification. Here the decoys are
    descriptions of other subjects, and descriptions of the same form that fit nobody. A second
    control puts the name before the description ("The Eiffel Tower, the iron lattice structure ...,
    is"). An edit that is bound to the tokens of the name should hold there. Descriptions with the
    subject's last word are kept apart, as such aliases are.

    Source: "The Rock" in "But is it really in Rome?"; "compositionality II" in Cohen et al. 2023.

    Raises:
        ArgumentError, RecordError, ModelError: as for :func:`rome_lens.check_limits`.
    """
    return run_check(Description(), model, edit, record, prepend_bos)


class Association(UnderOtherNames):
    """The check behind :func:`association`."""

    name = "association"
    asks = "Does the edit hold for the subject under another name?"
    lacks = "the record has no aliases"
    kind = "alias"

    def all_names(self, record: Record) -> Sequence[str]:
        """The aliases."""
        return record.aliases

    def decoys(self, record: Record) -> Decoys:
        """Names of other subjects."""
        return record.decoys

    def own_language(self, record: Record) -> Sequence[tuple[str, str, str]]:
        """The record's prompts in an alias's language, as far as they have a new answer."""
        return [
            (each.prompt, each.target, each.new_target)
            for each in record.alias_questions
            if each.new_target is not None
        ]


class Description(UnderOtherNames):
    """The check behind :func:`description`."""

    name = "description"
    asks = "Does the edit hold for the subject described without its name?"
    lacks = "the record has no descriptions"
    kind = "description"

    def all_names(self, record: Record) -> Sequence[str]:
        """The descriptions."""
        return record.descriptions

    def decoys(self, record: Record) -> Decoys:
        """Descriptions of other subjects.

        Where none has the same answer, names of such subjects take their place.
        """
        described = record.description_decoys
        same = described.same_answer or record.decoys.same_answer
        return replace(described, same_answer=same)

    def compared_prompts(self, record: Record) -> dict[str, list[str]]:
        """The descriptions after the name, too."""
        fact = record.fact
        named = [
            fact.about(f"{fact.subject}, {within_sentence(each)},").text
            for each in record.descriptions
        ]
        return {WITH_NAME: named, **super().compared_prompts(record)}
