"""A run: its directory, its stages in order, rounds and sweeps."""
