"""Laws of the seam loss: it compares what it says, vanishes where nothing is missing, and teaches the layers before a gap."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import raises, tiny_model
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from toolkit.cuts import LayersCut, Plan, apply_plan
from toolkit.moe import find_blocks, logits_at
from toolkit.recovery import seam_columns, teacher
from toolkit.recovery.distillation import COLUMNS, IGNORED, SEAM_COLUMNS, TeacherCollator
from toolkit.recovery.recover import _row
from toolkit.recovery.seam_columns import SeamColumns, TeacherStates
from toolkit.recovery.seams import SeamObserver, Seams, most_seams, observing_seams, seam_loss, seams_of
from toolkit.recovery.teacher import TeacherCache, cache_logits, predicted_tokens
from toolkit.recovery.top_logits import bytes_per_token
from toolkit.tasks import Encoded

VOCABULARY, LAYERS, HIDDEN = 64, 6, 32
KEPT = (0, 1, 4)  # gaps before layer 4 and at the end
BFLOAT16 = 2**-8


def layered(family: str = "mixtral", layers: int = LAYERS) -> PreTrainedModel:
    types = {"layer_types": ["full_attention"] * layers} if family == "gpt_oss" else {}
    return tiny_model(family, num_hidden_layers=layers, **types)


def plan_of(model: PreTrainedModel, kept: tuple[int, ...] = KEPT) -> Plan:
    return Plan(model="tiny", experts_per_token=2, cuts=[LayersCut.of(model, kept, "by hand")])


def examples(number: int = 9) -> list[Encoded]:
    """Of other lengths, so that batches are padded; the last is plain text."""
    draw = torch.Generator().manual_seed(3)
    ids = [torch.randint(3, VOCABULARY, (6 + i % 5,), generator=draw).tolist() for i in range(number)]
    return [Encoded(tokens, 0 if i == number - 1 else 2 + i % 3) for i, tokens in enumerate(ids)]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seam_columns, "EXAMPLES", 4)


@pytest.fixture
def model() -> PreTrainedModel:
    return layered()


@pytest.fixture
def large() -> PreTrainedModel:
    """Projections are smaller than its states."""
    return tiny_model("mixtral", num_hidden_layers=LAYERS, hidden_size=128)


@pytest.fixture
def student(model: PreTrainedModel) -> PreTrainedModel:
    return apply_plan(layered(), plan_of(model))


def make_cache(model: PreTrainedModel, folder: Path, seams: Seams | None) -> TeacherCache:
    cache_logits(model, examples(), folder, 2.0, 3, 0, "fingerprint", seams, seed=7)
    return TeacherCache(folder, examples(), 2.0, VOCABULARY, seams)


def limit_disk(monkeypatch: pytest.MonkeyPatch, free: float) -> None:
    monkeypatch.setattr(teacher.shutil, "disk_usage", lambda path: type("Usage", (), {"free": int(free)}))


def bytes_in_all(per_token: int) -> int:
    return per_token * sum(map(predicted_tokens, examples()))


WHOLE = bytes_per_token(VOCABULARY) + 2 * 2 * HIDDEN
PROJECTED = bytes_per_token(VOCABULARY) + 2 * (2 * 64 + 4)


@torch.no_grad()
def states_of(model: PreTrainedModel, encoded: Encoded) -> list[torch.Tensor]:
    """What every layer reads where completion tokens are predicted, alone and unpadded; the last state has passed the norm."""
    found = model(torch.tensor([encoded.input_ids]), output_hidden_states=True, use_cache=False).hidden_states
    return [state[0, max(encoded.prompt_length, 1) - 1 : -1] for state in found]


def batch_of(cache: TeacherCache, chosen: list[int]) -> dict[str, Any]:
    rows = [{"example": number, **_row(examples()[number])} for number in chosen]
    return TeacherCollator(DataCollatorForLanguageModeling(pad_token_id=0), cache, with_states=True)(rows)


def loss_of(observer: SeamObserver, batch: dict[str, Any]) -> torch.Tensor:
    counted, states = batch["labels"][:, 1:] != IGNORED, dict[int, torch.Tensor]()
    with observer.watching(counted, states):
        logits_at(observer.model, {name: batch[name] for name in ("input_ids", "attention_mask")}, counted)
    hidden, length = (batch[name].view(kind) for name, kind in zip(SEAM_COLUMNS, (torch.bfloat16, torch.float32), strict=True))
    return observer.loss(states, TeacherStates(hidden, length))


@pytest.mark.parametrize(
    ("kept", "student", "original"),
    [
        ((0, 1, 4), [2, 3], [4, 6]),
        ((0, 2, 4, 5), [1, 2], [2, 4]),
        ((0, 1, 2, 3, 5), [4], [5]),
        ((2, 3, 4, 5), [0], [2]),
        ((0, 1, 2), [3], [6]),
        ((0, 1, 2, 3, 4, 5), [], []),
    ],
)
def test_a_seam_is_where_the_number_of_the_layer_jumps(kept: tuple[int, ...], student: list[int], original: list[int]) -> None:
    seams = Seams("model.layers", LAYERS, kept)
    assert ([*seams.of_student], [*seams.of_original]) == (student, original)
    assert len(student) == most_seams(LAYERS, kept) <= most_seams(LAYERS, len(kept))


def test_without_a_gap_there_is_nothing_to_compare(model: PreTrainedModel) -> None:
    with raises("seams.no-gap", "finetuning.distillation.hidden", "pruning.layers"):
        seams_of(plan_of(model, tuple(range(LAYERS))))


def test_the_cache_holds_what_every_familys_layers_read(family: str, tmp_path: Path) -> None:
    model = layered(family)
    seams = seams_of(plan_of(model))
    cache = make_cache(model, tmp_path / "teacher", seams)
    for number, encoded in enumerate(examples()):
        live, cached = states_of(model, encoded), cache.states(number)
        torch.testing.assert_close(cached.hidden_NGD[:, 0].float(), live[4], rtol=BFLOAT16, atol=1e-2)
        last = model.base_model.norm(cached.hidden_NGD[:, 1].float())
        torch.testing.assert_close(last, live[-1], rtol=3 * BFLOAT16, atol=1e-2)
        torch.testing.assert_close(cached.length_NG[:, 0], live[4].norm(dim=-1), rtol=BFLOAT16, atol=0)


def test_hidden_states_cost_two_bytes_a_number_and_change_no_logits(
    model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "EXAMPLES", 4)  # the same batches in both
    plain, with_states = (
        make_cache(model, tmp_path / "plain", None),
        make_cache(model, tmp_path / "states", seams_of(plan_of(model))),
    )
    for number in range(len(examples())):
        assert all(torch.equal(a, b) for a, b in zip(plain.rows(number), with_states.rows(number), strict=True))
    for folder, each in (("plain", bytes_per_token(VOCABULARY)), ("states", WHOLE)):
        tensors = [tensor for path in (tmp_path / folder).glob("*.safetensors") for tensor in load_file(path).values()]
        assert sum(tensor.nbytes for tensor in tensors) == bytes_in_all(each)


def test_without_the_seam_loss_the_cache_is_what_it_was(model: PreTrainedModel, tmp_path: Path) -> None:
    make_cache(model, tmp_path, None)
    about = json.loads((tmp_path / "about.json").read_text())
    assert [*about] == [
        "format", "top", "temperature", "vocabulary", "examples", "tokens", "examples_per_file", "bytes_per_token", "data",
        "fingerprint",
    ]  # fmt: skip
    assert about["examples_per_file"] == 256
    assert {*load_file(tmp_path / "00000.safetensors")} == {"index", "offset", "tail"}


def by_definition(student: torch.Tensor, original: torch.Tensor) -> float:
    s, t = student.double(), original.double()
    cosine = (s * t).sum(-1) / (s.norm(dim=-1) * t.norm(dim=-1))
    return float((1 - cosine + (s.norm(dim=-1) / t.norm(dim=-1) - 1) ** 2).sum())


def test_the_loss_of_a_padded_batch_is_the_formula_example_by_example(
    model: PreTrainedModel, student: PreTrainedModel, tmp_path: Path
) -> None:
    seams = seams_of(plan_of(model))
    cache = make_cache(model, tmp_path / "teacher", seams)
    assert cache.columns
    observer, chosen = SeamObserver(student, seams, cache.columns), [7, 8, 2]
    expected = 0.0
    for number in chosen:
        mine, live = states_of(student, examples()[number])[2], states_of(model, examples()[number])[4]
        expected += by_definition(mine, live) / 2
    states: dict[int, torch.Tensor] = {}
    for number in chosen:  # of the end: by what it holds
        ids = torch.tensor([examples()[number].input_ids])
        counted = torch.zeros(1, ids.shape[1] - 1, dtype=torch.bool)
        counted[:, max(examples()[number].prompt_length, 1) - 1 :] = True
        with observing_seams(student, "model.layers", [3], counted, states), torch.no_grad():
            student(ids, use_cache=False)
        expected += by_definition(states[3], cache.states(number).hidden_NGD[:, 1].float()) / 2
    found = loss_of(observer, batch_of(cache, chosen))
    assert found.item() == pytest.approx(expected, rel=1e-2) and expected > 1


@pytest.mark.parametrize("free", [1e12, bytes_in_all(PROJECTED)])
def test_the_loss_of_the_original_itself_is_nothing(
    free: float, large: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All layers are kept, and compared all the same."""
    limit_disk(monkeypatch, free)
    model = large
    seams = seams_of(plan_of(model))
    cache = make_cache(model, tmp_path / "teacher", seams)
    assert cache.columns and (cache.columns.seed is None) == (free == 1e12)
    states, batch = dict[int, torch.Tensor](), batch_of(cache, [0, 5, 8])
    counted = batch["labels"][:, 1:] != IGNORED
    with torch.no_grad(), observing_seams(model, seams.path, seams.of_original, counted, states):
        model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    hidden, length = batch[SEAM_COLUMNS[0]].view(torch.bfloat16), batch[SEAM_COLUMNS[1]].view(torch.float32)
    for place, number in enumerate(seams.of_original):
        loss = seam_loss(states[number], hidden[:, place], length[:, place], cache.columns.projection)
        assert loss.item() / counted.sum().item() == pytest.approx(0, abs=3e-5)


