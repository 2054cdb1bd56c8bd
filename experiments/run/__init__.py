"""The trainer and what a run is made of: state, epochs, evaluation, checkpoints, feeds, cost."""
