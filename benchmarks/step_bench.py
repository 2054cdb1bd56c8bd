"""A training step of some method, model and mode: what compiles it, and what times several in turn.

Batches are those of CIFAR100-LT, of a set that was given or of noise with its class counts, which
costs the same. Images of another size than 32 are noise made on the device, and not augmented.
Modes are what `benchmarks.step_cost` says of them.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import Any

import numpy as np

from experiments.step import methods

# Which batches are drawn in each mode.
MODES = {
    "dependent": "natural", "uniform": "natural", "stratified": "stratified",
    "split_norm": "stratified", "shared_norm": "stratified",
}  # fmt: skip
# Of models with batch statistics; the other modes but "dependent" are of those without.
OF_BATCH_NORM = ("split_norm", "shared_norm")


def noise(counts: np.ndarray, size: int = 32) -> Any:
    """A data set of these class counts, without a picture in it; filled if it has CIFAR's shape."""
    from experiments.data import Dataset

    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    # Read where nothing was written: no memory, whatever the counts.
    images = np.broadcast_to(np.uint8(0), (len(labels), size, size, 3))
    if size == 32 and len(labels) < 100_000:
        images = np.random.default_rng(0).integers(0, 256, images.shape, np.uint8)
    return Dataset(
        name="noise", train_images=images, train_labels=labels, test_images=images[:1],
        test_labels=labels[:1], num_classes=len(counts), mean=(0.5,) * 3, std=(0.25,) * 3,
        many_above=100, few_below=20, source="noise",
    )  # fmt: skip


class OptaxSAM:
    """optax.contrib.sam's gradient, as a method: the same model, batch and optimizer around it."""

    def __init__(self, rho: float):
        import optax

        ascent = optax.chain(optax.contrib.normalize(), optax.sgd(rho))
        self._tx = optax.contrib.sam(optax.identity(), ascent, sync_period=2, opaque_mode=True)

    def stages(self) -> list[tuple[int, Any]]:
        return [(0, self)]

    def initial_extra(self, params: Any) -> Any:
        return {}

    def gradient(self, halves: Any, params: Any, extra: Any, step: Any, axis: Any) -> Any:
        import jax

        losses_of = halves.losses_for(halves.target)

        def mean_loss(params: Any) -> Any:
            features, after = halves.features(params, halves.stats, halves.images)
            losses, logits = losses_of(params, features, halves.target)
            return losses.mean(), (after, logits)

        value_and_grad = jax.value_and_grad(mean_loss, has_aux=True)
        (loss, (after, logits)), grads = value_and_grad(params)
        grads, _ = self._tx.update(
            grads, self._tx.init(params), params, grad_fn=lambda p, _: value_and_grad(p)[1]
        )
        return methods.Gradient(loss, logits, after, grads, extra)


def abstract_state(model: Any, size: int, trained: str = "all") -> Any:
    """Shapes of a state under SGD as runs have it, of images of `size` pixels; no array anywhere.

    `trained` as in `experiments.step.state.create_state`.
    """
    import jax
    import jax.numpy as jnp

    from experiments.run.parts import optimizer_of
    from experiments.run.settings import Settings
    from experiments.step.state import create_state

    settings = Settings()
    tx = optimizer_of(lambda _: settings.lr, settings, steps_per_epoch=1)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(
        lambda image, key: create_state(model, tx, image, key, trained), image, jax.random.key(0)
    )


