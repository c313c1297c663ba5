"""Programs that run in a reader's own environment (environments.py), by its Python: nothing of Pollard is imported here."""
