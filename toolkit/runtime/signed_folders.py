"""Folders that Pollard writes whole and signs, so that it recognises them: it never removes or replaces anything else.

    pruned.tmp/pollard.json   {"format": 1, "unfinished": "…"}                     while it is written
    pruned/pollard.json       {"format": 1, "what": "pruned checkpoint", "source": "…", "files": {"config.json": ["5f2c…"], …}}
    pruned.old.tmp/           the folder that is being replaced, between two renames

Such a folder is removed only through `remove_own`. Files in it that `files` does not list, or that have changed since (`files`
has the checksums of everything that Pollard wrote under a name), are foreign as well.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import JsonObject, set_aside, write_text

PROVENANCE = "pollard.json"
LIBRARY_FOLDERS = ("__pycache__", ".cache")
CHECKSUM_SAMPLES, SAMPLE_BYTES = 64, 4096  # the checksum of a large file covers this many pieces of this size
RUN_FOLDERS = ("pruned", "recovered", "control", "adapter", "control_adapter")  # unsigned by earlier versions
EARLIER_MARKER = "pruning.json"  # in the unfinished folders of earlier versions
EARLIER_FILES = re.compile(  # in their finished folders, as far as the names are unmistakable
    r"config\.json|generation_config\.json|skipping\.json|adapter_config\.json|README\.md|LICENSE\S*|.*\.index\.json"
    r"|(model|adapter_model|pytorch_model)[\w-]*\.(safetensors|bin)|(tokenizer|vocab|special_tokens_map|added_tokens)[\w.]*"
    r"|merges\.txt|chat_template\.\w+|additional_chat_templates/.+|\w*processor_config\.json|\S+\.py"
)


def read_provenance(folder: Path) -> JsonObject | None:
    """The facts that `folder` is signed with; None if Pollard did not write it."""
    try:
        facts = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) and facts.get("format") == 1 else None


def provenance(what: str, source: str, revision: str | None = None) -> JsonObject:
    """The facts to `sign` a folder with: what it is, and the checkpoint (and hub revision) that it was made from."""
    return {"made_by": "pollard", "what": what, "source": source} | ({"revision": revision} if revision else {})


def sign(folder: Path, facts: JsonObject) -> None:
    """Marks a finished folder as Pollard's own, with `facts` (see `provenance`) and the checksums of its files; weights are
    for everybody to read whom the umask lets read other files."""
    names = [name for name in _names_in(folder) if name != PROVENANCE]
    _write(folder, {"format": 1, **facts, "files": {name: [_checksum(folder / name)] for name in names}})
    usual = (folder / PROVENANCE).stat().st_mode  # what the umask leaves a new file
    for weights in folder.glob("*.safetensors"):  # which safetensors writes for their owner alone: no server could read them
        weights.chmod(weights.stat().st_mode | usual)


def write_own_file(folder: Path, name: str, text: str) -> None:
    """Writes a file of Pollard's own into a finished folder. A foreign file of that name is renamed first, and reported."""
    facts = read_provenance(folder)
    if facts is not None:
        _keep_aside_foreign(folder / name)
        written = facts["files"].setdefault(name, [])
        checksum = hashlib.sha256(text.encode()).hexdigest()[:16]
        if checksum not in written:  # before the file: a kill in between must not leave one that looks foreign
            written.append(checksum)
            _write(folder, facts)
    write_text(folder / name, text)


def remove_own_file(folder: Path, name: str) -> None:
    """Removes a file of Pollard's own from a finished folder, if it is there. A foreign or changed one is renamed instead."""
    if read_provenance(folder) is not None:
        _keep_aside_foreign(folder / name)
    (folder / name).unlink(missing_ok=True)


def _keep_aside_foreign(path: Path) -> None:
    if path.is_file() and path not in own_files(path.parent):
        set_aside(path)


def _write(folder: Path, facts: JsonObject) -> None:
    write_text(folder / PROVENANCE, json.dumps(facts, indent=1) + "\n")


def partial_path(target: Path) -> Path:
    """The path under which `target` is written before it gets its name."""
    return target.with_name(target.name + ".tmp")


def begin_folder(target: Path, identity: str = "") -> Path:
    """Makes an empty folder, marked as unfinished, that is to become `target`. Removes what an earlier attempt left.

    Raises PollardError if a foreign folder has that name.
    """
    partial = partial_path(target)
    remove_own(partial)
    partial.mkdir(parents=True)
    write_text(partial / PROVENANCE, json.dumps({"format": 1, "unfinished": identity}) + "\n")
    return partial


def is_resumable(target: Path, identity: str) -> bool:
    """Whether an earlier attempt at the same folder (with this `identity`) was interrupted and can be resumed."""
    return (read_provenance(partial_path(target)) or {}).get("unfinished") == identity


@contextmanager
def whole_folder(target: str | os.PathLike[str], facts: JsonObject) -> Iterator[Path]:
    """Yields a folder that becomes `target`, signed with `facts`, if the block succeeds.

    Replaces a folder of Pollard's own. Raises PollardError, before anything is written, if something else is there.
    """
    target = Path(target)
    check_target(target, overwrite=True)
    partial = begin_folder(target)
    yield partial
    sign(partial, facts)
    put_in_place(partial, target)


