"""Step times of every rule on an accelerator, and their share of the machine's measured peak.

Models, rules and the order of timing are those of benchmarks/step_cost.py. A step of a small model
is over before the next is sent off, so a call is K steps in one scan, and a step a K-th of it.
FLOPs are XLA's, of one lone step as it is lowered, before optimisation. Run by
benchmarks/accelerator.py.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from benchmarks import peak, step_bench, step_cost
from experiments.host import origin, outputs
from experiments.host.errors import RunError, Stopped


class Cell(NamedTuple):
    """One model and batch, under some rules."""

    model: str
    batch_size: int
    precision: str = "float32"
    image_size: int = 32
    counts: tuple[int, int, int] = (100, 500, 100)  # classes, largest, imbalance factor
    eta: float = 100
    rules: tuple[str, ...] = step_cost.RULES
    modes: tuple[str, ...] = ("dependent",)
    most_steps: int = 50  # of a call: enough to hide its start
    remat: bool = False

    @property
    def name(self) -> str:
        at = "" if self.image_size == 32 else f" {self.image_size}px"
        half = "" if self.precision == "float32" else f" {self.precision}"
        again = " remat" if self.remat else ""
        return f"{self.model} b{self.batch_size}{at}{half}{again}"

    def arguments(self) -> argparse.Namespace:
        """As of step_cost's command line, all else at its defaults."""
        flags = ["--batch-size", self.batch_size, "--precision", self.precision]
        flags += ["--image-size", self.image_size, "--counts", *self.counts, "--eta", self.eta]
        flags += ["--rule", *self.rules, "--mode", *self.modes, "--out", "."]
        flags += ["--remat"] if self.remat else []
        return step_cost.arguments().parse_known_args([str(flag) for flag in flags])[0]


# Without batch statistics, passes may leave rows out: beside the whole batch, what that saves.
ALONE: Any = {"batch_size": 256, "rules": ("sgd", "imbsam"), "modes": ("dependent", "stratified")}
# Long steps; and a call's images lie on the device.
IMAGENET: Any = {"image_size": 224, "counts": (1000, 1280, 256), "most_steps": 1}
CELLS = {
    "dependent": (
        Cell("resnet32", 64, modes=("dependent", "split_norm")),
        Cell("resnet32", 128, modes=("dependent", "split_norm")),
        Cell("resnet32", 128, "bfloat16", rules=("sgd", "imbsam")),
        Cell("resnet34_3x3", 64),
        Cell("resnet50", 256, "bfloat16", **IMAGENET),
        Cell("resnet50", 256, "bfloat16", **IMAGENET, remat=True, rules=("sgd", "imbsam")),
    ),
    "independent": (Cell("resnet32_gn", **ALONE), Cell("vit_ti4", **ALONE)),
}
SMALL: Any = {"counts": (10, 60, 10), "eta": 20}
QUICK = {
    "dependent": (
        Cell("resnet8", 16, **SMALL, rules=("sgd", "imbsam")),
        # Brings its images along, as ResNet-50 does.
        Cell("resnet14_bottleneck", 8, "bfloat16", 40, **SMALL, rules=("sgd",)),
    ),
    "independent": (Cell("mlp", **{**ALONE, **SMALL, "batch_size": 20}),),
}


def chosen(
    cells: Sequence[Cell], names: Sequence[str] | None, rules: Sequence[str] | None
) -> list[Cell]:
    """The cells of these names, under those of their rules that are named; None is all.

    Raises:
      RunError: a name that no cell has, or no cell with any of the rules.
    """
    known = {cell.name: cell for cell in cells}
    if unknown := [name for name in names or () if name not in known]:
        raise RunError(f"--cells has no {unknown[0]!r}: {', '.join(map(repr, known))}")
    found = [known[name] for name in dict.fromkeys(names or known)]
    if rules is None:
        return found
    # SGD, against which all are held, is of every cell.
    cut = [cell._replace(rules=tuple(r for r in cell.rules if r in rules)) for cell in found]
    if not any(cell.rules for cell in cut):
        raise RunError(f"--rules {' '.join(rules)}: no cell has any of them")
    return [cell for cell in cut if cell.rules]


