"""What the command line's commands do.

* ``demo.py``: trace and edit one fact, and check the edit. ``trace.py``, ``edit.py``: one of these
  alone. ``limits.py``: check many edits. ``own_fact.py``: facts that are given on the command line.
* ``sweep.py``: do both for many facts and layers, and go on after an interruption.
* ``choices.py``: which records, preset and texts a command uses. ``console.py``: where it prints.
"""
