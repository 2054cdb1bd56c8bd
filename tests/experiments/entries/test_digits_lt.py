"""The digits bench: seeds mapped over in one program are the seeds alone; its figures add up."""

import contextlib
import io
import json
import types

import numpy as np
import pytest

from experiments.data.digits import load_digits_lt
from experiments.host.errors import RunError
from experiments.run import compatible
from imbsam_jax import losses


def test_the_data_is_long_tailed_disjoint_and_permuted_by_the_seed():
    from sklearn.datasets import load_digits

    images, digits = load_digits(return_X_y=True)
    known = {
        image.astype(np.uint8).tobytes(): int(d) for image, d in zip(images, digits, strict=True)
    }
    names = set()
    sizes = set()
    for seed in range(3):
        data = load_digits_lt(50, seed)
        assert data.class_counts().tolist() == [100, 64, 41, 27, 17, 11, 7, 4, 3, 2]
        names.add(data.class_names)
        sizes.add(len(data.test_labels))
        for split in ("train", "test"):
            pixels, labels = getattr(data, f"{split}_images"), getattr(data, f"{split}_labels")
            for image, label in zip(pixels, labels, strict=True):
                assert data.class_names[label] == f"digit {known[image.tobytes()]}"
        train = {image.tobytes() for image in data.train_images}
        assert not train & {image.tobytes() for image in data.test_images}
    assert len(names) == 3 and sizes == {719}


@pytest.fixture(scope="module")
def summaries(tmp_path_factory):
    from experiments import digits_lt

    out = tmp_path_factory.mktemp("digits")

    def run(name, *flags):
        args = digits_lt.arguments().parse_args(
            ["--epochs", "10", "--out", str(out / name), *flags]
        )
        with contextlib.redirect_stdout(io.StringIO()) as said:
            digits_lt.main(args)
        (out / f"{name}.txt").write_text(said.getvalue())
        return {row["rule"]: row for row in json.loads((out / name / "summary.json").read_text())}

    return out, run("together", "--rule", "sgd", "imbsam", "--num-seeds", "2"), run


@pytest.mark.slow  # quickly: a job is a loop over batches, bench/test_training.py
@pytest.mark.allow_rank_promotion
def test_seeds_in_one_program_are_the_seeds_alone(summaries):
    _, together, run = summaries
    alone = {s: run(f"alone_{s}", "--rule", "sgd", "imbsam", "--seeds", str(s)) for s in (0, 1)}
    assert list(together) == ["sgd", "imbsam"]
    for rule, row in together.items():
        for split in ("all", "many", "medium", "few"):
            values = np.array([alone[s][rule][split] for s in (0, 1)])
            assert row[split] == pytest.approx(values.mean(), abs=0.2)
            assert row[f"{split}_sd"] == pytest.approx(values.std(ddof=1), abs=0.3)
            assert row[f"{split}_by_seed"] == pytest.approx(values, abs=0.4)
        for split in ("all", "few"):
            base = np.array([alone[s]["sgd"][split] for s in (0, 1)])
            paired = np.array([alone[s][rule][split] for s in (0, 1)]) - base
            assert row[f"paired_{split}"] == pytest.approx(paired.mean(), abs=0.3)
            error = paired.std(ddof=1) / np.sqrt(2)
            assert row[f"paired_{split}_se"] == pytest.approx(error, abs=0.2)
    assert together["sgd"]["paired_all"] == 0
    assert together["sgd"]["step_cost_ratio"] == 1
    assert alone[0]["imbsam"]["all_sd"] is None and alone[0]["imbsam"]["paired_all_se"] is None


