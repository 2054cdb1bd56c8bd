"""The figures of README, docs/ and results/*/README.md, computed again from files of results/."""

import csv
import json
import re
from collections import defaultdict
from functools import cache

import numpy as np
import pytest
import tables
from scipy import stats

import imbsam_jax as ij
from benchmarks import kernels
from experiments.anomaly.report import holm
from experiments.reports import published
from places import ROOT

RESULTS = ROOT / "results"
SPLITS = ("many", "medium", "few", "all")


@cache
def page(name=""):
    return (RESULTS / name / "README.md" if name else ROOT / "README.md").read_text()


@cache
def doc(name):
    return (ROOT / "docs" / f"{name}.md").read_text()


@cache
def read(path):
    return json.loads((RESULTS / path).read_text())


def table(text, *heads):
    """The rows of the first table with these columns, as dicts of cells; empty heads by place."""
    lines = text.splitlines()
    for at, line in enumerate(lines):
        cells = _cells(line)
        if cells and set(heads) <= set(cells) and re.match(r"\|[-:|]+\|$", lines[at + 1]):
            names = [name or str(k) for k, name in enumerate(cells)]
            rows = []
            for row in lines[at + 2 :]:
                if not row.startswith("|"):
                    return rows
                rows.append(dict(zip(names, _cells(row), strict=True)))
            return rows
    raise AssertionError(f"no table with {heads}")


def _cells(line):
    if not line.startswith("|"):
        return []
    return [cell.strip().replace("**", "").replace("−", "-") for cell in line.split("|")[1:-1]]


def says(text, *phrases):
    """Each stands in the page, whatever its line breaks."""
    flat = " ".join(text.replace("**", "").split())
    for phrase in phrases:
        assert " ".join(phrase.split()) in flat, phrase


def pm(mean, spread, sign="", digits=1):
    return f"{mean:{sign}.{digits}f} ± {spread:.{digits}f}"


def error(values):
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def paired(values, digits=1):
    return pm(np.mean(values), error(values), "+", digits)


def ends(values):
    half = stats.t.ppf(0.975, len(values) - 1) * error(values)
    return np.mean(values) - half, np.mean(values) + half


def interval(values):
    low, high = ends(values)
    return f"{low:+.1f} to {high:+.1f}"


# ---- anomalies ------------------------------------------------------------------------------


@cache
def anomaly_runs(folder):
    """By (protocol, label ratio, method, metric, rule), [subset, seed] in percent."""
    found = defaultdict(dict)
    with open(RESULTS / "anomaly" / folder / "runs.csv", newline="") as file:
        for row in csv.DictReader(file):
            for metric in ("auroc", "ap_anomaly", "ap_normal"):
                key = row["protocol"], float(row["label_ratio"]), row["method"], metric, row["rule"]
                found[key].setdefault(row["dataset"], []).append(float(row[metric]))
    return {key: np.array(list(values.values())) for key, values in found.items()}


def gain(folder, protocol, ratio, method, metric, rule, base="sgd"):
    """[subset]: the difference, mean over seeds."""
    runs = anomaly_runs(folder)
    key = protocol, ratio, method, metric
    return (runs[*key, rule] - runs[*key, base]).mean(axis=1)


def counted(values):
    # Figures are filed to four decimals; the smallest true difference of a mean of three is 3e-5.
    return f"{paired(values, 2)} ({(values > 1e-9).sum()}/{len(values)})"


FOLDERS = ("levels", "rho_0.01", "rho_0.02", "rho_0.1", "rho_0.2", "label_ratio", "protocol")


@pytest.mark.parametrize("folder", [*FOLDERS, "bundled"])
def test_anomaly_summaries_come_of_their_runs(folder):
    groups = read(f"anomaly/{folder}/summary.json")["groups"]
    for row in groups:
        key = row["protocol"], row["label_ratio"], row["method"]
        for metric in ("auroc", "ap_anomaly", "ap_normal"):
            runs = anomaly_runs(folder)[*key, metric, row["rule"]]
            assert runs.shape == (row["datasets"], row["seeds"])
            assert row[metric] == pytest.approx(runs.mean(), abs=1e-4)
            assert row[f"{metric}_sd"] == pytest.approx(runs.mean(axis=0).std(ddof=1), abs=1e-4)
            if row["rule"] == "sgd":
                continue
            values = gain(folder, *key, metric, row["rule"])
            assert row[f"{metric}_minus_sgd"] == pytest.approx(values.mean(), abs=2e-4)
            assert row[f"{metric}_minus_sgd_se"] == pytest.approx(error(values), abs=2e-4)
            assert row[f"{metric}_improved"] == (values > 1e-9).sum(), (folder, row)


def test_anomaly_levels():
    rows = table(page("anomaly"), "method", "rule", "AP normal")
    assert len(rows) == 6
    for row in rows:
        for name, metric in (("AUROC", "auroc"), ("AP anomaly", "ap_anomaly"),
                             ("AP normal", "ap_normal")):  # fmt: skip
            runs = anomaly_runs("levels")["adbench", 0.25, row["method"], metric, row["rule"]]
            assert row[name] == f"{runs.mean():.2f}"
        if row["rule"] != "sgd":
            values = gain("levels", "adbench", 0.25, row["method"], "auroc", row["rule"])
            assert row["AUROC - SGD"] == counted(values)


def rho_folder(rho):
    return "levels" if rho == "0.05" else f"rho_{rho}"


def at_ratio(row):
    ratio = float(row["labelled"].rstrip("%")) / 100
    return ("levels" if ratio == 0.25 else "label_ratio"), "adbench", ratio


def at_protocol(row):
    if row["protocol"] == "adbench":
        return "levels", "adbench", 0.25
    return "protocol", row["protocol"], 1.0 if row["protocol"] == "full" else 0.25


@pytest.mark.parametrize(
    "heading, place, rows",
    [
        ("## rho", lambda row: (rho_folder(row["rho"]), "adbench", 0.25), 10),
        ("## Share of", at_ratio, 10),
        ("## Protocol", at_protocol, 8),
    ],
)
def test_anomaly_differences(heading, place, rows):
    found = table(page("anomaly").split(heading)[1], "SGD: AUROC", "ImbSAM - SGD")
    assert len(found) == rows
    # Names of columns come twice: by place.
    text = page("anomaly").split(heading)[1]
    lines = [_cells(line) for line in text.split("\n## ")[0].splitlines() if line.startswith("|")]
    for row, cells in zip(found, lines[2:], strict=True):
        folder, protocol, ratio = place(row)
        for start, metric in ((2, "auroc"), (5, "ap_anomaly")):
            key = protocol, ratio, row["method"], metric
            assert cells[start] == f"{anomaly_runs(folder)[*key, 'sgd'].mean():.2f}"
            for k, rule in enumerate(("sam", "imbsam"), 1):
                assert cells[start + k] == counted(gain(folder, *key, rule)), (row, rule, metric)


def test_imbsam_against_sam():
    rows = table(page("anomaly"), "protocol", "ImbSAM - SAM")
    assert len(rows) == 8
    for row in rows:
        folder = "protocol" if row["protocol"] != "adbench" else rho_folder(row["rho"])
        ratio = float(row["labelled"].rstrip("%")) / 100
        key = row["protocol"], ratio, row["method"], "auroc"
        assert row["ImbSAM - SAM"] == counted(gain(folder, *key, "imbsam", "sam"))


def test_what_is_left_of_the_anomaly_differences():
    """Holm over all that the tables hold, each counted once."""
    tests = {}
    for folder in FOLDERS:
        rho = read(f"anomaly/{folder}/config.json")["rho"]
        for *key, metric, rule in anomaly_runs(folder):
            if rule != "sgd" and metric != "ap_normal":
                values = gain(folder, *key, metric, rule)
                p = stats.ttest_1samp(values, 0).pvalue
                tests.setdefault((rho, *key, metric, rule), (p, values.mean()))
    corrected = dict(zip(tests, holm([p for p, _ in tests.values()]), strict=True))
    left = {
        (key[0], key[1], key[2], key[3], key[4]): f"{tests[key][1]:+.2f}"
        for key, p in corrected.items()
        if p <= 0.05
    }
    assert left == {
        (0.05, "adbench", 0.1, "deepsad", "auroc"): "+3.74",
        (0.05, "adbench", 0.1, "deepsad", "ap_anomaly"): "+4.80",
        (0.05, "adbench", 0.25, "deepsad", "auroc"): "+3.31",
        (0.05, "adbench", 0.25, "deepsad", "ap_anomaly"): "+4.89",
        (0.02, "adbench", 0.25, "deepsad", "auroc"): "+1.81",
        (0.02, "adbench", 0.25, "deepsad", "ap_anomaly"): "+2.70",
        (0.05, "full", 1.0, "devnet", "ap_anomaly"): "-0.93",
    }
    least = min(p for key, p in corrected.items() if key[-1] == "imbsam")
    says(page("anomaly"), f"hold {len(tests)} different differences", f"{len(left)} stand at 5%",
         f"the smallest corrected p-value of one is {least:.2f}", *left.values())  # fmt: skip
    says(doc("anomalies"),
         f"Of the {len(tests)} differences in that page's tables {len(left)} stand")  # fmt: skip


def test_anomaly_prose():
    groups = {(r["method"], r["rule"]): r for r in read("anomaly/bundled/summary.json")["groups"]}
    assert {f"{r['auroc']:.1f}" for (m, _), r in groups.items() if m == "devnet"} == {"99.0"}
    sam, imbsam = (
        pm(groups["deepsad", rule]["auroc_minus_sgd"],
           groups["deepsad", rule]["auroc_minus_sgd_se"], "+", 2)
        for rule in ("sam", "imbsam")
    )  # fmt: skip
    level = groups["deepsad", "sgd"]["auroc"]
    says(page("anomaly"), f"DeepSAD {level:.1f} under SGD, SAM {sam}, ImbSAM {imbsam}")
    auroc = "auroc"

    def of(rule, rho="0.05", method="deepsad", base="sgd"):
        return paired(gain(rho_folder(rho), "adbench", 0.25, method, auroc, rule, base))

    def under(protocol, rule, base="sgd"):
        ratio = 1.0 if protocol == "full" else 0.25
        return paired(gain("protocol", protocol, ratio, "deepsad", auroc, rule, base))

    def devnet(ratio):
        return paired(gain("label_ratio", "adbench", ratio, "devnet", auroc, "imbsam"))

    says(
        doc("anomalies"),
        f"({of('sam')} at rho 0.05, 25% labelled; it stands)",
        f"from ImbSAM ({of('imbsam')})",
        f"ImbSAM minus SAM, paired: {of('imbsam', base='sam')} there, "
        f"{of('imbsam', '0.02', base='sam')} at rho 0.02",
        f"ImbSAM's from {of('imbsam', '0.01')} at 0.01 by {of('imbsam', '0.02')} at 0.02 to "
        f"{of('imbsam', '0.2')} at 0.2 (SAM there {of('sam', '0.2')})",
        f"(SAM {under('clean', 'sam')}, ImbSAM {under('clean', 'imbsam')}; ImbSAM minus SAM there "
        f"is {under('clean', 'imbsam', 'sam')})",
        f"(`full`: {under('full', 'sam')}, {under('full', 'imbsam')})",
        f"(`nodup`) it is {under('nodup', 'sam')} and {under('nodup', 'imbsam')}",
        f"(ImbSAM {of('imbsam', method='devnet')} at 25%, {devnet(0.5)} at 50%)",
        f"({devnet(0.01)} at 1%)",
    )


# ---- CIFAR100-LT ----------------------------------------------------------------------------


def reports(folder, seeds):
    return [read(f"{folder}/seed_{seed}/report.json") for seed in seeds]


def differences(folder, seeds, name, base, split):
    pairs = zip(reports(f"{folder}/{name}", seeds), reports(f"{folder}/{base}", seeds), strict=True)
    return [a[split] - b[split] for a, b in pairs]


@pytest.mark.parametrize(
    "name_of_page, part, seeds, base, names",
    [
        ("cifar100_lt_100", "", (0, 1), "sgd", ("sgd", "imbsam", "renorm")),
        *[("cifar100_lt_100", part, (0, 1, 2), "sgd", ("sgd", "sam", "imbsam"))
          for part in ("logit_adjusted", "cross_entropy")],
        ("cifar100_lt_gsa", "", (0, 1, 2), "sgd", ("sgd", "imbsam", "gsa")),
        ("accelerator", "cross_entropy", (0, 1, 2), "sgd", ("sgd", "imbsam")),
        ("split_norm", "", (0, 1, 2), "imbsam",
         ("sgd", "imbsam", "renorm", "own", "held", "memory")),
        *[("cheaper_passes", part, range(8), "imbsam",
           ("sgd", "imbsam", "split_norm", "shared_norm"))
          for part in ("logit_adjusted", "cross_entropy")],
    ],
)  # fmt: skip
def test_runs_over_seeds(name_of_page, part, seeds, base, names):
    folder = f"{name_of_page}/{part}".rstrip("/")
    last = "All of each seed" if name_of_page == "accelerator" else "FLOPs / SGD"
    rows = table(page(name_of_page), *[part.replace("_", "-")] * bool(part), "Many", last)
    for name, row in zip(names, rows, strict=True):
        runs = reports(f"{folder}/{name}", seeds)
        for split in SPLITS:
            expected = f"{np.mean([run[split] for run in runs]):.1f}"
            if name != base:
                values = differences(folder, seeds, name, base, split)
                expected += f", {np.mean(values):+.1f} ({interval(values)})"
            assert row[split.capitalize()] == expected, (name, split)
        if "FLOPs / SGD" in row:
            assert row["FLOPs / SGD"] == f"{runs[0]['flops_ratio_to_sgd']:.2f}"
        if "All of each seed" in row:
            assert row["All of each seed"] == ", ".join(f"{run['all']:.1f}" for run in runs)


def test_the_scale_of_gsa():
    none, *points = read("cifar100_lt_gsa/sweep/summary.json")
    rows = table(page("cifar100_lt_gsa"), "scale", "All, test images")
    for point, row in zip(points, rows, strict=True):
        assert list(row.values()) == [
            f"{point['point']['gsa_scale']:g}", f"{point['val_all_sgd']:+.1f}",
            f"{point['test_all_sgd']:+.1f}",
        ]  # fmt: skip
    best = max(points, key=lambda point: point["val_all"])
    assert best["point"] == {"gsa_scale": 1e-3} and best["val_all"] > none["val_all"]
    lost = [
        -np.mean(differences("cifar100_lt_gsa", (0, 1, 2), name, "sgd", split))
        for split in ("all", "few")
        for name in ("imbsam", "gsa")
    ]
    says(page("cifar100_lt_gsa"), f"GSA loses {-points[-1]['test_all_sgd']:.1f} points in one seed",
         f"by {best['val_all_sgd']:.1f} points of", "costs 5.3 times its FLOPs",
         "(both have means 0.4 below SGD's, {2:.1f} and {3:.1f} in Few)".format(*lost),
         )  # fmt: skip
    assert f"{lost[0]:.1f}" == f"{lost[1]:.1f}" == "0.4" and points[-1]["test_few"] < 0.05


