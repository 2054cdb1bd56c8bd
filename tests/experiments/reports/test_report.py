"""Reports: groups over seeds by hand, published figures as transcribed, what is written."""

import csv
import json
import math
from collections import Counter

import pytest

from experiments import report
from experiments.host import cli, locks
from experiments.host.errors import RunError
from experiments.reports import grouping, matching, naming, reading, tables, writing
from experiments.reports.figures import plus_minus

SPLITS = ("many", "medium", "few", "all")
PAPER = {"model": "resnet34_3x3", "epochs": 200, "batch_size": 64}
PAPER |= {"lr": 0.01, "schedule": "cosine-prestep", "weight_decay": 5e-3, "momentum": 0.9}
RATIO = {"model": "resnet32", "batch_size": 128, "lr": 0.1, "schedule": "cosine"}
RATIO |= {"weight_decay": 2e-4}
IMBSAM = {"rho": 0.05, "eta": 100, "tail_scale": 1.0, "strict": False}
AS_PAPER = {"rule": "imbsam", "rule_args": IMBSAM}
SETTINGS = ("epochs", "batch_size", "lr", "schedule", "weight_decay", "momentum", "seed")


def make(seed=0, rule="sgd", all=50.0, rule_args=None, **changes):
    """A report as the trainer writes it, of the paper's protocol unless changed."""
    values = {**PAPER, "seed": seed, **changes}
    settings = {"precision": "float32", "steps_per_call": 1, **values.pop("settings", {})}
    settings |= {name: values[name] for name in SETTINGS}
    splits = {"many": all + 20, "medium": all, "few": all - 20, "all": all}
    return {
        "experiment": "cifar_lt",
        "dataset": "cifar100",
        "imbalance_factor": 100.0,
        "subset": "first",
        "loss": "cross_entropy",
        "rule": rule,
        "rule_args": rule_args or {},
        **splits,
        "best_epoch_flip": {**{k: v + 1 for k, v in splits.items()}, "epoch": 9},
        "step_ms": 100.0 + seed,
        "flops_ratio_to_sgd": 1.0,
        "train_examples": 10847,
        **{k: v for k, v in values.items() if k not in SETTINGS or k in ("epochs", "batch_size")},
        "seed": seed,
        "settings": settings,
    }


def save(folder, *args, accuracies=(90.0, 60.0, 30.0), counts=(500, 100, 5), **changes):
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(make(*args, **changes)))
    with open(folder / "per_class.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "name", "train_examples", "test_examples", "correct", "accuracy"])
        for c, (n, accuracy) in enumerate(zip(counts, accuracies, strict=True)):
            writer.writerow([c, "", n, 0 if accuracy == "" else 100, 0, accuracy])
    return folder


def facts(**changes):
    return grouping.grouped([make(**changes)])[0].facts


# ---- statistics ------------------------------------------------------------------------------


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
        {"memory": 0.5}, {"shrink": 2},
        {"settings": {"examples": "split_norm", "tail_statistics": "own"}},
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
    ],
    ids=str,
)  # fmt: skip
def test_what_decides_nothing_does_not_separate(change):
    runs = [
        make(0, "imbsam", rule_args=IMBSAM),
        make(1, "imbsam", **{"rule_args": IMBSAM, **change}),
    ]
    assert [group.seeds for group in grouping.grouped(runs)] == [[0, 1]]


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


# ---- finding ---------------------------------------------------------------------------------


def test_seeds_and_second_stages_are_found(tmp_path):
    save(tmp_path / "one")
    save(tmp_path / "one" / "stage2_crt", stage2="crt")
    for seed in (0, 1):
        save(tmp_path / "many" / f"seed_{seed}", seed, "imbsam")
        save(tmp_path / "many" / f"seed_{seed}" / "stage2_lws", seed, "imbsam", stage2="lws")
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.json").write_text(json.dumps({"rule": "sam"}))
    found = reading.find([str(path) for path in sorted(tmp_path.iterdir())])
    kinds = Counter((run["rule"], run.get("stage2"), "first" in run) for run in found)
    assert kinds == {
        ("sgd", None, False): 1,
        ("sgd", "crt", True): 1,
        ("imbsam", None, False): 2,
        ("imbsam", "lws", True): 2,
    }
    assert len(reading.find([str(tmp_path / "many")])) == 4
    assert len(reading.find([str(tmp_path / "one" / "report.json")])) == 1


