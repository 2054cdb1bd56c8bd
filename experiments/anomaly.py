"""Semi-supervised anomaly detection: DevNet and DeepSAD under every rule.

    python -m experiments.anomaly --out runs/anomaly                      # scikit-learn's own data
    python -m experiments.anomaly --data-dir DIR --label-ratio 0.01 0.05 0.1 0.25 0.5 --out runs/x

The second application of the ImbSAM paper (section 4.2): the labelled anomalies are the tail, every
other training example is the head. Networks, losses and splits are ADBench's; all runs of a method
and a rule are trained by one compiled program, mapped over runs and spread over the devices.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments import cli
from experiments.data.anomaly import PROTOCOLS, Arrays, Split, Table, load_tables, scaled, split
from experiments.errors import RunError

METHODS = ("devnet", "deepsad")
RULES = ("sgd", "sam", "imbsam")
OPTIMIZERS = ("sgd", "adam", "rmsprop")
COLUMNS = (
    "dataset", "method", "rule", "seed", "label_ratio", "protocol",
    "auroc", "ap_anomaly", "ap_normal", "seconds",
)  # fmt: skip
_SIDES = {"ap_anomaly": "anomalies", "ap_normal": "normal examples"}
METRICS = {"auroc": "AUROC", "ap_anomaly": "AP anomaly", "ap_normal": "AP normal"}

# A batch of runs is trained side by side on each device: few on a CPU, whose caches then hold
# them, many on an accelerator.
_RUNS_PER_DEVICE = {"cpu": 3}
_RUNS_PER_ACCELERATOR = 64

# Table 4 of the paper, AUROC in percent at 25% labels, and the names its families have in ADBench.
_FAMILIES = ("CIFAR10", "FashionMNIST", "MNIST-C", "MVTec-AD", "SVHN")
_PAPER = {
    ("devnet", "sgd"): (88.4, 96.4, 95.6, 95.6, 82.1, 91.6),
    ("devnet", "sam"): (88.2, 96.2, 95.3, 94.2, 81.0, 91.0),
    ("devnet", "imbsam"): (88.7, 96.7, 96.0, 96.2, 83.7, 92.2),
    ("deepsad", "sgd"): (86.5, 96.3, 96.4, 93.1, 80.9, 90.6),
    ("deepsad", "sam"): (86.9, 96.7, 96.1, 91.3, 81.0, 90.4),
    ("deepsad", "imbsam"): (87.9, 97.0, 96.2, 95.3, 82.4, 91.8),
}
_PAPER_RATIO = 0.25


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser("Train DevNet and DeepSAD on anomaly data under several rules.")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data-dir", metavar="DIR", default=os.environ.get("ADBENCH_DIR") or None,
        help="folder of NAME.npz files with X real[n, d] and y [n], 1 for an anomaly; default the "
        "variable ADBENCH_DIR, then scikit-learn's digits (one digit is the anomaly) and breast "
        "cancer",
    )  # fmt: skip
    data.add_argument(
        "--datasets", metavar="NAME", nargs="+", default=None,
        help="data sets, without .npz; None takes all of the folder",
    )  # fmt: skip
    data.add_argument(
        "--protocol", nargs="+", default=["adbench"], choices=PROTOCOLS,
        help="adbench: as published (fewer than 1000 rows are resampled before the split, so that "
        "copies are in train and test); nodup: without resampling; clean: as adbench, anomalies "
        "without a label leave training; full: as adbench, every training anomaly is labelled "
        "whatever --label-ratio says, once, and reported with label ratio 1",
    )  # fmt: skip
    data.add_argument(
        "--label-ratio", metavar="R", type=float, nargs="+", default=[_PAPER_RATIO],
        help="part of the training anomalies that are labelled, over 0 and up to 1",
    )  # fmt: skip

    method = parser.add_argument_group("method")
    method.add_argument(
        "--method", nargs="+", default=list(METHODS), choices=METHODS, help="networks and losses"
    )
    method.add_argument(
        "--rule", nargs="+", default=list(RULES), choices=RULES,
        help="differences are paired with sgd; imbsam perturbs the labelled anomalies alone",
    )  # fmt: skip
    method.add_argument(
        "--rho", type=float, default=0.05,
        help="radius of sam and imbsam, in parameter units, at least 0",
    )  # fmt: skip

    training = parser.add_argument_group("training")
    training.add_argument(
        "--seeds", metavar="S", type=int, nargs="+", default=[0, 1, 2],
        help="of split, initial weights and batches; a run each",
    )  # fmt: skip
    training.add_argument(
        "--optimizer", default="sgd", choices=OPTIMIZERS,
        help="sgd: momentum 0.9; adam: betas 0.9 and 0.999; rmsprop: decay 0.9, each tensor's "
        "gradient clipped to norm 1 after weight decay, as in Keras",
    )  # fmt: skip
    training.add_argument(
        "--lr", type=float, default=1e-3,
        help="learning rate, constant, over 0; with sgd at 1e-2 DeepSAD diverges under sam, imbsam",
    )  # fmt: skip
    training.add_argument(
        "--epochs", type=int, default=50,
        help="DevNet: 20 steps of 128 rows each; DeepSAD: one pass over the rows in batches of 128",
    )  # fmt: skip

    running = parser.add_argument_group("running")
    running.add_argument(
        "--out", metavar="DIR", default="runs/anomaly",
        help="folder for runs.csv, summary.json, config.json and curves_PROTOCOL.png",
    )  # fmt: skip
    running.add_argument(
        "--overwrite", action="store_true", help="replace the runs.csv that --out holds"
    )
    return parser


# -------------------------------------------------------------------------------------- what to run


class Job(NamedTuple):
    """One split of one data set: what every method and rule is trained on."""

    table: Table
    seed: int
    label_ratio: float
    protocol: str
    drawn: Split


class Result(NamedTuple):
    """One finished run; metrics in percent, NaN where training diverged."""

    dataset: str
    method: str
    rule: str
    seed: int
    label_ratio: float
    protocol: str
    auroc: float
    ap_anomaly: float
    ap_normal: float
    seconds: float


def plan(
    tables: Sequence[Table], *, seeds: Sequence[int], label_ratios: Sequence[float],
    protocols: Sequence[str],
) -> list[Job]:  # fmt: skip
    """Every split, drawn before anything is trained, so that bad data is found now.

    Raises:
      DataError: a split cannot be made; the message names the file.
    """
    jobs = []
    for protocol in protocols:
        for ratio in [1.0] if protocol == "full" else label_ratios:
            for table in tables:
                for seed in seeds:
                    drawn = split(table, seed=seed, label_ratio=ratio, protocol=protocol)
                    jobs.append(Job(table, seed, ratio, protocol, drawn))
    return jobs


# ----------------------------------------------------------------------------------------- training


class Runs(NamedTuple):
    """What the compiled program takes: R runs side by side, rows padded to the longest.

    Attributes:
      params, fixed, state: as AnomalyNet.init makes them, each leaf [R, ...].
      train: float32[R, n, d], rows past a run's own are never drawn.
      labels: int32[R, n].
      order: int32[R, S, B], the rows of each step; steps past the last are never made.
      test: float32[R, m, d]; test_labels: int32[R, m]; test_real: bool[R, m], False for padding.
    """

    params: Any
    fixed: Any
    state: Any
    train: Any
    labels: Any
    order: Any
    test: Any
    test_labels: Any
    test_real: Any


def make_rule(name: str, rho: Any) -> Any:
    """The rule over the classes (no label, labelled anomaly); rho may be traced.

    For imbsam the class counts only say which class is the tail. It is the labelled anomalies,
    also where they outnumber the rest, and one table serves every data set of a program.
    """
    from imbsam_jax import rules

    if name == "sgd":
        return rules.sgd(2)
    if name == "sam":
        return rules.sam(2, rho=rho)
    return rules.imbsam([2, 1], rho=rho, eta=1)


def make_optimizer(name: str, lr: Any, decay: dict[str, float]) -> Any:
    """An Optax chain: weight decay at the unperturbed weights, clipping, then the optimizer."""
    import optax

    def add_decay(grads: Any, params: Any) -> Any:
        return {k: g + decay[k] * params[k] if k in decay else g for k, g in grads.items()}

    links = [optax.stateless(add_decay)]
    if name == "sgd":
        links += [optax.trace(decay=0.9)]
    elif name == "adam":
        links += [optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)]
    else:
        links += [
            optax.stateless(lambda grads, _: {k: _clipped(g) for k, g in grads.items()}),
            optax.scale_by_rms(decay=0.9, eps=1e-7, eps_in_sqrt=False),
        ]
    return optax.chain(*links, optax.scale_by_learning_rate(lr))


def _clipped(gradient: Any) -> Any:
    """At most norm 1; as it is below, so a zero gradient stays zero."""
    import jax.numpy as jnp

    return gradient / jnp.maximum(1, jnp.sqrt(jnp.sum(jnp.square(gradient))))


def make_step(net: Any, rule: Any, optimizer: Any) -> Callable[..., Any]:
    """`step(params, opt_state, state, x, labels, fixed) -> (params, opt_state, state, loss)`."""
    import optax

    import imbsam_jax as ij

    def losses_fn(params: Any, x: Any, labels: Any, fixed: Any, state: Any) -> Any:
        return net.losses(params, x, labels, fixed, state)

    gradient = ij.value_and_grad(losses_fn, rule)

    def step(params: Any, opt_state: Any, state: Any, x: Any, labels: Any, fixed: Any) -> Any:
        (loss, state), grads = gradient(params, labels, x, labels, fixed, state)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, state, loss

    return step


def make_program(net: Any, rule: str, optimizer: str, devices: Sequence[Any]) -> Any:
    """The jitted `program(runs, steps, lr, rho) -> (scores float32[R, m], losses float32[R, S])`.

    R must be a multiple of the number of devices. `steps`, `lr` and `rho` are traced: one
    compilation serves data sets of different lengths, and every radius. Losses past `steps` are
    NaN.
    """
    import jax
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec as P

    def one(run: Runs, steps: Any, lr: Any, rho: Any) -> Any:
        tx = make_optimizer(optimizer, lr, net.decay)
        step = make_step(net, make_rule(rule, rho), tx)

        def body(i: Any, carry: Any) -> Any:
            *carry, losses = carry
            rows = run.order[i]
            *carry, loss = step(*carry, run.train[rows], run.labels[rows], run.fixed)
            return (*carry, losses.at[i].set(loss))

        losses = jnp.full(run.order.shape[0], jnp.nan, jnp.float32)
        carry = (run.params, tx.init(run.params), run.state, losses)
        params, _, state, losses = jax.lax.fori_loop(0, steps, body, carry)
        return net.scores(params, run.test, run.fixed, state), losses

    # No run needs another's numbers: every device trains its own, and nothing is communicated.
    spread = jax.shard_map(
        jax.vmap(one, in_axes=(0, None, None, None)),
        mesh=_mesh(devices),
        in_specs=(P("runs"), P(), P(), P()),
        out_specs=P("runs"),
        check_vma=False,
    )
    return jax.jit(spread)


def _mesh(devices: Sequence[Any]) -> Any:
    import jax

    kind = jax.sharding.AxisType.Auto
    return jax.make_mesh((len(devices),), ("runs",), axis_types=(kind,), devices=devices)


def measure(scores: Any, labels: Any, real: Any) -> Any:
    """The three METRICS of R runs, float32[R] each, from [R, m] scores, labels and reality."""
    import jax

    from imbsam_jax import metrics

    def one(s: Any, y: Any, real: Any) -> Any:
        return (
            metrics.auroc(y, s, real),
            metrics.average_precision(y, s, real),
            metrics.average_precision(1 - y, -s, real),
        )

    return jax.vmap(one)(scores, labels, real)


class _Task(NamedTuple):
    """A job as a method sees it: how long it trains, in what shape of batch."""

    job: Job
    steps: int
    shape: tuple[int, int]  # (features, rows of a batch): what a compiled program is made for


class Seconds(NamedTuple):
    """Wall time of `train`, by what it went into; compiling is what nothing else overlapped."""

    compiling: float
    training: float
    preparing: float


def train(
    jobs: Sequence[Job], *, method: str, rules: Sequence[str], optimizer: str, lr: float,
    rho: float, epochs: int, advance: Callable[[int], Any] = lambda runs: None,
) -> tuple[list[Result], Seconds]:  # fmt: skip
    """Train every job under every rule.

    Args:
      jobs: what `plan` made.
      method: one of METHODS.
      rules: of RULES.
      optimizer: one of OPTIMIZERS.
      lr: learning rate.
      rho: radius of sam and imbsam.
      epochs: at least 1.
      advance: called with the number of runs that have just ended.

    Returns:
      One Result a job and rule, and the wall time. A Result's seconds are its share of the time
      its batch of runs was trained in, compilation excluded.
    """
    import jax

    from experiments.models.anomaly_nets import ANOMALY_NETS

    net = ANOMALY_NETS[method]()
    tasks = []
    for job in jobs:
        n, width = len(job.drawn.train_rows), job.table.features.shape[1]
        batch = net.batches(job.seed, job.drawn.train_labels, 1).shape[1]
        tasks.append(_Task(job, epochs * net.steps_per_epoch(n), (width, batch)))
    devices = _devices(len(tasks))
    most = _RUNS_PER_DEVICE.get(devices[0].platform, _RUNS_PER_ACCELERATOR)
    count = min(most, math.ceil(len(tasks) / len(devices))) * len(devices)
    spread = jax.sharding.NamedSharding(_mesh(devices), jax.sharding.PartitionSpec("runs"))
    results, waited, training, preparing = [], 0.0, 0.0, 0.0

    def compiled(rule: str, runs: Runs, numbers: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return make_program(net, rule, optimizer, devices).lower(runs, *numbers).compile()

    with ThreadPoolExecutor(max_workers=len(rules) + 1) as pool:
        for shape in sorted({task.shape for task in tasks}):
            alike = [task for task in tasks if task.shape == shape]
            programs: dict[str, Any] = {}
            for part in _parts(alike, count):
                began = time.perf_counter()
                runs = _side_by_side(net, part, alike, count, epochs)
                tested = (runs.test_labels, runs.test_real)
                runs = jax.block_until_ready(jax.device_put(runs, spread))
                numbers = (np.int32(part[0].steps), np.float32(lr), np.float32(rho))
                if not programs:
                    # The later rules are compiled while the first trains.
                    programs = {rule: pool.submit(compiled, rule, runs, numbers) for rule in rules}
                    scores = jax.ShapeDtypeStruct(tested[0].shape, np.float32)
                    measured = pool.submit(
                        lambda *x: jax.jit(measure).lower(*x).compile(), scores, *tested
                    )
                preparing += time.perf_counter() - began
                for rule in rules:
                    began = time.perf_counter()
                    program, metrics = programs[rule].result(), measured.result()
                    waited += time.perf_counter() - began
                    began = time.perf_counter()
                    scores = jax.device_get(program(runs, *numbers)[0])
                    found = jax.device_get(metrics(scores, *tested))
                    took = time.perf_counter() - began
                    training += took
                    for k, (job, *_) in enumerate(part):
                        auroc, anomaly, normal = (100 * float(values[k]) for values in found)
                        what = (job.table.name, method, rule, job.seed, job.label_ratio)
                        figures = (auroc, anomaly, normal, took / len(part))
                        results.append(Result(*what, job.protocol, *figures))
                    advance(len(part))
    return results, Seconds(waited, training, preparing)


def _devices(runs: int) -> list[Any]:
    """Devices to spread the runs over; a CPU gives one a core, if JAX has not started yet."""
    import jax

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with contextlib.suppress(AttributeError, RuntimeError):  # where a backend runs already
        jax.config.update("jax_num_cpu_devices", cores)
    devices = jax.local_devices()
    most = cores if devices[0].platform == "cpu" else len(devices)
    return devices[: max(1, min(most or 1, runs))]


def _parts(tasks: Sequence[_Task], most: int) -> Iterator[list[_Task]]:
    """Tasks of equally many steps, at most that many at a time, the longest first."""
    for steps in sorted({task.steps for task in tasks}, reverse=True):
        alike = [task for task in tasks if task.steps == steps]
        for start in range(0, len(alike), most):
            yield alike[start : start + most]


def _side_by_side(
    net: Any, part: Sequence[_Task], alike: Sequence[_Task], count: int, epochs: int
) -> Runs:
    """The part's runs stacked and padded, `count` of them (the last repeated), on the host."""
    import jax

    n = max(len(task.job.drawn.train_rows) for task in alike)
    m = max(len(task.job.drawn.test_rows) for task in alike)
    steps = max(task.steps for task in alike)
    runs = []
    for task in part:
        job = task.job
        arrays: Arrays = scaled(job.table, job.drawn)
        params, fixed, state = net.init(job.seed, arrays.train)
        run = Runs(
            params=params,
            fixed=fixed,
            state=state,
            train=_padded(arrays.train, n),
            labels=_padded(job.drawn.train_labels.astype(np.int32), n),
            order=_padded(net.batches(job.seed, job.drawn.train_labels, epochs), steps),
            test=_padded(arrays.test, m),
            test_labels=_padded(job.drawn.test_labels.astype(np.int32), m),
            test_real=np.arange(m) < len(arrays.test),
        )
        runs.append(run)
    runs += [runs[-1]] * (count - len(runs))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *runs)


