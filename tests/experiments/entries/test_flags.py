"""Every flag of every command: its range, what heeds it, its help; generated from the parsers.

A new flag is covered as it is declared; one without a range or without needs fails here.
"""

import argparse
import contextlib
import importlib
import math
import random
import re
import runpy
import sys

import pytest

import flag_table
from experiments import cifar_lt, evaluate, sweep
from experiments.anomaly import command as anomaly
from experiments.command import loss_flags, method_flags, presets, stage2
from experiments.host import cli
from experiments.host.errors import RunError
from experiments.models import MODELS, PRETRAINED
from places import ROOT
from tiny import tiny_dataset

ENTRIES = {
    **{
        f"experiments.{name}": importlib.import_module(f"experiments.{name}").arguments
        for name in (
            "cifar_lt", "imagenet_lt", "inaturalist", "digits_lt", "sweep", "anomaly", "evaluate",
            "report", "redraw", "study", "compare", "analyse", "finetune",
        )
    },
    "experiments.sweep cifar_lt": sweep.image_arguments,
    **{
        f"benchmarks.{name}": importlib.import_module(f"benchmarks.{name}").arguments
        for name in (
            "accelerator", "adapters", "conv_profile", "cpu_cores", "exact_batch_norm",
            "input_pipeline", "kernels", "seeds_together", "step_cost",
        )
    },
}  # fmt: skip
BAD = (
    "nan", "inf", "-inf", "-1", "0", "1", "0.5", "-0.5", "1e308", "1e400", "1e-50", "1e-400",
    str(10**20), "9" * 5000, str(2**31), str(2**32), str(2**63), "", " ", " 1", "1 ", "1_000",
    "text", "0x10", "1e", "--", "٣", "1,2", "True", "None", "1j", "+",
)  # fmt: skip
# Legal whatever the range: how the others of a list, or of several values, are filled up.
GOOD = ("1", "2", "0.5", "3", "100")


def test_every_command_is_here():
    listed = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".command")
        for folder in ("experiments", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if "cli.parser(" in path.read_text() and path.name != "cli.py"
    }
    assert listed <= set(ENTRIES)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("entry", ENTRIES)
