"""A small real HTTP server in a thread, with an OpenAI-compatible URL."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from toolkit.evaluation import generate, greedy

Reply = tuple[int, bytes]


@contextmanager
def serving(reply: Callable[[str, dict[str, Any]], Reply]) -> Iterator[str]:
    """The URL of a server that answers a path and a body with `reply`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, content = reply(self.path, json.loads(body or b"{}"))
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, *arguments: Any) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.server_address[1]}/v1"
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()


def playing(model: Any, tokenizer: Any, seen: list[Any]) -> Callable[[str, dict[str, Any]], Reply]:
    """What a server with the playground model says."""
    lock = threading.Lock()

    def reply(path: str, body: dict[str, Any]) -> Reply:
        if path.endswith("/models"):
            return 200, json.dumps({"object": "list", "data": [{"id": "playground", "object": "model"}]}).encode()
        with lock:
            seen.append((path, body))
            prompt = body.get("prompt")
            if "messages" in body:
                prompt = tokenizer.apply_chat_template(body["messages"], tokenize=False, add_generation_prompt=True)
            if isinstance(prompt, str):
                prompt = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            tokens = generate(model, [prompt], greedy(model, tokenizer, body["max_tokens"]))[0]
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        ended = tokens[-1] == tokenizer.eos_token_id
        for stop in body.get("stop") or ():
            text, found, _ = text.partition(stop)
            ended = ended or bool(found)
        choice = {"index": 0, "finish_reason": "stop" if ended else "length"}
        choice |= {"message": {"role": "assistant", "content": text}} if "messages" in body else {"text": text}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(tokens), "total_tokens": len(prompt) + len(tokens)}
        return 200, json.dumps(
            {"id": "1", "object": "x", "created": 0, "model": "m", "choices": [choice], "usage": usage}
        ).encode()

    return reply