def count(out: Path, cells: Sequence[Cell]) -> None:
    """Adds to OUT/flops.json, {cell: {row: FLOPs of a step}}; no step is made on any device.

    Elsewhere `run` takes them from there: lowering every step for the host once more takes as long
    as compiling it does.
    """
    file = out / "flops.json"
    found = counts_of(file) if file.exists() else {}
    for cell in cells:
        bench, rows = bench_of(cell, 1), found.setdefault(cell.name, {})
        for row, method in step_cost.planned(bench):
            if _name(row) in rows:
                continue
            flops = _flops(bench, method, row["mode"])
            if np.isfinite(flops):
                rows[_name(row)] = flops
                print(f"{cell.name} {_name(row)}: {flops / 1e9:.4g} GFLOP", flush=True)
            outputs.write_json(file, found)


def counts_of(file: Path) -> dict[str, dict[str, float]]:
    """What `count` wrote.

    Raises:
      RunError: it is not that.
    """
    found = outputs.read_object(file)
    for cell, rows in found.items():
        if not isinstance(rows, dict) or not all(
            outputs.is_number(flops) and flops > 0 for flops in rows.values()
        ):
            raise RunError(f"{file} is damaged: {cell} has something else than FLOPs of rows")
    return found


def bench_of(cell: Cell, steps_per_call: int) -> step_bench.Bench:
    from imbsam_jax import long_tail_counts

    args = cell.arguments()
    dataset = step_bench.noise(long_tail_counts(*args.counts), args.image_size)
    return step_bench.Bench(cell.model, args, dataset, steps_per_call)


class Timing(NamedTuple):
    """How steps are timed.

    Attributes:
      rounds: every rule is timed once a round; the first round does not count.
      flops: {cell: {row: FLOPs of a step}} counted elsewhere; what it lacks is counted here.
      after: a file before which nothing runs: what several processes compile side by side is
        timed in turn. At the deadline it is waited for no longer, and nothing is timed.
    """

    rounds: int = 12
    flops: Mapping[str, Mapping[str, float]] = MappingProxyType({})
    after: Path | None = None


def run(
    out: Path,
    cells: Sequence[Cell],
    steps_per_call: int,
    timing: Timing,
    minutes: float,
    began: float,
) -> None:
    """Measures the cells that OUT/steps.json lacks into it, and writes OUT/steps.md.

    Args:
      steps_per_call: K; 0 is 1 on a CPU, where scanned convolutions are slow, else 50.
      minutes: after `began` (time.monotonic()), when to stop.

    Raises:
      Stopped: out of time; what is measured is written, and the same call goes on.
    """
    import jax

    file = out / "steps.json"
    measured = {cell["cell"]: cell for cell in peak.read(file).get("cells", [])}
    steps_per_call = steps_per_call or (1 if jax.devices()[0].platform == "cpu" else 50)
    deadline = began + 60 * minutes
    # Nothing is compiled any more when the rest is what timing needs.
    compile_until = deadline - min(60.0, 12 * minutes)
    for cell in todo(cells, measured):
        if time.monotonic() >= compile_until:
            _stop(file, cells, measured)
        before = measured.get(cell.name, {"cell": cell.name, "rules": [], "rows": []})
        before.pop("failed", None)  # under other rules
        steps = min(steps_per_call, cell.most_steps)
        try:
            found = measure(cell, before["rows"], steps, timing, compile_until, deadline)
        except Stopped:
            raise
        except Exception as error:  # out of memory, say: the next cell has its turn
            found = {"failed": _first_line(error), "missing": []}
            print(f"{cell.name}: failed: {found['failed']}", flush=True)
        rows = before["rows"] + found.pop("rows", [])
        rules = list(dict.fromkeys([*before["rules"], *cell.rules]))
        measured[cell.name] = {
            **before, "rules": rules, "steps_per_call": steps, **found, "rows": rows,
        }  # fmt: skip
        _write(out, measured)
        gc.collect()
    _write(out, measured)  # with shares of a peak that was measured meanwhile
    if todo(cells, measured):
        _stop(file, cells, measured)
    print(f"all {len(cells)} cells are in {file}", flush=True)


