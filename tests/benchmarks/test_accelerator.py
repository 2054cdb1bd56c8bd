"""The accelerator benchmark in the small: what is measured, what is skipped, and what is late."""

import copy
import json
import time
import types

import jax
import numpy as np
import pytest

from benchmarks import accelerator, accelerator_runs, accelerator_steps, peak, step_bench, step_cost
from benchmarks.accelerator_steps import Cell, Timing
from experiments.host.errors import RunError, Stopped
from experiments.run import cost

pytestmark = pytest.mark.allow_rank_promotion  # Flax adds a bias[C] to a batch[B, C]

LATER = 1e9  # minutes


@pytest.fixture
def small():
    rules = ("sgd", "sam", "imbsam")
    return Cell("mlp", 8, counts=(5, 20, 10), eta=8, rules=rules)


def run(out, cells, minutes=LATER, **options):
    options = {"steps_per_call": 1, "timing": Timing(3)} | options
    accelerator_steps.run(out, cells, minutes=minutes, began=time.monotonic(), **options)


def cells_of(out):
    return {cell["cell"]: cell for cell in json.loads((out / "steps.json").read_text())["cells"]}


def test_shares_are_of_the_peak_of_the_same_type():
    ceiling = {
        "matmul": [
            {"dtype": "float32", "precision": "default", "flops_per_second_best": 200.0},
            {"dtype": "float32", "precision": "highest", "flops_per_second_best": 50.0},
        ]
    }
    rows = [{"precision": kind, "flops_per_second": 20.0} for kind in ("float32", "bfloat16")]
    cells = [{"rows": [*rows, {"failed": "out of memory"}]}]
    accelerator_steps.add_shares(cells, peak.rates(ceiling))
    assert [row.get("share_of_peak") for row in cells[0]["rows"]] == [0.1, None, None]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_matrices_without_a_mean(dtype):
    """A mean of m deviations is an eigenvalue of m sqrt(n): it decides a chain of products."""
    for matrix in peak.entries(1024, dtype):
        found = np.asarray(matrix, np.float64) * 1024**0.5
        assert matrix.dtype == dtype
        assert abs(found.mean()) < 4 / 1024 and found.std() == pytest.approx(1, abs=0.005)


def test_a_peak_is_measured_once(tmp_path, monkeypatch, capsys):
    line = {"n": 64, "dtype": "float32", "precision": "default", "flops_per_second_best": 2e12}
    found = {"matmul": [line], "copy": {"bytes_per_second_best": 3e9}}
    monkeypatch.setattr(peak, "measure", lambda quick: found)
    peak.run(tmp_path)
    assert capsys.readouterr().out == ("matmul 64 float32 default: 2 TFLOP/s\ncopy: 3 GB/s\n")
    held = json.loads((tmp_path / "peak.json").read_text())
    assert held["matmul"] == [line] and held["quick"] is False and "device" in held
    monkeypatch.setattr(peak, "measure", lambda quick: pytest.fail("measured again"))
    peak.run(tmp_path)
    assert "peak.json is there: not measured again" in capsys.readouterr().out


def test_the_page_by_hand():
    row = {
        "name": "imbsam", "finite": False, "step_ms": 12.345, "images_per_second": 5184.4,
        "time_ratio": 2.345, "time_ratio_quartiles": [2.25, 2.5], "flops": 2.5e9,
        "flops_ratio": 2.656, "flops_per_second": 1.2e12, "share_of_peak": 0.4321,
        "seconds_compile": 30.04, "temporary_bytes": 3 * 2**20,
    }  # fmt: skip
    nothing = dict.fromkeys(("flops", "flops_ratio", "flops_per_second", "share_of_peak"))
    cells = [
        {"cell": "mlp b8", "rows": [row, {**row, **nothing, "finite": True}], "missing": ["sam"]},
        {"cell": "mlp b9", "failed": "a | b", "rows": [{"name": "gsa", "failed": "c"}],
         "missing": []},
    ]  # fmt: skip
    found = {"device": "1 x H", "versions": {"jax": "0.11.0"}, "command": "python -m x"}
    line = {"n": 64, "dtype": "float32", "precision": "default"}
    line |= {"flops_per_second_best": 2e12, "flops_per_second_median": 1.5e12}
    ceiling = {"matmul": [line], "copy": {"bytes_per_second_best": 3e9}}
    lines = accelerator_steps.markdown({**found, "cells": cells}, ceiling).splitlines()
    assert lines[:4] == [
        "1 x H, JAX 0.11.0; `python -m x`", "",
        "- matmul 64, float32, precision default: 2 TFLOP/s best, 1.5 median",
        "- copy: 3 GB/s, read and written",
    ]  # fmt: skip
    assert lines[7:] == [
        "| mlp b8 | imbsam (loss not finite) | 12.3 | 5184 | 2.35 | 2.25 to 2.50 | 2.66 | 2.5 | "
        "1.2 | 43.2% | 30.0 | 3 |",
        "| mlp b8 | imbsam | 12.3 | 5184 | 2.35 | 2.25 to 2.50 | - | - | - | - | 30.0 | 3 |",
        "| mlp b8 | to do: sam |" + 10 * " |",
        "| mlp b9 | failed: a / b |" + 10 * " |",
        "| mlp b9 | gsa failed: c |" + 10 * " |",
    ]
    assert "matmul" not in accelerator_steps.markdown({**found, "cells": []}, {})


