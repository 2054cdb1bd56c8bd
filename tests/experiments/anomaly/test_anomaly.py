"""Anomaly detection: ADBench's splits, the trajectory of training, the table, the command."""

import contextlib
import csv
import io
import json
import math
import os
import unittest.mock
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import train_test_split

import reference_anomaly
from experiments.anomaly import command as anomaly
from experiments.anomaly import report as anomaly_report
from experiments.anomaly import training as anomaly_training
from experiments.anomaly.nets import ANOMALY_NETS
from experiments.anomaly.tables import Split, Table, load_tables, scaled, split
from experiments.host import cli
from places import ROOT


def _table(n: int, anomalies: int, width: int = 6, seed: int = 0, name: str = "t") -> Table:
    """Anomalies lie off the normals, so that a few steps learn something."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(n, np.int64)
    labels[rng.permutation(n)[:anomalies]] = 1
    features = rng.normal(size=(n, width)) + 1.5 * labels[:, None] * rng.normal(size=width)
    return Table(name, f"{name}.npz", features.astype(np.float32), labels)


@pytest.fixture(scope="session")
def adbench_dir() -> str:
    found = os.environ.get("ADBENCH_DIR")
    if not found:
        pytest.skip("ADBENCH_DIR is not set: no ADBench features to read")
    return found


@pytest.fixture(scope="session")
def recorded(adbench_dir: str) -> Iterator[Any]:
    """Splits that ADBench's own generator drew, by NAME__seedS__[nodup__]KEY."""
    found = os.environ.get("ADBENCH_SPLITS")
    if not found:
        pytest.skip("ADBENCH_SPLITS is not set: no recorded splits to compare with")
    with np.load(found) as file:
        yield file


# ------------------------------------------------------------------------------------------ splits


