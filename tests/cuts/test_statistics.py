from pathlib import Path

import pytest
import torch
from conftest import raises
from safetensors.torch import load_file

from toolkit.cuts.statistics import BlockStatistics, ExpertStatistics, SourceStatistics, StatisticsFacts, mix

BLOCK = "model.layers.0.mlp"


def statistics() -> ExpertStatistics:
    """One block of four experts; expert 3 was never reached."""
    counts = {"prompt": [4, 0, 2, 0], "completion": [1, 1, 0, 0]}
    largest = {"prompt": [2.5, 0.0, 1.0, 0.0], "completion": [3.0, 0.5, 0.0, 0.0]}
    vectors = {f"{BLOCK}/count/{part}": torch.tensor(values, dtype=torch.float64) for part, values in counts.items()}
    vectors |= {f"{BLOCK}/max_norm/{part}": torch.tensor(values, dtype=torch.float64) for part, values in largest.items()}
    blocks = {BLOCK: BlockStatistics(4, 2, tokens={"prompt": 3, "completion": 1})}
    return ExpertStatistics(vectors, StatisticsFacts(blocks, "some/model", task="gsm8k", seed=0))


def test_save_then_load_changes_nothing(tmp_path: Path) -> None:
    saved = statistics()
    saved.vectors[f"{BLOCK}/count/prompt"] += 1 / 3  # every bit of a float64 survives
    saved.save(tmp_path)
    loaded = ExpertStatistics.load(tmp_path)
    assert loaded.about == saved.about and loaded.blocks == [BLOCK]
    assert loaded.vectors.keys() == saved.vectors.keys()
    assert all(torch.equal(loaded.vectors[name], saved.vectors[name]) for name in saved.vectors)


# The file's keys and types are a contract: other tools read it too.
def test_the_file_holds_float64_under_block_statistic_and_part(tmp_path: Path) -> None:
    statistics().save(tmp_path)
    vectors = load_file(tmp_path / "statistics.safetensors")
    assert set(vectors) == {f"{BLOCK}/{name}/{part}" for name in ("count", "max_norm") for part in ("prompt", "completion")}
    assert {vector.dtype for vector in vectors.values()} == {torch.float64}


def test_saving_sums_up_what_was_not_observed(tmp_path: Path) -> None:
    statistics().save(tmp_path)
    about = ExpertStatistics.load(tmp_path).about.blocks[BLOCK]
    assert about.unobserved == [3]
    use = torch.tensor([5, 1, 2]) / 8
    assert about.entropy_bits == pytest.approx(float(-(use * use.log2()).sum()), abs=1e-4)


def test_all_tokens_are_prompt_plus_completion_and_a_maximum_is_the_larger() -> None:
    found = statistics()
    assert found.get(BLOCK, "count").tolist() == [5, 1, 2, 0]
    assert found.get(BLOCK, "max_norm").tolist() == [3.0, 0.5, 1.0, 0.0]
    for part in ("prompt", "completion"):
        assert torch.equal(found.get(BLOCK, "count", part), found.vectors[f"{BLOCK}/count/{part}"])


@pytest.mark.parametrize(("block", "statistic"), [(BLOCK, "gate_sum"), ("model.layers.9.mlp", "count")])
def test_what_was_not_watched_is_an_error(block: str, statistic: str) -> None:
    with raises("statistics.missing", f"`{statistic}`", "all tokens", block):
        statistics().get(block, statistic)


def test_missing_statistics_are_explained(tmp_path: Path) -> None:
    with raises("statistics.unreadable", tmp_path):
        ExpertStatistics.load(tmp_path)


