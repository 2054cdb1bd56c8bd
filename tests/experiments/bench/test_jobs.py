"""Second stages start from the first one's parameters and from fresh ones of another draw."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench.jobs import Planned, train
from experiments.bench.training import Curve, Job
from experiments.host.errors import Diverged, RunError

CURVE = Curve([1], *[np.zeros((1, 2))] * 1, {}, *[np.zeros((2, 3))] * 2, np.zeros(1))


class Bench:
    """Notes which jobs it was given; parameters are the number of the draw."""

    def __init__(self, lost=()):
        self.given, self.lost = [], lost

    def train(self, jobs, what=""):
        self.given += jobs
        return {
            job.name: Diverged(f"{job.name} is nan") if job.name in self.lost
            else (CURVE, jnp.array([10.0, 20.0]))
            for job in jobs
        }  # fmt: skip

    def fresh(self, classifier="linear", draw=0):
        return jnp.full(2, float(draw))


def test_a_second_stage_starts_from_the_first_and_from_another_draw():
    job = Job("first", None, None, None)
    planned = [
        Planned(job._replace(name="second"), {"rule": "b"}, "first", lambda old, new: old + new),
        Planned(job, {"rule": "a"}),
    ]
    bench = Bench()
    lines = train(bench, planned)
    assert [line.description["rule"] for line in lines] == ["a", "b"]
    for line in lines:
        assert line.curve is CURVE and line.diverged is None
        assert line.params.tolist() == [10.0, 20.0]
    assert [one.name for one in bench.given] == ["first", "second"]
    assert bench.given[1].params.tolist() == [11.0, 21.0]


def jobs(*names):
    """First stages, and a second stage of each."""
    job = Job("", None, None, None)
    firsts = [Planned(job._replace(name=name), {"rule": name}) for name in names]
    return firsts + [
        Planned(job._replace(name=f"{name}2"), {"rule": f"{name}2"}, name, lambda old, new: old)
        for name in names
    ]


def test_a_stage_that_diverged_says_so_and_so_does_its_second_stage():
    bench = Bench(lost=("a", "b2"))
    lines = train(bench, jobs("a", "b"))
    assert [(line.description["rule"], line.diverged) for line in lines] == [
        ("a", "a is nan"), ("b", None), ("a2", "a is nan"), ("b2", "b2 is nan"),
    ]  # fmt: skip
    assert [line.curve is None for line in lines] == [True, False, True, True]
    assert [line.params is None for line in lines] == [True, False, True, True]
    assert [job.name for job in bench.given] == ["a", "b", "b2"]  # of nothing none is trained


def test_where_every_first_stage_diverged_nothing_is_written():
    bench = Bench(lost=("a", "b"))
    with pytest.raises(
        RunError, match=r"^a is nan; no row was trained to its end, and nothing was"
    ):
        train(bench, jobs("a", "b"))
    assert [job.name for job in bench.given] == ["a", "b"]
