"""manifest.json of a run: what each stage has made, when, of what, and whether that is what the recipe asks for by now.

A stage's entry is written last: the entry is what says that the stage is done. Its fingerprint covers everything that decides
the stage's result; when it changes, the stage is done again. Until then the entry stays, as `stale`: so it is known what lies
there, and nothing takes it for what the recipe asks for.
"""

import json
import time
import uuid
from importlib.metadata import version
from pathlib import Path
from typing import Any

from toolkit.pipeline.recipe_changes import described
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import JsonObject, write_text
from toolkit.runtime.run_files import free_name
from toolkit.runtime.versions import git_commit

PACKAGES = ("torch", "transformers", "trl", "peft", "deepspeed", "bitsandbytes", "datasets", "accelerate", "safetensors")
SWEEP = "sweep"  # the entry of a sweep, which is no stage of a run
DONE, STALE, UNFINISHED = "done", "stale", "unfinished"  # an entry's status; the last: begun again, and not finished


STALE_NOTES = ("made_with", "decided_by")
"""Keys of an entry that is not current: settings that have changed since, and the sections of a recipe that decide it."""


class Manifest:
    """Which stages of the run in `path` are done, stale or unfinished; mixed into a class that has the two paths."""

    path: Path
    manifest: Path  # the file

    def read_manifest(self) -> JsonObject:
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
                f"(name={free_name(self.path)}), or put a copy of the file back. The models in {self.path} can be opened by "
                "their paths.",
                code="run.damaged-manifest",
            ) from None

    def entries(self) -> dict[str, JsonObject]:
        """What the manifest says of every stage that was ever finished, current or not."""
        return self.read_manifest()["stages"]

    def done(self) -> dict[str, JsonObject]:
        """The entries of the stages whose results are current."""
        return {name: entry for name, entry in self.entries().items() if entry.get("status", DONE) == DONE}

    def is_done(self, stage: str, fingerprint: str) -> bool:
        """Whether the stage's result is current, under this fingerprint, and still there."""
        entry = self.done().get(stage, {})
        return entry.get("fingerprint") == fingerprint and not entry.get("removed")

    def identity_of(self, stage: str) -> str:
        """What tells the result that lies there of a stage from others under the same fingerprint: that of a plan, or of its
        making."""
        entry = self.entries()[stage]
        return str(entry.get("result") or entry["id"])

    def why_stale(self, stage: str) -> str:
        """What is wrong with the result that lies there of a stage, for people: "made with pruning.keep=4"; empty where it is
        current, and where nothing is known of anything (there is no manifest)."""
        entries = self.entries()
        entry = entries.get(stage)
        if not entries or (entry and entry.get("status", DONE) == DONE):
            return ""
        if entry is None:
            return "no stage of this run has finished it"
        settings = self.made_with_text(stage)
        made = f"made with {settings}" if settings else "made of what has changed since"
        again = "; it was begun again and has not finished" if entry["status"] == UNFINISHED else ""
        return made + again

    def made_with_text(self, stage: str) -> str:
        """The settings that what lies there of a stage was made with and the recipe has moved on from: "pruning.keep=4"."""
        entry = self.entries().get(stage, {})
        return described(entry.get("made_with", {}), entry.get("decided_by"))

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
            for note in STALE_NOTES:
                manifest["stages"][stage].pop(note, None)
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

    def _write(self, manifest: JsonObject) -> None:
        write_text(self.manifest, json.dumps(manifest, indent=1) + "\n")
