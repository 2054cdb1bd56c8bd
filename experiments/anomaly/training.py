"""Training of anomaly detectors: which runs go side by side, and what they end at.

A run is a method under a rule on a case, which is one split of one data set. The runs are mapped
over, padded to one shape, and spread over the devices.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.anomaly.program import Runs, make_program, measure, mesh
from experiments.anomaly.tables import Arrays, Split, Table, scaled, split

METHODS = ("devnet", "deepsad")

# A batch of runs is trained side by side on each device: few on a CPU, whose caches then hold
# them, many on an accelerator.
_RUNS_PER_DEVICE = {"cpu": 3}
_RUNS_PER_ACCELERATOR = 64


class Case(NamedTuple):
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


# How many of the fields say which run it is.
RUN = 6


def draw_cases(
    tables: Sequence[Table], *, seeds: Sequence[int], label_ratios: Sequence[float],
    protocols: Sequence[str],
) -> list[Case]:  # fmt: skip
    """Every split, drawn before anything is trained, so that bad data is found now.

    Raises:
      DataError: a split cannot be made; the message names the file.
    """
    cases = []
    for protocol in protocols:
        for ratio in [1.0] if protocol == "full" else label_ratios:
            for table in tables:
                for seed in seeds:
                    drawn = split(table, seed=seed, label_ratio=ratio, protocol=protocol)
                    cases.append(Case(table, seed, ratio, protocol, drawn))
    return cases


class _Task(NamedTuple):
    """A case as a method sees it: how long it trains, in what shape of batch."""

    case: Case
    steps: int
    shape: tuple[int, int]  # (features, rows of a batch): what a compiled program is made for


class Seconds(NamedTuple):
    """Wall time of `train`, by what it went into; compiling is what nothing else overlapped."""

    compiling: float
    training: float
    preparing: float


def train(
    cases: Sequence[Case], *, method: str, rules: Sequence[str], optimizer: str, lr: float,
    rho: float, epochs: int, advance: Callable[[int, float], Any] = lambda runs, seconds: None,
    kept: dict[tuple[Any, ...], Any] | None = None,
) -> tuple[list[Result], Seconds]:  # fmt: skip
    """Train one method on every case under every rule.

    Args:
      cases: what `draw_cases` made.
      method: one of METHODS.
      rules: of RULES.
      optimizer: one of OPTIMIZERS.
      lr: learning rate.
      rho: radius of sam and imbsam.
      epochs: at least 1.
      advance: called with the number of runs that have just ended, and the seconds they took.
      kept: gets (parameters, state) of every run, by what its Result begins with: `RUN` fields.

    Returns:
      One Result a case and rule, and the wall time. A Result's seconds are its share of the time
      its batch of runs was trained in, compilation excluded.
    """
    import jax

    from experiments.anomaly.nets import ANOMALY_NETS

    net = ANOMALY_NETS[method]()
    tasks = [_task(net, case, epochs) for case in cases]
    devices = _devices(len(tasks))
    count = _at_once(devices, len(tasks))
    spread = jax.sharding.NamedSharding(mesh(devices), jax.sharding.PartitionSpec("runs"))

    def compiled(rule: str, runs: Runs, numbers: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            program = make_program(net, rule, optimizer, devices, keep=kept is not None)
            return program.lower(runs, *numbers).compile()

    results: list[Result] = []
    spent = _Spent()
    with ThreadPoolExecutor() as pool:
        for shape in dict.fromkeys(task.shape for task in tasks):
            alike = [task for task in tasks if task.shape == shape]
            programs: dict[str, Any] = {}
            for part in _parts(alike, count):
                with spent.on("preparing"):
                    runs = _side_by_side(net, part, alike, count, epochs)
                    tested = (runs.test_labels, runs.test_real)
                    runs = jax.block_until_ready(jax.device_put(runs, spread))
                    numbers = (np.int32(part[0].steps), np.float32(lr), np.float32(rho))
                    if not programs:
                        # The later rules are compiled while the first trains.
                        programs = {
                            rule: pool.submit(compiled, rule, runs, numbers) for rule in rules
                        }
                        measured = pool.submit(_measure_compiled, *tested)
                for rule in rules:
                    with spent.on("compiling"):
                        program, metrics = programs[rule].result(), measured.result()
                    with spent.on("training"):
                        scores, ended = jax.device_get(program(runs, *numbers))
                        found = jax.device_get(metrics(scores, *tested))
                    ours = _results(part, method, rule, found, spent.last)
                    results += ours
                    if kept is not None:
                        for k, result in enumerate(ours):
                            kept[result[:RUN]] = jax.tree.map(lambda x, k=k: x[k], ended)
                    advance(len(part), spent.last)
    return results, Seconds(**spent.seconds)


class _Spent:
    """Wall time by what it went into, and that of the last piece of work."""

    last: float

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(Seconds._fields, 0.0)

    @contextlib.contextmanager
    def on(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.last = time.perf_counter() - began
        self.seconds[what] += self.last


def _task(net: Any, case: Case, epochs: int) -> _Task:
    steps = epochs * net.steps_per_epoch(len(case.drawn.train_rows))
    batch = net.batches(case.seed, case.drawn.train_labels, 1).shape[1]
    return _Task(case, steps, (case.table.features.shape[1], batch))


def _measure_compiled(labels: NDArray[Any], real: NDArray[Any]) -> Any:
    """`measure` for runs with test rows like these."""
    import jax

    scores = jax.ShapeDtypeStruct(labels.shape, np.float32)
    return jax.jit(measure).lower(scores, labels, real).compile()


def _results(
    part: Sequence[_Task], method: str, rule: str, measured: Any, took: float
) -> list[Result]:
    """One for each case of a batch of runs; what was measured is [R] each, padding at the end."""
    results = []
    for k, (case, *_) in enumerate(part):
        auroc, anomaly, normal = (100 * float(values[k]) for values in measured)
        what = (case.table.name, method, rule, case.seed, case.label_ratio, case.protocol)
        results.append(Result(*what, auroc, anomaly, normal, took / len(part)))
    return results


def _devices(runs: int) -> list[Any]:
    """Devices to spread the runs over; a CPU gives one a core, if JAX has not started yet."""
    import jax

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with contextlib.suppress(AttributeError, RuntimeError):  # where a backend runs already
        jax.config.update("jax_num_cpu_devices", cores)
    devices = jax.local_devices()
    most = cores if devices[0].platform == "cpu" else len(devices)
    return devices[: max(1, min(most or 1, runs))]


def _at_once(devices: Sequence[Any], runs: int) -> int:
    """How many runs a program trains side by side, on each device as many."""
    most = _RUNS_PER_DEVICE.get(devices[0].platform, _RUNS_PER_ACCELERATOR)
    return min(most, math.ceil(runs / len(devices))) * len(devices)


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

    n = max(len(task.case.drawn.train_rows) for task in alike)
    m = max(len(task.case.drawn.test_rows) for task in alike)
    steps = max(task.steps for task in alike)
    runs = []
    for task in part:
        case = task.case
        arrays: Arrays = scaled(case.table, case.drawn)
        params, fixed, state = net.init(case.seed, arrays.train)
        run = Runs(
            params=params,
            fixed=fixed,
            state=state,
            train=_padded(arrays.train, n),
            labels=_padded(case.drawn.train_labels.astype(np.int32), n),
            order=_padded(net.batches(case.seed, case.drawn.train_labels, epochs), steps),
            test=_padded(arrays.test, m),
            test_labels=_padded(case.drawn.test_labels.astype(np.int32), m),
            test_real=np.arange(m) < len(arrays.test),
        )
        runs.append(run)
    runs += [runs[-1]] * (count - len(runs))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *runs)


def _padded(array: NDArray[Any], length: int) -> NDArray[Any]:
    result = np.zeros((length, *array.shape[1:]), array.dtype)
    result[: len(array)] = array
    return result
