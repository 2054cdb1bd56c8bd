"""ImbSAM as the first link of an Optax chain: the gradient function in the place of gradients."""

import jax
import jax.numpy as jnp
import optax

import imbsam_jax as ij
from digits import batches, counts, first_weights, report, test_images


def apply(params, images):
    hidden = jnp.tanh(images @ params["w1"] + params["b1"])
    return hidden @ params["w2"] + params["b2"]


def losses_fn(params, images, labels):
    return ij.losses.cross_entropy(apply(params, images), labels), None


rule = ij.rules.imbsam(counts, rho=0.05, eta=30)
optimizer = optax.chain(ij.sharpness_aware(rule), optax.sgd(0.1, momentum=0.9))


@jax.jit
def step(params, opt_state, images, labels):
    fn = ij.class_weighted_grad(losses_fn, labels, images, labels)
    updates, opt_state = optimizer.update(fn, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


params = dict(zip(("w1", "b1", "w2", "b2"), map(jnp.asarray, first_weights()), strict=True))
opt_state = optimizer.init(params)
for images, labels in batches():
    params, opt_state = step(params, opt_state, images, labels)

report(apply(params, test_images))
weights = [params[name] for name in ("w1", "b1", "w2", "b2")]
