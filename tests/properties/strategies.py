"""What hypothesis draws: texts, facts, settings of traces and of edits, and files.

Most draws are valid. A few are wrong on purpose, because a public function must then raise an error
of the package and leave everything as it was.
"""

import math
from typing import Any

from hypothesis import strategies as st

import rome_lens as rl

WORDS = (
    *(
        "Wanda Brandt",
        "Hugo",
        "the",
        "city",
        "of",
        "lives in",
        "1945",
        "巴黎",
        "東京",
        "🗼",
        "café",
    ),
    *("<|endoftext|>", "{}", "{", "\n", "\t", " ", "“", '"', "-", "(", "l'", "é", "\u200b", "\x00"),
    *("\ud800", "a" * 40, "İ", "ﬁ", "ß", "\u202e", "P", ".", ":"),
)
text = st.one_of(
    st.lists(st.sampled_from(WORDS), max_size=5).map(" ".join),
    st.lists(st.sampled_from(WORDS), max_size=5).map("".join),
    st.text(max_size=12),
)
odd_number: st.SearchStrategy[Any] = st.sampled_from(
    [-1, 0, 1.5, math.nan, math.inf, -math.inf, 10**30, True, None, "3", [1], 2**63]
)
anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), text, st.lists(st.integers(), max_size=3)
)
json_value = st.recursive(
    anything, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3)
)


def mostly(good: st.SearchStrategy[Any], wrong: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Draws from ``good``, and from ``wrong`` about once in eight."""
    return st.integers(0, 7).flatmap(lambda i: wrong if i == 7 else good)


@st.composite
def facts_of(draw: Any, records: list[rl.data.Record]) -> rl.Fact:
    """A fact that the toy model knows, with changes that keep it a fact."""
    fact = draw(st.sampled_from(records)).fact
    prefix = draw(st.sampled_from(["", "", "It rained. ", "法国。", "So “", "1945: "]))
    target = draw(
        st.sampled_from([fact.target, fact.target, "1945", f"{fact.target} {fact.target}"])
    )
    new_target = draw(st.sampled_from([fact.new_target, "1066", f"{fact.target} and more"]))
    return rl.Fact(
        prefix + fact.prompt,
        subject=fact.subject,
        target=target,
        new_target=new_target if new_target != target else "Ondavel",
        joiner=draw(st.sampled_from([None, None, None, "", "\n", "  "])),
    )


seeds = mostly(st.integers(0, 9), odd_number)
amounts = mostly(st.sampled_from([0.0, 0.5, 1.0, 3.0]), odd_number)
subjects = st.sampled_from([None, None, ("Wanda Brandt",), ("Hugo", "Wanda Brandt"), (), "Wanda"])


@st.composite
def noises(draw: Any) -> Any:
    """A kind of noise, or the error that its settings raise."""
    kind = draw(st.sampled_from(["gauss", "uniform", "student", "multi", "swap", "replace"]))
    if kind == "swap":
        return rl.Counterfactual(subject=draw(st.sampled_from(["Hugo Kessler", "Wanda", "x", ""])))
    if kind == "multi":
        return rl.MultivariateGaussianNoise(scale=draw(amounts), seed=draw(seeds))
    settings = {"scale": draw(amounts), "seed": draw(seeds), "subjects": draw(subjects)}
    if kind == "student":
        return rl.StudentTNoise(**settings, degrees=draw(mostly(st.just(3.0), odd_number)))
    plain = (rl.UniformNoise if kind == "uniform" else rl.GaussianNoise)(**settings)
    return rl.Replacement(plain) if kind == "replace" else plain


def trace_options(n_layers: int, length: int, n_heads: int) -> st.SearchStrategy[dict[str, Any]]:
    """Options of ``causal_trace``; those of the noise are drawn apart."""
    some_layers = st.lists(st.integers(0, n_layers - 1), min_size=1, max_size=2, unique=True)
    some_positions = st.lists(st.integers(-length, length - 1), min_size=1, max_size=3)
    outside = st.lists(st.integers(-99, 99), max_size=2)
    return st.fixed_dictionaries(
        {
            "component": mostly(st.sampled_from(["resid", "mlp", "attn", "z"]), text),
            "samples": mostly(st.integers(1, 3), odd_number),
            "layers": mostly(some_layers, outside),
            "positions": mostly(some_positions, outside),
        },
        optional={
            "window": mostly(st.integers(1, 5), odd_number),
            "heads": mostly(st.lists(st.integers(0, n_heads - 1), min_size=1, max_size=2), outside),
            "answer": mostly(st.sampled_from(["first_token", "whole"]), text),
            "prepend_bos": st.sampled_from([None, True, False]),
            "batch_size": mostly(st.integers(1, 9), odd_number),
            "require_correct": st.just(False),
        },
    )


configs = st.fixed_dictionaries(
    {"steps": mostly(st.integers(1, 3), odd_number)},
    optional={
        "lr": mostly(st.sampled_from([0.1, 0.5]), odd_number),
        "weight_decay": mostly(st.sampled_from([0.0, 0.5]), odd_number),
        "clamp": mostly(st.sampled_from([0.5, 4.0]), odd_number),
        "kl_factor": mostly(st.sampled_from([0.0, 0.0625]), odd_number),
        "stop_loss": mostly(st.just(0.05), odd_number),
    },
)
contexts = mostly(
    st.lists(st.sampled_from(["{}", "It rained. {}", "法国。{}"]), min_size=1, max_size=2),
    st.one_of(st.lists(text, max_size=2), text, odd_number),
)
