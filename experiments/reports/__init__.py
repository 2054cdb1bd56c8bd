"""Finished runs: grouped, named, beside published figures; tables and plots."""
