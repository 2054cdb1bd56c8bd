"""Curvature, sharpness and landscapes of finished runs, by group of classes.

In reading order: subjects.py (what of a run folder is analysed), measure.py (what is measured of
it, and how many products with a Hessian that takes), results.py (what lines add up to over seeds,
beside SGD), figures.py. The models are those of the runs, at their checkpoints; the rows are
training images as they are, without augmentation; batch normalisation takes the running statistics.
"""
