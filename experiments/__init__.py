"""What a researcher runs: entry points, data, models and reports around imbsam_jax."""
