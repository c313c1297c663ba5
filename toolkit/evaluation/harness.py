"""lm-evaluation-harness around a model that is loaded already: what pruning for one task costs on others.

    evaluation:
      harness: [arc_easy, hellaswag]

Its own tasks and prompts, as they are published, without a chat template; each rank answers its share of the questions.
"""

import json
import logging
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.runtime.distributed import barrier, gather, on_main, rank, world_size
from toolkit.runtime.errors import PollardError, did_you_mean

BOOTSTRAP_SAMPLES = 1000  # times, for the standard errors that have no formula


@cache
def _tasks(names: tuple[str, ...], folder: str | None) -> Any:
    """lm-eval's index of tasks: of the folder's own where they are enough, for all of its own take long to read."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise PollardError(
            f"evaluation.harness needs lm-evaluation-harness, which is not installed ({error}): "
            "./launch.sh setup lm-eval, or pip install 'pollard-moe[lm-eval]'."
        ) from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if folder and not Path(folder).is_dir():
        raise PollardError(f"evaluation.harness_tasks is {folder}, which is no folder: give one with lm-eval's YAML files.")
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
                "`lm-eval ls tasks` lists them; a folder with YAML files of your own is evaluation.harness_tasks."
            )
    try:
        tasks.load(list(names))
    except Exception as error:  # tasks are other people's code and data: each error means the same to a user
        raise PollardError(
            f"evaluation.harness: the data of {', '.join(names)} cannot be loaded ({type(error).__name__}: {error}). Check the "
            "network and the hub's access rights, or leave that task out."
        ) from None


def run_harness(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, names: list[str], folder: str | None, batch_size: int
) -> dict[str, Any]:
    """Per task its number of questions and its metrics, each a value with its standard error; the same on every rank."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    class OnAllRanks(HFLM):
        """HFLM leaves a model that it has not loaded itself to one process; its questions can be shared out all the same."""

        def __init__(self) -> None:
            super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)  # type: ignore[arg-type]
            self._rank, self._world_size = rank(), world_size()

        def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
            return torch.stack(gather(tensor.cpu()))

        def gather_object(self, obj: Any, dst: int = 0) -> Any:
            found = gather(obj)
            return found if rank() == dst else None

        def barrier(self) -> None:
            barrier()

    tasks = _tasks(tuple(names), folder)
    found = simple_evaluate(
        OnAllRanks(),
        tasks=list(names),
        task_manager=tasks,
        log_samples=False,
        bootstrap_iters=BOOTSTRAP_SAMPLES,
        batch_size=batch_size,
    )
    return json.loads(on_main(lambda: json.dumps(_read(found))))


def _read(found: Any) -> dict[str, Any]:
    """lm-eval writes {"acc,none": 0.5, "acc_stderr,none": 0.02, "alias": …}; a filter's name stays where there is one."""
    read = {}
    for task, values in found["results"].items():
        metrics = {}
        for key, value in values.items():
            metric, _, filtered = key.partition(",")
            if not isinstance(value, int | float) or metric.endswith("_stderr") or not filtered:
                continue
            error = values.get(f"{metric}_stderr,{filtered}")
            name = metric if filtered == "none" else f"{metric} ({filtered})"
            metrics[name] = {"value": value, "error": error if isinstance(error, int | float) else None}
        counted = found.get("n-samples", {}).get(task, {}).get("effective")
        read[task] = {"n": counted, "shots": found.get("n-shot", {}).get(task), "metrics": metrics}
    return read
