r"""Names of modules in a quantization's configuration, renumbered as experts and layers are.

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
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

from toolkit.runtime.errors import PollardError

PREFIXES = ("re:", "-:", "+:")  # a regex follows
SECTION = re.compile("quant|compression")  # keys of config.json
QUANTIZATION = re.compile(r"quant.*config\.json$")  # names of files beside it: quantize_config.json, hf_quant_config.json, …
EXPERTS = "experts"  # the name of the lists that are always renumbered
REGEX = re.compile(r"[\\()\[\]|^$+{}]|\.\*")
GLOB = re.compile(r"[*?]")
Numbers = tuple[tuple[str, str], ...]  # the numbered lists that a name passes through: (("layers", "3"), ("experts", "7"))


class RenamedModules:
    """Every module of a checkpoint and its name after pruning. `renamed`: tensors that stay, old name -> new; `left`: names of
    those that do not stay."""

    def __init__(self, renamed: Mapping[str, str], left: Iterable[str]) -> None:
        self.after: dict[str, str | None] = {}  # every module by its old name; None where it is gone
        for name in left:
            self.after |= dict.fromkeys(_modules(name))
        for old, new in renamed.items():
            self.after |= dict(zip(_modules(old), _modules(new), strict=True))
        self.lists = {EXPERTS}  # names of the lists whose modules have other numbers afterwards
        self.numbers: dict[Numbers, set[Numbers | None]] = defaultdict(set)  # before -> afterwards; None where they are gone
        for name, now in self.after.items():
            of_list, number = name.split(".")[-2:] if "." in name else ("", name)
            if number.isdigit():
                self.numbers[_numbers(name)].add(_numbers(now) if now else None)
                self.lists |= {of_list} if now and now.rpartition(".")[2] != number else set()
        self.numbered = re.compile(rf"(?P<list>{'|'.join(sorted(self.lists))})(?P<dot>\\?\.)(?P<number>\d+)(?!\d)")
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
        what = " and ".join(sorted(self.lists))
        parts = {
            f"renumbered with the {what}": self.changed,
            f"written out as names, for their {what} are others in every block": self.written_out,
            f"of pruned {what} dropped": self.dropped,
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
        for candidate in [entry, *self._with_other_numbers(entry, expected)]:
            if self._matched(candidate, self.pruned) == expected:
                return [candidate]
        above = {module for name in expected for module in _modules(name)}
        return [prefix + (re.escape(name) if prefix else name) for name in sorted(expected - above)]

    def _with_other_numbers(self, entry: str, names: Iterable[str]) -> Iterator[str]:
        """`entry` with the numbers that the lists it names have in `names`; where it names two numbers of one list, it has no
        such form."""
        literal = self._listed([entry])
        if any(len(numbers) > 1 for numbers in literal.values()):
            return
        there = self._listed(names)
        for choice in product(*(sorted(there[of_list]) for of_list in literal)):
            old = ((of_list, next(iter(numbers))) for of_list, numbers in literal.items())
            yield self.numbered.sub(partial(_replaced, dict(zip(old, choice, strict=True))), entry)

    def _listed(self, names: Iterable[str]) -> dict[str, set[str]]:
        """Per numbered list, the numbers in `names`."""
        found: dict[str, set[str]] = defaultdict(set)
        for name in names:
            for number in self.numbered.finditer(name):
                found[number["list"]].add(number["number"])
        return found

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
        if not self.numbered.search(body):
            return set()  # whatever it matches, it does not tell experts or layers apart
        return {name for name in modules if f".{body.strip('.')}." in f".{name}."}

    def _unmatched(self, entry: str, exact: str) -> list[str]:
        """An entry that matches no module of the files: it stays, unless it names an expert or a layer."""
        if not re.search(rf"\b({'|'.join(sorted(self.lists))})\\?\.[\d(\[]", entry):
            return [entry]
        plain = not REGEX.search(exact) and not GLOB.search(exact)
        # Another name for something in a module (qkv_proj for q_proj, k_proj and v_proj) …
        within = next((name for name in reversed(_modules(exact)) if plain and name in self.after), "")
        # … or for a module itself (mlp for block_sparse_moe), which is recognized by its numbers
        before = _numbers(exact) if plain else ()
        now = self.numbers.get(before, set())
        if within and before == _numbers(within):
            name = self.after[within]
            now = {_numbers(name) if name else None}
        if len(now) != 1:
            raise PollardError(f"{entry!r} in the quantization's configuration {_UNCLEAR}", code="quantization.unclear-name")
        after = next(iter(now))
        if after is None:
            return []
        new = {(of_list, old): number for (of_list, old), (_, number) in zip(before, after, strict=True)}
        return [
            self.numbered.sub(partial(_replaced, {key: number for key, number in new.items() if key[0] in self.lists}), entry)
        ]


_UNCLEAR = (
    "names experts or layers in a way that cannot be renumbered: it matches no module of the files, or stands where there is "
    "room for one name only. Write the full names of the modules there (config.json, or the file of the quantization beside it)."
)


def _replaced(numbers: Mapping[tuple[str, str], str], found: re.Match[str]) -> str:
    """What `numbered` found, with another number where `numbers` (by list and number) has one."""
    return f"{found['list']}{found['dot']}{numbers.get((found['list'], found['number']), found['number'])}"


def _modules(name: str) -> list[str]:
    """a.b.c -> a, a.b: what a tensor or module stands in."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _numbers(name: str) -> Numbers:
    """The numbered lists that a module's name passes through."""
    parts = name.split(".")
    return tuple((above, part) for above, part in pairwise(parts) if part.isdigit())