def _padded(array: NDArray[Any], length: int) -> NDArray[Any]:
    result = np.zeros((length, *array.shape[1:]), array.dtype)
    result[: len(array)] = array
    return result


# ---------------------------------------------------------------------------------------- reporting


def summarise(results: Sequence[Result], rules: Sequence[str]) -> list[dict[str, Any]]:
    """One object for each protocol, label ratio, method and rule, all figures in percent.

    For each metric: the mean over data sets; its standard deviation over seeds (of the mean over
    data sets); the difference to sgd, paired by data set (each the mean over seeds), its standard
    error over data sets, and on how many it is positive. None where there is nothing to take it
    of; one diverged run leaves its means None too, and is counted.
    """
    datasets = list(dict.fromkeys(r.dataset for r in results))
    seeds = list(dict.fromkeys(r.seed for r in results))
    by_key = {(r.protocol, r.label_ratio, r.method, r.rule, r.dataset, r.seed): r for r in results}
    groups = dict.fromkeys((r.protocol, r.label_ratio, r.method) for r in results)
    summary = []
    for group in groups:
        values = {
            rule: {
                metric: np.array(
                    [[getattr(by_key[*group, rule, d, s], metric) for s in seeds] for d in datasets]
                )
                for metric in METRICS
            }
            for rule in rules
        }
        for rule in rules:
            row: dict[str, Any] = dict(
                zip(("protocol", "label_ratio", "method"), group, strict=True)
            )
            row |= {"rule": rule, "datasets": len(datasets), "seeds": len(seeds)}
            row["diverged"] = int(np.isnan(values[rule]["auroc"]).sum())
            for metric in METRICS:
                table = values[rule][metric]
                row[metric] = _mean(table)
                row[f"{metric}_sd"] = _deviation(table.mean(axis=0))
                if rule != "sgd" and "sgd" in values:
                    paired = (table - values["sgd"][metric]).mean(axis=1)
                    spread = _deviation(paired)
                    row[f"{metric}_minus_sgd"] = _mean(paired)
                    row[f"{metric}_minus_sgd_se"] = (
                        None if spread is None else spread / math.sqrt(len(datasets))
                    )
                    row[f"{metric}_improved"] = int((paired > 0).sum())
            summary.append(row)
    return summary


