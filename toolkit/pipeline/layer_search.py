"""Asks the model of a run for what a layer criterion needs, and lets it choose.

    layers/losses.json               dev_loss: the loss of every set of layers that was measured
    layers/similarities.safetensors  influence, angular: how alike the hidden states before and after layers are

Both serve every number of layers, and a search that was killed goes on from them.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedModel

from toolkit.calibration.layer_similarity import layer_similarities
from toolkit.cuts import masked
from toolkit.cuts.layer_similarities import LayerSimilarities
from toolkit.evaluation import Loss, completion_loss, evaluate
from toolkit.evaluation.probe import check_probe, read_probe
from toolkit.moe import StreamedModel, find_blocks, layers_of, meta_model
from toolkit.moe.placement import with_layers, with_model
from toolkit.pipeline.calibration_data import batches_of_sources, read_sources
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.fingerprints import LayerFingerprints
from toolkit.pipeline.layer_choice import ChosenLayers, DevAnswers
from toolkit.pipeline.layer_refusal import plan_of_layers, refusal_of
from toolkit.pipeline.loss_file import LossFile
from toolkit.recipe.data import DataRecipe
from toolkit.runtime.distributed import on_main, say
from toolkit.runtime.formatting import loss as nats
from toolkit.runtime.formatting import ranges
from toolkit.selection import LayerChoice, LayerEvidence, choose_layers, evidence_needed
from toolkit.tasks import Task

DEV_QUESTIONS = 32  # that a task whose answers are written is asked, with all layers and with those that stay
IN_ONE_PIECE = "decoder layers are left out of a whole model"


class LayerSearch:
    """The choice of layers of one run."""

    def __init__(self, context: RunContext) -> None:
        self.context, self.criterion = context, context.recipe.pruning.layer_criterion
        layers = context.cuts.layers
        assert layers is not None, "the recipe keeps all layers"
        self.wanted = list(layers) if isinstance(layers, tuple) else layers
        """How many layers stay, or which."""
        self.needs = evidence_needed(self.criterion, self.wanted, context.cuts.depth)

    @property
    def measurements(self) -> int:
        """Of the dev loss, at most: with all layers, then in each turn without each of those that are left."""
        return 1 + sum(range(self.wanted + 1, self.context.cuts.depth + 1)) if isinstance(self.wanted, int) else 0

    def run(self) -> ChosenLayers:
        """On every rank. Raises PollardError where the model cannot do without so many layers."""
        recipe, source, folder = self.context.recipe, self.context.source, self.context.directory.layer_measurements
        fingerprints = self.context.fingerprints.layers
        assert fingerprints is not None
        on_main(lambda: folder.mkdir(exist_ok=True))
        if self.needs == "dev loss":
            search = _DevLossSearch(self, fingerprints)
            return with_model(recipe, source.path, source.revision, search.run, IN_ONE_PIECE)
        similarities = self._similarities(folder / "similarities.safetensors", fingerprints)
        model = meta_model(self.context.config_of(source))
        return ChosenLayers.of(self.choose(model, similarities=similarities), model)

    def choose(
        self,
        model: PreTrainedModel,
        similarities: LayerSimilarities | None = None,
        loss: Callable[[Sequence[int]], float] | None = None,
    ) -> LayerChoice:
        """`model`: whose layers are chosen; it may be without weights."""
        recipe, total = self.context.recipe, len(layers_of(model, find_blocks(model))[1])
        evidence = LayerEvidence(total, refusal_of(model), similarities, loss, recipe.pruning.tokens, recipe.seed)
        return choose_layers(self.criterion, self.wanted, evidence)

    def _similarities(self, path: Path, fingerprints: LayerFingerprints) -> LayerSimilarities | None:
        """Those of the file, where it holds this model's on these examples; None where the criterion reads none."""
        if self.needs != "similarities":
            return None
        if there := on_main(lambda: LayerSimilarities.load(path, fingerprints.similarities)):
            return there
        recipe, source = self.context.recipe, self.context.source
        answering = "it answers the prompts itself" if recipe.calibration.self_generated else None
        found = with_layers(recipe, source.path, source.revision, self._compare, answering)
        on_main(lambda: found.save(path, fingerprints.similarities))
        return found

    def _compare(self, model: PreTrainedModel | StreamedModel) -> LayerSimilarities:
        recipe, tokenizer = self.context.recipe, self.context.tokenizer
        sources = read_sources(recipe, tokenizer, self.context.data, model)
        return layer_similarities(model, batches_of_sources(sources, recipe, model, int(tokenizer.pad_token_id)))


