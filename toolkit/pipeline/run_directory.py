"""runs/<name>/: where everything is, who works in it, and whose files are in it."""

import fcntl
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from toolkit.pipeline.manifest import STALE, UNFINISHED, Manifest
from toolkit.pipeline.recipe_changes import differing, still_differing
from toolkit.recipe.file import read_values
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import JsonObject, fingerprint_of, set_aside, write_text
from toolkit.runtime.run_files import (
    RESUMED_FOLDERS,
    RUN_FILE_PATTERNS,
    foreign_entries,
    free_name,
    matching_files,
    remove_files,
    remove_half_written,
    remove_matching,
)
from toolkit.runtime.run_paths import RunPaths
from toolkit.runtime.signed_folders import foreign_files, remove_own


class RunDirectory(RunPaths, Manifest):
    """Paths and manifest of one run."""

    def __init__(self, name: str, root: str | Path = "runs") -> None:
        super().__init__(name, root)
        self._lock: IO[str] | None = None

    @property
    def another_name(self) -> str:
        """An override that makes the same run elsewhere: "name=small-2"."""
        return f"name={free_name(self.path)}"

    def lock(self) -> None:
        """Takes the folder for this process until `unlock` or its death; raises PollardError while another has it.

        A killed launcher can leave ranks behind that still write.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / "lock").open("a")
        except OSError as error:
            raise PollardError(
                f"Cannot write into {self.path}: {error.strerror}. Start in a folder where you may write: runs/ is made there.",
                code="run.not-writable",
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.unlock()
            raise PollardError(
                f"Another run is at work in {self.path}: wait for it, stop it (`pkill -f toolkit/train.py` ends all of them), "
                "or give this one another name (name=…).",
                code="run.locked",
            ) from None

    def unlock(self) -> None:
        if self._lock:
            self._lock.close()
            self._lock = None

    def is_locked(self) -> bool:
        """Whether a process is at work in the folder."""
        try:
            with (self.path / "lock").open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # there is none
            return False
        return False

    def check_owner(self, model: str, task: str) -> None:
        """Raises PollardError if the folder holds the run of another model or task, or files that no run has left there."""
        if self.path.exists() and not self.path.is_dir():
            raise PollardError(f"{self.path} is a file: give the run another name ({self.another_name}).", code="run.is-a-file")
        if not self.manifest.exists() and (there := foreign_entries(self.path)):
            more = f" and {len(there) - 5:,} more" if len(there) > 5 else ""
            raise PollardError(
                f"{self.path} has no manifest.json, so it is no run directory, and holds {', '.join(there[:5])}{more}. Nothing "
                f"of it is touched: give the run another name ({self.another_name}).",
                code="run.foreign-files",
            )
        manifest = self.read_manifest()
        for key, mine in (("model", model), ("task", task)):
            theirs = manifest.get(key, mine)
            if theirs != mine:
                raise PollardError(
                    f"{self.path} holds a run with {key} {theirs}, and this recipe says {mine}. "
                    f"Give the new run another name ({self.another_name}).",
                    code="run.other-owner",
                )

    def open(
        self,
        model: str,
        task: str,
        recipe: str,
        todo: Iterable[str],
        planned: Sequence[str] = (),
        decided_by: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Makes the folder this run's, with `recipe` (YAML), and marks as stale what the stages in `todo` have left.

        `planned` are all stages of the recipe; `decided_by` says of each which sections of a recipe decide it. Removes what
        killed stages left under temporary names. Marking comes first: a kill in the middle must not leave entries that look
        current beside new files.
        """
        manifest = self.read_manifest() | {"model": model, "task": task}
        if planned:
            manifest["planned"] = list(planned)
        for name in set(todo) & manifest["stages"].keys():
            if manifest["stages"][name].get("status") != UNFINISHED:
                manifest["stages"][name]["status"] = STALE
        changed, new = self._changes(recipe)
        for name, entry in manifest["stages"].items():
            if entry.get("status") in (STALE, UNFINISHED) and new:
                if name in (decided_by or {}):
                    entry["decided_by"] = list((decided_by or {})[name])
                entry["made_with"] = still_differing(entry.get("made_with", {}), changed, new)
        self._write(manifest)
        self.write_editable(self.recipe, recipe)
        remove_half_written(self.path)

    def made_with(self, stage: str, recipe: str) -> JsonObject:
        """The keys that what lies there of a stage was made with and `recipe` (YAML) sets otherwise."""
        return still_differing(self.entries().get(stage, {}).get("made_with", {}), *self._changes(recipe))

    def _changes(self, recipe: str) -> tuple[JsonObject, JsonObject]:
        """What `recipe` changes against the one that lies there, with its values before; and the new values."""
        try:
            old, new = read_values(self.recipe.read_text(encoding="utf-8")), read_values(recipe)
        except (OSError, ValueError):  # there is none yet, or somebody has edited it
            old = new = {}
        return (differing(old, new), new) if isinstance(old, dict) and isinstance(new, dict) else ({}, {})

    def write_editable(self, path: Path, text: str) -> None:
        """Writes a file that people may have edited since: theirs is kept under another name (recipe.edited.yaml), and said."""
        name, manifest = path.name, self.read_manifest()
        ours = manifest.get("written", {}).get(name)
        there = path.read_text(encoding="utf-8", errors="replace") if path.exists() else None
        if there is not None and there != text and ours not in (None, fingerprint_of(there)):
            set_aside(path)
        if there != text:
            write_text(path, text)
        if ours != fingerprint_of(text) and self.manifest.exists():
            manifest["written"] = manifest.get("written", {}) | {name: fingerprint_of(text)}
            self._write(manifest)

    def forget(self, resumed: Iterable[str]) -> None:
        """Removes half-written checkpoints, and empties the folders `resumed`: stages would go on from what they hold instead of
        beginning again. What lies there and is somebody else's stays."""
        resumed = list(resumed)
        for name in resumed:
            remove_matching(self.path / name, RUN_FILE_PATTERNS[name])
        for name in RESUMED_FOLDERS:
            if (partial := self.path / name).is_dir() and not foreign_files(partial):
                remove_own(partial)
        for log in self.evaluation.glob("*.answers"):
            self.clear(log.relative_to(self.path).as_posix())
        for inner in self.inner_runs():
            inner.begin(*inner.entries())
            inner.forget(resumed)

    def inner_runs(self) -> list["RunDirectory"]:
        """Runs of their own that this one has in its folder: rounds, and what a fit observes and tries."""
        folders = [self.rounds, self.fit, self.fit / "trials"]
        found = sorted(path for folder in folders for path in folder.glob("*") if (path / "manifest.json").exists())
        return [RunDirectory(path.name, path.parent) for path in found]

    def clear(self, scratch: str) -> None:
        """Removes of a folder that a stage needed what is ours, and the one it stands in where nothing else does."""
        if scratch:
            top, folder = scratch.partition("/")[0], self.path / scratch
            remove_files(
                [path for path in matching_files(self.path / top, RUN_FILE_PATTERNS[top]) if folder in path.parents], folder
            )
            with suppress(OSError):
                folder.parent.rmdir()
