"""Splits facts into batches whose optimisation fits into memory."""

from collections.abc import Mapping

from rome_lens.editing.prompts import EditRows
from rome_lens.forward.memory import bytes_per_batch
from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel, device, w_out

# The graph of a step holds about this many vectors for each position and layer.
_STREAM_VECTORS, _MLP_VECTORS = 16, 6
# And about this many for each prediction over the vocabulary.
_READ_VECTORS = 4
# All tensors of a step's graph together may be larger than one tensor of a pass without gradients.
_BATCHES_PER_GRAPH = 8


@visits_model
def batches_in_memory(
    model: LensModel, rows: Mapping[int, EditRows], layer: int
) -> list[list[int]]:
    """The facts in batches, each of facts of similar length whose graph fits into memory."""
    cfg = model.cfg
    vectors = _STREAM_VECTORS * cfg.d_model + _MLP_VECTORS * cfg.d_mlp
    per_token = (cfg.n_layers - layer - 1) * vectors
    most = _BATCHES_PER_GRAPH * bytes_per_batch(device(model)) // w_out(model, layer).element_size()
    batches: list[list[int]] = []
    size = 0
    for i in sorted(rows, key=lambda i: rows[i].later_positions):
        entries = len(rows[i].tokens) * rows[i].later_positions * per_token
        entries += _READ_VECTORS * len(rows[i].reads[0]) * cfg.d_vocab
        size += entries
        if not batches or size > most:
            batches.append([])
            size = entries
        batches[-1].append(i)
    return batches
