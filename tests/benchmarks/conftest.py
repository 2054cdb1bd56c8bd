"""A clock for what a benchmark times: every measured stretch takes what a test says."""

import itertools
from types import SimpleNamespace

import pytest


@pytest.fixture
def taking(monkeypatch):
    """`taking(module, seconds)`: what the module times takes these, one after the other.

    The clock is at 100, 200, ... seconds as a stretch begins; `monotonic` tells the last of
    `late`, which its readings come from first.
    """

    def start(module, seconds, late=(0.0,)):
        reads = itertools.chain.from_iterable(
            (100.0 * number, 100.0 * number + took) for number, took in enumerate(seconds, start=1)
        )
        told = list(late)
        slept = []
        clock = SimpleNamespace(
            perf_counter=lambda: next(reads),
            monotonic=lambda: told.pop(0) if len(told) > 1 else told[0],
            sleep=slept.append,
            slept=slept,
        )
        monkeypatch.setattr(module, "time", clock)
        return clock

    return start