class Bench:
    """One model and batch size: what compiles a call of some steps, and what runs it."""

    def __init__(self, model: str, args: argparse.Namespace, dataset: Any, steps_per_call: int = 1):
        import jax

        from experiments.data.sampling import Order
        from experiments.run.parts import Parts
        from experiments.run.settings import Settings
        from experiments.step.step import Inputs
        from imbsam_jax import tail_classes
        from imbsam_jax.losses import cross_entropy

        self.args, self.dataset, self.model = args, dataset, model
        self.steps_per_call = steps_per_call
        labels, batch = dataset.train_labels, args.batch_size
        tail = tail_classes(dataset.class_counts(), args.eta, strict=args.strict)
        self.tail_share = float(tail[labels].mean())
        self.orders = {
            mode: Order(kind, labels, 0, batch, tail=tail) for mode, kind in MODES.items()
        }
        if args.compile_only:
            self.initial = self._abstract_state()
        else:
            settings = Settings(
                batch_size=batch, precision=args.precision, accumulate=args.accumulate,
                remat=args.remat, augment=args.image_size == 32,
            )  # fmt: skip
            parts = Parts(dataset, model, cross_entropy, settings)
            self.run_on, self.initial, self.inputs = parts.run_on, parts.initial, None
            self._images = None
            if args.image_size == 32:
                self.inputs = self.run_on.put_inputs(Inputs(dataset.train_images, labels))
            else:
                shape = (steps_per_call, batch, args.image_size, args.image_size, 3)
                self._images = jax.random.bits(jax.random.key(0), shape, np.uint8)
        self.couples = bool(jax.tree.leaves(self.initial.batch_stats))

    def room(self, mode: str) -> Any:
        """See Passing."""
        if mode == "dependent":
            return None
        return partial(self.orders[mode].buffers, self.dataset.num_classes)

    def leaves_rows_out(self, method: Any, mode: str) -> bool:
        """Whether any pass of this method is over fewer rows than the batch."""
        import jax

        if isinstance(method, OptaxSAM | methods.ClassConditional) or self.args.accumulate > 1:
            return False
        if self.couples != (mode in OF_BATCH_NORM):
            return False
        room, least = self.room(mode), [self.args.batch_size]

        def noted(rows: int) -> Any:
            buffers = room(rows)

            def sizes(classes: Any) -> Any:
                least.append(min(buffers(classes)))
                return buffers(classes)

            return sizes

        jax.eval_shape(*self._abstract_step(method, noted, mode))
        return min(least) < self.args.batch_size

    def rows(self, mode: str, call: int) -> Any:
        """Rows of whole batches, as many as a call has steps; nothing to be placed yet."""
        from experiments.step.step import Rows

        order, steps = self.orders[mode], self.steps_per_call
        most = order.rows // self.args.batch_size  # of an epoch; the last one may be smaller
        at = [(call * steps + k) % most for k in range(steps)]
        index = np.stack([order.of_step(k) for k in at]).astype(np.int32)
        if self._images is None:
            return Rows(index=index)
        return Rows(images=self._images, labels=self.dataset.train_labels[index])

    def compiled(self, method: Any, room: Any, mode: str = "dependent") -> Any:
        import jax

        if self.args.compile_only:
            step, *shapes = self._abstract_step(method, room, mode)
            return jax.jit(step, donate_argnums=0).lower(*shapes).compile()
        there = self.run_on.passing_by(self._passing(mode, room))
        state = there.put_state(self.initial)
        return there.compile_steps(method, state, self.inputs, self.rows(mode, 0))

    def lowered(self, method: Any, mode: str, room: Any) -> Any:
        """One step alone, to count; whatever the device."""
        import jax

        there = self.run_on.passing_by(self._passing(mode, room))
        one = jax.tree.map(lambda x: x[:1], self.rows("dependent", 0))
        return there.lower_on_host(method, self.initial, self.inputs, one)

    def _passing(self, mode: str, room: Any) -> Any:
        from experiments.step.passing import EXAMPLES, Passing

        examples = mode if mode in EXAMPLES else "independent"
        return Passing(examples, self.args.accumulate, room)

    def _abstract_state(self) -> Any:
        import jax.numpy as jnp

        from experiments.models import create_model

        dtype, classes = jnp.dtype(self.args.precision), self.dataset.num_classes
        model = create_model(self.model, classes, dtype=dtype, remat=self.args.remat)
        return abstract_state(model, self.args.image_size)

    def _abstract_step(self, method: Any, room: Any, mode: str) -> tuple[Any, ...]:
        """(a step, shapes of its arguments): of images brought along, no array anywhere."""
        import jax
        import jax.numpy as jnp

        from experiments.data.augment import normalise
        from experiments.step.objectives import Objective
        from experiments.step.step import Rows, make_step
        from imbsam_jax.losses import cross_entropy

        batch, size = self.args.batch_size, self.args.image_size
        step = make_step(
            method,
            Objective(cross_entropy, self.dataset.num_classes),
            lambda images, *_: normalise(images, self.dataset.mean, self.dataset.std),
            passing=self._passing(mode, room),
        )

        def call(state: Any, rows: Any, key: Any) -> Any:
            return step(state, None, rows, jnp.arange(batch), batch, key)

        rows = Rows(
            images=jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8),
            labels=jax.ShapeDtypeStruct((batch,), jnp.int32),
        )
        state, key = jax.eval_shape(lambda s: (s, jax.random.key(0)), self.initial)
        return call, state, rows, key


def temporary_bytes(call: Any) -> int | None:
    return getattr(call.memory_analysis(), "temp_size_in_bytes", None)


def timed(
    bench: Bench,
    rows: list[dict[str, Any]],
    calls: list[Any],
    rounds: int,
    deadline: float = np.inf,
) -> np.ndarray:
    """float[rounds - 1, rows]: seconds of a step of each; the first round warms caches.

    Args:
      deadline: time.monotonic() after which no round begins that is not one of the first three.
    """
    import jax

    states = [bench.run_on.put_state(bench.initial) for _ in rows]
    times: list[np.ndarray] = []
    while len(times) < rounds and (len(times) < 3 or time.monotonic() < deadline):
        number = len(times)
        placed = {
            mode: bench.run_on.place(bench.rows(mode, number))
            for mode in sorted({row["mode"] for row in rows})
        }
        jax.block_until_ready(placed)
        times.append(np.zeros(len(rows)))
        # In another order each round: no rule always follows the longest.
        for k in np.random.default_rng(number).permutation(len(rows)):
            began = time.perf_counter()
            states[k], seen = calls[k](states[k], bench.inputs, placed[rows[k]["mode"]])
            jax.block_until_ready((states[k], seen))
            times[number][k] = (time.perf_counter() - began) / bench.steps_per_call
            rows[k]["finite"] = bool(np.isfinite(seen.loss).all())
    return np.stack(times[1:])