PASSES = {"imbsam": "exact", "split_norm": "`split_norm`", "shared_norm": "`shared_norm`"}


def test_radii_of_the_cheaper_passes():
    """Of two seeds, each by itself: an interval of two is of no use."""

    def signed(values):
        return ", ".join(f"{value:+.1f}" for value in values)

    folder, seeds = "cheaper_passes/cifar10", (0, 1)
    sgd, *rows = table(page("cheaper_passes"), "CIFAR10-LT", "rho", "less exact")
    assert sgd["CIFAR10-LT"] == "SGD"
    plain = reports(f"{folder}/sgd", seeds)
    assert sgd["All"] == ", ".join(f"{run['all']:.1f}" for run in plain)
    assert sgd["Few"] == ", ".join(f"{run['few']:.1f}" for run in plain)
    seen, lost, gained = [], {"all": [], "few": []}, []
    for row in rows:
        name = next(key for key, said in PASSES.items() if row["CIFAR10-LT"] == f"ImbSAM, {said}")
        runs = reports(f"{folder}/{name}/rho_{row['rho']}", seeds)
        assert all(run["rule_args"]["rho"] == float(row["rho"]) for run in runs)
        for split in ("all", "few"):
            expected = ", ".join(f"{run[split]:.1f}" for run in runs)
            assert row[split.capitalize()] == expected, row
        at = f"rho_{row['rho']}"
        less_sgd = [run["all"] - base["all"] for run, base in zip(runs, plain, strict=True)]
        assert row["less SGD"] == signed(less_sgd), row
        exact = differences(folder, seeds, f"{name}/{at}", f"imbsam/{at}", "all")
        assert row["less exact"] == ("" if name == "imbsam" else signed(exact)), row
        if name == "imbsam":
            gained += less_sgd
        else:
            for split, found in lost.items():
                base = f"imbsam/{at}"
                found += differences(folder, seeds, base, f"{name}/{at}", split)
        assert row["FLOPs / SGD"] == f"{runs[0]['flops_ratio_to_sgd']:.2f}"
        seen.append((row["rho"], name))
    assert sorted(seen) == sorted((rho, name) for rho in ("0.02", "0.1", "0.2") for name in PASSES)
    spans = [f"{min(found):.1f} to {max(found):.1f}" for found in lost.values()]
    said = f"lose {spans[0]} points of All to exact ImbSAM here, and {spans[1]} of Few"
    says(page("cheaper_passes"), said,
         f"Exact ImbSAM less SGD is {min(gained):+.1f} to {max(gained):+.1f}.")  # fmt: skip
    says(doc("cost"), said.replace("lose", "lost").replace(" to exact ImbSAM here", ""))


@cache
def of_passes(loss, name, base, split):
    values = differences(f"cheaper_passes/{loss}", range(8), name, base, split)
    return f"{np.mean(values):+.1f} ({interval(values)})"


def test_prose_on_the_cheaper_passes():
    losses = {"cross_entropy": "cross-entropy", "logit_adjusted": "logit adjustment"}

    def of(name, split, base="imbsam"):
        return [of_passes(loss, name, base, split) for loss in losses]

    medium, whole = (
        [of(name, split) for name in ("split_norm", "shared_norm")] for split in ("medium", "all")
    )
    exact = {split: of("imbsam", split, "sgd") for split in ("all", "few")}
    shared = of("shared_norm", "all", "sgd")
    says(
        page("cheaper_passes"),
        f"With cross-entropy: `split_norm` {medium[0][0]}, `shared_norm` {medium[1][0]}; with "
        f"logit adjustment {medium[0][1]} and {medium[1][1]}",
        f"with cross-entropy, {whole[0][0]} and {whole[1][0]}, with logit adjustment {whole[0][1]} "
        f"and {whole[1][1]}",
        f"with logit adjustment All {exact['all'][1]} and Few {exact['few'][1]}, with "
        f"cross-entropy All {exact['all'][0]} and Few {exact['few'][0]}",
        f"By `shared_norm`: All {shared[1]} and {shared[0]}",
    )
    says(
        doc("cost"),
        f"Medium {medium[0][0].replace('(', '(95% interval ')} and All {whole[0][0]} with "
        f"cross-entropy, Medium {medium[0][1]} and All {whole[0][1]} with logit adjustment",
        f"Medium {medium[1][0]} and All {whole[1][0]} with cross-entropy, Medium {medium[1][1]} "
        f"and All {whole[1][1]} with logit adjustment",
        f"All {exact['all'][1]} with logit adjustment and {exact['all'][0]} with cross-entropy",
    )
    says(
        doc("choosing"),
        f"against SGD with logit adjustment All {exact['all'][1]}, Few {exact['few'][1]}, with "
        f"cross-entropy All {exact['all'][0]}, Few {exact['few'][0]}. Training accuracy was below "
        "51%",
    )
    lost = [-float(value.split()[0]) for value in exact["all"]]
    longer = [run["all"] for run in reports("cifar100_lt_100/logit_adjusted/imbsam", range(3))]
    plain = [run["all"] for run in reports("cifar100_lt_100/logit_adjusted/sgd", range(3))]
    assert abs(np.mean(longer) - np.mean(plain)) < error(np.subtract(longer, plain)) * 4.3
    says(
        page(), f"lost {lost[0]:.1f} and {lost[1]:.1f} points in 40 epochs, and gained none in 100"
    )
    flops = {
        name: reports(f"cheaper_passes/cross_entropy/{name}", [0])[0]["flops_ratio_to_sgd"]
        for name in ("split_norm", "shared_norm")
    }
    says(page(), f"with it {flops['shared_norm']:.2f}, at a loss of accuracy")
    says(doc("cost"), f"{flops['split_norm']:.2f} times SGD's FLOPs instead of 2.66 (ResNet-8")
    few = [run["few"] for run in reports("cheaper_passes/cross_entropy/sgd", range(8))]
    says(page("cheaper_passes"), f"Few is {np.mean(few):.1f}% at best")
    trained = {}
    for loss in losses:
        names = ("sgd", "imbsam", "split_norm", "shared_norm")
        files = [
            RESULTS / f"cheaper_passes/{loss}/{name}/seed_{seed}/metrics.jsonl"
            for name in names
            for seed in range(8)
        ]
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        trained[loss] = [line["train_accuracy"] for line in lines if line["epoch"] == 40]
        assert len(trained[loss]) == 32 and max(trained[loss]) < 51
    spans = [f"{min(x):.0f} to {max(x):.0f}%" for x in map(trained.get, reversed(losses))]
    says(
        page("cheaper_passes"),
        f"(training accuracy in the last {spans[0]} with logit adjustment, {spans[1]} with "
        "cross-entropy)",
    )


def test_training_accuracy_and_tail_rows_of_the_small_networks():
    def last(*folders):
        files = [file for of in folders for file in (RESULTS / of).glob("*/*/metrics.jsonl")]
        assert len(files) == len(folders) * 9 or not folders
        return [json.loads(file.read_text().splitlines()[-1])["train_accuracy"] for file in files]

    hundred = "cifar100_lt_100"
    adjusted, entropy = (last(f"{hundred}/{x}") for x in ("logit_adjusted", "cross_entropy"))
    first = [
        json.loads(file.read_text().splitlines()[-1])["train_accuracy"]
        for file in (RESULTS / hundred).glob("*/seed_*/metrics.jsonl")
    ]
    assert len(first) == 6
    every = [*adjusted, *entropy, *first]
    says(
        page(hundred),
        f"Training accuracy, on augmented images, ends at {min(adjusted):.0f} to "
        f"{max(adjusted):.0f}%",
        f"at {min(every):.0f} to {max(every):.0f}% training accuracy",
    )
    rows = []
    for counts, eta in (((10, 5000, 100), 500), ((100, 500, 100), 100)):
        of = ij.long_tail_counts(*counts)
        rows.append(64 * of[of <= eta].sum() / of.sum())
    (a, b), (c, d) = ((int(x), int(x) + 1) for x in rows)
    share = rows[0] / 64
    says(
        page("cheaper_passes"),
        f"{share:.1%} of the images, {a} or {b} rows of a batch ({c} or {d} above)",
    )


def test_prose_on_few_seeds():
    def of(folder, seeds, name, base):
        return {split: differences(folder, seeds, name, base, split) for split in SPLITS}

    two = of("cifar100_lt_100", (0, 1), "renorm", "imbsam")
    says(page("cifar100_lt_100"), *(
        f"{split.capitalize()} {np.mean(values):+.1f} ({interval(values)})"
        for split, values in two.items()
    ))  # fmt: skip
    gained = of("cifar100_lt_100", (0, 1), "imbsam", "sgd")
    said = []
    for loss in ("logit_adjusted", "cross_entropy"):
        runs = {
            rule: [run["all"] for run in reports(f"cifar100_lt_100/{loss}/{rule}", (0, 1, 2))]
            for rule in ("sgd", "sam", "imbsam")
        }
        means = [f"{np.mean(values):.1f}" for values in runs.values()]
        said.append((*means, interval(np.subtract(runs["imbsam"], runs["sgd"]))))
    says(
        doc("choosing"),
        "logit adjustment {}, SAM {} and ImbSAM {} ({}), with".format(*said[0]),
        "the same settings {}, {} and {} ({})".format(*said[1]),
    )
    low, high = ends(gained["all"])
    says(page("cifar100_lt_100"), f"anything from {low:+.1f} to {high:+.1f}",
         f"SGD's ({interval(gained['few'])})")  # fmt: skip
    three = of("split_norm", (0, 1, 2), "renorm", "imbsam")
    own, held = (of("split_norm", (0, 1, 2), x, "imbsam")["all"] for x in ("own", "held"))
    memory = of("split_norm", (0, 1, 2), "memory", "sgd")
    lost = [f"{-np.mean(x):.1f} ({-ends(x)[1]:.1f} to {-ends(x)[0]:.1f})" for x in (own, held)]
    says(
        doc("cost"),
        "three seeds, " + ", ".join(
            f"{split.capitalize()} {interval(three[split])}"
            for split in ("all", "many", "medium", "few")
        ),
        f"with two, All {interval(two['all'])}",
        f"it lost {lost[0].replace(' (', ' points (')}, by statistics held fixed {lost[1]}",
    )  # fmt: skip

    def level(folder, seeds, name, split="all"):
        return f"{np.mean([run[split] for run in reports(f'{folder}/{name}', seeds)]):.1f}"

    levels = [[level("cifar100_lt_100", (0, 1), rule, split) for rule in ("sgd", "imbsam")]
              for split in ("all", "few")]  # fmt: skip
    ends_at = [level("split_norm", (0, 1, 2), rule) for rule in ("memory", "sgd", "imbsam")]
    says(
        doc("choosing"),
        "SGD All {}, ImbSAM {} ".format(*levels[0])
        + f"(95% interval of the difference {interval(gained['all'])})",
        "and Few {} and {}".format(*levels[1]),
        "where SGD does, {} against {}; exact ImbSAM had {}".format(*ends_at),
    )
    sgd = of("split_norm", (0, 1, 2), "sgd", "imbsam")["all"]
    renorm = differences("split_norm", (0, 1, 2), "sgd", "renorm", "all")
    says(
        page("split_norm"),
        f"(All {np.mean(memory['all']):+.1f}, {interval(memory['all'])}; Few "
        f"{np.mean(memory['few']):+.1f}, {interval(memory['few'])})",
        f"({interval(sgd)} and {interval(renorm)})",
        f"({interval(three['medium'])})",
    )


def test_ten_epochs():
    rows = table(page("cifar100_lt_cpu10"), "rule", "many")
    for row, rule in zip(rows, ("sgd", "sam", "imbsam"), strict=True):
        report = read(f"cifar100_lt_cpu10/{rule}/report.json")
        assert row["rule"].split(",")[0] == rule == report["rule"]
        assert [row[split] for split in SPLITS] == [f"{report[split]:.1f}" for split in SPLITS]
        assert float(row["FLOPs / SGD"]) == round(report["flops_ratio_to_sgd"], 2)
    right = {}
    for rule in ("sgd", "sam", "imbsam"):
        with open(RESULTS / "cifar100_lt_cpu10" / rule / "per_class.csv", newline="") as file:
            classes = [row for row in csv.DictReader(file) if int(row["train_examples"]) < 20]
        right[rule] = sum(int(row["correct"]) for row in classes)
        assert sum(int(row["test_examples"]) for row in classes) == 3000
    assert right == {"sgd": 1, "sam": 0, "imbsam": 1}  # as the page says
    levels = [f"{read(f'cifar100_lt_cpu10/{rule}/report.json')['all']:.1f}"
              for rule in ("sgd", "sam", "imbsam")]  # fmt: skip
    says(doc("choosing"), "SGD All {}, SAM {}, ImbSAM {}, Few 0.0 for all three".format(*levels))


# ---- digits ---------------------------------------------------------------------------------


def digits(folder):
    return read(f"digits_lt/{folder}summary.json")


def by_seed(row, split="all"):
    return np.array(row[f"{split}_by_seed"])


def digit_row(row, base):
    cells = [pm(row[split], row[f"{split}_sd"]) for split in SPLITS]
    for split in ("all", "few"):
        difference = by_seed(row, split) - by_seed(base, split)
        cells.append("" if row is base else paired(difference))
    return [*cells, f"{row['step_cost_ratio']:.2f}"]


HEADS = ("Many", "Medium", "Few", "All", "All - SGD", "Few - SGD", "cost")


def test_digits_summaries_come_of_their_seeds():
    for file in sorted((RESULTS / "digits_lt").rglob("summary.json")):
        for row in json.loads(file.read_text()):
            prefixes = ("test_", "val_") if "point" in row else ("",)
            for prefix in prefixes:
                seeds = row[f"{prefix}all_by_seed"]
                assert len(seeds) == len(row["seeds"]), file
                assert row[f"{prefix}all"] == pytest.approx(np.mean(seeds), abs=1e-4), file


