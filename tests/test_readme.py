"""The README's two code blocks run as they stand and take the same step."""

import importlib
import re
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

import imbsam_jax as ij
from experiments import (
    anomaly,
    cifar_lt,
    digits_lt,
    imagenet_lt,
    inaturalist,
    launch,
    presets,
    sweep,
)
from tiny import tiny_dataset

SHOWING = (cifar_lt, digits_lt, sweep, anomaly, imagenet_lt, inaturalist)
README = Path(__file__).resolve().parent.parent / "README.md"


class Model:
    """Stands for the reader's: logits = images @ params."""

    def apply(self, params, images):
        return images @ params


def test_both_blocks_run_and_agree():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 2
    rng = np.random.default_rng(0)
    images, labels = jnp.asarray(rng.normal(size=(8, 4)), jnp.float32), jnp.arange(8) % 3
    params = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    optimizer = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, 0.9))
    names = {
        "model": Model(),
        "train_labels": np.repeat(np.arange(3), [500, 100, 20]),
        "num_classes": 3,
        "optimizer": optimizer,
        "images": images,
        "labels": labels,
        "params": params,
    }
    exec(blocks[0], names)
    after, _, loss = names["step"](params, optimizer.init(params), images, labels)
    expected = ij.losses.cross_entropy(images @ params, labels).mean()
    chex.assert_trees_all_close(loss, expected, rtol=1e-6)

    # The second block is the inside of a step: its chain's state comes between its lines.
    make, use = blocks[1].split("\n\n")
    exec(make, names)
    names["opt_state"] = names["tx"].init(params)
    exec(use, names)
    chex.assert_trees_all_close(optax.apply_updates(params, names["updates"]), after, atol=1e-6)
    assert jax.tree.leaves(names["updates"])[0].shape == (4, 3)


def commands(text):
    """Every `python -m experiments.X ...` in it, continued lines joined, comments dropped."""
    joined = text.replace("\\\n", " ")
    for line in re.findall(r"^ *python -m experiments\.(.*)$", joined, re.MULTILINE):
        name, *flags = line.split("#")[0].split()
        yield name, flags


def test_every_shown_command_is_accepted():
    """Parsed, and for images made up to where training begins, on CIFAR100-LT's class counts."""
    dataset = tiny_dataset(counts=tuple(ij.long_tail_counts(100, 500, 100)))
    texts = [README.read_text(), *(m.__doc__ for m in SHOWING)]
    seen = set()
    for name, flags in (found for text in texts for found in commands(text)):
        module = importlib.import_module(f"experiments.{name}")
        seen.add(name)
        if name in presets.TABLES:
            args = presets.parse(module.arguments(), flags)
            plan = launch.make_plan(args, dataset, module.describe(args, dataset))
            assert list(plan.second) == args.stage2
        elif name == "sweep":
            sweep.grid_of(sweep.parse(flags))
        else:
            module.arguments().parse_args(flags)
    assert seen == {*presets.TABLES, "digits_lt", "sweep", "anomaly", "report", "evaluate"}
