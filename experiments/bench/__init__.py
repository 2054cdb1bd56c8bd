"""Many seeds and settings of a small network in one compiled program."""
