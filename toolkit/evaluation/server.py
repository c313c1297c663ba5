"""Answers from any server with an OpenAI-compatible URL: vLLM or llama.cpp, in an environment of its own.

    POST /v1/completions {"model": "…", "prompt": [1, 733, 16289, …], "max_tokens": 512, "temperature": 0, "stop": ["Question:"]}

The prompt is rendered here, so that every model compared is asked the same, token for token; a server that takes no tokens is
sent the text, and one that wants to render it itself the chat.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import replace
from typing import Any, NoReturn, TypeVar

from transformers import PreTrainedTokenizerBase

from toolkit.evaluation.answers import Answer, Request, answer_of
from toolkit.evaluation.decoding import Decoding
from toolkit.recipe.evaluation import ServerRecipe, ServersRecipe
from toolkit.runtime.distributed import shard, world_size
from toolkit.runtime.errors import PollardError
from toolkit.runtime.progress import progress_display
from toolkit.tasks import ChatFormat, Message, chat_format

T = TypeVar("T")
RETRIES = 6  # of a request, by the client: after half a second, then twice as long each time, or when the server says
RETRIED_STATUS = (408, 409, 429)  # of the 4xx, those that the client tries again
PAUSE = 1.0  # seconds before an answer that cannot be read is asked for again


class UnreadableAnswer(Exception):
    """The server replied, but its reply holds no answer."""


class ServerWriter:
    """Writes answers by asking a server, several questions at a time.

    Raises PollardError where the client is not installed, and where the server does not answer or lists several models.
    """

    def __init__(
        self, server: ServerRecipe, settings: ServersRecipe, tokenizer: PreTrainedTokenizerBase, decoding: Decoding
    ) -> None:
        self.url, self.settings, self.tokenizer, self.decoding = server.url, settings, tokenizer, decoding
        self.failure: PollardError | None = None
        openai = _openai()
        key = os.environ.get("OPENAI_API_KEY", "none")  # most servers want none, the client wants one
        self.client = openai.OpenAI(base_url=server.url, api_key=key, timeout=settings.timeout, max_retries=RETRIES)
        self.model = server.model or self._only_model()

    def __call__(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]:
        mine = shard(requests)
        workers = max(1, self.settings.concurrency // world_size())
        with ThreadPoolExecutor(workers) as pool, progress_display("answering", len(mine)) as advance:
            request_of = {pool.submit(self._answer, request): request for request in mine}
            try:
                for future in as_completed(list(request_of)):
                    if future.exception():
                        yield from self._in_flight(request_of)
                    yield request_of.pop(future), future.result()
                    advance(1)
            finally:
                pool.shutdown(cancel_futures=True)

    def _in_flight(self, request_of: dict[Future[Answer], Request]) -> Iterator[tuple[Request, Answer]]:
        """Answers that are there, or being written, when another request fails: they are kept."""
        for future in [future for future in request_of if not future.cancel()]:
            if not future.exception():
                yield request_of[future], future.result()

    def _answer(self, request: Request) -> Answer:
        if self.failure:  # of another request, meanwhile
            raise self.failure
        try:
            return self._tried(lambda: self._ask(request), f"item {request.index}")
        except PollardError as error:
            self.failure = error
            raise

    def _ask(self, request: Request) -> Answer:
        decoding = self.decoding
        options: dict[str, Any] = {
            "model": self.model, "max_tokens": decoding.max_new_tokens, "temperature": decoding.temperature,
        }  # fmt: skip
        form = chat_format(self.tokenizer, request.plain)
        if request.plain or not self.tokenizer.chat_template:
            # Else the answer is cut here: a server would also stop in reasoning, or in what the template writes before an answer
            options["stop"] = list(decoding.stop) or None
        extra: dict[str, object] = {}
        if any(token in form.marks for token in form.special):
            extra["skip_special_tokens"] = False
        if decoding.temperature:
            options["seed"] = decoding.random_numbers(request.index, request.sample).getrandbits(31)
        if self.settings.prompt == "chat":
            tools = {"tools": list(request.tools)} if request.tools else {}
            messages = [_with_texts_for_arguments(message) for message in request.messages]
            reply = self.client.chat.completions.create(messages=messages, extra_body=extra, **tools, **options)
        else:
            # Not as the argument: the client would look at the type of each token anew, which takes longer than all the rest
            extra["prompt"] = request.prompt if self.settings.prompt == "tokens" else self.tokenizer.decode(request.prompt)
            reply = self.client.completions.create(prompt="", extra_body=extra, **options)
        return self._read(reply, form)

    def _read(self, reply: Any, form: ChatFormat) -> Answer:
        try:
            choice = reply.choices[0]
            text = choice.message.content if self.settings.prompt == "chat" else choice.text
            tokens = (
                reply.usage.completion_tokens if reply.usage else len(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            )
            if self.settings.prompt == "chat" and form.closing not in str(text):  # the server has removed the reasoning
                form = replace(form, opened="", prefix=form.frame)
            return answer_of(str(text or ""), int(tokens), choice.finish_reason != "length", self.decoding.stop, form)
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise UnreadableAnswer(f"no answer in {str(reply)[:200]!r} ({error})") from None

    def _only_model(self) -> str:
        models = self._tried(lambda: [str(model.id) for model in self.client.models.list().data or ()], "the list of its models")
        if len(models) != 1:
            raise PollardError(
                f"The server at {self.url} lists {len(models)} models ({', '.join(models) or 'none'}): say which "
                "(evaluation.servers: {role: {url: …, model: …}}).",
                code="server.several-models",
            )
        return models[0]

    def _tried(self, ask: Callable[[], T], what: str) -> T:
        """Returns what `ask` returns; the client tries again by itself, and an unreadable answer is asked for again.

        Raises PollardError where the server refuses, or does not answer in the end.
        """
        openai = _openai()
        last: Exception | None = None
        for attempt in range(RETRIES + 1):
            if attempt:
                time.sleep(PAUSE)
            try:
                return ask()
            except openai.APIStatusError as error:
                if error.status_code < 500 and error.status_code not in RETRIED_STATUS:
                    raise PollardError(
                        f"The server at {self.url} refuses {what}: {error.status_code} {_message_of(error)}. Mend "
                        "evaluation.servers (url, model, prompt); what is answered is kept, and the same command goes on.",
                        code="server.refuses",
                    ) from None
                self._give_up(what, error)
            except (UnreadableAnswer, openai.APIResponseValidationError, ValueError) as error:  # ValueError: no JSON
                last = error
            except openai.APIError as error:
                self._give_up(what, error)
        self._give_up(what, last)

    def _give_up(self, what: str, error: Exception | None) -> NoReturn:
        raise PollardError(
            f"The server at {self.url} does not answer ({what}, tried {RETRIES + 1} times; last: {_message_of(error)}). What is "
            "answered is kept: when the server is well again, the same command goes on.",
            code="server.no-answer",
        ) from None


def _with_texts_for_arguments(message: Message) -> Message:
    """The message with the arguments of its tool calls as JSON texts, as the protocol has them; chat templates take objects."""
    if "tool_calls" not in message:
        return message
    calls = [
        call | {"function": call["function"] | {"arguments": json.dumps(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return message | {"tool_calls": calls}


def _message_of(error: Exception | None) -> str:
    return " ".join(str(getattr(error, "message", None) or error).split())[:300] or type(error).__name__


def check_client() -> None:
    """Raises PollardError where the package `openai` is not installed."""
    _openai()


def _openai() -> Any:
    try:
        import openai  # takes a second
    except ImportError:
        raise PollardError(
            "evaluation.backend is server, and the package `openai` is not installed: ./launch.sh setup server, or "
            "pip install 'pollard-moe[server]'.",
            code="server.no-client",
        ) from None
    return openai
