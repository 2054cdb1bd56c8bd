"""What tests of several rooms share: one step of a net with batch normalisation."""

import jax
import jax.numpy as jnp
import pytest

from experiments.data import augment
from experiments.step.optimizer import optimizer
from experiments.step.state import create_state
from experiments.step.step import Inputs, make_step
from tiny import TinyNet, tiny_dataset


@pytest.fixture(scope="session")
def one_step():
    """(state, images, labels, run): `run(method, objective)` is a step from one state and batch."""
    dataset = tiny_dataset()
    model, tx = TinyNet(5), optimizer(lambda _: 0.1, 0.0, 0.0)
    state = jax.jit(lambda key: create_state(model, tx, jnp.zeros((1, 8, 8, 3)), key))(
        jax.random.key(0)
    )
    inputs = Inputs(*map(jnp.asarray, (dataset.train_images, dataset.train_labels)))
    index = jnp.arange(0, 78, 5)

    def prepare(images, positions, batch_size, key):
        # Depends on the position, as augmentation does.
        images = augment.normalise(images, dataset.mean, dataset.std)
        return images + 0.1 * positions[:, None, None, None]

    def run(method, objective, state=state):
        step = make_step(method, objective, prepare)
        call = jax.jit(step, static_argnums=4)
        return call(state, inputs, index, jnp.arange(len(index)), len(index), jax.random.key(1))

    images = prepare(inputs.images[index], jnp.arange(len(index)), len(index), None)
    return state, images, inputs.labels[index], run
