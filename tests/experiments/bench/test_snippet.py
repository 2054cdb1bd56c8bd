"""The program that a comparison hands on, of each kind of row; that it trains, test_lanes.py."""

import itertools

import pytest

from experiments.bench import snippet
from experiments.bench.comparison import Recipe
from experiments.bench.lanes import Net
from experiments.command.candidates import Candidate

SETTINGS = {
    "lr": 0.25, "weight_decay": 0.0125, "rho": 0.3, "eta": 7, "tail_weight": 3.0, "gamma": 2.0,
    "strength": 0.7, "gsa_scale": 0.05, "tau": 1.5, "beta": 0.875, "focal_gamma": 2.5,
}  # fmt: skip
RULES = {
    "sgd": "rules.sgd(len(weighed_counts))",
    "sam": "rules.sam(len(weighed_counts), rho=0.3)",
    "imbsam": "rules.imbsam(weighed_counts, rho=0.3, eta=7)",
    "reweighted_sam": "rules.reweighted_sam(weighed_counts, rho=0.3, eta=7, tail_weight=3.0)",
    "focal_sam": "rules.focal_sam(weighed_counts, rho=0.3, gamma=2.0, strength=0.7)",
    "gsa": "rules.gsa(weighed_counts, groups=[0, 0, 1], scale=0.05)",
}
LOSSES = {
    "cross_entropy": "return losses.cross_entropy(logits, y), None",
    "logit_adjusted": "return losses.logit_adjusted(class_counts, tau=1.5)(logits, y), None",
    "focal": "return losses.focal(2.5)(logits, y), None",
    "class_balanced": "return class_weights[w] * losses.cross_entropy(logits, y), None",
}


def made(rule, loss="cross_entropy", sampling="shuffled", perturb="all", net=None, **more):
    row = Candidate("a row", rule, loss, sampling, [{}], perturb)
    recipe = Recipe(net or Net(8, 2, 3), 60, 32, 5, 4)
    given = {"source": 'of "x" \\', "read": "'x.csv', 'k'", "groups": [0, 0, 1]}
    text = snippet.program(row, SETTINGS, recipe, **{**given, **more})
    compile(text, "snippet", "exec")
    return text


@pytest.mark.parametrize(("rule", "loss"), [*itertools.product(RULES, LOSSES)])
def test_a_rule_and_a_loss_with_their_settings(rule, loss):
    text = made(rule, loss)
    assert f"value_and_grad(losses_fn, {RULES[rule]})\n" in text and LOSSES[loss] in text
    assert ("class_balanced_weights(weighed_counts, 0.875)" in text) == (loss == "class_balanced")
    assert "WIDTHS = (8, 8)\nSTEPS, BATCH_SIZE = 60, 32\n" in text
    assert "LR, MOMENTUM, WEIGHT_DECAY = 0.25, 0.9, 0.0125\nSEED = 4 " in text
    assert "from imbsam_jax import losses, rules, value_and_grad\n" in text
    assert r'"""a row with the settings that `experiments.compare` chose on of \"x\" \\.' in text


@pytest.mark.parametrize("rule", ["sgd", "sam"])
@pytest.mark.parametrize(
    ("perturb", "move"),
    [
        ("without-last-bias", "is_last_bias(layers, False)"),
        ("last-bias", "is_last_bias(layers, True)"),
    ],
)
def test_what_is_perturbed_alone_is_said_where_something_is(rule, perturb, move):
    text = made(rule, perturb=perturb)
    perturbs = rule != "sgd"
    assert (f", ascent=Ascent(perturb=lambda layers: {move}))" in text) == perturbs
    assert (
        ("def is_last_bias(layers, yes):" in text)
        == ("import Ascent, losses" in text)
        == (perturbs)
    )


def test_how_batches_are_drawn_and_the_table_is_read():
    turns = "each place of a batch has the next class in turn"
    assert turns in made("sam", sampling="balanced") and turns not in made("sam")
    assert "WIDTHS = ()\n" in made("sam", net=Net(8, 0, 3))
    text = made("sam", cut=", cut=20.0, seed=3")
    assert "table = read('x.csv', 'k')\n    rows = training_rows(table, cut=20.0, seed=3)\n" in text
    assert "rows = training_rows(table)\n" in made("sam")
