"""The layers' part of the study of cuts: the masked model with every set of layers, and what each criterion chooses."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TypedDict

from cuts_cells import RECIPE
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.calibration.layer_similarity import layer_similarities
from toolkit.cuts import masked
from toolkit.cuts.shape import ModelShape, shaped_meta_model
from toolkit.evaluation.probe import Probe, measure_probe, read_probe
from toolkit.moe import find_blocks, layers_of, load_model, load_tokenizer
from toolkit.moe.model_size import sizes
from toolkit.pipeline.calibration_data import batches_of_sources, read_sources
from toolkit.pipeline.layer_search import plan_of_layers, refusal_of
from toolkit.recipe.data import DataRecipe
from toolkit.recipe.file import dump_recipe, load_recipe
from toolkit.recipe.schema import Recipe
from toolkit.runtime.distributed import say
from toolkit.runtime.files import fingerprint_of, write_text
from toolkit.selection import choose_layers
from toolkit.selection.layer_criteria import LAYER_CRITERIA, LayerEvidence
from toolkit.tasks import DataCache


class Measured(TypedDict):
    """Of the model with some of its layers, on the dev slice. `loss` in nats per completion token."""

    parameters: int
    active_parameters: int
    loss: float
    score: float
    n: int
    interval: list[float]


class Choice(TypedDict):
    criterion: str
    seed: int
    kept: list[int]


class LayerResult(TypedDict):
    """`sets`: by the layers that are there ("0,1,3"); the one of all is the original."""

    asked: str  # a fingerprint of the recipes
    sets: dict[str, Measured]
    choices: list[Choice]


@dataclass(frozen=True)
class LayerCell:
    """One task: all sets of layers, and what every criterion chooses at every number of them, per seed."""

    subject: str
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"layers-{self.subject}"

    def path(self, study: str) -> Path:
        return Path("runs", study, f"{self.name}.json")

    def result(self, study: str) -> LayerResult | None:
        """None until all is measured."""
        path = self.path(study)
        found: LayerResult | None = json.loads(path.read_text()) if path.exists() else None
        return found if found and found["choices"] else None

    def do(self, study: str, overrides: Sequence[str]) -> None:
        """Goes on from what is in the file, which is written after every set."""
        recipes = [self._recipe(seed, overrides) for seed in self.seeds]
        asked, path = fingerprint_of([dump_recipe(recipe) for recipe in recipes]), self.path(study)
        found: LayerResult = {"asked": asked, "sets": {}, "choices": []}
        if path.exists() and (there := json.loads(path.read_text()))["asked"] == asked:
            found = there
        if found["choices"]:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        source, cache = recipes[0].model.path, DataCache()
        model, tokenizer = load_model(source, device="cpu"), load_tokenizer(source)
        probe = read_probe(DataRecipe(task=recipes[0].task), recipes[0], tokenizer, cache)
        for layers in sets_of_layers(len(layers_of(model, find_blocks(model))[1])):
            key = ",".join(map(str, layers))
            if key not in found["sets"]:
                found["sets"][key] = self._with_layers(model, tokenizer, recipes[0], probe, layers)
                say(f"{self.name}: layers {key}: {found['sets'][key]}")
                write_text(path, json.dumps(found) + "\n")
        for recipe in recipes:
            found["choices"] += _choices(model, tokenizer, recipe, cache, found["sets"])
        write_text(path, json.dumps(found) + "\n")

    def _recipe(self, seed: int, overrides: Sequence[str]) -> Recipe:
        return load_recipe(RECIPE, [f"task=playground/{self.subject}", f"seed={seed}", *overrides])

    def _with_layers(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, probe: Probe, layers: Sequence[int]
    ) -> Measured:
        with masked(model, plan_of_layers(model, layers)):
            found = measure_probe(model, tokenizer, recipe, probe)
        assert found.loss is not None and found.score is not None and found.n and found.interval, "a task's dev slice"
        size = sizes(shaped_meta_model(model.config, ModelShape(layers=tuple(layers))))
        return {
            "parameters": size.parameters, "active_parameters": size.active_parameters,
            "loss": found.loss, "score": found.score, "n": found.n, "interval": found.interval,
        }  # fmt: skip


def sets_of_layers(total: int) -> list[tuple[int, ...]]:
    """All but the empty one, the largest first."""
    return [layers for number in range(total, 0, -1) for layers in combinations(range(total), number)]


def _choices(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    cache: DataCache,
    sets: dict[str, Measured],
) -> Iterable[Choice]:
    """Of every criterion at every number of layers; `dev_loss` reads the losses that have been measured."""
    sources = read_sources(recipe, tokenizer, cache, model)
    similarities = layer_similarities(model, batches_of_sources(sources, recipe, model, int(tokenizer.pad_token_id)))

    def loss(kept: Sequence[int]) -> float:
        return sets[",".join(map(str, kept))]["loss"]

    total = len(layers_of(model, find_blocks(model))[1])
    evidence = LayerEvidence(total, refusal_of(model), similarities, loss, recipe.pruning.tokens, recipe.seed)
    for criterion in LAYER_CRITERIA:
        for number in range(total - 1, 0, -1):
            yield {"criterion": criterion, "seed": recipe.seed, "kept": choose_layers(criterion, number, evidence).kept}
