"""Whether `evaluation.backend: server` keeps a server busy, against one with a known limit:

    python benchmarks/server_requests.py                           # or --slots 64 --seconds 1

The server, in a process of its own, answers --slots requests at a time, each after --seconds: it can answer slots / seconds
requests per second, and no more. `evaluation.servers.concurrency` is as many as it has slots, so whatever time passes between
an answer and the next request is lost. Each figure is the median share of that limit over the repeats, with its range. Exit
status 1 where one is below the target.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from toolkit.evaluation import Decoding
from toolkit.evaluation.answers import Request
from toolkit.evaluation.server import ServerWriter
from toolkit.moe import load_tokenizer
from toolkit.recipe.evaluation import ServersRecipe
from toolkit.runtime.distributed import console

PLAYGROUND = Path(__file__).parents[1] / "data" / "playground" / "model"
TARGET = 0.95  # of slots / seconds
SERVERS = ((16, 1.0), (256, 4.0))  # slots, and seconds of an answer
ROUNDS = 8  # answers of each slot in a repeat
PROMPT = list(range(4, 504))  # the length of a prompt with shots


@contextmanager
def serving(slots: int, seconds: float) -> Iterator[str]:
    command = [sys.executable, str(Path(__file__).with_name("slow_server.py")), str(slots), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
    finally:
        process.terminate()
        process.wait()


def shares(url: str, slots: int, seconds: float, repeats: int, rounds: int) -> list[float]:
    """Of the server's limit, repeat by repeat. Raises SystemExit for an answer to another question."""
    servers = ServersRecipe.model_validate({"original": url, "concurrency": slots})
    assert servers.original
    writer = ServerWriter(servers.original, servers, load_tokenizer(str(PLAYGROUND)), Decoding(128))
    requests = [Request(i, 0, [*PROMPT, i], ()) for i in range(slots * rounds)]
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        answers = {request.index: answer.text for request, answer in writer(requests)}
        found.append(rounds * seconds / (time.perf_counter() - started))
        if answers != {i: str(i) for i in range(len(requests))}:
            raise SystemExit("not the answers to the questions")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, help="of one server; those in SERVERS unless given")
    parser.add_argument("--seconds", type=float, default=1.0, help="of one answer, with --slots")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="answers of each slot in a repeat")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    results = []
    for slots, seconds in [(options.slots, options.seconds)] if options.slots else SERVERS:
        with serving(slots, seconds) as url, mock.patch.object(console, "quiet", True):  # no bars in between
            found = shares(url, slots, seconds, options.repeats, options.rounds)
        median, limit = statistics.median(found), slots / seconds
        print(
            f"{slots} slots, {seconds:g} s an answer, at most {limit:g} answers/s: {median:.3f} of that "
            f"({min(found):.3f} to {max(found):.3f}), target {TARGET}; {1000 * seconds * (1 / median - 1):.0f} ms lost an answer",
            flush=True,
        )
        results.append(median >= TARGET)
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
