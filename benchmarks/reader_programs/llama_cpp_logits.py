"""`python llama_cpp_logits.py OUT PROMPTS FILE…`: log-probabilities and greedy tokens of GGUF files, by llama.cpp's server.

PROMPTS is a JSON file, {"prompts": [[…], …], "vocabulary": V}. As `logits.py`, but what the server gives are log-probabilities:
logits less a constant. Keys and values are held in float32, so that the comparison is one of the models.
"""

import json
import os
import sys
import urllib.request
from pathlib import Path
from typing import Any

import xllamacpp


def said(file: Path, prompts: list[list[int]], vocabulary: int) -> dict[str, Any]:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.n_ctx, parameters.n_parallel, parameters.warmup = 256, 1, False
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(parameters)

    def ask(prompt: list[int], tokens: int, probabilities: int) -> dict[str, Any]:
        body = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "return_tokens": True, "ignore_eos": True}
        body |= {"n_probs": probabilities, "cache_prompt": False}
        request = urllib.request.Request(
            f"{server.listening_address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        return json.load(urllib.request.urlopen(request))

    rows = []
    for prompt in prompts:
        row = [float("-inf")] * vocabulary
        for entry in ask(prompt, 1, vocabulary)["completion_probabilities"][0]["top_logprobs"]:
            row[entry["id"]] = entry["logprob"]
        rows.append(row)
    return {"logits": rows, "greedy": ask(prompts[0], 12, 0)["tokens"]}


out, asked = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
for file in map(Path, sys.argv[3:]):
    (out / f"{file.stem}.json").write_text(json.dumps(said(file, asked["prompts"], asked["vocabulary"])))
os._exit(0)  # the servers' threads would be waited for
