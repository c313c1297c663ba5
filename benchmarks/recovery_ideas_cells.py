"""The cells of `recovery_ideas_study.py`: in five parts the variants of one idea beside what they have to beat, and in a sixth
the fullest variant of each from a refitted start."""

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

from fine_grained import FINE_GRAINED
from safetensors import safe_open
from study import PipelineCell

from toolkit.pipeline.run_directory import RunDirectory
from toolkit.recipe.file import load_recipe
from toolkit.runtime.files import fingerprint_of, write_text

RECIPE = "recipes/study/recovery-ideas.yaml"
TASKS = Path("data", "playground")
STEPS = 300
LAYER_STEPS = {3: 300, 2: 900}
"""By layers that stay: with two, 300 steps leave `arithmetic` unlearnt (docs/cuts-study.md: 5.5 %)."""
SECONDS = {3: 1.6, 2: 1.6}
"""By layers that stay: the seconds of a training with a teacher and seams, the teacher's cache included, as a multiple of those
of one without."""
RATE, ADAPTER_RATE, ROUTER_RATE = 1e-3, 3e-3, 1e-2
"""The best on the dev slice for full, lora and router (docs/recovery.md)."""
REFITTED_RATE = 0.1
"""Of these: what is good already wants a smaller rate (docs/refit.md)."""
FEW, DATA_OF_FEW = 100, Path("runs", "few-examples")


@dataclass(frozen=True)
class Part:
    letter: str
    title: str
    compared_with: str
    """What the last column of its table subtracts."""


PARTS = (
    Part("a", "Fewer layers: what the original's hidden states add", "cross entropy, as many steps"),
    Part("b", f"{FEW} training examples", "all 8,000 examples, KL"),
    Part("c", "Gradients for experts that a token did not choose", "the same without"),
    Part("d", "A second task", "continued fine-tuning"),
    Part("e", "Adapters for each expert, or shared", "shared"),
    Part("f", "From a refitted start", "the same without refit"),
)


@dataclass(frozen=True)
class Variant:
    """One row of a part's table. `place`: what is cut, and of what; the variants of one place share a run directory. `keys` of
    the recipe may contain FEW_FILE and FIRST_MODEL."""

    part: str
    place: str
    slug: str
    title: str
    keys: tuple[str, ...]
    rate: float = RATE
    against: str | None = None
    """The name of the variant that it is compared with."""
    models: tuple[str, ...] = ("recovered",)
    """What of it is evaluated."""

    @property
    def name(self) -> str:
        return f"{self.part}-{self.place}-{self.slug}"


FEW_FILE, FIRST_MODEL = "<few>", "<first>"
"""Stand in keys for the file of few examples of a cell's seed, and for the model of part d that has learned the first task."""
TEACHER = "finetuning.teacher=original"
MEASURED_FIRST = ("original", "pruned", "recovered")


def _steps(steps: float) -> str:
    return f"finetuning.trainer.max_steps={steps:.0f}"


def _fewer_layers(layers: int) -> list[Variant]:
    place, steps = f"layers{layers}", LAYER_STEPS[layers]
    cut = ("pruning.keep=null", "pruning.tokens=all", f"pruning.layers={layers}")
    reference = Variant(
        "a", place, "ce", f"{layers} layers: cross entropy", (*cut, _steps(steps)), models=("pruned", "recovered")
    )
    longer = round(steps * SECONDS[layers], -1)
    variants = [
        ("longer", f"cross entropy, {longer:,.0f} instead of {steps} steps: the seconds of all three", (*cut, _steps(longer))),
        ("kl", "cross entropy, KL", (*reference.keys, TEACHER)),
        ("seam", "cross entropy, seams", (*reference.keys, TEACHER, "finetuning.distillation={weight: 0, hidden: 0.1}")),
        ("all", "cross entropy, KL, seams", (*reference.keys, TEACHER, "finetuning.distillation={hidden: 0.1}")),
    ]
    rows = [
        Variant("a", place, slug, f"{layers} layers: {title}", keys, against=reference.name) for slug, title, keys in variants
    ]
    return [reference, *rows]


