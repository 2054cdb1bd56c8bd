"""Tables of normal rows and anomalies, made by hand."""

import numpy as np

from experiments.anomaly.tables import Table


def made_table(n: int, anomalies: int, width: int = 6, seed: int = 0, name: str = "t") -> Table:
    """Anomalies lie off the normals, so that a few steps learn something."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(n, np.int64)
    labels[rng.permutation(n)[:anomalies]] = 1
    features = rng.normal(size=(n, width)) + 1.5 * labels[:, None] * rng.normal(size=width)
    return Table(name, f"{name}.npz", features.astype(np.float32), labels)
