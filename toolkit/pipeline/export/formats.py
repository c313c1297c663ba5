"""The formats that a model can be exported to: each knows its environment, the reader's program that writes it, and the one that
answers from it."""

from dataclasses import dataclass
from pathlib import Path

from toolkit.pipeline.export.environments import (
    LLAMA_CPP_ENVIRONMENT,
    LLM_COMPRESSOR_ENVIRONMENT,
    ReaderEnvironment,
    converter_of,
)
from toolkit.pipeline.export.reader_process import PROGRAMS

GGUF_TYPES = ("auto", "f32", "f16", "bf16", "q8_0")
"""Number types that llama.cpp's converter writes; auto: the 16-bit type that is nearest to the checkpoint's."""
FILE = "model.gguf"
SLOTS = 4  # requests that llama.cpp answers at a time


@dataclass(frozen=True)
class Format:
    """`scheme`: in the writer's own words."""

    name: str
    scheme: str
    environment: ReaderEnvironment

    def writer(self, python: Path, source: Path, target: Path) -> tuple[Path, list[str]]:
        """The program that writes `target`, a folder, and its arguments."""
        if self.environment is LLM_COMPRESSOR_ENVIRONMENT:
            return PROGRAMS / "quantize.py", [str(source), str(target), self.scheme]
        return converter_of(python), [str(source), "--outfile", str(target / FILE), "--outtype", self.scheme]

    def server(self, folder: Path, context: int) -> tuple[str, list[str]]:
        """The program that answers from `folder`, and its arguments; `context`: tokens that one request needs."""
        if self.environment is LLM_COMPRESSOR_ENVIRONMENT:
            return "serve_compressed.py", [str(folder)]
        return "serve_gguf.py", [str(folder / FILE), str(context), str(SLOTS)]


def format_of(to: str, gguf_type: str = "auto") -> Format:
    """`to`: gguf, fp8 or w4a16."""
    if to == "gguf":
        return Format("gguf" if gguf_type == "auto" else f"gguf-{gguf_type}", gguf_type, LLAMA_CPP_ENVIRONMENT)
    return Format(to, {"fp8": "FP8_DYNAMIC", "w4a16": "W4A16"}[to], LLM_COMPRESSOR_ENVIRONMENT)
