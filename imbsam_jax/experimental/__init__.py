"""What did not prove its worth, kept so that its measured results can be had again.

Nothing here is promised: names change and go without notice. `remembered`: ascent directions that
earlier steps saw.
"""

from imbsam_jax.experimental import remembered

__all__ = ["remembered"]
