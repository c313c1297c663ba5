"""runs/<name>/: where everything is, and what of it is finished.

A stage's entry in manifest.json is written last: the entry is what says that the stage is done. Its fingerprint covers
everything that decides the stage's result; when it changes, the stage is done again. Until then the entry stays, as `stale`:
so it is known what lies there, and nothing takes it for what the recipe asks for.
"""

import fcntl
import hashlib
import json
import subprocess
import time
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import IO, Any

from rich.markup import escape

from toolkit.distributed import say
from toolkit.errors import PollardError
from toolkit.files import write_text
from toolkit.made_with import described, differing, still_differing
from toolkit.recipe_file import read_values
from toolkit.run_files import OWN, foreign_files, own_files, remove_files, remove_half_written, remove_own

PACKAGES = ("torch", "transformers", "trl", "peft", "deepspeed", "bitsandbytes", "datasets", "accelerate", "safetensors")
DONE, STALE, UNFINISHED = "done", "stale", "unfinished"  # an entry's status; the last: begun again, and not finished
RESUMED = ("checkpoints", "teacher", "answers", "fidelity")  # what stages go on from


class RunDirectory:
    """Paths and manifest of one run."""

    def __init__(self, name: str, root: str | Path = "runs") -> None:
        self.path = Path(root) / name
        self.recipe = self.path / "recipe.yaml"
        self.statistics = self.path / "calibration"
        self.plan = self.path / "plan.json"
        self.alternatives = self.path / "alternatives.json"
        self.pruned = self.path / "pruned"
        self.recovered = self.path / "recovered"
        self.control = self.path / "control"
        self.teacher = self.path / "teacher"
        self.answers = self.path / "answers"
        self.adapter = self.path / "adapter"
        self.control_adapter = self.path / "control_adapter"
        self.checkpoints = self.path / "checkpoints"
        self.training_log = self.path / "training_log.jsonl"
        self.control_log = self.path / "control_log.jsonl"
        self.rounds = self.path / "rounds"
        self.evaluation = self.path / "evaluation"
        self.fidelity = self.path / "fidelity"
        self.sweep = self.path / "sweep"
        self.manifest = self.path / "manifest.json"
        self._lock: IO[str] | None = None

    def answer_log(self, role: str) -> Path:
        """What is answered of an evaluation at work."""
        return self.evaluation / f"{role}.answers"

    def read_manifest(self) -> dict[str, Any]:
        """The manifest, or a new one. Raises PollardError for a file that cannot be understood."""
        if not self.manifest.exists():
            return {"format": 1, "stages": {}}
        try:
            manifest = json.loads(self.manifest.read_text())
            if not isinstance(manifest.get("stages"), dict):
                raise ValueError("it lists no stages")
            if not all(isinstance(entry, dict) and "fingerprint" in entry for entry in manifest["stages"].values()):
                raise ValueError("a stage's entry has no fingerprint")
            return manifest
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise PollardError(
                f"{self.manifest} is damaged ({error}): what of the run is finished cannot be told. Give the run another name "
                f"({self.another_name}), or put a copy of the file back. The models in {self.path} can be opened by their paths."
            ) from None

    @property
    def another_name(self) -> str:
        """An override that makes the same run elsewhere: "name=small-2", the first that is not taken."""
        numbered = (f"{self.path.name}-{number}" for number in count(2))
        return "name=" + next(name for name in numbered if not (self.path.parent / name).exists())

    def lock(self) -> None:
        """Takes the folder for this process until `unlock` or its death; raises PollardError while another has it.

        A killed launcher can leave ranks behind that still write.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / "lock").open("a")
        except OSError as error:
            raise PollardError(
                f"Cannot write into {self.path}: {error.strerror}. Start in a folder where you may write: runs/ is made there."
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.unlock()
            raise PollardError(
                f"Another run is at work in {self.path}: wait for it, stop it (`pkill -f toolkit/train.py` ends all of them), "
                "or give this one another name (name=…)."
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
            raise PollardError(f"{self.path} is a file: give the run another name ({self.another_name}).")
        if not self.manifest.exists() and (there := foreign_files(self.path)):
            more = f" and {len(there) - 5:,} more" if len(there) > 5 else ""
            raise PollardError(
                f"{self.path} has no manifest.json, so it is no run directory, and holds {', '.join(there[:5])}{more}. Nothing "
                f"of it is touched: give the run another name ({self.another_name})."
            )
        manifest = self.read_manifest()
        for key, mine in (("model", model), ("task", task)):
            theirs = manifest.get(key, mine)
            if theirs != mine:
                raise PollardError(
                    f"{self.path} holds a run with {key} {theirs}, and this recipe says {mine}. "
                    f"Give the new run another name ({self.another_name})."
                )

    def open(self, model: str, task: str, recipe: str, todo: Iterable[str], planned: Sequence[str] = ()) -> None:
        """Makes the folder this run's, with `recipe` (YAML), and marks as stale what the stages in `todo` have left.

        `planned` are all stages of the recipe. Removes what killed stages left under temporary names. Marking comes first: a
        kill in the middle must not leave entries that look current beside new files.
        """
        manifest = self.read_manifest() | {"model": model, "task": task}
        if planned:
            manifest["planned"] = list(planned)
        for name in set(todo) & manifest["stages"].keys():
            if manifest["stages"][name].get("status") != UNFINISHED:
                manifest["stages"][name]["status"] = STALE
        changed, new = self._changes(recipe)
        for entry in manifest["stages"].values():
            if entry.get("status") in (STALE, UNFINISHED) and new:
                entry["made_with"] = still_differing(entry.get("made_with", {}), changed, new)
        self._write(manifest)
        self.write_editable(self.recipe, recipe)
        remove_half_written(self.path)

    def made_with(self, stage: str, recipe: str) -> dict[str, Any]:
        """The keys that what lies there of a stage was made with and `recipe` (YAML) sets otherwise."""
        return still_differing(self.entries().get(stage, {}).get("made_with", {}), *self._changes(recipe))

    def _changes(self, recipe: str) -> tuple[dict[str, Any], dict[str, Any]]:
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
            numbered = (path.with_name(f"{path.stem}.edited{number}{path.suffix}") for number in ("", *range(2, 1000)))
            kept = next(at for at in numbered if not at.exists())
            path.rename(kept)
            say(f"{escape(str(path))} was edited by hand: kept as {escape(str(kept))}")
        if there != text:
            write_text(path, text)
        if ours != fingerprint_of(text) and self.manifest.exists():
            manifest["written"] = manifest.get("written", {}) | {name: fingerprint_of(text)}
            self._write(manifest)

    def has_written(self, path: Path) -> bool:
        """Whether the file's content is what `write_editable` wrote last under that name."""
        ours = self.read_manifest().get("written", {}).get(path.name)
        return path.is_file() and ours == fingerprint_of(path.read_text(encoding="utf-8", errors="replace"))

    def forget(self) -> None:
        """Removes what a stage would go on from instead of beginning again. What lies there and is somebody else's stays."""
        for name in RESUMED:
            remove_own(self.path / name, OWN[name])
        for log in self.evaluation.glob("*.answers"):
            self.clear(log.relative_to(self.path).as_posix())
        for folder in self.rounds.glob("[0-9]*"):
            if (earlier := RunDirectory(folder.name, self.rounds)).manifest.exists():
                earlier.begin(*earlier.entries())
                earlier.forget()

    def clear(self, scratch: str) -> None:
        """Removes of a folder that a stage needed what is ours, and the one it stands in where nothing else does."""
        if scratch:
            top, folder = scratch.partition("/")[0], self.path / scratch
            remove_files([path for path in own_files(self.path / top, OWN[top]) if folder in path.parents], folder)
            with suppress(OSError):
                folder.parent.rmdir()

    def entries(self) -> dict[str, dict[str, Any]]:
        """What the manifest says of every stage that was ever finished, current or not."""
        return self.read_manifest()["stages"]

    def done(self) -> dict[str, dict[str, Any]]:
        """The entries of the stages whose results are current."""
        return {name: entry for name, entry in self.entries().items() if entry.get("status", DONE) == DONE}

    def is_done(self, stage: str, fingerprint: str) -> bool:
        """Whether the stage's result is current, under this fingerprint, and still there."""
        entry = self.done().get(stage, {})
        return entry.get("fingerprint") == fingerprint and not entry.get("removed")

    def why_stale(self, stage: str) -> str:
        """What is wrong with the result that lies there of a stage, for people: "made with pruning.keep=4"; empty where it is
        current, and where nothing is known of anything (there is no manifest)."""
        entries = self.entries()
        entry = entries.get(stage)
        if not entries or (entry and entry.get("status", DONE) == DONE):
            return ""
        if entry is None:
            return "no stage of this run has finished it"
        settings = described(stage, entry.get("made_with", {}))
        made = f"made with {settings}" if settings else "made of what has changed since"
        again = "; it was begun again and has not finished" if entry["status"] == UNFINISHED else ""
        return made + again

    def begin(self, *stages: str) -> None:
        """Notes that these stages are about to write over what they had made: until they finish, nobody knows what that is."""
        manifest = self.read_manifest()
        for name in stages:
            if name in manifest["stages"]:
                manifest["stages"][name]["status"] = UNFINISHED
        manifest["at_work"] = stages[-1] if stages else None
        self._write(manifest)

    def revive(self, stage: str) -> None:
        """What was stale is what the recipe asks for again."""
        manifest = self.read_manifest()
        if manifest["stages"][stage].get("status", DONE) != DONE:
            manifest["stages"][stage]["status"] = DONE
            manifest["stages"][stage].pop("made_with", None)
            self._write(manifest)

    def note_removed(self, stage: str) -> None:
        """Notes that a result was removed to save space: it is made again only where it is needed."""
        manifest = self.read_manifest()
        if stage in manifest["stages"]:
            manifest["stages"][stage]["removed"] = True
            self._write(manifest)

    def finish(self, stage: str, fingerprint: str, seconds: float, **facts: Any) -> None:
        """Writes the entry of a stage that is done; with the newest last."""
        manifest = self.read_manifest()
        manifest["stages"].pop(stage, None)
        manifest["stages"][stage] = {
            "fingerprint": fingerprint,
            "status": DONE,
            "id": uuid.uuid4().hex[:16],  # of this making
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(seconds, 1),
            "versions": {package: version(package) for package in PACKAGES},
            "git_commit": git_commit(),
            **facts,
        }
        manifest.pop("at_work", None)
        if failed := {name: why for name, why in manifest.pop("failed", {}).items() if name != stage}:
            manifest["failed"] = failed
        self._write(manifest)

    def fail(self, stage: str, message: str, items: list[int]) -> None:
        """Notes that a stage could not judge some items; it is not done, so the next run does it again."""
        manifest = self.read_manifest()
        manifest["failed"] = manifest.get("failed", {}) | {stage: {"message": message, "items": items}}
        manifest.pop("at_work", None)
        self._write(manifest)

    def _write(self, manifest: dict[str, Any]) -> None:
        write_text(self.manifest, json.dumps(manifest, indent=1) + "\n")


def fingerprint_of(*parts: Any) -> str:
    """A short hash of JSON-able values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def fingerprint_of_path(path: str | Path) -> Any:
    """What identifies a local file or folder: contents, or size and time of files too large to read for this."""
    path = Path(path)
    if path.is_dir():
        return {file.name: fingerprint_of_path(file) for file in sorted(path.iterdir()) if file.is_file()}
    stat = path.stat()
    if stat.st_size > 64 * 2**20:
        return [stat.st_size, stat.st_mtime_ns]
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def fingerprint_of_source(name: str) -> Any:
    """Identity of a model or data source: the content of a local one, the name of one on the hub."""
    try:
        return fingerprint_of_path(name)
    except OSError:
        return name


def git_commit() -> str | None:
    """The toolkit's own commit, where it stands in a git checkout."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
