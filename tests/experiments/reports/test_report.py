"""What a report of finished runs shows and writes."""

import csv
import json
import math
import shutil

import numpy as np
import pytest

from experiments import redraw, report
from experiments.host import cli, locks
from experiments.host.errors import RunError
from experiments.host.sealed import class_counts_sha256
from experiments.reports import grouping, plots, reading, tables, writing
from made_reports import IMBSAM, make, run_command, save


@pytest.fixture
def runs(tmp_path):
    for seed in range(3):
        save(tmp_path / "runs" / f"sgd_{seed}", seed, all=40.0 + seed)
        save(tmp_path / "runs" / f"imbsam_{seed}", seed, "imbsam", 43.0 + 2 * seed, IMBSAM,
             accuracies=(59.0 + seed, 42.0 + seed, 28.0 + 4 * seed))  # fmt: skip
    return tmp_path / "runs"


@pytest.fixture
def undrawn(monkeypatch):
    """A plot is a name: what it is drawn of is in gains.json."""
    monkeypatch.setattr(plots, "gain_per_class", lambda path, panels: path.touch())


def test_the_terminal_fits_100_columns_and_names_both_kinds(runs, capsys):
    run_command(runs)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    for part in ("45.0±2.0", "46.0±2.0", "+4.0±0.6", "best*", "Table 3", "51.1", "imbsam-paper"):
        assert part in shown
    assert "43.0 45.0 47.0" in shown  # each seed
    assert "never with last" in " ".join(shown.split())
    titles = ("accuracy (%), mean over classes", "published, same data and method")
    assert all(title in shown for title in titles)


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


def test_brackets_of_names_are_shown(capsys):
    """A setting of a report may hold any text."""
    tables.show([make(0, "imbsam", rule_args={"rho": "[red]x"})])
    assert "imbsam rho [red]x" in " ".join(capsys.readouterr().out.split())


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
    plot, before = out / "gain_per_class.png", (out / "gain_per_class.png").read_bytes()
    assert len(before) > 5000
    plot.unlink()
    assert redraw.redraw(out) == [plot] and plot.read_bytes() == before
    *said, plot = capsys.readouterr().out.splitlines()
    assert plot == "gain_per_class.png too"
    assert "".join(said).endswith(f"report.md and report.csv are in {out}")


def test_the_gain_of_a_class_is_the_mean_over_common_seeds(runs):
    save(runs / "imbsam_7", 7, "imbsam", 79.0, IMBSAM, accuracies=(79, 79, 79))
    (panel,), missing = writing.gains(grouping.grouped(reading.find([str(runs)])))
    assert panel["gain"] == pytest.approx([-1, 2, 11])  # (8 + 11 + 14) / 3; seed 7 has no partner
    assert panel["counts"] == [500, 100, 5] and panel["eta"] == 100
    assert panel["title"].endswith("3 seeds") and missing == []
    assert panel["se"] == pytest.approx([0, 0, math.sqrt(3)])  # of 8, 11 and 14


def test_a_class_that_was_not_tested_has_a_gap_in_the_kept_gains(runs, tmp_path, undrawn):
    for seed in range(3):
        for rule in ("sgd", "sam"):
            save(runs / "gap" / rule / str(seed), seed, rule, accuracies=(60, 40, ""))
    run_command(runs / "gap", "--out", tmp_path / "out")
    (panel,) = json.loads((tmp_path / "out" / "gains.json").read_text())
    assert panel["gain"][-1] is None and None not in panel["gain"][:-1]
    assert redraw.redraw(tmp_path / "out") == [tmp_path / "out" / "gain_per_class.png"]


def test_the_gain_of_one_seed_has_no_error(tmp_path):
    for rule, accuracies in (("sgd", (90, 60, 30)), ("sam", (89, 60, 40))):
        save(tmp_path / rule, 0, rule, sum(accuracies) / 3, accuracies=accuracies)
    (panel,), _ = writing.gains(grouping.grouped(reading.find([str(tmp_path)])))
    assert panel["gain"] == [-1, 0, 10] and "se" not in panel
    assert panel["title"].endswith("1 seed")


