"""Second stages start from the first one's parameters and from fresh ones of another draw."""

import jax.numpy as jnp
import numpy as np

from experiments.bench.jobs import Planned, train
from experiments.bench.training import Curve, Job

CURVE = Curve([1], *[np.zeros((1, 2))] * 1, {}, *[np.zeros((2, 3))] * 2, np.zeros(1))


class Bench:
    """Notes which jobs it was given; parameters are the number of the draw."""

    def __init__(self):
        self.given = []

    def train(self, jobs, what=""):
        self.given += jobs
        return {job.name: (CURVE, jnp.array([10.0, 20.0])) for job in jobs}

    def fresh(self, classifier="linear", draw=0):
        return jnp.full(2, float(draw))


def test_a_second_stage_starts_from_the_first_and_from_another_draw():
    job = Job("first", None, None, None)
    planned = [
        Planned(job._replace(name="second"), {"rule": "b"}, "first", lambda old, new: old + new),
        Planned(job, {"rule": "a"}),
    ]
    bench = Bench()
    assert [line.description["rule"] for line in train(bench, planned)] == ["a", "b"]
    assert [one.name for one in bench.given] == ["first", "second"]
    assert bench.given[1].params.tolist() == [11.0, 21.0]
