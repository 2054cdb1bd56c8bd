"""Where the features and recorded splits of ADBench lie; tests of them are skipped without."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="session")
def adbench_dir() -> str:
    found = os.environ.get("ADBENCH_DIR")
    if not found:
        pytest.skip("ADBENCH_DIR is not set: no ADBench features to read")
    return found


@pytest.fixture(scope="session")
def recorded(adbench_dir: str) -> Iterator[Any]:
    """Splits that ADBench's own generator drew, by NAME__seedS__[nodup__]KEY."""
    found = os.environ.get("ADBENCH_SPLITS")
    if not found:
        pytest.skip("ADBENCH_SPLITS is not set: no recorded splits to compare with")
    with np.load(found) as file:
        yield file
