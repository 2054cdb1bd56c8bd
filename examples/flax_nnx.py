"""ImbSAM with Flax NNX: a function of the module, whose state is updated in place."""

import optax
from flax import nnx

import imbsam_jax as ij
from digits import CLASSES, HIDDEN, batches, counts, first_weights, report, test_images


class Net(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, HIDDEN, rngs=rngs)
        self.head = nnx.Linear(HIDDEN, CLASSES, rngs=rngs)

    def __call__(self, images):
        return self.head(nnx.tanh(self.hidden(images)))


def losses_fn(model, images, labels):
    logits = model(images)
    return ij.losses.cross_entropy(logits, labels), logits


rule = ij.rules.imbsam(counts, rho=0.05, eta=30)
grad_fn = ij.nnx.value_and_grad(losses_fn, rule)


@nnx.jit
def step(model, optimizer, images, labels):
    (loss, _), grads = grad_fn(model, labels, images, labels)
    optimizer.update(model, grads)
    return loss


model = Net(nnx.Rngs(0))
variables = model.hidden.kernel, model.hidden.bias, model.head.kernel, model.head.bias
for variable, start in zip(variables, first_weights(), strict=True):
    variable[...] = start  # only so that every example starts alike
optimizer = nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)
for images, labels in batches():
    loss = step(model, optimizer, images, labels)

report(model(test_images))
weights = [variable[...] for variable in variables]