@pytest.mark.parametrize("checkpointing", [None, False, True])
@pytest.mark.parametrize("adapted", [False, True])
def test_gradients_reach_the_layers_before_the_gap_and_no_others(
    model: PreTrainedModel, student: PreTrainedModel, tmp_path: Path, adapted: bool, checkpointing: bool | None
) -> None:
    """`checkpointing`: None or `use_reentrant`."""
    seams = seams_of(plan_of(model, (0, 1, 4, 5)))
    cache = make_cache(model, tmp_path / "teacher", seams)
    assert cache.columns
    net: Any = apply_plan(layered(), plan_of(model, (0, 1, 4, 5))).train()
    if adapted:
        experts = [f"{block.experts_name}.down_proj" for block in find_blocks(net)]
        net = get_peft_model(net, LoraConfig(target_modules=["q_proj"], target_parameters=experts, init_lora_weights=False))
        net.enable_input_require_grads()
    batch = batch_of(cache, [1, 6])

    def gradients() -> dict[str, torch.Tensor]:
        net.zero_grad()
        loss_of(SeamObserver(net, seams, cache.columns), batch).backward()  # type: ignore[arg-type]
        return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}

    plain = gradients()
    touched = {int(name.partition("layers.")[2].partition(".")[0]) for name in plain if "layers." in name}
    assert touched == {0, 1}
    assert any(".experts." in name for name in plain) and not any("lm_head" in name for name in plain)
    if checkpointing is not None:
        net.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        again = gradients()
        assert again.keys() == plain.keys()
        assert all(torch.allclose(again[name], plain[name], rtol=1e-4, atol=1e-6) for name in plain)


