"""ImbSAM with Keras 3 on its JAX backend: a model and an optimizer as functions of their variables.

`model.fit` averages losses before it differentiates them; this loop takes its place.
"""

import os

os.environ["KERAS_BACKEND"] = "jax"
import jax
import keras

import imbsam_jax as ij
from digits import CLASSES, HIDDEN, batches, counts, first_weights, report, test_images

model = keras.Sequential(
    [keras.Input((64,)), keras.layers.Dense(HIDDEN, activation="tanh"), keras.layers.Dense(CLASSES)]
)
model.set_weights(first_weights())
optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
optimizer.build(model.trainable_variables)


def losses_fn(trained, others, images, labels):
    logits, others = model.stateless_call(trained, others, images, training=True)
    return ij.losses.cross_entropy(logits, labels), others  # statistics of the pass at theta


rule = ij.rules.imbsam(counts, rho=0.05, eta=30)
grad_fn = ij.value_and_grad(losses_fn, rule)


@jax.jit
def step(trained, others, of_optimizer, images, labels):
    (loss, others), grads = grad_fn(trained, labels, others, images, labels)
    trained, of_optimizer = optimizer.stateless_apply(of_optimizer, grads, trained)
    return trained, others, of_optimizer, loss


def values(variables):
    return [variable.value for variable in variables]


trained, others = values(model.trainable_variables), values(model.non_trainable_variables)
of_optimizer = values(optimizer.variables)
for images, labels in batches():
    trained, others, of_optimizer, loss = step(trained, others, of_optimizer, images, labels)

for variable, value in zip(model.trainable_variables, trained, strict=True):
    variable.assign(value)
report(model(test_images))
weights = model.get_weights()
