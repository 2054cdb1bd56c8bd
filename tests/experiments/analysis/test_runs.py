"""What the models of a finished folder become: rows, and the rule of each; none is trained."""

from __future__ import annotations

import contextlib
import json
import types
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
import pytest

from experiments.analysis import runs, tables
from experiments.bench import compare_kept
from experiments.bench.comparison import Found, Part
from experiments.bench.folder import rows_sha256
from experiments.bench.lanes import Net
from experiments.command.candidates import SETTINGS
from experiments.data.digits import load_digits_lt
from experiments.host import sealed
from experiments.host.errors import RunError
from experiments.host.stopping import StopRequest
from experiments.models.resnet import BATCH_NORM_MOMENTUM
from tiny import COUNTS, tiny_dataset

# ---- a folder of digits_lt ----------------------------------------------------------------------

CONFIG = {
    "imbalance_factor": 50, "epochs": 2, "batch_size": 64, "lr": 0.1, "momentum": 0.9,
    "weight_decay": 1e-3, "device": "none",
}  # fmt: skip


def line(rule: str, **more: Any) -> dict[str, Any]:
    args = {"rho": 0.2, "eta": 20} if rule == "imbsam" else {}
    return {
        "rule": rule, "rule_args": args, "ascent": {}, "loss": "cross_entropy", "loss_args": {},
        "stage2": None, "stage2_args": {}, "seeds": [3, 5], "diverged": None, **more,
    }  # fmt: skip


def folder(path: Path, lines: list[dict[str, Any]]) -> Path:
    """Of networks whose classifier alone says something: the class of their number."""
    (path / "params").mkdir(parents=True)
    (path / "summary.json").write_text(json.dumps(lines))
    data = [load_digits_lt(50, seed) for seed in (3, 5)]
    about = {"config": CONFIG, "sha256": rows_sha256(data)}
    for number, one in enumerate(lines):
        if one["diverged"] is not None:
            continue
        leaves = {f"head/{name}": np.zeros((2, *shape), np.float32)
                  for name, shape in (("kernel", (32, 10)), ("bias", (10,)))}  # fmt: skip
        leaves["head/bias"][:, number] = 1 + number
        sealed.write(path / "params" / f"{number}.npz", leaves, {**about, "line": one})
    return path


def test_the_first_stages_of_a_folder_of_digits(tmp_path: Path) -> None:
    lines = [
        line("sgd", diverged="sgd: not finite"), line("sgd", stage2="crt"), line("sgd"),
        line("imbsam"),
    ]  # fmt: skip
    out = folder(tmp_path / "run", lines)
    sgd, imbsam = runs.of_digits(out, CONFIG)
    assert [one.variables["params"]["head"]["bias"][1].max() for one in (sgd, imbsam)] == [3, 4]
    data = [load_digits_lt(50, seed) for seed in (3, 5)]
    for one, rule in ((sgd, "sgd"), (imbsam, "imbsam")):
        assert (one.run, one.seeds, one.epoch) == (str(out), [3, 5], 2)
        assert one.description["rule"] == rule
        assert one.description["setting"] == {
            "experiment": "digits_lt",
            **{k: v for k, v in CONFIG.items() if k != "device"},
        }
        for rows, part in ((one.train, "train"), (one.test, "test")):
            for k, of in enumerate(data):
                np.testing.assert_array_equal(rows.images[k], getattr(of, f"{part}_images"))
                np.testing.assert_array_equal(rows.labels[k], getattr(of, f"{part}_labels"))
        np.testing.assert_array_equal(one.counts, data[0].class_counts())
        assert one.thresholds == (data[0].many_above, data[0].few_below)
    assert sgd.own is None and imbsam.own is not None and imbsam.own.radii.tolist() == [[0.2]] * 2
    np.testing.assert_array_equal(imbsam.own.groups[1, 0], imbsam.counts <= 20)
    (tmp_path / "run" / "params" / "3.npz").write_bytes(b"PK")
    with pytest.raises(RunError, match=r"3\.npz is not an .npz file: .*: train again with --save"):
        runs.of_digits(out, CONFIG)


def own(**config: Any) -> Any:
    """Of SAM whose radius changes after half of 12 steps, two epochs of six."""
    schedule = {"rule": "sam", "rule_args": {"rho": "late(0.1,0.3)"}, "ascent": {}, "stage2": None}
    given = {"batch_size": 13, "epochs": 2, "weight_decay": 0.0, **config}
    return lambda epoch, **more: runs._own({**schedule, **more}, given, tiny_dataset(), epoch)


