"""What groups of runs are called in tables, word by word."""

import pytest

from experiments.reports import grouping, matching, naming, published
from made_reports import IMBSAM, make

SETTING = "resnet34_3x3, 200 epochs, batch 64, lr 0.01 cosine-prestep, weight decay 0.005"
SPLIT = {"examples": "split_norm", "precision": "bf16"}
SECOND = {"epochs": 10, "lr": 0.1, "tau": 1.5, "sampling": "balanced"}
RBG = {"jax": {"jax_default_prng_impl": "rbg"}}


def group(*seeds, **changes):
    return grouping.grouped([make(seed, **changes) for seed in seeds or (1,)])[0]


@pytest.mark.parametrize(
    ("changes", "method", "setting"),
    [
        ({}, "sgd", SETTING),
        ({"rule": "imbsam", "rule_args": IMBSAM, "loss": "ldam", "loss_args": {"s": 30.0},
          "settings": SPLIT, "memory": 0.5},
         "imbsam rho 0.05 eta 100 tail_scale 1 ldam s 30 memory 0.5 examples split_norm",
         f"{SETTING}, precision bf16"),
        ({"rule": "sam", "rule_args": {"rho": 0.05}, "ascent": {"adaptive": "asam"},
          "stage2": "crt", "stage2_args": SECOND},
         "sam rho 0.05 adaptive asam then crt tau 1.5 (first stage not found)",
         f"{SETTING}; then epochs 10, lr 0.1, sampling balanced"),
        (RBG, "sgd", f"{SETTING}, jax_default_prng_impl rbg"),
    ],
)  # fmt: skip
def test_methods_and_settings(changes, method, setting):
    found = group(**changes)
    assert (naming.method(found), naming.setting(found)) == (method, setting)


@pytest.mark.parametrize(
    ("of_first", "of_second", "said"),
    [({}, RBG, "; then epochs 10, lr 0.1, sampling balanced, jax_default_prng_impl rbg"),
     (RBG, {}, ", jax_default_prng_impl rbg; then epochs 10, lr 0.1, sampling balanced, JAX's "
      "defaults"),
     (RBG, RBG, ", jax_default_prng_impl rbg; then epochs 10, lr 0.1, sampling balanced")],
)  # fmt: skip
def test_a_second_stage_under_other_jax_settings_says_so(of_first, of_second, said):
    runs = [make(**of_first), make(stage2="crt", stage2_args=SECOND, **of_second)]
    assert naming.setting(grouping.grouped(runs)[1]) == SETTING + said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "cifar100 IF 100"),
        ({"dataset": "cifar10", "imbalance_factor": 12.345}, "cifar10 IF 12.3"),
        ({"shrink": 2}, "cifar100 IF 100, every 2x2 pixels averaged (not the papers' data)"),
        ({"subset": None}, "cifar100 IF 100 of a file (not known to be the papers' data)"),
    ],
)
def test_data(changes, said):
    assert naming.data(group(**changes)) == said


def test_protocols_and_seeds():
    assert naming.protocol(group()) == "imbsam-paper" and naming.protocol(group(lr=0.3)) == "own"
    listed = {
        (0, 1, 2): "0-2",
        (4, 5, 6, 7): "4-7",
        (0, 2): "0, 2",
        (0, 1): "0, 1",
        (0, 1, 3): "0, 1, 3",
    }
    for seeds, said in {**listed, (5,): "5"}.items():
        assert naming.seed_list(group(*seeds)) == said


def test_sources_and_what_differs():
    both = {"rule": "imbsam", "rule_args": IMBSAM}
    paper, release = matching.beside(group(**both).facts)[:2]
    assert naming.source(paper) == "Zhou et al., ImbSAM, ICCV 2023, Table 3"
    second = paper._replace(source="CCS-2nd", table="-")  # nobody here has read it there
    assert naming.source(second) == published.SOURCES["CCS-2nd"] + " (unverified)"
    assert naming.source(paper._replace(table="-")) == published.SOURCES[paper.source]
    seed = published.PROTOCOLS[release.protocol].seed
    assert naming.differs(group(1, 2, **both), release)[-1] == f"seeds 1, 2, not {seed}"
    assert naming.differs(group(1, **both), release)[-1] == f"seed 1, not {seed}"
    assert not any("seed" in one for one in naming.differs(group(seed, **both), release))
    assert naming.differs(group(1, **both), paper) == []  # its seed is not published


def test_images_are_told_by_the_first_digits_of_their_digests():
    rows = {"train": "1edc78436cb37b4c", "test": "44ef40f29252a671"}
    (group,) = grouping.grouped([make(rows_sha256=rows)])
    assert naming.setting(group).endswith(", images 1edc78/44ef40")
    (group,) = grouping.grouped([make()])
    assert "images" not in naming.setting(group)
