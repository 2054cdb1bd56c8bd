"""Which options go together: every row of the table refuses, and speaks of settings by name."""

import ast
import dataclasses
import re

import pytest

from experiments.command.loss_flags import priors_of
from experiments.host.errors import RunError
from experiments.run.compatible import ROWS, Asked, check
from experiments.run.settings import Settings
from experiments.step.methods import ClassConditional, Tabled
from experiments.step.objectives import Adversary
from imbsam_jax import rules
from places import ROOT
from tiny import COUNTS

ASKED = Asked(
    Settings(epochs=2, batch_size=16), Tabled(rules.sgd(5)), "sgd", steps_per_epoch=5, multiple=4,
    batch_norm=True,
)  # fmt: skip
CC_SAM = {"method": ClassConditional(COUNTS, noise_ratio=1.0), "rule": "cc_sam"}
OWN, SPLIT = {"examples": "independent"}, {"examples": "split_norm"}
SHARED = {"examples": "shared_norm", "sampling": "stratified"}
STAGE = {"adversary": Adversary(lambda fn: fn, lambda step: 0.5), "stage2": "cc-sam"}
RELEASE = {**STAGE, "adversary": STAGE["adversary"]._replace(over_the_batch=True)}
TOGETHER = {"together": [0, 1]}
ADJUST = {"stage2": "logit-adjustment", "first": Settings()}
# One for each row, in the order of the table: changed settings, what else is changed, the message.
REFUSED = [
    ({"schedule": "cosine-prestep", "epochs": 1}, {}, "use more, or --schedule cosine"),
    (
        {"epochs": 2**29},
        {"steps_per_epoch": 4},
        "536870912 epochs of 4 steps are more than steps are counted to",
    ),
    ({}, {"together": [4]}, "there is one, [4]: use --seeds or --num-seeds"),
    ({"parallel": "pmap"}, TOGETHER, "--together maps plain jit over seeds: use --parallel jit"),
    ({"devices": 2}, {"together": [0, 1, 2]}, "3 seeds cannot be divided among 2"),
    ({}, {**TOGETHER, "processes": 2}, "--together trains in one process"),
    ({}, {**TOGETHER, "streamed": True}, "this one is streamed"),
    (OWN, {**TOGETHER, "batch_norm": False}, "use --sampling stratified, which has one"),
    ({"accumulate": 2}, CC_SAM, "--rule cc_sam takes a batch whole: use --accumulate 1"),
    (OWN, CC_SAM, "--rule cc_sam takes a batch whole: use --examples dependent"),
    (
        SPLIT,
        {"method": Tabled(rules.sgd(5), running_statistics="every")},
        "--running-statistics first",
    ),
    ({**SPLIT, "mixup": 1.0}, {}, "but with --mixup 1 every row is of two classes"),
    ({**SPLIT, "accumulate": 2}, {}, "use --accumulate 1, not 2"),
    ({**SPLIT, "devices": 2}, {}, "rows over all 2 devices, and send them about: use --parallel"),
    (OWN, STAGE, "averages over all rows of a class: use --examples dependent"),
    (OWN, {}, "use a model without batch statistics (mlp,"),
    (SPLIT, {"batch_norm": False}, "--examples independent is as cheap for this one, and exact"),
    ({**SPLIT, "devices": 2, "parallel": "pmap"}, {}, "tail rows: use --sampling stratified"),
    ({**SHARED, "sampling": "natural"}, {}, "use --sampling stratified, not natural"),
    ({**SHARED, "remat": True}, {}, "leave --remat out, or use --examples dependent"),
    ({}, {"first": Settings(classifier="normalised"), "stage2": "lws"}, "--stage2 lws starts from"),
    ({}, {**ADJUST, "priors": "vs"}, "and with --loss vs they are off already"),
    ({"accumulate": 2}, STAGE, "--stage2 cc-sam takes a batch whole: use --accumulate 1"),
    ({"parallel": "pmap", "devices": 2}, RELEASE, "--stage2-variant release takes norms over"),
    ({"batch_size": 18}, {}, "--batch-size 18 cannot be divided among 1 device and --accumulate 1"),
]


@pytest.mark.parametrize(
    ("row", "settings", "changes", "message"),
    [(row, *case) for row, case in zip(ROWS, REFUSED, strict=True)],
    ids=[message for *_, message in REFUSED],
)
def test_every_row_refuses_something(row, settings, changes, message):
    asked = dataclasses.replace(
        ASKED, settings=dataclasses.replace(ASKED.settings, **settings), **changes
    )
    asked.settings.check()  # each setting by itself is in its range
    assert row.cannot(asked)
    with pytest.raises(RunError, match=re.escape(message)):
        check(asked)


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({}, {}),
        ({"accumulate": 2}, {}),
        (OWN, {"batch_norm": False}),
        ({**OWN, "statistics": "frozen"}, {}),
        ({**OWN, "devices": 2, "parallel": "pmap"}, {"batch_norm": False}),
        ({**SPLIT, "sampling": "stratified", "devices": 2, "parallel": "pmap"}, {}),
        ({**SPLIT, "sampling": "stratified", "devices": 2}, TOGETHER),
        ({**SHARED, "devices": 2}, TOGETHER),
        ({"devices": 2}, {"together": [3, 0, 5, 1]}),
        ({}, CC_SAM),
        ({"parallel": "pmap", "devices": 2}, STAGE),
        ({"parallel": "pmap"}, RELEASE),
        (OWN, {"batch_norm": None}),  # not known yet
        ({}, ADJUST),
        ({}, {"stage2": "tau-norm", "first": Settings(), "priors": "logit_adjusted"}),
        ({}, {"priors": "logit_adjusted"}),
        ({"schedule": "cosine-prestep"}, {}),  # two epochs
        ({"epochs": 1}, {}),
        ({"epochs": 2**31 - 1}, {"steps_per_epoch": 1}),
        ({"epochs": 2**40}, {"steps_per_epoch": None}),  # not known yet
    ],
)
def test_what_goes_together(settings, changes):
    check(
        dataclasses.replace(
            ASKED, settings=dataclasses.replace(ASKED.settings, **settings), **changes
        )
    )


def test_what_was_asked_stays_as_it_was_asked():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ASKED.processes = 2
    assert (ASKED.streamed, ASKED.processes) == (False, 1)


@pytest.mark.parametrize("room", ["run", "step"])
def test_only_one_function_spells_flags(room):
    """`host.errors.flag`: these rooms know settings by their names."""
    for path in sorted((ROOT / "experiments" / room).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not re.search(r"(?<!-)--[a-z]", node.value), f"{path}: {node.value}"


@pytest.mark.parametrize(
    ("loss", "sampling", "known"),
    [
        ("logit_adjusted", "natural", "--loss logit_adjusted"),
        ("vs", "balanced", "--loss vs"),
        ("ldam", "balanced", "--sampling balanced"),
    ],
)
def test_priors_are_taken_off_once(loss, sampling, known):
    asked = dataclasses.replace(ASKED, **ADJUST | {"first": Settings(sampling=sampling)})
    with pytest.raises(RunError, match=f"with {known} they are off already"):
        check(dataclasses.replace(asked, priors=priors_of(loss)))
