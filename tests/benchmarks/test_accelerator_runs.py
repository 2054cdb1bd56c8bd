"""The papers' runs: what their flags make of them, which are done again, what is kept of them."""

import json
import types

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import accelerator, accelerator_runs
from benchmarks.step_bench import noise
from experiments import cifar_lt, evaluate
from experiments.data import save_npz
from experiments.host.errors import Diverged, RunError, Stopped
from experiments.models import create_model
from experiments.run.parts import last_variables
from experiments.run.settings import Settings
from imbsam_jax import long_tail_counts
from tiny import tiny_dataset

pytestmark = pytest.mark.allow_rank_promotion  # Flax adds a bias[C] to a batch[B, C]


def test_jobs_of_seeds_together_and_alone():
    flags = [
        "--out",
        "x",
        "--models",
        "mlp",
        "--methods",
        "sgd",
        "imbsam",
        "--weight-decays",
        "0.1",
    ]
    flags += ["--losses", "logit_adjusted", "--epochs", "3", "--seeds", "4", "5"]
    alone = accelerator_runs.jobs(accelerator.parsed(flags))
    together = accelerator_runs.jobs(accelerator.parsed([*flags, "--together"]))
    assert [(job["method"], job["seeds"]) for job in together] == [
        ("sgd", [4, 5]),
        ("imbsam", [4, 5]),
    ]
    assert [job["seeds"] for job in alone] == [[4], [4], [5], [5]]
    names = [name for job in together for name in job["names"]]
    assert sorted(names) == sorted(name for job in alone for name in job["names"])
    assert names[0] == ("mlp_b64_lr0.01_cosine-prestep_wd0.1_logit_adjusted_sgd_float32_e3_s4")
    others = [["--lr", "0.1"], ["--batch-size", "8"], ["--schedule", "cosine"], ["--eta", "7"],
              ["--precision", "bfloat16"]]  # fmt: skip
    for other in others:  # another recipe is another run
        (first, *_) = accelerator_runs.jobs(accelerator.parsed([*flags, *other]))
        assert first["names"][0] not in names


def runs(out, *flags):
    words = ["--quick", "--parts", "runs", "--no-cost", "--quiet", "--eval-every", "2", *flags]
    words += ["--out", str(out / "out"), "--work", str(out / "work")]
    accelerator.main(accelerator.parsed(words))
    return json.loads((out / "out" / "runs.json").read_text())


@pytest.mark.slow
def test_runs_of_two_seeds_and_what_they_fit(tmp_path):
    """Together or not the same; correct images of each class, counted here one by one."""
    flags = ["--methods", "sse_sam", "--losses", "logit_adjusted", "--seeds", "0", "1"]
    flags += ["--schedule", "cosine", "--epochs", "6", "--lr", "0.05"]
    alone, both = runs(tmp_path / "a", *flags), runs(tmp_path / "b", *flags, "--together")
    data = noise(long_tail_counts(5, 60, 10))
    for one, other in zip(alone, both, strict=True):
        assert one["job"] == other["job"] and one["seed"] == other["seed"]
        assert "together" not in one and other["together"] == [0, 1]
        assert one["rule_args"]["eta"] == 20 and one["loss"] == "logit_adjusted"
        assert one["rule_args"]["switch_step"] == 5 * 7  # of 130 images in batches of 20
        assert one["settings"]["schedule"] == "cosine" and one["flops_per_step"] is None
        assert one["train_correct"] == other["train_correct"]
        hits = counted_by_hand(tmp_path / "a" / "work" / one["job"], data, one)
        assert one["train_correct"] == hits and len({*hits}) > 2
        table = (tmp_path / "a" / "work" / one["job"] / "per_class.csv").read_text()
        assert one["test_correct"] == [int(x.split(",")[4]) for x in table.splitlines()[1:]]


def counted_by_hand(folder, data, report):
    known = Settings.__annotations__
    settings = Settings(**{k: v for k, v in report["settings"].items() if k in known})
    variables, _ = last_variables(folder, data, "mlp", settings)
    model = create_model("mlp", 5)
    images = (data.train_images / 255.0 - np.array(data.mean)) / np.array(data.std)
    guesses = np.asarray(model.apply(variables, jnp.float32(images), train=False)).argmax(axis=1)
    return [int(((guesses == c) & (data.train_labels == c)).sum()) for c in range(5)]


