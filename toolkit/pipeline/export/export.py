"""`pollard export RUN --to FORMAT`: the reader's own tools write the model, then the reader is asked the task's questions.

runs/<name>/recovered/ ─► the reader's program ─► exports/gguf.tmp/ ─► exports/gguf/ ─► its server ─► scores ─► export.json
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.markup import escape

from toolkit.evaluation import Decoding, Questions, Scores, evaluate_with
from toolkit.evaluation.evaluate import requests_of
from toolkit.evaluation.server import ServerWriter, check_client
from toolkit.moe import checkpoint_bytes, load_config, load_tokenizer
from toolkit.moe.tokenizer import context_length
from toolkit.pipeline.export.formats import SLOTS, Format
from toolkit.pipeline.export.reader_process import run_program, serving
from toolkit.pipeline.result_files import read_answers, read_file
from toolkit.pipeline.run_models import FoundRun, NamedModel, chosen_models, find_run
from toolkit.pipeline.run_status import BEST_FIRST
from toolkit.pipeline.stage_names import EVALUATE, MADE_BY, stage_name
from toolkit.recipe.evaluation import ServerRecipe, ServersRecipe
from toolkit.recipe.roles import Role
from toolkit.report.export_facts import ExportFacts, ExportScore
from toolkit.report.paired import PairedComparison
from toolkit.report.paired_questions import Answer, compare_paired, correctness
from toolkit.runtime.distributed import say
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import explain_full_disk, fingerprint_of, fingerprint_of_path
from toolkit.runtime.run_files import bytes_of, files_below
from toolkit.runtime.signed_folders import (
    check_target,
    foreign_files,
    partial_path,
    provenance,
    remove_own,
    whole_folder,
    write_own_file,
)
from toolkit.tasks import Task

EXPORTS, FACTS, PREDICTIONS = "exports", "export.json", "predictions.jsonl"


def export(
    where: str,
    to: Format,
    role: str | None = None,
    python: str | None = None,
    install: bool = False,
    evaluate: bool = True,
    overwrite: bool = False,
) -> ExportFacts:
    """Writes a model of a run (`role`; the recovered one, or the last that the run makes, unless given) in another format into
    `exports/` of the run, and asks its reader the task's questions. What is there already is not made again.

    Raises PollardError where the run has no such model, for an environment that is not there or cannot be made, for a model that
    the reader refuses (with its reason), for what must not be replaced, and where the disk is full.
    """
    if evaluate:
        check_client()
    run = find_run(where)
    model = _chosen(run, role)
    target = run.directory.path / EXPORTS / to.name
    run.directory.lock()
    try:
        facts = _facts_of(run, model, to)
        there = read_export(target)
        if (
            there
            and there.model_copy(update={"scores": None, "bytes": 0}) == facts
            and not foreign_files(target)
            and not overwrite
        ):
            say(f"  {escape(str(target))} is there already")
            facts = there
        else:
            check_target(target, overwrite)
            facts = _write(model, to, to.environment.python(python, install), target, facts)
        if evaluate and not facts.scores:
            scores = _evaluate(run, to, to.environment.python(python, install), target)
            facts = facts.model_copy(update={"scores": _score_facts(run, model, scores)})
            write_own_file(target, PREDICTIONS, "".join(json.dumps(asdict(item)) + "\n" for item in scores.items))
            write_own_file(target, FACTS, facts.model_dump_json(indent=1) + "\n")
    finally:
        run.directory.unlock()
    return facts


def read_export(folder: Path) -> ExportFacts | None:
    """The facts of a finished export; None where there is none."""
    return read_file(folder / FACTS, ExportFacts.model_validate_json)


def _chosen(run: FoundRun, role: str | None) -> NamedModel:
    """The recovered one, unless a role is named. Raises PollardError for one that the run does not have."""
    if not role and Role.RECOVERED not in run.models | run.stale:
        better = [found for found in BEST_FIRST if found in run.models]
        others = f" --model {better[0]} exports what is there." if better else ""
        raise PollardError(
            f"{run.directory.path} has no recovered/: `pollard run {run.directory.recipe}` makes it.{others}",
            code="export.not-recovered",
        )
    model = chosen_models(run, (role or Role.RECOVERED,))[0]
    if not Path(model.path).is_dir():
        raise PollardError(
            f"{model.path} is no folder: readers take models that lie on this disk. Download it, or export what the run made.",
            code="export.not-local",
        )
    return model


def _facts_of(run: FoundRun, model: NamedModel, to: Format) -> ExportFacts:
    """Without what only the export shows."""
    made = run.directory.entries().get(MADE_BY[Role(model.name)], {}) if model.name in MADE_BY else {}
    return ExportFacts(
        name=to.name,
        model=model.name,
        made_from=made.get("id") or fingerprint_of(fingerprint_of_path(model.path)),
        reader=to.environment.name,
        requirements=(*to.environment.requirements, *([to.environment.source] if to.environment.source else [])),
        bytes=0,
        source_bytes=checkpoint_bytes(model.path, model.revision),
    )


def _write(model: NamedModel, to: Format, python: Path, target: Path, facts: ExportFacts) -> ExportFacts:
    say(f"  {to.environment.name} writes {escape(str(target))} from {escape(model.path)}")
    log = target.with_name(f"{target.name}.log")
    signature = provenance(f"{to.name} export", model.path, model.revision)
    started = time.monotonic()
    with explain_full_disk(target, lambda: "Nothing is left of it: make room, and say it again."):
        target.parent.mkdir(exist_ok=True)
        with removed_on_failure(target), whole_folder(target, signature) as partial:
            program, arguments = to.writer(python, Path(model.path), partial)
            run_program(python, program, arguments, log, f"{to.environment.name} cannot write {model.path} as {to.name}")
            written = [file for file in files_below(partial) if file.suffix in (".gguf", ".safetensors")]
            facts = facts.model_copy(update={"bytes": bytes_of(written)})
            (partial / FACTS).write_text(facts.model_dump_json(indent=1) + "\n", encoding="utf-8")
    log.unlink(missing_ok=True)
    say(f"  written in {time.monotonic() - started:.0f} s")
    return facts


@contextmanager
def removed_on_failure(target: Path) -> Iterator[None]:
    """Where the block fails, what it wrote of `target` goes: no program goes on from there."""
    try:
        yield
    except BaseException:
        if (partial := partial_path(target)).is_dir() and not foreign_files(partial):
            remove_own(partial)
        raise


def _evaluate(run: FoundRun, to: Format, python: Path, target: Path) -> Scores:
    """The scores of what the reader answers to the questions that the run's models were asked."""
    recipe, settings = run.recipe, run.recipe.evaluation
    task = Task(recipe.task)
    questions = Questions.of(task, settings.split, settings.examples)
    decoding = Decoding(settings.max_new_tokens, settings.temperature, settings.samples, tuple(task.stop), recipe.seed)
    original = run.models[Role.ORIGINAL]
    tokenizer = load_tokenizer(original.path, original.revision)
    longest = max(len(request.prompt) for request in requests_of(tokenizer, questions.examples, decoding))
    context = context_length(load_config(original.path, original.revision), tokenizer)
    program, arguments = to.server(target, longest + settings.max_new_tokens + 1)
    say(f"  {to.environment.name} answers {len(questions.examples):,} questions")
    with TemporaryDirectory() as scratch:
        log = Path(scratch) / "server.log"
        with serving(python, program, arguments, log, f"{to.environment.name} cannot open {target}") as url:
            asking = ServersRecipe(concurrency=SLOTS, timeout=settings.servers.timeout)
            writer = ServerWriter(ServerRecipe(url=url), asking, tokenizer, decoding)
            scores = evaluate_with(writer, tokenizer, questions, decoding, context=context)
    scores.check()
    return scores


def _score_facts(run: FoundRun, model: NamedModel, scores: Scores) -> ExportScore:
    """Compared with the run's own evaluation of the model, where that is current and of the same questions."""
    there: list[Answer] = []
    if stage_name(EVALUATE, Role(model.name)) in run.directory.done():
        there = read_answers(run.directory.evaluation / f"{model.name}.predictions.jsonl")
    before = correctness(there)
    now = correctness([Answer(item.index, item.prompt, item.gold, item.prediction, item.correct) for item in scores.items])
    pair = PairedComparison[str].of("export", model.name, compare_paired(now, before)) if now.keys() == before.keys() else None
    low_high = scores.interval
    return ExportScore(
        score=scores.score, correct=scores.correct, n=scores.n, interval=low_high, seconds=scores.facts.seconds, pair=pair
    )
