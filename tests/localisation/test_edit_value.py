"""An edit's value among values of the model's own."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import rome_lens as rl
from rome_lens.errors import ArgumentError
from rome_lens.forward.tokens import encode
from rome_lens.models.hook_names import component_hook

TEXTS = rl.data.texts()[:40]


@pytest.fixture(scope="module")
def found(one_toy: Any, toy_edit: Any, toy_record: rl.data.Record) -> rl.ValueComparison:
    return rl.compare_value(one_toy, toy_edit, toy_record, texts=TEXTS)


def answers(model: Any, fact: rl.Fact, **options: Any) -> list[float]:
    asked = [(fact.text, str(fact.new_target)), (fact.text, fact.target)]
    return rl.answer_log_probs(model, asked, **options).exp().tolist()


def test_the_edited_and_the_unedited_value_give_what_the_two_models_give(
    one_toy: Any, toy_edit: Any, found: rl.ValueComparison
) -> None:
    hooks = toy_edit.fwd_hooks(one_toy)
    with_edit, without = (
        answers(one_toy, toy_edit.fact, fwd_hooks=hooks),
        answers(one_toy, toy_edit.fact),
    )
    by_value = torch.stack([found.new_probabilities, found.true_probabilities], dim=1)
    # The edit also fires a little at other tokens.
    assert by_value[0].tolist() == pytest.approx(with_edit, abs=0.02)
    assert by_value[1].tolist() == pytest.approx(without, abs=1e-4)
    assert (found.cosines[0], found.change_cosines[0]) == pytest.approx((1.0, 1.0), abs=1e-5)
    assert (found.change_cosines[1], found.dormant_shares[1]) == (0.0, 0.0)


def test_another_subject_s_value_is_the_model_s_own(
    toy: Any, toy_edit: Any, toy_record: rl.data.Record
) -> None:
    """By hand: the output of that subject's MLP, put in the fact's place with a hook."""
    found = rl.compare_value(toy, toy_edit, toy_record, texts=TEXTS)
    subject, fact = toy_record.exemplars[0], toy_edit.fact
    name, kept = component_hook("mlp", toy_edit.layer), []
    other = encode(toy, fact.about(subject))

    def keep(value: torch.Tensor, hook: Any) -> None:
        kept.append(value[0, other.subject_last].detach().clone())

    def put(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value = value.clone()
        value[:, encode(toy, fact).subject_last] = kept[0]
        return value

    with torch.no_grad():
        toy.run_with_hooks(other.tokens[None], fwd_hooks=[(name, keep)])
    expected = answers(toy, fact, fwd_hooks=[(name, put)])
    assert found.names[4] == subject
    assert float(found.new_probabilities[4]) == pytest.approx(expected[0], abs=1e-4)
    assert float(found.true_probabilities[4]) == pytest.approx(expected[1], abs=1e-4)
    assert float(found.norms[4]) == pytest.approx(float(kept[0].norm()), rel=1e-4)
    cosine = torch.cosine_similarity(kept[0], toy_edit.value, dim=0)
    assert float(found.cosines[4]) == pytest.approx(float(cosine), abs=0.01)


def test_the_change_is_the_sum_of_its_active_and_its_dormant_part(
    found: rl.ValueComparison,
) -> None:
    shares = found.dormant_shares
    assert float(shares[2]) == pytest.approx(0.0, abs=1e-5)
    assert float(shares[3]) == pytest.approx(1.0, abs=1e-5)
    # The two parts are at right angles: their cosines with the whole change are its shares' roots.
    assert float(found.change_cosines[2] ** 2) == pytest.approx(1.0 - float(shares[0]), abs=1e-4)
    assert float(found.change_cosines[3] ** 2) == pytest.approx(float(shares[0]), abs=1e-4)
    assert 0 < found.active < found.d_model
    # What the model itself writes lies mostly in the directions in which it writes.
    assert found.held_dormant < 0.5 * found.random_dormant


def test_an_edit_into_a_planted_dormant_direction_is_called_dormant(
    one_toy: Any, toy_edit: Any, found: rl.ValueComparison
) -> None:
    """The least varying direction of the values, by an eigendecomposition of its own."""
    values: list[torch.Tensor] = []

    def keep(value: torch.Tensor, hook: Any) -> None:
        values.append(value[0, 1:].detach().clone())

    for text in TEXTS[::2]:
        tokens = one_toy.to_tokens(text, truncate=True)
        with torch.no_grad():
            one_toy.run_with_hooks(
                tokens, fwd_hooks=[(component_hook("mlp", toy_edit.layer), keep)]
            )
    directions = torch.linalg.svd(torch.cat(values) - torch.cat(values).mean(0)).Vh
    for direction, share in ((directions[-1], 1.0), (directions[0], 0.0)):
        planted = replace(toy_edit, v=toy_edit.v.norm() * direction)
        shares = rl.compare_value(one_toy, planted, texts=TEXTS).dormant_shares
        assert float(shares[0]) == pytest.approx(share, abs=0.02)


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_compared_is_refused(one_toy: Any, toy_edit: Any) -> None:
    for edit, options, message in (
        (toy_edit.fact, {}, "expected a RankOneEdit"),
        (replace(toy_edit, fact=None), {}, "does not say what it is of"),
        (toy_edit, {"texts": TEXTS[:3]}, "give more texts"),
        (toy_edit, {"variance": 1.0}, "expected a number between 0 and 1"),
    ):
        with pytest.raises(ArgumentError, match=message):
            rl.compare_value(one_toy, edit, **options)
    with toy_edit.applied(one_toy), pytest.raises(ArgumentError, match="weights already"):
        rl.compare_value(one_toy, toy_edit)


def test_a_comparison_of_values_shows_itself(found: rl.ValueComparison, tmp_path: Any) -> None:
    again = rl.ValueComparison.load(found.save(tmp_path / "values.safetensors"))
    assert again.reading == found.reading
    left, right = rl.viz.values(found).axes
    assert [text.get_text() for text in left.get_yticklabels()] == list(found.names)
    assert [bar.get_width() for bar in right.patches] == pytest.approx(
        found.dormant_shares.tolist()
    )
    assert "dormant directions" in found._repr_html_()