def put_in_place(partial: Path, target: Path) -> None:
    """Renames a finished folder to `target`, replacing one of Pollard's own. After a kill at any moment, the old or the new one
    is there whole (`restore` finds it). Raises PollardError if `target` is foreign."""
    check_target(target, overwrite=True)
    aside, replaces = _aside(target), target.exists()
    if replaces:
        target.rename(aside)
    partial.rename(target)
    if replaces:
        _remove(aside)  # checked a moment ago, under its other name


def restore(target: Path) -> None:
    """After a kill: renames a folder that was being replaced back, or removes it if its replacement is there."""
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
    """Removes a folder that Pollard wrote, or an empty one, if there is one. Raises PollardError for any other."""
    if folder.is_symlink() or folder.exists():
        _check_place(folder)
        if foreign := foreign_files(folder):
            raise PollardError(
                f"{_foreign_message(folder, foreign)} Move it away, or give the result another place.", code="folders.foreign"
            )
        _remove(folder)


def _remove(folder: Path) -> None:
    """Removes the signature last: after a kill in the middle, the rest is still recognised."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != PROVENANCE:
            path.unlink()
    shutil.rmtree(folder)


def check_target(target: Path, overwrite: bool) -> None:
    """Raises PollardError unless `target` can be written without loss: there is nothing, an empty folder, or, with `overwrite`, a
    folder of Pollard's own without foreign files."""
    restore(target)
    for needed in (partial_path(target), _aside(target)):
        if needed.is_symlink() or needed.exists():
            _check_place(needed)
            if foreign := foreign_files(needed):
                raise PollardError(
                    f"{_foreign_message(needed, foreign)} That place is needed for a moment: move it away.",
                    code="folders.foreign",
                )
    if not target.is_symlink() and not target.exists():
        return
    _check_place(target)
    if foreign := foreign_files(target):
        raise PollardError(
            f"{_foreign_message(target, foreign)} Nothing there is touched: move it away, or give another place.",
            code="folders.foreign",
        )
    if any(target.iterdir()) and not overwrite:
        facts = read_provenance(target) or {}
        of = f" of {facts['source']}" if facts.get("source") else ""
        raise PollardError(
            f"{target} holds a {facts.get('what', 'checkpoint')}{of} already. Say overwrite=True (--overwrite) to replace it, or "
            "give another place.",
            code="folders.exists",
        )


def _check_place(target: Path) -> None:
    """Raises PollardError for a place that must not be replaced, whatever it contains (a link, a mount, the home folder, …)."""
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
        raise PollardError(f"{target} {what}.", code="folders.not-replaceable")


def own_files(folder: Path) -> list[Path]:
    """The files of a signed folder that Pollard wrote and nobody has changed since; none of an unsigned one."""
    facts = read_provenance(folder) or {}
    if "unfinished" in facts:
        return [folder / name for name in _names_in(folder)]
    own = [folder / name for name, written in facts.get("files", {}).items() if _is_as_written(folder / name, written)]
    return [*own, folder / PROVENANCE] if facts else []


def foreign_files(folder: Path) -> list[str]:
    """The names in `folder` that Pollard did not write, or that have changed since; all of them if it is not Pollard's own."""
    if read_provenance(folder) is not None:
        own = {str(path.relative_to(folder)) for path in own_files(folder)}
    elif _of_an_earlier_version(folder):
        own = {name for name in _names_in(folder) if folder.name.endswith(".tmp") or EARLIER_FILES.fullmatch(name)}
    else:
        return sorted(path.name for path in folder.iterdir())
    return [name for name in _names_in(folder) if name not in own and not {*Path(name).parts} & {*LIBRARY_FOLDERS}]


def _names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())


def _is_as_written(path: Path, written: list[str]) -> bool:
    return path.is_file() and not path.is_symlink() and _checksum(path) in written


def _checksum(path: Path) -> str:
    """A short hash of a file's content; of a large file's size and evenly spread pieces: other weights differ everywhere."""
    size = path.stat().st_size
    if size <= CHECKSUM_SAMPLES * SAMPLE_BYTES:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for number in range(CHECKSUM_SAMPLES):
            file.seek(number * (size - SAMPLE_BYTES) // (CHECKSUM_SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def _of_an_earlier_version(folder: Path) -> bool:
    """Whether an earlier version wrote it, which signed nothing: a checkpoint in a run directory, or an unfinished pruning."""
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
    return name in RUN_FOLDERS and isinstance(manifest, dict) and isinstance(manifest.get("stages"), dict)


def _foreign_message(folder: Path, foreign: list[str]) -> str:
    """ "/data/thesis holds what Pollard did not write: a.txt, b/, c.md, … (12 in all)." """
    own = (read_provenance(folder) or {}).get("files", {})
    shown = ", ".join(name + "/" * (folder / name).is_dir() + " (changed since)" * (name in own) for name in foreign[:5])
    more = f", … ({len(foreign)} in all)" if len(foreign) > 5 else ""
    return f"{folder} holds what Pollard did not write: {shown}{more}."
