"""Runs of one setting are a group: over seeds by hand, and what separates them."""

import dataclasses
import math

import pytest

from experiments.host.errors import RunError
from experiments.reports import grouping, naming, reading
from experiments.reports.figures import plus_minus
from experiments.run.settings import Settings
from made_reports import IMBSAM, make, save

# ---- statistics ------------------------------------------------------------------------------


def test_seeds_on_one_folder_of_images_are_a_group_however_it_is_written(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    ways = (tmp_path, tmp_path / "link", tmp_path / "other")
    runs = [
        make(seed, source=f"images in {way}, chosen and labelled by lists")
        for seed, way in enumerate(ways)
    ]
    assert [group.seeds for group in grouping.grouped(runs)] == [[0, 1], [2]]


def test_means_deviations_and_paired_differences_by_hand():
    sgd = [make(seed, all=value) for seed, value in ((0, 40.0), (1, 42.0), (2, 47.0))]
    sam = [make(s, "sam", v, {"rho": 0.05}) for s, v in ((3, 10.0), (2, 50.0), (1, 43.0))]
    groups = grouping.grouped([sam[0], sgd[2], sgd[0], sam[1], sgd[1], sam[2]])
    assert [group.facts["rule"] for group in groups] == ["sam", "sgd"]
    assert [group.seeds for group in groups] == [[1, 2, 3], [0, 1, 2]]
    mean, deviation, n = groups[1].figure("last", "all")
    assert (mean, n) == (43, 3) and deviation == pytest.approx(math.sqrt((9 + 1 + 16) / 2))
    mean, deviation, _ = groups[1].figure("best", "few")
    assert mean == 24 and deviation == pytest.approx(math.sqrt(13))
    # Seeds 1 and 2 in common: 43 - 42 and 50 - 47; deviation sqrt(2) over sqrt(2).
    assert groups[0].gain("last", "all") == pytest.approx((2, 1, 2))
    assert groups[0].median("step_ms") == 102
    assert groups[1].sgd is None and groups[1].gain("last", "all") is None


def test_one_seed_has_no_deviation_and_an_empty_split_no_mean():
    one, other = make(all=40.0), make(rule="sam", all=41.0)
    one["few"] = None
    groups = grouping.grouped([one, other])
    assert groups[0].figure("last", "all") == (40, None, 1)
    assert groups[0].figure("last", "few") is None
    assert groups[1].gain("last", "all") == (1, None, 1)
    assert groups[1].gain("last", "few") is None
    assert plus_minus(groups[0].figure("last", "few")) == "-"
    assert plus_minus(groups[1].gain("last", "all"), "+") == "+1.0"


def test_runs_of_before_images_were_recorded_are_of_those_of_their_data():
    """Unless two of them are known: then it cannot be told whose they are."""
    old, new = make(0), make(1, rows_sha256={"train": "a", "test": "b"})
    sam = make(0, "sam", rule_args={"rho": 0.05}, rows_sha256={"train": "a", "test": "b"})
    groups = grouping.grouped([old, new, sam])
    assert [group.seeds for group in groups] == [[0, 1], [0]] and groups[1].sgd is groups[0]
    other = make(2, rows_sha256={"train": "a", "test": "c"})
    found = grouping.grouped([old, new, sam, other])
    assert [group.seeds for group in found] == [[0], [1], [0], [2]] and found[2].sgd is found[1]
    elsewhere = make(0, source="another")
    assert len(grouping.grouped([elsewhere, new])) == 2


def test_sgd_of_other_jax_settings_is_no_partner():
    """Their weights are drawn, or their products rounded, in another way; of before, as ever."""
    exact = {"jax": {"jax_default_matmul_precision": "highest"}}
    sam = {"rule_args": {"rho": 0.05}}
    found = [make(0), make(0, **exact), make(0, "sam", **sam, **exact), make(1, "sam", **sam)]
    groups = grouping.grouped(found)
    assert [group.sgd and group.sgd.number for group in groups] == [None, None, 2, 1]


def test_no_common_seed_is_no_difference():
    groups = grouping.grouped([make(0), make(1, "sam")])
    assert groups[1].sgd is groups[0] and groups[1].gain("last", "all") is None


# ---- grouping --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": "cifar10"}, {"imbalance_factor": 50.0}, {"model": "resnet32"},
        {"rule_args": {**IMBSAM, "rho": 0.1}}, {"ascent": {"adaptive": "asam"}},
        {"loss": "ldam"}, {"loss_args": {"tau": 2.0}}, {"mixup": 1.0}, {"epochs": 100},
        {"batch_size": 128}, {"lr": 0.1}, {"weight_decay": 1e-3}, {"schedule": "steps"},
        {"subset": "shuffled"}, {"val_per_class": 5}, {"class_counts_sha256": "other"},
        {"classifier": "normalised"}, {"stage2": "tau-norm"}, {"settings": {"precision": "bf16"}},
        {"settings": {"sampling": "balanced"}}, {"thresholds": {"many_above": 1000}},
        {"memory": 0.5}, {"shrink": 2}, {"settings": {"accumulate": 2}},
        {"settings": {"examples": "split_norm", "tail_statistics": "own"}},
        {"features": True}, {"classifier_start": "mean"}, {"texts_sha256": "other"},
        {"jax": {"jax_default_prng_impl": "rbg"}},
    ],
    ids=str,
)  # fmt: skip
def test_what_decides_a_result_separates(change):
    runs = [
        make(0, "imbsam", rule_args=IMBSAM),
        make(1, "imbsam", **{"rule_args": IMBSAM, **change}),
    ]
    assert len(grouping.grouped(runs)) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {"eval_batch": 7, "checkpoint_every": 3, "steps_per_call": 50}},
        {"settings": {"devices": 4, "parallel": "pmap"}},
        {"rule_args": {"rho": 0.05, "eta": 100.0, "tail_scale": 1}},  # whole numbers, no strict
        {"mixup": 0.0, "ascent": {}, "loss_args": {}, "stage2": None, "classifier": "linear"},
        {"settings": {"sampling": "natural", "mixup": 0.0, "trained": "all"}, "preset": "paper"},
        {"device": "TPU", "git": "abc", "versions": {"jax": "9"}},
        {"settings": {"tail_statistics": "own"}, "memory": None},
        {"settings": {"ensemble": True}, "features": False},
        {"settings": {"eta": 7.0, "strict": True}},  # of a sampling that has no tail
    ],
    ids=str,
)  # fmt: skip
def test_what_decides_nothing_does_not_separate(change):
    runs = [
        make(0, "imbsam", rule_args=IMBSAM),
        make(1, "imbsam", **{"rule_args": IMBSAM, **change}),
    ]
    assert [group.seeds for group in grouping.grouped(runs)] == [[0, 1]]


