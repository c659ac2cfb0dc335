"""Key statistics: ``C = E[k k^T]``, the uncentred second moment of a layer's keys.

* ``collecting.py``: ``collect_key_statistics``.
* ``sources.py``: where the keys' text comes from. ``sums.py``: the running sum. ``statistics.py``: the result.
"""

from rome_lens.keys.collecting import EditedModelWarning, collect_key_statistics
from rome_lens.keys.statistics import KeyStatistics, StatisticsError

__all__ = [
    "EditedModelWarning",
    "KeyStatistics",
    "StatisticsError",
    "collect_key_statistics",
]
