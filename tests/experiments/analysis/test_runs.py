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
from experiments.host.stopping import StopNow, StopRequest
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


def test_a_folder_of_one_line_and_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a setting asks for is part of it, and what it leaves alone is not."""
    data = load_digits_lt(50, 3)
    monkeypatch.setattr(runs, "load_digits_lt", lambda factor, seed: {(50, 3): data}[factor, seed])
    config = {**CONFIG, "mixup": 0, "classifier": "normalised", "weight_decay_inside": True}
    (tmp_path / "params").mkdir()
    one = line("sam") | {"rule_args": {"rho": 0.5}, "seeds": [3]}
    (tmp_path / "summary.json").write_text(json.dumps([one]))
    about = {"config": config, "sha256": rows_sha256([data]), "line": one}
    leaves = {"head/kernel": np.ones((1, 64, 10), np.float32)}
    sealed.write(tmp_path / "params" / "0.npz", leaves, about)
    (found,) = runs.of_digits(tmp_path, config)
    asked = {name: found.description["setting"].get(name) for name in (
        "mixup", "classifier", "weight_decay_inside")}  # fmt: skip
    assert asked == {"mixup": None, "classifier": "normalised", "weight_decay_inside": True}
    assert found.seeds == [3] and found.train.images.shape == (1, *data.train_images.shape)
    assert found.own is not None and found.own.radii.tolist() == [[0.5]]


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
    # Of one step an epoch the second is the last of the first half.
    one = [own(batch_size=78)(epoch) for epoch in (0, 1, 2)]
    assert [float(x.radii[0, 0]) for x in one] == pytest.approx([0.1, 0.1, 0.3])
    # 78 rows are seven batches of 12: the radius changes behind the seventh step.
    seven = [own(batch_size=12)(epoch) for epoch in (1, 2)]
    assert [float(x.radii[0, 0]) for x in seven] == pytest.approx([0.1, 0.3])


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


def test_rows_are_the_first_however_many_there_are() -> None:
    labels = np.random.default_rng(0).integers(0, 5, 500)
    seen: dict[int, int] = {}
    wanted = []
    for row, label in enumerate(labels.tolist()):
        seen[label] = seen.get(label, 0) + 1
        if seen[label] <= 7:
            wanted.append(row)
    assert runs._first(labels, 7).tolist() == wanted


@pytest.mark.parametrize(("rows", "fits"), [(10, True), (11, False)])
def test_eight_gibibytes_of_images_are_the_most(rows: int, fits: bool) -> None:
    """Of 16384 x 16384 pixels of three bytes ten are 7.5 GiB, eleven 8.25."""
    part = types.SimpleNamespace(labels=np.zeros(rows, int))
    dataset = types.SimpleNamespace(train=part, size=2**14)

    def evaluation(part: str, at_a_time: int) -> Any:
        raise EOFError(f"{at_a_time} rows of {part}")

    feed = types.SimpleNamespace(evaluation=evaluation)
    with pytest.raises(
        EOFError if fits else RunError, match="256 rows of train" if fits else "fit"
    ):
        runs._rows(dataset, feed, "train", None, StopRequest())


@pytest.mark.parametrize("stopped", [False, True])
def test_rows_of_blocks_the_last_of_which_is_padded(stopped: bool) -> None:
    labels = np.array([0, 1, 0, 1, 1])
    images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)

    def blocks() -> Any:
        for at, mask in (([0, 1, 2], [True] * 3), ([3, 4, 4], [True, True, False])):
            yield types.SimpleNamespace(
                images=images[at][None], labels=labels[at][None], mask=np.array([mask])
            )

    feed = types.SimpleNamespace(evaluation=lambda *_: contextlib.nullcontext(blocks()))
    dataset = types.SimpleNamespace(test=types.SimpleNamespace(labels=labels), size=1)
    if stopped:
        with pytest.raises(StopNow):
            runs._rows(dataset, feed, "test", None, StopRequest(deadline=0.0))
        return
    every = runs._rows(dataset, feed, "test", None, StopRequest())
    assert every.images.ravel().tolist() == [0, 1, 2, 3, 4]
    assert every.labels.tolist() == [labels.tolist()]
    some = runs._rows(dataset, feed, "test", 2, StopRequest())
    assert some.images.ravel().tolist() == [0, 1, 2, 3]


def test_of_files_as_few_test_images_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(runs, "_rows", lambda *given: asked.append(given[2:4]))
    runs.rows_of(types.SimpleNamespace(), None, 4, StopRequest())
    runs.rows_of(tiny_dataset(), None, 4, StopRequest())
    assert asked == [("train", 4), ("test", 4), ("train", 4), ("test", None)]


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
    monkeypatch.setattr(
        runs, "create_model",
        lambda *given, classifier: {(("any", 2), "scaled"): _Normed()}[given, classifier],
    )  # fmt: skip
    rows = np.array([[[0]], [[51]], [[255]]], np.uint8)[..., None]
    statistics = runs._statistics.__wrapped__("any", 2, "scaled", (0.2,), (0.5,))
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


def test_a_model_sees_normalised_rows_and_running_statistics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def made(name: str, classes: int, *, classifier: str) -> Any:
        assert (name, classes, classifier) == ("any", 2, "scaled")
        return types.SimpleNamespace(apply=lambda variables, x, *, train: (variables, x, train))

    monkeypatch.setattr(runs, "create_model", made)
    apply = runs._applied.__wrapped__("any", 2, "scaled", (0.2,), (0.5,))
    variables, seen, train = apply("held", np.array([[[[51]], [[255]]]], np.uint8))
    assert variables == "held" and train is False
    np.testing.assert_allclose(np.ravel(seen), [0, 1.6], atol=1e-6)


def test_what_must_agree_between_runs_and_what_need_not() -> None:
    """Not the rule, nor how its passes see rows; eta and strict where they decide the batches."""
    config = {
        "experiment": "cifar_lt", "model": "mlp", "seed": 3, "batch_size": 13, "epochs": 2,
        "rule": "sgd", "rule_args": {}, "ascent": {}, "loss": "cross_entropy", "lr": 0.1,
        "preset": "x", "together": [3, 4], "eta": 10, "strict": True, "workers": 2,
        "examples": "independent", "memory": None, "sampling": "natural", "stage2": None,
    }  # fmt: skip
    data = tiny_dataset()
    rows = (runs.Rows(np.zeros((1, 2, 3)), np.zeros((1, 2), int)), "rows to test on")
    held = {"params": {"w": np.arange(3)}, "batch_stats": {}}

    def found(**more: Any) -> Any:
        return runs.of_checkpoint(Path("run"), {**config, **more}, data, held, 2, rows)

    one = found()
    same = {"experiment": "cifar_lt", "model": "mlp", "batch_size": 13, "epochs": 2, "lr": 0.1,
            "sampling": "natural"}  # fmt: skip
    assert one.description["setting"] == same
    assert one.description["passes"] == {"examples": "independent"}
    described = {name: one.description[name] for name in ("rule", "loss", "stage2", "loss_args")}
    assert described == {"rule": "sgd", "loss": "cross_entropy", "stage2": None, "loss_args": None}
    drawn = found(sampling="stratified").description["setting"]
    assert drawn == {**same, "sampling": "stratified", "eta": 10, "strict": True}
    assert (one.run, one.seeds, one.epoch) == ("run", [3], 2)
    assert one.train is rows[0] and one.test == "rows to test on"
    assert list(one.variables) == ["params"]  # without statistics there are none
    assert one.variables["params"]["w"].tolist() == [[0, 1, 2]]
    np.testing.assert_array_equal(one.counts, COUNTS)
    assert one.thresholds == (data.many_above, data.few_below)


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
