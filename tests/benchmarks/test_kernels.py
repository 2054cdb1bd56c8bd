"""Where a step's time goes: kernels by what they are for, summed over the steps of a call."""

import json

import pytest

from benchmarks import kernels


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


def test_a_step_is_traced(tmp_path, capsys):
    """On a CPU, whose operations are in the trace as well, under names of its own."""
    flags = ["--model", "mlp", "--batch-size", "8", "--steps-per-call", "2", "--out", str(tmp_path)]
    kernels.main(kernels.arguments().parse_args(flags))
    found = json.loads((tmp_path / "kernels.json").read_text())
    assert found["cell"] == "mlp b8" and found["rule"] == "sgd" and found["step_ms"] > 0
    times = [row["microseconds"] for row in found["kernels"]]
    assert len(times) > 5 and times == sorted(times, reverse=True) and times[0] > 0
    assert (tmp_path / "kernels.md").read_text() in capsys.readouterr().out
