"""Which published figures a run may stand beside."""

from collections import Counter

import pytest

from experiments.reports import grouping, matching, naming, tables, writing
from experiments.reports.published import PROTOCOLS
from made_reports import AS_PAPER, IMBSAM, RATIO, facts, make


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


def test_what_is_said_of_no_images_is_as_of_the_whole_ones():
    whole = facts(rule="imbsam", rule_args=IMBSAM)
    bare = {name: value for name, value in whole.items() if name not in ("shrink", "subset")}
    assert matching.beside(bare) == matching.beside(whole) != []


def test_what_a_result_overrides_is_no_guess():
    run = facts(weight_decay=0.1, epochs=320)
    found = matching.differences(run, "weight-balancing", {"weight_decay": 0})
    assert found == ["weight_decay 0.1, not 0"]


@pytest.mark.parametrize(
    ("dataset", "factor", "run", "beside"),
    [
        ("cifar100", 200, 250.0, True), ("cifar100", 200, 200.0, True),
        ("cifar100", 200, 225.0, False), ("cifar100", None, 7.0, True),
        ("imagenet", 200, 200.4, True), ("imagenet", 200, 250.0, False),
    ],
)  # fmt: skip
def test_a_factor_is_that_of_whole_images_where_their_number_is_known(
    dataset, factor, run, beside, monkeypatch
):
    """Of CIFAR's classes; a natural set is one whatever its factor."""
    one = matching.beside(facts())[0]._replace(dataset=dataset, imbalance_factor=factor)
    monkeypatch.setattr(matching, "RESULTS", [one])
    assert bool(matching.beside(facts(dataset=dataset, imbalance_factor=run))) == beside


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
        (
            {"dataset": "imagenet_lt", "imbalance_factor": 120.0},
            "imagenet_lt IF 120 (not the papers' data)",
        ),
        (
            {"dataset": "i_naturalist2018", "imbalance_factor": 999.0},
            "i_naturalist2018 IF 999 (not the papers' data)",
        ),
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


@pytest.mark.parametrize(
    ("dataset", "sizes"),
    [("imagenet_lt", (1280, 5)), ("places_lt", (4980, 5)), ("i_naturalist2018", (1000, 2))],
)
def test_a_natural_set_is_the_published_one_also_with_images_held_out(dataset, sizes):
    for held in (0, 1, 3, 20):
        largest, smallest = (max(n - held, 1) for n in sizes)
        for factor, other in ((largest / smallest, False), (largest / smallest + 1, True)):
            of = {"dataset": dataset, "imbalance_factor": factor, "val_per_class": held}
            assert matching.is_other_set(facts(**of)) == other
            assert bool(matching.beside(facts(**of))) != other
    assert not matching.is_other_set(facts(dataset="cifar100", imbalance_factor=7.0))


def test_reweighted_sam_stands_beside_its_weight():
    arguments = {"rho": 0.05, "eta": 100.0, "tail_weight": 5.0}
    found = matching.beside(facts(rule="reweighted_sam", rule_args=arguments))
    assert [row.all for row in found] == [49.0]


LIFT = {
    "experiment": "finetune", "model": "clip_vit_b16", "epochs": 10, "batch_size": 128, "lr": 0.01,
    "schedule": "cosine", "weight_decay": 5e-4, "loss": "logit_adjusted", "subset": "shuffled",
    "init": "clip.safetensors (SHA-256 0123abcd); the classifier from 'a photo of a {}.'",
    "image_size": 224, "resize": 256, "classifier_start": "text", "features": False,
    "settings": {
        "adapter": "adaptformer", "adapter_size": 0, "trained": "adapter", "classifier": "cosine",
        "ensemble": True,
    },
}  # fmt: skip