def test_names_of_cells_differ():
    cells = [*accelerator_steps.CELLS["dependent"], *accelerator_steps.CELLS["independent"]]
    names = [cell.name for cell in cells]
    assert len({*names}) == len(names) == 8
    assert "resnet50 b256 224px bfloat16" in names
    # ResNet-50 sees ImageNet-LT's numbers of classes and images, the others CIFAR100-LT's.
    assert {cell.counts[:2] for cell in cells} == {(1000, 1280), (100, 500)}
    # Tail classes are those of at most 100 images, as in the runs of both data sets.
    assert {cell.arguments().eta for cell in cells} == {100}
    for cell in cells:
        assert cell.arguments().image_size == cell.image_size


@pytest.mark.slow  # a whole report, twice
def test_what_is_there_is_not_measured_again(tmp_path, small, monkeypatch):
    asked = []

    def measure(cell, before, *_):
        asked.append((cell.name, [row["name"] for row in before]))
        if cell.batch_size == 9:
            raise MemoryError("out of memory\nwhere")
        missing = [] if before else ["imbsam"]
        return {
            "rows": [{"name": "imbsam" if before else "sgd", "failed": "x"}],
            "missing": missing,
        }

    monkeypatch.setattr(accelerator_steps, "measure", measure)
    cells = [small, small._replace(batch_size=9)]
    with pytest.raises(Stopped, match="1 of 2 cells") as stopped:
        run(tmp_path, cells)
    assert stopped.value.exit_code == 75
    assert cells_of(tmp_path)["mlp b9"]["failed"] == "MemoryError: out of memory"
    run(tmp_path, cells)
    run(tmp_path, cells)
    assert asked == [("mlp b8", []), ("mlp b9", []), ("mlp b8", ["sgd"])]
    assert [row["name"] for row in cells_of(tmp_path)["mlp b8"]["rows"]] == ["sgd", "imbsam"]
    table = (tmp_path / "steps.md").read_text()
    assert "| mlp b9 | failed: MemoryError: out of memory |" in table


def test_no_cell_is_begun_late_and_no_two_machines_are_mixed(tmp_path, small, monkeypatch):
    monkeypatch.setattr(accelerator_steps, "measure", None)
    with pytest.raises(Stopped, match="0 of 1 cells"):
        run(tmp_path, [small], minutes=0)
    assert not (tmp_path / "steps.json").exists()
    (tmp_path / "steps.json").write_text(json.dumps({"device": "another", "cells": []}))
    with pytest.raises(RunError, match="is of another, and this is"):
        run(tmp_path, [small])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--data is missing"),
        (["--quick", "--rounds", "2"], "at least 3"),
        (["--quick", "--seeds", "1", "0", "1", "--together"], "--seeds names 1 twice"),
        (["--quick", "--parts", "runs", "--methods", "sgd", "sgd"], "--methods names sgd twice"),
        (["--quick", "--parts", "steps", "--time-after", "go"], "--time-after is for one cell"),
        (["--quick", "--parts", "steps", "--rules", "cc_sam"], "no cell has any of them"),
        # Before anything is trained, also of the methods after it.
        (["--quick", "--parts", "runs", "--methods", "sgd", "imbsam", "--eta", "0"], "eta=0"),
    ],
)
def test_what_is_refused(tmp_path, flags, message, capsys):
    with pytest.raises((RunError, SystemExit)) as refused:
        accelerator.main(accelerator.parsed(["--out", str(tmp_path), *flags]))
    assert message in str(refused.value) + capsys.readouterr().err


def test_quick_changes_what_is_not_said():
    args = accelerator.parsed(["--out", "x", "--quick", "--epochs", "5"])
    assert (args.epochs, args.models, args.batch_size) == (5, ["mlp"], 20)
    assert accelerator.parsed(["--out", "x"]).models == ["resnet32", "resnet34_3x3"]


