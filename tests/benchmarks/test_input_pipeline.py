"""What the input pipeline is measured by."""

import os
import types

import pytest

from benchmarks import input_pipeline


@pytest.mark.parametrize("gone", [False, True])
def test_processor_seconds_are_of_this_process_and_its_children(monkeypatch, gone):
    """Of a child those of the 14th and 15th word of /proc, whose second may have spaces."""
    ticks = os.sysconf("SC_CLK_TCK")
    words = [7, "(a (b) c)", "S", *range(4, 14), 3 * ticks, ticks // 2, 99, 99]

    class Told:
        def __init__(self, path):
            assert path in ("/proc/7/stat", "/proc/8/stat")

        def read_text(self):
            if gone:
                raise FileNotFoundError
            return " ".join(map(str, words))

    monkeypatch.setattr(input_pipeline, "Path", Told)
    monkeypatch.setattr(input_pipeline.time, "process_time", lambda: 1.25)
    children = [types.SimpleNamespace(pid=pid) for pid in (7, 8)]
    monkeypatch.setattr(input_pipeline.multiprocessing, "active_children", lambda: children)
    seconds = pytest.approx(1.25 + 2 * 3.5)
    assert input_pipeline.processor_seconds() == (
        pytest.approx(float("nan"), nan_ok=True) if gone else seconds
    )
