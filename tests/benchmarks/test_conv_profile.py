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
    drawn = []

    def normal(key, shape):
        drawn.append((jax.random.key_data(key).tolist(), shape))
        return np.zeros(shape)

    awaited = []
    monkeypatch.setattr(jax, "block_until_ready", awaited.append)
    monkeypatch.setattr(jax.random, "normal", normal)
    monkeypatch.setattr(conv_profile, "STAGES", ((2, 4),))
    flags = ["--batch-size", "2", "--rounds", "3", "--out", str(tmp_path)]
    conv_profile.main(conv_profile.arguments().parse_args(flags))
    held = json.loads((tmp_path / "conv_profile.json").read_text())
    assert held["batch_size"] == 2 and {"command", "device", "versions"} <= set(held)
    rows = held["rows"]
    # Images, the gradient by the output, and the kernel, each by a key of its own.
    keys = jax.random.key_data(jax.random.split(jax.random.key(0), 3)).tolist()
    assert drawn == [(keys[0], (2, 4, 4, 2)), (keys[1], (2, 4, 4, 2)), (keys[2], (3, 3, 2, 2))]
    assert awaited == [0] * 4 * len(rows)
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


@pytest.mark.allow_rank_promotion
def test_the_ways_to_a_gradient_are_one():
    """By sums over pixels and windows, written out; a branch has both gradients at once."""
    draw = np.random.default_rng(0)
    x, g = draw.normal(size=(2, 2, 3, 3, 2))
    kernel = draw.normal(size=(3, 3, 2, 2))
    parts = conv_profile.parts()
    every = jax.jit(lambda *given: {name: part(*given) for name, part in parts.items()})
    found = every(*(jax.numpy.float32(value) for value in (x, kernel, g)))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    out, by_input, by_kernel = np.zeros_like(g), np.zeros_like(padded), np.zeros_like(kernel)
    for i, j in itertools.product(range(3), range(3)):
        window = (slice(None), slice(i, i + 3), slice(j, j + 3))
        out += padded[window] @ kernel[i, j]
        by_input[window] += g @ kernel[i, j].T
        by_kernel[i, j] = np.einsum("nhwc,nhwd->cd", padded[window], g)
    by_input = by_input[:, 1:-1, 1:-1]
    for name in ("nine products", "one product"):
        np.testing.assert_allclose(found[name], by_kernel, atol=1e-4, err_msg=name)
    for name in ("both", "branch, JAX's", "branch, ours"):
        np.testing.assert_allclose(found[name][0], by_input, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(found[name][1], by_kernel, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(found["convolution"], out, atol=1e-4)
    np.testing.assert_allclose(found["by the input"][0], by_input, atol=1e-4)
    np.testing.assert_allclose(found["by the kernel"][0], by_kernel, atol=1e-4)
    axes = (0, 1, 2)
    inverse = 1 / np.sqrt(x.var(axis=axes) + 1e-5)
    normed = (x - x.mean(axis=axes)) * inverse
    np.testing.assert_allclose(found["normalisation"], np.maximum(normed, 0), atol=1e-4)
    d = g * (normed > 0)
    want = inverse * (d - d.mean(axis=axes) - normed * (d * normed).mean(axis=axes))
    np.testing.assert_allclose(found["its gradient"][0], want, atol=1e-4)


def test_stages_are_those_of_resnet_32():
    """He et al. (2016), 4.2: 16, 32 and 64 filters on maps of 32, 16 and 8 pixels."""
    assert tuple((16 * 2**k, 32 // 2**k) for k in range(3)) == conv_profile.STAGES
