"""What every room stands on: command line helpers, errors, signals, progress, run folders."""