def _mean(values: NDArray[np.float64]) -> float | None:
    return None if np.isnan(values).any() else float(values.mean())


def _deviation(values: NDArray[np.float64]) -> float | None:
    """Sample standard deviation; none for a single value."""
    return None if len(values) < 2 or np.isnan(values).any() else float(values.std(ddof=1))


def families(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Table 4 of the paper as quoted, and this run's mean AUROC of the same families at 25%."""
    rows = []
    for (method, rule), quoted in _PAPER.items():
        mine = [r for r in results if (r.method, r.rule) == (method, rule)]
        for protocol in list(dict.fromkeys(r.protocol for r in mine)) or ["-"]:
            at = [r for r in mine if r.protocol == protocol]
            # The full protocol has one label ratio, 1, and stands beside the paper's too.
            at = [r for r in at if r.label_ratio == _PAPER_RATIO or protocol == "full"]
            row: dict[str, Any] = {"method": method, "rule": rule, "protocol": protocol}
            for family, figure in zip(_FAMILIES, quoted, strict=False):
                here = [r for r in at if r.dataset.startswith(family)]
                row[family] = {
                    "paper": figure,
                    "here": _mean(np.array([r.auroc for r in here])) if here else None,
                    "subsets": len({r.dataset for r in here}),
                }
            row["average"] = {"paper": quoted[-1]}
            rows.append(row)
    return rows


def _figure(value: float | None, spread: float | None = None, sign: str = "") -> str:
    if value is None:
        return "-"
    return f"{value:{sign}.2f}" + ("" if spread is None else f" ± {spread:.2f}")


def show(summary: Sequence[dict[str, Any]], quoted: Sequence[dict[str, Any]], title: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid

    console = Console()
    if not console.is_terminal:
        console = Console(width=170)  # a file has no edge to wrap at
    grid = Grid(title=title, box=box.SIMPLE_HEAD)
    for name in ("protocol", "labels", "method", "rule"):
        grid.add_column(name, no_wrap=True)
    for name in [*METRICS.values(), *(f"{name} - SGD" for name in METRICS.values())]:
        grid.add_column(name, justify="right")
    before = None
    for row in summary:
        group = (row["protocol"], f"{100 * row['label_ratio']:g}%", row["method"])
        if before not in (None, group):
            grid.add_section()
        cells = [_figure(row[m], row[f"{m}_sd"]) for m in METRICS]
        for m in METRICS:
            difference = row.get(f"{m}_minus_sgd")
            shown = _figure(difference, row.get(f"{m}_minus_sgd_se"), "+")
            counted = "" if difference is None else f"  {row[f'{m}_improved']}/{row['datasets']}"
            cells.append("" if row["rule"] == "sgd" else shown + counted)
        grid.add_row(*(group if group != before else ("", "", "")), row["rule"], *cells)
        before = group
    console.print(grid)
    console.print(
        "Percent, last epoch: mean over data sets ± standard deviation of that mean over seeds. "
        "Differences are paired by data set and seed:\nmean over data sets ± standard error, and "
        "on how many data sets the difference is above zero.",
        style="dim",
    )
    lost = [row for row in summary if row["diverged"]]
    for row in lost:
        console.print(
            f"{row['method']} under {row['rule']} ({row['protocol']}, {row['label_ratio']:g}): "
            f"{row['diverged']} of {row['datasets'] * row['seeds']} runs diverged (scores that are "
            "not finite); lower --lr",
            style="bold",
        )

    grid = Grid(
        title="Table 4 of the paper (AUROC %, 25% labels), as quoted | mean of the subsets here",
        box=box.SIMPLE_HEAD,
    )
    for name in ("method", "rule", "protocol here"):
        grid.add_column(name, no_wrap=True)
    for name in (*_FAMILIES, "average of five"):
        grid.add_column(name, justify="right")
    for row in quoted:
        cells = []
        for family in _FAMILIES:
            cell = row[family]
            subsets = f" ({cell['subsets']})" if cell["subsets"] else ""
            cells.append(f"{cell['paper']:.1f} | {_figure(cell['here'])}{subsets}")
        cells.append(f"{row['average']['paper']:.1f}")
        grid.add_row(row["method"], row["rule"], row["protocol"], *cells)
    console.print(grid)
    console.print(
        "In brackets: subsets trained here. The paper's levels do not come out of ADBench's own "
        "code and protocol either; they are quoted, not a target.",
        style="dim",
    )


def draw_curves(path: Path, summary: Sequence[dict[str, Any]], protocol: str) -> None:
    """Average precision of anomalies and of normals over the label ratio (the paper's Fig. 5)."""
    from matplotlib.figure import Figure

    rows = [row for row in summary if row["protocol"] == protocol]
    colours = dict(zip(RULES, ("#7f7f7f", "#1f77b4", "#d62728"), strict=True))
    styles = dict(zip(METHODS, (("--", "s"), ("-", "o")), strict=True))
    lines = list(dict.fromkeys((row["method"], row["rule"]) for row in rows))
    ratios = sorted({100 * row["label_ratio"] for row in rows})
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, metric in zip(axes, ("ap_anomaly", "ap_normal"), strict=True):
        axis.set_xscale("log")
        for k, (method, rule) in enumerate(lines):
            mine = [row for row in rows if (row["method"], row["rule"]) == (method, rule)]
            mine = sorted(mine, key=lambda row: row["label_ratio"])
            line, marker = styles[method]
            beside = 1.03 ** (k - (len(lines) - 1) / 2)  # so that bars do not hide each other
            axis.errorbar(
                [100 * row["label_ratio"] * beside for row in mine],
                [math.nan if row[metric] is None else row[metric] for row in mine],
                yerr=[row[f"{metric}_sd"] or 0 for row in mine],
                linestyle=line, marker=marker, markersize=4, capsize=2, linewidth=1,
                color=colours[rule], label=f"{method} {rule}",
            )  # fmt: skip
        axis.set_xlim(ratios[0] / 1.3, ratios[-1] * 1.3)
        axis.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
        axis.minorticks_off()
        axis.set_xlabel("labelled part of the training anomalies (%)")
        axis.set_ylabel(f"average precision of {_SIDES[metric]} (%)")
    axes[0].legend(fontsize=8)
    figure.suptitle(
        f"{protocol} protocol, mean over {rows[0]['datasets']} data sets; bars: standard deviation "
        f"over {rows[0]['seeds']} seeds",
        fontsize=9,
    )
    figure.savefig(path, dpi=150)


def write_runs(path: Path, results: Sequence[Result]) -> None:
    """A row a run, under COLUMNS."""
    from experiments import folders

    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for r in results:
        figures = [f"{getattr(r, name):.4f}" for name in COLUMNS[6:]]
        writer.writerow(
            [r.dataset, r.method, r.rule, r.seed, f"{r.label_ratio:g}", r.protocol, *figures]
        )
    folders.replace_text(path, text.getvalue())


# --------------------------------------------------------------------------------------------- main


def check(args: argparse.Namespace) -> None:
    """Refuses numbers outside their range, before anything is read."""
    for flag in ("method", "rule", "protocol", "seeds", "label_ratio", "datasets"):
        values = getattr(args, flag) or []
        twice = [value for value in dict.fromkeys(values) if values.count(value) > 1]
        if twice:
            raise RunError(f"--{flag.replace('_', '-')} names {twice[0]} twice")
    for ratio in args.label_ratio:
        if not 0 < ratio <= 1:
            raise RunError(f"--label-ratio must be over 0 and at most 1, got {ratio:g}")
    for seed in args.seeds:
        if not 0 <= seed < 2**32 - 20000:
            raise RunError(f"--seeds must be at least 0 and below 2**32 - 20000, got {seed}")
    if not (math.isfinite(args.lr) and args.lr > 0):
        raise RunError(f"--lr must be a positive number, got {args.lr:g}")
    if not (math.isfinite(args.rho) and args.rho >= 0):
        raise RunError(f"--rho must be at least 0, got {args.rho:g}")
    if args.epochs < 1:
        raise RunError(f"--epochs must be at least 1, got {args.epochs}")


def main(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    from experiments import folders

    began = time.perf_counter()
    check(args)
    out = Path(args.out)
    if (out / "runs.csv").exists() and not args.overwrite:
        raise RunError(f"{out} already holds a runs.csv: pass --overwrite, or choose another --out")
    tables = load_tables(args.data_dir, args.datasets)
    jobs = plan(tables, seeds=args.seeds, label_ratios=args.label_ratio, protocols=args.protocol)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write to {out}: {error.strerror}") from error
    cli.use_compilation_cache()

    results: list[Result] = []
    seconds: dict[str, Any] = {}
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("runs"),
        TimeLeft(), console=console, disable=not console.is_terminal, transient=True,
    ) as bar:  # fmt: skip
        for method in args.method:
            shown = bar.add_task(method, total=len(jobs) * len(args.rule))
            start = time.perf_counter()
            found, spent = train(
                jobs, method=method, rules=args.rule, optimizer=args.optimizer, lr=args.lr,
                rho=args.rho, epochs=args.epochs, advance=partial(bar.advance, shown),
            )  # fmt: skip
            results += found
            seconds[method] = {**spent._asdict(), "total": time.perf_counter() - start}

    names = [table.name for table in tables]
    results.sort(
        key=lambda r: (
            args.protocol.index(r.protocol), r.label_ratio, args.method.index(r.method),
            names.index(r.dataset), args.rule.index(r.rule), args.seeds.index(r.seed),
        )
    )  # fmt: skip
    summary, quoted = summarise(results, args.rule), families(results)
    settings = {key: value for key, value in vars(args).items() if key != "overwrite"}
    if args.data_dir:  # where it lies on this machine is nobody else's business
        settings["data_dir"] = Path(args.data_dir).resolve().name
    run = {"command": folders.command_line(), **folders.environment()}
    seconds["total"] = time.perf_counter() - began
    try:
        write_runs(out / "runs.csv", results)
        folders.write_json(out / "config.json", {**settings, "datasets": names, **run})
        whole = {"groups": summary, "paper_table_4": quoted, "seconds": seconds}
        folders.write_json(out / "summary.json", whole)
        for protocol in args.protocol:
            draw_curves(out / f"curves_{protocol}.png", summary, protocol)
    except OSError as error:
        raise RunError(f"cannot write to {out}: {error.strerror}") from error
    what = "" if args.rule == ["sgd"] else f", rho {args.rho:g}"
    title = f"{len(names)} data sets, {len(args.seeds)} seeds, {args.optimizer}, lr {args.lr:g}"
    show(summary, quoted, f"{title}{what}, {args.epochs} epochs")
    waited = sum(seconds[method]["compiling"] for method in args.method)
    print(
        f"{len(results)} runs in {seconds['total']:.1f} s, {waited:.1f} s of it waiting for the "
        f"compiler; runs.csv, summary.json and curves are in {out}"
    )


if __name__ == "__main__":
    cli.run(main, arguments().parse_args())
