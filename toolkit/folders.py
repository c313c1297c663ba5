"""Folders that Pollard writes whole, and how it knows them again: what is not its own is never removed or replaced.

    pruned.tmp/pollard.json   {"format": 1, "unfinished": "…"}                     while it is written
    pruned/pollard.json       {"format": 1, "what": "pruned checkpoint", "source": "…", "files": ["config.json", …]}
    pruned.old.tmp/           the folder that is being replaced, from one renaming to the next

Whatever removes such a folder goes through `remove_own`. What lies in it beyond `files` is somebody else's, too.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from toolkit.errors import PollardError
from toolkit.files import write_text

PROVENANCE = "pollard.json"
ADDED_LATER = (PROVENANCE, "README.md", "skipping.json", "__pycache__", ".cache")  # by later stages and by libraries
OF_A_RUN = ("pruned", "recovered", "control", "adapter", "control_adapter")  # earlier versions left no provenance in them
EARLIER_MARKER = "pruning.json"  # what earlier versions left in an unfinished folder


def read_provenance(folder: Path) -> dict[str, Any] | None:
    """What `folder` says of itself; None where Pollard did not write it."""
    try:
        facts = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) and facts.get("format") == 1 else None


def provenance(what: str, source: str, revision: str | None = None) -> dict[str, Any]:
    """The facts to `sign` a folder with: what it is, and the checkpoint (with the hub's revision) that it was made of."""
    return {"made_by": "pollard", "what": what, "source": source} | ({"revision": revision} if revision else {})


def sign(folder: Path, facts: dict[str, Any]) -> None:
    """Declares a finished folder Pollard's own: `facts` (what it is, from which source, …) and the files in it."""
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())
    listed = [name for name in files if name != PROVENANCE]
    write_text(folder / PROVENANCE, json.dumps({"format": 1, **facts, "files": listed}, indent=1) + "\n")


def partial_of(target: Path) -> Path:
    """Where `target` is written before it gets its name."""
    return target.with_name(target.name + ".tmp")


def begin(target: Path, identity: str = "") -> Path:
    """An empty folder, to become `target`, that says it is unfinished. What an earlier attempt left there is removed.

    Raises PollardError where somebody else's folder has that name.
    """
    partial = partial_of(target)
    remove_own(partial)
    partial.mkdir(parents=True)
    write_text(partial / PROVENANCE, json.dumps({"format": 1, "unfinished": identity}) + "\n")
    return partial


def is_begun(target: Path, identity: str) -> bool:
    """Whether an earlier attempt at the same (`identity`) was stopped, and can go on."""
    return (read_provenance(partial_of(target)) or {}).get("unfinished") == identity


@contextmanager
def whole_folder(target: str | os.PathLike[str], facts: dict[str, Any]) -> Iterator[Path]:
    """Yields a folder that becomes `target`, signed with `facts`, only if the block ends well.

    Replaces a folder of Pollard's own. Raises PollardError, before anything is written, where there is something else.
    """
    target = Path(target)
    check_target(target, overwrite=True)
    partial = begin(target)
    yield partial
    sign(partial, facts)
    put_in_place(partial, target)


def put_in_place(partial: Path, target: Path) -> None:
    """Gives a finished folder its name, in place of one of Pollard's own. Killed at any moment, the old or the new one is
    there whole (`restore` finds it). Raises PollardError where `target` is somebody else's."""
    check_target(target, overwrite=True)
    aside, replaces = _aside(target), target.exists()
    if replaces:
        target.rename(aside)
    partial.rename(target)
    if replaces:
        shutil.rmtree(aside, ignore_errors=True)  # checked a moment ago, under its other name


def restore(target: Path) -> None:
    """Gives a folder its name back that was set aside when a kill came; removes one whose replacement is there."""
    aside = _aside(target)
    if not aside.is_dir():
        return
    if target.exists():
        remove_own(aside)
    elif not foreign_files(aside):
        aside.rename(target)


def _aside(target: Path) -> Path:
    return target.with_name(target.name + ".old.tmp")