@pytest.mark.parametrize("n", [300, 2000, 10400])
@pytest.mark.parametrize("seed", [0, 7])
def test_split_draws_what_numpys_global_generator_draws(n: int, seed: int) -> None:
    table = _table(n, n // 9, width=1)
    before = np.random.get_state()
    np.random.seed(seed)  # what ADBench does, in its order
    rows = np.arange(n)
    if n < 1000:
        np.random.seed(seed)
        rows = np.random.choice(n, 1000, replace=True)
    if n > 10000:
        np.random.seed(seed)
        rows = np.random.choice(n, 10000, replace=False)
    x, y = rows[:, None], table.labels[rows]
    x_train, x_test, y_train, y_test = train_test_split(
        x, y, test_size=0.3, shuffle=True, stratify=y
    )
    anomalies = np.where(y_train == 1)[0]
    labelled = np.random.choice(anomalies, math.ceil(0.25 * len(anomalies)), replace=False)
    np.random.set_state(before)

    found = split(table, seed=seed, label_ratio=0.25)
    np.testing.assert_array_equal(found.train_rows, x_train[:, 0])
    np.testing.assert_array_equal(found.test_rows, x_test[:, 0])
    np.testing.assert_array_equal(found.test_labels, y_test)
    np.testing.assert_array_equal(np.flatnonzero(found.train_labels), np.sort(labelled))
    after = np.random.get_state()
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_splits_are_those_adbench_recorded(adbench_dir: str, recorded: Any) -> None:
    compared = 0
    for table in load_tables(adbench_dir):
        for seed in range(3):
            for protocol, tag in (("adbench", ""), ("nodup", "nodup__")):
                key = f"{table.name}__seed{seed}__{tag}"
                if f"{key}train_idx" not in recorded:
                    continue  # of sets that are not resampled there is no second split
                found = split(table, seed=seed, label_ratio=0.25, protocol=protocol)
                names = ("train_idx", "train_y", "test_idx", "test_y")
                for name, values in zip(names, found, strict=True):
                    np.testing.assert_array_equal(values, recorded[key + name])
                compared += 1
    assert compared == 14 * 3 + 12 * 3


def test_protocols_differ_in_what_they_say() -> None:
    table = _table(400, 60)
    by_protocol = {p: split(table, seed=3, label_ratio=0.1, protocol=p) for p in anomaly.PROTOCOLS}
    adbench, clean, full = (by_protocol[p] for p in ("adbench", "clean", "full"))
    truth = table.labels[adbench.train_rows]
    assert adbench.train_labels.sum() == math.ceil(0.1 * truth.sum())
    assert not np.any(adbench.train_labels > truth)
    assert set(adbench.train_rows) & set(adbench.test_rows)  # copies on both sides

    kept = (truth == 0) | (adbench.train_labels == 1)
    np.testing.assert_array_equal(clean.train_rows, adbench.train_rows[kept])
    np.testing.assert_array_equal(clean.train_labels, table.labels[clean.train_rows])
    np.testing.assert_array_equal(full.train_rows, adbench.train_rows)
    np.testing.assert_array_equal(full.train_labels, truth)
    for other in (clean, full):
        np.testing.assert_array_equal(other.test_rows, adbench.test_rows)

    nodup = by_protocol["nodup"]
    rows = np.concatenate([nodup.train_rows, nodup.test_rows])
    np.testing.assert_array_equal(np.sort(rows), np.arange(400))


def test_at_least_one_anomaly_is_labelled() -> None:
    assert split(_table(2000, 40), seed=0, label_ratio=0.001).train_labels.sum() == 1
    drawn = split(_table(2000, 40), seed=0, label_ratio=1.0)
    assert drawn.train_labels.sum() == 28


def test_scaled_by_the_training_rows_alone() -> None:
    table = _table(1200, 100)
    drawn = split(table, seed=0)
    arrays = scaled(table, drawn)
    low, high = (f(table.features[drawn.train_rows], axis=0) for f in (np.min, np.max))
    expected = (table.features[drawn.test_rows] - low) / (high - low)
    assert arrays.train.dtype == arrays.test.dtype == np.float32
    assert arrays.train.min() >= 0 and arrays.train.max() <= 1 + 1e-6
    np.testing.assert_allclose(arrays.test, expected, atol=2e-6)
    assert arrays.test.max() > 1  # not clipped


def test_bundled_data_needs_no_folder() -> None:
    tables = load_tables(None)
    names = [table.name for table in tables]
    assert names == ["breast_cancer", *(f"digits_{k}" for k in range(10))]
    assert [int(t.labels.sum()) for t in tables[:2]] == [212, 178]
    assert load_tables(None, ["digits_3"])[0].features.shape == (1797, 64)


# ---------------------------------------------------------------------------------------- training


def _walk(
    method: str, rule: str, x: np.ndarray, labels: np.ndarray, seed: int, fixed: Any = None
) -> Any:
    """Losses, norms and parameters of the first 20 steps, one jitted step at a time."""
    net = ANOMALY_NETS[method]()
    params, own, state = net.init(seed, x.astype(np.float32))
    params, fixed, state = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, x.dtype), (params, fixed or own, state)
    )
    optimizer = anomaly_training.make_optimizer("sgd", 1e-3, net.decay)
    step = jax.jit(
        anomaly_training.make_step(net, anomaly_training.make_rule(rule, 0.05), optimizer)
    )
    opt_state, losses, norms = optimizer.init(params), [], {name: [] for name in params}
    for rows in net.batches(seed, labels, 50)[:20]:
        carry = step(params, opt_state, state, x[rows], labels[rows], fixed)
        params, opt_state, state, loss = carry
        losses.append(float(loss))
        for name in params:
            norms[name].append(float(np.linalg.norm(params[name])))
    return losses, norms, params


def _same_path(found: Any, path: reference_anomaly.Path, rtol: float) -> None:
    losses, norms, params = found
    np.testing.assert_allclose(losses, path.losses, rtol=rtol)
    assert norms.keys() == path.norms.keys()
    for name in norms:
        # Exactly zero at first is the bias after DevNet's balanced batches.
        np.testing.assert_allclose(norms[name], path.norms[name], rtol, 1e-9, err_msg=name)
        far = np.linalg.norm(params[name] - path.params[name])
        assert far <= rtol * np.linalg.norm(path.params[name]), name


