"""What drafting costs, and how much of it must be accepted to pay, as ratios measured in one run:

    OMP_NUM_THREADS=1 python benchmarks/drafts.py                            # or --experts 64 --active 8
    python benchmarks/drafts.py --hidden 4096 --width 14336 --layers 4       # on a GPU: Mixtral-8x7B's layers

A Mixtral-shaped model of random weights verifies 1 … 8 drafted tokens in one pass, as it is and pruned to half of its experts;
and drafts for itself, sharing its weights: one expert per token, without the experts of every other block, without every other
layer. Costs are in passes over one token, measured in turn: medians over the repeats, with their range. Random routers choose
evenly, so verified tokens read more experts here than those of one task do. What is accepted depends on the task, and `pollard
drafts RUN` tells it: here stand the most that drafting can give (all accepted), and the least acceptance that pays.
"""

from collections.abc import Mapping
from contextlib import ExitStack

import torch
from skipping import described, make, model_parser
from transformers import PreTrainedModel

from toolkit.cuts import BlockPlan, Plan, apply_plan
from toolkit.evaluation.draft_candidates import LENGTHS, TargetAnswer, only_layers
from toolkit.evaluation.draft_costs import measure_costs
from toolkit.moe import find_blocks, override_top_k, shared_copy, without_experts

PROMPT, ANSWER = 128, 32  # tokens


def pruned_by_half(model: PreTrainedModel) -> PreTrainedModel:
    blocks = {
        block.name: BlockPlan(experts=block.expert_count, kept=list(range(block.expert_count // 2)))
        for block in find_blocks(model)
    }
    keep, active = model.config.num_local_experts // 2, model.config.num_experts_per_tok
    plan = Plan.of_experts(model="random", criterion="by hand", keep=keep, experts_per_token=min(active, keep), blocks=blocks)
    return apply_plan(shared_copy(model), plan)


def self_drafts(model: PreTrainedModel, stack: ExitStack) -> dict[str, PreTrainedModel]:
    """By what they do without, while `stack` is open."""
    names, layers = [block.name for block in find_blocks(model)], model.config.num_hidden_layers
    drafts = {"k1": override_top_k(shared_copy(model), 1), "blocks": without_experts(shared_copy(model), names[1::2])}
    if layers > 1:
        drafts["layers"] = only_layers(shared_copy(model), list(range(0, layers, 2)))
    return {name: stack.enter_context(draft) for name, draft in drafts.items()}


def least_acceptance(length: int, verifying: float, drafting: float) -> float | None:
    """The probability α of each drafted token from which on (1 − α^(γ+1)) / (1 − α) ≥ v + γ c; None where no α is enough."""
    low, high = 0.0, 1.0
    if length + 1 < verifying + length * drafting:
        return None
    for _ in range(40):
        middle = (low + high) / 2
        written = sum(middle**power for power in range(length + 1))
        low, high = (middle, high) if written < verifying + length * drafting else (low, middle)
    return high


def report(name: str, model: PreTrainedModel, answers: list[TargetAnswer], repeats: int) -> None:
    """Prints what verifying costs the model, and what drafting by each of its drafts."""
    with ExitStack() as stack:
        costs = measure_costs(model, self_drafts(model, stack), answers, repeats)
    print(f"{name}: {1000 * costs.seconds[0]:.2f} ms a pass over one token", flush=True)
    for length in LENGTHS:
        print(f"  verifying {length} drafted: {ratio(costs.verifying[length])}", flush=True)
    for draft, cost in [*costs.drafting.items(), ("lookup", [0.0] * 3)]:
        print(f"  drafting by {draft}: {ratio(cost)}; {at_best(costs.verifying, cost[0])}", flush=True)


def ratio(values: list[float]) -> str:
    return f"{values[0]:.2f} ({values[1]:.2f} to {values[2]:.2f})"


def at_best(verifying: Mapping[int, list[float]], cost: float) -> str:
    most, length = max(((each + 1) / (verifying[each][0] + each * cost), each) for each in LENGTHS)
    needed = [share for each in LENGTHS if (share := least_acceptance(each, verifying[each][0], cost)) is not None]
    pays = f"pays from {min(needed):.0%} accepted on" if needed else "never pays"
    return f"at most {most:.2f} times as fast ({length} at a time), {pays}"


@torch.no_grad()
def main() -> None:
    given = model_parser(__doc__).parse_args()
    model = make(given)
    print(described(model, given), flush=True)
    drawn = torch.randint(1000, (given.repeats + 1, PROMPT + ANSWER), generator=torch.Generator().manual_seed(0)).tolist()
    answers = [TargetAnswer(row[:PROMPT], row[PROMPT:]) for row in drawn]
    report("original", model, answers, given.repeats)
    report("pruned to half of its experts", pruned_by_half(model), answers, given.repeats)


if __name__ == "__main__":
    main()
