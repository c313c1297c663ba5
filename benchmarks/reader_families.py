"""What other programs make of a pruned checkpoint, family by family: each result is what the reader's own code did.

    python benchmarks/reader_families.py            a tiny random model of every family, pruned and handed to all readers:
                                                    reader_families.json, and the table in docs/readers.md
    python benchmarks/reader_families.py --table    the table anew, from the results that are there

Readers have environments of their own (toolkit/pipeline/export/environments.py), which are made where they are not there.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from smollm_package import smollm_file
from study import markdown, put_between
from transformers import AutoConfig, AutoModelForCausalLM

import toolkit
from toolkit.cuts import Plan
from toolkit.cuts.block_plan import BlockPlan
from toolkit.cuts.upcycling.source import DenseCheckpoint
from toolkit.moe import find_blocks
from toolkit.pipeline.export import format_of
from toolkit.pipeline.export.environments import TORCH, ReaderEnvironment
from toolkit.pipeline.export.reader_process import PROGRAMS as EXPORT_PROGRAMS
from toolkit.pipeline.export.reader_process import reason_in

HERE = Path(__file__).parent
PROGRAMS, RESULTS, PAGE = HERE / "reader_programs", HERE / "reader_families.json", HERE.parent / "docs" / "readers.md"
BEGIN, END = "<!-- table: written by benchmarks/reader_families.py -->", "<!-- end of table -->"
OLD_TRANSFORMERS = ReaderEnvironment("transformers-4.57", (TORCH, "transformers==4.57.6"), ("torch", "transformers"))
"""The last transformers before 5, in which experts were modules of their own."""
SMALL = {
    "hidden_size": 128, "intermediate_size": 128, "moe_intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "num_experts_per_tok": 2, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
LATENT = {
    "n_routed_experts": 8, "n_shared_experts": 1, "first_k_dense_replace": 1, "kv_lora_rank": 32, "q_lora_rank": 32,
    "qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 32, "head_dim": 32, "n_group": 1, "topk_group": 1,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 8},
    "qwen2_moe": {"num_experts": 8, "shared_expert_intermediate_size": 128},
    "qwen3_moe": {"num_experts": 8, "head_dim": 32, "norm_topk_prob": True},  # as the published ones; llama.cpp knows no other
    "olmoe": {"num_experts": 8},
    "phimoe": {"num_local_experts": 8},
    "granitemoe": {"num_local_experts": 8},
    "deepseek_v2": LATENT | {"topk_method": "greedy"},
    "deepseek_v3": LATENT | {"scoring_func": "sigmoid"},  # as the published ones say; transformers knows no other
    "glm4_moe": LATENT,
    "ernie4_5_moe": {"moe_num_experts": 8, "moe_k": 2, "moe_num_shared_experts": 1, "moe_layer_start_index": 1},
    "gpt_oss": {"num_local_experts": 8, "head_dim": 32, "layer_types": ["sliding_attention", "full_attention"],
                "max_position_embeddings": 131072},
}  # fmt: skip
READERS = {
    "transformers 4.57": "largest difference of a logit",
    "llama.cpp, f32": "largest difference of a log-probability; greedy tokens",
    "llm-compressor, FP8": "written, loaded back: correlation of the logits",
    "llm-compressor, W4A16": "written, loaded back: correlation of the logits",
}
Result = dict[str, Any]  # {"difference": 1e-6, "correlation": 1.0, "greedy": true}, or {"error": "…"}


def make_models(folder: Path, families: Sequence[str]) -> dict[str, Path]:
    """A pruned checkpoint of each family, with a real tokenizer, in folder/<family>."""
    made = {}
    (folder / "tokenizer").mkdir(parents=True)
    DenseCheckpoint(str(smollm_file())).save_tokenizer(folder / "tokenizer")
    files = [file for file in (folder / "tokenizer").iterdir() if file.is_file()]
    vocabulary = 49152
    for family in families:
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **(SMALL | {"vocab_size": vocabulary} | FAMILIES[family]))
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 or "bias" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(folder / "original" / family)
        for file in files:
            (folder / "original" / family / file.name).write_bytes(file.read_bytes())
        plan = Plan.of_experts(
            model=family, criterion="by hand", keep=4, experts_per_token=2,
            blocks={block.name: BlockPlan(experts=block.expert_count, kept=[0, 2, 5, 7]) for block in find_blocks(model)},
        )  # fmt: skip
        made[family] = folder / family
        toolkit.prune(folder / "original" / family, plan, made[family])
    return made


def reference(made: Mapping[str, Path], folder: Path) -> dict[str, Result]:
    """What the checkpoints say in this environment's own transformers."""
    folder.mkdir()
    run(Path(sys.executable), PROGRAMS / "logits.py", "stock", folder, *made.values())
    return {family: json.loads((folder / f"{family}.json").read_text()) for family in made}


def compared(family: str, folder: Path, expected: Mapping[str, Result], log: bool = False) -> Result:
    """`log`: the reader gives log-probabilities."""
    file = folder / f"{family}.json"
    said: Result = json.loads(file.read_text()) if file.exists() else {"error": "the reader's process died"}
    if "error" in said:
        return {"error": reason_in(said["error"]).replace(f"{folder.parent}/", "")}
    own, theirs = torch.tensor(expected[family]["logits"]), torch.tensor(said["logits"])
    difference = ((own.log_softmax(-1) if log else own) - theirs).abs().max().item()
    correlation = torch.corrcoef(torch.stack([own.flatten(), theirs.flatten()]))[0, 1].item()
    return {"difference": difference, "correlation": correlation, "greedy": expected[family]["greedy"] == said["greedy"]}


