"""launch.sh on one machine, on several by hostfile, in a SLURM job: two nodes of one rank each, both of them this machine.

DeepSpeed's launcher and torchrun are the real ones; ssh, pdsh, srun and scontrol are stood in for by tests/shims.
"""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT, raises
from safetensors.torch import load_file
from small_run import make_small, small_values

from toolkit.cuts.plan import Plan
from toolkit.evaluation import evaluate
from toolkit.recipe.file import dump_values, read_values
from toolkit.recipe.schema import Recipe
from toolkit.runtime.nodes import NodeReport, check_nodes, parse_hostfile, source_digest
from toolkit.runtime.zero import deepspeed_config
from toolkit.tasks import Task

SHIMS = ROOT / "tests" / "shims"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This checkout as launch.sh leaves it when it has set up, whatever environment the tests run in."""
    home = tmp_path_factory.mktemp("home")
    for name in ("toolkit", "data", "pyproject.toml", "constraints.txt"):
        (home / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "launch.sh", home)
    (home / ".venv").mkdir()
    for part in Path(sys.prefix).iterdir():
        if part.name != "pollard-set-up":
            (home / ".venv" / part.name).symlink_to(part)
    wanted = subprocess.run(
        "cat pyproject.toml constraints.txt | sha256sum", shell=True, cwd=home, capture_output=True, check=True
    )
    (home / ".venv" / "pollard-set-up").write_bytes(wanted.stdout)
    return home


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe under ZeRO-3 from end to end, weights and optimizer offloaded, every tensor in parts."""
    folder = tmp_path_factory.mktemp("launch")
    make_small(folder)
    raw = deepspeed_config("3-offload")
    raw["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # small tensors would stay whole
    (folder / "zero3.json").write_text(json.dumps(raw))
    trainer = {"max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1, "eval_strategy": "no"}
    values = small_values(
        model={"path": "original", "placement": "zero3"},
        finetuning={"zero": "zero3.json", "examples": 8, "trainer": trainer},
        calibration={"examples": 10, "batch_size": 4},  # three batches on two ranks
        evaluation={"batch_size": 6, "max_new_tokens": 4, "off_task": False},  # one batch: a rank has none
    )
    (folder / "recipe.yaml").write_text(dump_values(values))
    (folder / ".deepspeed_env").write_text("OMP_NUM_THREADS=1\n")
    (folder / "hosts").write_text("127.0.0.1 slots=1\nlocalhost slots=1  # the same machine again\n")
    return folder


def launch(script: Path, folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "CUDA_VISIBLE"))}
    known |= {"PATH": f"{SHIMS}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": ""} | environment
    command = ["bash", str(script), *arguments]
    return subprocess.run(command, cwd=folder, env=known, capture_output=True, text=True, timeout=900, check=False)


