"""What the command line's commands do.

* ``demo.py``: trace and edit one fact, and check the edit. ``limits.py``: check many edits.
* ``choices.py``: which records, preset and texts a command uses. ``console.py``: where it prints.
"""
