"""Training of a small network: all seeds of a job in one program, jobs side by side in time.

Seed s of one job has the same data, initial weights and batches as seed s of another, so that the
differences between jobs are paired.
"""

from __future__ import annotations

import itertools
import time
from typing import Any, NamedTuple, Self, cast

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.augment import normalise
from experiments.data.sampling import epoch_order
from experiments.host.errors import Diverged, check_seed
from experiments.host.progress import Counted
from experiments.models import create_model
from experiments.step.many import many_steps
from experiments.step.methods import Method
from experiments.step.objectives import Objective
from experiments.step.optimizer import learning_rate, optimizer
from experiments.step.state import start_state
from experiments.step.step import Inputs, Rows, count_hits, make_step
from imbsam_jax import metrics, shot_splits

EPOCHS_PER_CALL = 5
MODEL = "mlp"


class Curve(NamedTuple):
    """What one job did, for S seeds: accuracies in percent at E epochs, and seconds an epoch."""

    epochs: list[int]
    loss: np.ndarray  # [E, S]
    splits: dict[str, np.ndarray]  # all, many, medium, few: [E, S]
    correct: np.ndarray  # [S, C], at the last epoch
    total: np.ndarray  # [S, C]
    seconds: np.ndarray  # [E]


class Setup(NamedTuple):
    """How a job trains: the names and values of a run's settings, as far as the bench has them.

    Attributes:
      epochs: of training; 0 evaluates what the job starts from.
      batch_size: rows of a step; the last of an epoch has what is left.
      lr: initial learning rate.
      schedule: of the learning rate, one of step.optimizer.SCHEDULES.
      momentum: of SGD.
      weight_decay: by the optimizer; 0 where the method has it in the perturbed loss.
      sampling: "natural", "balanced" or "stratified", see data.sampling.epoch_order.
      per_visit: rows of a class at each visit of balanced sampling.
      tail: one a class, which classes are the tail of stratified sampling; () otherwise.
      trained: which parameters, one of step.state.TRAINED.
      classifier: which kind, one of models.CLASSIFIERS.
      max_norm: when the classifier is projected: "none", after each "step" or each "epoch".
    """

    epochs: int
    batch_size: int
    lr: float
    schedule: str = "cosine"
    momentum: float = 0.9
    weight_decay: float = 0.0
    sampling: str = "natural"
    per_visit: int = 1
    tail: tuple[bool, ...] = ()
    trained: str = "all"
    classifier: str = "linear"
    max_norm: str = "none"

    @classmethod
    def of(cls, settings: Any, tail: Any = None) -> Self:
        """Those of a run's settings; decay in the perturbed loss is the method's.

        Args:
          settings: `run.settings.Settings`.
          tail: bool[C] of stratified sampling, as `run.parts.tail_of` has it; None otherwise.
        """
        same = {name: getattr(settings, name) for name in cls._fields if name != "tail"}
        if settings.weight_decay_inside:
            same["weight_decay"] = 0.0
        return cls(**same, tail=() if tail is None else tuple(tail.tolist()))


class Job(NamedTuple):
    """What is trained on the bench, with every seed at once: a method on an objective.

    Attributes:
      name: for messages; no two jobs of one call of `Bench.train` have the same.
      method: how the gradient is taken, a single stage or several.
      objective: what is minimised.
      setup: how it is trained.
      params: parameters of all seeds to start from, [S, ...] each; None draws fresh ones.
      numbers: one for each stage, as its `numbers()` gives them, to be used in place of the
        method's own. They are data of the compiled program: jobs that share method, objective and
        setup and differ in them are compiled once. None compiles the method's own in.
    """

    name: str
    method: Method
    objective: Objective
    setup: Setup
    params: Any = None
    numbers: list[Any] | None = None


