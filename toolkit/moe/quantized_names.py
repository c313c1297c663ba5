r"""Names of experts in a quantization's configuration, renumbered as the experts are.

    "dynamic": {"-:model\\.layers\\.1\\.mlp\\.experts\\.3\\.w1": {}}      GPTQModel: a regex, from the name's beginning
    "extra_config": {"model.layers.1.mlp.experts.3.w1": {"bits": 16}}     AutoRound: a name, or a regex
    "ignore": ["re:.*\\.experts\\.[0-3]\\.w1"]                            compressed-tensors: a name, or a regex behind re:
    "modules_to_not_convert": ["experts.3", "lm_head"]                    AWQ, FP8, bitsandbytes: a part of a name
    "exclude": ["*experts.3*"]                                            Quark, ModelOpt: a glob

One law, whatever the tool: what an entry matched of the modules that stay, and nothing else, it matches afterwards. It stays as
it is where that holds; else the expert's number in it is changed; else the names that it matched are written out (each block
keeps other experts, so an expression without a layer has no other form). What matched pruned experts alone is dropped.
"""

import fnmatch
import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from toolkit.runtime.errors import PollardError

PREFIXES = ("re:", "-:", "+:")  # a regex follows
SECTION = re.compile("quant|compression")  # keys of config.json
QUANTIZATION = re.compile(r"quant.*config\.json$")  # names of files beside it: quantize_config.json, hf_quant_config.json, …
EXPERT = re.compile(r"(?<=experts)(?P<dot>\\?\.)(?P<number>\d+)(?!\d)")
REGEX = re.compile(r"[\\()\[\]|^$+{}]|\.\*")
GLOB = re.compile(r"[*?]")


