"""Semi-supervised anomaly detection, whole: `python -m experiments.anomaly`.

In reading order: command.py (flags and main), tables.py (data sets and their splits), nets.py (the
two detectors under one contract), program.py (runs of a method and rule side by side), training.py
(which runs go together), report.py (what they add up to), curves.py (their plot). Of the
experiments it knows host alone, and what every plot is drawn with.
"""

from experiments.anomaly.command import arguments, main

__all__ = ["arguments", "main"]