def test_a_rule_is_seen_as_it_was_in_an_epochs_last_step() -> None:
    found = [own()(epoch) for epoch in (0, 1, 2)]
    assert [float(one.radii[0, 0]) for one in found] == pytest.approx([0.1, 0.1, 0.3])
    assert found[0].about == {"rule": "sam", "rule_args": {"rho": "late(0.1,0.3)"}, "ascent": {}}
    assert own()(2, stage2="crt") is None


def test_balanced_batches_have_every_class_alike() -> None:
    found = own(sampling="balanced")(2)
    np.testing.assert_allclose(found.groups[0, 0], sum(COUNTS) / (5 * np.array(COUNTS)))
    assert found.about["sampling"] == "balanced"
    np.testing.assert_array_equal(own(sampling="natural")(2).groups, np.ones((1, 1, 5)))


# ---- rows, classifiers, running statistics -------------------------------------------------------


def test_the_first_rows_of_each_class() -> None:
    labels = np.array([2, 0, 2, 0, 0, 1, 2])
    assert runs._first(labels, None).tolist() == [*range(7)]
    assert runs._first(labels, 1).tolist() == [0, 1, 5]
    assert runs._first(labels, 2).tolist() == [0, 1, 2, 3, 5]
    dataset = tiny_dataset()
    train, test = runs.rows_of(dataset, None, 4, StopRequest())
    assert np.bincount(train.labels[0]).tolist() == [4, 4, 4, 4, 3]
    np.testing.assert_array_equal(train.images[0, 4:6], dataset.train_images[40:42])
    assert test.labels.shape == (1, 55)  # in memory: all of them


def test_images_that_do_not_fit_into_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    part = types.SimpleNamespace(labels=np.zeros(10, int))
    dataset = types.SimpleNamespace(train=part, size=16)
    monkeypatch.setattr(runs, "_MOST_BYTES", 10 * 16 * 16 * 3 - 1)
    with pytest.raises(RunError, match="10 train images of 16 x 16 pixels do not fit"):
        runs._rows(dataset, None, "train", None, StopRequest())


