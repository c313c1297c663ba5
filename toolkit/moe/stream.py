"""A model larger than memory: its decoder layers come from the checkpoint's files one at a time.

    model.layers.3.mlp.experts.0.w1.weight ┐
    …                                      ├─► model.layers.3.mlp.experts.gate_up_proj
    model.layers.3.mlp.experts.7.w3.weight ┘

transformers' own renaming and conversion say which tensors of the files belong to which layer, and make its parameters
of them: per-expert and fused checkpoints of every family, without code per family. Files are memory-mapped. Who walks through
the layers has the next one read while this one runs.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging

from toolkit.moe.completeness import mismatch
from toolkit.moe.layers import decoder_layers
from toolkit.moe.load import checkpoint_folder, load_config, load_model, load_thresholds, meta_model, resolve_dtype
from toolkit.moe.model_files import checkpoint_files, report_unread_weights
from toolkit.moe.names import NameResolver
from toolkit.moe.open_errors import explained
from toolkit.moe.read_ahead import ReadAhead
from toolkit.runtime.distributed import device, say
from toolkit.runtime.errors import PollardError

REST, HEAD = -1, -2  # parts of the model that are no decoder layer: of the base model, and behind it


class CannotStream(PollardError):
    """This checkpoint must be loaded whole; the message says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, code="model.cannot-stream")


class StreamedModel:
    """`model` has everything its base model needs but the decoder layers, which are there inside `layer(number)` only. What makes
    logits is there inside `head()` only.

    Raises CannotStream where transformers must see the whole checkpoint to load it.
    """

    def __init__(self, path: str, revision: str | None = None, dtype: str = "auto", device: torch.device | str = "cpu") -> None:
        """`dtype` as for `load_model`."""
        config = load_config(path, revision)
        if getattr(config, "quantization_config", None):
            raise CannotStream("its weights are quantized")
        self.path, self.device = path, torch.device(device)
        self.files = [_opened(file) for file in safetensors_files(path, revision)]
        self.dtype = resolve_dtype(dtype, config) or self._first_dtype()
        self.model: PreTrainedModel = meta_model(config, self.dtype).eval()
        try:
            self.layers_path, self.layers = decoder_layers(self.model)
        except PollardError as error:
            raise CannotStream("its decoder layers do not stand in one list") from error
        self.conversions: list[Any] = get_model_conversion_mapping(self.model)
        self.unmade: set[str] = set()  # parameters that come from no file,
        self.missing_head: list[str] = []  # and those of them that are behind the base model and tied to no other
        self.keys = self._keys_by_layer()
        self._ahead: ReadAhead | None = None  # what is read, or was, for the next `layer`
        self._stream: torch.cuda.Stream | None = None
        self.owners: dict[int, PreTrainedModel] = {}  # each module's innermost model
        for model in self.model.modules():
            if isinstance(model, PreTrainedModel):
                self.owners |= {id(module): model for module in model.modules()}
        inside, base = ({id(module) for module in part.modules()} for part in (self.layers, self.model.base_model))
        self._load(REST, [module for module in self.model.base_model.modules() if id(module) not in inside])
        self.head_modules = [module for module in self.model.modules() if id(module) not in base]

    @contextmanager
    def layer(self, which: int | nn.Module, following: int | nn.Module | None = None) -> Iterator[nn.Module]:
        """The layer of that number in the files (or one of `layers`, also where the model was given fewer of them since) with its
        weights on the device; they are dropped afterwards. `following`: the layer that is asked for after it, which is read
        meanwhile (read_ahead.py)."""
        number = self._number(which)
        layer, ahead, self._ahead = self.layers[number], self._ahead, None
        try:
            if ahead and ahead.number == number:
                ahead.finish()
            else:
                if ahead:
                    ahead.drop()
                self._load_layer(number)
            if following is not None:
                self._ahead = self._read_ahead(self._number(following))
            yield layer
        except BaseException:
            if self._ahead:
                self._ahead.drop()
                self._ahead = None
            raise
        finally:
            if self._ahead:
                self._ahead.join()
            layer.to("meta")

    def _number(self, which: int | nn.Module) -> int:
        return which if isinstance(which, int) else next(n for n, layer in enumerate(self.layers) if layer is which)

    def _load_layer(self, number: int) -> None:
        self._load(number, list(self.layers[number].modules()))

    def _read_ahead(self, number: int) -> ReadAhead:
        if self.device.type == "cuda" and self._stream is None:
            self._stream = torch.cuda.Stream(self.device)
        return ReadAhead(number, self.layers[number], partial(self._load_layer, number), self._stream)

    @contextmanager
    def head(self) -> Iterator[PreTrainedModel]:
        """`model` with what stands behind its base model (the head, tied to the embeddings or not) on the device; dropped
        afterwards. Raises PollardError as `check_head` does."""
        self.check_head()
        try:
            self._load(HEAD, self.head_modules)
            yield self.model
        finally:
            for module in self.head_modules:
                module._apply(lambda tensor: tensor.to("meta"), recurse=False)  # the embeddings stay, also where they are tied

    def check_head(self) -> None:
        """Raises PollardError where the files lack a part of the head."""
        if self.missing_head:
            raise PollardError(
                f"{self.path} lacks {self.missing_head[0]} (and {len(self.missing_head) - 1} more tensors behind its decoder "
                "layers), without which there are no logits. Is a file of it missing? Fetch or write the checkpoint again.",
                code="checkpoint.tensors-missing",
            )

    def _first_dtype(self) -> torch.dtype:
        """The dtype of the first floating-point tensor, for a checkpoint whose configuration names none."""
        tensors = (file.get_tensor(key) for file in self.files for key in file.keys())  # noqa: SIM118
        return next(tensor.dtype for tensor in tensors if tensor.is_floating_point())

    def _keys_by_layer(self) -> dict[int, list[tuple[Any, str]]]:
        """Per layer the tensors of the files (file, key) that become its parameters; REST: the rest of the base model's; HEAD:
        the others.

        Raises CannotStream where a parameter of the base model comes from none.
        """
        names = NameResolver(self.model)
        keys: dict[int, list[tuple[Any, str]]] = {number: [] for number in range(HEAD, len(self.layers))}
        made: set[str] = set()
        for file in self.files:
            for key in file.keys():  # noqa: SIM118
                parameters = names.destination(key).parameters
                made.update(parameters)
                part = self._part(parameters[0])
                if part in keys:
                    keys[part].append((file, key))
        names.check_layers(key for file in self.files for key in file.keys())  # noqa: SIM118
        self.unmade = {name for name, _ in self.model.named_parameters(remove_duplicate=False)} - made
        without = [name for name, _ in self.model.named_parameters() if name in self.unmade]
        missing = [name for name in without if self._part(name) != HEAD]
        self.missing_head = [name for name in without if self._part(name) == HEAD]
        if missing:
            raise CannotStream(f"its files hold no {missing[0]} (and {len(missing) - 1} more parameters)")
        return keys

    def _part(self, name: str) -> int:
        """The number of the layer that a parameter belongs to (one past the last: layers that predict further tokens, which
        transformers does without), REST or HEAD."""
        if name.startswith(f"{self.layers_path}."):
            return int(name.removeprefix(f"{self.layers_path}.").partition(".")[0])
        base = "" if self.model.base_model is self.model else f"{self.model.base_model_prefix}."
        return REST if name.startswith(base) else HEAD

    @torch.no_grad()
    def _load(self, part: int, modules: list[nn.Module]) -> None:
        """Fills `modules`, all that belongs to this part. Raises PollardError for tensors of another shape."""
        settings = LoadStateDictConfig(
            device_map={"": self.device}, dtype=self.dtype, dtype_plan=self.model._get_dtype_plan(self.dtype),
            weight_mapping=self.conversions,
        )  # fmt: skip
        slices = {key: file.get_slice(key) for file, key in self.keys[part]}
        with without_progress_bars():
            load = partial(convert_and_load_state_dict_in_model, self.model, slices, settings)
            info, _ = explained(load, self.path, "weights")
        where = {REST: "outside its layers", HEAD: "of its head"}.get(part, f"in layer {part}")
        if info.mismatched_keys:
            name, stored, described = min(info.mismatched_keys)
            raise PollardError(
                f"{self.path}: {mismatch(name, stored, described, self.model.config)}", code="checkpoint.shape-mismatch"
            )
        if info.conversion_errors or info.error_msgs:
            broken = [*info.conversion_errors, *info.error_msgs]
            raise PollardError(
                f"{self.path}: tensors {where} are not those of its configuration: {', '.join(map(str, broken[:3]))}.",
                code="checkpoint.shape-mismatch",
            )
        if part == HEAD:
            self.model.tie_weights(missing_keys=set(self.unmade), recompute_mapping=False)  # as transformers does after loading
        missing = [name for module in modules for name, p in module.named_parameters(recurse=False) if p.is_meta]
        if missing:
            raise PollardError(
                f"{self.path}: {len(missing)} parameters {where} were not read. Please report this.",
                code="model.parameters-not-read",
            )
        self._compute_buffers(modules)

    def _compute_buffers(self, modules: Iterable[nn.Module]) -> None:
        """What no file holds (rotary frequencies, …), by the family's own initialization; weights that are there stay."""
        with init.guard_torch_init_functions():
            for module in reversed(list(modules)):  # children first, as transformers does
                for name, buffer in module.named_buffers(recurse=False):
                    if buffer.is_meta:
                        module.register_buffer(
                            name, torch.empty_like(buffer, device=self.device), name not in module._non_persistent_buffers_set
                        )
                self.owners[id(module)]._init_weights(module)