def test_runs_are_found_at_any_depth_and_once(tmp_path):
    for rule in ("sgd", "imbsam"):
        for seed in (0, 1):
            save(tmp_path / "a" / "b" / rule / f"seed_{seed}", seed, rule)
    save(tmp_path / "a" / "b" / "sgd" / "seed_0" / "checkpoints" / "9")  # nobody's business
    save(tmp_path / ".trash" / "old", 7)
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
    found = reading.find([str(tmp_path), str(tmp_path / "a" / "b")])
    assert Counter(run["rule"] for run in found) == {"sgd": 2, "imbsam": 2}


def test_what_is_no_run_is_passed_over_and_said(tmp_path, capsys):
    """As `report DIR/*` meets it: a page, a table, folders begun, of other experiments, empty."""
    runs = tmp_path / "runs"
    save(runs / "good" / "seed_0")
    for name, content in (("README.md", "# what was run"), ("table.csv", "a,b\n"), ("blob", "\0")):
        (runs / name).write_text(content)
    (runs / "empty").mkdir()
    for name, files in {
        "begun": {"config.json": "{}"},
        "digits": {"config.json": "{}", "summary.json": "[]"},
        "anomaly": {"report.json": json.dumps({"method": "devnet"})},
        "torn": {"other.json": "{"},
    }.items():
        (runs / name).mkdir()
        for file, content in files.items():
            (runs / name / file).write_text(content)
    run_command(*sorted(runs.iterdir()))
    shown = " ".join(capsys.readouterr().out.split())
    for name, why in (
        ("README.md", "no report"), ("table.csv", "no report"), ("blob", "no report"),
        ("empty", "no run"), ("begun", "not finished"), ("digits", "no training run"),
        ("anomaly", "no training run"), ("torn/other.json", "unreadable"),
    ):  # fmt: skip
        # The terminal may break a line in a long path.
        assert f"{name}({why})".replace(" ", "") in shown.replace(" ", ""), name
    assert "good (" not in shown
    run_command(runs / "good")
    assert "passed over" not in capsys.readouterr().out
    with pytest.raises(RunError, match="no finished run"):
        reading.find([str(runs / "README.md"), str(runs / "empty")])


SECOND = {"stage2": "weight-balancing", "epochs": 10, "lr": 0.01, "weight_decay": 0.1}


def second_args(rule="sgd"):
    return {"lr": 0.01, "weight_decay": 0.1, "sampling": "natural", "epochs": 10, "rule": rule}


def test_a_second_stage_is_of_its_first_stages_setting(tmp_path):
    """Its own report has its own training; what came before decides it too."""
    for seed, (decay, rule) in enumerate([(5e-3, "imbsam"), (1e-3, "imbsam"), (5e-3, "sgd")]):
        method = {"rule": rule, "rule_args": IMBSAM if rule == "imbsam" else {}}
        first = save(tmp_path / str(seed), 0, weight_decay=decay, **method)
        save(
            first / "stage2_weight-balancing", 0, stage2_args=second_args(rule), **method, **SECOND
        )
    groups = grouping.grouped(reading.find([str(tmp_path)]))
    second = [group for group in groups if "stage2" in group.identity]
    assert len(second) == 3
    assert [g.sgd and g.sgd.number for g in second] == [second[2].number, None, None]
    name = naming.method(second[0])
    assert name == "imbsam rho 0.05 eta 100 tail_scale 1 then weight-balancing"
    shown = naming.setting(second[0])
    assert "200 epochs" in shown and "weight decay 0.005; then epochs 10, lr 0.01" in shown
    assert naming.protocol(second[0]) == "imbsam-paper"
    assert {row.all for row in matching.beside(second[0].facts)} == {54.8}
    assert {row.all for row in matching.beside(second[2].facts)} >= {51.9, 53.1, 52.0}