def _few_examples() -> list[Variant]:
    few = f"{{name: playground/arithmetic, train: {FEW_FILE}, dev_examples: 1}}"
    answers, questions = "{self_generated: true, samples: 8}", "{self_generated: true, questions: 2000}"
    student, twice = (f"{{self_generated: true, samples: 4, writer: student{rounds}}}" for rounds in ("", ", rounds: 2"))

    def data(*sources: str) -> tuple[str, ...]:
        return TEACHER, f"finetuning.data=[{', '.join((f'{{task: {few}}}', *sources))}]"

    variants = [
        ("sft", f"{FEW} examples", ()),
        ("teacher", f"{FEW} examples, KL", (TEACHER,)),
        ("answers", "… and the original's answers", data(answers)),
        ("questions", "… and 2,000 questions of the original", data(answers, questions)),
        ("student", "… and the student's answers", data(answers, questions, student)),
        ("rounds", "the same in two rounds of half the steps", (*data(answers, questions, twice), _steps(STEPS / 2))),
    ]
    ceiling = Variant("b", "everything", "teacher", "all 8,000 examples, KL", (TEACHER,), models=MEASURED_FIRST)
    told = [
        Variant(
            "b", "few", slug, title, (f"task={few}", f"calibration.examples={FEW}", *keys), against=ceiling.name,
            models=("pruned", "recovered") if slug == "sft" else ("recovered",),
        )
        for slug, title, keys in variants
    ]  # fmt: skip
    return [*told, Variant("b", "everything", "sft", "all 8,000 examples", (), against=ceiling.name), ceiling]


def _router_gradient() -> list[Variant]:
    model = (f"model={FINE_GRAINED.model}", "pruning.keep=16")
    trainings = [
        ("full", f"full, {STEPS} steps", (), RATE),
        ("short", "full, 90 steps", (_steps(90),), RATE),
        ("router", f"router, {STEPS} steps", ("finetuning.method=router",), ROUTER_RATE),
    ]
    found = []
    for slug, title, keys, rate in trainings:
        models = MEASURED_FIRST if slug == "full" else ("recovered",)
        without = Variant("c", "fine-grained", f"{slug}-active", title, (*model, *keys), rate, models=models)
        title, keys = f"{title}, gradient to all", (*without.keys, "finetuning.router_gradient=all")
        found += [without, Variant("c", "fine-grained", f"{slug}-all", title, keys, rate, without.name)]
    return found


def _second_task() -> list[Variant]:
    def task(name: str, *more: str) -> str:
        tests = ", ".join(str(TASKS / subject / "test.jsonl") for subject in SUBJECTS)
        return f"task={{{', '.join([f'name: playground/{name}', f'test: [{tests}]', *more])}}}"

    both = f"train: [{', '.join(str(TASKS / subject / 'train.jsonl') for subject in SUBJECTS)}]"
    first = Variant("d", "first", "alone", "4 experts, arithmetic alone", (task("arithmetic"),), models=MEASURED_FIRST)
    keys = (task("sorting"), f"model={FIRST_MODEL}")
    continued = Variant("d", "continued", "full", "… continued with sorting", keys)
    grow = (task("sorting"), f"pruning.grow={{onto: {FIRST_MODEL}, keep: 6}}", "pruning.keep=null", "finetuning.method=new")
    mix = (task("arithmetic", both), "pruning.keep=6", _steps(2 * STEPS))
    return [
        first,
        continued,
        Variant("d", "grown", "new", "… grown by 2 experts for sorting", grow, against=continued.name, models=MEASURED_FIRST[1:]),
        Variant("d", "mix", "full", "6 experts, a mix of both from the start", mix, against=continued.name),
    ]


SUBJECTS = ("arithmetic", "sorting")


def _adapters() -> list[Variant]:
    lora = ("finetuning.method=lora", "finetuning.lora.rank=4", "finetuning.lora.alpha=8")
    shared = Variant("e", "experts4", "shared", "shared", (*lora, "finetuning.lora.experts=shared"), ADAPTER_RATE)
    each = Variant("e", "experts4", "each", "for each expert", lora, ADAPTER_RATE, shared.name)
    return [shared, each]