@pytest.mark.parametrize(
    ("thresholds", "drawn"),
    [({"many_above": 100, "few_below": 20}, (100, 20)), ({"many_above": 100}, None),
     ({"many_above": None, "few_below": 20}, None), (None, None)],
)  # fmt: skip
def test_shot_groups_are_drawn_where_both_of_their_bounds_are_known(tmp_path, thresholds, drawn):
    for rule in ("sgd", "sam"):
        save(tmp_path / rule, 0, rule, accuracies=(60, 50, 40), thresholds=thresholds)
    (panel,), _ = writing.gains(grouping.grouped(reading.find([str(tmp_path)])))
    assert panel.get("thresholds") == drawn


def test_without_an_sgd_partner_there_is_no_plot_and_it_is_said(tmp_path, capsys):
    run, out = save(tmp_path / "sam", 0, "sam"), tmp_path / "out"
    out.mkdir()
    for name in ("gain_per_class.png", "gain_per_class.svg", "gains.json"):
        (out / name).write_text("of an earlier report")
    run_command(run, "--out", out, "--overwrite")
    assert not list(out.glob("gain*"))
    assert "gain_per_class.png" not in (out / "report.md").read_text()
    assert "no SGD run of the same setting and seed" in " ".join(capsys.readouterr().out.split())


def test_without_class_tables_there_is_no_plot(runs, tmp_path, capsys):
    for file in runs.glob("*/per_class.csv"):
        file.unlink()
    run_command(runs, "--out", tmp_path / "out")
    assert not (tmp_path / "out" / "gain_per_class.png").exists()
    assert "no per_class.csv beside its reports" in " ".join(capsys.readouterr().out.split())


def _without_last(lines):
    return lines[:-1]


def _cells(at, value):
    def change(lines):
        cells = lines[1].split(",")
        cells[at] = value
        return [lines[0], ",".join(cells), *lines[2:]]

    return change


@pytest.mark.parametrize("digest", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        _without_last, lambda lines: lines[:1], lambda lines: [], lambda lines: [*lines, lines[-1]],
        lambda lines: [*lines[:2], *lines[1:3]], lambda lines: [lines[0], *lines[:0:-1]],
        *(_cells(5, value) for value in ("500", "-3", "nan", "inf", "", "12.0000")),
        *(_cells(4, value) for value in ("-1", "2000", "x", "")), _cells(2, "499"),
    ],
)  # fmt: skip
def test_class_tables_that_are_not_their_reports_are_refused_before_anything_is_shown(
    runs, tmp_path, capsys, change, digest
):
    for file in runs.glob("*/per_class.csv"):  # all of them alike
        if digest:
            report = json.loads((file.parent / "report.json").read_text())
            counts = {"class_counts_sha256": class_counts_sha256([500, 100, 5])}
            (file.parent / "report.json").write_text(json.dumps({**report, **counts}))
        file.write_text("\n".join([*change(file.read_text().splitlines()), ""]))
    with pytest.raises(RunError, match=r"per_class.csv is damaged: .*; remove it, or|cannot read"):
        run_command(runs, "--out", tmp_path / "out")
    assert capsys.readouterr().out == "" and not (tmp_path / "out").exists()


def test_a_class_table_that_is_no_text_is_a_sentence(runs, tmp_path, capsys):
    (runs / "sgd_1" / "per_class.csv").write_bytes(b"class\xff,name\n")
    with pytest.raises(RunError, match=r"cannot read .*sgd_1/per_class.csv: it is not UTF-8 text"):
        run_command(runs, "--out", tmp_path / "out")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "damage", ["class,name\n0,a\n", "train_examples,accuracy\nx,1\n", "a\0b\n\0"]
)
def test_a_broken_class_table_is_named(runs, tmp_path, damage):
    (runs / "imbsam_0" / "per_class.csv").write_text(damage)
    with pytest.raises(RunError, match=r"imbsam_0/per_class.csv"):
        run_command(runs, "--out", tmp_path / "out")


def test_class_tables_of_other_data_are_refused(runs, tmp_path):
    shutil.rmtree(runs / "imbsam_0")
    save(runs / "imbsam_0", 0, "imbsam", 43.0, IMBSAM, counts=(400, 100, 5))
    with pytest.raises(RunError, match="differ in class sizes"):
        run_command(runs, "--out", tmp_path / "out")