def test_the_demo():
    rows, base = digits(""), digits("")[0]
    found = table(page(), "rule", "Many", "cost")
    for row, shown in zip(rows, found, strict=True):
        assert [shown[head] for head in HEADS] == digit_row(row, base)
    sam, imbsam = rows[1:]
    many = by_seed(imbsam, "many") - by_seed(base, "many")
    few = by_seed(imbsam, "few") - by_seed(sam, "few")
    says(page(), f"Many-shot accuracy changes by {paired(many)} under ImbSAM")
    says(doc("choosing"), f"Many falls by {pm(-many.mean(), error(many))} points on the digits",
         f"{sam['paired_few']:+.1f} against {imbsam['paired_few']:+.1f} few-shot points on the "
         f"digits ({pm(few.mean(), error(few))} less)")  # fmt: skip


def test_every_rule():
    rows = digits("all_rules/")
    found = table(page("digits_lt"), "rule", "loss", "All - SGD")
    for row, shown in zip(rows, found, strict=True):
        assert (shown["rule"], shown["loss"]) == (row["rule"], row["loss"])
        assert [shown[head] for head in HEADS[:-1]] == digit_row(row, rows[0])[:-1]
    of = {(row["rule"], row["loss"]): row for row in rows}
    of |= {(row["rule"], row["loss"]): row for row in digits("gsa/1e-2/")[1::2]}
    for shown in table(tables.gains(), "rule", "with logit adjustment"):
        rule = shown["rule"].split("`")[1]
        for column, loss in (
            ("All - SGD", "cross_entropy"),
            ("with logit adjustment", "logit_adjusted"),
        ):
            row = of[rule, loss]
            difference = by_seed(row) - by_seed(rows[0])
            assert shown[column] == ("" if row is rows[0] else paired(difference)), (rule, loss)
    ce = {rule: by_seed(of[rule, "cross_entropy"]) for rule in dict.fromkeys(r for r, _ in of)}
    la = {rule: by_seed(of[rule, "logit_adjusted"]) for rule in ce}
    both, alone = la["imbsam"] - ce["sgd"], ce["imbsam"] - ce["sgd"]
    adjusted = la["sgd"] - ce["sgd"]
    ahead, missing = adjusted - alone, alone + adjusted - both
    says(page("digits_lt"),
         f"(+{adjusted.mean():.1f}) beats every rule alone (ImbSAM: +{alone.mean():.1f}, paired "
         f"{pm(ahead.mean(), error(ahead))} less)",
         f"they gain {both.mean():.1f}, more than either and less than the sum of both (by "
         f"{pm(missing.mean(), error(missing))})",
         f"ImbSAM gains {paired(la['imbsam'] - la['sgd'])} (paired), SAM "
         f"{paired(la['sam'] - la['sgd'])}",
         f"plain SAM ({paired(ce['imbsam'] - ce['sam'])}, paired)",
         f"re-weighted loss ({paired(ce['imbsam'] - ce['reweighted_sam'])})",
         f"Focal-SAM at this radius ({paired(ce['imbsam'] - ce['focal_sam'])})",
         f"it is not told ({paired(ce['imbsam'] - ce['sse_sam'])})")  # fmt: skip
    says(doc("choosing"),
         f"(by {pm(ahead.mean(), error(ahead))}); both together gain more than either, "
         f"{both.mean():.1f}, and less than the sum of both, {(alone + adjusted).mean():.1f}",
         f"not told from ImbSAM ({paired(ce['imbsam'] - ce['sse_sam'])} for that)")  # fmt: skip
    says(page(), f"by {pm(ahead.mean(), error(ahead))} points; both together gain more than "
         f"either, {both.mean():.1f}")  # fmt: skip
    doubled = {(row["rule"], row["loss"]): row for row in digits("tail_scale_2/")}
    weighted = digits("reweighted_sgd/")[1]
    shown = [pm(doubled["imbsam", loss]["paired_all"], doubled["imbsam", loss]["paired_all_se"],
                "+") for loss in ("cross_entropy", "logit_adjusted")]  # fmt: skip
    says(page("digits_lt"), "{} with cross-entropy, {} with logit adjustment".format(*shown),
         f"against {paired(alone)} and {paired(both)} with 1",
         f"gains {pm(weighted['paired_all'], weighted['paired_all_se'], '+')} (`reweighted_sgd/`",
         )  # fmt: skip


def test_cc_sams_radius():
    for shown in table(page("digits_lt"), "variant", "noise ratio"):
        variant, ratio = shown["variant"], shown["noise ratio"].split()[0].rstrip(";")
        if (variant, ratio) == ("paper", "1e-6"):
            row = next(r for r in digits("all_rules/") if r["rule"] == "cc_sam")
            base = digits("all_rules/")[0]
        else:
            base, row = digits(f"cc_sam/{variant}_{ratio}/")
            assert row["rule_args"]["noise_ratio"] == float(ratio)
        assert shown["All"] == pm(row["all"], row["all_sd"])
        assert shown["All - SGD"] == paired(by_seed(row) - by_seed(base))


def test_scales_of_grouped_sharpness():
    for shown in table(page("digits_lt"), "scale", "All, logit-adjusted"):
        scale = shown["scale"].split()[0]
        sgd, gsa, sgd_la, gsa_la = digits(f"gsa/{scale}/")
        assert gsa["rule_args"]["gsa_scale"] == gsa_la["rule_args"]["gsa_scale"] == float(scale)
        assert [shown["All"], shown["All - SGD"], shown["Few - SGD"]] == [
            pm(gsa["all"], gsa["all_sd"]), paired(by_seed(gsa) - by_seed(sgd)),
            pm(gsa["paired_few"], gsa["paired_few_se"], "+"),
        ]  # fmt: skip
        assert shown["All, logit-adjusted"] == pm(gsa_la["all"], gsa_la["all_sd"])
        difference = by_seed(gsa_la) - by_seed(sgd_la)
        assert shown["that - SGD, logit-adjusted"] == paired(difference)
        if scale == "1e-5":
            says(
                doc("choosing"),
                f"at a thousandth of that it gains {paired(by_seed(gsa) - by_seed(sgd))[1:]}",
            )


def points(folder):
    return {tuple(row["point"].values()): row for row in digits(folder)}


def test_the_sweep():
    found = points("sweep/")
    rows = table(page("digits_lt"), "eta", "rho", "validation, All - SGD")
    for shown in rows:
        key = () if shown["eta"] == "SGD" else (float(shown["eta"]), float(shown["rho"]))
        row = found[key]
        assert [shown[s.capitalize()] for s in SPLITS] == [
            f"{row[f'test_{s}']:.1f}" for s in SPLITS
        ]
        if key:
            for column, name in (("All - SGD", "test_all"), ("Few - SGD", "test_few"),
                                 ("validation, All - SGD", "val_all")):  # fmt: skip
                assert shown[column] == pm(row[f"{name}_sgd"], row[f"{name}_sgd_se"], "+")
    chosen = [key for key, row in found.items() if row["best_val"]]
    assert chosen == [(8.0, 0.4)] == [key for key, row in found.items() if row["best_test"]]
    small, middle = (np.array(found[eta, 0.4]["test_all_by_seed"]) for eta in (8.0, 20.0))
    says(page("digits_lt"), f"not told from 20 ({paired(small - middle)} at rho 0.4)")


def remembered(folder, *point):
    if folder.startswith("sgd"):
        return by_seed(digits(f"remembered/{folder}/")[0])
    return np.array(points(f"remembered/{folder}/")[point]["test_all_by_seed"])


REMEMBERED = {
    ("SGD", "100"): ("choice",),
    ("SGD", "116"): ("epochs_116",),
    ("SGD", "200"): ("sgd_epochs_200",),
    ("SGD", "267"): ("sgd_epochs_267",),
    ("SAM, rho 0.2", "100"): ("choice_sam", 0.2),
    ("ImbSAM, rho 0.3", "75"): ("imbsam_epochs_75", 0.3),
    ("ImbSAM, rho 0.3", "86"): ("imbsam_epochs_86", 0.3),
    ("ImbSAM, rho 0.3", "100"): ("choice_imbsam", 0.3),
    ("remembered, decay 0.5, rho 0.4", "100"): ("choice", 0.5, 0.4),
    ("remembered, decay 0.5, rho 0.4", "116"): ("epochs_116", 0.5, 0.4),
    ("remembered, decay 0.5, rho 0.4", "133"): ("epochs_133", 0.5, 0.4),
    ("ImbSAM, rho 0.2", "22"): ("imbsam_epochs_22", 0.2),
    ("ImbSAM, rho 0.2", "26"): ("imbsam_epochs_26", 0.2),
    ("remembered, decay 0.5, rho 0.4", "30"): ("epochs_30", 0.5, 0.4),
}


def test_the_remembered_direction():
    sgd = remembered("choice")
    rows = table(page("digits_lt"), "method", "units, whole batch")
    assert {(row["method"], row["epochs"]) for row in rows} == set(REMEMBERED)
    for row in rows:
        values = remembered(*REMEMBERED[row["method"], row["epochs"]])
        assert row["All"] == f"{values.mean():.1f}"
        if (row["method"], row["epochs"]) != ("SGD", "100"):
            assert row["All - SGD of 100 epochs"] == paired(values - sgd), row
    hundred, full = remembered("choice", 0.5, 0.4), remembered("choice_imbsam", 0.3)
    few = remembered("epochs_30", 0.5, 0.4)

    def over(*other, mine=hundred):
        return paired(mine - remembered(*other))

    levels = {row["rule"]: row for row in digits("remembered/rho_0.4/") if row["memory"]}
    exact = next(r for r in digits("remembered/rho_0.4/")
                 if r["rule"] == "imbsam" and not r["memory"])  # fmt: skip
    grid = points("remembered/choice/")
    assert all(grid[0.9, rho]["test_all"] < grid[0.5, rho]["test_all"] for rho in (0.4, 0.6))
    says(
        page("digits_lt"),
        f"it is at {over('imbsam_epochs_75', 0.3)} (whole batch",
        f"and {over('imbsam_epochs_86', 0.3)} (independent",
        f"at ImbSAM's full price, {paired(remembered('epochs_133', 0.5, 0.4) - full)} and "
        f"{paired(remembered('epochs_116', 0.5, 0.4) - full)}",
        f"by {over('choice_sam', 0.2)}, and of SGD with twice the epochs by "
        f"{over('sgd_epochs_200')}",
        f"it is at {over('imbsam_epochs_22', 0.2, mine=few)} (whole batch) and "
        f"{over('imbsam_epochs_26', 0.2, mine=few)} (independent)",
        f"lost by {(few - remembered('imbsam_epochs_22', 0.3)).mean():.1f}",
        f"at rho 0.2 it gains {grid[0.5, 0.2]['test_all_sgd']:+.1f}",
        f"exact direction gains {points('sweep/')[20.0, 0.2]['test_all_sgd']:+.1f}",
        f"(All {pm(levels['sam']['all'], levels['sam']['all_sd'])}, `rho_0.4/`)",
        f"all seeds at once: {levels['imbsam']['step_cost_ratio']:.2f}, ImbSAM "
        f"{exact['step_cost_ratio']:.2f}",
    )
    says(doc("choosing"),
         f"({over('imbsam_epochs_75', 0.3)} and {over('imbsam_epochs_86', 0.3)})")  # fmt: skip


# ---- times, FLOPs, memory -------------------------------------------------------------------

STEP_TABLES = (
    "",
    "resnet32",
    "mlp_256",
    "vit_ti4_32",
    "resnet32_gn",
    "resnet20_split",
    "resnet32_shared_64",
    "resnet20_gsa",
    "mlp_256_gsa",
)


def step_rows(folder):
    return read(f"step_cost/{folder}/step_cost.json" if folder else "step_cost/step_cost.json")[
        "rows"
    ]


def step_cells(row):
    quartiles = row["time_ratio_quartiles"]
    cells = {
        "ms/step": f"{row['step_ms']:.{0 if row['step_ms'] > 100 else 1}f}",
        "time / SGD": f"{row['time_ratio']:.2f}",
        "quartiles": f"{quartiles[0]:.2f} to {quartiles[1]:.2f}",
        "FLOPs / SGD": f"{row['flops_ratio']:.2f}",
        "temporary MiB": f"{row['temporary_bytes'] / 2**20:.0f}",
    }
    if "memory_ratio" in row:
        cells["memory / SGD"] = f"{row['memory_ratio']:.2f}"
        cells["compile s"] = f"{row['seconds_compile']:.1f}"
        released = row["released"]
        cells["released code"] = "-" if released is None else f"{released:.2f}"
    return cells


def test_step_costs():
    text = page("step_cost")
    tables = [part for part in re.split(r"\n(?=\| model \| rule)", text) if "ms/step" in part[:120]]
    for folder, part in zip(STEP_TABLES, tables, strict=True):
        rows = table(part, "model", "rule", "ms/step")
        assert len(rows) == len(step_rows(folder))
        for shown, row in zip(rows, step_rows(folder), strict=True):
            stage = "" if row["stage"] is None else f", stage {row['stage']}"
            assert shown["rule"] == row["rule"] + stage and shown["model"] == row["model"]
            assert shown.get("mode") == row.get("mode")
            cells = step_cells(row)
            for name in shown.keys() & cells.keys():
                assert shown[name] == cells[name], (folder, row["rule"], name)
    for folder, dependent, uniform, stratified in (
        ("resnet32_gn_256_f020", "2.66", "1.28", "1.20"),
        ("vit_ti4_256_f020", "2.65", "1.28", "1.20"),
        ("mlp_256_f020", "2.50", "1.30", "1.22"),
    ):
        flops = {r.get("mode"): f"{r['flops_ratio']:.2f}" for r in step_rows(folder) if
                 r["rule"] == "imbsam"}  # fmt: skip
        expected = {"dependent": dependent, "uniform": uniform, "stratified": stratified}
        assert expected.items() <= flops.items(), folder
        says(text, f"| {dependent} | {uniform} | {stratified} |")
    network, mlp = (
        next(row for row in step_rows(folder) if row["rule"] == "cc_sam")
        for folder in ("", "mlp_256")
    )
    says(text, f"CC-SAM on the classifier alone costs {network['time_ratio']:.2f} times SGD",
         f"On the MLP below it costs {mlp['time_ratio']:.1f} times SGD")  # fmt: skip


