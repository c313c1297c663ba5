"""`python serve_compressed.py FOLDER`: answers from what llm-compressor wrote, until standard input ends.

    POST /v1/completions {"prompt": [1, 733, 16289], "max_tokens": 512, "temperature": 0, "stop": null}

One request is answered at a time, by `generate`. For speed there is vLLM, which needs a GPU.
"""

import json
import sys
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import compressed_experts
import torch
from transformers import AutoTokenizer

folder = sys.argv[1]
model = compressed_experts.load_compressed(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
at_work = threading.Lock()


@torch.inference_mode()
def answer(body: Mapping[str, Any]) -> Mapping[str, Any]:
    prompt = body["prompt"] if isinstance(body["prompt"], list) else tokenizer(body["prompt"], add_special_tokens=False).input_ids
    drawn = (
        {"do_sample": True, "temperature": body["temperature"], "top_k": 0} if body.get("temperature") else {"do_sample": False}
    )
    if "seed" in body:
        torch.manual_seed(body["seed"])
    ids = torch.tensor([prompt])
    stop = {"stop_strings": body["stop"], "tokenizer": tokenizer} if body.get("stop") else {}
    written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=body["max_tokens"], **drawn, **stop)[0]
    tokens = written[len(prompt) :].tolist()
    ends = model.generation_config.eos_token_id
    ended = tokens[-1] in (ends if isinstance(ends, list) else [ends])
    text = str(tokenizer.decode(tokens, skip_special_tokens=body.get("skip_special_tokens", True)))
    for word in body.get("stop") or ():
        before, found, _ = text.partition(word)
        text, ended = before, ended or bool(found)
    choice = {"index": 0, "text": text, "finish_reason": "stop" if ended else "length", "logprobs": None}
    usage = {"prompt_tokens": len(prompt), "completion_tokens": len(tokens), "total_tokens": len(prompt) + len(tokens)}
    return {"id": "0", "object": "text_completion", "created": 0, "model": folder, "choices": [choice], "usage": usage}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.reply({"object": "list", "data": [{"id": folder, "object": "model", "created": 0, "owned_by": "pollard"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with at_work:
            self.reply(answer(body))

    def reply(self, content: Mapping[str, Any]) -> None:
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments: object) -> None:
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(f"serving http://127.0.0.1:{server.server_address[1]}/v1", flush=True)
sys.stdin.read()