def test_second_stages_just_trained_find_their_first(capsys):
    """As an entry point shows them: in memory, each after its first stage."""
    runs = []
    for seed in (0, 1):
        runs += [make(seed), make(seed, stage2_args=second_args(), **SECOND)]
        runs.append(make(seed, stage2="tau-norm", stage2_args={"tau": 1.9}, epochs=0))
    groups = grouping.grouped(runs)
    assert [naming.method(group) for group in groups] == [
        "sgd",
        "sgd then weight-balancing",
        "sgd then tau-norm tau 1.9",
    ]
    assert [group.facts["epochs"] for group in groups] == [200] * 3
    assert "not found" in naming.method(grouping.grouped([make(stage2="crt")])[0])


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "cannot read"),
        (json.dumps({"rule": "sgd", "all": 1.0}), "is no report of a training run: it lacks"),
        (json.dumps({**make(), "settings": None}), "is damaged: its settings is 'None'"),
        (json.dumps({"method": "devnet"}), "no finished run"),
    ],
)
def test_a_bad_report_is_one_clear_error(tmp_path, content, message):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(RunError, match=message):
        reading.find([str(tmp_path)])


BAD = (
    None,
    True,
    -1,
    0.5,
    1e400,
    float("nan"),
    10**400,
    "",
    "x",
    [],
    [1],
    {},
    {"a": {}},
    {"all": "x"},
)


@pytest.mark.parametrize(
    "field", sorted({*make(), "step_ms", "stage2_args", "shrink", "thresholds"})
)
def test_a_report_damaged_in_any_field_is_told_in_a_sentence(field, tmp_path, capsys):
    """Or does no harm: never a traceback, and never another exit than 1."""
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "report.json").write_text(json.dumps(make(1, "imbsam")))
    for number, value in enumerate(BAD):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "report.json").write_text(json.dumps({**make(), "ascent": {}, field: value}))
        try:
            run_command(tmp_path / "good", folder)
        except RunError as error:
            assert str(folder) in str(error) and "\n" not in str(error), value
    capsys.readouterr()


def test_a_setting_damaged_in_any_way_is_no_traceback(tmp_path, monkeypatch, capsys):
    """Options are the run's own business: a report shows whatever they hold."""
    monkeypatch.setattr("experiments.reports.plots.gain_per_class", lambda *_: None)
    arguments = {**IMBSAM, "switch_step": 10, "tail_weight": 2.0}
    good = make(0, "imbsam", rule_args=arguments, ascent={"p": 2.0}, thresholds=dict(SHOTS))
    save(tmp_path / "sgd", 0)
    run = save(tmp_path / "run", 0)
    for part in ("settings", "rule_args", "ascent", "loss_args", "thresholds", "stage2_args"):
        for name in [*(good.get(part) or {}), "shrink", "subset", "own"]:
            for value in (None, "x", {"a": {}}):
                damaged = {**good, part: {**(good.get(part) or {}), name: value}}
                (run / "report.json").write_text(json.dumps(damaged))
                try:
                    run_command(tmp_path, "--out", tmp_path / "out", "--overwrite")
                except RunError as error:
                    assert str(run) in str(error), (part, name, value)
        capsys.readouterr()


SHOTS = (("many_above", 100), ("few_below", 20))


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"[" * 100_000, b"9" * 5000, b'{"rule": "sgd"', b"null", b"[1]"]
)
def test_what_is_no_json_object_is_told_in_a_sentence(content, tmp_path):
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(RunError, match=r"cannot read .*report.json|no finished run"):
        reading.find([str(tmp_path)])


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(RunError, match=r"cannot read .*nowhere"):
        reading.find([str(tmp_path / "nowhere")])


# ---- matching --------------------------------------------------------------------------------


def test_published_rows_are_of_the_same_data_rule_and_loss():
    found = matching.beside(facts(rule="imbsam", rule_args=IMBSAM))
    assert Counter(row.source for row in found) == {"P": 1, "IMB": 4, "SSE": 1, "RDR": 1}
    found = matching.beside(facts(rule="imbsam", rule_args=IMBSAM, loss="logit_adjusted"))
    assert [row.all for row in found] == [48.4]
    found = matching.beside(facts(rule="sam", loss="ldam", loss_args={"drw_epoch": 160}))
    assert [row.all for row in found] == [45.4]
    assert matching.beside(facts(rule="sam", loss="ldam")) == []
    assert matching.beside(facts(imbalance_factor=100.3, dataset="cifar100-LT"))
    assert matching.beside(facts(imbalance_factor=33.0)) == []
    # The loss of these is not stated, so they stand beside any.
    assert [row.all for row in matching.beside(facts(rule="focal_sam"))] == [44.0]