@pytest.mark.slow
def test_a_loss_brings_its_classifier_and_another_recipe_in_a_folder_is_refused(tmp_path):
    """Nor does what a run folder refuses take the place of a report."""
    (report,) = runs(tmp_path, "--methods", "sgd", "--losses", "ldam")
    assert report["classifier"] == report["settings"]["classifier"] == "normalised"
    flags = ["--methods", "sgd", "--losses", "ldam", "--seeds", "0", "1", "--together"]
    with pytest.raises(RunError, match="holds a run with other settings"):
        runs(tmp_path, *flags)
    assert json.loads((tmp_path / "out" / "runs.json").read_text()) == [report]


@pytest.mark.slow  # a run; what is made of it, test_runs_that_diverge shows
def test_a_run_that_diverges_is_a_finding(tmp_path):
    flags = ["--methods", "sgd", "--losses", "cross_entropy", "--epochs", "3", "--lr", "1e30"]
    (report,) = runs(tmp_path, *flags)
    assert "the loss is nan" in report["failed"] and report["job"].endswith("_s0")


@pytest.mark.slow
def test_a_run_on_a_data_file_is_evaluated_as_one_of_cifar_lt(tmp_path, capsys):
    """A folder of the benchmark's, by the same figures as its report; the file is given again."""
    file = tmp_path / "cache.npz"
    save_npz(tiny_dataset(32), file)
    flags = ["--data", str(file), "--models", "mlp", "--methods", "sgd", "--weight-decays", "0"]
    (report,) = runs(tmp_path, *flags, "--losses", "cross_entropy")
    folder = str(tmp_path / "work" / report["job"])
    evaluate.main(evaluate.arguments().parse_args([folder, "--data", str(file)]))
    shown = capsys.readouterr().out
    (line,) = [each for each in shown.splitlines() if "as it is" in each]
    assert line.split()[-1] == f"{report['all']:.2f}"


# ---- its parts, by hand --------------------------------------------------------------------------


def test_runs_are_of_the_papers_settings():
    """ImbSAM (Zhou et al.): rho 0.05, eta 100; twice that for the tail in imbsam_x2; what is not
    named is as in cifar_lt, CC-SAM's noise ratio as in every benchmark.
    """
    of_imbsam = {"rho": 0.05, "eta": 100}
    assert {
        "sgd": ("sgd", {}), "sam": ("sam", {"rho": 0.05}),
        "imbsam": ("imbsam", {**of_imbsam, "tail_scale": 1.0}),
        "imbsam_x2": ("imbsam", {**of_imbsam, "tail_scale": 2.0}),
        "focal_sam": ("focal_sam", {}), "sse_sam": ("sse_sam", {"eta": 100}),
        "cc_sam": ("cc_sam", {"noise_ratio": 1e-6}), "gsa": ("gsa", {}),
    } == accelerator_runs.METHODS  # fmt: skip
    args = accelerator.parsed(["--out", "x", "--quick"])
    small = (args.models, args.methods, args.weight_decays, args.epochs, args.batch_size, args.eta)
    assert small == (["mlp"], ["imbsam"], [5e-3], 2, 20, 20) and args.rounds == 3


@pytest.fixture
def trained(monkeypatch):
    """Runs that are over at once; what they were given."""
    from experiments.run import fit

    given = {"runs": [], "late": False}

    def report(out, settings, seed, description):
        ends = dict.fromkeys(("many", "medium", "few", "all"), 12.34) | {"few": None}
        return {**description, "seed": seed, **ends, "seconds_train": 61.2, "seconds_compile": 7.6}

    def alone(dataset, model, method, loss, settings, out, **how):
        if given["late"]:
            raise Stopped("out of time", 75)
        given["runs"].append((dataset, model, method, loss, settings, {settings.seed: out}, how))
        return report(out, settings, settings.seed, how["description"])

    def together(dataset, model, method, loss, settings, outs, **how):
        given["runs"].append((dataset, model, method, loss, settings, outs, how))
        return [report(out, settings, seed, how["description"]) for seed, out in outs.items()]

    monkeypatch.setattr(fit, "fit", alone)
    monkeypatch.setattr(fit, "fit_together", together)
    monkeypatch.setattr(
        accelerator_runs,
        "_hits",
        lambda data, model, settings, outs: {s: {"hits": s} for s in outs},
    )
    ticks = iter(range(100, 10**6, 100))
    monkeypatch.setattr(
        accelerator_runs, "time",
        types.SimpleNamespace(perf_counter=lambda: next(ticks) / 7, monotonic=lambda: 0.0),
    )  # fmt: skip
    return given


