"""``python -m rome_lens``."""

from rome_lens.cli import main

raise SystemExit(main())
