import shutil
import subprocess
from pathlib import Path

import pytest

from toolkit.cli.completion_script import keys_and_values, script
from toolkit.cli.main import command_parser
from toolkit.cli.verbs import VERBS
from toolkit.cli.verbs.lists import SHELLS
from toolkit.recipe.file import load_recipe
from toolkit.runtime.errors import PollardError


def script_of(shell: str) -> str:
    choices = command_parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    return script(shell, dict(choices))  # type: ignore[arg-type]


def completed(line: str, folder: Path) -> list[str]:
    """What a real bash offers for the line."""
    asked = f"""
{script_of("bash")}
compopt() {{ :; }}
COMP_LINE={line!r} COMP_POINT={len(line)}
COMP_WORDS=({line}) COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
[ "${{COMP_LINE: -1}}" != " " ] || COMP_CWORD=$((COMP_CWORD + 1))
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
        ("pollard run mine.yaml pruning.k", ["pruning.keep="]),
        (
            "pollard run mine.yaml finetuning.lora.",
            ["finetuning.lora.rank=", "finetuning.lora.alpha=", "finetuning.lora.router="],
        ),
        ("pollard run mine.yaml finetuning.tr", ["finetuning.trainer."]),
        ("pollard run mine.yaml pruning.criterion=re", ["reap", "reconstruction"]),
        ("pollard run mine.yaml control=", ["true", "false"]),
        ("pollard run mine.yaml finetuning.zero=3", ["3", "3-offload"]),
        ("pollard run mine.yaml model=da", ["data"]),
        ("pollard run mine.yaml --f", ["--fresh"]),
        ("pollard estimate --gpu-", ["--gpu-memory"]),
        ("pollard chat --m", ["--models", "--max-new-tokens"]),
        ("pollard completion ", list(SHELLS)),
        ("pollard inspect da", ["data"]),
    ],
)
def test_tab_offers_what_fits(line: str, offered: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "mine.jsonl").touch()
    (tmp_path / "data").mkdir()
    assert completed(line, tmp_path) == offered


def test_all_verbs_are_offered(tmp_path: Path) -> None:
    assert completed("pollard ", tmp_path) == [*(verb.name for verb in VERBS), "--help"]


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
