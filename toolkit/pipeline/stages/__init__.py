"""What each stage of a run does: files in, files out, on every rank. pipeline.py says in which order."""
