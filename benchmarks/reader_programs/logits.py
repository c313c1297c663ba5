"""`python logits.py stock|compressed OUT FOLDER…`: logits and greedy tokens of each folder's model, by a reader.

OUT/<folder's name>.json: {"logits": [2, S, V], "greedy": [12]}, or {"error": "…"} with the reader's own words. `compressed`: the
folder is llm-compressor's, and is opened by the program that `pollard export` opens it with, on the path.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel


def opened(kind: str, folder: Path) -> PreTrainedModel:
    if kind == "compressed":
        import compressed_experts  # imports llm-compressor, which only its environment has

        return compressed_experts.load_compressed(str(folder))
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    if report["missing_keys"] or report["unexpected_keys"]:
        raise RuntimeError(
            f"weights that do not fit: {sorted(report['missing_keys'])[:2]} {sorted(report['unexpected_keys'])[:2]}"
        )
    return model.eval()


@torch.inference_mode()
def said(model: PreTrainedModel) -> dict[str, Any]:
    ids = torch.randint(3, 700, (2, 24), generator=torch.Generator().manual_seed(1))
    logits = model(ids, use_cache=False).logits.float()
    greedy = model.generate(
        ids[:1], attention_mask=torch.ones_like(ids[:1]), max_new_tokens=12, min_new_tokens=12, do_sample=False
    )
    return {"logits": logits[:, -1].tolist(), "greedy": greedy[0, ids.shape[1] :].tolist()}


if __name__ == "__main__":
    kind, out = sys.argv[1], Path(sys.argv[2])
    for folder in map(Path, sys.argv[3:]):
        try:
            found = said(opened(kind, folder))
        except Exception as error:  # whatever the reader raises is its result
            found = {"error": f"{type(error).__name__}: {error}"}
        (out / f"{folder.name}.json").write_text(json.dumps(found))
