"""Parts of a step timed one by one: the clock and the calls are stand-ins."""

import itertools
import json

import jax
import numpy as np
import pytest

from benchmarks import conv_profile


def test_a_part_is_timed_without_its_first_call(tmp_path, monkeypatch, capsys):
    """4 ms a call behind the first: of 2 x 2 x 4 x 4 x 9 x 2 x 2 operations, of both twice that."""
    spent = itertools.cycle([0.0, 9.0, 0.0, 0.004, 0.0, 0.002, 0.0, 0.006])
    monkeypatch.setattr(conv_profile.time, "perf_counter", lambda: next(spent))
    monkeypatch.setattr(jax, "jit", lambda part: lambda *_: 0)
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: np.zeros(shape))
    monkeypatch.setattr(conv_profile, "STAGES", ((2, 4),))
    flags = ["--batch-size", "2", "--rounds", "3", "--out", str(tmp_path)]
    conv_profile.main(conv_profile.arguments().parse_args(flags))
    rows = json.loads((tmp_path / "conv_profile.json").read_text())["rows"]
    assert {(row["channels"], row["side"], row["ms"]) for row in rows} == {(2, 4, 4.0)}
    one = pytest.approx(2304 / 0.004 / 1e9)
    assert {row["part"]: row["gflops_per_second"] for row in rows} == {
        **dict.fromkeys(("convolution", "by the input", "by the kernel"), one),
        **dict.fromkeys(("nine products", "one product"), one),
        **dict.fromkeys(("both", "branch, JAX's", "branch, ours"), pytest.approx(2304 / 2e6)),
        "normalisation": None, "its gradient": None,
    }  # fmt: skip
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "2 channels, 4 pixels: convolution      4.00 ms    0.0 GFLOP/s"
    assert said[-1] == "2 channels, 4 pixels: its gradient     4.00 ms"
