"""Fixtures shared by the whole suite."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from detkit.exporting.cached import kept_export

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

# The same examples each time, however long one takes.
settings.register_profile("tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

# What a shell starts in the background ignores Ctrl-C, and so would the processes of the tests that send it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of development photos beside the checkout; the test skips where there is none."""
    if not SHARED.is_dir():
        pytest.skip("the development photos are not here")
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The user's cache neither changes a test nor is changed by one; what is said once on a machine has been said."""
    os.environ["DETKIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    kept_export("default", lambda _: None)
