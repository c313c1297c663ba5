"""Checkpoints that Pollard prunes, handed to other programs, each in an environment of its own."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from conftest import ROOT
from reader_pythons import python_of

from toolkit.pipeline.export.environments import LLAMA_CPP_ENVIRONMENT, LLM_COMPRESSOR_ENVIRONMENT

sys.path.insert(0, str(ROOT / "benchmarks"))
import reader_families

TRIED = ["mixtral", "qwen3_moe"]  # of the families in benchmarks/reader_families.json


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    python_of(reader_families.OLD_TRANSFORMERS)
    return reader_families.make_models(tmp_path_factory.mktemp("readers") / "models", TRIED)


@pytest.fixture(scope="module")
def expected(made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, reader_families.Result]:
    return reader_families.reference(made, tmp_path_factory.mktemp("reference") / "logits")


def test_transformers_4_computes_the_same_logits(made: dict[str, Path], expected: Mapping, tmp_path: Path) -> None:
    for family, result in reader_families.ask_old_transformers(made, expected, tmp_path / "out").items():
        assert result.get("difference", 1) <= 1e-5 and result["greedy"], (family, result)


def test_llama_cpp_writes_the_same_text(made: dict[str, Path], expected: Mapping, tmp_path: Path) -> None:
    """At float32: the likeliest tokens are the same, log-probabilities within 1e-3."""
    python_of(LLAMA_CPP_ENVIRONMENT)
    for family, result in reader_families.ask_llama_cpp(made, expected, tmp_path / "out").items():
        assert result.get("difference", 1) <= 1e-3 and result["greedy"], (family, result)


@pytest.mark.parametrize("scheme", ["fp8", "w4a16"])
def test_what_llm_compressor_writes_loads_back(made: dict[str, Path], expected: Mapping, tmp_path: Path, scheme: str) -> None:
    """With every weight in its place: the logits are the checkpoint's, rounded. With experts drawn at random, which is what
    transformers makes of these files, the correlation is 0.6 and 0.5."""
    python_of(LLM_COMPRESSOR_ENVIRONMENT)
    results = reader_families.ask_llm_compressor(scheme)(made, expected, tmp_path / "out")
    for family, result in results.items():
        assert result.get("correlation", 0) >= 0.8, (family, result)


def test_experts_are_written_under_the_familys_own_names(made: dict[str, Path], tmp_path: Path) -> None:
    """vLLM finds experts by the names that the family's files have: `w1` of Mixtral, and not `gate_proj`."""
    to = reader_families.format_of("fp8")
    program, arguments = to.writer(python_of(LLM_COMPRESSOR_ENVIRONMENT), made["mixtral"], tmp_path / "written")
    reader_families.run(python_of(LLM_COMPRESSOR_ENVIRONMENT), program, *arguments)
    names = subprocess.run(
        [sys.executable, "-c", "import sys, safetensors as s; print(*s.safe_open(sys.argv[1], 'pt').keys(), sep='\\n')",
         tmp_path / "written" / "model.safetensors"], capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    stored = {name for name in names if ".experts." in name and name.endswith(".weight")}
    original = json.loads((made["mixtral"] / "pollard.json").read_text())
    assert original["what"] == "pruned checkpoint"
    pattern = re.compile(r"model\.layers\.\d+\.block_sparse_moe\.experts\.[0-3]\.w[123]\.weight")
    assert len(stored) == 2 * 4 * 3 and all(map(pattern.fullmatch, stored)), sorted(stored)[:3]


def test_the_table_in_the_docs_is_what_the_readers_did() -> None:
    if not reader_families.RESULTS.exists():
        pytest.skip("`python benchmarks/reader_families.py` has not been run to its end yet")
    results = json.loads(reader_families.RESULTS.read_text())
    page = (ROOT / "docs" / "readers.md").read_text()
    assert reader_families.table(results) in page, "python benchmarks/reader_families.py --table"
    assert all(list(found) == list(reader_families.READERS) for found in results.values())
