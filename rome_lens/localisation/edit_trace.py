"""By which path an edit reaches the answer: the tracing engine between two models.

Causal tracing compares a clean run with a corrupted one. Here the two runs have the same tokens:
one is of the edited model and one of the unedited model. Putting a state of one into the other
shows where the edit's effect is carried from layer to layer and from position to position.
"""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.arguments import one_of
from rome_lens.data.facts import Fact
from rome_lens.data.record_type import Record, as_fact
from rome_lens.editing.edit import Edit
from rome_lens.editing.firing import edit_firing
from rome_lens.editing.rank_one_edit import RankOneEdit
from rome_lens.errors import ArgumentError
from rome_lens.forward.answers import token_log_probs
from rome_lens.forward.runs import evaluating, weights_laid_out
from rome_lens.forward.tokens import Answer, FactTokens, begins_with_bos, encode, shared_length
from rome_lens.localisation.edit_trace_result import EditTrace
from rome_lens.models.door import visits_model
from rome_lens.models.fingerprints import fingerprint, name_of
from rome_lens.models.hook_names import Component
from rome_lens.models.lens import LensModel, starts_with_bos
from rome_lens.tracing.cells import Grid, grid
from rome_lens.tracing.clean_run import CleanRun, run_one
from rome_lens.tracing.corrupted_run import run_corrupted
from rome_lens.tracing.metrics import Metric, metric_text
from rome_lens.tracing.passes import pass_size
from rome_lens.tracing.restoring import Restorer
from rome_lens.tracing.results import Direction
from rome_lens.tracing.scoring import cell_scores, progress_bar, run_scores


