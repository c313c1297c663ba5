"""The stages that measure more than scores: toolkit/pipeline/stages/fidelity_harness.py."""

from toolkit.estimate.data_sizes import DataSize
from toolkit.estimate.machine import Machine
from toolkit.estimate.model import ModelNumbers
from toolkit.estimate.placed import placed
from toolkit.estimate.stage_estimate import DISK, StageEstimate, on_machine
from toolkit.estimate.stages import pass_with_logits
from toolkit.evaluation.distributions import TOKENS_AT_ONCE, bytes_per_token
from toolkit.recipe.schema import Recipe

AT_ONCE = 16  # as in toolkit/pipeline/stages/fidelity_harness.py
COPIES = 12  # in float32, of a part of the logits, while they are sorted and summed up


def estimate_fidelity(recipe: Recipe, machine: Machine, role: str, model: ModelNumbers, data: DataSize) -> StageEstimate:
    """One pass over gold answers as long as the training examples; the original keeps what it says of every token."""
    held = placed(recipe, machine, model)
    gpu = pass_with_logits(recipe.calibration.batch_size, model, data.longest, held, COPIES, TOKENS_AT_ONCE)
    counted = round((data.examples or 0) * data.counted)
    each = bytes_per_token(model.vocabulary)
    kept = each * counted
    flops = None if data.tokens is None else 2.0 * model.active * data.tokens
    on_gpu, in_ram = on_machine(machine, gpu, {"weights": held.host})
    passes = (data.examples or 0) / recipe.calibration.batch_size
    return StageEstimate(
        name=f"fidelity/{role}",
        work=f"{data.examples:,} answers, {counted:,} tokens" + (f", {each:,} bytes each at most" if role == "original" else ""),
        gpu=on_gpu,
        host=in_ram,
        disk=kept if role == "original" else 0,
        flops=flops,
        seconds=machine.seconds(flops, (model.bytes + kept) / DISK + held.moving(passes), gpus=held.copies),
        notes=held.notes + (("on disk: at most; of a model that is sure of its answers, less",) * (role == "original")),
    )


def estimate_harness(recipe: Recipe, machine: Machine, role: str, model: ModelNumbers) -> StageEstimate:
    """How long its tasks' questions are only lm-eval knows: as long as the longest examples, at most."""
    asked, longest = recipe.evaluation.batch_size, recipe.finetuning.max_length
    batch = AT_ONCE if asked == "auto" else asked
    held = placed(recipe, machine, model, whole=True)
    gpu = held.gpu | {
        "activations": model.working(batch, longest) or 0,
        "logits": 2 * 4 * model.vocabulary * batch * longest,  # and their logarithms, in float32
    }
    on_gpu, in_ram = on_machine(machine, gpu, {"weights": held.host})
    work = f"lm-evaluation-harness: {', '.join(recipe.evaluation.harness or [])}; questions of at most {longest:,} tokens"
    return StageEstimate(f"harness/{role}", work, on_gpu, in_ram, flops=None, notes=held.notes)
