"""What the command line's commands do.

* ``demo.py``: trace and edit one fact, and check the edit. ``limits.py``: check many edits.
* ``sweep.py``: do both for many facts and layers, and go on after an interruption.
* ``choices.py``: which records, preset and texts a command uses. ``console.py``: where it prints.
"""