@pytest.mark.slow
def test_a_cell_cut_short_is_completed_with_sgd_timed_again(tmp_path, small, monkeypatch):
    times = iter([0.0, 0.0, 1e9])  # too late to compile when the third rule's turn comes
    monkeypatch.setattr(
        accelerator_steps, "time", type("", (), {"perf_counter": time.perf_counter})()
    )
    accelerator_steps.time.monotonic = lambda: next(times, 1e9)
    first = accelerator_steps.measure(small, [], 1, Timing(3), 1.0, np.inf)
    assert [row["name"] for row in first["rows"]] == ["sgd", "sam"]
    assert first["missing"] == ["optax.contrib.sam", "imbsam"]
    accelerator_steps.time.monotonic = lambda: 0.0
    second = accelerator_steps.measure(small, first["rows"], 2, Timing(3), 1.0, np.inf)
    assert [row["name"] for row in second["rows"]] == ["optax.contrib.sam", "imbsam"]
    assert second["missing"] == [] and second["rows"][1]["time_ratio"] > 0
    assert second["rows"][1]["flops_ratio"] == pytest.approx(2.5, abs=0.4)


@pytest.mark.slow
def test_a_rule_that_fails_is_recorded_and_the_next_has_its_turn(tmp_path, small, monkeypatch):
    compiled = step_bench.Bench.compiled

    def fails(self, method, room, mode="dependent"):
        if isinstance(method, step_bench.OptaxSAM):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 80 GiB\nmore")
        return compiled(self, method, room, mode)

    monkeypatch.setattr(step_bench.Bench, "compiled", fails)
    run(tmp_path, [small])
    found = cells_of(tmp_path)["mlp b8"]
    assert [row["name"] for row in found["rows"]] == ["sgd", "sam", "imbsam", "optax.contrib.sam"]
    assert found["rows"][3]["failed"] == "JaxRuntimeError: RESOURCE_EXHAUSTED: 80 GiB"
    assert found["missing"] == [] and found["rows"][2]["finite"]


@pytest.mark.slow
def test_steps_in_one_scan_have_the_flops_of_a_lone_one(small):
    lone, three = (step_bench.Bench("mlp", small.arguments(), noise(small), k) for k in (1, 3))
    rule = next(method for row, method in step_cost.planned(lone) if row["rule"] == "imbsam")
    flops = [
        bench.lowered(rule, "dependent", None).cost_analysis()["flops"] for bench in (lone, three)
    ]
    assert flops[0] == flops[1]
    optimised = lone.compiled(rule, None).cost_analysis()["flops"]
    assert flops[0] == pytest.approx(optimised, rel=0.05)
    assert three.rows("dependent", 1).index.shape == (3, 8)


@pytest.mark.slow
def test_on_a_gpu_a_step_is_counted_on_the_host(small):
    bench = step_bench.Bench("mlp", small.arguments(), noise(small))
    rule = next(method for row, method in step_cost.planned(bench) if row["rule"] == "imbsam")
    rest = (rule, bench.initial, bench.inputs, bench.rows("dependent", 0))
    order = bench.orders["dependent"]
    here, _ = cost.lone_step(bench.run_on, *rest, order, 0.0)
    gpu = copy.copy(bench.run_on)
    gpu.devices = [types.SimpleNamespace(platform="gpu")]
    counted, step_ms = cost.lone_step(gpu, *rest, order, 0.01)
    assert counted == pytest.approx(here, rel=0.05) and step_ms > 0


def noise(cell):
    from imbsam_jax import long_tail_counts

    return step_bench.noise(long_tail_counts(*cell.counts))


@pytest.mark.slow
def test_the_whole_in_the_small(tmp_path, run_python):
    flags = ["-m", "benchmarks.accelerator", "--quick", "--out", str(tmp_path / "out")]
    flags += ["--work", str(tmp_path / "work"), "--quiet"]
    assert "all 1 runs" in run_python(flags).stdout
    found = {p.stem: json.loads(p.read_text()) for p in (tmp_path / "out").glob("*.json")}
    assert {*found} == {"peak", "steps", "runs"}
    assert found["steps"]["default_matmul_precision"] == "default"
    assert len(found["peak"]["matmul"]) == 3 and found["peak"]["copy"]["bytes_per_second_best"] > 0
    for cell in found["steps"]["cells"]:
        assert cell["missing"] == [] and "failed" not in cell
        assert all(row["share_of_peak"] > 0 and row["rounds"] == 2 for row in cell["rows"])
    assert all(report["seconds_whole"] > 0 for report in found["runs"])
    again = run_python(flags).stdout
    assert "not measured again" in again and "compiled in" not in again and "0 to do" in again


