"""Where a step's time goes: kernels by what they are for, summed over the steps of a call."""

import contextlib
import json
import types
import warnings

import jax
import pytest

from benchmarks import kernels
from experiments.host.errors import RunError


@pytest.mark.parametrize(
    "name, kind",
    [
        ("sm90_xmma_wgrad_indexed_implicit_gemm_f32f32", "convolution, by its kernel"),
        ("void wgrad_alg0_engine_NHWC<float, 128>", "convolution, by its kernel"),
        ("sm80_xmma_dgrad_implicit_gemm_bf16", "convolution, by its input"),
        ("sm90_xmma_fprop_implicit_gemm_f32f32", "convolution, forward or not told"),
        ("_ZN17cutlass4conv6kernel23ImplicitGemmConvolution", "convolution, forward or not told"),
        ("void cudnn::engines_precompiled::convertTensor_kernel", "layouts for a convolution"),
        ("gemm_fusion_dot", "matrix product"),
        ("input_add_reduce_fusion", "sums"),
        ("Memset", "clearing and copying"),
        ("loop_maximum_fusion", "elementwise"),
    ],
)
def test_what_a_kernel_is_for(name, kind):
    assert kernels.kind_of(name) == kind


def test_kernels_are_summed_over_the_steps():
    """Two steps; fusions are one kernel whatever their numbers; a loop holds what is counted."""
    seen = [("input_reduce_fusion_7", 3e3), ("input_reduce_fusion", 1e3), ("while.3", 9e9),
            ("Memset 3", 500.0), ("Memset 12", 1500.0), ("loop_add_fusion.1", 8e3)]  # fmt: skip
    found = kernels.summed(seen, 2)
    rows = [(r["kernel"], r["kind"], r["launches"], r["microseconds"]) for r in found]
    assert rows == [
        ("loop_add_fusion", "elementwise", 0.5, 4.0),
        ("input_reduce_fusion", "sums", 1.0, 2.0),
        ("Memset", "clearing and copying", 1.0, 1.0),
    ]
    about = {"device": "a card", "versions": {"jax": "1"}, "command": "c", "cell": "x", "rule": "r"}
    assert kernels.markdown({**about, "step_ms": 0.0085, "kernels": found}).splitlines()[2:] == [
        "x, r: 8 microseconds a step, of which 7 in 2 launches",
        "",
        "| what for | launches | microseconds | of all |",
        "|---|---:|---:|---:|",
        "| elementwise | 0 | 4 | 57% |",
        "| sums | 1 | 2 | 29% |",
        "| clearing and copying | 1 | 1 | 14% |",
    ]


@pytest.mark.slow  # what is made of a trace, those after it show
def test_a_step_is_traced(tmp_path, capsys):
    """On a CPU, whose operations are in the trace as well, under names of its own."""
    flags = ["--model", "mlp", "--batch-size", "8", "--steps-per-call", "2", "--out", str(tmp_path)]
    kernels.main(kernels.arguments().parse_args(flags))
    found = json.loads((tmp_path / "kernels.json").read_text())
    assert found["cell"] == "mlp b8" and found["rule"] == "sgd" and found["step_ms"] > 0
    times = [row["microseconds"] for row in found["kernels"]]
    assert len(times) > 5 and times == sorted(times, reverse=True) and times[0] > 0
    assert (tmp_path / "kernels.md").read_text() in capsys.readouterr().out


class Event:
    def __init__(self, name, nanoseconds, *stats):
        self.name, self.duration_ns, self.stats = name, nanoseconds, [(of, 0) for of in stats]


def trace(monkeypatch, tmp_path, planes):
    """What a trace has: {plane: {line: events}}."""

    def of(name, **what):
        return types.SimpleNamespace(name=name, **what)

    found = [of(plane, lines=[of(line, events=events) for line, events in lines.items()])
             for plane, lines in planes.items()]  # fmt: skip

    def from_file(file):
        warnings.warn("builtin type swigvarlink has no __module__", DeprecationWarning, 1)
        return types.SimpleNamespace(planes=found)

    data = types.SimpleNamespace(from_file=from_file)
    monkeypatch.setattr(jax.profiler, "ProfileData", data)
    (tmp_path / "a").mkdir(exist_ok=True)
    (tmp_path / "a" / "t.xplane.pb").touch()
    return kernels.events(tmp_path)