def todo(cells: Sequence[Cell], measured: dict[str, Any]) -> list[Cell]:
    """Cells not measured, and those of which rules are missing; one that failed is done."""

    def done(cell: Cell) -> bool:
        found = measured.get(cell.name)
        return found is not None and not found["missing"] and {*cell.rules} <= {*found["rules"]}

    return [cell for cell in cells if not done(cell)]


def _stop(file: Path, cells: Sequence[Cell], measured: dict[str, Any]) -> None:
    done = len(cells) - len(todo(cells, measured))
    raise Stopped(
        f"{done} of {len(cells)} cells are in {file}; the same command goes on from here", 75
    )


def measure(
    cell: Cell,
    before: list[dict[str, Any]],
    steps_per_call: int,
    timing: Timing,
    compile_until: float,
    deadline: float,
) -> dict[str, Any]:
    """{"rows": what was measured now, "missing": names of what there was no time for}.

    Rows that are there are not measured again, but for SGD, against which the others are timed.
    """
    bench, counted = bench_of(cell, steps_per_call), timing.flops.get(cell.name, {})
    done = {row["name"] for row in before}
    ready: list[tuple[dict[str, Any], Any]] = []
    rows: list[dict[str, Any]] = []
    calls, missing = [], []
    failed: list[dict[str, Any]] = []

    def note(row: dict[str, Any], error: Exception, first: bool) -> None:
        if first:
            raise error  # without SGD nothing can be compared
        failed.append({**row, "failed": _first_line(error)})
        print(f"{cell.name} {row['name']}: failed: {failed[-1]['failed']}", flush=True)

    for row, method in step_cost.planned(bench):
        row = {"name": _name(row), **row}
        if row["name"] in done and ready:
            continue
        if time.monotonic() >= compile_until and len(ready) > 1:
            missing.append(row["name"])
            continue
        try:
            mode = row["mode"]
            row["flops"] = counted.get(row["name"]) or _flops(bench, method, mode)
            began = time.perf_counter()
            call = bench.compiled(method, bench.room(mode), mode)
            row["seconds_compile"] = time.perf_counter() - began
            row["temporary_bytes"] = step_bench.temporary_bytes(call)
        except Exception as error:
            note(row, error, first=not ready)
            continue
        print(f"{cell.name} {row['name']}: compiled in {row['seconds_compile']:.1f} s", flush=True)
        ready.append((row, call))
    wait_for(timing.after, deadline)
    for row, call in ready:
        try:
            step_bench.timed(bench, [dict(row)], [call], 2)  # it fails here, or not at all
        except Exception as error:
            note(row, error, first=not rows)
            continue
        rows.append(row)
        calls.append(call)
    times = step_bench.timed(bench, rows, calls, timing.rounds, deadline)
    step_cost.with_ratios(rows, times)
    for row in rows:
        row["images_per_second"] = 1000 * cell.batch_size / row["step_ms"]
        row["flops_per_second"] = 1000 * row["flops"] / row["step_ms"]
        if np.isnan(row["flops"]):
            row |= dict.fromkeys(("flops", "flops_ratio", "flops_per_second"))
    new = [row for row in rows if row["name"] not in done]
    return {"rows": new + failed, "missing": missing}


def wait_for(file: Path | None, deadline: float = np.inf) -> None:
    """Returns once the file is there.

    Raises:
      Stopped: it is not there at `deadline`, of time.monotonic().
    """
    if file is not None and not file.exists():
        print(f"compiled: waiting for {file}", flush=True)
    while file is not None and not file.exists():
        if time.monotonic() >= deadline:
            raise Stopped(f"{file} did not appear in time: nothing was timed", 75)
        time.sleep(0.2)


