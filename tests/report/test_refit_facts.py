"""What the report says of a refit claims no more than its numbers."""

import json
from pathlib import Path

import pytest
from made_up_run import make_run

from toolkit.pipeline.run_facts import read_run_facts
from toolkit.report import card, render
from toolkit.report.refit_facts import RefitFacts, RefitLayerFacts, refit_warnings


def layer(
    number: int, before: float = 0.5, after: float = 0.25, penalties: tuple[float | None, ...] = (0.01,)
) -> RefitLayerFacts:
    name = f"model.layers.{number}"
    return RefitLayerFacts(
        module=name, weights=[f"{name}.mlp.experts.down_proj"], target="residual", channels=64, penalties=[*penalties],
        error_before=before, error_after=after,
    )  # fmt: skip


def refit_of(*layers: RefitLayerFacts, tokens: int = 1000) -> RefitFacts:
    return RefitFacts(examples=12, tokens=tokens, held_out=250, layers=[*layers])


@pytest.mark.parametrize(
    ("penalties", "text"),
    [((0.01,), "0.01"), ((None, None), "stays"), ((0.1, None, 0.001), "0.001 to 0.1"), ((1e-6, 1e-6), "1e-06")],
)
def test_a_penalty_is_written_as_it_was_chosen(penalties: tuple[float | None, ...], text: str) -> None:
    assert layer(0, penalties=penalties).penalty_text == text


def test_the_sentence_gives_the_mean_over_layers() -> None:
    found = refit_of(layer(0, 0.6, 0.2), layer(1, 0.4, 0.4, penalties=(None,)))
    assert found.sentence.endswith("held-out error 50.0 % -> 30.0 % on average over 2 layers.")
    assert (found.unchanged, found.worst.module) == (1, "model.layers.1")
    assert "error" not in refit_of().sentence  # refit.json is gone


def test_layers_that_stayed_and_too_few_tokens_are_warned_of() -> None:
    assert not refit_warnings(None) and not refit_warnings(refit_of(layer(0))) and not refit_warnings(refit_of())
    (stayed,) = refit_warnings(refit_of(layer(0), layer(1, 0.4, 0.4, penalties=(None,))))
    (few,) = refit_warnings(refit_of(layer(0), tokens=63))
    assert "1 of 2 layers" in stayed and "64 unknowns" in few and "63 tokens" in few


@pytest.mark.parametrize("layers", [2, 40])
def test_page_and_card_show_every_layer_or_sum_many_up(tmp_path: Path, layers: int) -> None:
    run = make_run(tmp_path, pruning={"keep": 2, "refit": True})
    blocks = [layer(number, after=0.25 + number / 1000).as_json() for number in range(layers)]
    run.refit.write_text(json.dumps({"format": 1, "tokens": 1000, "held_out": 250, "blocks": blocks}))
    run.finish("refit", "refit", 1.0, examples=12, tokens=1000, held_out=250)
    facts = read_run_facts(run.path)
    page, text = render(facts), card(facts, "here")
    assert page.count('error_after" data-format="percent"') == layers
    assert ("<details open>\n  <summary>Layer by layer" in page) == (layers <= 12)
    assert text.count("| residual stream |") == (layers if layers <= 12 else 0)
    assert ("The largest error left is 28.9 %, in `model.layers.39`" in text) == (layers > 12)
    assert "\n- refit\n" in text and json.loads(json.dumps(facts.as_json()))["refit"]["layers"][1]["channels"] == 64


def test_a_report_without_a_refit_has_no_key_of_it(tmp_path: Path) -> None:
    facts = read_run_facts(make_run(tmp_path).path)
    assert "refit" not in facts.as_json() and "refitted" not in facts.as_json()["models"]