def remove_own(folder: Path) -> None:
    """Removes a folder that Pollard wrote, or an empty one; none there is fine. Raises PollardError for any other."""
    if folder.is_symlink() or folder.exists():
        _check_place(folder)
        if foreign := foreign_files(folder):
            raise PollardError(f"{_not_ours(folder, foreign)} Move it away, or give the result another place.")
        shutil.rmtree(folder)


def check_target(target: Path, overwrite: bool) -> None:
    """Raises PollardError unless `target` can be made, or replaced without loss: nothing is there, an empty folder, or, with
    `overwrite`, one that Pollard wrote and nobody has put anything into."""
    restore(target)
    partial = partial_of(target)
    if partial.is_symlink() or partial.exists():
        _check_place(partial)
        if foreign := foreign_files(partial):
            raise PollardError(f"{_not_ours(partial, foreign)} The result is written there first: move it away.")
    if not target.is_symlink() and not target.exists():
        return
    _check_place(target)
    if foreign := foreign_files(target):
        raise PollardError(f"{_not_ours(target, foreign)} Nothing there is touched: move it away, or give another place.")
    if any(target.iterdir()) and not overwrite:
        facts = read_provenance(target) or {}
        of = f" of {facts['source']}" if facts.get("source") else ""
        raise PollardError(
            f"{target} holds a {facts.get('what', 'checkpoint')}{of} already. Say overwrite=True to replace it, or give another "
            "place."
        )


def _check_place(target: Path) -> None:
    """Raises PollardError for what no folder may replace, whatever is in it."""
    what = None
    if target.is_symlink():
        what = f"is a link to {os.readlink(target)}: give that place itself, or another"
    elif not target.is_dir():
        what = "is a file: give a folder"
    elif os.path.ismount(target):
        what = "is where a disk is mounted, and cannot be replaced: give a folder in it"
    else:
        here = target.resolve()
        for place, name in ((Path.cwd(), "the folder you are in"), (Path.home(), "your home folder")):
            if here in (place, *place.parents):
                what = f"is {'' if here == place else 'above '}{name}: give a folder in it"
    if what:
        raise PollardError(f"{target} {what}.")


def foreign_files(folder: Path) -> list[str]:
    """What in `folder` Pollard did not put there: all of it, where the folder is not its own."""
    there = sorted(path.name for path in folder.iterdir())
    facts = read_provenance(folder)
    if facts is None:
        return [] if _of_an_earlier_version(folder) else there
    if "unfinished" in facts:
        return []
    files = {path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir()}
    others = files - {Path(name) for name in facts.get("files", [])}
    return sorted(str(path) for path in others if path.parts[0] not in ADDED_LATER and "__pycache__" not in path.parts)


def _of_an_earlier_version(folder: Path) -> bool:
    """Earlier versions signed nothing: theirs are checkpoints under a run's names beside its manifest, and begun prunings."""
    name = folder.name.removesuffix(".tmp").removesuffix(".old")
    if folder.name.endswith(".tmp"):
        try:
            return "fingerprint" in json.loads((folder / EARLIER_MARKER).read_text()) or _in_a_run(folder, name)
        except (OSError, ValueError, TypeError):
            return _in_a_run(folder, name)
    return _in_a_run(folder, name) and any((folder / file).is_file() for file in ("config.json", "adapter_config.json"))


def _in_a_run(folder: Path, name: str) -> bool:
    try:
        manifest = json.loads((folder.parent / "manifest.json").read_text())
    except (OSError, ValueError):
        return False
    return name in OF_A_RUN and isinstance(manifest, dict) and isinstance(manifest.get("stages"), dict)


def _not_ours(folder: Path, foreign: list[str]) -> str:
    """ "/data/thesis holds what Pollard did not write: a.txt, b/, c.md, … (12 in all)." """
    shown = ", ".join(name + "/" * (folder / name).is_dir() for name in foreign[:5])
    more = f", … ({len(foreign)} in all)" if len(foreign) > 5 else ""
    return f"{folder} holds what Pollard did not write: {shown}{more}."
