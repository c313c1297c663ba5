"""What each stage of a run does: files in, files out, on every rank. One class per file; stage_list.py says in which order."""
