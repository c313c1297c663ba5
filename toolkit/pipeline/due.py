"""Which stages must be done: because they never were, because their inputs changed, or because what they were made from is
made again.

A fingerprint covers a stage's inputs, so the results of two equal fingerprints are interchangeable, with two exceptions: a
training comes out another model each time, and a plan may differ where scores all but tie. So an entry has the `id` of its
making, that of a plan the `result`, and what is made from them notes those (`made_from`): a score belongs to the very model that
was trained.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.pipeline.manifest import DONE, UNFINISHED
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.stage import Stage
from toolkit.runtime.files import JsonObject

Entries = Mapping[str, Mapping[str, Any]]


def entries_of(planned: Sequence[Stage], directory: RunDirectory) -> dict[str, JsonObject]:
    """The manifest's entries; what somebody has removed by hand is marked as what was cleaned is."""
    entries = directory.entries()
    for stage in planned:
        if stage.name in entries and stage.is_gone(directory):
            entries[stage.name]["removed"] = True
    return entries


def reasons(planned: Sequence[Stage], entries: Entries, fresh: bool = False) -> dict[str, str]:
    """Per stage why it must be done; empty where it is done. `entries`: see `entries_of`."""
    if fresh:
        return {stage.name: "as asked by --fresh" for stage in planned}
    found = {stage.name: _own_reason(stage, entries.get(stage.name)) for stage in planned}
    while True:
        before = dict(found)
        for stage in planned:
            if not found[stage.name] and any(_made_again(need, stage, found, entries) for need in _needs(stage, planned)):
                found[stage.name] = "what it was made from is made again"
        for stage in planned:  # what was removed to save space, where somebody needs it
            removed = not found[stage.name] and entries[stage.name].get("removed")
            if removed and stage.is_small:
                found[stage.name] = f"{stage.output} is not there any more"
            elif removed and any(found[other.name] for other in planned if stage.name in other.needs):
                found[stage.name] = "removed before, and needed again"
        if found == before:
            return found


def _own_reason(stage: Stage, entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "not done yet"
    if entry.get("status") == UNFINISHED:
        return "begun before, and not finished"
    return "" if entry["fingerprint"] == stage.fingerprint() else "what it depends on has changed: done again"


def _made_again(need: Stage, stage: Stage, found: Mapping[str, str], entries: Entries) -> bool:
    """Whether what `stage` was made from is another now, or will be. Of a plan that is chosen again, its choice will tell."""
    if found[need.name]:
        return need.result == "unique" or need.name == stage.inside
    then = entries[stage.name].get("made_from", {}).get(need.name)
    return then is not None and then != _identity(need, stage, entries)


def made_from(stage: Stage, planned: Sequence[Stage], entries: Entries) -> dict[str, str | None]:
    """What identifies the results that `stage` reads, to tell later whether they are still the same."""
    return {need.name: _identity(need, stage, entries) for need in _needs(stage, planned) if need.name in entries}


def _identity(need: Stage, stage: Stage, entries: Entries) -> str | None:
    by_making = need.result == "unique" or need.name == stage.inside
    key = "id" if by_making else "result" if need.result == "by plan" else "fingerprint"
    return entries[need.name].get(key)


def _needs(stage: Stage, planned: Sequence[Stage]) -> list[Stage]:
    return [other for other in planned if other.name in stage.needs]


def is_settled(stage: Stage, planned: Sequence[Stage], entries: Entries) -> bool:
    """Whether everything that the stage was made from is current, so that an old result of it can be."""
    return all(entries.get(need.name, {}).get("status", DONE) == DONE and need.name in entries for need in _needs(stage, planned))