def test_before_and_after_the_rooms():
    """Of pairs that ran at the same time; the quiet ones are the first two of ResNet-20."""
    pairs = read("step_cost/before_and_after/pairs.json")["pairs"]
    for line in table(page("step_cost"), "time after / before"):
        mine = [p for p in pairs if all(p[key] == line[key] for key in ("model", "rule", "mode"))]
        times = sorted(p["step_ms_after"] / p["step_ms_before"] for p in mine)
        assert line["pairs"] == str(len(mine))
        assert line["time after / before"] == (
            f"{np.median(times):.2f} ({times[0]:.2f} to {times[-1]:.2f})"
        )
        for name, key in (("FLOPs", "flops"), ("memory", "temporary_bytes")):
            ratios = {f"{p[f'{key}_after'] / p[f'{key}_before']:.4f}" for p in mine}
            assert ratios == {line[f"{name} after / before"]}
    split, sgd = (
        [f"{p['step_ms_after'] / p['step_ms_before']:.2f}" for p in pairs
         if p["rule"] == rule and p["mode"] == mode and p["model"] == "resnet20"]
        for rule, mode in (("imbsam", "split_norm"), ("sgd", "dependent"))
    )  # fmt: skip
    says(page("step_cost"), f"{split[2]} and {split[3]} of what they were",
         f"they are {split[0]} and {split[1]}, SGD's {sgd[0]} and {sgd[1]}")  # fmt: skip


def test_seconds_to_the_first_step():
    held, text = read("step_cost/first_step/seconds.json"), page("step_cost")
    names = {
        "SGD": ("sgd", "dependent"), "ImbSAM": ("imbsam", "dependent"),
        "ImbSAM, `split_norm` (five processes)": ("imbsam", "split_norm"),
    }  # fmt: skip

    def seconds(name, key):
        return [one[key] for one in held["processes"] if (one["rule"], one["mode"]) == names[name]]

    for line in table(text, "compiled", "first step done"):
        assert line["compiled"] == _middle(seconds(line["step"], "seconds_compile"))
        assert line["first step done"] == _middle(seconds(line["step"], "seconds_first_step"))
    sgd, imbsam = (np.array(seconds(name, "seconds_first_step")) for name in ("SGD", "ImbSAM"))
    low, middle, high = np.percentile(imbsam / sgd, [25, 50, 75])
    assert len(sgd) == 15
    says(text, f"{np.median(imbsam) / np.median(sgd):.1f} times SGD's, and {middle:.1f} in the "
         f"median of pairs (quartiles {low:.1f} and {high:.1f})")  # fmt: skip
    heads = [("compiled, s", "ms/step"), ("with the option, s", "ms/step with the option")]
    for line in table(text.replace("\n  |", "\n|"), "compiled, s", "ms/step"):
        for option, (compiled, steps) in enumerate(heads):
            runs = [one for one in held["option"] if one["flattened_after_fusion"] == option]
            of = line["step"].lower()
            assert line[compiled] == _middle(
                [s for one in runs for s in one["seconds_compile"][of]]
            )
            assert line[steps] == ", ".join(f"{one['step_ms'][of]:.0f}" for one in runs)


def _middle(seconds):
    return f"{np.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"


def test_one_pass_in_parts():
    shown = table(page("step_cost"), "passes", "over SGD's")
    first, *_ = rows = step_rows("resnet32_shared_256")
    for line, row in zip(shown, rows, strict=True):
        seconds = row["cpu_seconds_compile"]
        assert line == {
            "passes": "SGD" if row is first else f"ImbSAM, `{row['mode']}`",
            "GFLOP": f"{row['flops'] / 1e9:.1f}", "FLOPs / SGD": f"{row['flops_ratio']:.2f}",
            "temporary MiB": f"{row['temporary_bytes'] / 2**20:.0f}",
            "memory / SGD": f"{row['memory_ratio']:.2f}", "CPU s to compile": f"{seconds:.1f}",
            "over SGD's": f"{seconds / first['cpu_seconds_compile']:.1f}",
        }  # fmt: skip
    says(page("step_cost"), f"1 + f = {1 + first['tail_share']:.2f}",
         f"of `split_norm` {1 + 2 * first['tail_share']:.2f}")  # fmt: skip
    timed = step_rows("resnet32_shared_64")[-1]
    less = 100 * (1 - timed["time_ratio"] / timed["flops_ratio"])
    says(page("step_cost"), f"`shared_norm` takes {less:.0f}% less time than its FLOPs say")


def test_less_memory():
    rows = table(page("step_cost"), "time / its SGD", "GFLOP")
    folders = ("resnet32", "resnet32", *["resnet32_accumulate4"] * 2, *["resnet32_remat"] * 2)
    for shown, folder in zip(rows, folders, strict=True):
        row = next(
            r for r in step_rows(folder)
            if r["rule"] == shown["rule"] and r.get("mode") == "dependent"
        )  # fmt: skip
        assert shown["ms/step"] == f"{row['step_ms']:.0f}"
        assert shown["time / its SGD"] == f"{row['time_ratio']:.2f}"
        assert shown["temporary MiB"] == f"{row['temporary_bytes'] / 2**20:.0f}"
        assert shown["GFLOP"].split()[0] == f"{row['flops'] / 1e9:.1f}"


def test_memory_under_a_later_jax():
    shown = table(page("step_cost"), "network", "temporary memory, MiB")
    names = {"sgd": "SGD", "imbsam": "ImbSAM", "sse_sam": "SSE-SAM", "gsa": "GSA"}
    rows = [
        (network, row)
        for network, folder in (("ResNet-20", "resnet20"), ("ViT-Ti/4", "vit_ti4"))
        for row in step_rows(f"jax_012_{folder}")
    ]
    before = [
        next(row for row in step_rows(f"jax_012_before_{folder}") if row["rule"] == "imbsam")
        for folder in ("resnet20", "vit_ti4")
    ]
    mib = [f"{row['temporary_bytes'] / 2**20:.0f}" for row in before]
    over = [f"{row['memory_ratio']:.2f}" for row in before]
    says(page("step_cost"), f"ImbSAM took {mib[0]} MiB", f"({over[0]} times SGD's) and {mib[1]} "
         f"of the ViT ({over[1]})")  # fmt: skip
    seconds = [row["cpu_seconds_compile"] for _, row in rows if row["rule"] in ("imbsam", "gsa")]
    says(page("step_cost"), "takes {3:.0f} CPU seconds there, ImbSAM's {2:.0f} (of the ResNet-20 "
         "{1:.0f} and {0:.0f})".format(*seconds))  # fmt: skip
    for line, (network, row) in zip(shown, rows, strict=True):
        stage = "" if row["stage"] is None else f", stage {row['stage']}"
        assert line == {
            "network": network, "rule": names[row["rule"]] + stage,
            "FLOPs, over SGD's": f"{row['flops_ratio']:.2f}",
            "temporary memory, MiB": f"{row['temporary_bytes'] / 2**20:.0f}",
            "over SGD's": f"{row['memory_ratio']:.2f}",
        }  # fmt: skip


def test_resnet50_memory():
    found = defaultdict(dict)
    for row in read("step_cost/resnet50_256/step_cost.json")["rows"]:
        name = row["rule"] if row["stage"] is None else f"{row['rule']}, stage {row['stage']}"
        now = "nn." not in row["pooling"]
        found[name]["now" if now else row["precision"]] = row
    columns = {"float32": "memory / SGD, float32, before", "bfloat16": "bfloat16, before",
               "now": "float32, now"}  # fmt: skip
    for shown in table(page("step_cost"), *columns.values()):
        name = shown["0"].lower().replace("-", "_")
        name = {"imbsam": "imbsam", "focal_sam": "focal_sam"}.get(name, name)
        for kind, column in columns.items():
            row = found[name].get(kind)
            if row is None:
                assert shown[column].startswith("as ImbSAM")
            elif name == "sgd":
                assert shown[column] == f"{row['temporary_bytes'] / 2**30:.1f} GiB"
            else:
                assert shown[column] == f"{row['memory_ratio']:.2f}", (name, kind)
        flops = found[name]["float32"]["flops"] / found["sgd"]["float32"]["flops"]
        assert shown["FLOPs / SGD"].split()[0] == f"{flops:.2f}"


NETWORKS = {"ResNet-32": "resnet32", "ResNet-8": "resnet8", "ViT-Ti/4": "vit_ti4", "MLP": "mlp"}


def test_cores():
    rows = {
        (row["model"], row["rule"], row["way"]): row
        for folder in ("resnet32", "others")
        for row in read(f"cpu_cores/{folder}/cpu_cores.json")["rows"]
    }
    ways = {way for _, _, way in rows}
    (torch,) = (way for way in ways if "torch" in way.lower())
    for shown in table(page("cpu_cores"), "model, batch", "rule"):
        model = NETWORKS[shown["model, batch"].split(",")[0]]
        key = model, shown["rule"].lower()
        one = rows[*key, "1 device"]["step_ms"]
        assert shown["one device, ms"] == (f"{one:.0f}" if one >= 10 else f"{one:.1f}")
        for column, way in (("two devices over one (quartiles)", "2 devices, jit"),
                            ("PyTorch over one device", torch)):  # fmt: skip
            row = rows.get((*key, way))
            expected = "" if row is None else "{:.2f} ({:.2f} to {:.2f})".format(
                row["over_one_device"], *row["quartiles"])  # fmt: skip
            assert shown[column] == expected, (key, way)
    both = [[rows["resnet32", rule, way]["step_ms"] for way in (torch, "2 devices, jit")]
            for rule in ("sgd", "imbsam")]  # fmt: skip
    (a, b), (c, d) = both
    says(page("cpu_cores"), f"PyTorch takes {a / b:.2f} of our time for SGD on two devices "
         f"({a:.0f} against {b:.0f} ms)",
         f"and {c / d:.2f} for ImbSAM ({c:.0f} against {d:.0f})")  # fmt: skip
    sgd, imbsam = (
        rows["resnet32", rule, "2 devices, jit"]["over_one_device"] for rule in ("sgd", "imbsam")
    )
    says(doc("devices"), f"PyTorch takes {a / b:.2f} and {c / d:.2f} of that",
         f"a step of ResNet-32 then takes {sgd:.2f} of the time for SGD and {imbsam:.2f} for "
         "ImbSAM")  # fmt: skip


def test_convolutions():
    rows = read("cpu_cores/profile/conv_profile.json")["rows"]
    ms = {(row["channels"], row["side"], row["part"]): row["ms"] for row in rows}
    found = table(page("cpu_cores"), "channels, pixels", "convolution")
    parts = list(dict.fromkeys(row["part"] for row in rows))
    names = list(found[0])[1:]
    for shown in found:
        channels, side = re.match(r"(\d+), (\d+)x", shown["channels, pixels"]).groups()
        values = {part: ms.get((int(channels), int(side), part)) for part in parts}
        cells = {f"{v:.1f}" if v < 100 else f"{v:.0f}" for v in values.values() if v is not None}
        assert {shown[name] for name in names} <= cells
    low, high = ratios_of_a_branch()
    says(page("cpu_cores"), f"take {low:.0f} to {high:.0f} times as long")


def test_what_adapters_cost():
    run = read("adapters/adapters.json")
    found, share = run["rows"], run["tail_rows"] / run["batch_size"]
    shown = table(page("adapters"), "adapter", "trained")
    ratios = ("sgd", "sam", "imbsam", "sam_compiled", "imbsam_compiled")
    for row, cells in zip(found, shown, strict=True):
        assert list(cells.values()) == [
            row["adapter"], f"{row['trained']:,}", f"{row['frozen']:,}",
            *(f"{row[name]:.2f}" for name in ratios), f"{row['state_mb']:.0f}",
            f"{row['peak_mb']:.0f}",
        ]  # fmt: skip
        # What the page says of every adapter, the counts kept to three digits.
        assert row["imbsam"] / row["sgd"] == pytest.approx(1 + share, abs=1e-3)
        assert row["sam"] / row["sgd"] == pytest.approx(2, abs=1e-3)
        assert row["imbsam_compiled"] < 1 + share + 2e-3
    says(page("adapters"), f"{run['tail_rows']} of {run['batch_size']} rows are of the tail",
         f"1 + f = {1 + share:.2f} of SGD's step for every adapter")  # fmt: skip
    says(doc("finetune"), f"{1 + share:.2f} of SGD's step with a quarter")
    by = {row["adapter"]: row for row in found}
    between = [row for row in found if row["adapter"] not in ("linear", "full")]
    sam, imbsam = (
        " to ".join(f"{end(row[name] for row in between):.3f}" for end in (min, max))
        for name in ratios[3:]
    )
    says(page("adapters"), f"SAM {sam}, ImbSAM {imbsam}",
         *(f"SAM {by[name]['sam_compiled']:.3f}, ImbSAM {by[name]['imbsam_compiled']:.3f}"
           for name in ("linear", "full")))  # fmt: skip
    full, *rest = sorted((row["peak_mb"] for row in found), reverse=True)
    shares = [x / full for x in rest[:-1]]  # the last is the classifier alone
    says(page("adapters"), f"needs {min(shares):.2f} to {max(shares):.2f} of full fine-tuning's")


def test_exact_batch_norm():
    rows = {row["way"]: row for row in read("exact_batch_norm/exact_batch_norm.json")["rows"]}
    found = table(page("exact_batch_norm"), "FLOPs", "kept?")
    for shown, way in zip(found, ("exact", "batched", "remat", "stopped"), strict=True):
        row = rows[way]
        assert shown["FLOPs"] == f"{row['flops_ratio']:.2f}"
        assert shown["temporary memory"] == f"{row['memory_ratio']:.2f}"
        low, high = row["time_ratio_quartiles"]
        assert shown["time (quartiles)"] == f"{row['time_ratio']:.2f} ({low:.2f} to {high:.2f})"


def test_the_input_pipeline():
    found = table(page("input_pipeline"), "bare loop, images/s")
    for shown, folder in zip(found, ("", "no_workers/"), strict=True):
        row = read(f"input_pipeline/{folder}input_pipeline.json")
        assert shown["bare loop, images/s"] == f"{row['bare_images_per_second']:.0f}"
        assert shown["stream, images/s"] == f"{row['stream_images_per_second']:.0f}"
        ratio = "{median:.2f} ({low:.2f} to {high:.2f})".format(**row["ratio_per_core"])
        assert shown["ratio (quartiles of 9 rounds)"] == ratio and row["rounds"] == 9
    waiting = read("input_pipeline/input_pipeline.json")["waiting"]
    waited, steps = waiting["steps_that_waited"], waiting["steps"]
    says(page("input_pipeline"), f"({waited:.0f} of {steps:.0f} steps)")


