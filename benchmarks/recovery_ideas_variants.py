"""What `recovery_ideas_study.py` compares: in five parts the variants of one idea beside what they have to beat, and in a sixth
the fullest variant of each from a refitted start."""

from dataclasses import dataclass, replace
from pathlib import Path

from fine_grained import FINE_GRAINED

TASKS = Path("data", "playground")
SUBJECTS = ("arithmetic", "sorting")
STEPS = 300
LAYER_STEPS = {3: 300, 2: 900}
"""By layers that stay: with two, 300 steps leave `arithmetic` unlearnt (docs/cuts-study.md: 5.5 %)."""
SECONDS = {3: 1.5, 2: 1.3}
"""By layers that stay: what a training with a teacher and seams takes, the teacher's cache included, as a multiple of one
without. In seconds of one core (2026-12-01) a cache takes 31; a step 0.19 with three layers and 0.13 with two, with seams and
without alike."""
RATE, ADAPTER_RATE, ROUTER_RATE = 1e-3, 3e-3, 1e-2
"""The best on the dev slice for full, lora and router (docs/recovery.md)."""
REFITTED_RATE = 0.1
"""Of these: what is good already wants a smaller rate (docs/refit.md)."""
EQUAL_RANKS = {"each": 4, "shared": 10}
"""With 4 experts adapters have as many numbers so: on experts and on attention together."""
FEW = 100


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
    Part("e", "Adapters for each expert, or shared", "shared, rank 10"),
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
    answers, questions = "{self_generated: true, samples: 8}", "{self_generated: true, questions: 2000, shown: 0}"
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
    grow = (task("sorting"), f"pruning.grow={{onto: {FIRST_MODEL}, keep: 6}}", "pruning.keep=6", "finetuning.method=new")
    mix = (task("arithmetic", both), "pruning.keep=6", _steps(2 * STEPS))
    return [
        first,
        continued,
        Variant("d", "grown", "new", "… grown by 2 experts for sorting", grow, against=continued.name, models=MEASURED_FIRST[1:]),
        Variant("d", "mix", "full", "6 experts, a mix of both from the start", mix, against=continued.name),
    ]


def _adapters() -> list[Variant]:
    def lora(slug: str, title: str, rank: int, against: str | None = None) -> Variant:
        keys = ("finetuning.method=lora", f"finetuning.lora.rank={rank}", f"finetuning.lora.alpha={2 * rank}")
        shared = () if slug == "each" else ("finetuning.lora.experts=shared",)
        return Variant("e", "experts4", slug, title, (*keys, *shared), ADAPTER_RATE, against)

    shared = lora("shared", "shared, rank 10", EQUAL_RANKS["shared"])
    return [
        shared,
        lora("each", "for each expert, rank 4", EQUAL_RANKS["each"], shared.name),
        lora("shared-more", "shared, rank 16: equal on experts, more on attention", 16, shared.name),
    ]


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
