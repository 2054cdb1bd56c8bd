"""Finished runs are found, and what is damaged is told in a sentence."""

import json
import math
from collections import Counter

import pytest

from experiments.host.errors import RunError
from experiments.reports import grouping, matching, naming, reading
from made_reports import IMBSAM, make, run_command, save


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


@pytest.mark.parametrize(
    "above",
    [
        {"a": 1}, [1], make(1, "imbsam", rule_args=IMBSAM), make(0, "sam", rule_args=IMBSAM),
        make(0, "imbsam", rule_args={**IMBSAM, "eta": 20}),
        make(0, "imbsam", rule_args=IMBSAM, loss="focal"),
    ],
    ids=["another experiment", "a list", "seed", "rule", "rule_args", "loss"],
)  # fmt: skip
def test_what_lies_above_a_second_stage_may_be_no_first_stage_of_it(tmp_path, above, capsys):
    """As if there were none: the second stage is shown by itself."""
    second = tmp_path / "run" / "stage2_crt"
    save(second, 0, "imbsam", rule_args=IMBSAM, stage2="crt")
    (report,) = reading.find([str(second)])
    (second.parent / "report.json").write_text(json.dumps(above))
    assert reading.find([str(second)]) == [report] and "first" not in report
    run_command(second)
    assert "imbsam" in capsys.readouterr().out


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
    files = [str(runs / folder / "report.json") for folder in ("good/seed_0", "anomaly")]
    assert reading.passed_over(files) == [f"{files[1]} (no training run)"]
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
    "field",
    sorted({*make(), "step_ms", "stage2_args", "shrink", "thresholds", "last_epoch_ensembled"}),
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


DEEP = {"a": [1, None, "x", {"b": [True]}], "c": None}
# Of each kind of field: what a run may write there, and what none does.
KINDS = {
    ("dataset", "model", "rule", "loss"): (["x"], [None, 1, ["x"]]),
    ("imbalance_factor", "batch_size"): ([1, 0.5], [0, -1, True, None, "1"]),
    ("epochs", "seed"): ([0, 3, 3.0], [-1, 0.5, False, None]),
    ("all", "many", "medium", "few"): ([None, 0, 100, 100.001], [-0.1, 100.1, True, "50"]),
    ("best_epoch_flip",): ([{"epoch": 9}, {"all": 1.0}], [None, {"few": 101}, {"many": "x"}]),
    ("last_epoch_ensembled",): ([None, {"all": 1.0}], [{"few": 101}, {"many": "x"}, "x"]),
    ("rule_args", "settings"): ([{}, DEEP], [None, {"a": [1e300]}, {"a": {"b": [{1e301}]}}]),
    ("ascent", "loss_args", "stage2_args", "thresholds", "jax"): ([None, {}, DEEP], [[], 1, "x"]),
    ("stage2", "subset", "source", "classifier"): ([None, "x"], [1, {}]),
    ("step_ms", "flops_ratio_to_sgd", "shrink", "train_examples"): ([None, 0.1], [0, -1, "1"]),
    ("mixup", "memory", "val_per_class", "subset_seed"): ([None, 0, -1.5], [True, "x", [1]]),
    ("rows_sha256",): ([None, {}, {"train": "ab"}], ["ab", ["ab"], {"train": 3}]),
}


@pytest.mark.parametrize("fields", KINDS, ids=lambda fields: fields[0])
def test_what_a_field_of_a_report_can_be(fields):
    fitting, others = KINDS[fields]
    for field in fields:
        fits = reading._FITS[field]
        assert all(map(fits, fitting)), field
        assert not any(map(fits, others)), field


def test_every_field_that_is_looked_at_is_above():
    assert {field for fields in KINDS for field in fields} == set(reading._FITS)