def test_seeds_together():
    rows = {}
    for file in sorted((RESULTS / "seeds_together").rglob("*.json")):
        for row in json.loads(file.read_text())["rows"]:
            rows[row["model"], row["rule"]] = row
    medians = []
    for shown in table(page("seeds_together"), "model, images", "together, ms"):
        model = NETWORKS[shown["model, images"].split(",")[0]]
        row = rows[model, shown["rule"].lower()]
        assert int(shown["seeds"]) == row["seeds"]
        places = {
            "one after the other, ms: on one device": "one_device",
            "each batch shared by two": "shared_batches",
            "together, ms": "together",
        }
        for column, name in places.items():
            value = row["ms"][name]
            assert shown[column] in (f"{value:.0f}", f"{value:.1f}")
        for column, name in (("over one device (quartiles)", "one_device"),
                             ("over shared batches", "shared_batches")):  # fmt: skip
            low, high = row["ratio_quartiles"][name]
            assert shown[column] == f"{row['ratio'][name]:.2f} ({low:.2f} to {high:.2f})"
        usual = "one_device" if model in ("mlp", "vit_ti4") else "shared_batches"
        medians.append(row["ratio"][usual])
    spread = f"{min(medians):.2f} to {max(medians):.2f} of "
    says(page("seeds_together"), f"Together takes {spread}that time in the median")
    says(doc("devices"), f"On two CPU cores this takes {spread}the time of one after the other")


def accelerator_row(cell, name, process=None):
    for found in read("accelerator/cells.json")["cells"]:
        if found["cell"] == cell and process in (None, found["process"]):
            yield from (row for row in found["rows"] if row["name"] == name)


def test_the_accelerators_steps():
    shown = table(page("accelerator"), "network, batch", "ms a step")
    for line in shown:
        cell, name = line["network, batch"], line["rule"]
        # SGD's of the process that was timed when nothing compiled any more.
        process = "sam_focal" if (cell, name) == ("resnet32 b128", "sgd") else None
        (row,) = accelerator_row(cell, name, process)
        assert line["ms a step"] == f"{row['step_ms']:.3g}"
        low, high = row["time_ratio_quartiles"]
        alone = name == "sgd"
        ratio = f"{row['time_ratio']:.2f} ({low:.2f} to {high:.2f})"
        assert line["time over SGD (quartiles)"] == ("1" if alone else ratio)
        (sgd, *_) = accelerator_row(cell, "sgd")
        assert line["FLOPs over SGD"] == ("1" if alone else f"{row['flops'] / sgd['flops']:.2f}")
        assert line["of the peak"] == f"{row['share_of_peak']:.1%}"
        assert line["temporary memory, MiB"] == f"{row['temporary_bytes'] / 2**20:.0f}"
        assert line["compile, s"] == f"{row['seconds_compile']:.1f}" and row["rounds"] == 6
    measured = {
        (cell["cell"], row["name"])
        for cell in read("accelerator/cells.json")["cells"]
        for row in cell["rows"]
    }
    assert {(line["network, batch"], line["rule"]) for line in shown} == measured
    best = {
        (line["dtype"], line["precision"]): line["flops_per_second_best"] / 1e12
        for line in read("accelerator/peak.json")["matmul"]
    }
    copied = read("accelerator/peak.json")["copy"]["bytes_per_second_best"] / 1e9
    says(
        page("accelerator"),
        f"{best['bfloat16', 'default']:.0f} TFLOP/s for bfloat16 products, "
        f"{best['float32', 'default']:.0f} for float32 "
        f"(TF32; {best['float32', 'highest']:.0f} in full float32), and {copied:,.0f} GB/s",
    )


