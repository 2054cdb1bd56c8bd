"""Curvature, sharpness and landscapes of finished runs, by group of classes.

In reading order: subjects.py (what is analysed), runs.py, tables.py and anomalies.py (how it is
read from the folders of each kind), own.py (the perturbations of a run's own rule), measure.py
(what is measured, and how many products with a Hessian that takes) with programs.py, between.py
(lines and planes between models), work.py (what is kept), results.py (what lines add up to over
seeds, beside SGD), figures.py. The models are those of the runs; the rows are training rows as they
are, without augmentation; batch normalisation takes the running statistics.
"""
