"""The detectors of a folder of `anomaly --save`: labelled anomalies are the tail.

Their losses are the methods' own, of rows that do not see each other: batch normalisation takes the
running statistics. A detector has scores and no classes, so that there is no accuracy.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.analysis import own
from experiments.analysis.subjects import Subject, alike, rows_by_class
from experiments.anomaly import networks
from experiments.anomaly.nets import ANOMALY_NETS
from experiments.anomaly.program import make_rule
from experiments.anomaly.report import read_runs, run_of
from experiments.anomaly.tables import load_tables, scaled
from experiments.anomaly.training import Case, draw_cases
from experiments.host.errors import RunError
from experiments.step.methods import Tabled

TAIL = np.array([False, True])


def of_anomalies(path: Path, config: dict[str, Any], data_dir: str | None) -> list[Subject]:
    """The runs of a folder, seeds of one data set together where their labels agree.

    Args:
      data_dir: the folder of its data sets; None for scikit-learn's.

    Raises:
      RunError: it was written without --save, is damaged, or its files are of different runs.
      DataError: data cannot be read, or are others than were trained on.
    """
    if not (path / networks.FOLDER).is_dir():
        raise RunError(f"{path} holds no parameters: train it again with --save, which keeps them")
    results = read_runs(path, config)
    networks.check(path, len(results))
    tables = load_tables(data_dir, config["datasets"])
    cases = {
        (case.table.name, case.protocol, f"{case.label_ratio:g}", str(case.seed)): case
        for case in draw_cases(
            tables, seeds=config["seeds"], label_ratios=config["label_ratio"],
            protocols=config["protocol"],
        )
    }  # fmt: skip
    found: dict[Any, list[Subject]] = {}
    for number, result in enumerate(results):
        line = run_of(result)
        case = cases[line["dataset"], line["protocol"], line["label_ratio"], line["seed"]]
        held = networks.read(path, number, result, config, case)
        if not all(np.isfinite(leaf).all() for leaf in held["params"].values()):
            continue  # it diverged
        one = _subject(str(path), line, held, case, config)
        key = line["dataset"], line["protocol"], line["label_ratio"], line["method"], line["rule"]
        found.setdefault(key, []).append(one)
    return [subject for ones in found.values() for subject in alike(ones)]


def _subject(
    path: str, line: dict[str, str], held: Any, case: Case, config: dict[str, Any]
) -> Subject:
    net, rule = ANOMALY_NETS[line["method"]](), line["rule"]
    arrays = scaled(case.table, case.drawn)
    _, fixed, _ = net.init(case.seed, arrays.train)
    counts = np.bincount(case.drawn.train_labels, minlength=2)
    rule_args = {} if rule == "sgd" else {"rho": config["rho"]}
    description = {
        "rule": rule, "rule_args": rule_args, "ascent": {}, "loss": line["method"],
        "loss_args": {}, "stage2": None, "stage2_args": {},
        "on": f"{line['dataset']} {line['protocol']} {line['label_ratio']}",
        "setting": {
            "experiment": "anomaly",
            **{name: config[name] for name in ("optimizer", "lr", "epochs")},
            **{name: line[name] for name in ("dataset", "protocol", "label_ratio")},
        },
    }  # fmt: skip
    # Batches of DevNet are half anomalies, whatever there are.
    seen = counts.sum() / (2 * counts) if line["method"] == "devnet" else np.ones(2)
    method = Tabled(make_rule(rule, config["rho"]))
    moved = own.of_method(method, 0, {"rule": rule, "rule_args": rule_args}, seen=seen)
    variables = jax.tree.map(lambda x: np.asarray(x)[None], {**held, "fixed": fixed})
    train = rows_by_class(arrays.train, case.drawn.train_labels.astype(np.int32))
    test = rows_by_class(arrays.test, case.drawn.test_labels.astype(np.int32))
    return Subject(
        path, description, [case.seed], config["epochs"], variables, _as_it_is, train, test,
        counts, None, own=moved, loss=_loss(line["method"]), tail=TAIL,
    )  # fmt: skip


def _as_it_is(variables: Any, x: Any) -> Any:
    """What a loss of a method takes: there is no output that all of them share."""
    return variables, x


@functools.cache
def _loss(method: str) -> Any:
    net = ANOMALY_NETS[method]()

    def loss(outputs: Any, labels: Any) -> Any:
        variables, x = outputs
        return net.settled(variables["params"], x, labels, variables["fixed"], variables["state"])

    return loss
