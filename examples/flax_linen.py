"""ImbSAM with Flax linen: the chain's first link takes the gradient function, through a TrainState.

`imbsam_jax.value_and_grad` on `losses_fn` is the other way, where loss or aux are wanted.
"""

import jax
import optax
from flax import linen as nn
from flax.training.train_state import TrainState

import imbsam_jax as ij
from digits import CLASSES, HIDDEN, batches, counts, first_weights, report, test_images


class Net(nn.Module):
    @nn.compact
    def __call__(self, images):
        hidden = nn.tanh(nn.Dense(HIDDEN, name="hidden")(images))
        return nn.Dense(CLASSES, name="head")(hidden)


model = Net()


def losses_fn(params, images, labels):
    logits = model.apply({"params": params}, images)
    return ij.losses.cross_entropy(logits, labels), None


rule = ij.rules.imbsam(counts, rho=0.05, eta=30)
tx = optax.chain(ij.sharpness_aware(rule), optax.sgd(0.1, momentum=0.9))


@jax.jit
def step(state, images, labels):
    return state.apply_gradients(grads=ij.class_weighted_grad(losses_fn, labels, images, labels))


w1, b1, w2, b2 = first_weights()
params = {"hidden": {"kernel": w1, "bias": b1}, "head": {"kernel": w2, "bias": b2}}
state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
for images, labels in batches():
    state = step(state, images, labels)

report(model.apply({"params": state.params}, test_images))
weights = [state.params[layer][part] for layer in ("hidden", "head") for part in ("kernel", "bias")]