@pytest.mark.parametrize("rule", anomaly.RULES)
@pytest.mark.parametrize("method", anomaly.METHODS)
def test_first_steps_follow_the_numpy_transcription(method: str, rule: str) -> None:
    table = load_tables(None, ["digits_8"])[0]
    drawn = split(table, seed=1)
    x, y = scaled(table, drawn).train, drawn.train_labels
    path = reference_anomaly.trajectory(method, rule, x, y, seed=1, steps=20)
    _same_path(_walk(method, rule, x, y, 1), path, rtol=1e-4)


@pytest.mark.parametrize("rule", anomaly.RULES)
@pytest.mark.parametrize("method", anomaly.METHODS)
def test_first_steps_on_a_shared_subset(
    method: str, rule: str, adbench_dir: str, recorded: Any
) -> None:
    table = load_tables(adbench_dir, ["MVTec-AD_bottle"])[0]
    key = "MVTec-AD_bottle__seed0__"
    drawn = Split(*(recorded[key + k] for k in ("train_idx", "train_y", "test_idx", "test_y")))
    x, y = scaled(table, drawn).train, drawn.train_labels.astype(np.int64)
    path = reference_anomaly.trajectory(method, rule, x, y, seed=0, steps=20)
    _same_path(_walk(method, rule, x, y, 0), path, rtol=1e-4)


@pytest.mark.parametrize("method", anomaly.METHODS)
@pytest.mark.usefixtures("x64")
def test_in_float64_the_paths_are_one(method: str) -> None:
    """What is left in float32 is rounding: leaky units that change side, and 1 / distance."""
    rule = "imbsam"
    table = load_tables(None, ["breast_cancer"])[0]
    drawn = split(table, seed=2)
    x, y = scaled(table, drawn).train.astype(np.float64), drawn.train_labels
    path = reference_anomaly.trajectory(method, rule, x, y, seed=2, steps=20)
    net = reference_anomaly.NETS[method](x, 2)
    same = {"centre": net.centre} if method == "deepsad" else {"mean": net.mean, "std": net.std}
    _, fixed, _ = ANOMALY_NETS[method]().init(2, x.astype(np.float32))
    for name in same:
        np.testing.assert_allclose(fixed[name], same[name], rtol=1e-6)
    _same_path(_walk(method, rule, x, y, 2, same), path, rtol=1e-10)


def test_rules_of_the_transcription_differ() -> None:
    """What the two tests above compare with is not one path three times."""
    table = load_tables(None, ["breast_cancer"])[0]
    drawn = split(table, seed=0)
    x, y = scaled(table, drawn).train, drawn.train_labels
    for method in anomaly.METHODS:
        ends = {
            rule: reference_anomaly.trajectory(method, rule, x, y, seed=0, steps=5).params["w1"]
            for rule in anomaly.RULES
        }
        for one, other in (("sgd", "sam"), ("sgd", "imbsam"), ("sam", "imbsam")):
            apart = np.linalg.norm(ends[one] - ends[other])
            assert apart > 1e-4 * np.linalg.norm(ends[one]), (method, one, other)


def test_imbsam_perturbs_labelled_anomalies_also_where_they_are_many() -> None:
    table = anomaly_training.make_rule("imbsam", 0.3)(None)
    assert table.base.tolist() == [1, 0]
    assert table.groups.tolist() == [[0, 1]]
    assert table.radii.tolist() == [0.3]