@pytest.mark.parametrize("name", ["statistics.safetensors", "statistics.json"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe damaged", b"[]"])
def test_damaged_statistics_are_explained(tmp_path: Path, name: str, content: bytes) -> None:
    statistics().save(tmp_path)
    (tmp_path / name).write_bytes(content)
    with raises("statistics.unreadable", tmp_path):
        ExpertStatistics.load(tmp_path)


def source(completion: list[float], prompt: list[float] | None = None, **changes: list[float]) -> ExpertStatistics:
    """One block of two experts, one per token, so that counts are tokens; every sum is its count unless in `changes`."""
    prompt = prompt or [0.0, 0.0]
    vectors = {}
    for statistic in ("count", "gated_norm_sum", "max_norm"):
        for part, values in (("prompt", prompt), ("completion", changes.get(statistic, completion))):
            vectors[f"{BLOCK}/{statistic}/{part}"] = torch.tensor(values, dtype=torch.float64)
    tokens = {"prompt": int(sum(prompt)), "completion": int(sum(completion))}
    return ExpertStatistics(vectors, StatisticsFacts({BLOCK: BlockStatistics(2, 1, tokens=tokens)}, "some/model"))


def test_a_mix_of_one_is_that_one() -> None:
    only = source([3, 1])
    assert mix([only], ["a"], [0.2]) is only


# Texts ten times as long must not make a source ten times as heavy.
def test_in_a_mix_a_source_counts_by_its_share_not_by_its_tokens() -> None:
    short, long = source([3, 1]), source([0, 40])
    mixed = mix([short, long], ["short", "long"], [1, 1])
    assert mixed.get(BLOCK, "count").tolist() == pytest.approx([44 * (0.5 * 0.75), 44 * (0.5 * 0.25 + 0.5)])
    assert mixed.get(BLOCK, "count").sum() == pytest.approx(44)  # every token is still counted
    assert mix([short, long], ["s", "l"], [3, 1]).get(BLOCK, "count")[0] == pytest.approx(44 * 0.75 * 0.75)
    assert mixed.get(BLOCK, "max_norm").tolist() == [3, 40]  # a maximum has no share


def test_in_a_mix_every_kind_of_token_has_the_shares_to_itself() -> None:
    talkative, terse = source([10, 0], prompt=[0, 90]), source([0, 90], prompt=[10, 0])
    mixed = mix([talkative, terse], ["a", "b"], [1, 1])
    for tokens in ("prompt", "completion", "all"):
        count = mixed.get(BLOCK, "count", tokens)
        assert count.sum() == pytest.approx(100 if tokens != "all" else 200)
        if tokens != "all":
            assert count.tolist() == pytest.approx([50, 50])


def test_a_source_without_prompts_leaves_its_share_of_them_to_the_others() -> None:
    mixed = mix([source([3, 1], prompt=[2, 4]), source([0, 40])], ["task", "text"], [1, 3])
    assert mixed.get(BLOCK, "count", "prompt").tolist() == pytest.approx([2, 4])


def test_a_mix_survives_saving(tmp_path: Path) -> None:
    mixed = mix([source([3, 1]), source([0, 40])], ["a", "b"], [1, 1])
    mixed.save(tmp_path)
    loaded = ExpertStatistics.load(tmp_path)
    assert torch.equal(loaded.get(BLOCK, "count"), mixed.get(BLOCK, "count"))
    assert loaded.about.sources[1] == SourceStatistics("b", 0.5, {"prompt": 0, "completion": 40})
    assert set(load_file(tmp_path / "statistics.safetensors")) >= {f"0/{BLOCK}/count/prompt", f"1/{BLOCK}/count/completion"}


def test_facts_of_the_weights_are_those_of_any_source_and_no_token_decides_them() -> None:
    first, second = source([3, 1]), source([0, 40])
    fact = torch.tensor([0.5, 0.75], dtype=torch.float64)
    first.vectors[f"{BLOCK}/aimer/weights"] = torch.zeros(2, dtype=torch.float64)  # of this source no token came here
    second.vectors[f"{BLOCK}/aimer/weights"] = fact
    assert torch.equal(second.of_weights(BLOCK, "aimer"), fact)
    assert torch.equal(mix([first, second], ["a", "b"], [9, 1]).of_weights(BLOCK, "aimer"), fact)


def test_statistics_of_before_the_weights_were_looked_at_are_an_error() -> None:
    for found in (statistics(), mix([source([3, 1]), source([0, 40])], ["a", "b"], [1, 1])):
        with raises("statistics.missing", "`aimer`", "the weights", BLOCK):
            found.of_weights(BLOCK, "aimer")


# A search over one source's outputs is no search over the mix.
def test_what_does_not_add_up_is_not_carried_into_a_mix() -> None:
    first = source([3, 1])
    first.about.reconstruction = {"layerwise": {}}
    assert not mix([first, source([0, 40])], ["a", "b"], [1, 1]).about.reconstruction


# Statistics of before are read, and written again byte for byte: finished calibrations are not done again.
@pytest.mark.parametrize("name", ["single", "mix"])
def test_the_json_of_earlier_versions_is_read_and_written_unchanged(name: str) -> None:
    text = (Path(__file__).parent / f"statistics_{name}.json").read_text()
    facts = StatisticsFacts.from_json(text)
    assert facts.to_json() == text
    block = facts.blocks[BLOCK]
    assert (block.experts, block.experts_per_token, facts.examples) == (4, 2, 3)
    assert facts.tokens == sum(block.tokens.values())
