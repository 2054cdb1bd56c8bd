"""ImbSAM with Equinox: what is trained is partitioned from the rest of the module."""

import equinox as eqx
import jax
import optax

import imbsam_jax as ij
from digits import CLASSES, HIDDEN, batches, counts, first_weights, report, test_images

model = eqx.nn.MLP(64, CLASSES, HIDDEN, 1, activation=jax.nn.tanh, key=jax.random.key(0))
w1, b1, w2, b2 = first_weights()
model = eqx.tree_at(  # only so that every example starts alike
    lambda m: [part for layer in m.layers for part in (layer.weight, layer.bias)],
    model,
    [w1.T, b1, w2.T, b2],
)
params, static = eqx.partition(model, eqx.is_inexact_array)


def losses_fn(params, images, labels):
    logits = jax.vmap(eqx.combine(params, static))(images)
    return ij.losses.cross_entropy(logits, labels), logits


rule = ij.rules.imbsam(counts, rho=0.05, eta=30)
grad_fn = ij.value_and_grad(losses_fn, rule)
optimizer = optax.sgd(0.1, momentum=0.9)


@jax.jit
def step(params, opt_state, images, labels):
    (loss, _), grads = grad_fn(params, labels, images, labels)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss


opt_state = optimizer.init(params)
for images, labels in batches():
    params, opt_state, loss = step(params, opt_state, images, labels)

report(jax.vmap(eqx.combine(params, static))(test_images))
weights = [part for layer in params.layers for part in (layer.weight.T, layer.bias)]
