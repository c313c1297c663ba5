"""Finished layers of a refit, each in a file of its own, until the checkpoint is written: an interrupted refit goes on from them.

refitted.tmp/layer-00003.refit    the weights that were refit, by their names in the model; its metadata says how
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from toolkit.recovery.refit.results import BlockRefit
from toolkit.runtime.distributed import on_main
from toolkit.runtime.files import RESUME_ADVICE, explain_full_disk


class LayerFiles:
    """`dtype`: of the checkpoint, in which weights are kept."""

    def __init__(self, folder: Path, layers_path: str, dtype: torch.dtype) -> None:
        self.folder, self.layers_path, self.dtype = folder, layers_path, dtype

    def path(self, number: int) -> Path:
        return self.folder / f"layer-{number:05}.refit"

    def load(self, number: int, layer: nn.Module) -> BlockRefit | None:
        """Puts the weights of a finished layer into `layer`; None where it is not finished."""
        path = self.path(number)
        if not on_main(path.exists):
            return None
        with safe_open(path, framework="pt") as file:
            refit = BlockRefit(**json.loads(file.metadata()["refit"]))
        for name, weight in load_file(path).items():
            layer.get_parameter(self._inside(number, name)).data.copy_(weight)
        return refit

    def save(self, number: int, refit: BlockRefit, layer: nn.Module) -> None:
        on_main(lambda: self._save(number, refit, layer))

    def _save(self, number: int, refit: BlockRefit, layer: nn.Module) -> None:
        weights = {name: layer.get_parameter(self._inside(number, name)).data for name in refit.weights if refit.changed}
        kept = {name: weight.to(self.dtype).cpu().contiguous() for name, weight in weights.items()}
        partial = self.path(number).with_suffix(".tmp")
        with explain_full_disk(self.folder, lambda: RESUME_ADVICE):
            save_file(kept, partial, metadata={"refit": json.dumps(asdict(refit))})
        partial.replace(self.path(number))

    def _inside(self, number: int, name: str) -> str:
        return name.removeprefix(f"{self.layers_path}.{number}.")

    def paths(self) -> list[Path]:
        """Those of finished layers."""
        return sorted(self.folder.glob("layer-*.refit"))

    def remove(self) -> None:
        for path in [*self.paths(), *self.folder.glob("stored-*.refit")]:
            path.unlink()