@pytest.mark.parametrize("name", ["adam", "rmsprop"])
def test_optimizers_are_those_of_the_protocol(name: str) -> None:
    rng = np.random.default_rng(0)
    p = rng.normal(size=(3, 4)).astype(np.float32)
    grads = [scale * rng.normal(size=(3, 4)).astype(np.float32) for scale in (5.0, 0.01, 1.0)]
    tx = anomaly_training.make_optimizer(name, 0.1, {"w": 0.02})
    params = {"w": jnp.asarray(p)}
    state = tx.init(params)
    m, v, expected = np.zeros_like(p), np.zeros_like(p), p
    for t, grad in enumerate(grads, start=1):
        updates, state = tx.update({"w": jnp.asarray(grad)}, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        g = grad + 0.02 * expected
        if name == "adam":
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.999**t)
            expected = expected - 0.1 * m_hat / (np.sqrt(v_hat) + 1e-8)
        else:
            g = g / max(1.0, float(np.linalg.norm(g)))
            v = 0.9 * v + 0.1 * g**2
            expected = expected - 0.1 * g / (np.sqrt(v) + 1e-7)
        np.testing.assert_allclose(params["w"], expected, rtol=1e-5, atol=2e-6)


def test_runs_side_by_side_are_those_alone() -> None:
    """Data sets of other lengths, padded into one program, against a plain loop over steps."""
    method = "deepsad"
    tables = [_table(n, n // 8, name=f"t{n}") for n in (1100, 1500)]
    cases = anomaly.draw_cases(tables, seeds=[4, 5], label_ratios=[0.5], protocols=["adbench"])
    found, seconds = anomaly.train(
        cases, method=method, rules=["imbsam"], optimizer="sgd", lr=1e-3, rho=0.05, epochs=2
    )
    assert sorted((r.dataset, r.seed) for r in found) == [
        ("t1100", 4), ("t1100", 5), ("t1500", 4), ("t1500", 5),
    ]  # fmt: skip
    assert seconds.training > 0 and all(r.seconds > 0 for r in found)
    for case in (cases[1], cases[2]):
        result = next(r for r in found if (r.dataset, r.seed) == (case.table.name, case.seed))
        net = ANOMALY_NETS[method]()
        arrays = scaled(case.table, case.drawn)
        params, fixed, state = net.init(case.seed, arrays.train)
        optimizer = anomaly_training.make_optimizer("sgd", 1e-3, net.decay)
        step = jax.jit(
            anomaly_training.make_step(net, anomaly_training.make_rule("imbsam", 0.05), optimizer)
        )
        opt_state = optimizer.init(params)
        for rows in net.batches(case.seed, case.drawn.train_labels, 2):
            labels = case.drawn.train_labels[rows]
            carry = step(params, opt_state, state, arrays.train[rows], labels, fixed)
            params, opt_state, state, _ = carry
        y, s = case.drawn.test_labels, np.asarray(net.scores(params, arrays.test, fixed, state))
        expected = (
            roc_auc_score(y, s),
            average_precision_score(y, s),
            average_precision_score(1 - y, -s),
        )
        ours = (result.auroc, result.ap_anomaly, result.ap_normal)
        np.testing.assert_allclose(ours, 100 * np.array(expected), atol=0.05)


def test_fewer_rows_than_a_batch_are_one_batch() -> None:
    net = ANOMALY_NETS["deepsad"]()
    assert net.batches(0, np.zeros(71), 3).shape == (3, 71)
    assert net.steps_per_epoch(71) == 1
    assert net.batches(0, np.zeros(700), 2).shape == (10, 128)
    assert net.steps_per_epoch(700) == 5


# ------------------------------------------------------------------------------------------- table


def _result(dataset: str, rule: str, seed: int, auroc: float, **other: Any) -> anomaly.Result:
    values = {"method": "deepsad", "label_ratio": 0.25, "protocol": "adbench", **other}
    return anomaly.Result(
        dataset=dataset, rule=rule, seed=seed, auroc=auroc, ap_anomaly=50.0, ap_normal=90.0,
        seconds=1.0, **values,
    )  # fmt: skip


@pytest.mark.parametrize("width", [None, "80"])
def test_tables_are_readable_at_80_columns(
    width: str | None, capsys: Any, monkeypatch: Any
) -> None:
    """Nothing is cut, folded or left out; every protocol, method and rule, wide figures."""
    if width is not None:
        monkeypatch.setenv("COLUMNS", width)
    results = [
        _result(name, rule, seed, 10.0 * seed + len(rule), method=method, protocol=protocol)
        for name in ("CIFAR10_0", "FashionMNIST_1", "MNIST-C_2", "MVTec-AD_3", "SVHN_4")
        for method in anomaly.METHODS
        for rule in anomaly.RULES
        for seed in (0, 9)
        for protocol in ("adbench", "clean")
    ]
    summary = anomaly_report.summarise(results, anomaly.RULES)
    anomaly_report.show(summary, anomaly_report.families(results), "title")
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80 and "…" not in shown
    figures = shown.split("Percent, last epoch")[0]
    assert figures.count("- SGD") == 2 * 2 * 2
    for row in summary:
        mean = f"{row['auroc']:.2f} ± {row['auroc_sd']:.2f}"
        assert mean in figures
        if row["rule"] != "sgd":
            assert f"{row['auroc_minus_sgd']:+.2f} ± {row['auroc_minus_sgd_se']:.2f} " in figures
    for name in ("adbench protocol, 25%", "clean protocol, 25%", "AP anomaly", "deepsad"):
        assert name in figures
    assert "  clean" in shown and "(1)" in shown and "92.2" in shown


def test_summary_pairs_by_data_set() -> None:
    sgd = {("a", 0): 70.0, ("a", 1): 72.0, ("b", 0): 90.0, ("b", 1): 94.0}
    sam = {("a", 0): 74.0, ("a", 1): 74.0, ("b", 0): 91.0, ("b", 1): 92.0}
    results = [_result(d, "sgd", s, x) for (d, s), x in sgd.items()]
    results += [_result(d, "sam", s, x) for (d, s), x in sam.items()]
    plain, sharp = anomaly.summarise(results, ["sgd", "sam"])
    assert plain["auroc"] == pytest.approx(81.5)
    assert plain["auroc_sd"] == pytest.approx(np.std([80, 83], ddof=1))
    assert "auroc_minus_sgd" not in plain
    # by data set: (4 + 2) / 2 and (1 - 2) / 2
    assert sharp["auroc_minus_sgd"] == pytest.approx(1.25)
    assert sharp["auroc_minus_sgd_se"] == pytest.approx(np.std([3, -0.5], ddof=1) / math.sqrt(2))
    assert (sharp["auroc_improved"], sharp["datasets"], sharp["seeds"]) == (1, 2, 2)
    assert sharp["ap_anomaly_improved"] == 0


def test_a_tie_within_rounding_is_no_win() -> None:
    """The same ranking, by two programs: their sums differ in the last bit."""
    seeds = dict(enumerate((70.1, 80.2, 90.4)))
    results = [_result("a", "sgd", s, x) for s, x in seeds.items()]
    results += [_result("a", "sam", s, math.nextafter(x, 100)) for s, x in seeds.items()]
    results += [_result("a", "imbsam", s, x + 1e-6) for s, x in seeds.items()]
    _, tied, better = anomaly.summarise(results, ["sgd", "sam", "imbsam"])
    assert 0 < tied["auroc_minus_sgd"] < 1e-12  # what a plain comparison counts as higher
    assert (tied["auroc_improved"], better["auroc_improved"]) == (0, 1)


def test_holms_correction_by_hand() -> None:
    # Sorted: .005, .01, .03, .04 times 4, 3, 2, 1, never falling.
    found = anomaly_report.holm([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(found, [0.03, 0.06, 0.06, 0.02])
    assert anomaly_report.holm([]).size == 0 and anomaly_report.holm([0.9, 0.8]).tolist() == [1, 1]


def test_what_stands_is_said_with_the_number_of_tests(capsys: pytest.CaptureFixture[str]) -> None:
    from scipy import stats

    gains = np.array([2.0, 3.1, 2.4, 2.9, 2.2, 3.3]), np.array([2.0, -1.1, 1.4, -0.9, 0.2, -1.3])
    results = [
        _result(str(d), rule, 0, 70 + x)
        for rule, values in zip(("sgd", "sam", "imbsam"), (np.zeros(6), *gains), strict=True)
        for d, x in enumerate(values)
    ]
    summary = anomaly.summarise(results, ["sgd", "sam", "imbsam"])
    left, number = anomaly_report.standing(summary, ["auroc"])
    p = [stats.ttest_1samp(x, 0).pvalue for x in gains]
    assert number == 2 and p[0] < 0.01 < 0.1 < p[1]
    ((row, metric, corrected),) = left
    assert (row["rule"], metric) == ("sam", "auroc") and corrected == pytest.approx(2 * p[0])
    # Precisions are all equal here: differences without spread are not tested.
    assert anomaly_report.standing(summary)[1] == 2
    anomaly_report.show(summary, [], "")
    shown = " ".join(capsys.readouterr().out.split())
    assert "Of these 2 differences 1 stands at 5%" in shown
    assert "(Holm): deepsad sam AUROC (adbench, 25%)" in shown


def test_the_table_fits_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    file = ROOT / "results" / "anomaly" / "protocol" / "summary.json"
    found = json.loads(file.read_text())
    anomaly_report.show(found["groups"], found["paper_table_4"], "title")
    shown = capsys.readouterr().out
    # Not the sentences: a file has no edge to wrap them at.
    table = [line.rstrip() for line in shown.splitlines() if "/14" in line or " (12)" in line]
    assert len(table) == 12 + 18 and max(map(len, table)) <= 80
    for part in ("97.59 ± 0.31", "+0.29 ± 0.32 4/14", "91.7 (12)", "MVTec-"):
        assert part in shown


def test_summary_never_hides_a_diverged_run() -> None:
    results = [_result("a", "sgd", 0, 70.0), _result("a", "sam", 0, math.nan)]
    plain, sharp = anomaly.summarise(results, ["sgd", "sam"])
    assert (plain["auroc"], plain["auroc_sd"], plain["diverged"]) == (70.0, None, 0)
    assert (sharp["auroc"], sharp["auroc_minus_sgd"], sharp["diverged"]) == (None, None, 1)
    json.dumps([plain, sharp], allow_nan=False)


def test_table_4_is_quoted_beside_the_families_trained_here() -> None:
    results = [_result("MVTec-AD_x", "sam", s, x) for s, x in ((0, 80.0), (1, 82.0))]
    results += [_result("SVHN_0", "sam", 0, 60.0, label_ratio=0.5)]
    rows = {(r["method"], r["rule"]): r for r in anomaly.families(results)}
    cell = rows["deepsad", "sam"]["MVTec-AD"]
    assert cell == {"paper": 91.3, "here": 81.0, "subsets": 1}
    assert rows["deepsad", "sam"]["SVHN"]["here"] is None  # not at 25% labels
    assert rows["devnet", "imbsam"]["average"]["paper"] == 92.2


# ----------------------------------------------------------------------------------------- command


def _save(folder: Path, name: str, n: int = 1000, anomalies: int = 80, **arrays: Any) -> Path:
    table = _table(n, anomalies, name=name)
    path = folder / f"{name}.npz"
    np.savez(path, **{"X": table.features, "y": table.labels, **arrays})
    return path


def _run(*args: Any) -> tuple[int, str, str]:
    """Exit code, standard output and error of the command, in this process."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        unittest.mock.patch.dict(os.environ),
    ):
        os.environ.pop("ADBENCH_DIR", None)
        try:
            parsed = anomaly.arguments().parse_args([str(arg) for arg in args])
            cli.run(anomaly.main, parsed)
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.getvalue(), err.getvalue()


def _rows(out: Path) -> list[dict[str, str]]:
    with open(out / "runs.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_command_from_data_to_files(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    for k, name in enumerate(("b_set", "a_set")):
        _save(data, name, n=1000 + 40 * k)
    args = (
        "--data-dir", data, "--method", "devnet", "--rule", "sgd", "imbsam", "--epochs", 1,
        "--seeds", 3, 1, "--label-ratio", 0.5, 0.1, "--protocol", "adbench", "full", "--out", out,
    )  # fmt: skip
    code, shown, _ = _run(*args)
    assert code == 0
    for part in ("adbench", "full", "imbsam", "AUROC", " - SGD ", "Table 4", "88.7", "24 runs in"):
        assert part in shown, part
    rows = _rows(out)
    assert list(rows[0]) == list(anomaly.Result._fields) == [
        "dataset", "method", "rule", "seed", "label_ratio", "protocol",
        "auroc", "ap_anomaly", "ap_normal", "seconds",
    ]  # fmt: skip
    assert len(rows) == 2 * 2 * 2 * (2 + 1)
    assert {(r["protocol"], r["label_ratio"]) for r in rows} == {
        ("adbench", "0.1"), ("adbench", "0.5"), ("full", "1"),
    }  # fmt: skip
    assert all(0 <= float(r[m]) <= 100 for r in rows for m in anomaly_report.METRICS)
    assert all(
        (out / f"curves_{p}.png").read_bytes()[:4] == b"\x89PNG" for p in ("adbench", "full")
    )
    config = json.loads((out / "config.json").read_text())
    assert (config["datasets"], config["rho"]) == (["a_set", "b_set"], 0.05)
    assert config["data_dir"] == "data"
    assert {"command", "device", "versions", "git"} <= config.keys()
    summary = json.loads((out / "summary.json").read_text())
    assert len(summary["groups"]) == 3 * 2
    assert summary["groups"][1]["auroc_minus_sgd_se"] is not None

    code, _, error = _run(*args)
    assert code == 1 and "already holds a runs.csv" in error.splitlines()[-1]
    code, _, _ = _run(*args, "--overwrite")
    assert code == 0
    again = _rows(out)
    for one, other in zip(rows, again, strict=True):  # bitwise the same, but for the clock
        assert {**one, "seconds": ""} == {**other, "seconds": ""}


def _broken(folder: Path) -> dict[str, dict[str, Any]]:
    table = _table(1000, 80)
    features, labels = table.features.copy(), table.labels
    features[5, 2] = np.nan
    return {
        "lacks X": {"y": labels},
        "lacks y": {"X": table.features},
        "holds 2": {"X": table.features, "y": labels * 2},
        "holds -1": {"X": table.features, "y": np.where(labels == 1, 1, -1)},
        "X[5, 2] is nan": {"X": features, "y": labels},
        "one label for each": {"X": table.features, "y": labels[:-1]},
        "matrix of real numbers": {"X": table.features[:, 0], "y": labels},
        "0 anomalies": {"X": table.features, "y": np.zeros(1000, int)},
        "1 anomalies": {"X": table.features, "y": np.eye(1000, dtype=int)[0]},
        "0 normal": {"X": table.features, "y": np.ones(1000, int)},
    }


@pytest.mark.parametrize("what", list(_broken(Path())))
def test_bad_data_is_named_before_training(what: str, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    _save(data, "a_good_one")
    np.savez(data / "bad_one.npz", **_broken(tmp_path)[what])
    code, shown, error = _run("--data-dir", data, "--out", out)
    assert code == 1 and not shown
    assert error.count("\n") == 1 and error.startswith("error: ")
    assert str(data / "bad_one.npz") in error and what in error
    assert not out.exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--label-ratio", "0"], "--label-ratio must be finite and over 0 and at most 1, got 0"),
        (["--label-ratio", "0.5", "1.5"], "got 1.5"),
        (["--label-ratio", "nan"], "got nan"),
        (["--lr", "0"], "--lr must be finite and over 0, got 0"),
        (["--lr", "inf"], "--lr must be finite and over 0, got inf"),
        (["--rho", "-0.1"], "--rho must be finite and at least 0"),
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--seeds", "-1"], "--seeds must be at least 0"),
        (["--seeds", "1", "1"], "--seeds names 1 twice"),
        (["--rule", "sam", "sam"], "--rule names sam twice"),
        (["--datasets", "no_such_set"], "'no_such_set' is none of"),
    ],
)
def test_bad_arguments_end_in_one_line(args: list[str], message: str, tmp_path: Path) -> None:
    code, shown, error = _run(*args, "--out", tmp_path / "out")
    assert code in (1, 2) and not shown
    assert error.count("\n") == 1 and message in error
    assert not (tmp_path / "out").exists()


def test_folders_without_data_are_named(tmp_path: Path) -> None:
    for folder, message in ((tmp_path, "holds no .npz file"), (tmp_path / "x", "no such folder")):
        code, _, error = _run("--data-dir", folder, "--out", tmp_path / "out")
        assert code == 1 and str(folder) in error and message in error
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 and no more")
    code, _, error = _run("--data-dir", tmp_path, "--out", tmp_path / "out")
    assert code == 1 and "torn.npz is not an .npz file" in error


def test_out_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, error = _run("--datasets", "digits_0", "--out", tmp_path / "file" / "out")
    assert code == 1 and error.count("\n") == 1 and "cannot write to" in error


def test_unknown_and_shortened_flags_are_errors() -> None:
    assert _run("--no-such-flag")[0] == 2
    assert _run("--seed", "0")[0] == 2
    assert _run("--rule", "adam")[0] == 2


def test_help_has_every_flag_with_its_default() -> None:
    code, shown, _ = _run("--help")
    text = " ".join(shown.split())
    assert code == 0
    for flag in (
        "--method", "--rule", "--data-dir", "--datasets", "--label-ratio", "--protocol", "--seeds",
        "--optimizer", "--lr", "--rho", "--epochs", "--out", "--overwrite",
    ):  # fmt: skip
        assert flag in text
    assert text.count("(default:") == 11  # all but --data-dir and --datasets


def test_runs_as_a_command_without_tensorflow(tmp_path: Path, run_python: Any) -> None:
    code = f"""
        import sys
        from experiments.anomaly import command as anomaly
        from experiments.host import cli
        args = anomaly.arguments().parse_args(["--datasets", "digits_1", "--rule", "sgd",
            "--method", "deepsad", "--seeds", "0", "1", "2", "--epochs", "1",
            "--out", {str(tmp_path / "out")!r}])
        cli.run(anomaly.main, args)
        heavy = {{"tensorflow", "tensorflow_datasets", "tyro", "grain"}} & set(sys.modules)
        assert not heavy, heavy
    """
    run_python(code, devices=2, env={"ADBENCH_DIR": None})
    assert len(_rows(tmp_path / "out")) == 3


# ------------------------------------------------------------------------------------------ levels


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "measured"),
    [
        ("devnet", {"sgd": 98.90, "sam": 98.61, "imbsam": 98.73}),
        ("deepsad", {"sgd": 94.14, "sam": 98.05, "imbsam": 97.05}),
    ],
)
def test_levels_of_the_measured_baseline(
    method: str, measured: dict[str, float], adbench_dir: str
) -> None:
    """Three seeds on one subset, against the official PyTorch optimizers on the same splits."""
    tables = load_tables(adbench_dir, ["MVTec-AD_bottle"])
    cases = anomaly.draw_cases(tables, seeds=[0, 1, 2], label_ratios=[0.25], protocols=["adbench"])
    found, _ = anomaly.train(
        cases, method=method, rules=anomaly.RULES, optimizer="sgd", lr=1e-3, rho=0.05, epochs=50
    )
    for rule, level in measured.items():
        mean = np.mean([r.auroc for r in found if r.rule == rule])
        assert mean == pytest.approx(level, abs=1.0), rule
