"""A mesh of explicit axes: every loss, classifier and metric, and the doors, or a sentence."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

import explicit_mesh
import imbsam_jax as ij
from imbsam_jax import classifiers, curvature, losses, metrics, passes
from rule_table import BY_ID

# Types say how arrays are spread: tracing, without eight devices, sees what JAX refuses.
MESH = AbstractMesh((8,), ("rows",), axis_types=explicit_mesh.KINDS)


def traced(of: Any, *arrays: np.ndarray) -> Any:
    spread = NamedSharding(MESH, P("rows"))
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=spread) for a in arrays]
    with jax.sharding.use_abstract_mesh(MESH):
        return jax.eval_shape(of, *shapes)


@pytest.mark.allow_rank_promotion  # Flax adds a bias[C] to a batch[B, C]
@pytest.mark.parametrize("name", explicit_mesh.CASES)
def test_it_is_spread_as_its_rows_are(name: str) -> None:
    case = explicit_mesh.CASES[name]
    for leaf in jax.tree.leaves(traced(case.of, *explicit_mesh.make_batch())):
        rows = leaf.sharding.spec[:1] if leaf.ndim else ()
        assert rows == (("rows",) if case.spread else (None,) * min(leaf.ndim, 1)), leaf


def test_none_is_left_out() -> None:
    public = {
        name
        for module in (losses, classifiers, metrics)
        for name in module.__all__
        if inspect.isfunction(getattr(module, name))
    }
    assert public - set(explicit_mesh.CASES) == {"class_balanced_weights"}  # NumPy alone


@pytest.mark.slow  # above, each is traced
def test_the_numbers_are_those_of_one_device(run_python: Any) -> None:
    run_python(["-W", "error", "tests/explicit_mesh.py"], devices=8)


@pytest.mark.parametrize("how", ["own_rows", "split_norm", "shared_norm", "batch_size"])
def test_what_takes_rows_out_of_a_batch_is_refused(how: str) -> None:
    params = {"w": jnp.ones((5, 5))}

    def normed(params: Any, x: Any, y: Any) -> Any:
        return ij.losses.cross_entropy(ij.batch_norm(x @ params["w"])[0], y), None

    def of(x: Any, z: Any, y: Any, *_: Any) -> Any:
        if how == "batch_size":
            return curvature.hvp(normed, params, y, x, y, batch_size=4)(params)
        kind = getattr(passes, how)(lambda classes: (4,))
        return BY_ID["imbsam"].value_and_grad(normed, passes=kind)(params, y, x, y)

    says = r"does not do over explicit axes of a mesh: .*AxisType\.Auto"
    with pytest.raises(ValueError, match=says):
        traced(of, *explicit_mesh.make_batch())