def test_it_is_learned(model: PreTrainedModel, student: PreTrainedModel, tmp_path: Path) -> None:
    seams = seams_of(plan_of(model))
    cache = make_cache(model, tmp_path / "teacher", seams)
    assert cache.columns
    observer, batch = SeamObserver(student, seams, cache.columns), batch_of(cache, [0, 1, 2])
    optimizer, losses = torch.optim.Adam(student.parameters(), 1e-2), []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append(loss := loss_of(observer, batch))
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]


def test_parts_of_a_thousand_tokens_change_nothing(
    monkeypatch: pytest.MonkeyPatch, model: PreTrainedModel, tmp_path: Path
) -> None:
    found, seams = [], seams_of(plan_of(model))
    cache = make_cache(model, tmp_path / "teacher", seams)
    assert cache.columns
    for at_once in (1024, 3):
        monkeypatch.setattr("toolkit.recovery.seams.TOKENS_AT_ONCE", at_once)
        net = apply_plan(layered(), plan_of(model))
        loss = loss_of(SeamObserver(net, seams, cache.columns), batch_of(cache, [0, 5, 8]))
        loss.backward()
        found.append((loss.detach(), net.get_input_embeddings().weight.grad))
    torch.testing.assert_close(found[0], found[1])


def test_the_projection_keeps_cosines_and_is_the_seeds() -> None:
    draw = torch.Generator().manual_seed(0)
    one = torch.randn(400, 512, generator=draw)
    for share in (0.0, 0.5, 0.95):  # of it in the other
        other = share * one + (1 - share**2) ** 0.5 * torch.randn(400, 512, generator=draw)
        columns = SeamColumns((3,), 512, seed=11)
        (a, lengths), (b, _) = columns.stored({3: one}), columns.stored({3: other})
        error = cosine_similarity(a[:, 0].float(), b[:, 0].float()) - cosine_similarity(one, other)
        assert error.pow(2).mean().sqrt() < 1.2 * (1 - share**2) / 8 + 2e-3
        assert a.shape == (400, 1, 64) and torch.equal(lengths[:, 0], one.norm(dim=-1))
    again, differently = SeamColumns((3,), 512, seed=11).projection, SeamColumns((3,), 512, seed=12).projection
    assert again is not None and differently is not None
    assert torch.equal(again, SeamColumns((5,), 512, seed=11).projection) and not torch.allclose(again, differently)  # type: ignore[arg-type]


