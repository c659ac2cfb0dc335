"""Loads the fixtures, which are in ``fixtures_for_tests.py``, and settles how tests run."""

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# The suite runs in two processes (pytest-xdist). One thread each is faster than two processes that
# share two cores with four threads, and it is what makes numbers repeatable. Notebook kernels
# inherit the variable.
os.environ["OMP_NUM_THREADS"] = "1"

# The short profile draws the same cases in every run. ``--hypothesis-profile=long`` draws new ones:
# ten thousand over all properties.
_QUIET: Any = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}
settings.register_profile("short", max_examples=20, derandomize=True, **_QUIET)
settings.register_profile("long", max_examples=1500, print_blob=True, **_QUIET)
settings.load_profile("short")


def pytest_configure(config: pytest.Config) -> None:
    """Import torch and the package where tests run: in a worker, or without workers.

    The process that hands tests out to workers needs neither, and the workers wait for it.
    """
    hands_out = getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput")
    if not hands_out:
        config.pluginmanager.import_plugin("fixtures_for_tests")