def test_factor_200_of_cifar100_is_250_in_whole_images():
    assert {row.all for row in matching.beside(facts(imbalance_factor=250.0))} == {37.9}
    assert [row.all for row in matching.beside(facts(imbalance_factor=500.0))] == [34.1]
    found = matching.beside(facts(dataset="cifar10", imbalance_factor=200.0))
    assert [row.all for row in found] == [68.6]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shrink": 2}, "cifar100 IF 100, every 2x2 pixels averaged (not the papers' data)"),
        ({"subset": None}, "cifar100 IF 100 of a file (not known to be the papers' data)"),
        ({"subset": None, "shrink": 4}, "every 4x4 pixels averaged (not the papers' data)"),
    ],
)
def test_other_data_do_not_stand_beside_the_papers(changes, said):
    group = grouping.grouped([make(rule="imbsam", rule_args=IMBSAM, **changes)])[0]
    assert matching.beside(group.facts) == [] and said in naming.data(group)
    shown = writing.markdown([group], False)
    assert said in shown and "no published figure of this setting" in shown
    assert "None" not in shown
    same = grouping.grouped([make(rule="imbsam", rule_args=IMBSAM)])[0]
    assert matching.beside(same.facts) and naming.data(same) == "cifar100 IF 100"


def test_reweighted_sam_stands_beside_its_weight():
    arguments = {"rho": 0.05, "eta": 100.0, "tail_weight": 5.0}
    found = matching.beside(facts(rule="reweighted_sam", rule_args=arguments))
    assert [row.all for row in found] == [49.0]


EVERY = {"running_statistics": "every"}


@pytest.mark.parametrize(
    "change, names",
    [
        (AS_PAPER, ["imbsam-paper"]),
        ({}, ["imbsam-paper"]),
        ({"rule": "imbsam", "rule_args": {**IMBSAM, "rho": 0.1}}, []),
        ({"lr": 0.1}, []),
        ({"weight_decay": 1e-3}, ["imbsam-release", "sse-sam-release"]),
        ({"weight_decay": 1e-3, "rule": "sam", "rule_args": {"rho": 0.05}}, []),
        (
            {"weight_decay": 1e-3, "rule": "imbsam", "ascent": EVERY,
             "rule_args": {**IMBSAM, "strict": True, "tail_scale": 2.0}},
            ["imbsam-release"],
        ),
        (
            {"weight_decay": 1e-3, "rule": "imbsam", "rule_args": IMBSAM,
             "ascent": {**EVERY, "group_mean": True}},
            ["sse-sam-release"],
        ),
        ({"epochs": 320}, ["weight-balancing"]),
        (RATIO, ["density-ratio"]),
        ({**RATIO, "schedule": "cosine-prestep", "rule": "sam"}, ["density-ratio"]),
        ({**RATIO, "schedule": "steps", "subset": "shuffled"}, ["saddle"]),
        ({"val_per_class": 5}, []),
        ({"settings": {"augment": False}}, []),
        ({**AS_PAPER, "settings": {"examples": "independent"}}, ["imbsam-paper"]),
        ({**AS_PAPER, "settings": {"examples": "split_norm"}}, []),
        ({**AS_PAPER, "memory": 0.5}, []),
        ({**AS_PAPER, "shrink": 2}, []),
        ({"rule": "sam", "rule_args": {"rho": 0.05}, "ascent": {"adaptive": "asam"}}, []),
        ({"dataset": "cifar10"}, []),
    ],
    ids=str,
)  # fmt: skip
def test_a_run_is_marked_by_the_protocols_it_follows(change, names):
    assert matching.marks(facts(**change)) == names


EXPORTED = "TFDS cifar100, long-tailed (exp, imbalance factor 100; of each class "


