import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from toolkit.cli.completion import completion_script, keys_and_values
from toolkit.cli.main import command_parser
from toolkit.cli.verbs import VERBS
from toolkit.cli.verbs.lists import SHELLS
from toolkit.recipe.file import load_recipe
from toolkit.runtime.errors import PollardError


def script_of(shell: str) -> str:
    parser = command_parser()
    return completion_script(shell, parser, parser.get_default("verb_parsers"))


def completed(line: str, folder: Path) -> list[str]:
    """What a real bash offers for the line. It takes `=` for a word of its own."""
    words = [part for word in line.split(" ")[:-1] for part in re.split("(=)", word) if part]
    words += [part for part in re.split("(=)", line.split(" ")[-1]) if part] or [""]
    asked = f"""
{script_of("bash")}
compopt() {{ :; }}
COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)}
COMP_WORDS=({shlex.join(words)}) COMP_CWORD={len(words) - 1}
_pollard
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "--norc", "-c", asked], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("pollard comp", ["compare", "completion"]),
        ("pollard run mi", ["mine.yaml"]),
        ("pollard run da", ["data"]),
        ("pollard run --fresh mi", ["mine.yaml"]),
        ("pollard run mine.yaml pruning.k", ["pruning.keep="]),
        ("pollard run mine.yaml pruning.keep=2 finetuning.me", ["finetuning.method="]),
        ("pollard run mine.yaml finetuning.method=lora finetuning.teacher=", ["original"]),
        (
            "pollard run mine.yaml finetuning.lora.",
            ["finetuning.lora.rank=", "finetuning.lora.alpha=", "finetuning.lora.experts=", "finetuning.lora.router="],
        ),
        ("pollard run mine.yaml finetuning.tr", ["finetuning.trainer."]),
        ("pollard run mine.yaml pruning.criterion=re", ["reap", "reconstruction"]),
        ("pollard run mine.yaml control=", ["true", "false"]),
        ("pollard run mine.yaml finetuning.zero=3", ["3", "3-offload"]),
        ("pollard run mine.yaml model=da", ["data"]),
        ("pollard run mine.yaml --f", ["--fresh"]),
        ("pollard run mine.yaml pruning.keep=2 --f", ["--fresh"]),
        ("pollard estimate --gpu-", ["--gpu-memory"]),
        ("pollard chat --m", ["--models", "--max-new-tokens"]),
        ("pollard preview mine.yaml --split ", ["train", "dev", "test"]),
        ("pollard completion ", list(SHELLS)),
        ("pollard inspect da", ["data"]),
        ("pollard chat sm", ["small"]),
        ("pollard push runs/", ["runs/other", "runs/small"]),
        ("pollard compare runs/small/ru", []),
        ("pollard compare runs/small/ runs/small/p", ["runs/small/pruned"]),
        ("pollard compare runs/small/o", ["runs/small/original"]),
        ("pollard runs small oth", ["other"]),
        ("pollard drafts da", ["data"]),
        ("pollard benchmark small --save mine.j", ["mine.jsonl"]),
        ("pollard run mine.yaml --js", ["--json"]),
        ("pollard benchmark data --save mine.j", ["mine.jsonl"]),
        ("pollard --h", ["--help"]),
    ],
)
def test_tab_offers_what_fits(line: str, offered: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "mine.jsonl").touch()
    (tmp_path / "data").mkdir()
    for run in ("small", "other"):
        (tmp_path / "runs" / run / "pruned").mkdir(parents=True)
        (tmp_path / "runs" / run / "manifest.json").touch()
    assert completed(line, tmp_path) == offered


def test_all_verbs_are_offered(tmp_path: Path) -> None:
    assert sorted(completed("pollard ", tmp_path)) == sorted(verb.name for verb in VERBS)


# What is offered is what a recipe takes.
def test_every_key_and_every_value_is_one_of_a_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: try\nmodel: m\ntask: gsm8k\n")
    for key, values in keys_and_values().items():
        for value in values:
            try:
                load_recipe(recipe, [f"{key}={value}"])
            except PollardError as error:  # some need another key beside them
                assert "is not a key" not in str(error) and "cannot be" not in str(error), error
    keys = keys_and_values()
    assert {"name", "model", "model.path", "task", "pruning.keep", "finetuning.distillation.weight"} <= keys.keys()
    assert keys["pruning.tokens"] == ["all", "prompt", "completion"]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_of_a_shell_is_one_that_it_can_read(shell: str, tmp_path: Path) -> None:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed here")
    (tmp_path / "script").write_text(script_of(shell))
    subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)


def test_a_script_of_another_shell_has_every_verb_and_key(tmp_path: Path) -> None:
    for shell in ("zsh", "fish"):  # where they are not installed, at least nothing is missing
        script = script_of(shell)
        assert (
            all(verb.name in script for verb in VERBS)
            and "_pollard_runs" in script
            and "pruning.keep=" in script
            and "weighted_ean" in script
        )