def test_of_a_gpu_its_streams_are_counted(monkeypatch, tmp_path):
    """Its other lines repeat them; the host's planes, and what is no operation, are left out."""
    gpu = {"Stream #1(Compute)": [Event("conv", 5, "x", "hlo_op"), Event("wait", 9, "x")],
           "XLA Ops": [Event("conv", 5, "hlo_op")]}  # fmt: skip
    host = {"Stream of tasks": [Event("call", 7, "hlo_op")]}
    found = trace(monkeypatch, tmp_path, {"/host:CPU": host, "/device:GPU:0": gpu})
    assert found == [("conv", 5)]
    assert trace(monkeypatch, tmp_path, {"/host:CPU": host}) == [("call", 7)]


@pytest.fixture
def bench(monkeypatch, taking):
    """A bench of steps that are states counted up; one traced call takes 0.25 s."""
    made = types.SimpleNamespace(
        calls=[], cells=[], traced=[], said=[], awaited=[], seen=[("dot.1", 8e3)]
    )

    def call(state, inputs, rows):
        made.calls.append((state, inputs, rows))
        return state + 1, 0.0

    run_on = types.SimpleNamespace(put_state=lambda state: state, place=lambda rows: rows)
    rows = [({"rule": rule, "mode": "dependent"}, f"method of {rule}") for rule in ("sgd", "sam")]

    def compiled(method, room, mode):
        made.said.append((method, room, mode))
        return call

    of = types.SimpleNamespace(
        initial=7, inputs="inputs", run_on=run_on, compiled=compiled,
        room=lambda mode: f"room of {mode}", rows=lambda mode, number: (mode, number),
    )  # fmt: skip
    monkeypatch.setattr(
        kernels, "bench_of", lambda cell, steps: (made.cells.append((cell, steps)), of)[1]
    )
    monkeypatch.setattr(kernels.step_cost, "planned", lambda bench: iter(rows))
    monkeypatch.setattr(kernels.cli, "use_compilation_cache", lambda: made.said.append("cache"))
    monkeypatch.setattr(kernels, "events", lambda folder: made.seen)
    monkeypatch.setattr(
        jax.profiler, "trace",
        lambda folder: (made.traced.append(len(made.calls)), contextlib.nullcontext())[1],
    )  # fmt: skip
    monkeypatch.setattr(jax, "block_until_ready", lambda x: (made.awaited.append(x), x)[1])
    taking(kernels, [0.25])
    return made


def test_the_call_behind_two_others_is_traced(bench, tmp_path, capsys):
    flags = ["--model", "mlp", "--batch-size", "8", "--steps-per-call", "5", "--rule", "sam"]
    flags += ["--precision", "bfloat16", "--out", str(tmp_path)]
    kernels.main(kernels.arguments().parse_args(flags))
    ((cell, steps),) = bench.cells
    assert (cell.name, cell.rules, steps) == ("mlp b8 bfloat16", ("sam",), 5)
    assert bench.said == ["cache", ("method of sam", "room of dependent", "dependent")]
    assert bench.calls == [(7 + k, "inputs", ("dependent", 0)) for k in range(3)]
    assert bench.traced == [2] and len(bench.awaited) == 1 + 3
    found = json.loads((tmp_path / "kernels.json").read_text())
    assert (found["cell"], found["rule"], found["step_ms"]) == ("mlp b8 bfloat16", "sam", 50)
    assert found["kernels"] == [
        {"kernel": "dot", "kind": "matrix product", "launches": 0.2, "microseconds": 1.6}
    ]  # fmt: skip
    text = (tmp_path / "kernels.md").read_text()
    assert text.startswith(f"{found['device']}, JAX ") and capsys.readouterr().out == text + "\n"


def test_a_trace_without_kernels_is_refused(bench, tmp_path):
    bench.seen = []
    with pytest.raises(RunError, match="the profiler saw no kernel"):
        kernels.main(kernels.arguments().parse_args(["--model", "mlp", "--out", str(tmp_path)]))
