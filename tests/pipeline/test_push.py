"""Law: nothing goes to the hub but what was asked for, private unless said, and every failure is one message."""

from pathlib import Path
from typing import Any

import pytest
from conftest import raises
from made_up_run import make_run

from toolkit.pipeline import push as push_module
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.write_report import write_report
from toolkit.runtime.errors import PollardError


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = make_run(tmp_path)
    run.recovered.mkdir()
    (run.recovered / "config.json").write_text("{}")
    write_report(run.path)
    return run


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """The calls that a logged-in user's push makes."""
    calls: list[tuple[str, dict[str, Any]]] = []

    class Api:
        def __getattr__(self, name: str) -> Any:
            return lambda *given, **named: calls.append((name, named | ({"repo_id": given[0]} if given else {})))

    monkeypatch.setattr(push_module, "HfApi", Api)
    monkeypatch.setattr(push_module, "get_token", lambda: "hf_secret")
    return calls


@pytest.mark.parametrize("public", [False, True])
def test_the_recovered_model_goes_up_with_a_card_that_names_it_as_the_hub_does(
    run: RunDirectory, hub: list, public: bool
) -> None:
    assert push_module.push(str(run.path), "me/small", public).endswith("/me/small")
    (made, how), (folder, what), (file, card) = hub
    assert (made, how) == ("create_repo", {"repo_id": "me/small", "private": not public, "exist_ok": True})
    assert (folder, what["folder_path"], what["ignore_patterns"]) == ("upload_folder", run.recovered, ["README.md"])
    assert (file, card["path_in_repo"], card["repo_id"]) == ("upload_file", "README.md", "me/small")
    assert b'from_pretrained("me/small")' in card["path_or_fileobj"]


def test_what_is_no_part_of_the_model_stays_here(run: RunDirectory, hub: list) -> None:
    for name in ("pollard.json", "model.safetensors", "model.safetensors.index.json", "old.gguf", "tokenizer.json"):
        (run.recovered / name).write_text("{}")
    push_module.push(str(run.path), "me/small")
    assert hub[1][1]["ignore_patterns"] == ["README.md", "pollard.json", "model.safetensors.index.json", "old.gguf"]


def test_an_adapter_that_came_into_the_folder_is_not_pushed(run: RunDirectory, hub: list) -> None:
    (run.recovered / "adapter_config.json").write_text("{}")
    with pytest.raises(PollardError, match="holds an adapter beside the model"):
        push_module.push(str(run.path), "me/small")
    assert hub == []


def test_without_a_login_the_remedy_is_named(run: RunDirectory, hub: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_module, "get_token", lambda: None)
    with raises("push.no-login", "`hf auth login`", "HF_TOKEN"):
        push_module.push(str(run.path), "me/small")
    assert hub == []


@pytest.mark.parametrize("content", ["{", "[]", "{}", "null", '{"name": "small"}'])
def test_a_report_that_is_none_is_told(run: RunDirectory, hub: list, content: str) -> None:
    (run.path / "report.json").write_text(content)
    with raises("push.damaged-report", run.path / "report.json", f"`pollard report {run.recipe}`"):
        push_module.push(str(run.path), "me/small")
    assert hub == []


def test_a_run_without_a_model_has_nothing_to_push(tmp_path: Path, hub: list) -> None:
    run = make_run(tmp_path, until="select")
    with raises("push.no-report", run.path):
        push_module.push(str(run.path), "me/small")
    write_report(run.path)
    with raises("push.no-model", run.pruned):
        push_module.push(str(run.path), "me/small")
    assert hub == []


# With the real client: the tests run with HF_HUB_OFFLINE=1.
def test_no_way_to_the_hub_is_one_message(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_module, "get_token", lambda: "hf_secret")
    with raises("push.refused", run.recovered, "me/small", "offline", "The same command tries again") as caught:
        push_module.push(str(run.path), "me/small")
    assert "hf_secret" not in str(caught.value)


def test_a_name_that_the_hub_does_not_take_is_one_message(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_module, "get_token", lambda: "hf_secret")
    with raises("push.refused", "a/b/c"):
        push_module.push(str(run.path), "a/b/c")


def test_a_run_that_ends_with_its_refit_pushes_that(tmp_path: Path, hub: list) -> None:
    run = make_run(tmp_path, roles=("original", "pruned"), pruning={"keep": 2, "refit": True})
    run.refitted.mkdir()
    (run.refitted / "config.json").write_text("{}")
    run.finish("refit", "refit", 1.0, examples=8, tokens=100, held_out=20)
    write_report(run.path)
    push_module.push(str(run.path), "me/small")
    assert hub[1][1]["folder_path"] == run.refitted


def test_what_an_earlier_recipe_refit_keeps_nothing_from_being_pushed(tmp_path: Path, hub: list) -> None:
    run = make_run(tmp_path, roles=("original", "pruned"))
    run.pruned.mkdir()
    (run.pruned / "config.json").write_text("{}")
    run.refitted.mkdir()
    run.finish("refit", "refit", 1.0)
    run.open(*("path/of/model", "playground/logic"), run.recipe.read_text(), ["refit"], ["prune"])
    write_report(run.path)
    push_module.push(str(run.path), "me/small")
    assert hub[1][1]["folder_path"] == run.pruned
