"""The model card, README.md: what the hub and the next user need to know, from report.json's dictionary and nothing else."""

from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from toolkit.report.page import ROWS, environment, recipe_text

TAGS = ["pollard", "moe", "pruning", "expert-pruning"]


def card(report: dict[str, Any], where: str) -> str:
    """The card of the run's result; `where` is what to load it by: a folder, or a hub id."""
    models = report["models"]
    result = result_of(report)
    return environment().get_template("card.md.j2").render(
        report=report,
        metadata=_metadata(report, result).to_yaml(),
        result=result,
        where=where,
        rows=[row for row in ROWS if not row[1] or any(found and found.get(row[1]) is not None for found in models.values())],
        evaluated={role: found for role, found in models.items() if found},
        off_task=off_task(report),
        harness=report.get("harness") or [],
        recipe=recipe_text(report),
    )  # fmt: skip


def result_of(report: dict[str, Any]) -> str:
    """The model that the card is about: the recovered one, where the run made it."""
    return "recovered" if "recover" in report["stages"] else "pruned"


def _metadata(report: dict[str, Any], result: str) -> ModelCardData:
    origin, found = report["origin"], report["models"].get(result)
    known: dict[str, Any] = {}
    if origin["base_model"]:
        known |= {"base_model": origin["base_model"], "base_model_relation": "finetune"}
    if origin["datasets"]:
        known["datasets"] = origin["datasets"]
    if found:
        dataset = next(iter(origin["datasets"]), None)
        known["model_name"] = report["name"]
        known["eval_results"] = [
            EvalResult(
                task_type="text-generation", dataset_type=dataset or str(report["task"]), dataset_name=str(report["task"]),
                dataset_split=found["split"], metric_type="accuracy", metric_value=round(100 * found["score"], 2),
                metric_name=f"accuracy (%), {found['n']} questions",
            )
        ]  # fmt: skip
    tags = [*TAGS, *([origin["family"]] if origin["family"] else [])]
    return ModelCardData(library_name="transformers", pipeline_tag="text-generation", tags=tags, **known, **origin["card"])


def off_task(report: dict[str, Any]) -> dict[str, Any] | None:
    """What the plan's pruning alone costs elsewhere, where a sweep measured it: the original's and the pruned model's row."""
    sweep, cut = report["sweep"], report["pruning"]
    if not (sweep and cut and sweep["off_task"]):
        return None
    same = ("keep", "criterion", "tokens", "mode")
    asked = {key: cut[key] for key in same} | {"mode": (report["recipe"] or {}).get("pruning", {}).get("mode", cut["mode"])}
    row = next((row for row in sweep["rows"] if all(row.get(key) == asked[key] for key in same)), None)
    return {"name": sweep["off_task"], "original": sweep["rows"][0]["off_task"], "pruned": row["off_task"]} if row else None
