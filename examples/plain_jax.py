"""ImbSAM in plain JAX: the gradient of a function of a tree of arrays."""

import jax
import jax.numpy as jnp
import optax

import imbsam_jax as ij
from digits import batches, counts, first_weights, report, test_images


def apply(params, images):
    hidden = jnp.tanh(images @ params["w1"] + params["b1"])
    return hidden @ params["w2"] + params["b2"]


def losses_fn(params, images, labels):
    logits = apply(params, images)
    return ij.losses.cross_entropy(logits, labels), logits  # one loss for each example


rule = ij.rules.imbsam(counts, rho=0.05, eta=30)
grad_fn = ij.value_and_grad(losses_fn, rule)
optimizer = optax.sgd(0.1, momentum=0.9)


@jax.jit
def step(params, opt_state, images, labels):
    (loss, _), grads = grad_fn(params, labels, images, labels)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss


params = dict(zip(("w1", "b1", "w2", "b2"), map(jnp.asarray, first_weights()), strict=True))
opt_state = optimizer.init(params)
for images, labels in batches():
    params, opt_state, loss = step(params, opt_state, images, labels)

report(apply(params, test_images))
weights = [params[name] for name in ("w1", "b1", "w2", "b2")]
