"""The dense checkpoint that is upcycled: one decoder layer in memory, or whole where its files do not allow that.

    model.safetensors, or several with an index    layer by layer
    pytorch_model.bin                              whole
    one file *.gguf, or a folder with one          whole, in float32: what llama.cpp quantized is computed when it is read

Shape legend: B sequences, S positions, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from toolkit.moe.batches import Batch
from toolkit.moe.layers import base_model_returns, one_layer_at_a_time
from toolkit.moe.load import checkpoint_folder, load_config, load_model
from toolkit.moe.model_files import checkpoint_files
from toolkit.moe.open_errors import explained
from toolkit.moe.stream import CannotStream, StreamedModel
from toolkit.runtime.distributed import say
from toolkit.runtime.errors import PollardError


class DenseCheckpoint:
    """Where the model's files are, and its configuration. No weights are read before `open`."""

    def __init__(self, path: str, revision: str | None = None) -> None:
        """Raises PollardError where there is no model, and where it cannot be told which."""
        self.gguf = gguf_file(Path(path))
        self.folder = self.gguf.parent if self.gguf else checkpoint_folder(path, revision)
        self.config: Any = self._read(AutoConfig) if self.gguf else load_config(str(self.folder))

    def open(self) -> "DenseSource":
        """In the checkpoint's dtype; of a GGUF file in float32."""
        if self.gguf:
            say(f"  {self.gguf.name} is loaded whole: transformers reads no part of a GGUF file")
            return DenseSource(self._read(AutoModelForCausalLM, dtype=torch.float32).eval())
        try:
            return DenseSource(StreamedModel(str(self.folder), dtype="checkpoint"))
        except CannotStream as reason:
            say(f"  {self.folder} is loaded whole: {reason}")
            return DenseSource(load_model(str(self.folder), dtype="checkpoint", skipping=False))

    def save_tokenizer(self, folder: Path) -> None:
        """Of a GGUF file, which holds its tokenizer and chat template."""
        self._read(AutoTokenizer).save_pretrained(folder)
        # transformers 4 knows the class of transformers 5 by its former name only, and so does what is built on it
        path = folder / "tokenizer_config.json"
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace('"TokenizersBackend"', '"PreTrainedTokenizerFast"'), encoding="utf-8")

    def _read(self, auto: Any, **options: Any) -> Any:
        assert self.gguf is not None
        if find_spec("gguf") is None:
            raise PollardError(
                f"{self.gguf} is read with the package gguf, which is not installed: ./launch.sh setup gguf.",
                code="upcycle.no-gguf",
            )
        name, folder = self.gguf.name, self.gguf.parent
        return explained(lambda: auto.from_pretrained(folder, gguf_file=name, **options), str(self.gguf), "GGUF file")


def gguf_file(path: Path) -> Path | None:
    """The GGUF file that `path` is, or that is the only model in the folder. Raises PollardError where there are several."""
    if path.suffix == ".gguf" and path.is_file():
        return path
    if not path.is_dir() or checkpoint_files(path).weights:
        return None
    found = sorted(path.glob("*.gguf"))
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:3]) + ", …" * (len(found) > 3)
        raise PollardError(f"{path} has {len(found)} GGUF files ({names}): name one.", code="upcycle.several-gguf")
    return found[0] if found else None


class DenseSource:
    """A dense model whose weights are there inside `layer` and `rest`."""

    def __init__(self, opened: StreamedModel | PreTrainedModel) -> None:
        self.opened = opened
        self.model: PreTrainedModel = opened.model if isinstance(opened, StreamedModel) else opened

    @property
    def dtype(self) -> torch.dtype:
        return self.opened.dtype

    @contextmanager
    def layer(self, number: int) -> Iterator[PreTrainedModel]:
        """The model, with the weights of that decoder layer."""
        if isinstance(self.opened, StreamedModel):
            with self.opened.layer(number):
                yield self.model
        else:
            yield self.model

    @contextmanager
    def rest(self) -> Iterator[PreTrainedModel]:
        """The model, with the weights outside of its decoder layers."""
        if isinstance(self.opened, StreamedModel):
            with self.opened.head():
                yield self.model
        else:
            yield self.model

    def float32_logits(self, ids_BS: torch.Tensor) -> torch.Tensor:
        """[B, S, V], whatever the numbers are stored as; those of a model that is loaded whole stay float32."""
        if isinstance(self.opened, StreamedModel):
            return streamed_logits(StreamedModel(self.opened.path, dtype="float32"), ids_BS)
        model = self.model if self.dtype == torch.float32 else self.model.float()  # which a model of a GGUF file refuses
        with torch.no_grad():
            return model(ids_BS, use_cache=False).logits


@torch.no_grad()
def streamed_logits(model: StreamedModel, ids_BS: torch.Tensor) -> torch.Tensor:
    """[B, S, V], one decoder layer in memory."""
    inputs: Batch = {"input_ids": ids_BS, "attention_mask": torch.ones_like(ids_BS)}
    with one_layer_at_a_time(model.model, model.layers) as held:
        forward_pass = held.start(inputs, keep_output=True)
        for number in range(len(model.layers)):
            with model.layer(number):
                forward_pass.resume(forward_pass.output())
        held.check(None)
        with model.head() as whole, base_model_returns(whole, forward_pass.take_output()):
            return whole(**inputs, use_cache=False).logits
