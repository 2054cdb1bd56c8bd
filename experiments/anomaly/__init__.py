"""Semi-supervised anomaly detection, whole: tables, networks, training, report."""

from experiments.anomaly.command import arguments, main

__all__ = ["arguments", "main"]
