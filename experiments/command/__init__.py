"""From flags to finished runs.

A command line is read by flags.py (method_flags, with radii, loss_flags and stage2 have theirs),
with the defaults of presets.py, whose rows are in image_recipes.py and clip_recipes.py; plan.py
makes of it and a data set what is to be trained, and refuses what cannot be; launch.py trains the
plan, in the groups of seeds.py. image_sweep.py does so at each point of a grid, finetuning.py says
what a pretrained model starts from, finished.py what method a finished run had. The entries on
small data have their flags in digits_flags.py and compare_flags.py; candidates.py has the rows of a
comparison, study_plan.py the sets of a study.
"""
