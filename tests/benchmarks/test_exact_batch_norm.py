"""The ways to take ImbSAM's step, of a layer whose batch's mean is taken off."""

import contextlib
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import exact_batch_norm
from experiments import models
from experiments.models import BATCH_NORM_MOMENTUM
from experiments.run import cost


class Centred:
    """x w without its mean over the batch; a running mean of it otherwise."""

    def apply(self, variables, x, *, train, mutable=()):
        z = x @ variables["params"]["w"]
        if not train:
            return z - variables["batch_stats"]["mean"][None]
        old, mean = variables["batch_stats"]["mean"], z.mean(axis=0)
        kept = BATCH_NORM_MOMENTUM * old + (1 - BATCH_NORM_MOMENTUM) * mean
        return z - mean[None], {"batch_stats": {"mean": kept}}


def test_the_ways_are_one_gradient_but_where_statistics_are_held():
    """By the softmax's formula; the last two of five rows are the tail, rho is 0.05."""
    draw = np.random.default_rng(0)
    w, x = draw.normal(size=(3, 4)), draw.normal(size=(5, 3))
    y = np.array([0, 1, 1, 2, 3])
    tail = np.array([0, 0, 0, 1, 1]) / 5

    def gradient(w, rows, held=False):
        z = x @ w - (x @ w).mean(axis=0)
        found = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) - np.eye(4)[y]
        found = rows[:, None] * found
        return x.T @ found - (0 if held else x.mean(axis=0)[:, None] * found.sum(axis=0))

    d = gradient(w, tail)
    point = w + 0.05 * d / np.linalg.norm(d)
    head = gradient(w, 0.2 - tail)
    given = {"w": jnp.float32(w)}, {"mean": jnp.ones(4)}, jnp.float32(x), jnp.array(y)
    ways = exact_batch_norm.ways(Centred(), 2)
    assert list(ways) == ["sgd", "exact", "batched", "stopped", "remat"]
    every = jax.jit(lambda *given: {name: way(*given) for name, way in ways.items()})(*given)
    for name, (found, new) in every.items():
        want = gradient(w, np.full(5, 0.2)) if name == "sgd" else head + gradient(
            point, tail, held=name == "stopped"
        )  # fmt: skip
        np.testing.assert_allclose(found["w"], want, atol=2e-6, err_msg=name)
        kept = BATCH_NORM_MOMENTUM + (1 - BATCH_NORM_MOMENTUM) * (x @ w).mean(axis=0)
        np.testing.assert_allclose(new["mean"], kept, atol=1e-6, err_msg=name)


# ---- what is timed -------------------------------------------------------------------------------


class Compiled:
    """A way, compiled: it takes as long as it is said to, and costs what it is said to."""

    def __init__(self, way, clock):
        self.way, self.clock = way, clock

    def __call__(self, *values):
        self.clock.seen.append((self.way.__name__, values))
        self.clock.now += next(self.way.seconds)
        return self.way(*values)

    def lower(self, *shapes):
        self.clock.shapes.append(shapes)
        return self

    def compile(self):
        self.clock.now += 1.25678
        return self

    def cost_analysis(self):
        return {"flops": self.way.flops}

    def memory_analysis(self):
        return types.SimpleNamespace(temp_size_in_bytes=self.way.held)


def way(name, flops, held, seconds, gradient=1.0):
    def found(params, stats, images, labels):
        return {"w": np.full(3, gradient)}, stats

    found.__name__, found.flops, found.held = name, flops, held
    found.seconds = iter(seconds)
    return found


@pytest.fixture
def timed(monkeypatch):
    """`timed(ways, *flags)`: what is written of these ways, of a model that is asked nothing."""

    def start(ways, out, *flags):
        clock = types.SimpleNamespace(now=100.0, seen=[], shapes=[], awaited=[], keys=[])
        clock.perf_counter = lambda: clock.now

        class Model:
            def init(self, key, x, train):
                assert x.shape == (1, 8, 8, 3) and train is False
                clock.keys.append(key)
                return {"params": {"w": jnp.zeros(3)}, "batch_stats": {"s": jnp.ones(2)}}

        def jit(f):
            return Compiled(f, clock) if hasattr(f, "flops") else f

        def created(name, classes):
            assert (name, classes) == ("resnet8", 100)
            return Model()

        monkeypatch.setattr(exact_batch_norm, "time", clock)
        monkeypatch.setattr(
            exact_batch_norm.cli, "use_compilation_cache", lambda: clock.seen.append("cache")
        )
        monkeypatch.setattr(models, "create_model", created)
        monkeypatch.setattr(
            exact_batch_norm, "ways",
            lambda model, rows: {one.__name__: one for one in ways if rows == 4},
        )  # fmt: skip
        words = ["--model", "resnet8", "--image-size", "8", "--batch-size", "4", "--tail-rows", "4"]
        with monkeypatch.context() as patch:
            assert cost.flops  # imported while its own programs are compiled
            patch.setattr(jax, "jit", jit)
            patch.setattr(jax, "block_until_ready", clock.awaited.append)
            exact_batch_norm.main(
                exact_batch_norm.arguments().parse_args([*words, *flags, "--out", str(out)])
            )
        assert clock.seen.pop(0) == "cache"
        text = (out / "exact_batch_norm.json").read_text()
        assert text.startswith('{\n "model"') and text.endswith("}\n")
        return json.loads(text), clock

    return start


