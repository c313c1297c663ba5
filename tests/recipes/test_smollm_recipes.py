"""The real model's two recipes, one after the other, on a tiny dense model with the real one's tokenizer and chat template."""

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT, tiny_model
from smollm import write_smollm_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import toolkit
from toolkit.moe import find_blocks
from toolkit.pipeline.runner import run
from toolkit.recipe.file import load_recipe
from toolkit.runtime import distributed

QUICK = [
    "calibration.examples=4", "finetuning.trainer.max_steps=2", "finetuning.trainer.per_device_train_batch_size=2",
    "finetuning.trainer.save_strategy=no", "evaluation.examples=2", "evaluation.max_new_tokens=2",
]  # fmt: skip


def experts_of(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder)
    return torch.stack([block.experts.down_proj.detach() for block in find_blocks(model)])  # type: ignore[union-attr,arg-type]


def test_equal_experts_grow_apart_in_the_mix_and_half_of_them_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_smollm_tokenizer(tmp_path / "dense")
    size = {"vocab_size": 49152, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "max_position_embeddings": 512}
    tiny_model("llama", tie_word_embeddings=True, **size).save_pretrained(tmp_path / "dense")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(ROOT / "data")
    toolkit.upcycle("dense", "experts/smollm", toolkit.CopiesForm(experts=8, redraw=0.0))
    before = experts_of(tmp_path / "experts" / "smollm")
    assert torch.equal(before, before[:, :1].expand_as(before))

    distributed.start()
    try:
        run(load_recipe(ROOT / "recipes" / "smollm-mix.yaml", QUICK), until="recover")
        run(load_recipe(ROOT / "recipes" / "smollm.yaml", QUICK))
    finally:
        distributed.stop()
    mixed = experts_of(tmp_path / "runs" / "smollm-mix" / "recovered")
    assert mixed.shape == before.shape and not torch.equal(mixed[:, 0], mixed[:, 1])
    folder = tmp_path / "runs" / "smollm"
    assert experts_of(folder / "recovered").shape[1] == 4
    assert {
        json.loads((folder / f"evaluation/{role}.json").read_text())["n"] for role in ("original", "pruned", "recovered")
    } == {2}
    question = [{"role": "user", "content": "Hello"}]
    rendered = [
        AutoTokenizer.from_pretrained(path).apply_chat_template(question, tokenize=False)
        for path in ("dense", folder / "recovered")
    ]
    assert rendered[0] == rendered[1] and "<|im_start|>" in rendered[0]