def test_what_goes_without_saying_is_what_a_run_is_without_its_flag():
    plain = dataclasses.asdict(Settings())
    shared = grouping._DEFAULTS.keys() & plain.keys()
    assert {name: grouping._DEFAULTS[name] for name in shared} == {
        name: plain[name] for name in shared
    }
    assert len(shared) >= 17


def test_the_tail_of_stratified_sampling_decides():
    made = [make(seed, settings={"sampling": "stratified", "eta": seed}) for seed in (7, 8)]
    assert len(grouping.grouped(made)) == 2


def test_the_sgd_partner_is_that_of_the_same_setting():
    groups = grouping.grouped(
        [
            make(0),
            make(0, lr=0.1),
            make(0, "sam", lr=0.1, ascent={"adaptive": "asam"}),
            make(0, "sam", loss="ldam"),
        ]
    )
    assert [group.sgd and group.sgd.number for group in groups] == [None, None, 2, None]


def test_which_rows_the_passes_see_is_of_the_method():
    split = {"examples": "split_norm"}
    before = {**split, "tail_statistics": "renorm"}  # said when there were others
    groups = grouping.grouped(
        [
            make(0),
            make(0, "imbsam", settings=split),
            make(1, "imbsam", settings=before),
            make(0, "imbsam", memory=0.5),
        ]
    )
    assert [group.seeds for group in groups] == [[0], [0, 1], [0]]
    assert [group.sgd and group.sgd.number for group in groups] == [None, 1, 1]
    names = [naming.method(group) for group in groups]
    assert names[1].endswith("examples split_norm")
    assert names[2].endswith("memory 0.5")


def test_two_runs_of_a_seed_are_an_error_that_names_both(tmp_path):
    save(tmp_path / "a", 3)
    save(tmp_path / "b", 3)
    with pytest.raises(RunError, match=f"{tmp_path}/a and {tmp_path}/b .* seed 3"):
        grouping.grouped(reading.find([str(tmp_path)]))
    # One run that was named twice is one run.
    found = reading.find([str(tmp_path / "a"), str(tmp_path / "b" / ".." / "a")])
    assert len(found) == 1


def test_a_shuffled_subset_whose_seed_is_not_told_is_of_seed_0():
    shuffled = {"subset": "shuffled"}
    made = [make(0, **shuffled), make(1, subset_seed=0, **shuffled), make(2, subset_seed=None,
            **shuffled), make(3, subset_seed=1, **shuffled)]  # fmt: skip
    first, other = grouping.grouped(made)
    assert (first.seeds, other.seeds) == ([0, 1, 2], [3])
    assert (first.facts["subset_seed"], other.facts["subset_seed"]) == (0, 1)


def test_what_a_run_says_of_its_images_goes_before_what_their_file_says():
    source = "mine; every 4x4 pixels averaged; of each class shuffled, seed 3"
    (group,) = grouping.grouped([make(source=source, shrink=2, subset="first")])
    assert (group.facts["shrink"], group.facts["subset"]) == (2, "first")
    assert group.identity["shrink"] == 2 and "subset" not in group.identity


def test_a_first_stage_in_memory_has_no_first_stage_itself():
    for group in grouping.grouped([make(0), make(1), make(0, "sam")]):
        assert "first" not in group.identity and all("first" not in run for run in group.reports)