# A hundred, quickly: "many classes" of test_plots.py.
@pytest.mark.parametrize("classes", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_the_plot_of_many_panels_and_untested_classes(tmp_path, classes):
    gain = [float("nan")] + [(-1.0) ** c * c for c in range(1, classes)]
    panel = {"title": "x", "counts": list(range(classes, 0, -1)), "gain": gain, "eta": None}
    plots.gain_per_class(tmp_path / "gain.png", [panel, {**panel, "eta": 3.0}])
    assert (tmp_path / "gain.png").stat().st_size > 5000


def test_a_running_mean_leaves_out_what_is_not_known():
    import numpy as np

    from experiments.reports.plots import _running_mean

    values = np.array([1.0, 2.0, np.nan, 4.0, 9.0])
    np.testing.assert_allclose(_running_mean(values, 3), [1.5, 1.5, 3, 6.5, 6.5])


def test_out_is_not_overwritten_unasked(runs, tmp_path, capsys, undrawn):
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


def test_gains_of_two_seeds_where_a_class_is_not_tested(tmp_path, undrawn):
    """NaN there, in the mean and in its error; the others as they are."""
    for seed in (0, 1):
        for rule, accuracies in (("sgd", ("", 50.0, 10.0)), ("imbsam", ("", 60.0, 20.0 + seed))):
            save(tmp_path / rule / str(seed), seed, rule, sum(accuracies[1:]) / 2,
                 accuracies=accuracies, rule_args={} if rule == "sgd" else IMBSAM)  # fmt: skip
    run_command(tmp_path / "sgd", tmp_path / "imbsam", "--out", tmp_path / "out")
    groups = grouping.grouped(reading.find([str(tmp_path / "sgd"), str(tmp_path / "imbsam")]))
    ((panel,), _) = writing.gains(groups)
    np.testing.assert_allclose(panel["gain"], [np.nan, 10, 10.5])
    np.testing.assert_allclose(panel["se"], [np.nan, 0, 0.5])


@pytest.mark.parametrize("order", [1, -1])
def test_sgd_is_the_one_with_the_most_seeds_in_common(order):
    """Whichever comes first: of one setting, by passes that change nothing for SGD."""
    lone = [make(0, settings={"examples": "independent"})]
    three = [make(s, settings={"examples": "dependent"}) for s in range(3)]
    mine = [make(s, "imbsam", rule_args=IMBSAM, settings={"examples": "dependent"})
            for s in range(3)]  # fmt: skip
    first, second = [lone, three][::order]
    *_, last = grouping.grouped([*first, *second, *mine])
    assert len(last.pairs()) == 3
    (same,) = [g for g in grouping.grouped([*lone, *three, mine[0]]) if g.identity["rule"] != "sgd"]
    assert same.sgd.identity.get("examples", "dependent") == "dependent"  # of one seed each


def test_the_columns_of_crops_are_there_where_all_runs_have_them():
    crops = {"many": 9.0, "medium": 8.0, "few": 7.0, "all": 8.5}
    groups = grouping.grouped([make(s, last_epoch_ensembled=crops) for s in (0, 1)])
    record = next(writing.csv_records(groups))
    assert record["crops_all"] == 8.5
    (plain,) = grouping.grouped([make(0, last_epoch_ensembled=None)])
    assert "crops" not in plain.kinds and plain.figure("last", "all").mean == 50


@pytest.mark.parametrize(
    ("number", "more"), [(0, None), (1, ""), (12, ""), (13, " and 1 more"), (20, " and 8 more")]
)
def test_up_to_twelve_paths_that_are_passed_over_are_named(
    number, more, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(report, "passed_over", lambda paths: [f"p{k}" for k in range(number)])
    run_command(save(tmp_path / "run", dataset="digits"))
    said = " ".join(capsys.readouterr().out.split())
    names = ", ".join(f"p{k}" for k in range(min(number, 12)))
    if more is None:
        assert "passed over" not in said
    else:
        assert said.endswith(f"passed over, no finished run in: {names}{more}")


def test_what_has_a_plot_and_what_has_none_are_told_line_by_line(runs, tmp_path, capsys, undrawn):
    for seed, loss in enumerate(("ldam", "focal")):
        save(runs / loss, seed, "sam", loss=loss)
    run_command(runs, "--out", tmp_path / "out")
    *_, plot, first, second = capsys.readouterr().out.splitlines()
    assert plot == "gain_per_class.png too"
    words = "no gain per class of {}. sam {}: no SGD run of the same setting and seed"
    assert {first, second} == {words.format(1, "focal"), words.format(3, "ldam")}
