"""Many seeds and settings of a small network in one program.

In reading order: training.py (jobs on the data of all seeds), jobs.py (the lines of a table, with
second stages), tables.py (what lines add up to), grid.py (points of a grid, one chosen by
validation), folder.py (what is written and drawn). How methods and losses are made of flags is not
known here: the entries make them, and hand them on as jobs.
"""
