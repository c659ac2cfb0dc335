"""Key statistics: ``C = E[k k^T]``, the uncentred second moment of a layer's keys.

* ``collecting.py``: ``collect_key_statistics``.
* ``sources.py``: the tokens, from texts, token batches or the model's own samples.
* ``sums.py``: the running sum of ``k k^T``, which can be resumed.
* ``statistics.py``: the result, and solving with it.
"""

from rome_lens.keys.collecting import EditedModelWarning, collect_key_statistics
from rome_lens.keys.statistics import KeyStatistics, StatisticsError

__all__ = [
    "EditedModelWarning",
    "KeyStatistics",
    "StatisticsError",
    "collect_key_statistics",
]