@pytest.mark.parametrize(
    "source, known",
    [
        (EXPORTED + "first n_i by id)", {"subset": "first", "shrink": 1}),
        (EXPORTED + "shuffled, seed 3)", {"subset": "shuffled", "subset_seed": 3, "shrink": 1}),
        (
            EXPORTED + "first n_i by id); every 2x2 pixels averaged",
            {"subset": "first", "shrink": 2},
        ),
        ("mine; every 2x2 pixels averaged; every 4x4 pixels averaged", {"shrink": 8}),
    ],
)
def test_an_exported_file_says_what_it_holds(source, known, capsys):
    """Its run has no flag of its own for either: it must not stand beside papers as their data."""
    run = make(source=source, subset=None, subset_seed=None)
    found = grouping.grouped([run])[0]
    assert {name: found.facts[name] for name in known} == known
    differences = matching.differences(found.facts, "imbsam-paper")
    assert ("shrink 2, not 1" in differences) == (known["shrink"] == 2)
    assert not any("None" in difference for difference in differences)
    unknown = "subset not known, theirs first (a guess)" in differences
    assert unknown == ("subset" not in known)
    assert (matching.marks(found.facts) == ["imbsam-paper"]) == (differences == [])
    tables.show([run])
    shown = " ".join(capsys.readouterr().out.split())
    averaged = f"IF 100, every {known['shrink']}x{known['shrink']} pixels averaged"
    assert (averaged in shown) == (known["shrink"] > 1) and "None" not in shown


def test_an_exported_set_is_the_set_that_it_was_exported_from():
    source = EXPORTED + "shuffled, seed 3); every 2x2 pixels averaged"
    direct = make(0, source=source, subset="shuffled", subset_seed=3, shrink=2)
    exported = make(1, source=source, subset=None, subset_seed=None)
    assert [group.seeds for group in grouping.grouped([direct, exported])] == [[0, 1]]


def test_sse_sams_switch_is_counted_in_epochs():
    """170 steps an epoch: the release switches after 140 of 200 epochs."""
    arguments = {"eta": 100.0, "head_rho": 0.05, "tail_rho": 0.1, "switch_step": 140 * 170}
    run = {"rule": "sse_sam", "weight_decay": 1e-3, "ascent": EVERY}
    assert "sse-sam-release" in matching.marks(facts(**run, rule_args=arguments))
    other = facts(**run, rule_args={**arguments, "switch_step": 70 * 170})
    assert "switch_epoch 70, not 140" in matching.differences(other, "sse-sam-release")


def test_differences_say_both_values_and_what_is_a_guess():
    run = facts(model="resnet32", lr=0.1, subset="shuffled", rule="sam", rule_args={"rho": 0.2})
    assert matching.differences(run, "imbsam-paper") == [
        "model resnet32, not resnet34_3x3",
        "lr 0.1, not 0.01 (a guess)",
        "rho 0.2, not 0.05",
        "subset shuffled, not first (a guess)",
    ]
    assert matching.differences(run, "quoted") == ["its settings are not known"]
    assert matching.differences(
        facts(weight_decay=0.0), "weight-balancing", {"weight_decay": 0}
    ) == ["epochs 200, not 320"]
    assert "schedule cosine-prestep, not steps" in matching.differences(facts(), "saddle")
    group = grouping.grouped([make(seed, weight_decay=1e-3) for seed in (0, 1, 2)])[0]
    (row,) = (r for r in matching.beside(group.facts) if r.source == "SSE")
    assert naming.differs(group, row) == ["seeds 0-2, not 9826"]


# ---- what is shown and written ---------------------------------------------------------------


def run_command(*args):
    report.main(report.arguments().parse_args([str(arg) for arg in args]))


@pytest.fixture
def runs(tmp_path):
    for seed in range(3):
        save(tmp_path / "runs" / f"sgd_{seed}", seed, all=40.0 + seed)
        save(tmp_path / "runs" / f"imbsam_{seed}", seed, "imbsam", 43.0 + 2 * seed, IMBSAM,
             accuracies=(89.0, 62.0, 30.0 + 3 * seed))  # fmt: skip
    return tmp_path / "runs"


def test_the_terminal_fits_100_columns_and_names_both_kinds(runs, capsys):
    run_command(runs)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    for part in ("45.0±2.0", "46.0±2.0", "+4.0±0.6", "best*", "Table 3", "51.1", "imbsam-paper"):
        assert part in shown
    assert "43.0 45.0 47.0" in shown  # each seed
    assert "never with last" in " ".join(shown.split())