def test_cells_and_rules_by_name(small):
    bigger = small._replace(batch_size=9)
    assert accelerator_steps.chosen([small, bigger], None, None) == [small, bigger]
    (found,) = accelerator_steps.chosen([small, bigger], ["mlp b9"] * 2, ["imbsam", "sgd", "gsa"])
    assert found == bigger._replace(rules=("sgd", "imbsam"))
    plain = bigger._replace(rules=("sgd",))  # a cell without the rule is left out
    assert accelerator_steps.chosen([small, plain], None, ["sam"]) == [
        small._replace(rules=("sam",))
    ]
    with pytest.raises(RunError, match=r"--rules gsa: no cell has any"):
        accelerator_steps.chosen([small, plain], None, ["gsa"])
    with pytest.raises(RunError, match=r"--cells has no 'mlp': 'mlp b8', 'mlp b9'"):
        accelerator_steps.chosen([small, bigger], ["mlp"], None)


@pytest.mark.slow
def test_flops_counted_elsewhere_are_taken_and_a_file_is_waited_for(
    tmp_path, small, capsys, monkeypatch
):
    cell = small._replace(rules=("sgd", "focal_sam"))
    accelerator_steps.count(tmp_path, [cell])
    counted = json.loads((tmp_path / "flops.json").read_text())
    assert counted.keys() == {"mlp b8"}
    assert counted["mlp b8"].keys() == {"sgd", "focal_sam"}
    assert len(capsys.readouterr().out.splitlines()) == 2
    accelerator_steps.count(tmp_path, [cell])
    assert not capsys.readouterr().out  # counted once
    accelerator_steps.count(tmp_path, [cell._replace(rules=("sam",))])
    more = json.loads((tmp_path / "flops.json").read_text())["mlp b8"]
    assert more.keys() == {"sgd", "focal_sam", "sam", "optax.contrib.sam"}
    assert counted["mlp b8"].items() <= more.items()

    told = {"mlp b8": {**counted["mlp b8"], "focal_sam": 12345.0}}
    after = tmp_path / "go"
    monkeypatch.setattr(accelerator_steps.time, "sleep", lambda _: after.touch())
    run(tmp_path, [cell], timing=Timing(3, told, after))
    assert f"compiled: waiting for {after}" in capsys.readouterr().out
    rows = {row["name"]: row for row in cells_of(tmp_path)["mlp b8"]["rows"]}
    assert {name: row["flops"] for name, row in rows.items()} == told["mlp b8"]
    # What did not get its turn is not timed beside others, and has it the next time.
    monkeypatch.setattr(accelerator_steps.time, "sleep", None)
    waiting = Timing(3, told, tmp_path / "never")
    with pytest.raises(Stopped, match="never did not appear in time") as stopped:
        accelerator_steps.measure(cell, [], 1, waiting, np.inf, time.monotonic())
    assert stopped.value.exit_code == 75


@pytest.mark.parametrize("content", ["[]", "{", '{"a": 3}', '{"a": {"sgd": "12"}}',
                                     '{"a": {"sgd": NaN}}', '{"a": {"sgd": 0}}'])  # fmt: skip
def test_a_damaged_count_is_refused(content, tmp_path):
    (tmp_path / "flops.json").write_text(content)
    with pytest.raises(RunError, match=r"flops\.json"):
        accelerator_steps.counts_of(tmp_path / "flops.json")


def test_rules_asked_for_later_are_measured_then(tmp_path, small, monkeypatch):
    def measure(cell, before, *_):
        done = {row["name"] for row in before}
        rows = [{"name": rule, "failed": "x"} for rule in cell.rules if rule not in done]
        return {"rows": rows, "missing": []}

    monkeypatch.setattr(accelerator_steps, "measure", measure)
    for rules in (("sgd",), ("sgd", "imbsam"), ("sam",), ("sam",)):
        run(tmp_path, [small._replace(rules=rules)])
    found = cells_of(tmp_path)["mlp b8"]
    assert [row["name"] for row in found["rows"]] == found["rules"] == ["sgd", "imbsam", "sam"]


