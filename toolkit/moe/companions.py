"""What lies beside the weights: tokenizer, chat templates, processors, the code that `auto_map` names, licence, …

One list for every checkpoint that is written, by whatever method: all files of the folder, byte for byte, but for weights,
adapters, config.json (which is written anew), hidden and temporary files, and what Pollard itself left of another model.
Of folders, those of chat templates and of Python packages.
"""

import shutil
from pathlib import Path

from toolkit.moe.checkpoint_files import is_weights
from toolkit.moe.skipping import SKIPPING_FILE as SKIPPING
from toolkit.runtime.signed_folders import PROVENANCE

TEMPLATES = "additional_chat_templates"
WRITTEN_ANEW = ("config.json", PROVENANCE)
OF_THESE_WEIGHTS = (SKIPPING, "adapter_config.json")  # thresholds of the model as it was; what would be put on top of it


def companions(folder: Path) -> list[Path]:
    """The companion files of a checkpoint folder, relative to it."""
    found = []
    for path in sorted(folder.iterdir()):
        name = path.name
        if path.is_dir():
            found += _in_folder(path)
        elif path.is_file() and not _is_left(name) and name not in WRITTEN_ANEW:
            found.append(path)
    return [path.relative_to(folder) for path in found]


def copy_companions(source: Path, target: Path) -> list[str]:
    """Copies the companions of one checkpoint folder to another, in place of what a library has written there under these
    names; returns what is left out of `source`: other weights, adapters, folders."""
    for file in companions(source):
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file, target / file)
    return left_out(source)


def left_out(folder: Path) -> list[str]:
    """What of a checkpoint folder is neither copied nor written anew, but for hidden and temporary files."""
    taken = {path.parts[0] for path in companions(folder)} | {*WRITTEN_ANEW}
    names = [path.name + "/" * path.is_dir() for path in sorted(folder.iterdir())]
    return [name for name in names if name.rstrip("/") not in taken and not _is_hidden(name)]


def _is_left(name: str) -> bool:
    return _is_hidden(name) or is_weights(name) or name in OF_THESE_WEIGHTS


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.endswith(".tmp") or name.rstrip("/") == "__pycache__"


def _in_folder(folder: Path) -> list[Path]:
    if folder.name == TEMPLATES:
        pattern = "*"
    elif (folder / "__init__.py").is_file() and not _is_hidden(folder.name):
        pattern = "*.py"  # a package that the code beside the weights imports
    else:
        return []
    return [path for path in sorted(folder.rglob(pattern)) if path.is_file() and not _is_hidden(path.name)]
