"""From flags to finished runs: flags, presets, plans, seeds, second stages."""