def train(out, *flags):
    words = ["--quick", "--parts", "runs", "--models", "mlp", "--methods", *flags]
    args = accelerator.parsed([*words, "--out", str(out), "--work", str(out / "work")])
    accelerator_runs.run(args, 77.0)
    return {one["job"]: one for one in json.loads((out / "runs.json").read_text())}


def test_a_run_has_what_its_flags_say(trained, tmp_path, capsys):
    flags = ["sse_sam", "--losses", "ldam", "--weight-decays", "0.125", "--lr", "0.5", "--epochs"]
    flags += ["4", "--schedule", "cosine", "--precision", "bfloat16", "--steps-per-call", "3"]
    found = train(tmp_path, *flags, "--eval-every", "2", "--quiet", "--seeds", "5")
    ((data, model, _, _, settings, outs, how),) = trained["runs"]
    (name,) = found
    assert name == "mlp_b20_lr0.5_cosine_wd0.125_ldam_sse_sam_eta20_bfloat16_e4_s5"
    assert outs == {5: tmp_path / "work" / name} and model == "mlp"
    assert data.class_counts().tolist() == [60, 33, 18, 10, 6]  # 60 10^(-k / 4)
    assert how == {
        "description": how["description"], "resume": True, "deadline": 77.0, "quiet": True,
        "measure": True, "draw": run_folder_plots(),
    }  # fmt: skip
    about = how["description"]
    assert about["experiment"] == "accelerator" and about["rule"] == "sse_sam"
    # 127 images are seven batches of 20; it changes after 0.7 of four epochs, in whole ones.
    assert about["rule_args"]["switch_step"] == 3 * 7
    assert about["rule_args"]["eta"] == 20 and about["imbalance_factor"] == 10
    told = {field: getattr(settings, field) for field in (
        "epochs", "batch_size", "lr", "schedule", "weight_decay", "seed", "precision",
        "steps_per_call", "eval_every", "classifier",
    )}  # fmt: skip
    assert told == {
        "epochs": 4, "batch_size": 20, "lr": 0.5, "schedule": "cosine", "weight_decay": 0.125,
        "seed": 5, "precision": "bfloat16", "steps_per_call": 3, "eval_every": 2,
        "classifier": "normalised",
    }  # fmt: skip
    assert (found[name]["seconds_whole"], found[name]["hits"]) == (14.286, 5)
    assert capsys.readouterr().out.splitlines() == [
        "0 runs are done, 1 to do, 9 minutes",
        f"{name}: many 12.3 medium 12.3 few - all 12.3, 61 s and 8 s to compile, 14.3 s in all",
        f"all 1 runs are in {tmp_path / 'runs.json'}",
    ]  # fmt: skip
    text = (tmp_path / "runs.json").read_text()
    assert text.startswith('[\n {\n  "experiment"') and text.endswith("]\n")


def run_folder_plots():
    from experiments.reports import plots

    return plots.run_folder


def test_runs_that_are_done_are_not_done_again(trained, tmp_path, capsys):
    """Of two seeds together both, or neither; a folder that was begun has no time of its own."""
    first = train(tmp_path, "sgd", "--seeds", "0", "--no-cost")
    assert trained["runs"][0][-1]["measure"] is False
    earlier = tmp_path / "earlier.json"
    (tmp_path / "runs.json").rename(earlier)
    more = ["--done", str(earlier), "--seeds", "0", "1", "--no-cost"]
    found = train(tmp_path, "sgd", *more)
    assert len(trained["runs"]) == 2 and [one["seed"] for one in found.values()] == [0, 1]
    assert first.items() <= found.items()
    trained["runs"].clear()
    assert train(tmp_path, "sgd", *more) == found and not trained["runs"]
    capsys.readouterr()
    names = [name.replace("_sgd_", "_sam_") for name in found]
    (tmp_path / "work" / names[1]).mkdir(parents=True)
    (tmp_path / "work" / names[1] / "config.json").write_text("{}")
    found = train(tmp_path, "sgd", "sam", *more, "--together")
    ((*_, settings, outs, _),) = trained["runs"]
    assert [*outs] == [0, 1] and [folder.name for folder in outs.values()] == names
    assert settings.seed == 0 and len(found) == 4
    assert [found[name]["seconds_whole"] for name in names] == [None] * 2
    assert [found[name]["hits"] for name in names] == [0, 1]
    assert "2 runs are done, 2 to do, 9 minutes" in capsys.readouterr().out
    trained["late"] = True
    with pytest.raises(Stopped, match=r"4 runs are in .*; the same command goes on") as stopped:
        train(tmp_path, "gsa", *more)
    assert stopped.value.exit_code == 75
    said = capsys.readouterr().out.splitlines()
    assert said[-1].endswith("_gsa_eta20_float32_e2_s0: out of time")