@pytest.mark.parametrize("n, factor", [(1, None), (2, "12.7"), (3, "4.3"), (4, "3.2"), (5, None)])
def test_few_seeds_are_said_to_have_wide_intervals(n, factor, capsys):
    from scipy import stats

    tables.show([make(s, rule, 50.0 + s) for s in range(n) for rule in ("sgd", "sam")])
    shown = " ".join(capsys.readouterr().out.split())
    assert ("a 95% interval" in shown) == (factor is not None)
    if factor:
        assert f"{stats.t.ppf(0.975, n - 1):.1f}" == factor and f"is {factor} of them" in shown
    assert ("1 seeds" in shown, "seed 0;" in shown) == (False, n == 1)


def test_show_takes_reports_that_were_never_saved(capsys):
    tables.show([make(0), make(1, "imbsam", rule_args={"rho": "step(0.1, 0.2)", "strict": True})])
    shown = " ".join(capsys.readouterr().out.split())
    assert "imbsam rho step(0.1, 0.2)" in shown and "protocol: own" in shown


def test_the_files_hold_runs_and_published_rows(runs, tmp_path, capsys):
    out = tmp_path / "out"
    run_command(runs, "--out", out)
    with open(out / "report.csv") as file:
        rows = list(csv.DictReader(file))
    (imbsam,) = (r for r in rows if r["kind"] == "run" and r["rule"] == "imbsam")
    assert (imbsam["seeds"], imbsam["n"], imbsam["protocol"]) == ("0 1 2", "3", "imbsam-paper")
    assert [float(imbsam[f"last_all{x}"]) for x in ("", "_sd")] == [45, 2]
    assert [float(imbsam[f"best_few{x}"]) for x in ("", "_sd")] == [26, 2]
    assert float(imbsam["last_all_minus_sgd"]) == 4  # of 3, 4 and 5
    assert float(imbsam["last_all_minus_sgd_se"]) == pytest.approx(1 / math.sqrt(3), abs=1e-4)
    assert imbsam["published_all"] == "" and float(imbsam["step_ms"]) == 101
    (paper,) = (r for r in rows if r["protocol"] == "imbsam-paper" and r["published_all"] == "51.1")
    assert (paper["kind"], paper["run"], paper["run_differs"]) == ("published", imbsam["run"], "")
    assert "Table 3" in paper["source"] and paper["last_all"] == paper["best_all"] == ""
    assert sum(row["kind"] == "run" for row in rows) == 2

    text = (out / "report.md").read_text()
    assert "| last epoch | 3 | 65.0±2.0 | 45.0±2.0 | 25.0±2.0 | 45.0±2.0 | +4.0±0.6 |" in text
    assert "| 101.0 | 1.00 | imbsam-paper |" in text  # milliseconds, and FLOPs over SGD's
    assert "| best* | 3 | 66.0±2.0 |" in text
    assert "| 75.9 | 53.5 | 19.4 | 51.1 |" in text and "imbsam-paper[^imbsam-paper]" in text
    assert "[^imbsam-paper]: imbsam-paper: Section 4.1" in text
    assert "weight_decay 0.005, not 0.001" in text and "gain_per_class.png" in text
    columns = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(columns) == 1
    marked = {part.split("]")[0] for part in text.split("[^")[1:]}
    assert all(f"[^{key}]: " in text for key in marked)
    assert (out / "gain_per_class.png").stat().st_size > 5000
    assert "gain_per_class.png" in capsys.readouterr().out


def test_the_gain_of_a_class_is_the_mean_over_common_seeds(runs):
    save(runs / "imbsam_7", 7, "imbsam", 79.0, IMBSAM, accuracies=(99, 99, 99))
    (panel,), missing = writing.gains(grouping.grouped(reading.find([str(runs)])))
    assert panel["gain"] == pytest.approx([-1, 2, 3])  # (0 + 3 + 6) / 3; seed 7 has no partner
    assert panel["counts"] == [500, 100, 5] and panel["eta"] == 100
    assert panel["title"].endswith("3 seeds") and missing == []
    assert panel["se"] == pytest.approx([0, 0, math.sqrt(3)])  # of 0, 3 and 6


