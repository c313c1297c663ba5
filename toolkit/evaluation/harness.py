"""lm-evaluation-harness around a model that is loaded already: what pruning for one task costs on others.

    evaluation:
      harness: [arc_easy, hellaswag]

Its own tasks and prompts, as they are published, without a chat template; each rank answers its share of the questions.
"""

import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.runtime.distributed import barrier, gather, on_main, rank, world_size
from toolkit.runtime.errors import PollardError, did_you_mean

BOOTSTRAP_SAMPLES = 1000  # for the standard errors that have no formula


@cache
def _tasks(names: tuple[str, ...], folder: str | None) -> Any:
    """lm-eval's index of tasks; of the folder's alone where that holds all of them, since lm-eval's own take long to read."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise PollardError(
            f"evaluation.harness needs lm-evaluation-harness, which is not installed ({error}): "
            "./launch.sh setup lm-eval, or pip install 'pollard-moe[lm-eval]'.",
            code="harness.not-installed",
        ) from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if folder and not Path(folder).is_dir():
        raise PollardError(
            f"evaluation.harness_tasks is {folder}, which is no folder: give one with lm-eval's YAML files.",
            code="harness.no-folder",
        )
    if folder:
        own = TaskManager(include_path=folder, include_defaults=False)
        if set(names) <= set(own.all_tasks):
            return own
    return TaskManager(include_path=folder)


def check_harness(names: list[str], folder: str | None) -> None:
    """Raises PollardError where lm-eval is missing, does not know a task, or cannot load its data."""
    tasks = _tasks(tuple(names), folder)
    for name in names:
        if name not in tasks.task_index:
            raise PollardError(
                f"evaluation.harness: lm-evaluation-harness has no task {name!r}{did_you_mean(name, tasks.all_tasks)} "
                "`lm-eval ls tasks` lists them; a folder with YAML files of your own is evaluation.harness_tasks.",
                code="harness.no-task",
            )
    try:
        tasks.load(list(names))
    except Exception as error:  # tasks are other people's code and data: each error means the same to a user
        raise PollardError(
            f"evaluation.harness: the data of {', '.join(names)} cannot be loaded ({type(error).__name__}: {error}). Check the "
            "network and the hub's access rights, or leave that task out.",
            code="harness.data",
        ) from None


@dataclass(frozen=True)
class Metric:
    value: float
    error: float | None  # standard error


@dataclass(frozen=True)
class HarnessResult:
    """A task's number of questions, of solved examples before each, and its metrics by name; what a model must do
    (lm-eval's output_type: multiple_choice, generate_until, …; None for a group of tasks of several kinds)."""

    n: int | None
    shots: int | None
    metrics: dict[str, Metric]
    output_type: str | None = None


def run_harness(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, names: list[str], folder: str | None, batch_size: int
) -> dict[str, HarnessResult]:
    """The results by task, the same on every rank."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    class OnAllRanks(HFLM):
        """HFLM keeps a model that it has not loaded itself to one process; here all ranks share the questions."""

        def __init__(self) -> None:
            super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)  # type: ignore[arg-type]
            self._rank, self._world_size = rank(), world_size()

        def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
            return torch.stack(gather(tensor.cpu()))

        def gather_object(self, obj: Any, dst: int = 0) -> Any:
            gathered = gather(obj)
            return gathered if rank() == dst else None

        def barrier(self) -> None:
            barrier()

    tasks = _tasks(tuple(names), folder)
    output = simple_evaluate(
        OnAllRanks(),
        tasks=list(names),
        task_manager=tasks,
        log_samples=False,
        bootstrap_iters=BOOTSTRAP_SAMPLES,
        batch_size=batch_size,
    )
    return on_main(lambda: _read(output))


def _read(output: Any) -> dict[str, HarnessResult]:
    """lm-eval writes {"acc,none": 0.5, "acc_stderr,none": 0.02, "alias": …}; a filter's name stays where there is one."""
    results = {}
    for task, values in output["results"].items():
        metrics = {}
        for key, value in values.items():
            metric, _, filtered = key.partition(",")
            if not isinstance(value, int | float) or metric.endswith("_stderr") or not filtered:
                continue
            error = values.get(f"{metric}_stderr,{filtered}")
            name = metric if filtered == "none" else f"{metric} ({filtered})"
            metrics[name] = Metric(_plain(value), _plain(error) if isinstance(error, int | float) else None)
        count = output.get("n-samples", {}).get(task, {}).get("effective")
        results[task] = HarnessResult(count, output.get("n-shot", {}).get(task), metrics, _output_type(output, task))
    return results


def _output_type(output: Any, task: str) -> str | None:
    """Of a task, or of all the tasks in a group where they agree."""
    if members := output.get("group_subtasks", {}).get(task):
        kinds = {_output_type(output, member) for member in members}
        return kinds.pop() if len(kinds) == 1 else None
    found = output.get("configs", {}).get(task, {}).get("output_type")
    return str(found) if found else None


def _plain(number: Any) -> Any:
    """numpy's numbers as Python's."""
    return number.item() if hasattr(number, "item") else number
