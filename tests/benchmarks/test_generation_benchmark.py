import sys

import pytest
import torch
from conftest import PLAYGROUND, ROOT

from toolkit.evaluation import Answer
from toolkit.moe import load_model, load_tokenizer

sys.path.insert(0, str(ROOT / "benchmarks"))
import generation as benchmark


@torch.no_grad()
def test_the_wider_model_is_the_same_function() -> None:
    model = load_model(str(PLAYGROUND / "model"))
    wide = benchmark.widened(model, 256)
    assert wide.config.hidden_size == 256 and sum(p.numel() for p in wide.parameters()) > 3 * sum(
        p.numel() for p in model.parameters()
    )
    ids = torch.randint(4, 768, (2, 20), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(wide(ids).logits, model(ids).logits, atol=2e-4, rtol=1e-5)


def test_the_questions_are_of_all_tasks_and_in_no_order() -> None:
    requests = benchmark.questions(load_tokenizer(str(PLAYGROUND / "model")), 3)
    lengths = [len(request.prompt) for request in requests]
    assert len(requests) == 18 and lengths != sorted(lengths) and len(set(lengths)) > 5


def test_speeds_are_of_the_same_answers_or_none() -> None:
    right, other = {0: Answer("5", 2, True)}, {0: Answer("6", 2, True)}
    speeds = benchmark.measure({"one": lambda: right, "two": lambda: right}, 1, 3)
    assert {name: len(found) for name, found in speeds.items()} == {"one": 3, "two": 3}
    with pytest.raises(SystemExit, match="not the same answers"):
        benchmark.measure({"one": lambda: right, "two": lambda: other}, 1, 3)


def test_every_part_runs_small_and_say_what_was_reached(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["generation.py", "--hidden", "128", "--per-task", "4", "--new", "8", "--repeats", "1"])
    assert benchmark.main() in (0, 1)  # what is fast at this size is no matter
    said = capsys.readouterr().out
    for name, others in benchmark.TARGETS.items():
        assert f"{name}: {12 if name == 'choices' else 24} questions" in said and all(
            f" / {other}: median" in said for other in others
        )