def test_fine_tuned_clip_stands_beside_its_adapter():
    """Marked by how the figures were taken; networks trained from scratch stand apart from it."""
    found = matching.beside(facts(**LIFT))
    assert [(row.all, row.chosen) for row in found] == [
        (81.3, "last epoch"),
        (81.7, "last epoch, five crops averaged"),
        (89.1, "last epoch; whether crops were averaged was not read"),
    ]
    assert matching.differences(facts(**LIFT), "lift") == []
    changed = {**LIFT, "settings": {**LIFT["settings"], "adapter": "lora"}}
    assert matching.beside(facts(**changed)) == []
    changed = {**LIFT, "experiment": "cifar_lt", "settings": {}}
    assert 81.3 not in [row.all for row in matching.beside(facts(**changed))]


IMAGENET = {"dataset": "imagenet_lt", "imbalance_factor": 256.0}


@pytest.mark.parametrize(
    ("change", "both", "plain", "crops"),
    [
        ({}, [], [], []),
        ({"settings": {"adapter_size": 4}}, [], [], []),
        ({"settings": {"adapter_size": 32}}, ["adapter_size 32, not 0 or 4"], [], []),
        (IMAGENET | {"settings": {"adapter_size": 32}}, [], [], []),
        ({"init": "random weights, no pretrained ones"}, ["pretrained False, not True"], [], []),
        ({"init": None}, ["pretrained False, not True"], [], []),
        ({"settings": {"adapter": "lora"}}, ["adapter lora, not adaptformer"], [], []),
        ({"image_size": 112}, ["image_size 112, not 224"], [], []),
        ({"classifier_start": "mean"}, ["classifier_start mean, not text"], [], []),
        ({"features": True}, ["features True, not False"], [], []),
        ({"resize": 224}, [], ["resize 224, not 256"], []),  # crops are cut from others
        ({"settings": {"ensemble": False}}, [], [], ["ensemble False, not True"]),
    ],
    ids=str,
)
def test_in_what_a_run_differs_from_lift(change, both, plain, crops):
    found = facts(**{**LIFT, **change, "settings": LIFT["settings"] | change.get("settings", {})})
    assert matching.differences(found, "lift") == both + plain
    assert matching.differences(found, "lift-ensembled") == both + crops


@pytest.mark.parametrize("protocol", sorted({*PROTOCOLS} - {"lift", "lift-ensembled", "lift-vit"}))
def test_figures_from_scratch_are_not_of_weights_that_were_trained_before(protocol):
    datasets = [name for each in PROTOCOLS[protocol].settings for name in each.datasets]
    for dataset in datasets:
        for init, differs in ((None, False), ("clip.safetensors", True)):
            found = matching.differences(facts(dataset=dataset, init=init), protocol)
            assert ("pretrained True, not False" in found) == differs, (dataset, init)


def test_in_what_a_vit_differs_from_lifts():
    vit = {**LIFT, "model": "vit_b16", "classifier_start": "mean"}
    assert matching.differences(facts(**vit), "lift-vit") == []
    vit |= {"classifier_start": "random", "settings": LIFT["settings"] | {"adapter_size": 2}}
    assert matching.differences(facts(**vit), "lift-vit") == [
        "classifier_start random, not mean", "adapter_size 2, not 0 or 4",
    ]  # fmt: skip


def test_crops_have_a_line_of_their_own():
    reports = [
        make(**LIFT, last_epoch_ensembled={"many": 9.0, "medium": 8.0, "few": 7.0, "all": 8})
    ]
    assert "| last epoch, five crops | 1 | 9.0 | 8.0 | 7.0 | 8.0 |" in writing.markdown(
        grouping.grouped(reports), False
    )
    assert "five crops |" not in writing.markdown(grouping.grouped([make(**LIFT)]), False)


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
    for seeds, said in (((0, 1, 2), "seeds 0-2"), ((0, 2), "seeds 0, 2"), ((5,), "seed 5")):
        group = grouping.grouped([make(seed, weight_decay=1e-3) for seed in seeds])[0]
        (row,) = (r for r in matching.beside(group.facts) if r.source == "SSE")
        assert naming.differs(group, row) == [f"{said}, not 9826"]
