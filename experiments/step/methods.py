"""How a gradient is taken, by name: every method of the family behind one call.

A method works on a model in two halves, `Halves`, so that class-conditional SAM, which treats the
classifier apart, is called like the rules. `fit` and `make_step` take a method, or a rule of
imbsam_jax alone. Which flags a method takes is read off its signature, so none is listed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp

from experiments.host.errors import RunError
from imbsam_jax import (
    Ascent,
    cc_sam,
    passes,
    rules,
    value_and_grad,
)
from imbsam_jax.experimental import remembered
from imbsam_jax.rules import Rule

# Of the running statistics of batch normalisation.
STATISTICS = ("first", "every")
# Of batch normalisation in passes over a group's own rows.
TAIL_STATISTICS = ("renorm", "own", "held")


def _unused(*_: Any) -> Any:
    raise AssertionError("only built, never called")


class Halves(NamedTuple):
    """A model and its loss on one batch of b rows.

    Attributes:
      features: (params, stats, images) -> (features float[b, D], new stats).
      losses: (params, features, target) -> (losses float[b], logits float[b, C]).
      unmixed: the same for targets that are the first labels, where mixup mixes two.
      images: [b, H, W, channels], as the model sees them.
      labels: int[b], the first labels.
      soft: float[b, C] where mixup is on, else None.
      mask: bool[b], False for rows that do not count, or None.
      micro_batches: into how many parts the batch is to be cut.
      room: None where each pass sees the whole batch, or b -> `buffers` of value_and_grad, where
        a pass is to leave out rows that have no weight in it.
      tail_statistics: by what batch normalisation normalises such a pass, one of TAIL_STATISTICS;
        None for models without, or with frozen ones.
      apart: (params, images) -> (features, the batch's own statistics).
      held: (params, statistics, images) -> features normalised by given statistics.
      renormed: the same features; their gradient passes through the rows' own statistics.
      moved_on: (stats, a batch's own statistics) -> new stats.
    """

    features: Callable[..., Any]
    losses: Callable[..., Any]
    unmixed: Callable[..., Any]
    images: jax.Array
    labels: jax.Array
    soft: jax.Array | None = None
    mask: jax.Array | None = None
    micro_batches: int = 1
    room: Callable[[int], Any] | None = None
    tail_statistics: str | None = None
    apart: Callable[..., Any] = _unused
    held: Callable[..., Any] = _unused
    renormed: Callable[..., Any] = _unused
    moved_on: Callable[..., Any] = _unused

    @property
    def target(self) -> jax.Array:
        return self.labels if self.soft is None else self.soft


class Method(Protocol):
    """How a gradient is taken."""

    def stages(self) -> list[tuple[int, Method]]:
        """(first step, method) of each stage; one for a method without stages."""

    def gradient(self, halves: Halves, params: Any, stats: Any, step: Any, axis: Any) -> Any:
        """((mean loss, (new stats, logits)), grads like params), means over the device axis."""


class Tabled:
    """A rule of imbsam_jax.rules.

    Args:
      rule: a row of the table.
      ascent: how the perturbation is taken.
      statistics: "first", running statistics are those of the pass at theta, or "every", each
        pass updates them in turn, as the released PyTorch code does.
    """

    def __init__(self, rule: Rule, ascent: Ascent = Ascent(), statistics: str = "first"):
        self.rule, self.ascent, self.statistics = rule, ascent, statistics

    def stages(self) -> list[tuple[int, Method]]:
        return [
            (start, Tabled(rule, self.ascent, self.statistics))
            for start, rule in rule_stages(self.rule)
        ]

    def numbers(self) -> Any:
        """What two methods of this structure differ in, where the rule is none of the step."""
        return self.rule(0)

    def given(self, numbers: Any) -> Tabled:
        """This method with other numbers, which may be traced."""
        return Tabled(lambda step: numbers, self.ascent, self.statistics)

    def gradient(self, halves: Halves, params: Any, stats: Any, step: Any, axis: Any) -> Any:
        parts, alone = halves.micro_batches, halves.room is not None
        if alone and self.statistics == "every":
            raise RunError(NOT_EVERY)
        if alone and halves.tail_statistics is not None:
            return self._split(halves, params, stats, step, axis)

        def losses_fn(params: Any, images: Any, target: Any, stats: Any, clean: Any) -> Any:
            features, new = halves.features(params, stats, images)
            losses, logits = halves.losses(params, features, target)
            if alone and new is not stats and jax.tree.leaves(new):
                raise RunError(NO_STATISTICS)
            # Where passes hand their statistics on, the logits stay those of the first.
            return losses, (None if alone else new, logits if clean is None else clean)

        def hand_on(args: Any, aux: Any) -> Any:
            return (*args[:2], *_of_the_whole(aux, parts))

        carry = hand_on if self.statistics == "every" else None
        batched = (True, True, False, True)
        how: passes.Passes = passes.whole(parts, batched if parts > 1 else None, carry)
        if halves.room is not None:
            how = passes.own_rows(halves.room(len(halves.labels)), batched)
        f = value_and_grad(
            losses_fn,
            self.rule,
            axis_name=axis,
            ascent=self.ascent,
            passes=how,
        )
        images, target = halves.images, halves.target
        (loss, aux), grads = f(
            params, target, images, target, stats, None, step=step, mask=halves.mask
        )
        stats, logits = (stats, aux[1]) if alone else _of_the_whole(aux, parts)
        return (loss, (stats, logits)), grads

    def _split(self, halves: Halves, params: Any, stats: Any, step: Any, axis: Any) -> Any:
        """Groups by passes over their own rows, with batch normalisation."""

        kind = halves.tail_statistics
        by_given = halves.held if kind == "held" else halves.renormed

        def losses_fn(params: Any, images: Any, target: Any, held: Any) -> Any:
            if held is None:
                features, seen = halves.apart(params, images)
            else:
                features, seen = by_given(params, held, images), held
            losses, logits = halves.losses(params, features, target)
            return losses, (seen, logits)

        def hold(args: Any, aux: Any) -> Any:
            return (*args[:2], aux[0])

        assert halves.room is not None
        f = value_and_grad(
            losses_fn,
            self.rule,
            axis_name=axis,
            ascent=self.ascent,
            passes=passes.split_norm(
                halves.room(len(halves.labels)),
                batched=(True, True, False),
                carry=None if kind == "own" else hold,
            ),
        )
        images, target = halves.images, halves.target
        (loss, (seen, logits)), grads = f(
            params, target, images, target, None, step=step, mask=halves.mask
        )
        return (loss, (halves.moved_on(stats, seen), logits)), grads


NO_STATISTICS = (
    "--examples independent leaves rows out of a pass, but this model normalises by the statistics "
    "of the whole batch, and updates the running ones: use a model without batch statistics "
    "(mlp, resnet32_gn, vit_ti4), --examples dependent, or split_norm, which is another gradient"
)
NOT_EVERY = (
    "--running-statistics every hands those of a whole batch from pass to pass, of which "
    "--examples independent and split_norm leave rows out: use --running-statistics first"
)


def _of_the_whole(aux: Any, parts: int) -> Any:
    """(new stats, logits) of a batch from those of its micro-batches, stacked.

    Each micro-batch normalises itself and would move the running statistics from where they were:
    their mean is one move by the mean of what the micro-batches saw.
    """
    if parts == 1:
        return aux
    stats, logits = aux
    # Row i of the batch is row i // parts of micro-batch i % parts.
    rows = jnp.moveaxis(logits, 0, 1).reshape(-1, *logits.shape[2:])
    return jax.tree.map(lambda x: x.mean(axis=0), stats), rows


class Remembered:
    """A rule whose ascent directions are remembered; see imbsam_jax.remembered.

    Args:
      rule: a row of the table, without stages.
      decay: how much of the memory a step keeps.
      ascent: how the perturbation is taken.

    The memory travels with the running statistics: `with_memory` puts it there.
    """

    KEY = "remembered"

    def __init__(self, rule: Rule, decay: Any, ascent: Ascent = Ascent()):
        self.rule, self.decay, self.ascent = rule, decay, ascent
        # Refuses bad options now, not in the first step.
        remembered.value_and_grad(_unused, rule, decay=decay, ascent=ascent)

    def stages(self) -> list[tuple[int, Method]]:
        return [(0, self)]

    def numbers(self) -> Any:
        """As `Tabled.numbers`, and the decay."""
        return self.rule(0), self.decay

    def given(self, numbers: Any) -> Remembered:
        """As `Tabled.given`."""
        table, decay = numbers
        return Remembered(lambda step: table, decay, self.ascent)

    def with_memory(self, params: Any, stats: Any) -> Any:
        """The running statistics to begin with, and a memory of nothing."""
        return {**stats, self.KEY: remembered.init(params, self.rule)}

    @classmethod
    def without_memory(cls, stats: Any) -> Any:
        """The running statistics alone."""
        return {key: value for key, value in stats.items() if key != cls.KEY}

    def gradient(self, halves: Halves, params: Any, stats: Any, step: Any, axis: Any) -> Any:
        if halves.micro_batches > 1:
            raise RunError("a remembered direction takes a batch whole: use --accumulate 1")
        if halves.tail_statistics is not None:
            raise RunError("a remembered direction does not go with --examples split_norm")
        alone = halves.room is not None

        def losses_fn(params: Any, images: Any, target: Any, stats: Any) -> Any:
            features, new = halves.features(params, stats, images)
            losses, logits = halves.losses(params, features, target)
            if alone and new is not stats and jax.tree.leaves(new):
                raise RunError(NO_STATISTICS)
            return losses, (None if alone else new, logits)

        f = remembered.value_and_grad(
            losses_fn,
            self.rule,
            decay=self.decay,
            axis_name=axis,
            ascent=self.ascent,
            passes=passes.own_rows(halves.room(len(halves.labels)), (True, True, False))
            if halves.room is not None
            else passes.whole(),
        )
        running = self.without_memory(stats)
        images, target = halves.images, halves.target
        (loss, (new, logits)), grads, memory = f(
            params, stats[self.KEY], target, images, target, running, step=step, mask=halves.mask
        )
        new = running if alone else new
        return (loss, ({**new, self.KEY: memory}, logits)), grads


class ClassConditional:
    """CC-SAM; the arguments are those of `cc_sam.value_and_grad`."""

    def __init__(self, class_counts: Any, *, variant: Any = "paper", **options: Any):
        self._counts, self._variant, self._options = class_counts, variant, options
        # Refuses bad options now, not in the first step.
        cc_sam.value_and_grad(_unused, _unused, class_counts, variant=variant, **options)

    def stages(self) -> list[tuple[int, Method]]:
        return [(0, self)]

    def gradient(self, halves: Halves, params: Any, stats: Any, step: Any, axis: Any) -> Any:
        release = self._variant == "release"
        if halves.micro_batches > 1:
            raise RunError("--rule cc_sam takes a batch whole: use --accumulate 1")
        if halves.room is not None:
            raise RunError("--rule cc_sam takes a batch whole: use --examples dependent")

        def losses_for(losses: Callable[..., Any], target: Any) -> Callable[..., Any]:
            return lambda params, features, stats: losses(params, features, target)

        f = cc_sam.value_and_grad(
            lambda params, stats: halves.features(params, stats, halves.images),
            losses_for(halves.losses, halves.target),
            self._counts,
            variant=self._variant,
            perturbed_losses_fn=losses_for(halves.unmixed, halves.labels) if release else None,
            axis_name=axis,
            **self._options,
        )
        labels = halves.labels if release else halves.target
        return f(params, labels, stats, step=step, mask=halves.mask)


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