def test_ways_are_timed_in_turn_without_the_first_round(timed, tmp_path, capsys):
    """Of SGD 1, 2 and 4 s, of the exact step 2, 6 and 4."""
    ways = [
        way("sgd", 10.0, 100, [9, 1, 2, 4]), way("exact", 25.0, 150, [9, 9, 2, 6, 4]),
        way("batched", 30.0, None, [9, 9, 1, 1, 1]), way("remat", 30.0, 0, [9, 9, 1, 1, 1]),
    ]  # fmt: skip
    found, clock = timed(ways, tmp_path, "--rounds", "3")
    told = {name: found[name] for name in ("model", "batch_size", "tail_rows", "image_size",
                                           "rounds")}  # fmt: skip
    assert told == {"model": "resnet8", "batch_size": 4, "tail_rows": 4, "image_size": 8,
                    "rounds": 3}  # fmt: skip
    assert {"command", "device", "versions"} <= set(found)
    sgd, exact, batched, remat = found["rows"]
    assert exact == {
        "way": "exact", "flops": 25, "seconds_compile": 1.26, "temporary_bytes": 150,
        "flops_ratio": 2.5, "memory_ratio": 1.5, "ms": 4000, "time_ratio": 2,
        "time_ratio_quartiles": [1.5, 2.5],
    }  # fmt: skip
    assert sgd["flops_ratio"] == sgd["memory_ratio"] == sgd["time_ratio"] == 1
    assert "memory_ratio" not in batched and "memory_ratio" not in remat
    # Of noise of seed 0, the same for all.
    draw = np.random.Generator(np.random.PCG64(0))
    images, labels = draw.normal(size=(4, 8, 8, 3)), draw.integers(0, 100, 4)
    for _, (params, stats, x, y) in clock.seen:
        assert params["w"].shape == (3,) and stats["s"].shape == (2,)
        np.testing.assert_allclose(x, images, rtol=1e-6)
        np.testing.assert_array_equal(y, labels)
    _, key = clock.keys
    assert jax.random.key_data(key).tolist() == [0, 0]
    for *_, x, y in clock.shapes:
        assert (x.shape, y.shape) == ((4, 8, 8, 3), (4,))
    assert len(clock.awaited) == 4 * 4  # each of four rounds
    said = capsys.readouterr().out.splitlines()
    assert said[1] == "exact    FLOPs 2.50  memory 1.50  time 2.00 [1.5, 2.5]"
    assert said[2].startswith("batched  FLOPs 3.00  memory nan  time ")


def test_what_is_compiled_alone_is_not_run(timed, tmp_path, capsys):
    ways = [way("sgd", 10.0, None, []), way("exact", 25.0, 150, [])]
    found, clock = timed(ways, tmp_path, "--compile-only")
    assert not clock.seen
    assert found["rows"][1] == {
        "way": "exact", "flops": 25, "seconds_compile": 1.26, "temporary_bytes": 150,
        "flops_ratio": 2.5,
    }  # fmt: skip
    assert capsys.readouterr().out.splitlines()[1] == "exact    FLOPs 2.50  memory nan  time nan "


@pytest.mark.parametrize(
    ("exact", "other", "same"),
    [(1.0, 1.005, True), (1.0, 1.015, False), (0.0, 5e-5, True), (0.0, 1.5e-4, False)],
)
@pytest.mark.parametrize("name", ["batched", "remat"])
def test_ways_to_the_same_gradient_agree_before_they_are_timed(
    timed, tmp_path, exact, other, same, name
):
    """To a hundredth, and to 0.0001 beside nothing."""
    values = {"sgd": 7.0, "exact": exact, "batched": exact, "remat": exact, name: other}
    ways = [way(each, 10.0, 1, [1.0] * 9, value) for each, value in values.items()]
    with contextlib.nullcontext() if same else pytest.raises(AssertionError, match=name):
        timed(ways, tmp_path, "--rounds", "1")
