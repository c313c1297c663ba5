"""A process that compares formulas, one a line: what hangs or dies here hangs or kills nobody else.

It is run as a script and imports nothing of ours. SymPy may compute 9^(9^9) until memory ends, so memory has a limit;
time is the parent's to watch.

    {"prediction": "so \\boxed{0.5}", "boxed": "0.5", "said": null, "gold": "\\frac12"}  ->  {"strict": true, "flexible": true}
"""

import json
import logging
import resource
import sys

BYTES = 4 * 2**30


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    logging.disable(logging.CRITICAL)
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is no answer
    try:
        from math_verify import parse, verify
    except ImportError as error:
        print(json.dumps({"fatal": str(error)}), file=answers, flush=True)
        return
    print(json.dumps({"ready": True}), file=answers, flush=True)

    def same(gold: str, text: str) -> bool:
        right, found = parse(f"${gold}$", parsing_timeout=None), parse(text, parsing_timeout=None)
        return bool(verify(right, found, timeout_seconds=None))

    for line in sys.stdin:
        asked = json.loads(line)
        try:
            strict = asked["boxed"] is not None and same(asked["gold"], f"${asked['boxed']}$")
            texts = [text for text in (asked["said"], asked["prediction"]) if text]
            verdict: dict = {"strict": strict, "flexible": strict or any(same(asked["gold"], text) for text in texts)}
        except Exception as error:
            verdict = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(verdict), file=answers, flush=True)


if __name__ == "__main__":
    main()