def ask_old_transformers(made: Mapping[str, Path], expected: Mapping[str, Result], folder: Path) -> dict[str, Result]:
    folder.mkdir()
    run(OLD_TRANSFORMERS.python(install=True), PROGRAMS / "logits.py", "stock", folder, *made.values())
    return {family: compared(family, folder, expected) for family in made}


def ask_llama_cpp(made: Mapping[str, Path], expected: Mapping[str, Result], folder: Path) -> dict[str, Result]:
    """Converted at float32 by the program that `pollard export` calls."""
    to = format_of("gguf", "f32")
    python, results = to.environment.python(install=True), {}
    prompts = torch.randint(3, 700, (2, 24), generator=torch.Generator().manual_seed(1)).tolist()
    folder.mkdir()
    (folder / "prompts.json").write_text(json.dumps({"prompts": prompts, "vocabulary": 49152}))
    for family, checkpoint in made.items():
        (folder / "gguf" / family).mkdir(parents=True)
        program, arguments = to.writer(python, checkpoint, folder / "gguf" / family)
        if reason := run(python, program, *arguments, check=False):
            results[family] = {"error": reason.replace(f"{checkpoint.parent}/", "")}
            continue
        file = folder / "gguf" / f"{family}.gguf"
        (folder / "gguf" / family / "model.gguf").rename(file)
        reason = run(python, PROGRAMS / "llama_cpp_logits.py", folder, folder / "prompts.json", file, check=False)
        results[family] = {"error": reason} if reason else compared(family, folder, expected, log=True)
    apart = [family for family, found in results.items() if found.get("difference", 0) > 1e-3]
    whole = {family: made[family].parent / "original" / family for family in apart if made[family].parent.name != "original"}
    if whole:  # does the reader compute the family otherwise, whatever is pruned?
        unpruned = ask_llama_cpp(whole, reference(whole, folder / "expected"), folder / "original")
        for family, found in unpruned.items():
            results[family]["unpruned"] = found.get("difference")
    return results


def ask_llm_compressor(scheme: str) -> Callable[[Mapping[str, Path], Mapping[str, Result], Path], dict[str, Result]]:
    def ask(made: Mapping[str, Path], expected: Mapping[str, Result], folder: Path) -> dict[str, Result]:
        to = format_of(scheme)
        python, results = to.environment.python(install=True), {}
        (folder / "written").mkdir(parents=True)
        for family, checkpoint in made.items():
            program, arguments = to.writer(python, checkpoint, folder / "written" / family)
            if reason := run(python, program, *arguments, check=False):
                results[family] = {"error": reason.replace(f"{checkpoint.parent}/", "")}
        there = [folder / "written" / family for family in made if family not in results]
        run(python, PROGRAMS / "logits.py", "compressed", folder, *there)
        return results | {path.name: compared(path.name, folder, expected) for path in there}

    return ask


ASKED = dict(
    zip(READERS, (ask_old_transformers, ask_llama_cpp, ask_llm_compressor("fp8"), ask_llm_compressor("w4a16")), strict=True)
)


def run(python: Path, program: Path, *arguments: object, check: bool = True) -> str:
    """Empty where it succeeds, else the program's own reason; raises RuntimeError with it if `check`."""
    command = [str(python), str(program), *map(str, arguments)]
    environment = {"PYTHONPATH": str(EXPORT_PROGRAMS), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    reason = reason_in(done.stdout + done.stderr) if done.returncode else ""
    if reason and check:
        raise RuntimeError(f"{program.name}: {reason}\n{done.stderr[-2000:]}")
    return reason


def cell(reader: str, result: Result) -> str:
    """Of the table."""
    if "error" in result:
        return f"no: {result['error'][:160]}".replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
    same = "the same" if result["greedy"] else "others"
    if reader.startswith("llm-compressor"):
        return f"loads back; logits correlate {result['correlation']:.2f}"
    unpruned = f" (the unpruned model: {result['unpruned']:.1e})" if result.get("unpruned") else ""
    return f"{result['difference']:.1e}{unpruned}; {same} greedy tokens"


def table(results: Mapping[str, Mapping[str, Result]]) -> str:
    rows = [[f"`{family}`", *(cell(reader, found[reader]) for reader in READERS)] for family, found in results.items()]
    return markdown(["family", *READERS], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only write the table anew")
    parser.add_argument("--readers", nargs="*", default=list(READERS), choices=list(READERS))
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), choices=list(FAMILIES))
    arguments = parser.parse_args()
    results: dict[str, dict[str, Result]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if not arguments.table:
        with TemporaryDirectory() as scratch:
            made = make_models(Path(scratch) / "models", arguments.families)
            expected = reference(made, Path(scratch) / "reference")
            for reader in arguments.readers:
                for family, result in ASKED[reader](made, expected, Path(scratch) / reader.replace(" ", "_")).items():
                    results.setdefault(family, {})[reader] = result
                    print(f"{family:<14} {reader:<22} {cell(reader, result)}", flush=True)
        results = {family: results[family] for family in FAMILIES if family in results}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    put_between(PAGE, BEGIN, END, [table(results)])


if __name__ == "__main__":
    main()
