"""The trainer and what a run is made of.

fit          from a data set, a method and settings to trained run folders
compatible   which options go together
settings     how to train, as one value; what a checkpoint notes beside the state
parts        feed, order of rows, devices, first state, evaluator of a run
trainer      the loop, of one run or of several that make the same steps
calls        of which compiled calls an epoch consists
one          one run: what it has seen, and what it writes
feeds        where rows come from: arrays on the device, or image files
evaluation   accuracies of a state on a part of the data
checkpoints  the last whole one found again after any crash
cost         FLOPs and milliseconds of a lone step
"""
