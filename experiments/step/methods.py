"""How a gradient is taken: every method of the family behind one call.

A method works on a model in two halves, `Halves`, so that class-conditional SAM, which treats the
classifier apart, is called like the rules. `fit` and `make_step` take a method, or a rule of
imbsam_jax alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp

from imbsam_jax import (
    Ascent,
    cc_sam,
    passes,
    rules,
    value_and_grad,
)
from imbsam_jax.rules import Rule

# Of the running statistics of batch normalisation.
RUNNING_STATISTICS = ("first", "every")


class Halves(NamedTuple):
    """A model and its loss on one batch of b rows.

    Attributes:
      features: (params, stats, images) -> (features float[b, D], stats after this pass).
      losses_for: target of the whole batch -> (params, features, target) -> (losses float[b],
        logits float[b, C]), of some of its rows.
      images: [b, H, W, channels], as the model sees them.
      labels: int[b]; of rows that mixup mixed of two, the first.
      target: what is learnt, the labels or float[b, C] of mixed ones.
      mask: bool[b], False for rows that do not count, or None.
      stats: running statistics of batch normalisation before this batch.
      passes: how the passes over the batch are run; args that they choose rows of, or hand on, are
        (images, target, stats, logits).
    """

    features: Callable[..., Any]
    losses_for: Callable[[Any], Callable[..., Any]]
    images: jax.Array
    labels: jax.Array
    target: jax.Array
    mask: jax.Array | None
    stats: Any
    passes: passes.Passes


class Gradient(NamedTuple):
    """What a method makes of a batch; loss and grads are means over the device axis.

    Attributes:
      loss: mean loss at theta.
      logits: float[b, C] at theta.
      stats: what `Halves.features` made of the running statistics.
      grads: like the parameters.
      extra: the method's own state after the step.
    """

    loss: jax.Array
    logits: jax.Array
    stats: Any
    grads: Any
    extra: Any


class Method(Protocol):
    """How a gradient is taken."""

    # Whether it must be given every batch whole: no row left out, no micro-batches.
    whole_batches: bool
    # Of the running statistics: whether each pass hands them on to the next.
    hands_on: bool

    def stages(self) -> list[tuple[int, Method]]:
        """(first step, method) of each stage; one for a method without stages."""

    def initial_extra(self, params: Any) -> Any:
        """State of its own before the first step, which its stages share; {} for none."""

    def gradient(self, halves: Halves, params: Any, extra: Any, step: Any, axis: Any) -> Gradient:
        """The gradient of a batch at `params`, in step `step`, over the device axis or None."""


class Tabled:
    """A rule of imbsam_jax.rules.

    Args:
      rule: a row of the table.
      ascent: how the perturbation is taken.
      running_statistics: "first", they are those of the pass at theta, or "every", each pass
        updates them in turn, as the released PyTorch code does.
    """

    whole_batches = False

    def __init__(self, rule: Rule, ascent: Ascent = Ascent(), running_statistics: str = "first"):
        self.rule, self.ascent, self.running_statistics = rule, ascent, running_statistics
        self.hands_on = running_statistics == "every"

    def stages(self) -> list[tuple[int, Method]]:
        return [
            (start, Tabled(rule, self.ascent, self.running_statistics))
            for start, rule in rule_stages(self.rule)
        ]

    def numbers(self) -> Any:
        """What two methods of this structure differ in, where the rule is none of the step."""
        return self.rule(0)

    def given(self, numbers: Any) -> Tabled:
        """This method with other numbers, which may be traced."""
        # A table alone has nothing of the ascent that its rule brought.
        return Tabled(lambda step: numbers, self.ascent.of(self.rule), self.running_statistics)

    def initial_extra(self, params: Any) -> Any:
        return {}

    def gradient(self, halves: Halves, params: Any, extra: Any, step: Any, axis: Any) -> Gradient:
        images, target, losses_of = halves.images, halves.target, halves.losses_for(halves.target)
        how: Any = halves.passes
        parts = how.micro_batches if isinstance(how, passes.whole) else 1
        if self.hands_on:
            how = dataclasses.replace(
                how, carry=lambda args, aux: (*args[:2], *_joined(aux, parts))
            )

        def losses_fn(params: Any, images: Any, target: Any, stats: Any, logits: Any) -> Any:
            features, after = halves.features(params, stats, images)
            losses, here = losses_of(params, features, target)
            # Where passes hand their statistics on, the logits stay those of the first.
            return losses, (after, here if logits is None else logits)

        f = value_and_grad(losses_fn, self.rule, passes=how, ascent=self.ascent, axis_name=axis)
        (loss, aux), grads = f(
            params, target, images, target, halves.stats, None, step=step, mask=halves.mask
        )
        after, logits = _joined(aux, parts)
        return Gradient(loss, logits, after, grads, extra)


def _joined(aux: Any, parts: int) -> Any:
    """(stats, logits) of a batch from those of its micro-batches, stacked.

    Each micro-batch normalises itself and would move the running statistics from where they were:
    their mean is one move by the mean of what the micro-batches saw.
    """
    if parts == 1:
        return aux
    stats, logits = aux
    # Row i of the batch is row i // parts of micro-batch i % parts.
    rows = jnp.moveaxis(logits, 0, 1).reshape(-1, *logits.shape[2:])
    return jax.tree.map(lambda x: x.mean(axis=0), stats), rows


class ClassConditional:
    """CC-SAM; the arguments, and attributes, are those of `cc_sam.value_and_grad`."""

    whole_batches = True
    hands_on = False

    def __init__(self, class_counts: Any, *, variant: Any = "paper", **options: Any):
        self.class_counts, self.variant, self.options = class_counts, variant, options
        # Refuses bad options now, not in the first step.
        cc_sam.value_and_grad(_unused, _unused, class_counts, variant=variant, **options)

    def stages(self) -> list[tuple[int, Method]]:
        return [(0, self)]

    def initial_extra(self, params: Any) -> Any:
        return {}

    def gradient(self, halves: Halves, params: Any, extra: Any, step: Any, axis: Any) -> Gradient:
        def losses_for(target: Any) -> Callable[..., Any]:
            losses_of = halves.losses_for(target)
            return lambda params, features, stats: losses_of(params, features, target)

        # The release perturbs for the first labels of mixed rows.
        release = self.variant == "release"
        f = cc_sam.value_and_grad(
            lambda params, stats: halves.features(params, stats, halves.images),
            losses_for(halves.target),
            self.class_counts,
            variant=self.variant,
            perturbed_losses_fn=losses_for(halves.labels) if release else None,
            axis_name=axis,
            **self.options,
        )
        labels = halves.labels if release else halves.target
        (loss, (after, logits)), grads = f(
            params, labels, halves.stats, step=step, mask=halves.mask
        )
        return Gradient(loss, logits, after, grads, extra)


def _unused(*_: Any) -> Any:
    raise AssertionError("only built, never called")


def as_method(method: Method | Rule) -> Method:
    """A rule alone is a method with the paper's options."""
    return cast(Method, method) if hasattr(method, "gradient") else Tabled(method)


def rule_stages(rule: Rule) -> list[tuple[int, Rule]]:
    """(first step, rule) of each stage; one for a rule without stages."""
    if not isinstance(rule, rules.stagewise):
        return [(0, rule)]
    (first, second), (_, switch) = rule.stages, rule.starts
    switch = int(switch)
    before = [(start, stage) for start, stage in rule_stages(first) if start < switch]
    after = [(max(start, switch), stage) for start, stage in rule_stages(second)]
    # Of stages that would start at once, the last holds.
    return before + [
        after[i] for i in range(len(after)) if i + 1 == len(after) or after[i][0] != after[i + 1][0]
    ]