def ran(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def alone(home: Path, folder: Path) -> Path:
    """The run directory of two ranks on one machine."""
    out = ran(launch(home / "launch.sh", folder, "--ranks", "2", "recipe.yaml", "name=alone"))
    assert "fine-tune the pruned model (full, ZeRO zero3.json, 2 ranks)" in out and "in parts over all ranks" in out
    return folder / "runs" / "alone"


def predictions(run: Path, role: str) -> str:
    return (run / "evaluation" / f"{role}.predictions.jsonl").read_text()


@pytest.mark.launcher
def test_two_nodes_of_a_hostfile_do_what_two_ranks_of_one_machine_do(home: Path, folder: Path, alone: Path) -> None:
    ran(launch(home / "launch.sh", folder, "--hostfile", "hosts", "recipe.yaml", "name=hosts"))
    run = folder / "runs" / "hosts"
    stages = json.loads((run / "manifest.json").read_text())["stages"]
    assert {stage["ranks"] for stage in stages.values()} == {2} and "recover" in stages
    ours, theirs = (Plan.load(path / "plan.json").blocks for path in (run, alone))
    for name, block in theirs.items():
        assert ours[name].kept == block.kept and ours[name].scores == pytest.approx(block.scores, rel=1e-6)
    for role in ("original", "pruned", "recovered"):
        assert predictions(run, role) == predictions(alone, role)
    found, expected = (load_file(path / "recovered" / "model.safetensors") for path in (run, alone))
    # Adam turns a rounding difference in a near-zero gradient into a step of full size
    apart = torch.cat([(found[name] - expected[name]).abs().flatten() for name in found | expected])
    assert apart.max() <= 1e-4 and apart.mean() <= 1e-7


@pytest.mark.launcher
def test_a_slurm_job_of_two_nodes_answers_with_copies_as_zero3_answers_in_parts(home: Path, folder: Path, alone: Path) -> None:
    spool = folder / "spool" / "slurm_script"  # sbatch runs a copy; the checkout is found through SLURM
    spool.parent.mkdir()
    shutil.copy(home / "launch.sh", spool)
    job = {"SLURM_JOB_ID": "12345", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "localhost,localhost", "SLURM_CPUS_ON_NODE": "2"}
    changes = ["name=slurm", "model.placement=auto", "evaluation.models=[original,pruned]"]
    done = launch(spool, folder, "--ranks", "1", "recipe.yaml", *changes, **job, SUBMITTED=str(home / "launch.sh"))
    assert "in parts" not in ran(done)
    run = folder / "runs" / "slurm"
    stages = json.loads((run / "manifest.json").read_text())["stages"]
    assert {stage["ranks"] for stage in stages.values()} == {2}
    for role in ("original", "pruned"):
        assert predictions(run, role) == predictions(alone, role)


@pytest.mark.launcher
def test_a_recovered_model_answers_alone_as_it_did_in_parts(alone: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    task = Task(Recipe.model_validate(read_values(Path("recipe.yaml").read_text())).task)
    scores = evaluate(alone / "recovered", None, task, batch_size=6, max_new_tokens=4)
    told = [json.loads(line)["prediction"] for line in predictions(alone, "recovered").splitlines()]
    assert [item.prediction for item in scores.items] == told and len(set(told)) > 1


# A terminal sends Ctrl-C to all processes of the command; SLURM and people who kill send SIGTERM to the first of them alone.
@pytest.mark.launcher
@pytest.mark.parametrize(("number", "send"), [(signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)])
def test_a_stopped_run_says_how_to_go_on_and_leaves_no_rank_behind(
    home: Path, folder: Path, number: signal.Signals, send: Callable[[int, int], None]
) -> None:
    command = ["bash", str(home / "launch.sh"), "--ranks", "2", "recipe.yaml", f"name={number.name}", "--fresh"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell that starts tests in the background ignores it
    ) as process:  # which ends when nobody writes any more: no rank is left
        assert process.stdout
        before = []
        for line in process.stdout:
            before.append(line)
            if line.startswith("calibrate "):
                break
        send(process.pid, number)
        after = process.stdout.read()
    assert process.returncode == 130, "".join(before) + after
    assert "stopped: what is done stays done, and this goes on from there:\n" in after
    assert f"  {home}/launch.sh --ranks 2 recipe.yaml name={number.name}\n" in after  # without --fresh
    assert "Traceback" not in after and "Error" not in after


# What is missing is said before a rank starts, for all nodes at once.
def test_nodes_that_are_not_ready_are_named_with_what_to_do(home: Path, folder: Path) -> None:
    (folder / "bad_hosts").write_text("nowhere slots=1\nlocalhost slots=1\n")
    done = launch(home / "launch.sh", folder, "--hostfile", "bad_hosts", "nothing.yaml")
    assert done.returncode == 1
    assert "nowhere: cannot be reached by ssh without a password: try `ssh-copy-id nowhere`" in done.stderr
    assert "localhost: cannot read the recipe" in done.stderr and "nothing.yaml" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--ranks", "many"], "--ranks takes a number, e.g. --ranks 4"),
        (["--hostfile"], "--hostfile takes a file with a line `name slots=8` for each machine"),
        (["--ranks", "2", "--hostfile", "hosts", "recipe.yaml"], "--ranks and --hostfile exclude each other"),
        (["--hostfile", "missing", "recipe.yaml"], "Cannot read the hostfile missing"),
    ],
)
def test_mistaken_options_are_told(home: Path, folder: Path, arguments: list[str], said: str) -> None:
    done = launch(home / "launch.sh", folder, *arguments)
    assert done.returncode == 1 and said in done.stderr, done.stderr


def test_a_copy_in_a_spool_folder_that_slurm_does_not_know_says_how_to_submit_it(home: Path, tmp_path: Path) -> None:
    shutil.copy(home / "launch.sh", tmp_path / "slurm_script")
    done = launch(tmp_path / "slurm_script", tmp_path, "recipe.yaml", SLURM_JOB_ID="7", SUBMITTED="/gone/launch.sh")
    assert done.returncode == 1 and "cannot find the folder it belongs to: submit it from there" in done.stderr


@pytest.mark.parametrize(
    ("text", "code", "named"),
    [
        ("a slots=8\nb 8\n", "nodes.hostfile-line", ["hosts, line 2", "`b 8`"]),
        ("# mine\n\na slots=8\na slots=4\n", "nodes.host-twice", ["hosts, line 4: a "]),
        ("a slots=0", "nodes.hostfile-line", ["line 1", "`a slots=0`"]),
        ("# nobody\n", "nodes.no-hosts", ["hosts"]),
    ],
)
def test_a_malformed_hostfile_is_refused_with_its_line(tmp_path: Path, text: str, code: str, named: list[str]) -> None:
    (tmp_path / "hosts").write_text(text)
    with raises(code, *named):
        parse_hostfile(str(tmp_path / "hosts"))


def test_gpus_and_versions_of_all_nodes_are_compared() -> None:
    nodes = [
        NodeReport("a", 8, source_digest(), []),
        NodeReport("b", 4, source_digest(), []),
        NodeReport("c", 0, "another", []),
    ]
    with raises("nodes.not-ready") as error:
        check_nodes(nodes, [8, 8, 8])
    assert [line.partition(",")[0] for line in str(error.value).splitlines()] == [
        "b: 4 GPUs",
        f"c: another version of Pollard stands at {ROOT}: share one folder",
        "c: 0 GPUs",
    ]
    check_nodes(nodes[:1], [8])
    check_nodes([dataclasses.replace(nodes[0], gpus=0)] * 2, [2, 2])  # all on CPU
