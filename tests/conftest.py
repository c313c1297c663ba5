"""Shared by all tests: tiny random models of every supported family, and the CPU they run on."""

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run in parallel, one per core
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from toolkit.cuts.block_plan import BlockPlan
from toolkit.cuts.plan import Plan
from toolkit.moe import find_blocks, load_model, load_tokenizer
from toolkit.runtime.errors import PollardError

ROOT = Path(__file__).parents[1]
PLAYGROUND = ROOT / "data" / "playground"

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 16,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "mixtral": {"num_local_experts": 8},
    "qwen2_moe": {"num_experts": 8, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {"num_experts": 8, "head_dim": 16},
    "olmoe": {"num_experts": 8},
    "deepseek_v2": {
        "n_routed_experts": 8, "n_shared_experts": 1, "first_k_dense_replace": 1, "num_hidden_layers": 3, "kv_lora_rank": 16,
        "q_lora_rank": None, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16, "head_dim": 16,
        "topk_method": "greedy", "n_group": 1, "topk_group": 1,
    },
    "gpt_oss": {"num_local_experts": 8, "head_dim": 16, "layer_types": ["full_attention", "full_attention"]},
}  # fmt: skip


def tiny_model(family: str, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A random model whose routers really choose (routers start at zero in several families)."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **(SMALL | FAMILIES.get(family, {}) | changes))
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    if dtype == torch.float64:
        model.set_experts_implementation("eager")  # grouped_mm has no float64
    return model


def plan_for(model: PreTrainedModel, kept: list[int]) -> Plan:
    """The same choice in every block."""
    blocks = find_blocks(model)
    choice = {block.name: BlockPlan(experts=block.expert_count, kept=kept) for block in blocks}
    return Plan.of_experts(model="tiny", criterion="by hand", keep=len(kept), experts_per_token=min(2, len(kept)), blocks=choice)


@torch.no_grad()
def logits_of(model: PreTrainedModel, length: int = 24) -> torch.Tensor:
    """Logits [2, length, V] for two fixed random sequences."""
    ids = torch.randint(3, 64, (2, length), generator=torch.Generator().manual_seed(1))
    return model(ids, use_cache=False).logits


@pytest.fixture(autouse=True)
def loud_console() -> Iterator[None]:
    """Who silences the console lets it speak again: a hundred tests behind read what it says."""
    yield
    distributed = sys.modules.get("toolkit.runtime.distributed")
    assert not (distributed and distributed.console.quiet)


@pytest.fixture
def tiny_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Saves a tiny random model, with the playground's tokenizer unless its vocabulary is smaller."""

    def save(family: str = "mixtral", **changes: object) -> Path:
        folder = tmp_path / f"tiny_{family}"
        model = tiny_model(family, **({"vocab_size": 768, "eos_token_id": 1} | changes))  # type: ignore[arg-type]
        model.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            (folder / name).write_bytes((PLAYGROUND / "model" / name).read_bytes())
        return folder

    return save


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    """The playground's, unless a file has one of its own."""
    return load_tokenizer(str(PLAYGROUND / "model"))


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    """The playground's, unless a file has one of its own."""
    return load_model(str(PLAYGROUND / "model"))


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, in which recipes run as in the repository, and leave nothing there."""
    for folder in ("recipes", "data", "toolkit"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


SLOW = {
    "benchmarks/test_allocation_benchmark.py", "benchmarks/test_gpu.py", "benchmarks/test_scaling_table.py",
    "benchmarks/test_small_benchmarks.py", "benchmarks/test_training_benchmark.py", "calibration/test_exhaustive_search.py",
    "calibration/test_greedy_search.py", "calibration/test_passes.py", "cli/test_chat.py", "cli/test_cli.py",
    "cli/test_interrupt.py", "cli/test_looking_at_models.py", "cuts/test_dense_families.py", "cuts/test_families.py",
    "cuts/test_layer_families.py", "cuts/test_size_families.py", "data/test_playground_generate.py",
    "docs/test_code_blocks.py", "docs/test_site.py", "evaluation/test_decoding.py", "evaluation/test_distributions.py",
    "evaluation/test_generation.py", "evaluation/test_server.py", "evaluation/test_shared_prefix.py",
    "moe/test_expert_skipping.py", "moe/test_layer_counts.py",
    "pipeline/test_advice.py", "pipeline/test_calibration_data.py", "pipeline/test_context.py", "pipeline/test_cuts_run.py",
    "pipeline/test_dense_run.py", "pipeline/test_drafts.py", "pipeline/test_estimator.py", "pipeline/test_evaluate_stage.py",
    "pipeline/test_failed_items.py", "pipeline/test_fidelity_harness.py", "pipeline/test_fit_run.py",
    "pipeline/test_grow_run.py", "pipeline/test_new_stage.py", "pipeline/test_off_task_stage.py",
    "pipeline/test_own_answers.py", "pipeline/test_refit_stage.py", "pipeline/test_rounds.py", "pipeline/test_runner.py",
    "pipeline/test_seams_run.py", "pipeline/test_skip_stage.py", "pipeline/test_stale_runs.py",
    "pipeline/test_student_stage.py", "pipeline/test_sweep.py", "pipeline/test_sweep_allocation.py",
    "pipeline/test_sweep_compression.py", "pipeline/test_sweep_cuts.py", "recipes/test_every_recipe.py",
    "recipes/test_my_data.py", "recovery/test_new_experts.py", "recovery/test_trainer.py", "report/test_browser.py",
    "tasks/test_math_scorer.py", "test_new_criterion_and_method.py", "test_python_face.py", "test_tiers.py",
}  # fmt: skip
"""Files whose tests take the longest without starting ranks (whole runs, all families): `./launch.sh test fast` leaves them
out."""


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the slow files. Files that start real ranks come first: on two workers, none of them is left for the end."""
    for item in items:
        if item.path.relative_to(ROOT / "tests").as_posix() in SLOW:
            item.add_marker("slow")
        if item.path.parent.name == "readers":
            item.add_marker("readers")
            item.add_marker("slow")
    launching = {item.path for item in items if item.get_closest_marker("launcher")}
    items.sort(key=lambda item: item.path not in launching)


@contextmanager
def raises(code: str, *named: object) -> Iterator[pytest.ExceptionInfo[PollardError]]:
    """A PollardError of this kind is raised inside, and its message names every value: what people must be told, however it
    is worded."""
    with pytest.raises(PollardError) as caught:
        yield caught
    assert caught.value.code == code, f"{caught.value.code}: {caught.value}"
    missing = [value for value in named if str(value) not in str(caught.value)]
    assert not missing, f"{missing} not named in: {caught.value}"
