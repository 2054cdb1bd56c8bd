"""Finished runs grouped over their seeds, beside published figures: tables, files and plots.

In reading order: reading.py (reports found in folders), grouping.py (runs that differ in the seed
alone), naming.py (what a group is called), figures.py (a mean and its spread), published.toml with
published.py (figures of papers, as data), matching.py (which of them stand beside a run), tables.py
(on the terminal), writing.py (as files). drawing.py is what every plot is drawn with, plots.py the
plots. Of `compare`: compare_folder.py (its files), compare_shape.py (what their fields can be), its
table, page and figures; of `study`, study_folder.py and what it sums up with.
"""
