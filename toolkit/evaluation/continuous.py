"""transformers' continuous batching: a row that has ended makes room for the next prompt at once. For GPUs; greedily."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation import ContinuousBatchingConfig

from toolkit.evaluation.answers import Request, has_stopped, read_answer
from toolkit.evaluation.decoding import Decoding, as_list, greedy
from toolkit.evaluation.judging import Answer
from toolkit.moe import is_partitioned
from toolkit.runtime.distributed import shard
from toolkit.runtime.errors import PollardError
from toolkit.tasks import chat_format

ON_CPU: dict[str, Any] = {
    "num_blocks": 64,
    "page_size": 32,
    "max_batch_tokens": 256,
    "use_cuda_graph": False,
}  # there memory is not asked


class Continuous:
    """Writes answers with a model in memory; its cache takes what GPU memory is free, whatever the number of questions."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, decoding: Decoding) -> None:
        if is_partitioned(model):
            raise PollardError(
                "Continuous batching needs a model that is whole: say evaluation.backend=transformers, or model.placement=spread."
            )
        self.model, self.tokenizer, self.decoding = model, tokenizer, decoding

    def __call__(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]:
        decoding, tokenizer, model = self.decoding, self.tokenizer, cast(Any, self.model)
        settings = greedy(self.model, tokenizer, decoding.max_new_tokens)
        ends, most = as_list(settings.eos_token_id), decoding.max_new_tokens
        config = ContinuousBatchingConfig(**({} if self.model.device.type == "cuda" else ON_CPU))
        todo = {f"{r.index}/{r.sample}": r for r in shard(sorted(requests, key=lambda r: (-len(r.prompt), r.index)))}
        watching = bool(decoding.stop)  # it knows end tokens, and no strings
        with model.continuous_batching_context_manager(settings, continuous_batching_config=config) as manager:
            for name, request in todo.items():
                manager.add_request(request.prompt, name, max_new_tokens=most, streaming=watching)
            while todo:
                found = manager.get_result(timeout=1)
                if found is None:
                    if not manager.is_running():
                        raise PollardError(
                            "Continuous batching ended before all questions were answered (transformers' log says more): say "
                            "evaluation.backend=transformers. What is answered is kept."
                        )
                    continue
                if found.request_id not in todo:  # what was still written after a stop string
                    continue
                if found.error is not None:
                    raise PollardError(f"Continuous batching failed on item {todo[found.request_id].index}: {found.error}")
                stop = self._stop_at(todo[found.request_id], found.generated_tokens, ends) if watching else None
                if stop is not None and not found.is_finished():
                    manager.cancel_request(found.request_id)
                if stop is not None or found.is_finished():
                    tokens = list(found.generated_tokens[:stop])
                    request = todo.pop(found.request_id)
                    form = chat_format(tokenizer, request.plain)
                    yield request, read_answer(tokenizer, tokens, ends, decoding.stop, most, form)

    def _stop_at(self, request: Request, tokens: list[int], ends: list[int]) -> int | None:
        """How many tokens it took to write a stop string into the answer; None where there is none."""
        longest, form = max(map(len, self.decoding.stop)), chat_format(self.tokenizer, request.plain)

        def stopped(count: int) -> bool:
            return has_stopped(self.tokenizer, tokens[:count], ends, self.decoding.stop, form)

        if not tokens or not stopped(len(tokens)):
            return None
        return next(count for count in range(max(1, len(tokens) - longest), len(tokens) + 1) if stopped(count))