def test_prose_on_the_accelerator():
    def of(cell, name, key, process=None):
        return next(accelerator_row(cell, name, process))[key]

    def over(key, name, cell, below, other=None, process=None):
        return of(cell, name, key, process) / of(other or cell, below, key, process)

    small, big = "resnet32 b128", "resnet50 b256 224px bfloat16"
    ms, memory = "step_ms", "temporary_bytes"
    steps = 200 * -(-10847 // 128), 200 * -(-10847 // 64)
    rows = {
        rule: read(f"accelerator/four_seeds_{rule}.json")["rows"][0] for rule in ("sgd", "imbsam")
    }
    four = {rule: row["ratio"]["one_device"] for rule, row in rows.items()}
    wide = {rule: row["ratio_quartiles"]["one_device"] for rule, row in rows.items()}
    optax = next(accelerator_row(small, "optax.contrib.sam"))
    low, high = optax["our_sam_ratio_quartiles"]
    remat = [over(what, rule, f"{big} remat", rule, big)
             for rule in ("sgd", "imbsam") for what in (memory, ms)]  # fmt: skip
    focal = read("accelerator/runs.json")[-1]
    more = [
        over(memory, "imbsam", cell, "sgd", process=process)
        for cell, process in ((small, "p1"), (f"{small} bfloat16", None),
                              ("resnet34_3x3 b64", None), (big, None), (f"{big} remat", None))
    ]  # fmt: skip
    assert {cell["failed"] for cell in read("accelerator/cells.json")["cells"] if not cell["rows"]}
    says(
        page("accelerator"),
        f"there SGD took {of(small, 'sgd', ms, 'p1'):.2f} ms, and ImbSAM's "
        f"{of(small, 'imbsam', ms):.1f} stand against that; Focal-SAM makes the same passes in "
        f"{of(small, 'focal_sam', ms):.1f}",
        f"that is {steps[0]:,} steps, {steps[0] * of(small, 'focal_sam', ms) / 1000:.0f} s at "
        f"Focal-SAM's {of(small, 'focal_sam', ms):.1f} ms; at batch 64, {steps[1]:,} steps of "
        f"{of('resnet32 b64', 'imbsam', ms):.2f} ms, "
        f"{steps[1] * of('resnet32 b64', 'imbsam', ms) / 1000:.0f} s. Focal-SAM's run below took "
        f"{focal['seconds_train']:.0f} s of training",
        "{:.2f} and {:.2f} times. Passes over a few rows".format(
            *(of(cell, "imbsam, split_norm", "time_ratio") for cell in (small, "resnet32 b64"))
        ),
        f"no, {of(big, 'sgd', 'share_of_peak'):.1%}, with ImbSAM "
        f"{of(big, 'imbsam', 'share_of_peak'):.1%}",
        f"[{4 * four['sgd']:.1f} of SGD and {4 * four['imbsam']:.1f} of ImbSAM]",
        f"Our SAM takes {optax['our_sam_ratio']:.3f} times the time of `optax.contrib.sam` here "
        f"({low:.3f} to {high:.3f})",
        "takes {:.2f} of SGD's memory in {:.2f} times its time, and {:.2f} of ImbSAM's in {:.2f} "
        "times".format(*remat),
        "is {:.2f} for ResNet-32 at batch 128, {:.2f} in bfloat16, {:.2f} for ResNet-34, {:.2f} "
        "for ResNet-50 and {:.2f} with `--remat`".format(*more),
    )
    assert f"{remat[1]:.1f}" == f"{remat[3]:.1f}"
    says(doc("cost"),
         f"{remat[0]:.2f} of SGD's memory and {remat[2]:.2f} of ImbSAM's in {remat[1]:.1f} times "
         "the time",
         f"{min(more):.2f} to {max(more):.2f} times that",
         f"at {of(big, 'sgd', 'share_of_peak'):.1%} and {of(big, 'imbsam', 'share_of_peak'):.1%} "
         "of the bfloat16 peak")  # fmt: skip
    says(doc("devices"), f"{four['imbsam']:.1f} to {four['sgd']:.1f} times as long")
    says(page("seeds_together"),
         f"took {four['sgd']:.2f} ({wide['sgd'][0]:.2f} to {wide['sgd'][1]:.2f}) times as long",
         f"and {four['imbsam']:.2f} ({wide['imbsam'][0]:.2f} to {wide['imbsam'][1]:.2f}) times "
         "under ImbSAM")  # fmt: skip


def test_what_bounds_a_step_on_the_accelerator():
    found = read("accelerator/kernels_float32.json")
    kinds = defaultdict(lambda: [0.0, 0.0])
    for row in found["kernels"]:
        assert row["kind"] == kernels.kind_of(row["kernel"])
        kinds[row["kind"]][0] += row["launches"]
        kinds[row["kind"]][1] += row["microseconds"]
    busy = sum(time for _, time in kinds.values())
    shown = table(page("accelerator"), "what for", "launches")
    for line, (kind, (launches, time)) in zip(
        shown, sorted(kinds.items(), key=lambda item: -item[1][1]), strict=True
    ):
        cells = [kind, f"{launches:.0f}", f"{time:.0f}", f"{time / busy:.0%}"]
        assert list(line.values()) == cells
    taken = sum(time for kind, (_, time) in kinds.items() if "convolution" in kind)
    parts = {
        (row["what"], row["channels"]): row["microseconds"]
        for row in read("accelerator/convolutions.json")["rows"]
        if row["precision"] == "float32"
    }
    for line, channels in zip(
        table(page("accelerator"), "layer", "forward"), (16, 32, 64), strict=True
    ):
        best = {16: "wgrad_cat", 32: "wgrad_split128", 64: "wgrad_split32"}[channels]
        times = [parts[what, channels] for what in ("fwd", "dgrad", "wgrad", best)]
        assert list(line.values())[1:] == [f"{time:.1f}" for time in times]
    tried = {row["what"]: row["step_ms"] for row in read("accelerator/tried.json")["tried"]}
    once = read("accelerator/tried.json")["at_once"]
    alone, four = 1000 / tried["as it is"], sum(once["four"])
    fewer = tried["and the sums in two stages written out, 116 launches fewer"]
    again = [row["step_ms"] for row in read("accelerator/tried.json")["second_trial"]]
    saved = parts["wgrad", 32] - parts["wgrad_split128", 32]
    says(
        page("accelerator"),
        f"{busy:,.0f} of the {1000 * found['step_ms']:,.0f} microseconds",
        f"convolutions take {taken / busy:.0%} of the time",
        f"against {parts['norm', 16]:.0f} for normalising",
        f"four seeds of SGD cost {4 * alone / four:.1f} of one: {four} steps a second, all "
        f"together, against {alone:.0f} alone",
        f"{tried['as it is']:.2f} ms as it is",
        f"116 launches fewer, {fewer:.2f} ({again[1]:.2f} in a second trial, where as it is took "
        f"{again[0]:.2f})",
        f"128 values, {tried['and the sums over rows of 128 values']:.2f} ".rstrip() + ";",
        f"with convolutions and loops in them, "
        f"{tried['command buffers with convolutions and loops']:.2f}",
        f"({saved:.0f} microseconds of {parts['wgrad', 32]:.0f}, ten layers: "
        f"{10 * saved / busy:.0%} of a step)",
    )
    assert sum(once["eight"]) == four
    says(doc("devices"), f"under NVIDIA's MPS, a seed each, took {alone / four:.2f} of it")


def test_what_is_fitted_at_the_papers_scale():
    from imbsam_jax import long_tail_counts, shot_splits

    counts = long_tail_counts(100, 500, 100)
    shots = shot_splits(counts, 100, 20)
    *six, earlier, focal = read("accelerator/runs.json")
    fitted = []
    for report in (*six, earlier, focal):
        train, test = (np.array(report[f"{part}_correct"]) for part in ("train", "test"))
        for split, of in (*shots.items(), ("all", slice(None))):
            assert report[split] == pytest.approx(test[of].mean(), abs=1e-4)
        if report is not focal:
            fitted += [100 * train[of].sum() / counts[of].sum() for of in shots.values()]
        assert report["epochs"] == 200 and report["batch_size"] == 128
    of_rule = {rule: [run for run in six if run["rule"] == rule] for rule in ("sgd", "imbsam")}
    spent = [
        " to ".join(f"{end(run['seconds_whole'] for run in runs):.0f}" for end in (min, max))
        for runs in of_rule.values()
    ]
    says(page("accelerator"), "a run of SGD took {} seconds, one of ImbSAM {}".format(*spent))
    for rule, runs in of_rule.items():
        assert runs == [
            found | {key: run[key] for key in run if key not in found}
            for run, found in zip(
                runs, reports(f"accelerator/cross_entropy/{rule}", (0, 1, 2)), strict=True
            )
        ]
    gains = {
        split: differences("accelerator/cross_entropy", (0, 1, 2), "imbsam", "sgd", split)
        for split in SPLITS
    }
    spans = {split: sorted(values) for split, values in gains.items()}
    assert ends(gains["medium"])[0] > 0 > ends(gains["few"])[0] and ends(gains["many"])[1] > 0
    pvalues = [stats.ttest_1samp(gains[split], 0).pvalue for split in SPLITS]
    corrected = dict(zip(SPLITS, holm(np.array(pvalues)), strict=True))
    says(
        page("accelerator"),
        f"by {spans['medium'][0]:.1f} to {spans['medium'][-1]:.1f} points, and its interval",
        f"Many loses {-spans['many'][-1]:.1f} to {-spans['many'][0]:.1f}",
        f"by {spans['few'][0]:.1f} to {spans['few'][-1]:.1f} and {spans['all'][0]:.1f} to "
        f"{spans['all'][-1]:.1f}, but",
        f"Medium's p is {corrected['medium']:.2f}, so",
        f"is {min(fitted):.1f}% to 100% in Many",
        f"has All {earlier['all']:.1f}, in the second {six[0]['all']:.1f}",
        "All {all:.1f} ({many:.1f}, {medium:.1f}, {few:.1f}). It differs".format(**focal),
    )
    assert all(8.9 < run["few"] < 11 for run in six)
    rerun, own = (
        {
            row.rule: row
            for row in published.RESULTS
            if (row.source, row.dataset, row.imbalance_factor) == (source, "cifar100", 100)
            and row.loss == "cross_entropy" and row.recipe is None
        }
        for source in ("RDR", "OFBD")
    )  # fmt: skip
    theirs, same = rerun["imbsam"], own["sgd"]
    below = [
        rerun[rule].all - np.mean([run["all"] for run in runs]) for rule, runs in of_rule.items()
    ]
    says(
        page("accelerator"),
        f"have {rerun['sgd'].all} for SGD and {theirs.all} for ImbSAM "
        f"({theirs.all - rerun['sgd'].all:+.1f}; Many {theirs.many}, Medium {theirs.medium}, Few "
        f"{theirs.few}). Our levels are {below[0]:.1f} and {below[1]:.1f} lower",
        f"{same.all} ({same.many}, {same.medium}, {same.few}) in a preprint",
    )
    levels = [np.mean([run["all"] for run in runs]) for runs in of_rule.values()]
    says(
        doc("papers"),
        "SGD {:.1f}, ImbSAM {:.1f}".format(*levels)
        + f" ({rerun['sgd'].all} and {theirs.all} in the rerun)",
    )
    says(
        page(),
        f"gains {np.mean(gains['medium']):.1f} points in Medium "
        f"({interval(gains['medium'])}) and {np.mean(gains['all']):.1f} in All "
        f"({interval(gains['all'])}), three seeds",
    )
    says(
        doc("choosing"),
        "SGD All {:.1f}, ImbSAM {:.1f}".format(*levels)
        + f" ({np.mean(gains['all']):+.1f}, {interval(gains['all'])}); "
        + ", ".join(
            f"{split.capitalize()} {np.mean(gains[split]):+.1f} ({interval(gains[split])})"
            for split in ("many", "medium", "few")
        ),
    )


def test_the_estimate_for_inaturalist():
    """437,513 images, 200 epochs, 30% of the peak, 350 images decoded a second and core."""
    rows = read("step_cost/resnet50_256/step_cost.json")["rows"]
    sgd = next(row for row in rows if row["rule"] == "sgd" and row["precision"] == "float32")
    flops = sgd["flops"] / sgd["batch_size"]
    says(doc("cost"), f"({flops / 1e9:.1f} GFLOP an image for SGD; ImbSAM 2.66 times that)")
    peaks = {"one H100": 989e12, "eight H100": 8 * 989e12, "TPU v5e-16": 16 * 197e12}
    for shown in table(doc("cost"), "SGD", "images/s ImbSAM needs"):
        if "as its steps were timed" in shown["0"]:
            for name in ("SGD", "ImbSAM"):
                (row,) = accelerator_row("resnet50 b256 224px bfloat16", name.lower())
                rate = row["images_per_second"]
                assert shown[name] == f"{437_513 * 200 / rate / 3600:.1f} h"
            assert shown["images/s ImbSAM needs"] == f"{rate:,.0f}"
            assert int(shown["CPU cores to decode them"]) == np.ceil(rate / 350)
            continue
        peak = next(value for name, value in peaks.items() if shown["0"].startswith(name))
        hours = 437_513 * 200 * flops / (0.3 * peak) / 3600
        for name, factor in (("SGD", 1), ("ImbSAM", 2.66)):
            figure = float(shown[name].removesuffix(" h"))
            assert figure == pytest.approx(hours * factor, rel=0.04)
        rate = 437_513 * 200 / (2.66 * hours * 3600)
        assert float(shown["images/s ImbSAM needs"].replace(",", "")) == pytest.approx(
            rate, rel=0.02
        )
        cores = int(shown["CPU cores to decode them"])
        assert rate / 350 <= cores < rate / 350 + 4


def test_the_independent_rerun():
    from experiments.reports import published

    rows = {
        (row.rule, row.loss): row
        for row in published.RESULTS
        if (row.source, row.dataset, row.imbalance_factor) == ("RDR", "cifar100", 100)
    }
    ce, la = "cross_entropy", "logit_adjusted"
    levels = [[rows[rule, loss].all for rule in ("sgd", "sam", "imbsam")] for loss in (ce, la)]
    says(doc("choosing"),
         "SGD had {}, SAM {}, ImbSAM {}; with a logit-adjusted loss SGD had {}, SAM {}, "
         "ImbSAM {}".format(*levels[0], *levels[1]))  # fmt: skip

    def change(loss):
        sam, imbsam = rows["sam", loss], rows["imbsam", loss]
        return [getattr(imbsam, split) - getattr(sam, split) for split in SPLITS]

    many, _, few, _ = change(ce)
    says(doc("choosing"), f"Many falls by {-many:.1f} and Few gains {few:.1f}")
    many, medium, few, overall = change(la)
    says(doc("choosing"),
         f"Many falls by {-many:.1f} and Medium by {-medium:.1f}, Few gains {few:.1f}, and "
         f"All falls by {-overall:.1f}")  # fmt: skip


def test_prose_on_costs():
    imbsam = next(row for row in step_rows("") if row["rule"] == "imbsam")
    says(doc("choosing"), f"costs {imbsam['time_ratio']:.1f} times SGD's in time and "
         f"{imbsam['flops_ratio']:.2f} in FLOPs (ResNet-20")  # fmt: skip
    says(page(), f"a step of a ResNet has {imbsam['flops_ratio']:.2f} times SGD's FLOPs")
    for folder, start in (("resnet32", "Our SAM takes"), ("mlp_256", "our SAM takes")):
        row = next(row for row in step_rows(folder) if "our_sam_ratio" in row)
        low, high = row["our_sam_ratio_quartiles"]
        says(page("step_cost"), f"{start} {row['our_sam_ratio']:.3f} times the time of "
             f"optax.contrib.sam, round by round (quartiles {low:.3f} to {high:.3f})")  # fmt: skip
    below = [
        100 * (1 - row["time_ratio"] / row["flops_ratio"]) for row in step_rows("vit_ti4_32")[1:]
    ]
    says(page("step_cost"), f"Time is {min(below):.0f} to {max(below):.0f}% below FLOPs")
    parts = defaultdict(list)
    for row in read("cpu_cores/profile/conv_profile.json")["rows"]:
        parts[row["part"]].append(row)
    speed = {part: [row["gflops_per_second"] for row in rows] for part, rows in parts.items()}
    kernel, others = speed["by the kernel"], speed["convolution"] + speed["by the input"]
    says(page("cpu_cores"), f"at {min(kernel):.0f} to {max(kernel):.0f} GFLOP/s where the other "
         f"two have {min(others):.0f} to {max(others):.0f}")  # fmt: skip
    low, high = ratios_of_a_branch()
    says(doc("traps"), f"are {low:.0f} to {high:.0f} times slower than outside")


def ratios_of_a_branch():
    found = table(page("cpu_cores"), "channels, pixels", "convolution")
    ratios = [float(x["in a branch, JAX's"]) / float(x["both gradients"]) for x in found]
    return min(ratios), max(ratios)


STUDY_ROWS = {"SAM": "sam", "ImbSAM": "imbsam", "Focal-SAM": "focal_sam", "GSA": "gsa"}
STUDY_LOSSES = {"cross-entropy": "cross_entropy", "logit-adjusted": "logit_adjusted"}


def contrast(row, against, study="study"):
    (found,) = (
        each["metrics"]
        for each in read(f"{study}/study.json")["contrasts"]
        if (each["row"], each["against"]) == (row, against)
    )
    return found


@pytest.mark.parametrize(
    ("study", "number", "of_two"),
    [
        ("study/wide", 17, 8),  # the others in the same way
        pytest.param("study", 44, 28, marks=pytest.mark.slow),
        pytest.param("study/deep", 17, 8, marks=pytest.mark.slow),
    ],
)
def test_a_study_adds_up_its_sets(study, number, of_two):
    """study.json and tables.md again, of each set's summary.json and runs.csv."""
    from experiments.reports import study_folder, study_tables

    kept = read(f"{study}/study.json")
    sets = [
        study_folder.read_set(one["name"], RESULTS / study / "sets" / one["name"], one["family"])
        for one in kept["sets"]
    ]
    assert len(sets) == number and sum(one["classes"] == 2 for one in kept["sets"]) == of_two
    again = json.loads(json.dumps(study_folder.summarise(sets)))
    for part in ("sets", "rows", "contrasts"):
        assert again[part] == kept[part]
    tables = (RESULTS / study / "tables.md").read_text(encoding="utf-8")
    assert study_tables.markdown({**kept, **again}) == tables


def test_the_study():
    rows = table(page("study"), "sets better / not told apart / worse")
    assert len(rows) == 9
    for row in rows:
        name = row["over SGD with the same loss"]
        if name.startswith("logit adjustment itself"):
            found = contrast("sgd, logit_adjusted", "sgd, cross_entropy")
        else:
            rule, loss = name.split(", ")
            loss = STUDY_LOSSES[loss]
            found = contrast(f"{STUDY_ROWS[rule]}, {loss}", f"sgd, {loss}")
        points, area = found["balanced_accuracy"], found["auroc"]
        p = points["p_holm"]
        assert list(row.values())[1:] == [
            f"{points['gain']:+.1f} ± {points['se']:.1f}",
            f"{points['win']} / {points['tie']} / {points['loss']}",
            f"{p:.2f}" if p >= 0.01 else f"{p:.3f}" if p >= 0.001 else "<0.001",
            f"{area['gain']:+.3f} ± {area['se']:.3f}",
        ]


def over(names, row, against, study="study"):
    """Mean and standard error of the gains over these sets, as the page has them."""
    by_set = contrast(row, against, study)["balanced_accuracy"]["by_set"]
    sets = read(f"{study}/study.json")["sets"]
    gains = [x[0] for one, x in zip(sets, by_set, strict=True) if names(one)]
    return f"{np.mean(gains):.1f} ± {np.std(gains, ddof=1) / np.sqrt(len(gains)):.1f}"


OWN = ("sgd, logit_adjusted", "sgd, cross_entropy")
ON_TOP = ("imbsam, logit_adjusted", "sgd, logit_adjusted")
PLAIN = ("imbsam, cross_entropy", "sgd, cross_entropy")


def of_two(one):
    return one["classes"] == 2


def of_more(one):
    return one["classes"] > 2


def of_features(one):
    return one["name"].startswith(("MVTec", "CIFAR10_", "SVHN_"))


def plain_mean(found, digits=1):
    return f"{found['gain']:.{digits}f} ± {found['se']:.{digits}f}"


def test_prose_on_the_study():
    study = read("study/study.json")
    balanced = contrast("sgd, cross_entropy, balanced sampling", "sgd, cross_entropy")
    trees = contrast("gradient boosting", "sgd, cross_entropy")["balanced_accuracy"]
    logistic = contrast("logistic regression, balanced weights", "sgd, cross_entropy")
    own, on_top, plain = (contrast(*pair) for pair in (OWN, ON_TOP, PLAIN))
    focal = contrast("focal_sam, cross_entropy", "sgd, cross_entropy")["balanced_accuracy"]
    stand = [plain["balanced_accuracy"], focal]
    says(
        page("study"),
        f"It gains {own['balanced_accuracy']['gain']:.1f} points of balanced accuracy, "
        f"{over(of_two, *OWN)} where classes are two and {over(of_more, *OWN)} where they are more",
        f"over logit adjustment is +{over(of_two, *ON_TOP)} there",
        f"there and +{over(of_more, *ON_TOP)} with more classes",
        f"balanced sampling gains {plain_mean(balanced['balanced_accuracy'])}",
        f"the best, ImbSAM, {plain_mean(on_top['balanced_accuracy'])}",
        f"{plain_mean(stand[0])} and {plain_mean(stand[1])}, which stand after correction (p "
        f"{stand[0]['p_holm']:.2f} and {stand[1]['p_holm']:.3f})",
        f"leaves AUROC (+{plain_mean(own['auroc'], 3)}) and average precision "
        f"(+{plain_mean(own['average_precision'], 3)})",
        f"({trees['gain']:.1f} ± {trees['se']:.1f} points)",
        f"weights gains {plain_mean(logistic['balanced_accuracy'])}",
        f"fourteen logit adjustment gains {over(of_features, *OWN)}, ImbSAM on top of it "
        f"{over(of_features, *ON_TOP)}, over cross-entropy {over(of_features, *PLAIN)}",
    )
    assert sum(map(of_features, study["sets"])) == 14
    alone = [
        contrast(f"{rule}, cross_entropy", "sgd, cross_entropy") for rule in ("imbsam", "focal_sam")
    ]
    assert sum(each["balanced_accuracy"]["win"] for each in alone) == 1
    families = [each["balanced_accuracy"]["families"] for each in (own, on_top, plain)]
    says(
        page("study"),
        f"logit adjustment gains {plain_mean(families[0])} over {families[0]['number']} families, "
        f"ImbSAM on top of it {plain_mean(families[1])} and over cross-entropy "
        f"{plain_mean(families[2])}",
    )
    (terms,) = (
        each["terms"] for each in study["regressions"]
        if (each["row"], each["against"]) == OWN and each["metric"] == "balanced_accuracy"
    )  # fmt: skip
    imbalance, area = terms["log10 imbalance factor"], terms["AUROC of sgd, cross_entropy"]
    of_rows = terms["log10 rows a class"]
    told = sorted(of["p"] for of in (imbalance, area, of_rows))
    says(
        page("study"),
        f"({imbalance['coefficient']:.1f} ± {imbalance['se']:.1f} points for a factor of ten",
        f"rows there are a class ({of_rows['coefficient']:.1f} ± {of_rows['se']:.1f} for a factor",
        f"separates the classes ({-area['coefficient'] / 10:.1f} points for 0.1 of its AUROC)",
        f"p {told[0]:.3f} to {told[-1]:.3f} each",
    )
    assert terms["log10 classes"]["p"] > 0.05
    slopes = {
        (pair, name): of
        for pair in (ON_TOP, PLAIN)
        for each in study["regressions"]
        if (each["row"], each["against"]) == pair and each["metric"] == "balanced_accuracy"
        for name, of in each["terms"].items()
        if name != "mean"
    }
    clearest = min(slopes, key=lambda slope: slopes[slope]["p"])
    assert len(slopes) == 8 and clearest == (ON_TOP, "log10 rows a class")
    assert slopes[clearest]["coefficient"] < 0
    says(
        page("study"), f"with logit adjustment, has p {slopes[clearest]['p']:.2f}, as one of eight"
    )
    cut20, cut100 = (
        next(one for one in study["sets"] if one["name"] == f"banking77_cut{cut}")["values"]
        for cut in (20, 100)
    )
    names = (
        "sgd, cross_entropy", "sgd, logit_adjusted", "sgd, cross_entropy, balanced sampling",
        "logistic regression, balanced weights",
    )  # fmt: skip
    says(
        page("study"),
        "{:.1f}% for cross-entropy, {:.1f}% for logit adjustment, {:.1f}% for balanced sampling "
        "and {:.1f}% for logistic regression".format(
            *(cut100[row]["balanced_accuracy"] for row in names)
        ),
        "balanced accuracy is {:.1f}% for cross-entropy, {:.1f}% for logit adjustment and {:.1f}% "
        "for logistic regression; cut to 100".format(
            *(cut20[row]["balanced_accuracy"] for row in names if "balanced sampling" not in row)
        ),
    )
    by_set = [x for x in on_top["balanced_accuracy"]["by_set"] if x[1] is not None]
    half = [(high - low) / 2 for _, low, high in by_set]
    floors = []
    for one in study["sets"]:
        path = RESULTS / "study" / "sets" / one["name"] / "runs.csv"
        with open(path, newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        mine, sgd = (
            np.array([float(x["balanced_accuracy"]) for x in lines if x["row"] == row])
            for row in ON_TOP
        )
        shares = float(lines[0]["test"]) / float(lines[0]["train"])
        floors.append(1.96 * np.std(mine - sgd, ddof=1) * np.sqrt(shares))
    says(
        page("study"),
        f"is {np.median(half):.1f} points in the median set, 1.2 or less in "
        f"{sum(x <= 1.2 for x in half)} of {len(study['sets'])}",
        f"with infinitely many it would be {np.median(floors):.1f}",
    )
    behind, at_chance = [], []
    trained = {"gsa": [], "others": []}
    for path in sorted((RESULTS / "study" / "sets").glob("*/runs.csv")):
        with open(path, newline="", encoding="utf-8") as file:
            lines = [line for line in csv.DictReader(file) if line["reference"] == "False"]
        for name in dict.fromkeys(line["row"] for line in lines):
            of_row = [line for line in lines if line["row"] == name]
            middle = np.median([float(line["balanced_accuracy"]) for line in of_row])
            for line in of_row:
                rule = "gsa" if line["rule"] == "gsa" else "others"
                trained[rule].append(line)
                assert float(line["chosen_lr"]) <= 0.2
                if float(line["balanced_accuracy"]) - middle < -20:
                    behind.append(line)
                    at_chance += [rule] * (float(line["auroc"]) < 0.55)
    without = sum(float(line["chosen_gsa_scale"]) == 0 for line in trained["gsa"])
    total = sum(map(len, trained.values()))
    says(
        page("study"),
        f"{len(behind)} of {total:,} trainings ended 20 points or more below",
        f"{len(at_chance)} of them rank at chance",
        f"{at_chance.count('gsa')} of GSA's {len(trained['gsa'])}, and "
        f"{at_chance.count('others')} of the other {len(trained['others']):,}",
        f"took scale 0 (SGD) in {without} of {len(trained['gsa'])}",
    )
    for text in (page(), doc("choosing")):
        says(
            text,
            f"{plain_mean(own['balanced_accuracy'])} points of balanced accuracy",
            plain_mean(on_top["balanced_accuracy"]),
            plain_mean(plain["balanced_accuracy"]),
        )


SAM_PLAIN = ("sam, cross_entropy", "sgd, cross_entropy")
SAM_ON_TOP = ("sam, logit_adjusted", "sgd, logit_adjusted")


def test_a_network_four_times_as_wide_and_one_twice_as_deep():
    rows = table(page("study"), "width 32, ten splits", "width 128, five splits")
    pairs = {
        "ImbSAM, cross-entropy": PLAIN,
        "ImbSAM, logit-adjusted": ON_TOP,
        "SAM, cross-entropy": SAM_PLAIN,
        "SAM, logit-adjusted": SAM_ON_TOP,
        "logit adjustment itself": OWN,
    }
    assert [row["over SGD with the same loss"] for row in rows] == list(pairs)
    same = {one["name"] for one in read("study/wide/study.json")["sets"]}
    assert same == {one["name"] for one in read("study/deep/study.json")["sets"]}

    def signed(*args):
        found = over(*args)
        return found if found.startswith("-") else f"+{found}"

    for row in rows:
        pair = pairs[row["over SGD with the same loss"]]
        assert row["width 32, ten splits"] == signed(lambda one: one["name"] in same, *pair)
        assert row["width 128, five splits"] == signed(of_all, *pair, "study/wide")
        assert row["four layers of 64, five splits"] == signed(of_all, *pair, "study/deep")

    def digits(pair, study):
        sets = read(f"{study}/study.json")["sets"]
        at = [one["name"] for one in sets].index("digits_cut50")
        return contrast(*pair, study)["balanced_accuracy"]["by_set"][at]

    narrow, wide = digits(PLAIN, "study"), digits(PLAIN, "study/wide")
    adjusted = [digits(ON_TOP, study)[0] for study in ("study", "study/wide")]
    deep, lost = (
        contrast(*pair, "study/deep")["balanced_accuracy"] for pair in (ON_TOP, SAM_PLAIN)
    )
    levels = [
        np.mean(
            [
                one["values"][row]["balanced_accuracy"]
                for one in read(f"{study}/study.json")["sets"]
                if one["name"] in same
            ]
        )
        for study in ("study/deep", "study")
        for row in reversed(ON_TOP)
    ]
    with open(RESULTS / "study/deep/sets/breast_cancer/runs.csv", newline="") as file:
        ranked = [float(line["auroc"]) for line in csv.DictReader(file) if line["row"] == ON_TOP[1]]
    assert len(ranked) == 5 and sum(area < 0.55 for area in ranked) == 1
    says(
        page("study"),
        f"ImbSAM gains {narrow[0]:.1f} points of the narrow network ({narrow[1]:.1f} to "
        f"+{narrow[2]:.1f}) and {wide[0]:.1f} of the wide one ({wide[1]:.1f} to +{wide[2]:.1f})",
        "under cross-entropy, {:.1f} and {:.1f} with logit adjustment".format(*adjusted),
        "Without the digits it is +"
        + over(lambda one: one["name"] != "digits_cut50", *PLAIN, "study/wide"),
        f"it adds {plain_mean(deep)} to the deep network, p {deep['p_holm']:.2f} after",
        "one of five splits, "
        + over(lambda one: one["name"] != "breast_cancer", *ON_TOP, "study/deep"),
        "it has {:.1f}% in the mean over sets under SGD and {:.1f}% under ImbSAM, the narrow one "
        "{:.1f}% and {:.1f}%".format(*levels),
        f"in the deep network: {plain_mean(lost)}, which stands after correction (p "
        f"{lost['p_holm']:.2f})",
    )


def of_all(one):
    return True


MOVED = {
    "all": "all", "without the last bias": "without_last_bias", "last bias alone": "last_bias",
    "-": "all",
}  # fmt: skip


def compared(folder):
    """Of a folder of margins: a row of the summary by name."""
    return {row["row"]: row for row in read(f"study/margins/{folder}/summary.json")["rows"]}


def gained(folder, row, against):
    from experiments.reports import compare_folder
    from experiments.reports.paired import interval

    _, lines = compare_folder.read(RESULTS / "study" / "margins" / folder)
    mine, other = (lines[lines["row"] == name].sort_values("split") for name in (row, against))
    gains = mine["balanced_accuracy"].to_numpy() - other["balanced_accuracy"].to_numpy()
    return interval(gains, mine["train"].to_numpy(), mine["test"].to_numpy())


def test_margins():
    """Of two classes: every cell, and what is said of it."""
    rows = table(page("study/margins"), "trained by", "moved")
    assert len(rows) == 16
    for row in rows:
        decayed = row["trained by"].startswith("SGD, weight decay")
        folder = f"{row['table']}_{'decay' if decayed else MOVED[row['moved']]}"
        rule = row["trained by"].split(",")[0].lower()
        cells = []
        for loss in ("cross_entropy", "logit_adjusted"):
            one = compared(folder)[f"{rule}, {loss}"]
            cells += [
                f"{one['balanced_accuracy']:.1f}", f"{one['auroc']:.3f}",
                f"{one['logit_middle']:+.2f}", f"{one['logit_gap']:.2f}",
            ]  # fmt: skip
        assert list(row.values())[3:] == cells
    imbsam, sgd = "imbsam, logit_adjusted", "sgd, logit_adjusted"
    found = {name: gained(f"{name}_all", imbsam, sgd) for name in ("pc1", "yeast4")}
    assert all(one.low < 0 < one.high for one in found.values())
    says(
        page("study/margins"),
        f"{found['pc1'].mean:+.1f} points on pc1, {found['yeast4'].mean:+.1f} on yeast4, neither",
    )
    for name in found:
        counts = read(f"study/margins/{name}_all/summary.json")["data"]["train_counts"]
        says(page("study/margins"), f"{np.log(counts[0] / counts[1]):.1f} on {name}")


def test_what_the_digits_have():
    rows = table(page("study/margins"), "data, cut to 50", "columns")
    folders = {"digits": "digits", "digits 3 and 8": "digits_3_8", "vowel": "vowel"}
    assert [row["data, cut to 50"] for row in rows] == list(folders)
    for row in rows:
        folder = f"{folders[row['data, cut to 50']]}_cut50"
        data = read(f"study/margins/{folder}/summary.json")["data"]
        cells = [str(data["classes"]), str(data["features"])]
        cells += [f"{data['train_counts'][0]} to {data['train_counts'][-1]}"]
        cells += [f"{compared(folder)['sgd, cross_entropy']['balanced_accuracy']:.1f}"]
        for mine, other in (
            ("sgd, logit_adjusted", "sgd, cross_entropy"),
            ("imbsam, cross_entropy", "sgd, cross_entropy"),
            ("imbsam, logit_adjusted", "sgd, logit_adjusted"),
        ):
            found = gained(folder, mine, other)
            cells.append(f"{found.mean:+.1f} ({found.low:+.1f} to {found.high:+.1f})")
            assert found.low < 0 < found.high, "none leaves out 0"
        assert list(row.values())[1:] == cells
    two = compared("digits_3_8_cut50")
    sgd, imbsam = two["sgd, cross_entropy"], two["imbsam, cross_entropy"]
    says(
        page("study/margins").replace("\u2212", "-"),
        f"(from {sgd['logit_middle']:.1f} to {imbsam['logit_middle']:.1f} under",
        f"({sgd['logit_gap']:.1f} and {imbsam['logit_gap']:.1f})",
    )


def test_the_digits_tuned_wide_and_narrow():
    rows = table(page("study/margins"), "network", "settings")
    folders = (
        "margins/digits_cut50", "margins/digits_cut50_tuned", "sets/digits_cut50",
    )  # fmt: skip
    assert [(row["network"], row["settings"]) for row in rows] == [
        ("128", "one for all"), ("128", "tuned"), ("32", "tuned")
    ]  # fmt: skip
    lines = {}
    for row, folder in zip(rows, folders, strict=True):
        with open(RESULTS / "study" / folder / "runs.csv", newline="", encoding="utf-8") as file:
            lines[folder] = list(csv.DictReader(file))
        config = read(f"study/{folder}/config.json")
        assert str(config["width"]) == row["network"]
        assert config["tune"] == (row["settings"] == "tuned")
        cells = []
        for loss in ("cross_entropy", "logit_adjusted"):
            sgd, imbsam = (
                np.array([
                    float(line["balanced_accuracy"])
                    for line in lines[folder]
                    if line["row"] == f"{rule}, {loss}"
                ])
                for rule in ("sgd", "imbsam")
            )  # fmt: skip
            gain = imbsam - sgd
            signs = [int((np.sign(gain) == sign).sum()) for sign in (1, 0, -1)]
            cells += [f"{np.median(sgd):.1f}", f"{np.median(gain):+.1f}"]
            cells += [" / ".join(map(str, signs))]
        assert list(row.values())[2:] == cells
    tuned = [line for line in lines[folders[1]] if line["row"] == "sgd, logit_adjusted"]
    chosen = [(line["chosen_lr"], line["chosen_weight_decay"]) for line in tuned]
    assert chosen.count(("0.0118", "0.0067")) == 4
    worst = min(float(x["balanced_accuracy"]) for x in lines[folders[1]] if x["rule"] == "sgd")
    says(
        page("study/margins"),
        f"at chance ({worst:.1f}%)",
        "against one good setting for all (82.4)",
    )
    first, second = (float(row["SGD, CE"]) for row in rows[:2])
    says(page("study/margins"), f"cross-entropy {first - second:.1f} points against")


def test_sharpness_of_the_digits():
    groups = {
        line["name"]: line["groups"] for line in read("sharpness/digits/analysis.json")["lines"]
    }
    rows = table(page("sharpness"), "trained by", "trace, head")
    assert len(rows) == len(groups) == 14
    for row in rows:
        head, tail = (groups[row["trained by"]][part] for part in ("head", "tail"))
        for cell, values in (
            ("trace, head", head["trace"]), ("trace, tail", tail["trace"]),
            ("λ max, head", head["largest"]), ("λ max, tail", tail["largest"]),
            ("worst rise, tail", tail["worst"]), ("rise under its own e, tail", tail["own"]),
        ):  # fmt: skip
            if values is None:
                assert row[cell] == "-" and row["trained by"].startswith("sgd")
                continue
            mean, _, error = row[cell].partition(" ± ")
            assert float(mean) == float(f"{values['mean']:.3g}")
            assert float(error) == float(f"{values['error']:.1g}")
        assert float(row["train loss, tail"]) == float(f"{tail['train_loss']['mean']:.2g}")
        accuracy = tail["test_accuracy"]
        assert row["test %, tail"] == f"{accuracy['mean']:.1f} ± {accuracy['error']:.1f}"
    own = groups["imbsam rho=0.2, cross_entropy"]["tail"]["own"]["mean"]
    of_sgd = groups["sgd, cross_entropy"]["tail"]["imbsam"]["mean"]
    says(page("sharpness"), f"rises by {own:.3g} where SGD's tail rises by {of_sgd:.3g} under")


def test_what_is_said_of_the_digits_curvature():
    found = read("sharpness/digits/analysis.json")
    lines = {line["name"]: line for line in found["lines"]}
    sgd, adjusted = lines["sgd, cross_entropy"], lines["sgd, logit_adjusted"]
    sam, imbsam = (lines[f"{rule} rho=0.2, cross_entropy"] for rule in ("sam", "imbsam"))

    def ratio(line, name, digits):
        it = line["tail_to_head"][name]
        low, high = (f"{it[end]:.{digits}f}" for end in ("low", "high"))
        return f"{it['ratio']:.{digits}f}", f"[{low}, {high}]"

    def trace(line, group, base=sgd):
        of = [x["groups"][group]["trace"]["mean"] for x in (line, base)]
        return f"{of[0] / of[1]:.2f}"

    def gain(line):
        it = line["groups"]["tail"]["to_sgd"]["test_accuracy"]
        return f"{it['mean']:.1f} ± {it['error']:.1f}"

    head, least = ratio(sgd, "trace", 1), ratio(sgd, "largest", 1)
    of_adjusted = [ratio(adjusted, name, 2) for name in ("trace", "largest")]
    assert max(line["tail_to_head"]["trace_per_loss"]["ratio"] for line in lines.values()) < 1
    of_lines, of_loss = (found["explained"][name] for name in ("trace", "train_loss"))
    sam_adjusted = lines["sam rho=0.2, logit_adjusted"]
    sse = lines["sse_sam head_rho=0.1 tail_rho=0.2, cross_entropy"]
    says(
        page("sharpness"),
        f"its trace is {head[0]} times the head's {head[1]}, its largest eigenvalue {least[0]} "
        f"times {least[1]}",
        "adjustment no: {} times {} and {} {}".format(*of_adjusted[0], *of_adjusted[1]),
        "`trace_per_loss`, {} {} for SGD".format(*ratio(sgd, "trace_per_loss", 2)),
        f"SAM has {trace(sam, 'tail')} of SGD's trace in the tail, ImbSAM "
        f"{trace(imbsam, 'tail')}. Of the head SAM has {trace(sam, 'head')} of",
        f"(tail to head {ratio(imbsam, 'trace', 2)[0]}; SAM {ratio(sam, 'trace', 1)[0]}, as SGD)",
        f"as far as ImbSAM ({trace(sse, 'tail')} of SGD's)",
        f"is {of_lines['lines']['rho']:.2f} (p {of_lines['lines']['p']:.3f})",
        f"({of_loss['lines']['rho']:.2f}, p {of_loss['lines']['p']:.3f})",
        f"it is {of_lines['seeds']['rho']:.2f} (p {of_lines['seeds']['p']:.2f}, "
        f"{of_lines['seeds']['n']} pairs)",
        f"trace to {trace(sam, 'tail')} of SGD's and gains {gain(sam)} points there, ImbSAM to "
        f"{trace(imbsam, 'tail')} and gains {gain(imbsam)}",
        f"takes it to {trace(sam_adjusted, 'tail', adjusted)} and gains nothing "
        f"({gain(sam_adjusted)})",
        f"{found['hessian_products']['products']} products with a Hessian, each of a group's rows",
    )


def test_beside_the_published_curvature():
    groups = {
        line["name"]: line["groups"] for line in read("sharpness/digits/analysis.json")["lines"]
    }
    theirs, ours = [], []
    for row in table(page("sharpness"), "Few classes", "λ min"):
        (theirs if "RDR" in row["Few classes"] else ours).append(row)
    # Luo et al., Table 3, as printed.
    assert [[row[k] for k in ("λ min", "λ max", "trace")] for row in theirs] == [
        ["-76.24", "110.78", "286.84"], ["-14.42", "74.82", "242.86"],
    ]  # fmt: skip
    says(page("sharpness"), f"({242.86 / 286.84:.2f} of the trace there)")
    assert len(ours) == 3
    for row in ours:
        few = groups[row["Few classes"]]["few"]
        for head, name in (("λ min", "smallest"), ("λ max", "largest"), ("trace", "trace")):
            value = few[name]
            assert row[head] == f"{value['mean']:.3g} ± {value['error']:.1g}"


@pytest.mark.parametrize(
    ("folder", "label"),
    [
        ("page_blocks", "page_blocks, trained by"),
        ("cifar100_lt", "small CIFAR100-LT, trained by"),
        ("resnet32", "ResNet-32, trained by"),
    ],
    ids=lambda x: x.split(",")[0],
)
def test_tables_of_analyses(folder, label):
    """Head and tail of every line: mean and standard error over seeds, of analysis.json."""
    lines = read(f"sharpness/{folder}/analysis.json")["lines"]
    if folder == "cifar100_lt":
        lines = [line for line in lines if line["loss"] == "logit_adjusted"]
        lines += read(f"sharpness/{folder}_cross_entropy/analysis.json")["lines"]
    rows = table(page("sharpness"), label, "rise, own e")
    assert [(row[label], row["group"]) for row in rows] == [
        (line["name"], group) for line in lines for group in ("head", "tail")
    ]
    of_line = {line["name"]: line["groups"] for line in lines}
    columns = {
        "trace": "trace", "λ max": "largest", "rise, own e": "own", "rise, SAM's e": "sam",
        "rise, ImbSAM's e": "imbsam", "train loss": "train_loss", "train %": "train_accuracy",
        "test %": "test_accuracy",
    }  # fmt: skip
    for row in rows:
        for head, name in columns.items():
            value = of_line[row[label]][row["group"]][name]
            shown = "-"
            if value is not None:
                error = "" if value["error"] is None else f" ± {value['error']:.1g}"
                shown = f"{value['mean']:.3g}{error}"
            assert row[head] == shown, (row[label], row["group"], head)


def test_what_is_said_of_the_small_network():
    found = read("sharpness/cifar100_lt/analysis.json")
    entropy = read("sharpness/cifar100_lt_cross_entropy/analysis.json")
    of_both = [line for line in found["lines"] if line["loss"] == "logit_adjusted"]
    of_both += entropy["lines"]
    lines = {(x["rule"], x["loss"]): x for x in of_both}
    adjusted, plain = (
        {rule: lines[rule, loss] for rule in ("sgd", "sam", "imbsam")}
        for loss in ("logit_adjusted", "cross_entropy")
    )
    assert len(lines) == 6 and all(line["seeds"] == [0, 1, 2] for line in lines.values())
    sgd = adjusted["sgd"]

    def of(line, group, name):
        return line["groups"][group][name]["mean"]

    def ratio(name, line=sgd, times=" times"):
        it = line["tail_to_head"][name]
        return f"{it['ratio']:.2f}{times} [{it['low']:.2f}, {it['high']:.2f}]"

    def part(rule, group, loss="logit_adjusted"):
        trace = of(lines[rule, loss], group, "trace") / of(lines["sgd", loss], group, "trace")
        return f"{trace:.2f}"

    def less(rule, group, name, of=adjusted):
        it = of[rule]["groups"][group]["to_sgd"][name]
        return f"{it['mean']:+.1f} ± {it['error']:.1f}"

    def gap(line, group):
        return f"{of(line, group, 'train_accuracy') - of(line, group, 'test_accuracy'):.1f}"

    def of_tail(of, rule):
        return f"{of[rule]['tail_to_head']['trace']['ratio']:.2f}"

    entropy_cpu, cpu = (x["measuring"]["cpu_seconds"] for x in (entropy, found))
    says(
        page("sharpness"),
        f"its trace is {ratio('trace')} the head's, its largest eigenvalue {ratio('largest')}.",
        f"it is sharper: {ratio('trace', plain['sgd'])} and {ratio('largest', plain['sgd'], '')}.",
        f"per unit of its loss it has "
        f"{plain['sgd']['tail_to_head']['trace_per_loss']['ratio']:.2f} times the head's trace",
        f"ImbSAM has {part('imbsam', 'tail')} in the tail and {part('imbsam', 'head')} in the "
        f"head, SAM {part('sam', 'tail')} and {part('sam', 'head')}",
        "ImbSAM has {} and {}, SAM {} and {}. SAM".format(
            *(
                part(rule, group, "cross_entropy")
                for rule in ("imbsam", "sam")
                for group in ("tail", "head")
            )
        ),
        "({} times, against {} under SGD and {} under SAM; with cross-entropy {} against {} "
        "and {})".format(
            *(of_tail(of, rule) for of in (adjusted, plain) for rule in ("imbsam", "sgd", "sam"))
        ),
        f"with cross-entropy {less('imbsam', 'tail', 'test_accuracy', plain)} and "
        f"{less('sam', 'tail', 'test_accuracy', plain)}, over all classes",
        f"less SGD's is {less('imbsam', 'tail', 'test_accuracy')} for ImbSAM and "
        f"{less('sam', 'tail', 'test_accuracy')} for SAM",
        f"{gap(sgd, 'many')} points in Many, {gap(sgd, 'medium')} in Medium and "
        f"{gap(sgd, 'few')} in Few",
        f"training images {of(sgd, 'few', 'train_accuracy'):.0f}% are recognised",
        f"in Few to {gap(adjusted['imbsam'], 'few')} by fitting less "
        f"(training {less('imbsam', 'few', 'train_accuracy')}, "
        f"test {less('imbsam', 'few', 'test_accuracy')})",
        f"({of(plain['sgd'], 'few', 'train_accuracy'):.1f}% of their training images)",
        f"{found['hessian_products']['products']} and {entropy['hessian_products']['products']} "
        f"products with a Hessian, {cpu / 11:.0f} and {entropy_cpu / 9:.0f} CPU seconds a run",
    )
    usual = read("sharpness/cifar100_lt/default_settings.json")
    products = usual["hessian_products"]
    says(page("sharpness"),
         f"one run takes {usual['seconds_whole']:.0f} s on both cores of a quiet machine, "
         f"{products['products']} products of {products['seconds_each']:.1f} s each")  # fmt: skip
    shown = table(page("sharpness"), "small CIFAR100-LT, %", "Few, test")
    for row, line in zip(shown, of_both, strict=True):
        assert [*row.values()] == [line["name"], *(
            f"{of(line, group, name):.1f}"
            for group in ("many", "medium", "few") for name in ("train_accuracy", "test_accuracy")
        )]  # fmt: skip


def test_what_is_said_of_the_papers_network():
    found = read("sharpness/resnet32/analysis.json")
    sgd, imbsam = found["lines"]
    assert (sgd["rule"], imbsam["rule"]) == ("sgd", "imbsam")
    assert sgd["seeds"] == imbsam["seeds"] == [0, 1, 2]

    def part(group, name):
        of = [line["groups"][group][name]["mean"] for line in (imbsam, sgd)]
        return f"{of[0] / of[1]:.2f}"

    def ratio(line, name):
        it = line["tail_to_head"][name]
        return f"{it['ratio']:.2f} times [{it['low']:.2f}, {it['high']:.2f}]"

    def less(group):
        it = imbsam["groups"][group]["to_sgd"]["test_accuracy"]
        return f"{it['mean']:+.1f} ± {it['error']:.1f}"

    per_loss = [line["tail_to_head"]["trace_per_loss"]["ratio"] for line in (sgd, imbsam)]
    says(
        page("sharpness"),
        f"the tail's trace is {ratio(sgd, 'trace')} the head's, its largest eigenvalue "
        f"{ratio(sgd, 'largest')}; under ImbSAM {ratio(imbsam, 'trace')} and "
        f"{ratio(imbsam, 'largest')}.",
        f"leaves {part('tail', 'trace')} of SGD's trace in the tail and {part('tail', 'largest')} "
        f"of its largest eigenvalue; in the head it has {part('head', 'trace')} and "
        f"{part('head', 'largest')} times",
        f"is {less('tail')} points in the tail and {less('head')} in the head",
        f"falls with the trace ({part('tail', 'train_loss')} of SGD's)",
        "({:.2f} times, {:.2f} under ImbSAM)".format(*per_loss),
        f"{found['hessian_products']['products']} products with a Hessian, "
        f"{found['measuring']['cpu_seconds'] / 6:.0f} CPU seconds a run",
    )
    times = sgd["tail_to_head"]["trace"]["ratio"]
    says(doc("sharpness"), f"tail has {times:.1f} times the head's trace, and ImbSAM leaves "
         f"{part('tail', 'trace')} of it")  # fmt: skip
    says(page("accelerator"), f"tail is {times:.1f} times as sharp as its head in trace, ImbSAM "
         f"leaves {part('tail', 'trace')} of it")  # fmt: skip
    (barrier,) = read("sharpness/resnet32_between/analysis.json")["between"]["barriers"].values()
    says(page("sharpness"), f"the head's loss is {barrier['head']:.1f} over the straight line "
         f"between its ends, the tail's {barrier['tail']:.1f}")  # fmt: skip
    both = [line["groups"]["few"]["train_accuracy"]["mean"] for line in (sgd, imbsam)]
    assert min(both) > 99.8


def test_what_is_said_of_forty_epochs():
    lines = read("sharpness/cifar100_lt_epochs/analysis.json")["lines"]
    of = {(x["rule"], x["epoch"]): x["groups"]["few"]["train_accuracy"]["mean"] for x in lines}
    says(page("sharpness"), f"had fitted {of['sgd', 40]:.0f}% of these images")


def test_what_is_said_of_the_epochs():
    found = read("sharpness/cifar100_lt_epochs/analysis.json")
    trace = {
        (line["rule"], line["epoch"], group): line["groups"][group]["trace"]["mean"]
        for line in found["lines"]
        for group in ("head", "tail")
    }
    assert sorted({epoch for _, epoch, _ in trace}) == list(range(10, 101, 10))
    grown = [trace["sgd", 100, g] / trace["sgd", 10, g] for g in ("head", "tail")]
    less = [trace[r, 100, "tail"] / trace["sgd", 100, "tail"] for r in ("imbsam", "sam")]
    says(
        page("sharpness"),
        "from epoch 10 to 100 by {:.1f} and {:.1f} times under SGD".format(*grown),
        "the tail has {:.2f} of SGD's trace under ImbSAM and {:.2f} under SAM".format(*less),
        f"{found['hessian_products']['products']} products with a Hessian, "
        f"{found['measuring']['cpu_seconds']:.0f} CPU seconds for 30 models",
    )


def test_what_is_said_of_the_analysed_table():
    lines = {x["name"]: x for x in read("sharpness/page_blocks/analysis.json")["lines"]}
    sgd, adjusted = lines["sgd, cross_entropy"], lines["sgd, logit_adjusted"]
    sam, imbsam = (lines[f"{rule} rho=0.2, cross_entropy"] for rule in ("sam", "imbsam"))

    def tail(line, name):
        return line["groups"]["tail"][name]["mean"]

    def ratio(line):
        of = line["tail_to_head"]["trace"]
        return f"{of['ratio']:.1f} times", f"[{of['low']:.1f}, {of['high']:.1f}]"

    less = [tail(line, "trace") / tail(sgd, "trace") for line in (sam, imbsam)]
    per_loss = [line["tail_to_head"]["trace_per_loss"]["ratio"] for line in (sgd, adjusted)]
    says(
        page("sharpness"), *ratio(sgd), *ratio(adjusted),
        f"({less[0]:.2f} and {less[1]:.2f} of SGD's means)",
        f"loss {per_loss[0]:.2f} times and {per_loss[1]:.1f}",
        f"{tail(sam, 'test_accuracy'):.1f}% and {tail(imbsam, 'test_accuracy'):.1f}% of the tail's",
        f"SGD's {tail(sgd, 'test_accuracy'):.1f}%",
        f"that far {tail(adjusted, 'test_accuracy'):.1f}%",
    )  # fmt: skip
    gsa = [line for name, line in lines.items() if name.startswith("gsa")]
    assert [len(line["seeds"]) for line in gsa] == [8, 8]
    cost = read("sharpness/page_blocks/analysis.json")
    assert cost["hessian_products"]["products"] == 180
    assert 66 <= cost["measuring"]["cpu_seconds"] <= 67