class _DevLossSearch:
    """One model in memory, and every set of layers is that model masked."""

    def __init__(self, search: LayerSearch, fingerprints: LayerFingerprints) -> None:
        self.search, self.context, self.fingerprint = search, search.context, fingerprints.losses

    def run(self, model: PreTrainedModel) -> ChosenLayers:
        recipe, tokenizer, path = self.context.recipe, self.context.tokenizer, self.context.directory.layer_measurements
        dev = DataRecipe(task=recipe.task, examples=recipe.calibration.examples)
        probe = read_probe(dev, recipe, tokenizer, self.context.data)

        def measure(kept: Sequence[int]) -> Loss:
            with masked(model, plan_of_layers(model, kept)):
                return completion_loss(model, probe.batches)

        losses = DevLosses(path / "losses.json", self.fingerprint, measure, self.search.measurements)
        chosen = ChosenLayers.of(self.search.choose(model, loss=losses), model)
        chosen.dev_examples = sum(len(batch["input_ids"]) for batch in probe.batches)
        if is_generative(self.context.task):
            plan = plan_of_layers(model, chosen.kept)
            before = self._right(model)
            with masked(model, plan):
                chosen.dev_answers = DevAnswers(n=before[1], before=before[0], after=self._right(model)[0])
        return chosen

    def _right(self, model: PreTrainedModel) -> tuple[int, int]:
        """How many of the first dev questions it answers right, and how many these are."""
        settings, task = self.context.recipe.evaluation, self.context.task
        batch_size, new = settings.batch_size, settings.max_new_tokens
        scores = evaluate(model, self.context.tokenizer, task, "dev", DEV_QUESTIONS, batch_size, new)
        return scores.correct, scores.n


class DevLosses:
    """Measures the dev loss of sets of layers, on every rank. What has been measured is kept in a file and never measured
    again."""

    def __init__(self, path: Path, fingerprint: str, measure: Callable[[Sequence[int]], Loss], most: int) -> None:
        """`fingerprint`: of the model and of what the loss is measured on; `most`: how many measurements there are to be."""
        self.file, self.measure, self.most, self.asked = LossFile(path, fingerprint), measure, most, 0
        if known := len(self.file.losses):
            say(f"  {known:,} losses have been measured already")

    def __call__(self, kept: Sequence[int]) -> float:
        key, started = ",".join(map(str, kept)), time.monotonic()
        self.asked += 1
        if key not in self.file.losses:
            self.file.add(key, self.measure(kept).mean)
            seconds = time.monotonic() - started
            say(f"  {self.asked}/{self.most} layers {ranges(kept)}: loss {nats(self.file.losses[key])} [dim]{seconds:.1f} s[/]")
        return self.file.get(key)


def check_dev_slice(context: RunContext) -> None:
    """Raises PollardError where the layers, or the shape, are chosen on the dev slice, and there is none."""
    by_loss = context.cuts.layers is not None and LayerSearch(context).needs == "dev loss"
    if by_loss or context.asked.pruning.fit:
        check_probe(DataRecipe(task=context.recipe.task), context.data)


def is_generative(task: Task) -> bool:
    """Whether answers are written, and not chosen among labels or choices."""
    return not task.preset.labels and not any(example.choices for example in task.examples("train")[:1])
