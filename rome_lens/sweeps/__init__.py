"""Sweeps over facts, layers and editors, which survive interruptions and run on many machines.

* ``running.py``: ``sweep``. ``planning.py``: what it is asked for, checked before the long part.
* ``units.py``: the parts of a sweep, and where each is kept. ``stages.py``: the work itself.
  ``editors.py``: the settings.
* ``workers.py``: where the work is done: here, in processes, or on a user's own executor.
* ``results.py``: the table. ``rows.py``: how it is read from the finished units.
"""

from rome_lens.sweeps.editors import MassSetting, RomeSetting
from rome_lens.sweeps.results import Sweep
from rome_lens.sweeps.running import sweep
from rome_lens.sweeps.workers import SweepError

__all__ = ["MassSetting", "RomeSetting", "Sweep", "SweepError", "sweep"]
