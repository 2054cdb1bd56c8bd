"""What a machine can do at most: FLOP/s of large matrix products, bytes/s of a large copy.

Steps are held against these, measured where they ran, not against a maker's figures. Run by
benchmarks/accelerator.py.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.host import origin, outputs
from experiments.host.errors import RunError

# (type, precision). XLA's default for float32 is TF32 on an NVIDIA GPU since Ampere.
PRODUCTS = (("float32", "default"), ("float32", "highest"), ("bfloat16", "default"))


def measure(quick: bool) -> dict[str, Any]:
    """All figures of this machine's first device."""
    import jax

    on_cpu = jax.devices()[0].platform == "cpu"
    n, chain, repeats = (1024, 2, 5) if on_cpu else (8192, 10, 10)
    mebibytes = 256 if on_cpu else 1024
    if quick:
        n, mebibytes = 256, 16
    products = [product(n, dtype, precision, chain, repeats) for dtype, precision in PRODUCTS]
    return {"matmul": products, "copy": copy(mebibytes, chain, repeats)}


def product(n: int, dtype: str, precision: str, chain: int, repeats: int) -> dict[str, Any]:
    """FLOP/s of x <- x @ b, 2 n^3 each, `chain` of them in one call and each from the last."""
    import jax
    import jax.numpy as jnp

    @jax.jit
    def call(x: Any, b: Any) -> Any:
        for _ in range(chain):
            x = jnp.matmul(x, b, precision=precision)
        return x

    # Entries of variance 1/n: a product is as large as its factor, however long the chain.
    x, b = entries(n, dtype)
    times, last = _times(lambda x: call(x, b), x, repeats)
    size = float(jnp.std(last.astype(jnp.float32)) * n**0.5)
    if not 0.01 < size < 100:
        raise RunError(f"a product of {dtype} matrices came out {size} times its size: not timed")
    flops = 2.0 * n**3 * chain
    return {
        "dtype": dtype, "precision": precision, "n": n, "chain": chain, "repeats": repeats,
        "flops_per_second_best": flops / float(times.min()),
        "flops_per_second_median": flops / float(np.median(times)),
    }  # fmt: skip


def entries(n: int, dtype: str) -> tuple[Any, Any]:
    """Two matrices [n, n] of normal entries of variance 1/n.

    Rounded from float32: drawn in bfloat16 they have a mean of -0.012 deviations, and with it, from
    n = 7000 on, an eigenvalue below -1 that a chain of products follows out of range.
    """
    import jax

    keys = jax.random.split(jax.random.key(0))
    x, b = ((jax.random.normal(key, (n, n)) / n**0.5).astype(dtype) for key in keys)
    return x, b


def copy(mebibytes: int, chain: int, repeats: int) -> dict[str, Any]:
    """Bytes/s of x <- -x over a large array, read and written; each call from the last's result."""
    import jax
    import jax.numpy as jnp

    negative = jax.jit(jnp.negative)

    def call(x: Any) -> Any:
        for _ in range(chain):  # calls of their own: within one, XLA would leave them out
            x = negative(x)
        return x

    x = jax.random.uniform(jax.random.key(0), (mebibytes * 2**18,), jnp.float32)
    times, _ = _times(call, x, repeats)
    moved = 2.0 * x.nbytes * chain
    return {
        "mebibytes": mebibytes, "chain": chain, "repeats": repeats,
        "bytes_per_second_best": moved / float(times.min()),
        "bytes_per_second_median": moved / float(np.median(times)),
    }  # fmt: skip


def _times(call: Any, x: Any, repeats: int) -> tuple[np.ndarray, Any]:
    """(seconds of each repeat, what the last one gave); two more come first, untimed."""
    import jax

    times = []
    for _ in range(repeats + 2):
        began = time.perf_counter()
        x = jax.block_until_ready(call(x))
        times.append(time.perf_counter() - began)
    return np.asarray(times[2:]), x


def run(out: Path, quick: bool = False) -> None:
    """Writes OUT/peak.json, unless it is there."""
    file = out / "peak.json"
    if read(file):
        print(f"{file} is there: not measured again")
        return
    found = {"command": origin.command_line(), "quick": quick, **measure(quick)}
    outputs.write_json(file, {**found, **described()})
    for line in found["matmul"]:
        rate = line["flops_per_second_best"] / 1e12
        print(f"matmul {line['n']} {line['dtype']} {line['precision']}: {rate:.4g} TFLOP/s")
    print(f"copy: {found['copy']['bytes_per_second_best'] / 1e9:.4g} GB/s", flush=True)


def read(file: Path) -> dict[str, Any]:
    """What an earlier call wrote, {} for none.

    Raises:
      RunError: it is of another device.
    """
    if not file.exists():
        return {}
    found: dict[str, Any] = outputs.read_object(file)
    here = origin.environment()["device"]
    if found.get("device") != here:
        raise RunError(
            f"{file} is of {found.get('device')}, and this is {here}: choose another --out, "
            "figures of two machines are not to be mixed"
        )
    return found


def described() -> dict[str, Any]:
    """Device, versions, commit, and the precision of products that ask for none."""
    import jax

    precision = getattr(jax.config, "jax_default_matmul_precision", None) or "default"
    return {"default_matmul_precision": precision, **origin.environment()}


def rates(found: dict[str, Any]) -> dict[str, float]:
    """Best FLOP/s by the type that steps compute in, at the precision that they ask for: none."""
    return {
        line["dtype"]: line["flops_per_second_best"]
        for line in found.get("matmul", [])
        if line["precision"] == "default"
    }
