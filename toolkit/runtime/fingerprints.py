"""Fingerprints: what identifies settings, files and sources, so that finished work is recognised."""

import hashlib
import json
from pathlib import Path
from typing import Any


def fingerprint_of(*parts: Any) -> str:
    """A short hash of JSON-able values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def fingerprint_of_path(path: str | Path) -> Any:
    """What identifies a local file or folder: contents, or size and time of files too large to read for this."""
    path = Path(path)
    if path.is_dir():
        return {file.name: fingerprint_of_path(file) for file in sorted(path.iterdir()) if file.is_file()}
    stat = path.stat()
    if stat.st_size > 64 * 2**20:
        return [stat.st_size, stat.st_mtime_ns]
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def fingerprint_of_source(name: str) -> Any:
    """Identity of a model or data source: the content of a local one, the name of one on the hub."""
    try:
        return fingerprint_of_path(name)
    except OSError:
        return name