def test_what_is_timed_of_which_cell():
    """The cells of results/accelerator/cells.json: ResNet-50 on ImageNet-LT's counts, a step a
    call; those whose passes may leave rows out of large batches, beside the whole one.
    """
    every, few = step_cost.RULES, ("sgd", "imbsam")
    whole, apart = ("dependent",), ("dependent", "split_norm")
    assert {
        kind: [(cell.name, cell.rules, cell.modes) for cell in cells]
        for kind, cells in accelerator_steps.CELLS.items()
    } == {
        "dependent": [
            ("resnet32 b64", every, apart), ("resnet32 b128", every, apart),
            ("resnet32 b128 bfloat16", few, whole), ("resnet34_3x3 b64", every, whole),
            ("resnet50 b256 224px bfloat16", every, whole),
            ("resnet50 b256 224px bfloat16 remat", few, whole),
        ],
        "independent": [
            ("resnet32_gn b256", few, ("dependent", "stratified")),
            ("vit_ti4 b256", few, ("dependent", "stratified")),
        ],
    }  # fmt: skip
    for cell in [*accelerator_steps.CELLS["dependent"], *accelerator_steps.CELLS["independent"]]:
        large = cell.model == "resnet50"
        assert cell.counts == ((1000, 1280, 256) if large else (100, 500, 100))
        assert cell.most_steps == (1 if large else 50)
    small = [cell for cells in accelerator_steps.QUICK.values() for cell in cells]
    assert [(cell.name, cell.rules) for cell in small] == [
        ("resnet8 b16", few), ("resnet14_bottleneck b8 40px bfloat16", ("sgd",)), ("mlp b20", few)
    ]  # fmt: skip
    assert {(cell.counts, cell.eta) for cell in small} == {((10, 60, 10), 20)}


def test_a_cell_is_a_command_line_of_step_cost():
    cell = Cell("mlp", 8, "bfloat16", 40, (5, 20, 10), 7.0, ("sam", "gsa"), ("uniform",), 3, True)
    args = cell.arguments()
    assert (args.batch_size, args.precision, args.image_size) == (8, "bfloat16", 40)
    assert (args.counts, args.eta, args.remat) == ([5, 20, 10], 7, True)
    assert (args.rule, args.mode, args.steps) == (["sam", "gsa"], ["uniform"], 170)
    plain = Cell("mlp", 8)
    assert not plain.arguments().remat and plain.name == "mlp b8"
    assert cell.name == "mlp b8 40px bfloat16 remat"
    assert Timing().rounds == 12 and accelerator.parsed(["--out", "x"]).rounds == 12


ROWS = [
    {"rule": rule, "stage": stage, "mode": mode, "precision": "float32"}
    for rule, stage, mode in (
        ("sgd", None, "dependent"), ("sam", None, "split_norm"), ("sse_sam", 1, "dependent"),
        ("sse_sam", 2, "dependent"),
    )
]  # fmt: skip
NAMES = ["sgd", "sam, split_norm", "sse_sam, stage 1", "sse_sam, stage 2"]
FLOPS = dict(zip(NAMES, (2e9, 4e9, 6e9, 5e9), strict=True))


@pytest.fixture
def planned(monkeypatch):
    """Benches of ROWS, whose steps have FLOPS and are compiled and timed as a test says."""
    made = {"steps": [], "counted": [], "timed": [], "fails": {}, "takes": {}}

    class Bench:
        model = "mlp"

        def __init__(self, model, args, dataset, steps_per_call):
            assert (model, len(dataset.train_labels)) == ("mlp", 49)  # 20, 12, 7, 5, 3 and 2
            made["steps"].append(steps_per_call)
            self.orders = {mode: types.SimpleNamespace(labels_of=lambda n, mode=mode: (mode, n))
                           for mode in step_bench.MODES}  # fmt: skip

        def room(self, mode):
            return f"room of {mode}"

        def lowered(self, method, mode, room):
            return method, mode, room

        def compiled(self, method, room, mode):
            assert room == f"room of {mode}"
            if method in made["fails"].get("compiled", ()):
                raise MemoryError(f"none for {method}\nmore")
            analysed = types.SimpleNamespace(temp_size_in_bytes=len(method))
            return types.SimpleNamespace(name=method, memory_analysis=lambda: analysed)

    def counted(compiled, room, labels):
        method, mode, _ = compiled("room")
        assert room == f"room of {mode}" and labels == (mode, 1000)
        made["counted"].append(method)
        if method in made["fails"].get("counted", ()):
            raise ValueError
        return None, FLOPS[method]

    def timed(bench, rows, calls, rounds, deadline=None):
        names = [call.name for call in calls]
        made["timed"].append((names, rounds, deadline))
        if rounds == 2 and names[0] in made["fails"].get("timed", ()):
            raise jax.errors.JaxRuntimeError(f"no room for {names[0]}")
        assert names == [row["name"] for row in rows]
        return np.array([[made["takes"].get(name, 0.25) for name in names]] * 2)

    monkeypatch.setattr(step_bench, "Bench", Bench)
    monkeypatch.setattr(step_cost, "planned", lambda bench: iter(zip(ROWS, NAMES, strict=True)))
    monkeypatch.setattr(step_bench, "timed", timed)
    monkeypatch.setattr(cost, "counted", counted)
    return made


