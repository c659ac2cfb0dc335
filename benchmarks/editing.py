"""Time an edit against the same optimisation on the transformers model itself.

    python benchmarks/editing.py [--models toy gpt2-small smollm2-135m] [--many 8]
        [--peer path/to/EasyEdit] [--peer path/to/rome]

The baseline runs the whole model in every step: every layer, all positions, all logits
(``transformers_rome.py``). EasyEdit and the authors' code do the same. ``--peer`` times a checkout
of either where it lies. All take the same steps from the same contexts, on the same weights, with
``C = I`` and without BOS. "Difference" is of ``delta W`` from that of ``rl.rome``, relative to its
largest entry.

The least work is, with ``L`` layers of ``B`` weights, the edited layer ``e``, and for each row (the
contexts and the KL prompt) ``n`` tokens, the lookup position ``k`` and the last position ``r`` that
the loss reads:

    once:           sum_rows  n (e + 1) B  +  k (L - 1 - e) B
    a forward pass: sum_rows  (r - k + 1) (L - 1 - e) B  +  reads * d_model * d_vocab
    in all:         once + (2 * steps - 1) * a forward pass

``once`` gives the keys, and what attention in the later layers reads of the earlier positions. A
backward pass with respect to activations costs what a forward pass costs, and the last step has
none. The formula does not use that rows can share their beginning, nor that only the positions read
are needed after the last attention, so slightly less is possible.

``--many`` compares edits of several facts, one at a time and side by side. The peers edit one at a
time: EasyEdit's ``ROME`` reads the first request of the list that it is given, and the authors'
code goes through the list.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import peers
import timed_models
import torch
from measure import Row, block_weights, compare, difference, parser, publish, table
from transformers_rome import transformers_rome

import rome_lens as rl
from rome_lens.editing.prompts import EditRows

BASELINE = "transformers model"


class Setting(NamedTuple):
    """A model, the layer to edit, the number of contexts with the bare one, and Adam's steps."""

    model: str
    layer: int
    contexts: int
    steps: int


SETTINGS = (
    Setting("toy", 2, 21, 5),
    Setting("gpt2-small", 4, 21, 5),
    Setting("smollm2-135m", 5, 7, 8),
    Setting("smollm2-135m", 5, 21, 5),
)
MANY = (Setting("toy", 2, 7, 5), Setting("smollm2-135m", 5, 7, 5))


def least_multiply_adds(model: Any, rows: EditRows, layer: int, steps: int) -> int:
    """The least work of an edit whose contexts hold the bare prompt."""
    block, later = block_weights(model.cfg), model.cfg.n_layers - 1 - layer
    ends = [*rows.target_positions[:, -1].tolist(), int(rows.lookups[-1])]
    lookups = rows.lookups[1:].tolist()  # the first row is the bare prompt
    once = sum((end + 1) * (layer + 1) * block for end in ends) + sum(lookups) * later * block
    positions = sum(end - lookup + 1 for end, lookup in zip(ends, lookups, strict=True))
    unembedded = len(rows.reads[0]) * model.cfg.d_model * model.cfg.d_vocab
    return once + (2 * steps - 1) * (positions * later * block + unembedded)


def contexts_of(setting: Setting, model: Any) -> tuple[str, ...]:
    """Contexts that the model writes, or the toy if the model has random weights."""
    writer = rl.load_model("toy") if setting.model == "gpt2-small" else model
    return rl.random_contexts(writer, prefixes=setting.contexts - 1, prepend_bos=False)


def compared(setting: Setting, model_class: str | None, paths: list[str], rounds: int) -> list[Row]:
    """The rows of one setting: the baseline, the peers, ``rome_lens``."""
    model = timed_models.load(setting.model, model_class)
    twin, tokenizer = timed_models.twin(setting.model)
    fact, layer = timed_models.fact(setting.model), setting.layer
    contexts, config = contexts_of(setting, model), rl.RomeConfig(steps=setting.steps)
    identity = rl.KeyStatistics.identity(model, layer=layer)

    def on_twin(edit: Callable[..., torch.Tensor]) -> Callable[[], torch.Tensor]:
        return lambda: edit(twin, tokenizer, fact, layer=layer, contexts=contexts, config=config)

    def ours() -> rl.RankOneEdit:
        return rl.rome(
            model,
            fact,
            layer=layer,
            statistics=identity,
            contexts=contexts,
            config=config,
            prepend_bos=False,
        )

    own = f"rome_lens, {type(model).__name__}"
    works: dict[str, Any] = {BASELINE: on_twin(transformers_rome)}
    works |= {name: on_twin(edit) for name, edit in map(peers.peer_rome, paths)}
    rows = compare(works | {own: ours}, rounds=rounds)
    edit = rows[own].result
    least = least_multiply_adds(
        model, EditRows.of(model, fact, list(contexts), False), layer, len(edit.losses)
    )
    for name, row in rows.items():
        row.case = (
            f"{setting.model}, {setting.contexts} contexts, {len(edit.losses)} steps: {row.case}"
        )
        row.least = least
        row.difference = None if name == own else difference(row.result, edit.delta)
    return list(rows.values())


def many(setting: Setting, count: int, model_class: str | None, rounds: int) -> list[Row]:
    """Several facts: the baseline and ``rl.rome`` one at a time, ``rl.rome_batch`` side by side."""
    model = timed_models.load(setting.model, model_class)
    twin, tokenizer = timed_models.twin(setting.model)
    facts = timed_models.facts(setting.model, count)
    contexts = contexts_of(setting, model)
    config, layer = rl.RomeConfig(steps=setting.steps), setting.layer
    options: dict[str, Any] = {
        "layer": layer,
        "statistics": rl.KeyStatistics.identity(model, layer=layer),
        "contexts": contexts,
        "config": config,
        "prepend_bos": False,
    }

    def baseline() -> list[torch.Tensor]:
        return [
            transformers_rome(twin, tokenizer, fact, layer=layer, contexts=contexts, config=config)
            for fact in facts
        ]

    one, batch = "rl.rome, one at a time", "rl.rome_batch"
    works: dict[str, Callable[[], Any]] = {
        BASELINE: baseline,
        one: lambda: [rl.rome(model, fact, **options) for fact in facts],
        batch: lambda: rl.rome_batch(model, facts, **options),
    }
    rows = compare(works, rounds=rounds)
    for name, row in rows.items():
        row.case = f"{setting.model}, {len(facts)} facts, {setting.contexts} contexts: {name}"
    pairs = zip(rows[batch].result, rows[one].result, strict=True)
    rows[batch].difference = max(difference(a.delta, b.delta) for a, b in pairs)
    rows[batch].notes = f"{rows[one].cpu / rows[batch].cpu:.1f} times one at a time"
    return list(rows.values())


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--models", nargs="*", default=["toy", "gpt2-small", "smollm2-135m"])
    options.add_argument("--class", dest="model_class", default=None)
    options.add_argument("--peer", action="append", default=[], help="the path of a checkout")
    options.add_argument("--many", type=int, default=8, help="facts at once, or 0 for none")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    settings = [setting for setting in SETTINGS if setting.model in args.models]
    rows = [
        row
        for setting in settings
        for row in compared(setting, args.model_class, args.peer, args.rounds)
    ]
    for setting in MANY if args.many else ():
        if setting.model in args.models:
            rows += many(setting, args.many, args.model_class, args.rounds)
    publish("editing", table(rows), args.write)


if __name__ == "__main__":
    main()