@pytest.mark.allow_rank_promotion
def test_what_is_written(summaries):
    out, together, _ = summaries
    promised = ["rule", "seeds", "all", "many", "medium", "few", "paired_all", "paired_all_se"]
    promised += ["paired_few", "paired_few_se", "step_cost_ratio"]
    assert set(promised) <= set(together["imbsam"])
    assert together["imbsam"]["seeds"] == [0, 1]
    for plot in ("per_class.png", "curves.png"):
        assert (out / "together" / plot).stat().st_size > 5000
    rows = (out / "together" / "per_class.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 10
    said, told = (out / "together.txt").read_text(), "summary.json, per_class.png, curves.png"
    assert "accuracy (%), long-tailed digits, imbalance factor 50" in said and "imbsam" in said
    assert said.endswith(f"summary, tables and plots are in {out / 'together'}: {told}\n")


def planned(*flags):
    from experiments import digits_lt

    args = digits_lt.arguments().parse_args(["--rule", "sgd", "--out", "x", *flags])
    return digits_lt.planned(args, load_digits_lt(50, 0))


def test_a_second_stage_is_sampled_as_its_flags_say():
    """Stratified by --eta; balanced, four rows of a class a visit, as crt has it."""
    first, second = planned("--stage2", "crt")
    assert first.job.setup.sampling == "natural" and first.job.setup.tail == ()
    assert (second.job.setup.sampling, second.job.setup.per_visit) == ("balanced", 4)
    assert (second.after, second.job.name) == (first.job.name, f"{first.job.name}, then crt")
    flags = ["--stage2", "crt", "--stage2-sampling", "stratified", "--eta", "10"]
    setup = planned(*flags)[1].job.setup
    assert setup.sampling == "stratified" and setup.tail == (False,) * 6 + (True,) * 4
    with pytest.raises(RunError, match="leaves no tail"):
        planned(*flags[:-1], "1")


def test_every_loss_and_rule_then_their_second_stages():
    """Each row by its name; what is told of a second stage is told beside what its first one is."""
    flags = ["--rule", "sgd", "imbsam", "--loss", "focal", "vs", "--stage2", "tau-norm", "crt"]
    found = planned(*flags, "--rho", "0.5", "--mixup", "0.25")
    firsts = ["sgd, focal", "imbsam, focal", "sgd, vs", "imbsam, vs"]
    assert [one.job.name for one in found[:4]] == firsts
    assert [(one.after, one.job.name) for one in found[4:]] == [
        (first, f"{first}, then {name}") for first in firsts for name in ("tau-norm", "crt")
    ]
    for one in found[:4]:
        told = one.description
        assert f"{told['rule']}, {told['loss']}" == one.job.name
        assert (told["stage2"], told["stage2_args"], one.after, one.start) == (None, {}, None, None)
        assert (one.job.objective.mixup, one.job.objective.train_statistics) == (0.25, True)
    assert found[1].description["rule_args"]["rho"] == 0.5
    for one in found[4:]:
        told, first = one.description, dict(zip(firsts, found, strict=False))[one.after]
        assert told.items() >= {k: first.description[k] for k in ("rule", "loss")}.items()
        assert told["stage2"] == one.job.name.split()[-1] and one.start is not None
        # Features are frozen, and so are their statistics.
        assert (one.job.objective.mixup, one.job.objective.train_statistics) == (0, False)
    twice = planned("--stage2", "crt", "crt")
    assert len(twice) == 2


@pytest.mark.parametrize(("batch", "steps"), [(276, 1), (275, 2), (92, 3)])
def test_an_epoch_of_the_digits_has_a_step_for_the_last_rows_too(batch, steps):
    """276 of them. The switch of a rule, a loss's and a second stage's shares are counted so."""
    flags = ["--rule", "sse_sam", "--epochs", "4", "--switch-fraction", "0.5", "--drw-epoch", "3"]
    flags += ["--stage2", "cc-sam", "--stage2-epochs", "10", "--eta", "10", "--batch-size", batch]
    first, second = planned(*map(str, flags))
    assert first.description["rule_args"]["switch_step"] == 2 * steps
    share = second.job.objective.adversary.share
    assert [share(k * steps) for k in (0, 1, 9)] == pytest.approx([0.1, 0.2, 1.0])
    logits, labels = np.eye(10, dtype="f")[:9] * 2, np.arange(9)
    plain = losses.cross_entropy(logits, labels)
    for step, same in ((0, True), (3 * steps - 1, True), (3 * steps, False)):
        assert (first.job.objective.loss(logits, labels, step) == plain).all() == same


def test_what_does_not_go_together_is_refused_before_anything_is_trained(monkeypatch):
    asked = []
    monkeypatch.setattr(compatible, "check", asked.append)
    planned("--rule", "sam", "--loss", "vs", "--stage2", "crt", "--batch-size", "92")
    first, second = asked
    assert (first.rule, first.priors, first.steps_per_epoch) == ("sam", "vs", 3)
    assert (second.stage2, second.priors, second.steps_per_epoch) == ("crt", "vs", 3)


@pytest.mark.parametrize("save", [False, True])
def test_a_table_goes_from_its_flags_to_a_page(monkeypatch, tmp_path, capsys, save):
    """Every step in its order, and what is kept of the flags: what decides a network."""
    from experiments import digits_lt

    done = []

    def step(module, name, answer=None):
        monkeypatch.setattr(
            module, name, lambda *given, **more: done.append((name, given, more)) or answer
        )

    data = [types.SimpleNamespace(class_counts=lambda k=k: f"counts of {k}") for k in (3, 4)]
    out = tmp_path / "out"
    monkeypatch.setattr(digits_lt, "load_digits_lt", lambda factor, seed: data[seed - 3])
    monkeypatch.setattr(digits_lt, "Bench", lambda datasets, seeds: ("bench", datasets, seeds))
    for module, name, answer in (
        (digits_lt.cli, "use_compilation_cache", None), (digits_lt, "planned", "plan"),
        (digits_lt, "train", "lines"), (digits_lt.tables, "summarise", "summary"),
        (digits_lt.outputs, "clear_tables", None), (digits_lt.origin, "write_flags", None),
        (digits_lt, "write_params", None), (digits_lt, "write_table", None),
        (digits_lt.tables, "show", None),
    ):  # fmt: skip
        step(module, name, answer)
    flags = ["--out", str(out), "--seeds", "3", "4", "--rule", "sam", "sgd", "sam"]
    flags += ["--loss", "vs", "vs", "--imbalance-factor", "50"]
    args = digits_lt.arguments().parse_args([*flags, *["--save"] * save])
    digits_lt.main(args)
    assert (args.rule, args.loss) == (["sam", "sgd"], ["vs"])
    kept = {k: v for k, v in vars(args).items() if k not in ("out", "overwrite", "save")}
    title = "long-tailed digits, imbalance factor 50"
    *steps, (name, table, _), shown = done
    assert steps == [
        ("use_compilation_cache", (), {}), ("planned", (args, data[0]), {}),
        ("train", (("bench", data, [3, 4]), "plan"), {}), ("summarise", ("lines", [3, 4]), {}),
        ("clear_tables", (out,), {}), ("write_flags", (out, args), {}),
        *[("write_params", (out, "lines"), {"seeds": [3, 4], "datasets": data, "config": kept})]
        * save,
    ]  # fmt: skip
    assert (name, *table) == ("write_table", out, "lines", "summary", "counts of 3")
    assert shown == ("show", ("summary", title), {}) and (out / ".lock").exists()
    assert capsys.readouterr().out.startswith(f"summary, tables and plots are in {out}: summary")


def test_decay_in_the_perturbed_loss_is_not_the_optimizers():
    assert planned("--weight-decay", "0.1")[0].job.setup.weight_decay == 0.1
    inside = planned("--weight-decay", "0.1", "--weight-decay-inside")
    assert inside[0].job.setup.weight_decay == 0


def test_bad_flags_write_nothing(tmp_path, refuse):
    for flags, code, message in (
        (["--imbalance-factor", "1000"], 2, "--imbalance-factor must be finite and at least 1 and"),
        (["--eta", "0"], 1, "leaves no tail class"),
        (["--seeds", "1", "1"], 1, "different numbers"),
    ):
        out = ("--out", tmp_path / "x")
        assert message in refuse("experiments.digits_lt", *out, *flags, code=code)
        assert not (tmp_path / "x").exists()


# ---- every rule, every loss, every second stage ---------------------------------------------

NO_RADIUS = ["--rho", "0", "--head-rho", "0", "--tail-rho", "0", "--noise-ratio", "0"]
NO_RADIUS += ["--tail-weight", "1", "--strength", "1", "--gsa-scale", "0"]


def smoke(run_python, out, *flags):
    """Rows of one seed; 3 steps of 92 rows an epoch, so that one shape is compiled."""
    args = ["-m", "experiments.digits_lt", "--num-seeds", "1", "--batch-size", "92", "--out", out]
    run_python([*args, *flags], devices=None, timeout=900)
    rows = json.loads((out / "summary.json").read_text())
    return {(row["rule"], row["loss"], row["stage2"]): row for row in rows}


def check(rows):
    for row in rows.values():
        for split in ("all", "many", "medium", "few"):
            assert 0 <= row[split] <= 100
        assert row["seeds"] == [0]


@pytest.mark.slow
def test_every_rule_and_every_second_stage_runs(tmp_path, run_python):
    from experiments.command.method_flags import rule_names
    from experiments.command.stage2 import RECIPES

    rules = smoke(run_python, tmp_path / "rules", "--rule", *rule_names(), "--epochs", "4")
    check(rules)
    assert list(rules) == [(rule, "cross_entropy", None) for rule in rule_names()]
    assert len({tuple(row[s] for s in ("all", "many", "few")) for row in rules.values()}) > 3
    flags = ["--rule", "sgd", "--epochs", "1", "--stage2", *RECIPES, "--stage2-epochs", "2"]
    stages = smoke(run_python, tmp_path / "stages", *flags)
    check(stages)
    assert list(stages) == [("sgd", "cross_entropy", name) for name in (None, *RECIPES)]
    assert stages["sgd", "cross_entropy", "crt"]["step_cost_ratio"] is None
    # After one epoch the rarest classes are never predicted; each stage changes that or All.
    first, *others = ((row["all"], row["few"]) for row in stages.values())
    assert first not in others


@pytest.mark.slow
def test_every_loss_runs_and_is_compared_with_plain_sgd(tmp_path, run_python):
    from experiments.command.loss_flags import LOSSES

    flags = ["--rule", "sgd", "--loss", *LOSSES, "--epochs", "1", "--mixup", "1"]
    rows = smoke(run_python, tmp_path / "losses", *flags)
    check(rows)
    assert list(rows) == [("sgd", loss, None) for loss in LOSSES]
    base = rows["sgd", next(iter(LOSSES)), None]
    for row in rows.values():
        assert row["paired_all"] == pytest.approx(row["all"] - base["all"], abs=1e-4)


@pytest.mark.slow
def test_without_a_radius_every_rule_is_sgd_under_every_loss(tmp_path, run_python):
    """The whole table: perturbed by nothing, all rules go the way of SGD under 7 losses."""
    from experiments.command.loss_flags import LOSSES
    from experiments.command.method_flags import rule_names

    flags = ["--rule", *rule_names(), "--loss", *LOSSES, "--epochs", "3", *NO_RADIUS]
    rows = smoke(run_python, tmp_path / "table", *flags)
    check(rows)
    assert len(rows) == len(rule_names()) * len(LOSSES)
    for (_, loss, _), row in rows.items():
        for split in ("all", "many", "medium", "few"):
            # Rounding may move a prediction or two of 719.
            assert row[split] == pytest.approx(rows["sgd", loss, None][split], abs=1.5)


def test_deferred_weights_with_an_unknown_or_weighted_loss_are_refused(tmp_path, refuse):
    flags = ["--out", tmp_path / "x", "--drw-epoch", "1", "--loss", "class_balanced"]
    assert "weighted from the start" in refuse("experiments.digits_lt", *flags, code=1)
    assert not (tmp_path / "x").exists()
