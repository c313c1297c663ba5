"""runs/<name>/: where everything is, and what of it is finished.

A stage's entry in manifest.json is written last: the entry is what says that the stage is done. Its fingerprint covers
everything that decides the stage's result; when it changes, the stage is done again.
"""

import fcntl
import hashlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from toolkit.errors import PollardError
from toolkit.files import write_text

PACKAGES = ("torch", "transformers", "trl", "peft", "deepspeed", "bitsandbytes", "datasets", "accelerate", "safetensors")


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
            return manifest
        except (ValueError, AttributeError) as error:
            raise PollardError(f"{self.manifest} is damaged ({error}). Remove {self.path}, or choose another `name`.") from None

    def lock(self) -> None:
        """Takes the folder for this process until `unlock` or its death; raises PollardError while another has it.

        A killed launcher can leave ranks behind that still write.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / "lock").open("a")
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

    def check_owner(self, model: str, task: str) -> None:
        """Raises PollardError if the folder holds the run of another model or task."""
        manifest = self.read_manifest()
        for key, mine in (("model", model), ("task", task)):
            theirs = manifest.get(key, mine)
            if theirs != mine:
                raise PollardError(
                    f"{self.path} holds a run with {key} {theirs}, and this recipe says {mine}. "
                    "Give the new run another name (name=…), or remove that folder."
                )

    def open(self, model: str, task: str, recipe: str, todo: Iterable[str]) -> None:
        """Makes the folder this run's, with `recipe` (YAML), and forgets the stages that are to be done.

        Removes what killed stages left under temporary names. Forgetting comes first: a kill in the middle must not
        leave old entries beside new files.
        """
        manifest = self.read_manifest() | {"model": model, "task": task}
        manifest["stages"] = {name: entry for name, entry in manifest["stages"].items() if name not in set(todo)}
        self._write(manifest)
        write_text(self.recipe, recipe)
        started = self.pruned.with_name(self.pruned.name + ".tmp")  # pruning goes on from there, or removes it itself
        for left in self._half_written() - {started}:
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)

    def _half_written(self) -> set[Path]:
        """Files and folders under temporary names: ours end in .tmp, those of safetensors begin with it."""
        names = ("*.tmp", ".tmp*")
        near = {path for name in names for depth in ("", "*/") for path in self.path.glob(depth + name)}
        # Deeper there are runs of their own (rounds), which remove their folders themselves
        return near | {path for name in names for path in self.path.glob(f"*/*/{name}") if path.is_file()}

    def forget(self) -> None:
        """Removes what a stage would go on from instead of beginning again."""
        begun = self.evaluation.glob("*.answers")
        for left in (self.checkpoints, self.rounds, self.teacher, self.answers, self.fidelity, *begun):
            shutil.rmtree(left, ignore_errors=True)

    def clear(self, scratch: str) -> None:
        """Removes a folder that a stage needed, and the one it stands in where nothing else does."""
        if scratch:
            shutil.rmtree(self.path / scratch, ignore_errors=True)
            with suppress(OSError):
                (self.path / scratch).parent.rmdir()

    def is_done(self, stage: str, fingerprint: str) -> bool:
        return self.read_manifest()["stages"].get(stage, {}).get("fingerprint") == fingerprint

    def was_done(self, stage: str) -> bool:
        """Whether the stage was once finished, perhaps under other settings."""
        return stage in self.read_manifest()["stages"]

    def finish(self, stage: str, fingerprint: str, seconds: float, **facts: Any) -> None:
        manifest = self.read_manifest()
        manifest["stages"][stage] = {
            "fingerprint": fingerprint,
            "status": "done",
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(seconds, 1),
            "versions": {package: version(package) for package in PACKAGES},
            "git_commit": git_commit(),
            **facts,
        }
        if failed := {name: why for name, why in manifest.pop("failed", {}).items() if name != stage}:
            manifest["failed"] = failed
        self._write(manifest)

    def fail(self, stage: str, message: str, items: list[int]) -> None:
        """Notes that a stage could not judge some items; it has no entry, so the next run does it again."""
        manifest = self.read_manifest()
        manifest["failed"] = manifest.get("failed", {}) | {stage: {"message": message, "items": items}}
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
