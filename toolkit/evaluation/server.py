"""Answers from any server with an OpenAI-compatible URL: vLLM or llama.cpp, in an environment of its own.

    POST /v1/completions {"model": "…", "prompt": [1, 733, 16289, …], "max_tokens": 512, "temperature": 0, "stop": ["Question:"]}

The prompt is rendered here, so that every model compared is asked the same, token for token; a server that takes no tokens is
sent the text, and one that wants to render it itself the chat.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any, NoReturn

from transformers import PreTrainedTokenizerBase

from toolkit.evaluation.answers import Answer, Request, answer_of
from toolkit.evaluation.decoding import Decoding
from toolkit.recipe.evaluation import ServerRecipe, ServersRecipe
from toolkit.runtime.distributed import shard, world_size
from toolkit.runtime.errors import PollardError
from toolkit.runtime.progress import progress_display
from toolkit.tasks import ChatFormat, Message, chat_format

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before another attempt
RETRIED_STATUS = (408, 409, 425, 429)  # of the 4xx, those that may pass


class UnreadableAnswer(Exception):
    """The server answered, but no answer can be found in it."""


class ServerWriter:
    """Writes answers by asking a server, so many questions at a time."""

    def __init__(
        self, server: ServerRecipe, asking: ServersRecipe, tokenizer: PreTrainedTokenizerBase, decoding: Decoding
    ) -> None:
        self.url, self.asking, self.tokenizer, self.decoding = server.url, asking, tokenizer, decoding
        self.given_up: PollardError | None = None
        openai = _openai()
        key = os.environ.get("OPENAI_API_KEY", "none")  # most servers want none, the client wants one
        self.client = openai.OpenAI(base_url=server.url, api_key=key, timeout=asking.timeout, max_retries=0)
        self.model = server.model or self._only_model()

    def __call__(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]:
        mine = shard(requests)
        workers = max(1, self.asking.concurrency // world_size())
        with ThreadPoolExecutor(workers) as pool, progress_display("answering", len(mine)) as advance:
            asked = {pool.submit(self._answer, request): request for request in mine}
            try:
                waiting = set(asked)
                while waiting:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    failed = [future for future in done if future.exception()]
                    for future in done - set(failed):
                        yield asked[future], future.result()
                        advance(1)
                    if failed:
                        yield from self._in_flight(asked, waiting)
                        failed[0].result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _in_flight(self, asked: dict[Future[Answer], Request], waiting: set[Future[Answer]]) -> Iterator[tuple[Request, Answer]]:
        """What is being answered while the server is given up: it is kept."""
        for future in [future for future in waiting if not future.cancel()]:
            if not future.exception():
                yield asked[future], future.result()

    def _answer(self, request: Request) -> Answer:
        if self.given_up:  # by another of the questions at a time
            raise self.given_up
        try:
            return self._tried(lambda: self._ask(request), f"item {request.index}")
        except PollardError as error:
            self.given_up = error
            raise

    def _ask(self, request: Request) -> Answer:
        decoding = self.decoding
        wish: dict[str, Any] = {
            "model": self.model, "max_tokens": decoding.max_new_tokens, "temperature": decoding.temperature,
        }  # fmt: skip
        form = chat_format(self.tokenizer, request.plain)
        if request.plain or not self.tokenizer.chat_template:
            # Else the answer is cut here: a server would also stop in reasoning, and in what the template writes before an answer
            wish["stop"] = list(decoding.stop) or None
        if any(token in form.marks for token in form.special):
            wish["extra_body"] = {"skip_special_tokens": False}
        if decoding.temperature:
            wish["seed"] = decoding.numbers(request.index, request.sample).getrandbits(31)
        if self.asking.prompt == "chat":
            tools = {"tools": list(request.tools)} if request.tools else {}
            messages = [_with_texts_for_arguments(message) for message in request.messages]
            reply = self.client.chat.completions.create(messages=messages, **tools, **wish)
        else:
            prompt = request.prompt if self.asking.prompt == "tokens" else self.tokenizer.decode(request.prompt)
            reply = self.client.completions.create(prompt=prompt, **wish)
        return self._read(reply, form)

    def _read(self, reply: Any, form: ChatFormat) -> Answer:
        try:
            choice = reply.choices[0]
            text = choice.message.content if self.asking.prompt == "chat" else choice.text
            tokens = (
                reply.usage.completion_tokens if reply.usage else len(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            )
            if self.asking.prompt == "chat" and form.closing not in str(text):  # the server has taken the reasoning off
                form = replace(form, opened="", prefix=form.frame)
            return answer_of(str(text or ""), int(tokens), choice.finish_reason != "length", self.decoding.stop, form)
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise UnreadableAnswer(f"no answer in {str(reply)[:200]!r} ({error})") from None

    def _only_model(self) -> str:
        found = self._tried(lambda: [str(model.id) for model in self.client.models.list().data or ()], "the list of its models")
        if len(found) != 1:
            raise PollardError(
                f"The server at {self.url} lists {len(found)} models ({', '.join(found) or 'none'}): say which "
                "(evaluation.servers: {role: {url: …, model: …}})."
            )
        return found[0]

    def _tried(self, ask: Any, what: str) -> Any:
        """Asks again where that may help, longer and longer after. Raises PollardError where it does not."""
        openai = _openai()
        for pause in (*WAITS, None):
            try:
                return ask()
            except openai.APIStatusError as error:
                if error.status_code < 500 and error.status_code not in RETRIED_STATUS:
                    raise PollardError(
                        f"The server at {self.url} refuses {what}: {error.status_code} {_words(error)}. Mend evaluation.servers "
                        "(url, model, prompt); what is answered is kept, and the same command goes on."
                    ) from None
                last: Exception = error
            except (openai.APIError, UnreadableAnswer, ValueError) as error:  # ValueError: no JSON
                last = error
            if pause is None:
                self._give_up(what, last)
            time.sleep(pause)

    def _give_up(self, what: str, error: Exception) -> NoReturn:
        raise PollardError(
            f"The server at {self.url} does not answer ({what}, tried {len(WAITS) + 1} times; last: {_words(error)}). What is "
            "answered is kept: when the server is well again, the same command goes on."
        ) from None


def _with_texts_for_arguments(message: Message) -> Message:
    """As the protocol wants a tool call's arguments; chat templates want objects."""
    if "tool_calls" not in message:
        return message
    calls = [
        call | {"function": call["function"] | {"arguments": json.dumps(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return message | {"tool_calls": calls}


def _words(error: Exception) -> str:
    return " ".join(str(getattr(error, "message", None) or error).split())[:300] or type(error).__name__


def check_client() -> None:
    """Raises PollardError where the package that asks servers is not installed."""
    _openai()


def _openai() -> Any:
    try:
        import openai  # takes a second
    except ImportError:
        raise PollardError(
            "evaluation.backend is server, and the package `openai` is not installed: ./launch.sh setup server, or "
            "pip install 'pollard-moe[server]'."
        ) from None
    return openai
