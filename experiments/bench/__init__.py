"""Many seeds and settings of a small network in one program.

In reading order: training.py (jobs on the data of all seeds), jobs.py (the lines of a table, with
second stages), tables.py (what lines add up to), grid.py (points of a grid, one chosen by
validation), folder.py (what is written and drawn), written.py (the same read again). For tables:
lanes.py (many settings on one training set in one program), comparison.py (settings chosen inside a
split by choosing.py, then trained again), compare_jobs.py (the jobs of all splits, kept as they
finish), unseen.py (classes that no split tests or no fold holds), references.py (other people's
models), snippet.py and compare_kept.py (what was chosen, as Python and as a network),
compare_read.py (table and splits of a comparison, read again). How methods and losses are made of
flags is not known here: the entries make them, and hand them on as jobs.
"""
