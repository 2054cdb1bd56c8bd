"""One step of training and of evaluation.

step         a step as a pure function of a state and a batch; hits of an evaluation
state        what a step changes, and which parameters are trained
methods      how the gradient is taken: a rule of the library, or class-conditional SAM
passing      how the passes over a batch are run, for a batch of any number of rows
statistics   batch normalisation in passes over a group's rows
objectives   what is minimised
optimizer    SGD as in PyTorch, learning rates by epoch
many         many steps in one program
execution    where a step runs: jit over a mesh, or pmap
seeds        the same of several seeds in one program
"""
