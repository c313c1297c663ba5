"""Which draft would make a model of a run write faster, and by how much: `pollard drafts`.

    questions of the dev slice ─► the target's own answers ─► one pass of every draft over them ─► exact counts ─┐
                                          └─► passes of the target and of the drafts, timed ─► costs ────────────┴─► speed-ups

The best few are then measured by transformers' own assisted generation.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial

import torch
from transformers import GenerationConfig, PreTrainedModel

from toolkit.cuts import Plan
from toolkit.evaluation import greedy
from toolkit.evaluation.draft_candidates import Candidate, Replay, SelfDrafts
from toolkit.evaluation.draft_costs import DraftCosts, measure_costs
from toolkit.evaluation.drafting import Draft, compare_drafting
from toolkit.evaluation.memory import free_memory
from toolkit.evaluation.speed import median_and_range
from toolkit.moe import load_config, load_model, load_tokenizer, meta_model, sizes, weight_bytes
from toolkit.moe.placement import HEADROOM
from toolkit.pipeline.run_models import FoundRun, NamedModel, chosen_models, find_run
from toolkit.pipeline.run_status import BEST_FIRST
from toolkit.pipeline.stage_names import MERGE, SELECT
from toolkit.pipeline.target_answers import questions_of, read_or_write_answers
from toolkit.recipe.roles import Role
from toolkit.report.draft_table import DraftFacts, DraftLength, DraftsFacts, MeasuredDraft
from toolkit.runtime.distributed import device, say
from toolkit.runtime.errors import PollardError
from toolkit.runtime.formatting import size

QUESTIONS = 32  # of the dev slice
MEASURED = 3  # drafts, the best of their kinds
MEASURED_ANSWERS = 3  # by each


def plan_of(run: FoundRun) -> Plan:
    """What the run keeps of the original, in the original's numbers. Raises PollardError where that is not decided yet, or not as
    the recipe says by now."""
    directory, pruning = run.directory, run.recipe.pruning
    stage, path = (MERGE, directory.dense) if pruning.form == "dense" else (SELECT, directory.plan)
    if pruning.schedule:
        path = directory.rounds / "plan.json"
    if stage not in directory.done() or not path.exists():
        why = directory.why_stale(stage) if path.exists() else "there is no plan yet"
        raise PollardError(
            f"{directory.path} has no plan that its recipe asks for ({why}): `pollard select {directory.recipe}` makes it.",
            code="drafts.no-plan",
        )
    return Plan.load(path)


def load_if_it_fits(model: NamedModel, what: str) -> PreTrainedModel:
    """Loads a model where its weights find room beside what is held: on one GPU, or else spread over all. Raises PollardError
    where they find none."""
    needed, free = HEADROOM * weight_bytes(load_config(model.path, model.revision), model.dtype), free_memory(device())
    if spread := needed > free and device().type == "cuda":
        free = sum(free_memory(torch.device("cuda", number)) for number in range(torch.cuda.device_count()))
    if needed > free:
        raise PollardError(
            f"{what} needs {size(int(needed))} of memory, and {size(free)} are free on {device()}"
            f"{'' if what.startswith('The target') else ' beside the target: k1, plan and lookup need no second copy'}.",
            code="drafts.memory",
        )
    return load_model(model.path, model.revision, model.dtype, device(), spread)


def compare_drafts(where: str, role: str = "original", questions: int = QUESTIONS) -> DraftsFacts:
    """Every draft for the model `role` of a run, replayed on its answers to the first `questions` of the dev slice, and timed.

    Raises PollardError for a run that has no such model, a task without answers to draft, a model that does not fit into memory,
    and a family that cannot take back tokens.
    """
    run = find_run(where)
    target = chosen_models(run, (role,))[0]
    examples = questions_of(run, questions)
    run.directory.lock()
    try:
        model = load_if_it_fits(target, f"The target, {target.path},")
        if getattr(model, "_is_stateful", False):
            raise PollardError(
                f"transformers cannot draft for {model.config.model_type}: it cannot take back tokens that it has read.",
                code="drafting.family",
            )
        tokenizer = load_tokenizer(run.models["original"].path, run.models["original"].revision)
        replay = read_or_write_answers(run, Role(role), model, tokenizer, examples)
        settings = greedy(model, tokenizer, replay.max_new_tokens)
        with ExitStack() as stack:
            return _Drafting(run, target, model, replay, stack).measured(settings)
    finally:
        run.directory.unlock()


class _Drafting:
    """The drafts for one target, from counts to measurements."""

    def __init__(self, run: FoundRun, target: NamedModel, model: PreTrainedModel, replay: Replay, stack: ExitStack) -> None:
        self.run, self.target, self.model, self.replay, self.stack = run, target, model, replay, stack
        self.agreement = replay.agreement(model)
        self.left_out: dict[str, str] = {}
        self.paths: dict[str, NamedModel] = {}  # of drafts that are checkpoints, by role

    def measured(self, settings: GenerationConfig) -> DraftsFacts:
        candidates = self._candidates()
        named = {f"{number}": each for number, each in enumerate(candidates)}
        models = {name: each.model for name, each in named.items() if each.model is not None}
        costs = measure_costs(self.model, models, self.replay.answers)
        drafts = {name: self._facts(each, costs, costs.drafting.get(name)) for name, each in named.items()}
        found = self._all(list(drafts.values()), costs)
        best = found.best_of_kinds[:MEASURED]
        for name, each in named.items():
            if drafts[name] in best:
                say(f"  measuring {each.kind}, {drafts[name].best.length} at a time")
                measured = self._measure(each, drafts[name].best.length, settings)
                drafts[name] = drafts[name].model_copy(update={"measured": measured})
        return self._all(list(drafts.values()), costs)

    def _candidates(self) -> list[Candidate]:
        own, found = SelfDrafts(self.model, self.replay, self.stack), list[Candidate]()
        kinds: dict[str, Callable[[], list[Candidate]]] = {
            "k1": lambda: [own.with_one_expert()],
            "plan": lambda: [own.with_plan(self._plan())],
            **{role: partial(self._checkpoint, role) for role in self._roles()},
            "blocks": own.without_blocks,
            "layers": own.without_layers,
        }
        for kind, make in kinds.items():
            say(f"  replaying {kind}")
            try:
                found += make()
            except PollardError as error:
                self.left_out[kind] = str(error)
        return [*found, Candidate("lookup", "n-grams of prompt and answer", None, self.replay.by_lookup(), shares_weights=True)]

    def _plan(self) -> Plan:
        if self.target.name != Role.ORIGINAL:
            raise PollardError(f"the {self.target.name} model is what the plan leaves", code="drafts.no-plan")
        return plan_of(self.run)

    def _roles(self) -> list[Role]:
        """Of the models that the run has made, current or not, but for the target."""
        found = [role for role in BEST_FIRST if role in self.run.models | self.run.stale and role != self.target.name]
        if not found and self.target.name == Role.ORIGINAL:
            self.left_out["model"] = f"the run has made none yet: `pollard run {self.run.directory.recipe}` does"
        return found

    def _checkpoint(self, role: Role) -> list[Candidate]:
        if role in self.run.stale:
            raise PollardError(f"{self.run.directory.path / role} is stale", code="drafts.no-model")
        named = self.run.models[role]
        if _parameters(named) >= _parameters(self.target):
            raise PollardError("it is as large as the target", code="drafts.no-model")
        draft = load_if_it_fits(named, f"The {role} model")
        self.paths[role] = named
        return [Candidate(role, "a checkpoint of its own", draft, self.replay.by_model(draft), shares_weights=False)]

    def _facts(self, candidate: Candidate, costs: DraftCosts, cost: list[float] | None) -> DraftFacts:
        verifying = {length: values[0] for length, values in costs.verifying.items()}
        lengths = [
            DraftLength(
                length=length, passes=counts.passes, drafted=counts.drafted, accepted=counts.accepted,
                predicted=counts.speed_up(verifying, cost[0] if cost else 0.0),
            )
            for length, counts in candidate.counts.items()
        ]  # fmt: skip
        named = self.paths.get(candidate.kind)
        return DraftFacts(
            kind=candidate.kind, description=candidate.description, path=named.path if named else None, lengths=lengths,
            more_bytes=weight_bytes(load_config(named.path), named.dtype) if named else 0, cost=_timing(cost) if cost else None,
        )  # fmt: skip

    def _measure(self, candidate: Candidate, length: int, settings: GenerationConfig) -> MeasuredDraft:
        ratios, same, as_replayed = list[float](), True, True
        answers = self.replay.answers[:MEASURED_ANSWERS]
        for answer in answers:
            found = compare_drafting(self.model, Draft(candidate.model, length), answer.prompt, settings)
            alone = Replay([answer], self.replay.max_new_tokens, self.replay.ends)
            counts = alone.by_model(candidate.model, [length]) if candidate.model else alone.by_lookup()
            ratios += found.ratios
            same = same and found.same
            if found.alone.tokens == answer.tokens:  # one that a stop text has cut short goes on here
                as_replayed = as_replayed and counts[length].passes == found.drafted.passes
        return MeasuredDraft(
            length=length, answers=len(answers), speed_up=_timing(median_and_range(ratios)), same=same,
            passes_as_replayed=as_replayed,
        )  # fmt: skip

    def _all(self, drafts: list[DraftFacts], costs: DraftCosts) -> DraftsFacts:
        cuda = self.model.device.type == "cuda"
        return DraftsFacts(
            run=str(self.run.directory.path), target=self.target.name, path=self.target.path,
            device=torch.cuda.get_device_name(self.model.device) if cuda else "cpu",
            dtype=str(self.model.dtype).removeprefix("torch."), threads=torch.get_num_threads(),
            questions=len(self.replay.answers), tokens=self.replay.tokens, agreement=self.agreement,
            pass_seconds=_timing(costs.seconds), verifying=_timings(costs.verifying), drafts=drafts, left_out=self.left_out,
        )  # fmt: skip


def _parameters(model: NamedModel) -> int:
    return sizes(meta_model(load_config(model.path, model.revision))).parameters


def _timing(values: list[float]) -> tuple[float, float, float]:
    middle, low, high = values
    return middle, low, high


def _timings(values: Mapping[int, list[float]]) -> dict[int, tuple[float, float, float]]:
    return {key: _timing(each) for key, each in values.items()}
