"""What a step and a run cost; they report, and assert nothing."""