def test_without_an_sgd_partner_there_is_no_plot_and_it_is_said(tmp_path, capsys):
    run, out = save(tmp_path / "sam", 0, "sam"), tmp_path / "out"
    out.mkdir()
    (out / "gain_per_class.png").write_text("of an earlier report")
    run_command(run, "--out", out, "--overwrite")
    assert not (out / "gain_per_class.png").exists()
    assert "gain_per_class.png" not in (out / "report.md").read_text()
    assert "no SGD run of the same setting and seed" in " ".join(capsys.readouterr().out.split())


def test_without_class_tables_there_is_no_plot(runs, tmp_path, capsys):
    for file in runs.glob("*/per_class.csv"):
        file.unlink()
    run_command(runs, "--out", tmp_path / "out")
    assert not (tmp_path / "out" / "gain_per_class.png").exists()
    assert "no per_class.csv beside its reports" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "damage", ["class,name\n0,a\n", "train_examples,accuracy\nx,1\n", "a\0b\n\0"]
)
def test_a_broken_class_table_is_named(runs, tmp_path, damage):
    (runs / "imbsam_0" / "per_class.csv").write_text(damage)
    with pytest.raises(RunError, match=r"imbsam_0/per_class.csv"):
        run_command(runs, "--out", tmp_path / "out")


def test_class_tables_of_other_data_are_refused(runs, tmp_path):
    path = runs / "imbsam_0" / "per_class.csv"
    path.write_text(path.read_text().replace("500", "400"))
    with pytest.raises(RunError, match="differ in class sizes"):
        run_command(runs, "--out", tmp_path / "out")


@pytest.mark.parametrize("classes", [10, 100])
def test_the_plot_of_many_panels_and_untested_classes(tmp_path, classes):
    from experiments.reports import plots

    gain = [float("nan")] + [(-1.0) ** c * c for c in range(1, classes)]
    panel = {"title": "x", "counts": list(range(classes, 0, -1)), "gain": gain, "eta": None}
    plots.gain_per_class(tmp_path / "gain.png", [panel, {**panel, "eta": 3.0}])
    assert (tmp_path / "gain.png").stat().st_size > 5000


def test_a_running_mean_leaves_out_what_is_not_known():
    import numpy as np

    from experiments.reports.plots import _running_mean

    values = np.array([1.0, 2.0, np.nan, 4.0, 9.0])
    np.testing.assert_allclose(_running_mean(values, 3), [1.5, 1.5, 3, 6.5, 6.5])


def test_out_is_not_overwritten_unasked(runs, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    with pytest.raises(SystemExit, match="1"):
        cli.run(report.main, report.arguments().parse_args([str(runs), "--out", str(out)]))
    assert capsys.readouterr().err.splitlines()[-1].endswith("choose another --out")
    run_command(runs, "--out", out, "--overwrite")
    assert (out / "mine.txt").read_text() == "kept" and (out / "report.md").exists()
    with pytest.raises(RunError, match="is no folder"):
        run_command(runs, "--out", out / "mine.txt")


def test_no_two_processes_write_one_report(runs, tmp_path, capsys):
    with locks.Lock(tmp_path / "out"):
        with pytest.raises(RunError, match="in use by another process"):
            run_command(runs, "--out", tmp_path / "out")
        assert [path.name for path in (tmp_path / "out").iterdir()] == [locks.LOCK]
    with pytest.raises(RunError, match="no finished run"):
        run_command(tmp_path / "out", "--out", tmp_path / "fresh")
    assert not (tmp_path / "fresh").exists()


def test_what_is_not_finished_is_said(runs, tmp_path, capsys):
    (tmp_path / "unfinished").mkdir()
    run_command(runs, tmp_path / "unfinished")
    assert "no finished run in" in capsys.readouterr().out


def test_no_published_figure_is_said(tmp_path, capsys):
    run_command(save(tmp_path / "run", 0, dataset="digits"), "--out", tmp_path / "out")
    assert "No published figure of these settings" in capsys.readouterr().out
    assert "no published figure of this setting" in (tmp_path / "out" / "report.md").read_text()