def test_flops_are_counted_once_each_and_written(tmp_path, planned, capsys):
    """What cannot be counted is left out, and asked for again."""
    cell = Cell("mlp", 8, counts=(6, 20, 10))
    planned["fails"]["counted"] = ["sam, split_norm"]
    accelerator_steps.count(tmp_path, [cell])
    found = json.loads((tmp_path / "flops.json").read_text())
    assert found == {"mlp b8": {name: FLOPS[name] for name in (NAMES[0], *NAMES[2:])}}
    assert found == accelerator_steps.counts_of(tmp_path / "flops.json")
    assert capsys.readouterr().out.splitlines() == [
        "mlp b8 sgd: 2 GFLOP", "mlp: FLOPs cannot be counted: ValueError: ",
        "mlp b8 sse_sam, stage 1: 6 GFLOP", "mlp b8 sse_sam, stage 2: 5 GFLOP",
    ]  # fmt: skip
    assert planned["steps"] == [1]
    planned["fails"].clear()
    planned["counted"].clear()
    accelerator_steps.count(tmp_path, [cell, cell._replace(batch_size=9)])
    assert planned["counted"] == ["sam, split_norm", *NAMES]
    assert json.loads((tmp_path / "flops.json").read_text()) == {"mlp b8": FLOPS, "mlp b9": FLOPS}


def test_a_count_below_one_is_one(tmp_path):
    (tmp_path / "flops.json").write_text('{"a": {"sgd": 0.5}, "b": {}}')
    assert accelerator_steps.counts_of(tmp_path / "flops.json") == {"a": {"sgd": 0.5}, "b": {}}


def measured(planned, before=(), timing=None, until=np.inf, deadline=np.inf):
    cell = Cell("mlp", 8, counts=(6, 20, 10))
    timing = timing or Timing(5)
    return accelerator_steps.measure(cell, list(before), 3, timing, until, deadline)


def test_rows_are_timed_beside_sgd(planned, taking, capsys):
    """8 images in 0.25 s, and SGD's in 0.125; FLOPs that were counted are not counted again."""
    taking(accelerator_steps, [1.5] * 4)
    planned["takes"]["sgd"] = 0.125
    planned["fails"]["counted"] = [NAMES[3]]
    timing = Timing(5, {"mlp b8": {"sgd": 1e9}})
    found = measured(planned, timing=timing, deadline=7.0)
    assert planned["steps"] == [3] and planned["counted"] == NAMES[1:]
    assert planned["timed"] == [*(([name], 2, None) for name in NAMES), (NAMES, 5, 7.0)]
    assert found["missing"] == []
    sgd, sam, _, uncounted = found["rows"]
    assert {"name": sgd["name"], "rule": sgd["rule"], "mode": sam["mode"]} == {
        "name": "sgd", "rule": "sgd", "mode": "split_norm"
    }  # fmt: skip
    assert (sgd["images_per_second"], sgd["flops_per_second"]) == (64, 8e9)
    assert (sam["images_per_second"], sam["flops_per_second"]) == (32, 16e9)
    assert (sam["time_ratio"], sam["flops_ratio"], sam["step_ms"]) == (2, 4, 250)
    assert (sam["seconds_compile"], sam["temporary_bytes"]) == (1.5, len("sam, split_norm"))
    for name in ("flops", "flops_ratio", "flops_per_second"):
        assert uncounted[name] is None and uncounted["images_per_second"] == 32
    said = capsys.readouterr().out
    assert "mlp b8 sam, split_norm: compiled in 1.5 s" in said


def test_rows_that_are_there_are_left_out_but_for_sgd(planned):
    found = measured(planned, [{"name": name} for name in NAMES[:3]])
    assert [row["name"] for row in found["rows"]] == [NAMES[3]]
    assert planned["timed"][-1][0] == [NAMES[0], NAMES[3]]
    # SGD alone is compiled again where it alone is there.
    found = measured(planned, [{"name": NAMES[1]}])
    assert [row["name"] for row in found["rows"]] == [NAMES[0], *NAMES[2:]]


def test_late_two_rows_are_compiled_and_the_others_are_missing(planned, taking):
    """Something is there beside SGD; at that very second it is late."""
    taking(accelerator_steps, [1.0] * 4, late=[5.0])
    found = measured(planned, until=5.0)
    assert [row["name"] for row in found["rows"]] == NAMES[:2]
    assert found["missing"] == NAMES[2:]
    taking(accelerator_steps, [1.0] * 4, late=[4.9])
    assert measured(planned, until=5.0)["missing"] == []