def _flops(bench: step_bench.Bench, method: Any, mode: str) -> float:
    """Of a lone step; NaN where they cannot be counted: times without them are worth having."""
    from experiments.run import cost

    labels = bench.orders[mode].labels_of(1000)
    try:
        return cost.counted(partial(bench.lowered, method, mode), bench.room(mode), labels)[1]
    except Exception as error:
        print(f"{bench.model}: FLOPs cannot be counted: {_first_line(error)}", flush=True)
        return float("nan")


def _name(row: dict[str, Any]) -> str:
    stage = "" if row["stage"] is None else f", stage {row['stage']}"
    return row["rule"] + stage + ("" if row["mode"] == "dependent" else f", {row['mode']}")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def add_shares(cells: list[dict[str, Any]], rates: dict[str, float]) -> None:
    """FLOP/s over the peak of the same type; None where that was not measured."""
    for row in (row for cell in cells for row in cell["rows"] if "failed" not in row):
        most = rates.get(row["precision"])
        rate = row["flops_per_second"]
        row["share_of_peak"] = rate / most if rate and most else None


def _write(out: Path, measured: dict[str, Any]) -> None:
    cells, ceiling = list(measured.values()), peak.read(out / "peak.json")
    add_shares(cells, peak.rates(ceiling))
    found = {"command": origin.command_line(), "cells": cells, **peak.described()}
    outputs.write_json(out / "steps.json", found)
    outputs.replace_text(out / "steps.md", markdown(found, ceiling))


def markdown(found: dict[str, Any], ceiling: dict[str, Any]) -> str:
    lines = [f"{found['device']}, JAX {found['versions']['jax']}; `{found['command']}`", ""]
    lines += [
        f"- matmul {line['n']}, {line['dtype']}, precision {line['precision']}: "
        f"{line['flops_per_second_best'] / 1e12:.4g} TFLOP/s best, "
        f"{line['flops_per_second_median'] / 1e12:.4g} median"
        for line in ceiling.get("matmul", [])
    ]
    if ceiling:
        rate = ceiling["copy"]
        lines.append(f"- copy: {rate['bytes_per_second_best'] / 1e9:.4g} GB/s, read and written")
    lines += [
        "",
        "| cell | rule | ms/step | images/s | time / SGD | quartiles | FLOPs / SGD | GFLOP/step | "
        "TFLOP/s | of the peak | compile s | temporary MiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in found["cells"]:
        if "failed" in cell:
            lines.append(f"| {cell['cell']} | failed: {_cut(cell['failed'])} |" + 10 * " |")
        for row in cell["rows"]:
            if "failed" in row:
                failed = f"{row['name']} failed: {_cut(row['failed'])}"
                lines.append(f"| {cell['cell']} | {failed} |" + 10 * " |")
                continue
            low, high = row["time_ratio_quartiles"]
            diverged = "" if row["finite"] else " (loss not finite)"
            lines.append(
                f"| {cell['cell']} | {row['name']}{diverged} | {row['step_ms']:.3g} | "
                f"{row['images_per_second']:.0f} | {row['time_ratio']:.2f} | {low:.2f} to "
                f"{high:.2f} | {_shown(row['flops_ratio'], '.2f')} | "
                f"{_shown(row['flops'], '.4g', 1e-9)} | "
                f"{_shown(row['flops_per_second'], '.3g', 1e-12)} | "
                f"{_shown(row['share_of_peak'], '.1%')} | {row['seconds_compile']:.1f} | "
                f"{_shown(row['temporary_bytes'], '.0f', 2**-20)} |"
            )
        if cell["missing"]:
            lines.append(f"| {cell['cell']} | to do: {'; '.join(cell['missing'])} |" + 10 * " |")
    return "\n".join(lines) + "\n"


def _shown(value: float | None, form: str, unit: float = 1) -> str:
    return "-" if value is None else format(unit * value, form)


def _cut(message: str) -> str:
    return message.replace("|", "/")[:80]