def test_a_full_disk_is_met_by_projections_which_a_killed_cache_keeps(
    large: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seams, folder = seams_of(plan_of(large)), tmp_path / "teacher"
    limit_disk(monkeypatch, bytes_in_all(PROJECTED))
    make_cache(large, tmp_path / "undisturbed", seams)
    written: list[Path] = []

    def killed_in_the_second(tensors: dict, path: Path) -> None:
        written.append(path)
        if len(written) == 2:
            raise KeyboardInterrupt
        save_file(tensors, path)

    monkeypatch.setattr(teacher, "save_file", killed_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        make_cache(large, folder, seams)
    limit_disk(monkeypatch, 1e12)  # there would be room by now
    capsys.readouterr()
    cache = make_cache(large, folder, seams)
    assert cache.columns == SeamColumns((4, 6), 128, seed=7)
    assert json.loads((folder / "about.json").read_text())["hidden"] == {
        "seams": [4, 6], "size": 128, "projected": 64, "seed": 7,
    }  # fmt: skip
    assert "64 projected numbers" in capsys.readouterr().out and len(written) == 4
    for path in (tmp_path / "undisturbed").iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes()
    make_cache(large, tmp_path / "whole", seams)
    assert "whole: 128 numbers of 16 bits" in capsys.readouterr().out


def test_whole_states_stay_whole_when_the_disk_fills_up(
    large: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seams = seams_of(plan_of(large))
    make_cache(large, tmp_path, seams)
    (tmp_path / "00001.safetensors").unlink()
    limit_disk(monkeypatch, 100)
    with raises("recovery.no-disk-space", tmp_path, "finetuning.examples"):
        make_cache(large, tmp_path, seams)
    assert "projected" not in json.loads((tmp_path / "about.json").read_text())["hidden"]


def test_a_disk_that_is_too_small_for_projections_is_refused(
    large: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_disk(monkeypatch, bytes_in_all(PROJECTED) - 1)
    with raises("recovery.no-disk-space", tmp_path / "teacher", f"{PROJECTED} bytes"):
        make_cache(large, tmp_path / "teacher", seams_of(plan_of(large)))


def test_a_cache_of_other_seams_is_refused_and_the_control_needs_none(model: PreTrainedModel, tmp_path: Path) -> None:
    mine, others = seams_of(plan_of(model)), seams_of(plan_of(model, (0, 3, 4)))
    make_cache(model, tmp_path / "mine", mine)
    make_cache(model, tmp_path / "plain", None)
    for folder in ("mine", "plain"):
        with raises("recovery.other-teacher-cache", tmp_path / folder, "`hidden`", [3, 6]):
            TeacherCache(tmp_path / folder, examples(), 2.0, VOCABULARY, others)
    control = TeacherCache(tmp_path / "mine", examples(), 2.0, VOCABULARY)
    batch = TeacherCollator(DataCollatorForLanguageModeling(pad_token_id=0), control)([{"example": 0, **_row(examples()[0])}])
    assert {*COLUMNS} < batch.keys() and not {*SEAM_COLUMNS} & batch.keys()


def test_damaged_states_are_named(model: PreTrainedModel, tmp_path: Path) -> None:
    cache = make_cache(model, tmp_path, seams_of(plan_of(model)))
    path = tmp_path / "00001.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"hidden": tensors["hidden"] * torch.nan}, path)
    with raises("recovery.damaged-teacher-cache", "00001.safetensors"):
        TeacherCache(tmp_path, examples(), 2.0, VOCABULARY, seams_of(plan_of(model))).states(5)
    assert cache.states(0).hidden_NGD.isfinite().all()


def test_students_that_cannot_learn_by_it_are_refused(model: PreTrainedModel, student: PreTrainedModel) -> None:
    columns = SeamColumns((2,), HIDDEN)
    with raises("seams.other-model", 5, "has 3 in model.layers"):
        SeamObserver(student, seams_of(plan_of(model, (0, 1, 2, 3, 5))), columns)
    first_gone = (2, 3, 4, 5)
    net = apply_plan(layered(), plan_of(model, first_gone))
    SeamObserver(net, seams_of(plan_of(model, first_gone)), columns)  # embeddings train
    net.get_input_embeddings().requires_grad_(False)
    with raises("seams.nothing-before", "layer 2", "finetuning.method=full"):
        SeamObserver(net, seams_of(plan_of(model, first_gone)), columns)


def test_several_residual_streams_are_refused() -> None:
    with raises("seams.several-streams", 64, HIDDEN):
        SeamColumns((2,), HIDDEN).stored({2: torch.zeros(3, 64)})