def test_every_command_is_run_as_a_module(entry, monkeypatch, capsys):
    module, *words = entry.split()
    monkeypatch.setattr(sys, "argv", [module, *words, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    assert ended.value.code == 0 and capsys.readouterr().out.startswith("usage: ")


def _flags(entry):
    actions = ENTRIES[entry]()._actions
    return [action for action in actions if action.option_strings and action.dest != "help"]


def _numeric(action):
    return isinstance(action.type, cli.number)


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_flag_is_declared_wholly(entry):
    parser = ENTRIES[entry]()
    for action in parser._actions:
        name = action.option_strings[0] if action.option_strings else action.dest
        assert action.help, f"{name} has no help"
        assert "(default: True)" not in parser._get_formatter()._expand_help(action)
        if action.nargs == 0 or action.choices is not None or name == "--grid":
            continue
        assert _numeric(action) or action.type in (cli.text, cli.tag, cli.address), (
            f"{name} takes anything: give it a type of experiments/host/cli.py"
        )
        default = action.default if isinstance(action.default, list) else [action.default]
        numbers = [value for value in default if isinstance(value, int | float)]
        assert _numeric(action) or not numbers, f"{name} is a number without a range"
        assert all(action.type.holds(value) for value in numbers), f"default of {name}"
    known = {action.option_strings[0][2:].replace("-", "_") for action in _flags(entry)}
    assert known <= set(parser.needs), "each flag has a place among the parser's needs"
    places = {action.dest for action in parser._actions if not action.option_strings}
    assert set(parser.needs) <= known | places, "each of the parser's needs is of a flag"


@pytest.mark.parametrize("entry", [name for name in ENTRIES if name.startswith("experiments.")])
def test_defaults_and_ranges(entry, monkeypatch):
    """Those of one table, where no variable names a folder: scripts of others stand on them."""
    for variable in ("ADBENCH_DIR", "ADBENCH_SPLITS", "TFDS_DATA_DIR"):
        monkeypatch.delenv(variable, raising=False)
    wanted = flag_table.DEFAULTS | flag_table.OWN.get(entry, {})
    ranges = {flag: words for words, flags in flag_table.RANGES.items() for flag in flags.split()}
    for action in _flags(entry):
        flag = action.option_strings[0][2:]
        if flag in wanted:
            assert action.default == wanted[flag], flag
        else:
            assert action.default in (None, False, "", []) or action.default == 0, flag
        if _numeric(action):
            assert action.type.range == ranges.get(f"{entry}/{flag}", ranges.get(flag)), flag


@pytest.mark.parametrize("entry", ["experiments.cifar_lt", "experiments.finetune"])
def test_what_has_a_name_is_offered_in_the_order_of_the_alphabet(entry):
    """However the tables are ordered that it stands in; no model that the entry cannot train."""
    flags = {action.option_strings[0]: action for action in _flags(entry)}
    for flag in ("--model", "--preset", "--rule", "--loss", "--stage2"):
        assert list(flags[flag].choices) == sorted(flags[flag].choices), flag
    offered = MODELS if entry.endswith("cifar_lt") else PRETRAINED
    assert set(flags["--model"].choices) == set(offered)


def _type(action, value):
    """What the type says of a text: ("value", number) or ("refused", message)."""
    try:
        return "value", action.type(value)
    except argparse.ArgumentTypeError as error:
        return "refused", str(error)


@pytest.mark.parametrize("entry", ENTRIES)
def test_bad_numbers_are_refused_by_name(entry, capsys):
    """As the whole command line, for a few; by the flag's type alone for all."""
    parser = ENTRIES[entry]()
    for action in _flags(entry):
        if not _numeric(action):
            continue
        flag = action.option_strings[0]
        for text in BAD:
            kind, found = _type(action, text)
            if kind == "refused":
                assert found.startswith("must be ") and len(found) < 200, (flag, text, found)
                continue
            assert action.type.holds(found), (flag, text)
            assert action.type.infinite or math.isfinite(found), (flag, text)
            assert isinstance(found, int) == action.type.whole, (flag, text)
            assert abs(found) < 2**32 or not action.type.whole, (flag, text)
            assert text == text.strip() and "_" not in text and text.isascii(), (flag, text)
        refused = [text for text in ("nan", "-7", "text") if _type(action, text)[0] == "refused"]
        assert refused
        for text in refused:
            several = action.nargs if isinstance(action.nargs, int) else 1
            with pytest.raises(SystemExit) as end:
                # "=" where there is one value: a negative one else looks like a flag.
                parser.parse_args([flag, *[text] * several] if several > 1 else [f"{flag}={text}"])
            said = capsys.readouterr().err
            assert end.value.code == 2 and said.count("\n") == 1, said
            assert said.startswith(f"error: {flag} must be "), said


@pytest.mark.parametrize("entry", ENTRIES)
def test_bad_texts_are_refused_by_name(entry, capsys):
    parser = ENTRIES[entry]()
    for action in _flags(entry):
        if action.type not in (cli.text, cli.tag, cli.address):
            continue
        flag = action.option_strings[0]
        for text in ("", " ", "\0", "a\0b", "\udcff"):
            if text == "" and action.type is cli.tag:
                continue  # no tag
            with pytest.raises(SystemExit) as end:
                parser.parse_args([f"{flag}={text}"])
            assert end.value.code == 2
            assert capsys.readouterr().err.startswith(f"error: {flag} ")


@pytest.mark.parametrize(
    ("kind", "bad", "good"),
    [
        (cli.tag, ("../x", "/x", "..", ".", "a/b", "a\\b", "a b", "x" * 101), ("", "b.2", "A-1_")),
        (cli.address, ("host", ":1", "host:", "host:0", "h:65536", "h:1.5"), ("h:1", "[::1]:80")),
        (cli.seed, ("-1", str(2**32), "1.0"), ("0", str(2**32 - 1))),
        (cli.number(over=1, infinite=True), ("1", "nan", "-inf"), ("inf", "1.5")),
    ],
)
def test_types_of_flags(kind, bad, good):
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError):
            kind(text)
    for text in good:
        kind(text)


# ---- flags that nothing heeds ---------------------------------------------------------------


def _values(action):
    """A legal way to write a flag."""
    flag = action.option_strings[0]
    if action.nargs == 0:
        return [flag]
    if action.choices is not None:
        value = str(sorted(action.choices)[0])
    elif _numeric(action):
        value = next(text for text in GOOD if _type(action, text)[0] == "value")
    else:
        value = "host:1" if action.type is cli.address else "x"
    return [flag, *[value] * (action.nargs if isinstance(action.nargs, int) else 1)]


def _needed(entry):
    for name, needs in ENTRIES[entry]().needs.items():
        for need in needs:
            yield name, need


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_flag_that_nothing_heeds_is_refused(entry, capsys):
    """Each condition of the table alone unmet: by a namespace in which all others are met."""
    actions = {a.option_strings[0][2:].replace("-", "_"): a for a in _flags(entry)}
    parser = ENTRIES[entry]()
    for name, need in _needed(entry):
        parser.needs = {flag: () for flag in parser.needs}
        parser.needs[name] = (need._replace(met=lambda args: False),)
        extra = ["x"] * sum(not a.option_strings and a.nargs != "?" for a in parser._actions)
        out = ["--out", "x"] if "out" in actions and actions["out"].required else []
        with pytest.raises(SystemExit) as end:
            parser.parse_args([*extra, *out, *_values(actions[name])])
        said = capsys.readouterr().err
        flag = actions[name].option_strings[0]
        assert end.value.code == 2 and said.count("\n") == 1
        assert said == f"error: {flag} needs {need.words}: nothing would heed it\n"


UNHEEDED = {
    "experiments.cifar_lt": [
        "--rho-boundaries 5", "--rho-schedule linear --rho-boundaries 5", "--rho-values 0.1",
        "--rho-schedule step --rho 0.1", "--rule sgd --rho 0.1", "--rule sam --eta 10",
        "--rule sam --strict", "--rule sse_sam --rho 0.1", "--rule sse_sam --rho-schedule late",
        "--gamma 1", "--strength 1", "--rule focal_sam --tail-scale 1", "--tail-weight 1",
        "--head-rho 1", "--rule sse_sam --switch-fraction 0 --head-rho 1", "--switch-fraction 0.5",
        "--cc-variant paper", "--noise-ratio 1",
        "--flat-ratio 1", "--gsa-scale 1", "--gsa-direction plain", "--rule gsa --scale 1",
        "--rule gsa --p-norm 3", "--rule sgd --p-norm 3", "--rule cc_sam --adaptive asam",
        "--asam-eta 0.1", "--adaptive magnitude --asam-eta 0.1", "--rule sgd --group-mean",
        "--rule sgd --running-statistics every", "--model mlp --running-statistics every",
        "--beta 0.9", "--normalise batch", "--focal-gamma 1",
        "--loss focal --tau 1", "--max-margin 1", "--scale 1", "--margin-alone", "--vs-gamma 1",
        "--stage2-tag a", "--stage2-lr 1", "--stage2 tau-norm --stage2-lr 1",
        "--stage2 crt --stage2-tau 1", "--stage2 crt --stage2-limit 1",
        "--stage2 crt --stage2-variant paper", "--stage2 crt --stage2-max-norm step",
        "--stage2 crt --model mlp --stage2-statistics updated",
        "--together", "--no-together --seed 1", "--heartbeat-seconds 5", "--subset-seed 1",
        "--export x.npz --out y", "--export x.npz --rule sam", "--export x.npz --seed 1",
        "--overwrite", "--out x --overwrite",
        "--preset saddle --gamma 1", "--preset imbsam-paper --rho-boundaries 1",
    ],
    "experiments.imagenet_lt": ["--loader tf.data --workers 2", "--steps-per-call 2"],
    "experiments.finetune": [
        "--dataset imagenet_lt --shrink 2", "--dataset places_lt --subset first", "--workers 2",
        "--dataset inaturalist --steps-per-call 2", "--jitter 0.4",
        "--adapter bias --adapter-size 2",
        "--init random --prompt {}", "--init random --vocabulary x", "--cache-features x",
        "--model vit_b16 --init x --prompt {}", "--adapter linear --cache-features x --ensemble",
        "--running-statistics every", "--dataset inaturalist --val-list x", "--val-list x",
        "--dataset places_lt --adapter linear --cache-features x --jitter 0.4",
    ],
    "experiments.digits_lt": [
        "--out x --running-statistics every", "--out x --stage2 crt --stage2-statistics updated",
        "--out x --rule sgd --rho 1", "--out x --rule sgd sam --eta 1",
        "--out x --loss focal ldam --tau 1",
    ],
    "experiments.sweep": ["--out x --rule focal_sam --eta 1", "--out x --stage2 crt"],
    "experiments.sweep cifar_lt": [
        "cifar_lt --out x --rule sam --eta 1",
        "cifar_lt --out x --rule sse_sam --switch-fraction 0 --grid head-rho 0 0.2",
    ],
    "experiments.anomaly": ["--rule sgd --rho 1", "--protocol full --label-ratio 0.5"],
    "experiments.report": ["runs --overwrite"],
    "experiments.compare": [
        *(f"--out x --{flag} y" for flag in ("label", "text", "group", "id", "test")),
        "--out x --settings 3", "--out x --data y --no-tune --folds 2",
        "--out x --rule sgd --rho 1", "--out x --rule sgd --perturb last-bias",
        "--out x --rule sam --eta 1",
        "--out x --rule sam --gsa-scale 1", "--out x --rule sam --strength 1",
        "--out x --rule sam --gamma 1", "--out x --tail-weight 2",
        "--out x --loss cross_entropy --tau 1", "--out x --loss focal --beta 0.9",
        "--out x --loss class_balanced --focal-gamma 1", "--out x --model linear --width 3",
        "--out x --model linear --depth 3",
        *(
            f"--out x --predict y --{flag}"
            for flag in ("splits 10", "seed 0", "no-tune", "rule sgd", "rho 0.1", "data z",
                         "resume", "overwrite", "batch-size 64", "model mlp")
        ),
    ],
    "experiments.analyse": ["run --out x --reach 2", "run --out x --between a b"],
    "benchmarks.accelerator": ["--out x --parts steps --lr 1", "--out x --parts peak --rounds 3"],
    "benchmarks.step_cost": [
        "--out x --compile-only --steps 3", "--out x --data y --counts 1 2 3",
        "--out x --mode stratified --model mlp --accumulate 4",
        "--out x --mode dependent split_norm --accumulate 4",
        "--out x --mode split_norm --model mlp", "--out x --mode uniform --model resnet8",
        "--out x --mode split_norm uniform --model resnet8",
        "--out x --mode split_norm --rule sam", "--out x --rule sse_sam --switch-fraction 0.3",
    ],
    "benchmarks.seeds_together": ["--out x --rule sse_sam --switch-fraction 0.3"],
    "benchmarks.exact_batch_norm": ["--out x --compile-only --rounds 3"],
}  # fmt: skip
HEEDED = {
    "experiments.cifar_lt": [
        "--rho-schedule step --rho-boundaries 5", "--rho-schedule late --rho-values 0.1 0.2",
        "--rule sam --sampling stratified --eta 10 --strict", "--rule reweighted_sam --eta 1",
        "--rule sse_sam --switch-fraction 0.5 --head-rho 1 --tail-rho 1 --eta 1 --strict",
        "--rule sse_sam --switch-fraction 0 --tail-rho 1",
        "--rule sse_sam --switch-fraction 1 --tail-rho 1 --head-rho 1",
        "--rule cc_sam --noise-ratio 1 --cc-perturb all --flat-ratio 0", "--drw-epoch 3 --beta 0.9",
        "--rule gsa --gsa-scale 1 --gsa-direction plain --loss ldam --scale 3",
        "--loss ldam --margin-alone --scale 3 --max-margin 1", "--loss vs --tau 1 --vs-gamma 1",
        "--rule sgd --weight-decay-inside", "--adaptive asam --asam-eta 0", "--p-norm inf",
        "--stage2 crt weight-balancing --stage2-max-norm epoch --stage2-tag a --stage2-epochs 3",
        "--stage2 crt --stage2-statistics updated --stage2-sampling stratified --eta 5",
        "--seeds 1 2 --no-together", "--num-seeds 2 --together", "--cluster --heartbeat-seconds 5",
        "--export x.npz --subset shuffled --subset-seed 1 --val-per-class 5 --shrink 2",
        "--export x.npz --overwrite",
        "--preset weight-balancing --stage2", "--preset focal-sam-paper --gamma 1 --tau 2",
    ],
    "experiments.imagenet_lt": ["--workers 2", "--steps-per-call 1"],
    "experiments.finetune": [
        "--init x --prompt {} --vocabulary x --class-names x --ensemble --adapter-size 3",
        "--dataset places_lt --train-list x --val-list x --workers 2 --jitter 0.1 --adapter linear",
        "--init random --adapter linear --cache-features x --steps-per-call 5 --shrink 2",
        "--preset focal-sam-cifar100 --gamma 1 --no-ensemble --resize 256 --classifier auto",
    ],
    "experiments.digits_lt": ["--out x --eta 1 --loss focal vs --tau 1 --rule sgd imbsam"],
    "experiments.sweep": ["--out x --rule focal_sam --gamma 1 --grid rho 0.1"],
    "experiments.anomaly": ["--rule sgd sam --rho 1", "--protocol full clean --label-ratio 0.5"],
    "experiments.report": ["runs --overwrite --out x"],
    "experiments.compare": [
        "--out x --data y --label a --text b --group c --id d --test e --settings 3 --folds 2",
        "--out x --tune --settings 3 --width 3 --depth 1 --rho 1 --perturb last-bias --eta 1",
        "--out x --gsa-scale 1 --strength 1 --gamma 1 --tau 1 --beta 0.9 --focal-gamma 1",
        "--out x --rule reweighted_sam --tail-weight 2 --eta 1 --rho 1 --perturb all",
        "--out x --rule imbsam --rho 1 --eta 1", "--out x --rule gsa --perturb all",
        "--out x --predict y", "--out x --predict y --save --splits 10 --seed 0",
    ],
    "experiments.analyse": [
        "run --out x --surface 3 --reach 2", "run --out x --plane 3 --between a b c",
        "run --out x --line 3 --between a b",
    ],
    "benchmarks.step_cost": [
        "--out x --rule gsa --model mlp --mode stratified --eta 10", "--out x --accumulate 4",
        "--out x --model mlp resnet8 --mode split_norm uniform", "--out x --rule sse_sam",
        "--out x --mode dependent --accumulate 4 --model mlp --rule sgd",
    ],
}  # fmt: skip


def _parse(entry, line):
    module = importlib.import_module(entry.split()[0])
    flags = line.split()
    if entry.startswith("experiments.sweep"):
        return sweep.parse(flags)
    if hasattr(module, "parse"):
        return module.parse(module.arguments(), flags)
    if entry in ("experiments.imagenet_lt", "experiments.inaturalist"):
        return module.presets.parse(module.arguments(), flags)
    return module.arguments().parse_args(flags)


@pytest.mark.parametrize(
    ("entry", "line"), [(entry, line) for entry, lines in UNHEEDED.items() for line in lines]
)
def test_lines_with_a_flag_that_nothing_heeds(entry, line, capsys):
    with pytest.raises(SystemExit) as end:
        _parse(entry, line)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1, said
    assert "nothing would heed it" in said or "unrecognized" in said, said


@pytest.mark.parametrize("entry", HEEDED)
def test_lines_whose_flags_are_all_heeded(entry):
    for line in HEEDED[entry]:
        _parse(entry, line)


def test_every_condition_has_a_line():
    """Each flag of cifar_lt that needs something is refused in a line above."""
    named = {
        word[2:].replace("-", "_").removeprefix("no_")
        for lines in UNHEEDED.values() for line in lines for word in line.split()
        if word.startswith("--")
    }  # fmt: skip
    anomaly_needs = anomaly.arguments().needs
    own = {*method_flags.needs(), *loss_flags.needs(), *stage2.needs(), *anomaly_needs}
    needing = {name for name in own if {**cifar_lt.arguments().needs, **anomaly_needs}[name][1:]}
    alike = {"tail_rho": "head_rho", "cc_perturb": "cc_variant", "stage2_epochs": "stage2_lr",
             "stage2_weight_decay": "stage2_lr", "stage2_sampling": "stage2_lr",
             "stage2_rule": "stage2_lr"}  # fmt: skip
    assert {alike.get(name, name) for name in needing} <= named


# ---- at random ------------------------------------------------------------------------------


def _random_line(draw, entry):
    """Up to four flags with values good and bad; now and then a word that is no flag."""
    flags = _flags(entry)
    line = ["cifar_lt"] if entry.endswith(" cifar_lt") else []
    for action in draw.sample(flags, draw.randint(min(1, len(flags)), min(4, len(flags)))):
        value = _values(action)[1:]
        if value and draw.random() < 0.5:
            value = [draw.choice([*GOOD, *(action.choices or ()), *BAD])]
        line += [draw.choice(action.option_strings), *map(str, value)]
    return [*line, *draw.choice([[], [], [], ["stray"], ["--rhoo"], ["--no-rho"], ["-x"]])]


@pytest.mark.parametrize("lines", [20, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.parametrize("entry", ENTRIES)
def test_random_lines_end_in_one_sentence_or_make_a_plan(entry, lines, capsys):
    draw, dataset = random.Random(entry), tiny_dataset(counts=(200, 80, 40, 5))
    module = importlib.import_module(entry.split()[0])
    for _ in range(lines):
        line = _random_line(draw, entry)
        try:
            if entry.startswith("experiments.sweep"):
                args = sweep.parse(line)
            else:
                args = getattr(module, "parse", presets_or_plain)(module.arguments(), line)
        except SystemExit as end:
            said = capsys.readouterr().err
            assert end.code == 2 and said.startswith("error: ") and said.count("\n") == 1, line
            continue
        if entry == "experiments.cifar_lt" and not args.export:
            with contextlib.suppress(RunError):
                cifar_lt.make_plan(args, dataset)


def presets_or_plain(parser, line):
    known = parser.get_default("experiment") in presets.TABLES
    return presets.parse(parser, line) if known else parser.parse_args(line)


# ---- help ----------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ENTRIES)
def test_help_shows_ranges_and_defaults(entry):
    parser = ENTRIES[entry]()
    text = " ".join(parser.format_help().split())
    for action in _flags(entry):
        shown = parser._get_formatter()._expand_help(action)
        if _numeric(action):
            assert f"[{action.type.range}]" in shown
        default = action.default
        if default not in (None, "", [], argparse.SUPPRESS) and action.nargs != 0:
            words = " ".join(map(str, default)) if isinstance(default, list) else str(default)
            assert shown.count(f"(default: {words})") == 1, shown
        assert shown.count("(default:") <= 1
        assert " ".join(shown.split()[:4]) in text or "-" in shown


def test_counting_nouns():
    assert [cli.noun(n, "seed") for n in (0, 1, 2)] == ["0 seeds", "1 seed", "2 seeds"]
    assert cli.noun(3, "class", "classes") == "3 classes"


def test_negative_numbers_are_values(capsys):
    parser = ENTRIES["experiments.cifar_lt"]()
    for text in ("-1e-1", "-.1"):
        args = parser.parse_args(["--stage2", "tau-norm", "--stage2-tau", text])
        assert args.stage2_tau == -0.1
    for text in ("-1e5", "-inf", "-nan", "-2"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--rho", text])
        assert capsys.readouterr().err == (
            f"error: --rho must be finite and at least 0, got {text}\n"
        )


def test_stratified_sampling_needs_a_tail():
    """Also of a second stage; it would be natural sampling, in silence."""
    for flags, group in (
        (["--sampling", "stratified", "--rule", "sam", "--eta", "1"], "tail"),
        (["--sampling", "stratified", "--rule", "sgd"], "head"),
        (["--rule", "sgd", "--stage2", "crt", "--stage2-sampling", "stratified"], "head"),
    ):
        args = cifar_lt.parse(cifar_lt.arguments(), flags)
        with pytest.raises(RunError, match=f"--eta .* leaves no {group} class: the counts range"):
            cifar_lt.make_plan(args, tiny_dataset())


def test_evaluate_refuses_two_sources_of_data(capsys):
    with pytest.raises(SystemExit):
        evaluate.arguments().parse_args(["run", "--data", "x", "--data-dir", "y"])
    assert "--data-dir needs --data left out" in capsys.readouterr().err


def test_more_steps_than_are_counted_are_refused():
    args = cifar_lt.arguments().parse_args(["--epochs", "1000000", "--batch-size", "1"])
    counts = (3000, 50)
    with pytest.raises(RunError, match=r"are more than steps are counted to, 2\*\*31"):
        cifar_lt.make_plan(args, tiny_dataset(counts=counts))


def _commands():
    """Those of the results' pages, without the ones that need a shell or are cut short."""
    for page in sorted(ROOT.glob("results/*/README.md")):
        # Blocks of plain text show what earlier commits had.
        text = re.sub(r"```text\n.*?```", "", page.read_text(), flags=re.S).replace("\\\n", " ")
        for line in re.findall(r"python -m ((?:experiments|benchmarks)\.[^`\n]*)", text):
            line = line.split("#")[0].partition(" -- ")[0].strip()  # of a study, its own flags
            if not set("$;|&\"'") & set(line) and "..." not in line:
                yield page.parent.name, re.sub(r"\b(RHO|R)\b", "0.1", line)


@pytest.mark.parametrize(("page", "line"), list(_commands()))
def test_commands_of_the_results_are_accepted(page, line):
    module, *flags = line.split()
    _parse(f"{module} cifar_lt" if flags[:1] == ["cifar_lt"] else module, " ".join(flags))