@visits_model
def trace_edit(
    model: LensModel,
    edit: Edit,
    prompt: Fact | Record | str | None = None,
    *,
    component: Component = "resid",
    window: int = 1,
    layers: Iterable[int] | None = None,
    positions: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
    answer: Answer = "first_token",
    metric: Metric = "probability",
    direction: Direction = "denoising",
    prepend_bos: bool | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> EditTrace:
    """By which states an edit reaches the answer: ``P*_{h_pos^layer}[new target]``.

    In denoising, the unedited model runs the prompt while one state is that of the edited model. A
    cell with a high score is sufficient for the new target. In noising, the edited model runs it
    while one state is that of the unedited model. A cell with a low score is necessary.

    Called with another prompt, it tells why the edit stays behind there. An alias may lack the key,
    so that nothing is written; or the key may be there, and what is written is not read out. See
    :attr:`EditTrace.reading`.

    Args:
        model: the unedited model; it is left as it was.
        edit: an edit of ``W_out``, such as :func:`rome_lens.rome` returns. It may be applied to the
            weights only inside this call.
        prompt: what is asked. None asks the edit's own fact. A text is asked as it is; the new
            target is still that of the edit's fact. A fact or record with a new target is asked as
            it is, with its own new target.
        component, window, layers, positions, heads, answer, metric, batch_size, progress: as for
            :func:`rome_lens.causal_trace`. The score is of the new target. The logit difference is
            its logit minus the true target's.
        direction: as above.
        prepend_bos: whether the prompt starts with BOS; None takes the model's default.

    Returns:
        The trace; ``scores`` are ``Float[Tensor, "layer pos"]``, or ``"layer pos head"`` for
        ``"z"``.

    Raises:
        ArgumentError: the edit is not an edit of ``W_out``; it is in the weights already; or it is
            of no fact, and ``prompt`` is no fact with a new target.
        FactError, ModelError: as for :func:`rome_lens.causal_trace` and ``edit.applied``.

    Source: the patching is that of Meng et al. 2022, section 2.1, between two models, as in Prakash
    et al. 2024, "Fine-Tuning Enhances Existing Mechanisms" (cross-model activation patching).

    Example:
        The edit enters at the subject's last token, and attention carries it to the last token.

        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> fact = rl.data.record("wanda-brandt").fact
        >>> identity = rl.KeyStatistics.identity(model, layer=2)
        >>> edit = rl.rome(model, fact, layer=2, statistics=identity, contexts=["{}"])
        >>> trace = rl.trace_edit(model, edit)
        >>> round(trace.corrupted, 2), round(trace.clean, 2)
        (0.0, 0.99)
        >>> layer, pos = trace.peak(at="subject_last")
        >>> trace.labels[pos], layer, round(float(trace.scores[layer, pos]), 2)
        (' Brandt', 2, 0.99)
        >>> round(float(trace.indirect_effects[:2].abs().max()), 6)  # none before the edited layer
        0.0
    """
    one_of("direction", direction, Direction)
    fact = _asked_fact(edit, prompt)
    if edit.is_applied(model):
        raise ArgumentError(
            "The edit is in the model's weights already: revert it, because trace_edit compares "
            "the model without and with it."
        )
    encoded = encode(model, fact, prepend_bos=prepend_bos)
    cells = grid(
        model,
        # An edit may fire at any token, so that no position can be left out.
        replace(encoded, subject=(0, len(encoded.tokens))),
        component=component,
        window=window,
        layers=layers,
        positions=positions,
        heads=heads,
        answer=answer,
        size=pass_size(model, batch_size=batch_size),
        metric=metric,
    )
    with evaluating(model), torch.no_grad():
        with edit.applied(model):
            edited = run_one(model, fact, cells, prepend_bos, require_correct=False)
            overtakes = _overtakes(model, fact, encoded, prepend_bos)
        unedited = run_one(model, fact, cells, prepend_bos, require_correct=False)
        unedited = replace(unedited, reading=edited.reading)
        base, source = (unedited, edited) if direction == "denoising" else (edited, unedited)
        with edit.applied(model) if direction == "noising" else nullcontext():
            own, scores = _scores(model, base, source, cells, component, progress=progress)
        corrupted = own if direction == "denoising" else _score_without(model, unedited)
    return EditTrace(
        fact=fact,
        layers=cells.layers,
        positions=cells.positions,
        labels=encoded.labels,
        subject=encoded.subject,
        answer=model.tokenizer.decode(list(cells.answer.tokens)),
        answer_tokens=len(cells.answer.tokens),
        given=model.tokenizer.decode(list(cells.answer.given)),
        scoring=cells.answer.scoring,
        metric=metric_text(metric),
        direction=direction,
        component=component,
        window=cells.window,
        heads=cells.heads or (),
        clean=edited.score,
        corrupted_samples=corrupted,
        sample_scores=scores,
        noise=f"without {edit!r}",
        model_fingerprint=fingerprint(model),
        model_name=name_of(model),
        edited_layers=tuple(sorted({part.layer for part in edit.parts})),
        firing=_firing(model, edit, fact, prepend_bos),
        begins_with_bos=starts_with_bos(model, prepend_bos) or begins_with_bos(model, fact.text),
        overtakes=overtakes,
    )


def _asked_fact(edit: Edit, prompt: Fact | Record | str | None) -> Fact:
    """The fact that is asked, with the new target as its target and the true one as its foil."""
    if not isinstance(edit, Edit):
        raise ArgumentError(
            f"edit is of type {type(edit).__name__}, expected an edit of W_out, such as rl.rome "
            "returns."
        )
    edited = next((part.fact for part in edit.parts if part.fact is not None), None)
    asked = None if prompt is None or isinstance(prompt, str) else as_fact(prompt)
    asked = edited if asked is None else asked
    if asked is None or asked.new_target is None:
        raise ArgumentError(
            f"{edit!r} does not say what it is of, or the fact has no new target: give prompt as a "
            "Fact(..., new_target=...)."
        )
    if not isinstance(prompt, str):
        return Fact(
            asked.prompt,
            subject=asked.subject,
            target=asked.new_target,
            new_target=asked.target,
            joiner=asked.own_joiner,
        )
    # A text need not name the subject. It then counts as a subject as a whole.
    names = asked.subject in prompt and prompt.count(asked.subject) == 1
    template = prompt.replace(asked.subject, "{}") if names else "{}"
    return Fact(
        template,
        subject=asked.subject if names else prompt,
        target=asked.new_target,
        new_target=asked.target,
    )


def _scores(
    model: LensModel,
    base: CleanRun,
    source: CleanRun,
    cells: Grid,
    component: Component,
    *,
    progress: bool,
) -> tuple[Float[Tensor, " sample"], Float[Tensor, "sample layer pos *head"]]:
    """The score of the base run as it is, and of its cells with the states of the other run."""
    patched = replace(base, states=source.states)
    with weights_laid_out(model):
        run = run_corrupted(base.forward, [patched], [base.embeddings[None]])
        own = run_scores(base.forward, run)
        restorer = Restorer(base.forward, component, run)
        with progress_bar(f"trace edit {component}", cells.count, progress=progress) as bar:
            [scores] = cell_scores(restorer, [cells], own, bar)
    return own[0].cpu(), scores


def _score_without(model: LensModel, unedited: CleanRun) -> Float[Tensor, " sample"]:
    run = run_corrupted(unedited.forward, [unedited], [unedited.embeddings[None]])
    return run_scores(unedited.forward, run)[0].cpu()


def _overtakes(
    model: LensModel, fact: Fact, encoded: FactTokens, prepend_bos: bool | None
) -> bool | None:
    """Whether the target is likelier than the other one, where the two part."""
    place = shared_length(encoded.answer, encoded.new_answer)
    if place == min(len(encoded.answer), len(encoded.new_answer)):
        return None
    questions = [(fact.text, fact.target), (fact.text, str(fact.new_target))]
    own, other = token_log_probs(
        model, questions, hooks_of_rows=lambda _marks: [], prepend_bos=prepend_bos
    )
    return bool(own[place] > other[place])


def _firing(
    model: LensModel, edit: Edit, fact: Fact, prepend_bos: bool | None
) -> tuple[float, ...]:
    parts: Sequence[object] = edit.parts
    if len(parts) != 1 or not isinstance(parts[0], RankOneEdit) or parts[0].key is None:
        return ()
    return tuple(edit_firing(model, parts[0], fact.text, prepend_bos=prepend_bos).values.tolist())
