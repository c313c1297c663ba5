"""Law: a result is current exactly if its fingerprint is, and what it was made from has not been made again otherwise."""

from typing import Any

import pytest
from small_run import small_recipe

from toolkit.pipeline.context import RunContext
from toolkit.pipeline.due import is_settled, made_from, reasons
from toolkit.pipeline.stage import Facts, Stage


class Described(Stage):
    """A stage that is nothing but what decides whether it is due; `kind` is its whole name."""

    def __init__(self, name: str, mark: str, **traits: Any) -> None:
        super().__init__(RunContext(small_recipe()))
        self.kind, self.mark = name, mark  # type: ignore[misc]
        self.__dict__ |= traits

    def purpose(self) -> str:
        return ""

    def fingerprint(self) -> str:
        return f"{self.name} {self.mark}"

    def run(self) -> Facts:
        return Facts()


def stage(name: str, needs: tuple[str, ...] = (), mark: str = "1", **more: Any) -> Stage:
    return Described(name, mark, needs=needs, **more)


def a_run(mark: str = "1") -> list[Stage]:
    """Its shape is the pipeline's; `mark` stands for a key that everything but the calibration depends on."""
    return [
        stage("calibrate"),
        stage("select", ("calibrate",), mark, result="by plan"),
        stage("prune", ("select",), mark, result="by plan"),
        stage("teacher"),
        stage("recover", ("prune", "teacher"), mark, result="unique"),
        stage("evaluate/recovered", ("recover",), mark),
        stage("skip", ("recover",), mark, inside="recover"),
    ]


def finished(planned: list[Stage], entries: dict[str, Any], *names: str, making: str = "a", plan: str = "p") -> dict[str, Any]:
    """The manifest after these stages (all without names) were done."""
    for each in planned:
        if not names or each.name in names:
            entry = {"fingerprint": each.fingerprint(), "status": "done", "id": f"{each.name} {making}"}
            entry |= {"result": plan} if each.result == "by plan" else {}
            entries[each.name] = entry | {"made_from": made_from(each, planned, entries)}
    return entries


def todo(planned: list[Stage], entries: dict[str, Any]) -> list[str]:
    return [name for name, reason in reasons(planned, entries).items() if reason]


def marked(entries: dict[str, Any], status: str, *names: str) -> None:
    for name in names:
        entries[name]["status"] = status


def test_a_finished_run_has_nothing_to_do_and_a_new_one_everything() -> None:
    assert todo(a_run(), finished(a_run(), {})) == []
    assert todo(a_run(), {}) == [each.name for each in a_run()]


def test_another_fingerprint_is_done_again() -> None:
    assert todo(a_run("2"), finished(a_run(), {})) == ["select", "prune", "recover", "evaluate/recovered", "skip"]


# pruning.keep=2 as far as `prune`, then back to 4: the plan comes out as it was, so the trained model is the one asked for.
def test_what_was_trained_is_current_again_when_its_plan_is() -> None:
    entries = finished(a_run("1"), {})
    marked(entries, "stale", "recover", "evaluate/recovered", "skip")
    finished(a_run("2"), entries, "select", "prune", making="b", plan="q")
    assert todo(a_run("1"), entries) == ["select", "prune"]
    finished(a_run("1"), entries, "select", "prune", making="c", plan="p")
    assert todo(a_run("1"), entries) == []


def test_what_was_trained_is_not_current_when_the_plan_comes_out_otherwise() -> None:
    entries = finished(a_run("1"), {})
    finished(a_run("2"), entries, "select", "prune", making="b", plan="q")
    finished(a_run("1"), entries, "select", "prune", making="c", plan="another, by a hair")
    assert todo(a_run("1"), entries) == ["recover", "evaluate/recovered", "skip"]


# A training does not come out twice the same: the old score is of another model, though its fingerprint is right.
def test_a_score_is_of_the_very_model_that_was_trained() -> None:
    entries = finished(a_run("1"), {})
    marked(entries, "stale", "evaluate/recovered", "skip")
    finished(a_run("2"), entries, "select", "prune", "recover", making="b", plan="q")
    assert todo(a_run("1"), entries)[-3:] == ["recover", "evaluate/recovered", "skip"]
    finished(a_run("1"), entries, "select", "prune", "recover", making="c")
    assert todo(a_run("1"), entries) == ["evaluate/recovered", "skip"]


def test_a_stage_that_was_begun_again_is_done_again() -> None:
    entries = finished(a_run(), {})
    marked(entries, "unfinished", "evaluate/recovered")
    assert todo(a_run(), entries) == ["evaluate/recovered"]
    marked(entries, "unfinished", "recover")
    assert todo(a_run(), entries) == ["recover", "evaluate/recovered", "skip"]


def test_what_lies_in_a_folder_that_is_written_anew_is_made_again() -> None:
    inside = [stage("prune", result="by plan"), stage("skip", ("prune",), inside="prune"), stage("evaluate/skipping", ("skip",))]
    entries = finished(inside, {})
    finished(inside, entries, "prune", making="b")  # the same plan, and its folder is without thresholds
    assert todo(inside, entries) == ["skip"]


@pytest.mark.parametrize(
    ("unfinished", "expected"),
    [
        ((), []),
        (("evaluate/recovered",), ["evaluate/recovered"]),
        (("recover",), ["teacher", "recover", "evaluate/recovered", "skip"]),
    ],
)
def test_what_was_removed_to_save_space_is_made_again_only_where_it_is_needed(
    unfinished: tuple[str, ...], expected: list[str]
) -> None:
    entries = finished(a_run(), {})
    entries["teacher"]["removed"] = True
    marked(entries, "unfinished", *unfinished)
    assert todo(a_run(), entries) == expected


def test_a_manifest_of_an_earlier_version_is_taken_at_its_word() -> None:
    entries = {each.name: {"fingerprint": each.fingerprint(), "status": "done"} for each in a_run()}
    assert todo(a_run(), entries) == []


def test_fresh_asks_for_everything() -> None:
    assert set(reasons(a_run(), finished(a_run(), {}), fresh=True).values()) == {"as asked by --fresh"}


def test_a_stage_is_settled_when_all_it_was_made_from_is_current() -> None:
    planned, entries = a_run(), finished(a_run(), {})
    assert all(is_settled(each, planned, entries) for each in planned)
    marked(entries, "stale", "prune")
    assert [each.name for each in planned if not is_settled(each, planned, entries)] == ["recover"]
