"""`python serve_gguf.py FILE CONTEXT SLOTS`: llama.cpp's own server, at an OpenAI-compatible address, until standard input ends.

CONTEXT is what one request needs, in tokens; SLOTS requests are answered at a time.
"""

import os
import sys

import xllamacpp

file, context, slots = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
parameters = xllamacpp.CommonParams()
parameters.model.path = file
parameters.n_ctx, parameters.n_parallel = context * slots, slots
parameters.warmup = False
server = xllamacpp.Server(parameters)
print(f"serving {server.listening_address}/v1", flush=True)
sys.stdin.read()
os._exit(0)  # nothing is left to be done, and the server's threads would be waited for