class Bench:
    """The data of all seeds on the device, and what jobs on it share.

    Args:
      datasets: one a seed, S in all, of equal shapes and class counts.
      seeds: different numbers from 0 to 2**32 - 1; each decides initial weights and batches.

    Attributes:
      rows: training examples of a seed.
      class_counts: int[C], those of each class.
      compiled: the programs so far; jobs that share one are compiled once.
    """

    def __init__(self, datasets: list[Any], seeds: list[int]):
        check_seed(*seeds)
        first = self.first = datasets[0]
        self.seeds, self.rows = seeds, len(first.train_labels)
        self.class_counts = first.class_counts()
        self._splits = shot_splits(self.class_counts, first.many_above, first.few_below)
        parts = (
            Inputs(
                *(np.stack([getattr(d, f"{part}_{f}") for d in datasets]) for f in Inputs._fields)
            )
            for part in ("train", "test", "val")
        )
        self.train_set, self.test_set, self.val_set = jax.device_put(tuple(parts))
        self.keys = jnp.stack([jax.random.key(seed) for seed in seeds])
        self.compiled: dict[Any, Any] = {}
        self._labels = [np.asarray(dataset.train_labels) for dataset in datasets]
        self._parts: dict[Setup, tuple[Any, Any]] = {}

    def fresh(self, classifier: str = "linear", draw: int = 0) -> Any:
        """Parameters of all seeds, [S, ...] each; another draw gives others."""
        model = create_model(MODEL, self.first.num_classes, classifier=classifier)
        example = self._prepare(self.train_set.images[0, :1])
        keys = jax.vmap(lambda key: jax.random.fold_in(key, draw))(self.keys) if draw else self.keys
        create = jax.jit(jax.vmap(lambda key: model.init(key, example, train=False)["params"]))
        return create(keys)

    def steps_per_epoch(self, batch_size: int) -> int:
        """The last of them may see fewer rows."""
        return -(-self.rows // batch_size)

    def model_and_optimizer(self, setup: Setup) -> tuple[Any, Any]:
        """The same two for the same setup: a compiled program knows its states by them."""
        if setup not in self._parts:
            steps = self.steps_per_epoch(setup.batch_size)
            self._parts[setup] = (
                create_model(MODEL, self.first.num_classes, classifier=setup.classifier),
                optimizer(
                    learning_rate(setup.schedule, setup.lr, setup.epochs, steps),
                    setup.momentum,
                    setup.weight_decay,
                    max_norm_every={"none": 0, "step": 1, "epoch": steps}[setup.max_norm],
                ),
            )
        return self._parts[setup]

    def train(self, jobs: list[Job], what: str = "") -> dict[str, tuple[Curve, Any] | Diverged]:
        """(curve, final parameters) by job, or why it has none; all have equally many epochs.

        A few epochs of each are run in turn, so that a noisy machine slows all alike.

        Args:
          jobs: of different names.
          what: for the progress that is shown.
        """
        epochs = jobs[0].setup.epochs
        ends = [*range(EPOCHS_PER_CALL, epochs, EPOCHS_PER_CALL), epochs]
        spans = list(zip([0, *ends[:-1]], ends, strict=True))
        programs: dict[str, _Program] = {}
        diverged: dict[str, Diverged] = {}
        with Counted(epochs * len(jobs), "epochs", what) as shown:
            for number, job in enumerate(jobs, start=1):
                shown.compiling(number, len(jobs))
                programs[job.name] = _Program(self, job, spans)
            for start, end in spans:
                for name, program in programs.items():
                    if name in diverged:
                        continue
                    began = time.perf_counter()
                    try:
                        program.advance(start, end)
                    except Diverged as error:
                        diverged[name] = error
                    shown.advance(end - start, time.perf_counter() - began)
        return {
            name: diverged.get(name) or (program.curve(ends), program.params())
            for name, program in programs.items()
        }

    def orders(self, setup: Setup, start: int, end: int) -> jax.Array:
        """int32[S, E, rows] of the epochs from start on: the same of every job sampled alike."""
        tail = np.asarray(setup.tail) if setup.tail else None
        orders = [
            epoch_order(setup.sampling, labels, seed, epoch, setup.per_visit, tail)
            for labels, seed in zip(self._labels, self.seeds, strict=True)
            for epoch in range(start, end)
        ]
        shape = len(self.seeds), end - start, self.rows
        return jnp.asarray(np.asarray(orders, np.int32).reshape(shape))

    def validate(self, params: Any, classifier: str = "linear") -> dict[str, np.ndarray]:
        """all, many, medium, few of the validation sets in percent, [S] each, of [S, ...] each."""
        model = create_model(MODEL, self.first.num_classes, classifier=classifier)

        def hits(params: Any, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
            logits: Any = model.apply({"params": params}, self._prepare(inputs.images), train=False)
            return metrics.class_hits(logits, inputs.labels)

        return self.accuracies(*jax.jit(jax.vmap(hits))(params, self.val_set))

    def accuracies(self, correct: np.ndarray, total: np.ndarray) -> dict[str, np.ndarray]:
        """all, many, medium, few in percent, [S] each, of int[S, C]."""
        of = jax.vmap(lambda c, t: metrics.shot_accuracies(c, t, self._splits))
        return {k: np.asarray(v) for k, v in jax.device_get(of(correct, total)).items()}

    def _prepare(self, images: jax.Array, *_: Any) -> jax.Array:
        return normalise(images, self.first.mean, self.first.std)


class _Program:
    """One job, compiled: its states, and what was seen of them so far."""

    def __init__(self, bench: Bench, job: Job, spans: list[tuple[int, int]]):
        setup, self.bench, self.job = job.setup, bench, job
        self.batch = setup.batch_size
        self.steps_per_epoch = bench.steps_per_epoch(self.batch)
        model, tx = bench.model_and_optimizer(setup)
        params = bench.fresh(setup.classifier) if job.params is None else job.params

        def begin(params: Any) -> Any:
            state = start_state(model, tx, {"params": params}, setup.trained)
            return state.replace(extra=job.method.initial_extra(state.params))

        # A copy: what other jobs start from must survive donation.
        self.states = jax.jit(jax.vmap(begin))(jax.tree.map(jnp.copy, params))
        self.numbers = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), job.numbers)
        self.seen: list[tuple[Any, ...]] = []
        self._calls: dict[tuple[int, int], Any] = {}
        lengths = {self._cut(start, end) for start, end in spans}
        for stage, length in {(s, e - b) for cuts in lengths for s, b, e in cuts}:
            self._compile(stage, length)

    def _cut(self, start: int, end: int) -> tuple[tuple[int, int, int], ...]:
        """(stage, first epoch, end) of the calls for these epochs; stages switch between epochs."""
        stages = self.job.method.stages()
        switches = [first // self.steps_per_epoch for first, _ in stages] + [10**9]
        parts = []
        for stage, (low, high) in enumerate(itertools.pairwise(switches)):
            if max(start, low) < min(end, high) or (start == end and stage == 0):
                parts.append((stage, max(start, low), min(end, high)))
        return tuple(parts)

    def _compile(self, stage: int, length: int) -> None:
        job, bench = self.job, self.bench
        of_all = job.method, job.objective, job.setup, stage, length, job.numbers is None
        if of_all not in bench.compiled:
            method = job.method.stages()[stage][1]

            def run(state: Any, numbers: Any, *data: Any) -> Any:
                # Only methods that have numbers are given any.
                used: Any = method if numbers is None else cast(Any, method).given(numbers)
                step = make_step(used, job.objective, bench._prepare)
                return self._epochs(step, state, *data)

            mapped = jax.jit(jax.vmap(run, in_axes=(0, None, 0, 0, 0, 0)), donate_argnums=0)
            order = jnp.zeros((len(bench.seeds), length, bench.rows), jnp.int32)
            lowered = mapped.lower(
                self.states, self._numbers(stage), bench.train_set, bench.test_set, order,
                bench.keys,
            )  # fmt: skip
            bench.compiled[of_all] = lowered.compile()
        self._calls[stage, length] = bench.compiled[of_all]

    def _numbers(self, stage: int) -> Any:
        return None if self.numbers is None else self.numbers[stage]

    def _epochs(
        self, step: Any, state: Any, inputs: Inputs, test: Inputs, order: Any, key: Any
    ) -> Any:
        """E epochs of one seed; order is int32[E, rows]."""
        batch, rows = self.batch, self.bench.rows
        full, rest = divmod(rows, batch)

        def epoch(state: Any, order: jax.Array) -> Any:
            whole = order[: full * batch].reshape(full, batch)
            state, seen = many_steps(step, state, inputs, whole, jnp.arange(batch), batch, key)
            loss = batch * seen.loss.sum()
            if rest:
                last = order[None, full * batch :]
                state, seen = many_steps(step, state, inputs, last, jnp.arange(rest), rest, key)
                loss += rest * seen.loss.sum()
            return state, loss / rows

        losses = jnp.zeros(1)
        if order.shape[0]:
            state, losses = jax.lax.scan(epoch, state, order)
        everyone = jnp.arange(test.labels.shape[0])
        correct, total, _ = count_hits(
            state, self.bench._prepare, test, Rows(index=everyone), flip=False
        )
        return state, (losses[-1], correct, total)

    def advance(self, start: int, end: int) -> None:
        bench, found, took = self.bench, None, 0.0
        for stage, low, high in self._cut(start, end):
            order = bench.orders(self.job.setup, low, high)
            began = time.perf_counter()
            self.states, found = self._calls[stage, high - low](
                self.states, self._numbers(stage), bench.train_set, bench.test_set, order,
                bench.keys,
            )  # fmt: skip
            found = jax.device_get(found)
            took += time.perf_counter() - began
            if not np.isfinite(found[0]).all():
                bad = bench.seeds[int(np.flatnonzero(~np.isfinite(found[0]))[0])]
                raise Diverged(
                    f"{self.job.name}: the loss is not finite by epoch {high} (step "
                    f"{high * self.steps_per_epoch}, seed {bad}); lower --lr or --rho"
                )
        assert found is not None
        self.seen.append((*found, took / max(end - start, 1)))

    def params(self) -> Any:
        return self.states.variables()["params"]

    def curve(self, ends: list[int]) -> Curve:
        losses, correct, total, seconds = (np.stack(x) for x in zip(*self.seen, strict=True))
        found = [self.bench.accuracies(c, t) for c, t in zip(correct, total, strict=True)]
        splits = {split: np.stack([f[split] for f in found]) for split in found[0]}
        return Curve(ends, losses, splits, correct[-1], total[-1], seconds)
