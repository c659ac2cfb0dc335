"""A small sweep of the toy model, in this process or in others."""

import dataclasses
from pathlib import Path
from typing import Any

import rome_lens as rl

LAYERS = (1, 3)
UNKNOWN = "id of the unknown one"


def identity(model: Any) -> dict[int, rl.KeyStatistics]:
    return {layer: rl.KeyStatistics.identity(model, layer=layer) for layer in LAYERS}


def records() -> list[Any]:
    """A fact that the model knows, one that it does not, and one that cannot be edited."""
    whole = rl.data.records(known_by="toy")[0]
    first = dataclasses.replace(
        whole, paraphrases=whole.paraphrases[:1], neighborhood=whole.neighborhood[:1]
    )
    prompt, subject, true = first.fact.prompt, first.fact.subject, first.fact.target
    unknown = rl.Fact(prompt, subject=subject, target="Ondavel", new_target="Lusiba")
    said = rl.Fact(prompt, subject=subject, target="Lusiba", new_target=true)
    return [first, rl.data.Record(id=UNKNOWN, fact=unknown), said]


def toy() -> Any:
    """The toy model, on the class that every version of TransformerLens has."""
    return rl.load_model("toy", model_class="TransformerBridge")


def small_sweep(source: Any, directory: Path, **options: Any) -> rl.Sweep:
    given: dict[str, Any] = {
        "layers": LAYERS,
        "stages": ["trace", "edit", "evaluate"],
        "config": rl.RomeConfig(steps=2),
        "contexts": ["{}"],
        "samples": 2,
        "window": 1,
        "facts_at_once": 2,
    }
    if "statistics" not in options:
        given["statistics"] = identity(toy() if isinstance(source, rl.ModelSource) else source)
    return rl.sweep(source, records(), directory=directory, **{**given, **options})


def main(directory: str) -> None:
    """The sweep in a process that can be killed, on two workers."""
    source = rl.ModelSource(name="toy", model_class="TransformerBridge")
    small_sweep(source, Path(directory), workers=2)
