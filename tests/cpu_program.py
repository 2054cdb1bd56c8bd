"""A program as XLA compiles it for a CPU, to count: of a GPU its count lacks what libraries do."""

from typing import Any

import jax


def compiled(jitted: Any, *args: Any) -> Any:
    """Whatever device the tests run on, if JAX_PLATFORMS has the CPU beside it ("cuda,cpu")."""
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        return jitted.lower(*args).compile()
