def write_tables(document, study, cells): return [c.name for c in cells if c.result(study) is None]
