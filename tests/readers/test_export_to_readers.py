"""`pollard export` with the readers themselves: what llama.cpp and llm-compressor write of a run's model, and answer from it."""

import json
import shutil
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, raises
from reader_pythons import python_of
from small_run import small_folder, small_recipe
from transformers import AutoTokenizer

from toolkit.pipeline.export import export, format_of
from toolkit.pipeline.export.environments import LLAMA_CPP_ENVIRONMENT, LLM_COMPRESSOR_ENVIRONMENT
from toolkit.pipeline.export.reader_process import serving
from toolkit.pipeline.run_facts import read_run_facts
from toolkit.pipeline.runner import run

sys.path.insert(0, str(ROOT / "benchmarks"))
import reader_families


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two runs: `small` with the playground's tokenizer, `real` with SmolLM2's."""
    python_of(reader_families.OLD_TRANSFORMERS)
    with small_folder(tmp_path_factory, "exports") as folder:
        reader_families.make_models(folder / "made", ["mixtral"])
        shutil.copytree(folder / "made" / "original" / "mixtral", "real")
        for name, model in (("small", "original"), ("real", "real")):
            run(small_recipe(name=name, model=model), until="evaluate/pruned")
        yield folder


def test_llama_cpp_answers_the_tasks_questions(small: Path) -> None:
    python_of(LLAMA_CPP_ENVIRONMENT)
    facts = export("runs/real", format_of("gguf", "f32"), "pruned")
    assert facts.scores and facts.scores.pair
    assert (facts.scores.n, facts.scores.pair.n) == (6, 6)
    weights = (small / "runs" / "real" / "pruned" / "model.safetensors").stat().st_size
    assert facts.source_bytes == weights and weights * 0.95 < facts.bytes < weights * 1.2
    answers = [json.loads(line) for line in Path("runs/real/exports/gguf-f32/predictions.jsonl").read_text().splitlines()]
    assert len(answers) == 6 and all(answer["tokens"] for answer in answers)
    halved = export("runs/real", format_of("gguf", "f16"), "pruned", evaluate=False)
    assert halved.bytes < 0.7 * facts.bytes
    assert {found.name for found in read_run_facts("runs/real").exports} == {"gguf-f32", "gguf-f16"}
    assert export("runs/real", format_of("gguf", "f32"), "pruned") == facts  # nothing is made or asked again


def test_llama_cpp_takes_a_text_apart_as_transformers_does(small: Path) -> None:
    """The converter writes the tokenizer as well: a user asks in words."""
    python, to = python_of(LLAMA_CPP_ENVIRONMENT), format_of("gguf", "f32")
    export("runs/real", to, "pruned", evaluate=False)
    tokenizer = AutoTokenizer.from_pretrained("runs/real/pruned")
    program, arguments = to.server(Path("runs/real/exports/gguf-f32"), 64)
    with serving(python, program, arguments, Path("server.log"), "serving") as url:
        for text in ("It's 12,345.67 €!\n\n  def f(x):\n\treturn x", "<|im_start|>user\nÄpfel, 東京<|im_end|>"):
            body = json.dumps({"content": text, "parse_special": True}).encode()
            request = urllib.request.Request(url.removesuffix("/v1") + "/tokenize", body, {"Content-Type": "application/json"})
            assert json.load(urllib.request.urlopen(request))["tokens"] == tokenizer(text, add_special_tokens=False).input_ids


def test_a_tokenizer_that_llama_cpp_does_not_know_is_its_reason(small: Path) -> None:
    python_of(LLAMA_CPP_ENVIRONMENT)
    with raises("export.refused", "BPE pre-tokenizer was not recognized"):
        export("runs/small", format_of("gguf"), "pruned", evaluate=False)


def test_what_llm_compressor_wrote_answers(small: Path) -> None:
    python_of(LLM_COMPRESSOR_ENVIRONMENT)
    facts = export("runs/real", format_of("fp8"), "pruned")
    assert facts.scores and (facts.scores.n, facts.scores.pair and facts.scores.pair.n) == (6, 6)
    assert facts.bytes < facts.source_bytes