def test_images_that_just_fit_are_read_as_far_as_they_are_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first of each class; behind the last of them no block is read."""
    labels = np.array([0, 0, 1, 0, 1])
    images = np.arange(5 * 48, dtype=np.uint8).reshape(5, 4, 4, 3)

    def blocks() -> Any:
        for at in ([0, 1], [2, 3]):
            yield types.SimpleNamespace(
                images=images[at][None], labels=labels[at][None], mask=np.array([[True, True]])
            )
        pytest.fail("read on")

    dataset = types.SimpleNamespace(train=types.SimpleNamespace(labels=labels), size=4)
    feed = types.SimpleNamespace(evaluation=lambda part, rows: contextlib.nullcontext(blocks()))
    monkeypatch.setattr(runs, "_MOST_BYTES", 2 * 4 * 4 * 3)
    found = runs._rows(dataset, feed, "train", 1, StopRequest())
    np.testing.assert_array_equal(found.images, images[None, [0, 2]])
    np.testing.assert_array_equal(found.labels, [[0, 1]])


@pytest.mark.parametrize(
    ("names", "kind"),
    [("kernel bias", "linear"), ("kernel", "normalised"), ("kernel bias scales", "scaled")],
)
def test_a_classifier_is_known_by_its_parameters(names: str, kind: str) -> None:
    assert runs._kind({"head": dict.fromkeys(names.split())}) == kind


class _Normed(nn.Module):
    """Batch normalisation alone, as the models of runs have it."""

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        still = {"use_scale": False, "use_bias": False, "momentum": BATCH_NORM_MOMENTUM}
        return nn.BatchNorm(not train, **still)(x)


def test_statistics_of_some_rows_are_theirs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "create_model", lambda *args, **kwargs: _Normed())
    rows = np.array([[[0]], [[51]], [[255]]], np.uint8)[..., None]
    statistics = runs._statistics.__wrapped__("any", 2, "linear", (0.2,), (0.5,))
    held = {"BatchNorm_0": {name: np.full(1, 7, np.float32) for name in ("mean", "var")}}
    found = statistics({"params": {}, "batch_stats": held}, rows)["batch_stats"]["BatchNorm_0"]
    seen = (np.array([0, 0.2, 1]) - 0.2) / 0.5
    np.testing.assert_allclose(found["mean"], [seen.mean()], rtol=1e-5)
    np.testing.assert_allclose(found["var"], [seen.var()], rtol=1e-5)


@pytest.mark.parametrize("model", ["mlp", "resnet8"])
def test_a_model_has_statistics_of_rows_where_it_normalises_by_them(model: str) -> None:
    config = {"model": model, "seed": 0, "batch_size": 13, "epochs": 2, "rule": "sgd"}
    data = tiny_dataset()
    found = runs.of_checkpoint(
        Path("run"), config | {"rule_args": {}, "ascent": {}}, data, {"params": {}}, 2, (None, None)
    )
    assert (found.statistics is not None) == (model == "resnet8")


# ---- a folder of compare ------------------------------------------------------------------------

LABELS = np.array([0, 1, 0, 0, 1, 0], np.int32)
PART = Part(4, np.arange(12, dtype=np.float32).reshape(6, 2), np.arange(4), np.arange(4, 6))
POINT = {name: of.default for name, of in SETTINGS.items()} | {"rho": 0.25}


def compared(rule: str, sampling: str = "shuffled", **setting: Any) -> Any:
    row = {"row": "x", "rule": rule, "loss": "focal", "sampling": sampling, "chosen": POINT}
    given = {"experiment": "compare", "tuned": False, "perturb": "all", **setting}
    params = {"head": {"kernel": np.ones((2, 2)), "bias": np.zeros(2)}}
    return tables._subject("run", row, given, params, PART, LABELS, Net(1, 0, 2))


def test_a_network_of_a_comparison() -> None:
    one = compared("imbsam")
    assert one.description["rule_args"] == {
        name: value for name, value in POINT.items() if name not in ("lr", "weight_decay")
    }
    assert (one.description["on"], one.description["loss"]) == (None, "focal")
    assert one.description["setting"]["sampling"] == "shuffled"
    assert (one.seeds, one.counts.tolist()) == ([4], [3, 1])
    # Class by class.
    assert one.train.labels.tolist() == [[0, 0, 0, 1]] and one.test.labels.tolist() == [[0, 1]]
    assert one.train.images[0, :, 0].tolist() == [0, 4, 6, 2]
    assert one.test.images[0, :, 0].tolist() == [10, 8]
    assert one.own.groups.tolist() == [[[0, 1]]] and one.own.radii.tolist() == [[0.25]]
    assert one.own.ascent.perturb is None
    variables = {"params": {k: v[0] for k, v in one.variables["params"]["head"].items()}}
    said = one.apply({"params": {"head": variables["params"]}}, PART.features)
    np.testing.assert_allclose(said, PART.features.sum(axis=1)[:, None] * [1, 1])


def test_what_a_comparison_says_of_a_network() -> None:
    tuned = compared("sgd", "balanced", tuned=True, perturb="last-bias")
    assert (tuned.description["rule_args"], tuned.own) == ({}, None)
    assert tuned.description["on"] == "balanced sampling"
    moved = compared("sam", perturb="last-bias").own
    assert moved.about["perturb"] == "last-bias" and moved.ascent.perturb is not None


def test_folders_of_compare_that_are_not_analysed(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no parameters: compare again with --save"):
        tables.of_comparison(tmp_path, {"group": None}, None)
    compare_kept.params_path(tmp_path, 0, 0).parent.mkdir()
    compare_kept.params_path(tmp_path, 0, 0).touch()
    with pytest.raises(RunError, match="weighs rows by 'g': an analysis by class"):
        tables.of_comparison(tmp_path, {"group": "g"}, None)
    assert tables._numbers(compare_kept.params_path(tmp_path, 12, 3)) == (12, 3)


def test_networks_come_back_with_what_they_are(tmp_path: Path) -> None:
    trees = [{"head": {"kernel": np.full((1, 2), float(k))}, "b": np.ones(k + 1)} for k in (0, 1)]
    named = {"rule": "sam", "loss": "focal", "sampling": "balanced", "chosen": {"rho": 0.1}}
    records = [types.SimpleNamespace(row=name, seconds=1.0, **named) for name in "ab"]
    path = compare_kept.params_path(tmp_path, 2, 1)
    found = [Found("x", {}, None, [], tree) for tree in trees]
    compare_kept.save_params(path, PART, LABELS, records, found, {"width": 3})
    about, again = compare_kept.read_params(path)
    assert about["rows"] == [{"row": name, **named} for name in "ab"]
    assert about["config"] == {"width": 3}
    for tree, kept in zip(trees, again, strict=True):
        assert kept.keys() == tree.keys()
        np.testing.assert_array_equal(kept["head"]["kernel"], tree["head"]["kernel"])
        np.testing.assert_array_equal(kept["b"], tree["b"])
    digests = [
        compare_kept.digest(part, labels)
        for part, labels in (
            (PART, LABELS), (PART._replace(features=2 * PART.features), LABELS),
            (PART, 1 - LABELS), (PART._replace(train=np.arange(3)), LABELS),
            (PART._replace(test=np.arange(5, 6)), LABELS),
        )
    ]  # fmt: skip
    assert about["sha256"] == digests[0] and len(set(digests)) == 5
