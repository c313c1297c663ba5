"""What every recipe needs, by `pollard estimate`'s own numbers, written into its header: python benchmarks/recipe_needs.py

    python benchmarks/recipe_needs.py --check                  # exit status 1 where a header says something else

The models are their published configurations (benchmarks/scaling/*/config.json): no weights, no network, no GPU. They hold the
sizes of the config.json beside each model's weights on the hub, written down by hand; what they come to in parameters is
compared with what each model's makers say of it (tests/recipes/test_every_recipe.py).
"""

import argparse
import contextlib
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from toolkit.cli.estimate_table import gib
from toolkit.estimate import Estimate, resolve_machine
from toolkit.pipeline.estimator import Estimator
from toolkit.recipe.file import load_recipe
from toolkit.runtime.formatting import duration

RECIPES = ROOT / "recipes"
CONFIGS = {
    "mistralai/Mixtral-8x7B-v0.1": "mixtral-8x7b",
    "mistralai/Mixtral-8x7B-Instruct-v0.1": "mixtral-8x7b",
    "Qwen/Qwen3-30B-A3B": "qwen3-30b-a3b",
    "Qwen/Qwen3-Coder-30B-A3B-Instruct": "qwen3-30b-a3b",  # the same sizes, but for one that dense layers would have
    "allenai/OLMoE-1B-7B-0924": "olmoe-1b-7b",
    "allenai/OLMoE-1B-7B-0924-Instruct": "olmoe-1b-7b",
    "openai/gpt-oss-20b": "gpt-oss-20b",
    "deepseek-ai/DeepSeek-V2-Lite": "deepseek-v2-lite",
}
UPCYCLED = {  # models that their recipes' headers make, by the same sizes
    "experts/smollm": "smollm2-8x135m",
    "runs/smollm-mix/recovered": "smollm2-8x135m",
}
MACHINES = ({"gpus": 8, "gpu": "h100", "cpu_memory": "1T"}, {"gpus": 1, "gpu": "h100", "cpu_memory": "256G"})
EMBEDDED = ({"gpus": 0, "cpu_memory": "4G"},)
WITHOUT_GPU = ({"gpus": 0, "cpu_memory": "24G"},)
BEGIN, END = "# Needs", "# (written by benchmarks/recipe_needs.py)"


def with_needs() -> list[Path]:
    """The recipes whose headers say what they need."""
    return [path for path in sorted(RECIPES.glob("*.yaml")) if f"\n{END}\n" in path.read_text(encoding="utf-8")]


def needs(path: Path, known: dict[str, Estimator]) -> str:
    """The header's lines. `known` is what recipes of the same model have counted already."""
    name = load_recipe(path).model.path
    config = (CONFIGS | UPCYCLED).get(name)
    folder = ROOT / (f"benchmarks/scaling/{config}" if config else name)
    recipe = load_recipe(path, [f"model.path={folder}"])
    lines = [f"{BEGIN} (`pollard estimate recipes/{path.name} …`: estimates, not measurements):", "#"]
    for there in MACHINES if name in CONFIGS else WITHOUT_GPU if name in UPCYCLED else EMBEDDED:
        estimator = known.setdefault(str(folder), Estimator(resolve_machine(**EMBEDDED[0]))).on(resolve_machine(**there))
        with contextlib.chdir(ROOT):  # where the embedded data's paths begin
            found = estimator.estimate(recipe)
        lines.append(f"#     {_options(there):<38} {_summary(found)}")
    if name in CONFIGS:
        lines += ["#", "# Beside it on the disk: the original. Hours count every text as max_length tokens, mostly too many."]
    return "\n".join([*lines, END])


def _options(there: dict[str, object]) -> str:
    return " ".join(f"--{key.replace('_', '-')} {value}" for key, value in there.items())


def _summary(found: Estimate) -> str:
    if found.lacking:
        return "does not fit: " + "; ".join(f"{name} ({' and '.join(lacks)})" for name, lacks in found.lacking.items())
    gpu, host = (max(getattr(stage, key) for stage in found.stages) for key in ("gpu_bytes", "host_bytes"))
    seconds = [stage.seconds for stage in found.stages]
    parts = [f"{gib(gpu)} GiB of each GPU"] if found.machine.gpus else []
    parts += [f"{gib(host)} GiB of RAM", f"{gib(found.disk)} GiB of disk"]
    if found.machine.gpus:
        parts.append("hours unknown" if None in seconds else duration(sum(filter(None, seconds))))
    return ", ".join(parts)


def renewed(text: str, lines: str) -> str:
    """The recipe's text with these lines between the marks."""
    before, _, rest = text.partition(f"\n{BEGIN}")
    return f"{before}\n{lines}\n{rest.partition(END)[2].removeprefix(chr(10))}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check, known, stale = parser.parse_args().check, {}, []
    for path in with_needs():
        text = path.read_text(encoding="utf-8")
        new = renewed(text, needs(path, known))
        if new != text:
            stale.append(path)
            if not check:
                path.write_text(new, encoding="utf-8")
        print(f"{path.name:<28} {'as estimated' if new == text else 'differs' if check else 'written anew'}", flush=True)
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