def test_a_row_that_fails_is_noted_and_without_sgd_nothing_is(planned, capsys):
    planned["fails"] = {"compiled": [NAMES[2]], "timed": [NAMES[1]]}
    found = measured(planned)
    assert [(row["name"], row.get("failed")) for row in found["rows"]] == [
        (NAMES[0], None), (NAMES[3], None),
        (NAMES[2], "MemoryError: none for sse_sam, stage 1"),
        (NAMES[1], "JaxRuntimeError: no room for sam, split_norm"),
    ]  # fmt: skip
    said = capsys.readouterr().out
    assert "mlp b8 sse_sam, stage 1: failed: MemoryError: none for sse_sam, stage 1\n" in said
    assert "mlp b8 sam, split_norm: failed: JaxRuntimeError" in said
    for when, error in (("compiled", MemoryError), ("timed", jax.errors.JaxRuntimeError)):
        planned["fails"] = {when: ["sgd"]}
        with pytest.raises(error):
            measured(planned)


def test_a_cell_waits_for_its_file(planned, taking, tmp_path, capsys):
    clock = taking(accelerator_steps, [1.0] * 8, late=[0.0] * 6 + [5.0])
    after = tmp_path / "go"
    with pytest.raises(Stopped, match="go did not appear in time: nothing was timed") as stopped:
        measured(planned, timing=Timing(5, {}, after), deadline=5.0)
    assert stopped.value.exit_code == 75 and not planned["timed"]
    assert capsys.readouterr().out.splitlines()[-1] == f"compiled: waiting for {after}"
    assert clock.slept == [0.2] * 2  # five times a second; four times it was asked before
    after.touch()
    assert measured(planned, timing=Timing(5, {}, after), deadline=5.0)["missing"] == []
    accelerator_steps.wait_for(None, 5.0)
    assert "waiting" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("platform", "asked", "most", "steps"),
    [("cpu", 0, 50, 1), ("gpu", 0, 50, 50), ("gpu", 0, 1, 1), ("gpu", 7, 50, 7)],
)
def test_steps_of_a_call(tmp_path, small, monkeypatch, platform, asked, most, steps):
    given = []
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(
        platform=platform, device_kind="x")])  # fmt: skip
    monkeypatch.setattr(peak.origin, "environment", lambda: {"device": "x", "versions": {"jax": 1}})
    monkeypatch.setattr(
        accelerator_steps, "measure",
        lambda *all_of: (given.append(all_of[2]), {"rows": [], "missing": []})[1],
    )  # fmt: skip
    run(tmp_path, [small._replace(most_steps=most)], steps_per_call=asked)
    assert given == [steps]
    assert cells_of(tmp_path)["mlp b8"]["steps_per_call"] == steps


@pytest.mark.parametrize(("minutes", "spare"), [(2.5, 30), (10, 60)])
def test_the_last_minute_is_for_timing(tmp_path, small, monkeypatch, taking, minutes, spare):
    """Or a fifth of all; at that very second no cell is begun."""
    end = 1000 + 60 * minutes
    given = []
    monkeypatch.setattr(
        accelerator_steps, "measure",
        lambda *all_of: (given.append(all_of[4:]), {"rows": [], "missing": []})[1],
    )  # fmt: skip
    taking(accelerator_steps, [], late=[end - spare - 0.1, end - spare])
    cells = [small, small._replace(batch_size=9)]
    with pytest.raises(Stopped, match="1 of 2 cells are in"):
        accelerator_steps.run(tmp_path, cells, 1, Timing(3), minutes, 1000.0)
    assert given == [(end - spare, end)]


def test_a_cell_that_failed_under_other_rules_is_measured(tmp_path, small, monkeypatch, capsys):
    """What was said of the others goes; the peak that was measured meanwhile is taken."""
    answers = [MemoryError("full\nmore"), Stopped("late", 75), None]

    def measure(cell, *_):
        answer = answers.pop(0)
        if answer:
            raise answer
        row = {"name": "sam", "precision": "float32", "flops_per_second": 1e12, "flops_ratio": 2,
               "step_ms": 1.0, "images_per_second": 1.0, "time_ratio": 2.0, "flops": None,
               "time_ratio_quartiles": [2, 2], "finite": True, "seconds_compile": 1.0,
               "temporary_bytes": None}  # fmt: skip
        return {"rows": [row], "missing": []}

    monkeypatch.setattr(accelerator_steps, "measure", measure)
    run(tmp_path, [small._replace(rules=("sgd",))])
    found = cells_of(tmp_path)["mlp b8"]
    assert (found["failed"], found["rows"]) == ("MemoryError: full", [])
    said = capsys.readouterr().out
    assert "mlp b8: failed: MemoryError: full\n" in said and "all 1 cells are in" in said
    with pytest.raises(Stopped, match="late"):
        run(tmp_path, [small])
    run(tmp_path, [small])
    found = cells_of(tmp_path)["mlp b8"]
    assert "failed" not in found and found["rows"][0]["share_of_peak"] is None
    assert found["rules"] == ["sgd", "sam", "imbsam"]
    line = {"dtype": "float32", "precision": "default", "n": 64, "flops_per_second_best": 4e12,
            "flops_per_second_median": 3e12}  # fmt: skip
    held = json.loads((tmp_path / "steps.json").read_text())
    about = {"matmul": [line], "copy": {"bytes_per_second_best": 3e9}, "device": held["device"]}
    (tmp_path / "peak.json").write_text(json.dumps(about))
    run(tmp_path, [small])
    assert cells_of(tmp_path)["mlp b8"]["rows"][0]["share_of_peak"] == 0.25
    assert "| 25.0% |" in (tmp_path / "steps.md").read_text()