def test_runs_that_diverge_are_findings_and_the_next_have_their_turn(
    trained, tmp_path, capsys, monkeypatch
):
    from experiments.run import fit

    whole = fit.fit

    def diverging(dataset, model, method, loss, settings, out, **how):
        if settings.weight_decay == 0.5:
            raise Diverged("the loss is nan")
        return whole(dataset, model, method, loss, settings, out, **how)

    monkeypatch.setattr(fit, "fit", diverging)
    found = train(tmp_path, "sgd", "--weight-decays", "0.5", "0.25")
    (bad, good) = found.values()
    assert (bad["failed"], bad["rule"]) == ("the loss is nan", "sgd") and good["all"] == 12.34
    assert "seed" not in bad and f"{bad['job']}: the loss is nan\n" in capsys.readouterr().out


def test_reports_of_another_kind_are_refused(tmp_path):
    (tmp_path / "runs.json").write_text('[{"seed": 0}]')
    with pytest.raises(RunError, match=r"runs\.json: it is no list of jobs' reports"):
        accelerator_runs.finished([tmp_path / "none.json", tmp_path / "runs.json"])


def test_a_run_on_a_file_is_one_of_cifar_lt(trained, tmp_path):
    """With its images' counts, and with eta from the method where no flag says it."""
    file = tmp_path / "cache.npz"
    save_npz(tiny_dataset(32, counts=(120, 20, 10, 5, 3)), file)
    args = accelerator.parsed(
        ["--out", str(tmp_path), "--data", str(file), "--methods", "imbsam", "--models", "mlp",
         "--weight-decays", "0.5", "--work", str(tmp_path / "work")]
    )  # fmt: skip
    accelerator_runs.run(args, 5.0)
    ((data, *_, how),) = trained["runs"]
    about = how["description"]
    assert about["experiment"] == "cifar_lt" and about["rule_args"]["eta"] == 100
    assert data.class_counts()[0] == 120
    assert cifar_lt.describe(args, data).items() <= about.items()
    assert how["measure"] is True and how["quiet"] is False


def test_hits_are_of_the_last_checkpoint(monkeypatch, tmp_path):
    """In training and in testing; where there is none, nothing is said."""
    from experiments.run import checkpoints
    from experiments.run import parts as of_runs

    closed = []

    class Kept:
        def __init__(self, folder, *, config, reading):
            assert folder.name == "checkpoints" and config == {"seed": folder.parent.name}
            assert reading is True
            self.folder = folder

        def restore(self, initial):
            assert initial == "initial"
            return None if self.folder.parent.name == "b" else ("state", 7)

        def close(self):
            closed.append(self.folder.parent.name)

    def hits(state, part, stop):
        return types.SimpleNamespace(correct=np.array([len(state), len(part)]))

    evaluator = types.SimpleNamespace(put_state=lambda state: f"{state} there", hits=hits)
    monkeypatch.setattr(checkpoints, "Checkpoints", Kept)
    monkeypatch.setattr(
        of_runs, "Parts",
        lambda *given: types.SimpleNamespace(initial="initial", evaluator=evaluator),
    )  # fmt: skip
    outs = {}
    for seed, name in enumerate("ab"):
        outs[seed] = tmp_path / name
        outs[seed].mkdir()
        (outs[seed] / "config.json").write_text(json.dumps({"seed": name}))
    assert accelerator_runs._hits(None, "mlp", None, outs) == {
        0: {"train_correct": [11, 5], "test_correct": [11, 4]}, 1: {}
    }  # fmt: skip
    assert closed == ["a", "b"]