def _refitted(variant: Variant) -> Variant:
    return replace(
        variant, part="f", slug=f"{variant.slug}-refit", title=f"({variant.part}) {variant.title}",
        keys=(*variant.keys, "pruning.refit=true"), rate=variant.rate * REFITTED_RATE, against=variant.name,
        models=("refitted", "recovered"),
    )  # fmt: skip


OWN = [*_few_examples(), *_fewer_layers(3), *_fewer_layers(2), *_second_task(), *_router_gradient(), *_adapters()]
FULLEST = ("b-few-student", "a-layers3-all", "a-layers2-all", "d-mix-full", "c-fine-grained-full-all", "e-experts4-each")
VARIANTS = (*OWN, *(_refitted(variant) for variant in OWN if variant.name in FULLEST))
"""Those that tell most first."""


class IdeaResult(TypedDict):
    """What a cell measured. `models`: by role and task, a text with a 1 for every question answered rightly."""

    seconds: Mapping[str, float]  # by stage
    steps: int
    examples: int  # trained on
    adapters: int  # numbers in them; 0 without
    models: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class IdeaCell(PipelineCell):
    variant: Variant
    seed: int
    recipe = RECIPE
    what = ("toolkit/train.py",)

    @property
    def name(self) -> str:
        return f"{self.variant.name}-seed{self.seed}"

    @property
    def home(self) -> str:
        """The letter of the part whose run directory it shares: from a refitted start, that of the same variant without."""
        variant = self.variant
        return variant.against[0] if variant.part == "f" and variant.against else variant.part

    def run(self, study: str) -> str:
        return f"{study}-{self.home}-{self.variant.place}-seed{self.seed}"

    def overrides(self) -> list[str]:
        return [
            f"seed={self.seed}", *self.variant.keys, f"finetuning.trainer.learning_rate={self.variant.rate:g}",
            f"evaluation.models=[{','.join(self.variant.models)}]",
        ]  # fmt: skip

    def arguments(self, study: str, overrides: Sequence[str]) -> list[str]:
        first = Path("runs", f"{study}-d-first-seed{self.seed}", "recovered")
        stand_for = {FEW_FILE: few_examples(self.seed), FIRST_MODEL: first}
        arguments = super().arguments(study, overrides)
        for name, path in stand_for.items():
            arguments = [argument.replace(name, str(path)) for argument in arguments]
        return arguments

    def asked(self, arguments: Sequence[str]) -> str:
        """Of what the recipe says, without defaults: keys that the toolkit learns later leave finished cells alone."""
        return fingerprint_of(load_recipe(self.recipe, arguments).model_dump(mode="json", exclude_unset=True))

    def result(self, study: str) -> IdeaResult | None:
        found: IdeaResult | None = self.stored(study)
        return found

    def measured(self, run: RunDirectory) -> IdeaResult:
        done = run.done()
        return {
            "seconds": {stage: entry["seconds"] for stage, entry in done.items() if not stage.startswith("evaluate")},
            "steps": done["recover"]["steps"],
            "examples": done["recover"]["examples"],
            "adapters": _numbers_in(run.path / "adapter"),
            "models": {role: _right_by_task(run.evaluation / f"{role}.predictions.jsonl") for role in self.variant.models},
        }


def _right_by_task(predictions: Path) -> dict[str, str]:
    """Part d asks the questions of two tasks in one test set."""
    found = dict.fromkeys(SUBJECTS, "")
    for line in predictions.read_text().splitlines():
        asked = json.loads(line)
        found[SUBJECTS[asked["prompt"].startswith("Sort these words")]] += str(int(asked["correct"]))
    return {subject: right for subject, right in found.items() if right}


def _numbers_in(adapter: Path) -> int:
    numbers = 0
    for file in adapter.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            numbers += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118 (no mapping)
    return numbers


def few_examples(seed: int) -> Path:
    """A file with FEW training examples of `arithmetic` and one for a dev slice, which nothing is chosen by. All that part b
    knows of the task: calibration, training and questions read nothing else."""
    path = DATA_OF_FEW / f"seed{seed}.jsonl"
    if not path.exists():
        lines = (TASKS / "arithmetic" / "train.jsonl").read_text().splitlines()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "\n".join(random.Random(seed).sample(lines, FEW + 1)) + "\n")
    return path
