"""Which families can be written with other numbers of experts in each layer: found by building their models."""

import copy
from typing import Any

import pytest
from conftest import tiny_model
from families import EXCEPTIONS, families, tiny_family
from transformers import PreTrainedModel

from toolkit.moe import layer_counts
from toolkit.moe.layer_counts import reads_counts_per_layer, why_not_per_layer
from toolkit.moe.load import meta_model


# Where a newer transformers reads them, this fails by naming the family: then Pollard has to write them.
def test_no_installed_family_reads_them() -> None:
    found = [family for family in families() if family not in EXCEPTIONS]
    assert len(found) > 50
    assert [family for family in found if reads_counts_per_layer(tiny_family(family).config)] == []


def builds_per_layer(config: Any) -> PreTrainedModel:
    """As a family that reads them: every layer from its own configuration."""
    if not config.is_heterogeneous:
        return meta_model(config)
    counts = [layer.num_local_experts for layer in config.per_layer_config]
    uniform = copy.deepcopy(config)
    uniform.per_layer_config = None
    models = []
    for count in counts:
        uniform.num_local_experts = count
        models.append(meta_model(copy.deepcopy(uniform)))
    for number, model in enumerate(models):
        models[0].model.layers[number] = model.model.layers[number]
    return models[0]


def test_a_family_that_reads_them_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_model("mixtral").config
    before = config.to_dict()
    assert not reads_counts_per_layer(config)
    assert "no stock reader" in why_not_per_layer(config) and "mixtral" in why_not_per_layer(config)
    monkeypatch.setattr(layer_counts, "meta_model", builds_per_layer)
    assert reads_counts_per_layer(config)
    assert "no stock reader" not in why_not_per_layer(config) and "mixtral" in why_not_per_layer(config)
    assert config.to_dict() == before
