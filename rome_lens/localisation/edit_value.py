"""Is the value of an edit one that the model itself would write?

ROME optimises ``v*`` until the model answers with the new target. Nothing keeps it near the values
that the model writes for subjects of which the new target is true. Makelov et al. 2023 ("Is This
the Subspace You Are Looking For?") show that patching a direction can work through a part of it
that is dormant: a part that does not vary while the model runs, but that later layers read if
something is written there. This module measures both.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.arguments import real_number, several
from rome_lens.data import bundled
from rome_lens.data.facts import Fact
from rome_lens.data.record_type import Record
from rome_lens.editing.rank_one_edit import RankOneEdit
from rome_lens.errors import ArgumentError
from rome_lens.forward.additions import mlp_contribution
from rome_lens.forward.partial import PartialForward
from rome_lens.forward.runs import evaluating, layer_states
from rome_lens.forward.tokens import encode, scored_answer, token_ids
from rome_lens.models.door import visits_model
from rome_lens.models.fingerprints import fingerprint
from rome_lens.models.lens import LensModel
from rome_lens.results import Stored

_LONGEST = 128
_MOST_TOKENS = 4096


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ValueComparison(Stored):
    """The result of :func:`compare_value`: the edited value among values of the model's own.

    A value is the raw output of ``W_out`` at the lookup position. Every value is put there in the
    edited fact's own prompt, and the later layers of the unedited model run on it.
    """

    axes: ClassVar = {"value": "names"}

    names: tuple[str, ...]
    """``"edited"``, ``"unedited"``, ``"edited, active part"``, ``"edited, dormant part"``, and then
    the other subjects whose values the model writes."""
    norms: Float[Tensor, " value"]
    """The length of each value."""
    cosines: Float[Tensor, " value"]
    """Its cosine with the edited value."""
    change_cosines: Float[Tensor, " value"]
    """The cosine of its difference from the unedited value with the edit's difference from it; 0
    for the unedited value itself."""
    lens: Float[Tensor, " value"]
    """The logit of the new target minus that of the true one, if the value is read out at once, by
    the final norm and the unembedding ("logit lens")."""
    new_probabilities: Float[Tensor, " value"]
    """The probability of the new target with the value in its place."""
    true_probabilities: Float[Tensor, " value"]
    """The probability of the true target then."""
    dormant_shares: Float[Tensor, " value"]
    """The share of the squared length of the value's difference from the unedited value that lies
    in dormant directions; 0 for the unedited value itself."""
    active: int
    """The number of active directions: the first principal components of the layer's values in
    other texts, as many as hold ``variance`` of their variance. All others are dormant."""
    d_model: int
    """The number of all directions."""
    variance: float
    """The part of the variance that the active directions hold."""
    held_dormant: float
    """The mean dormant share of the difference of two values in texts that the components were not
    computed from. It says what the model itself writes into dormant directions."""
    tokens: int
    """The number of tokens that the components were computed from."""
    layer: int
    """The edited layer."""
    fact: Fact
    """The edited fact."""
    model_fingerprint: str
    """The fingerprint of the model."""

    @property
    def random_dormant(self) -> float:
        """The dormant share of a random direction: the share of dormant directions."""
        return 1.0 - self.active / self.d_model

    @property
    def reading(self) -> str:
        """The numbers in a few sentences."""
        p = dict(zip(self.names, self.new_probabilities.tolist(), strict=True))
        words = (
            f"The edited value gives {self.fact.new_target!r} a probability of {p['edited']:.3f}. "
            f"{float(self.dormant_shares[0]):.0%} of its change lie in dormant directions, against "
            f"{self.held_dormant:.0%} of the model's own changes and {self.random_dormant:.0%} of "
            f"a random one. Its active part alone gives {p['edited, active part']:.3f}, its "
            f"dormant part alone {p['edited, dormant part']:.3f}."
        )
        if len(self.names) == 4:
            return words
        own = self.new_probabilities[4:]
        return (
            f"{words} Values that the model writes for {len(own)} subjects of which the new target "
            f"is true give {float(own.mean()):.3f} on average and {float(own.max()):.3f} at most; "
            f"their changes have a cosine of {float(self.change_cosines[4:].mean()):.2f} with the "
            f"edit's, and {float((self.norms[4:] / self.norms[0]).mean()):.2f} times its length."
        )

    def to_frame(self) -> pd.DataFrame:
        """One row for each value."""
        return pd.DataFrame(
            {
                "value of": self.names,
                "norm": self.norms.tolist(),
                "cosine": self.cosines.tolist(),
                "cosine of change": self.change_cosines.tolist(),
                "lens": self.lens.tolist(),
                "p(new)": self.new_probabilities.tolist(),
                "p(true)": self.true_probabilities.tolist(),
                "dormant share": self.dormant_shares.tolist(),
            }
        )


@visits_model
def compare_value(
    model: LensModel,
    edit: RankOneEdit,
    subjects: Record | Iterable[str] = (),
    *,
    texts: Sequence[str] | None = None,
    variance: float = 0.99,
    prepend_bos: bool | None = None,
) -> ValueComparison:
    """Compare an edit's value with the values that the model itself writes.

    Args:
        model: the unedited model; it is left as it was.
        edit: a rank-one edit of a fact, such as :func:`rome_lens.rome` returns.
        subjects: subjects of which the new target is true, for the slot of the fact's prompt; or a
            record, whose ``exemplars`` are taken.
        texts: texts whose values span the active directions. None takes ``rl.data.texts()``; with
            ``rl.data.name_texts()`` they are values of names. Half of the texts (every second one)
            test what the other half found.
        variance: the part of the variance of these values that the active directions hold.
        prepend_bos: whether prompts and texts start with BOS; None takes the model's default. The
            first token of a text, which many models treat in a way of its own, is left out.

    Raises:
        ArgumentError: the edit is not of rank one, or of no fact with a new target; it is in the
            weights already; there are fewer than four texts, or fewer tokens than directions; or
            ``variance`` is not between 0 and 1.
        ModelError, FactError: the edit was made on another model, or a prompt cannot be asked.

    Source: Makelov et al. 2023, "Is This the Subspace You Are Looking For? An Interpretability
    Illusion for Subspace Activation Patching".

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> record = rl.data.record("wanda-brandt")
        >>> identity = rl.KeyStatistics.identity(model, layer=2)
        >>> edit = rl.rome(model, record, layer=2, statistics=identity, contexts=["{}"])
        >>> found = rl.compare_value(model, edit, record)
        >>> found.names[:4]
        ('edited', 'unedited', 'edited, active part', 'edited, dormant part')
        >>> [round(p, 2) for p in found.new_probabilities[:2].tolist()]
        [0.99, 0.0]
    """
    fact = _checked_fact(model, edit)
    variance = real_number("variance", variance, least=0.0, finite=True)
    if not 0.0 < variance < 1.0:
        raise ArgumentError(f"variance is {variance}, expected a number between 0 and 1.")
    chosen = list(subjects.exemplars if isinstance(subjects, Record) else subjects)
    others = several("subjects", chosen, "a list of subjects") if chosen else []
    read = _texts(model, bundled.texts() if texts is None else texts, edit.layer, prepend_bos)
    with evaluating(model), torch.no_grad():
        lookup = (edit.config or {}).get("lookup", -1)
        own = _Lookup.of(model, fact, edit.layer, prepend_bos, lookup)
        before = own.output
        after = before + edit.addition(own.key)
        written = [
            _Lookup.of(model, fact.about(each), edit.layer, prepend_bos).output for each in others
        ]
        basis = _active_directions(torch.cat(read[::2]), variance)
        change = after - before
        active = (change @ basis) @ basis.T
        values = torch.stack([after, before, before + active, after - active, *written])
        new, true, lens = _read_out(model, fact, edit.layer, values, own, prepend_bos)
    held = torch.cat(read[1::2])
    changes = values - before
    return ValueComparison(
        names=("edited", "unedited", "edited, active part", "edited, dormant part", *others),
        norms=values.norm(dim=1).cpu(),
        cosines=torch.cosine_similarity(values, after[None]).cpu(),
        change_cosines=torch.cosine_similarity(changes, change[None]).cpu(),
        lens=lens.cpu(),
        new_probabilities=new.cpu(),
        true_probabilities=true.cpu(),
        dormant_shares=_dormant(changes, basis).cpu(),
        active=basis.shape[1],
        d_model=len(before),
        variance=variance,
        held_dormant=float(_dormant(held[1:] - held[:-1], basis).mean()),
        tokens=sum(map(len, read[::2])),
        layer=edit.layer,
        fact=fact,
        model_fingerprint=fingerprint(model),
    )


class _Lookup(NamedTuple):
    """What the edited layer reads and writes at the lookup position of a prompt."""

    pos: int
    key: Float[Tensor, " d_mlp"]
    output: Float[Tensor, " d_model"]

    @classmethod
    def of(
        cls, model: LensModel, fact: Fact, layer: int, prepend_bos: bool | None, lookup: int = -1
    ) -> "_Lookup":
        encoded = encode(model, fact, prepend_bos=prepend_bos)
        keys, outputs, _ = layer_states(model, encoded.tokens[None], layer)
        pos = encoded.lookup_position(lookup)
        return cls(pos, keys[0, pos].float(), outputs[0, pos].float())


def _checked_fact(model: LensModel, edit: object) -> Fact:
    if not isinstance(edit, RankOneEdit):
        raise ArgumentError(
            f"The edit is of type {type(edit).__name__}, expected a RankOneEdit as "
            "rl.rome(model, fact, ...) returns it. Only a rank-one edit has one value."
        )
    edit.check(model)
    if edit.fact is None or edit.fact.new_target is None:
        raise ArgumentError(f"{edit!r} does not say what it is of: make it with rome().")
    if edit.is_applied(model):
        raise ArgumentError(
            "The edit is in the model's weights already: revert it, because its value is compared "
            "with those of the unedited model."
        )
    return edit.fact


def _texts(
    model: LensModel, texts: Sequence[str], layer: int, prepend_bos: bool | None
) -> list[Float[Tensor, "token d_model"]]:
    """The layer's values at every token of each text but the first. Long texts are cut."""
    given = several("texts", texts, "a list of texts")
    values: list[Tensor] = []
    for text in given:
        ids = token_ids(model, text, prepend_bos=prepend_bos, truncate=True)[:_LONGEST]
        if len(ids) > 1 and sum(map(len, values)) < 2 * _MOST_TOKENS:
            tokens = torch.tensor([ids], dtype=torch.long, device="cpu")
            values.append(layer_states(model, tokens, layer)[1][0, 1:].float())
    if len(values) < 4 or sum(map(len, values[::2])) <= model.cfg.d_model:
        raise ArgumentError(
            f"The texts are {len(values)} of more than one token, and {sum(map(len, values[::2]))} "
            f"tokens in every second one. Expected at least 4 texts, and more tokens than the "
            f"{model.cfg.d_model} directions of the residual stream: give more texts."
        )
    return values