def test_of_an_error_the_first_300_letters_of_its_first_line_and_80_in_a_table():
    found = accelerator_steps._first_line(ValueError("x" * 400))
    assert found == "ValueError: " + 288 * "x"
    assert accelerator_steps._first_line(ValueError()) == "ValueError: "
    about = {"device": "d", "versions": {"jax": "1"}, "command": "c"}
    cells = [{"cell": "a", "failed": 90 * "x", "rows": [], "missing": []}]
    page = accelerator_steps.markdown({**about, "cells": cells}, {})
    assert f"| a | failed: {80 * 'x'} |" in page and page.endswith(" |\n")


def test_no_rule_at_all_of_no_cell_is_refused(small):
    empty = small._replace(rules=())
    with pytest.raises(RunError, match="no cell has any"):
        accelerator_steps.chosen([empty], None, ["sam"])


# ---- runs, by stand-ins for their training -------------------------------------------------------


@pytest.fixture
def begun(monkeypatch):
    """What `main` hands on to the parts; none is done."""
    seen = []
    monkeypatch.setattr(accelerator, "time", types.SimpleNamespace(monotonic=lambda: 1000.0))
    monkeypatch.setattr(accelerator.cli, "use_compilation_cache", lambda: seen.append("cache"))
    monkeypatch.setattr(peak, "run", lambda out, quick: seen.append(("peak", out, quick)))
    monkeypatch.setattr(
        accelerator_steps, "count", lambda out, cells: seen.append(("flops", out, len(cells)))
    )
    monkeypatch.setattr(accelerator_steps, "run", lambda *given: seen.append(("steps", *given)))
    monkeypatch.setattr(accelerator_runs, "run", lambda args, until: seen.append(("runs", until)))

    def start(*flags):
        seen.clear()
        accelerator.main(accelerator.parsed([*map(str, flags)]))
        assert seen[0] == "cache"
        return seen[1:]

    return start


def test_the_parts_in_their_order(begun, tmp_path, capsys):
    (tmp_path / "steps.md").write_text("a table")
    quick = ["--quick", "--out", tmp_path, "--minutes", 2]
    first, steps, runs = begun(*quick)
    assert first == ("peak", tmp_path, True) and runs == ("runs", 1000 + 2 * 60)
    assert [cell.name for cell in steps[2]] == [
        "resnet8 b16",
        "resnet14_bottleneck b8 40px bfloat16",
    ]
    assert (steps[1], *steps[3:]) == (tmp_path, 0, Timing(3, {}, None), 2, 1000.0)
    assert capsys.readouterr().out == "a table\n"
    assert begun(*quick[:-2], "--parts", "flops") == [("flops", tmp_path, 2)]
    assert capsys.readouterr().out == ""
    file = tmp_path / "flops.json"
    file.write_text('{"a": {"sgd": 3}}')
    ((_, _, cells, *_, timing, _, _),) = begun(
        "--out", tmp_path, "--parts", "steps", "--cells", "resnet32 b64", "--time-after", "go"
    )
    assert [cell.name for cell in cells] == ["resnet32 b64"]
    assert (timing.rounds, timing.flops, str(timing.after)) == (12, {"a": {"sgd": 3}}, "go")
    file.rename(tmp_path / "other.json")
    ((_, _, cells, *_, timing, _, _),) = begun(
        "--out", tmp_path, "--parts", "steps", "--modes", "independent", "dependent",
        "--flops", tmp_path / "other.json",
    )  # fmt: skip
    assert [cell.model for cell in cells[:3]] == ["resnet32_gn", "vit_ti4", "resnet32"]
    assert timing.flops == {"a": {"sgd": 3}}
    with pytest.raises(RunError, match=r"none\.json"):  # what is named must be there
        begun("--out", tmp_path, "--parts", "steps", "--flops", tmp_path / "none.json")
    assert begun("--out", tmp_path, "--parts", "peak") == [("peak", tmp_path, False)]
    assert begun("--out", tmp_path, "--parts", "runs", "--data", "x") == [("runs", 1000 + 9 * 60)]