def open_layerwise(path: str, why_whole: str | None = None, revision: str | None = None) -> StreamedModel | PreTrainedModel:
    """The checkpoint, one decoder layer in memory at a time; whole where it cannot be (or `why_whole` says that it must),
    after printing the reason."""
    if load_thresholds(path, revision):
        say(f"  {path} is run without skipping experts, although it has a skipping.json")
    if why_whole is None:
        try:
            return StreamedModel(path, revision, device=device())
        except CannotStream as reason:
            why_whole = str(reason)
    say(f"  {path} is loaded whole: {why_whole}")
    return load_model(path, revision, device=device(), skipping=False)


def safetensors_files(path: str, revision: str | None = None) -> list[str]:
    """The weights of a checkpoint folder, or of a hub model once they are downloaded. Raises CannotStream where they are not
    in safetensors files, and PollardError as `checkpoint_files` does."""
    folder = checkpoint_folder(path, revision)
    report_unread_weights(str(folder))
    files = checkpoint_files(folder)
    if not files.safetensors:
        raise CannotStream("it has no safetensors files")
    return [str(file) for file in files.weights]


def _opened(file: str) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise PollardError(
            f"{file} is missing or damaged ({error}): get this file of the checkpoint again.", code="checkpoint.damaged-file"
        ) from error


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Hides transformers' progress bars, of which there would be one for every layer."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