def _active_directions(
    values: Float[Tensor, "token d_model"], variance: float
) -> Float[Tensor, "d_model active"]:
    """The first principal components of the values, as many as hold this part of the variance."""
    centred = (values - values.mean(0)).double()
    spread, directions = torch.linalg.eigh(centred.T @ centred)
    share = spread.flip(0).cumsum(0) / spread.sum()
    count = 1 + int((share < variance).sum())
    return directions.flip(1)[:, :count].float()


def _dormant(
    changes: Float[Tensor, "value d_model"], basis: Float[Tensor, "d_model active"]
) -> Float[Tensor, " value"]:
    """The share of each change's squared length outside the active directions; 0 for no change."""
    whole = changes.square().sum(1)
    active = (changes @ basis).square().sum(1)
    return torch.where(whole > 0, (1.0 - active / whole).clamp(min=0.0), 0.0)


def _read_out(
    model: LensModel,
    fact: Fact,
    layer: int,
    values: Float[Tensor, "value d_model"],
    own: _Lookup,
    prepend_bos: bool | None,
) -> tuple[Float[Tensor, " value"], Float[Tensor, " value"], Float[Tensor, " value"]]:
    """For each value, p(new) and p(true) with it in its place, and its own logit difference."""
    encoded = encode(model, fact, prepend_bos=prepend_bos)
    answer = scored_answer(model, encoded, "first_token")
    following = encoded.new_answer[len(answer.given) :]
    if not following or len(answer.tokens) != 1:
        raise ArgumentError(
            f"No single token tells {fact.target!r} from {fact.new_target!r}: a value cannot be "
            "read out as one of them."
        )
    true, new = answer.tokens[0], following[0]
    given = torch.tensor(answer.given, dtype=torch.long, device="cpu")
    tokens: Int[Tensor, " pos"] = torch.cat([encoded.tokens, given])
    forward = PartialForward(model, tokens)
    streams, _ = forward.run(tokens[None])
    stream = streams[layer + 1].repeat(len(values), 1, 1)
    written = mlp_contribution(model, layer, values.to(stream))
    stream[:, own.pos] += written - mlp_contribution(model, layer, own.output[None].to(stream))
    p = forward.logits(forward.resume(stream, layer + 1)[:, -1]).softmax(-1)
    direct = forward.logits(written)
    return p[:, new], p[:, true], direct[:, new] - direct[:, true]