class RenamedModules:
    """Every module of a checkpoint and its name after pruning. `renamed`: tensors that stay, old name -> new; `left`: names of
    those that do not stay."""

    def __init__(self, renamed: Mapping[str, str], left: Iterable[str]) -> None:
        self.after: dict[str, str | None] = {}  # every module by its old name; None where it is gone
        self.experts: dict[tuple[str, str], set[str | None]] = defaultdict(set)  # numbers of layer and expert -> new number
        for name in left:
            self.after |= dict.fromkeys(_modules(name))
        for old, new in renamed.items():
            self.after |= dict(zip(_modules(old), _modules(new), strict=True))
        for name, found in self.after.items():
            numbers = _layer_and_expert(name)
            if numbers:
                now = _layer_and_expert(found) if found else None
                self.experts[numbers].add(now[1] if now else None)
        self.pruned = {name for name in self.after.values() if name}
        self.words = {part for name in self.after for part in name.split(".") if len(part) > 1 and not part.isdigit()}
        self.changed, self.dropped, self.written_out = 0, 0, 0  # entries, over all calls of `renumbered`

    def renumbered(self, value: Any) -> Any:
        """A part of a configuration with its names as they are after pruning. Raises PollardError where one is
        unclear."""
        if isinstance(value, dict):
            result: dict[str, Any] = {}
            for key, inner in value.items():
                for new in self._counted(key):
                    result.setdefault(new, self.renumbered(inner))
            return result
        if isinstance(value, list):
            entries = [self._counted(item) if isinstance(item, str) else [self.renumbered(item)] for item in value]
            return [item for items in entries for item in items]
        if isinstance(value, str):
            names = self._counted(value)
            if len(names) != 1:
                raise PollardError(f"{value!r} in the quantization's configuration {_UNCLEAR}", code="quantization.unclear-name")
            return names[0]
        return value

    def renumbered_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """A whole configuration: only its sections on quantization change, at whatever depth."""
        result = dict(config)
        for key, value in config.items():
            if SECTION.search(key):
                result[key] = self.renumbered(value)
            elif isinstance(value, dict):
                result[key] = self.renumbered_config(value)
        return result

    def renumbered_file(self, path: Path) -> str:
        """The renumbered text of a JSON file that describes the quantization. Raises PollardError where it is no JSON."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise PollardError(
                f"{path} says how the checkpoint is quantized, and cannot be read: {error}.", code="quantization.unreadable"
            ) from None
        return json.dumps(self.renumbered(content), indent=2) + "\n"

    @property
    def summary(self) -> str | None:
        """What was changed, in one line; None where nothing was."""
        parts = {
            "renumbered with the experts": self.changed,
            "written out as names, for their experts are others in every block": self.written_out,
            "of pruned experts dropped": self.dropped,
        }
        changes = ", ".join(f"{count:,} {what}" for what, count in parts.items() if count)
        return f"entries of the quantization's configuration: {changes}" if changes else None

    def _counted(self, entry: str) -> list[str]:
        new = self._entry(entry)
        self.dropped += not new
        self.changed += len(new) == 1 and new[0] != entry
        self.written_out += len(new) > 1
        return new

    def _entry(self, entry: str) -> list[str]:
        """The entries that take the place of this one."""
        prefix = next((prefix for prefix in PREFIXES if entry.startswith(prefix)), "")
        core = entry.removeprefix(prefix).strip("^$")
        exact = core.replace("\\.", ".")
        if exact in self.after:  # one module's name, in whatever spelling
            name = self.after[exact]
            return [] if name is None else [entry.replace(core, name.replace(".", "\\.") if "\\." in core else name)]
        old = self._matched(entry, self.after)
        if not old:
            return self._unmatched(entry, exact)
        expected = {name for name in map(self.after.__getitem__, old) if name}
        if not expected:
            return []
        numbers = sorted({found["number"] for name in expected for found in EXPERT.finditer(name)})
        literal = {found["number"] for found in EXPERT.finditer(entry)}
        candidates = [entry, *(EXPERT.sub(rf"\g<dot>{number}", entry) for number in numbers if len(literal) == 1)]
        for candidate in candidates:
            if self._matched(candidate, self.pruned) == expected:
                return [candidate]
        above = {module for name in expected for module in _modules(name)}
        return [prefix + (re.escape(name) if prefix else name) for name in sorted(expected - above)]

    def _matched(self, entry: str, modules: Collection[str]) -> set[str]:
        """The modules that an entry matches, as the quantization tools match it."""
        prefix = next((prefix for prefix in PREFIXES if entry.startswith(prefix)), "")
        body = entry.removeprefix(prefix)
        if not prefix and not self.words & set(re.findall(r"\w+", body)):
            return set()  # "gptq", "[128, 128]", …: no name
        if prefix or REGEX.search(body):
            try:
                pattern = re.compile(body)
            except re.error:
                return set()
            found = pattern.match if prefix else pattern.search
            return {name for name in modules if found(name)}
        if GLOB.search(body):
            pattern = re.compile(fnmatch.translate(body))
            return {name for name in modules if pattern.match(name)}
        if not EXPERT.search(body):
            return set()  # whatever it matches, it does not tell experts apart
        return {name for name in modules if f".{body.strip('.')}." in f".{name}."}

    def _unmatched(self, entry: str, exact: str) -> list[str]:
        """An entry that matches no module of the files: it stays, unless it names an expert."""
        if not re.search(r"\bexperts\\?\.[\d(\[]", entry):
            return [entry]
        numbers = None if REGEX.search(exact) or GLOB.search(exact) else _layer_and_expert(exact)
        now = self.experts.get(numbers, set()) if numbers else set()
        if len(now) != 1:  # other names for the same blocks (mlp for block_sparse_moe) are recognized by their numbers
            raise PollardError(f"{entry!r} in the quantization's configuration {_UNCLEAR}", code="quantization.unclear-name")
        number = next(iter(now))
        return [] if number is None else [EXPERT.sub(rf"\g<dot>{number}", entry)]


_UNCLEAR = (
    "names experts in a way that cannot be renumbered: it matches no module of the files, or stands where there is room for one "
    "name only. Write the full names of the modules in its place (config.json, or the file of the quantization beside it)."
)


def _modules(name: str) -> list[str]:
    """a.b.c -> a, a.b: what a tensor or module stands in."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _layer_and_expert(name: str) -> tuple[str, str] | None:
    found = re.search(r"\.(\d+)\.(?:[^.\d][^.]*\.)*?experts\.(\d+)(?:\.|$)", f".{name}")
    return (found[1], found[2]) if found else None