@pytest.mark.parametrize("values", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_setting_damaged_in_any_way_is_no_traceback(tmp_path, monkeypatch, capsys, values):
    """Options are the run's own business: a report shows whatever they hold.

    Quickly one of three values in each, in turn.
    """
    monkeypatch.setattr("experiments.reports.plots.gain_per_class", lambda *_: None)
    arguments = {**IMBSAM, "switch_step": 10, "tail_weight": 2.0}
    good = make(0, "imbsam", rule_args=arguments, ascent={"p": 2.0}, thresholds=dict(SHOTS))
    save(tmp_path / "sgd", 0)
    run = save(tmp_path / "run", 0)
    bad = [None, "x", {"a": {}}]
    for part in ("settings", "rule_args", "ascent", "loss_args", "thresholds", "stage2_args"):
        for number, name in enumerate([*(good.get(part) or {}), "shrink", "subset", "own"]):
            for value in (bad * 2)[number % 3 :][:values]:
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


# ---- the files beside a report ------------------------------------------------------------------


def table_of(file, rows, heads="class,train_examples,test_examples,correct,accuracy"):
    file.write_text("\n".join([heads, *(",".join(map(str, row)) for row in rows), ""]))


RIGHT = [[0, 50, 4, 3, "75.0000"], [1, 20, 3, 1, "33.3333"], [2, 5, 0, 0, ""]]
OF = {"all": 54.1667, "train_examples": 75}


def test_the_classes_of_a_run(tmp_path):
    """Of a class that was not tested there is no accuracy; the others have the report's mean."""
    file = tmp_path / "per_class.csv"
    table_of(file, RIGHT)
    found = reading.classes(file, OF)
    assert found == ([50, 20, 5], [4, 3, 0], [3, 1, 0])
    first, second, third = found.accuracies()
    assert (first, second) == (75, pytest.approx(100 / 3)) and math.isnan(third)
    table_of(file, [[0, 50, 4, 0, "0.0000"], [1, 0, 1, 1, "100.0000"]])
    assert reading.classes(file, {"all": 50.009}).correct == [0, 1]
    table_of(file, [[0, 3, 0, 0, ""]])
    assert reading.classes(file, {"all": None, "train_examples": None}).counts == [3]


@pytest.mark.parametrize(
    ("rows", "of", "why"),
    [
        (RIGHT[:2], {}, "its training examples are not those of report.json"),
        (RIGHT[::-1], {}, "its classes are not each there once, in order"),
        ([RIGHT[0], RIGHT[0], RIGHT[2]], {}, "its classes are not each there once, in order"),
        ([[0, -1, 4, 3, "75.0000"]], {}, "more or fewer images are right than were tested"),
        ([[0, 75, 4, 5, "125.0000"]], {}, "more or fewer images are right than were tested"),
        ([[0, 75, 4, -1, "-25.0000"]], {}, "more or fewer images are right than were tested"),
        ([[0, 75, 4, 3, "75.000"]], {}, "the accuracy of class 0 is not that of its images"),
        ([*RIGHT[:2], [2, 5, 0, 0, "0.0000"]], {}, "the accuracy of class 2 is not that of its"),
        (RIGHT, {"train_examples": 76}, "its training examples are not those of report.json"),
        (RIGHT, {"class_counts_sha256": "ab"}, "its training examples are not those of report"),
        (RIGHT, {"all": 54.1775}, "its accuracies are not those of report.json"),
        (RIGHT, {"all": None}, "its accuracies are not those of report.json"),
        ([[0, 75, 0, 0, ""]], {}, "its accuracies are not those of report.json"),
        ([], {}, "its training examples are not those of report.json"),
        ([], {"train_examples": 0}, "its accuracies are not those of report.json"),
        ([[0, "x", 4, 3, "75.0000"]], {}, "a class lacks a number"),
    ],
)
def test_classes_that_are_not_of_the_run(rows, of, why, tmp_path):
    file = tmp_path / "per_class.csv"
    table_of(file, rows)
    with pytest.raises(RunError, match=rf"per_class.csv is damaged: ({why}).*; remove it, or rep"):
        reading.classes(file, {**OF, **of})


def of_epochs(file, numbers, **last):
    line = {"train_loss": 1.0, **{f"test_{split}": 50.0 for split in ("many", "medium", "all")}}
    lines = [{"epoch": epoch, **line, "test_few": None} for epoch in numbers]
    if lines:
        lines[-1] |= last
    file.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return lines


@pytest.mark.parametrize("number", [0, 1, 3])
def test_the_epochs_of_a_run(number, tmp_path):
    lines = of_epochs(tmp_path / "m.jsonl", range(1, number + 1), test_all=100.001, test_many=0)
    assert reading.epochs(tmp_path / "m.jsonl", {"epochs": number}) == lines


@pytest.mark.parametrize(
    ("numbers", "last", "epochs", "why"),
    [
        ([1, 2], {}, 3, "it has 2 epochs, and report.json tells of 3"),
        ([1, 2, 3, 4], {}, 3, "it has 4 epochs, and report.json tells of 3"),
        ([2, 3, 4], {}, 3, "it has 3 epochs, and report.json tells of 3"),
        ([1, 2, 4], {}, 3, "it has 3 epochs, and report.json tells of 3"),
        ([], {}, 1, "it has 0 epochs, and report.json tells of 1"),
        ([1, 2], {"test_few": 100.002}, 2, "test_few of epoch 2 is no accuracy"),
        ([1, 2], {"test_all": -1, "test_few": -2}, 2, "test_few of epoch 2 is no accuracy"),
        ([1, 2], {"test_many": 101}, 3, "it has 2 epochs"),
    ],
)
def test_epochs_that_are_not_of_the_run(numbers, last, epochs, why, tmp_path):
    of_epochs(tmp_path / "m.jsonl", numbers, **last)
    with pytest.raises(RunError, match=rf"m.jsonl is damaged: {why}.*; remove it, or repeat"):
        reading.epochs(tmp_path / "m.jsonl", {"epochs": epochs})


@pytest.mark.parametrize("lacks", ["epoch", "train_loss"])
def test_an_epoch_without_a_number_of_its_own_is_told(lacks, tmp_path):
    (line,) = of_epochs(tmp_path / "m.jsonl", [1])
    del line[lacks]
    (tmp_path / "m.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(RunError, match="it has 0 epochs, and"):
        reading.epochs(tmp_path / "m.jsonl", {"epochs": 1})


def test_a_report_alone_and_what_is_none(tmp_path):
    run = save(tmp_path / "run")
    assert reading.read_report(run / "report.json")["rule"] == "sgd"
    (tmp_path / "other.json").write_text('{"method": "devnet"}')
    with pytest.raises(RunError, match=r"other.json is no report of a training run: it lacks rule"):
        reading.read_report(tmp_path / "other.json")


def test_what_is_passed_over_is_told_with_why(tmp_path):
    """Folders that hold a run are not; nor those above one, though they have settings."""

    def put(name, text="{}"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return str(file)

    save(tmp_path / "runs" / "many" / "seed_0")
    put("runs/many/config.json")
    put("runs/begun/config.json")
    put("runs/table/config.json")
    put("runs/table/summary.json")
    put("runs/anomaly/report.json", '{"method": "devnet"}')
    put("runs/odd/mine.json", "{")
    put("runs/.hidden/config.json")
    (tmp_path / "empty").mkdir()
    words = put("words.txt", "x")
    other = put("other.json", '{"method": "x"}')
    good = str(tmp_path / "runs" / "many" / "seed_0" / "report.json")
    runs = tmp_path / "runs"
    paths = [str(runs), str(tmp_path / "empty"), words, other, good, str(tmp_path / "runs/odd")]
    assert reading.passed_over(paths) == [
        f"{runs}/anomaly (no training run)", f"{runs}/odd/mine.json (unreadable)",
        f"{runs}/begun (not finished)", f"{runs}/table (no training run)",
        f"{tmp_path}/empty (no run)", f"{words} (no report)", f"{other} (no training run)",
        f"{runs}/odd/mine.json (unreadable)",
    ]  # fmt: skip


def test_folders_are_walked_once_in_order(tmp_path):
    for name in ("b", "a", "a/x", "checkpoints", ".git", "a/checkpoints/deep"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    (tmp_path.parent / f"{tmp_path.name}_beside").mkdir()
    (tmp_path / "c").symlink_to(tmp_path.parent / f"{tmp_path.name}_beside")
    found = [str(path.relative_to(tmp_path)) for path in reading.folders_in(tmp_path)]
    assert found == [".", "a", "a/x", "b", "c"]
