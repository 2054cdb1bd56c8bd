"""What a machine can do at most: by a clock that says what each call takes."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import peak
from experiments.host.errors import RunError


@pytest.mark.parametrize(
    ("platform", "quick", "n", "chain", "repeats", "mebibytes"),
    [
        # As results/accelerator/peak.json says of a GPU; small and few enough for a CPU.
        ("gpu", False, 8192, 10, 10, 1024),
        ("cpu", False, 1024, 2, 5, 256),
        ("gpu", True, 256, 10, 10, 16),
        ("cpu", True, 256, 2, 5, 16),
    ],
)
def test_what_is_measured_of_a_device(
    monkeypatch, platform, quick, n, chain, repeats, mebibytes
):  # fmt: skip
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(platform=platform)])
    monkeypatch.setattr(peak, "product", lambda *given: given)
    monkeypatch.setattr(peak, "copy", lambda *given: given)
    assert peak.measure(quick) == {
        "matmul": [
            (n, "float32", "default", chain, repeats),
            (n, "float32", "highest", chain, repeats),
            (n, "bfloat16", "default", chain, repeats),
        ],
        "copy": (mebibytes, chain, repeats),
    }


def test_rates_of_a_product_and_a_copy(monkeypatch, taking):
    """2 n^3 operations a product, a number read and one written of four bytes each."""
    asked, matmul = [], jnp.matmul
    monkeypatch.setattr(
        jnp, "matmul", lambda x, b, precision=None: (asked.append(precision), matmul(x, b))[1]
    )
    taking(peak, [9.0, 9.0, 0.5, 0.25, 1.0])
    assert peak.product(16, "float32", "highest", 3, 3) == {
        "dtype": "float32", "precision": "highest", "n": 16, "chain": 3, "repeats": 3,
        "flops_per_second_best": 2 * 16**3 * 3 / 0.25,
        "flops_per_second_median": 2 * 16**3 * 3 / 0.5,
    }  # fmt: skip
    assert asked == ["highest"] * 3
    taking(peak, [9.0, 9.0, 0.5, 2.0])
    assert peak.copy(1, 5, 2) == {
        "mebibytes": 1, "chain": 5, "repeats": 2,
        "bytes_per_second_best": 2 * 2**20 * 5 / 0.5,
        "bytes_per_second_median": 2 * 2**20 * 5 / 1.25,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("size", "fits"), [(0.009, False), (0.015, True), (99.0, True), (100.5, False)]
)
def test_a_product_that_runs_out_of_range_is_not_timed(monkeypatch, taking, size, fits):
    """A product by one leaves a matrix as large as it is: of entries of +- size / sqrt(n)."""
    signs = np.where(np.indices((16, 16)).sum(axis=0) % 2, 1, -1)
    made = jnp.asarray(signs * size / 4, jnp.float32), jnp.eye(16)
    monkeypatch.setattr(peak, "entries", lambda n, dtype: made)
    taking(peak, [1.0] * 3)
    if fits:
        peak.product(16, "float32", "default", 1, 1)
        return
    with pytest.raises(RunError, match="a product of float32 matrices came out"):
        peak.product(16, "float32", "default", 1, 1)


def test_every_machine_multiplies_the_same_matrices():
    x, b = peak.entries(2, "float32")
    np.testing.assert_allclose(x, [[0.709945, -0.640877], [-0.529038, -0.828281]], atol=1e-6)
    np.testing.assert_allclose(b, [[-1.727077, -1.439444], [0.145342, -0.249998]], atol=1e-6)


def test_what_a_file_says_of_its_machine():
    """Products that ask for no precision have XLA's default, unless JAX is told another."""
    assert peak.described()["default_matmul_precision"] == "default"
    with jax.default_matmul_precision("highest"):
        assert peak.described()["default_matmul_precision"] == "highest"
