"""Checks every node before ranks start on several machines, and reports everything that is missing at once.

python toolkit/runtime/nodes.py here RECIPE                     this node: one line of JSON
python toolkit/runtime/nodes.py hostfile HOSTS RECIPE           every node of a DeepSpeed hostfile, over ssh
python toolkit/runtime/nodes.py slurm RECIPE [--ranks N]        every node of the SLURM job; prints how many ranks each can run
"""

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

THIS_FILE = Path(__file__).absolute()
ROOT = THIS_FILE.parents[2]
sys.path[0] = str(ROOT)

from toolkit.runtime.errors import PollardError

CPU_RANKS = 2  # of a node without a GPU


@dataclass
class NodeReport:
    """What a node has and what it lacks. `gpus` and `checkout` (a digest of the source) are None where it did not answer."""

    host: str
    gpus: int | None
    checkout: str | None
    faults: list[str]


def check_this_node(recipe: str) -> NodeReport:
    """The report of the node that this runs on."""
    faults = []
    try:
        Path(recipe).read_bytes()
    except OSError as error:
        faults.append(f"cannot read the recipe {Path(recipe).absolute()} ({error.strerror}): put it into a folder that all share")
    gpus = 0
    try:
        import torch

        gpus = torch.cuda.device_count()
    except ImportError as error:
        faults.append(f"{sys.executable} cannot import torch ({error}): run ./launch.sh setup there, or share the folder")
    return NodeReport(socket.gethostname(), gpus, source_digest(), faults)


def source_digest() -> str:
    """A digest of this toolkit's source."""
    digest = hashlib.sha256()
    for file in sorted(THIS_FILE.parents[1].rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def parse_hostfile(path: str) -> dict[str, int]:
    """Ranks per host, of lines such as `worker-1 slots=8`. Raises PollardError naming the line that is none."""
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PollardError(f"Cannot read the hostfile {path}: {error}.", code="nodes.no-hostfile") from None
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        found = re.fullmatch(r"(\S+)\s+slots=([1-9]\d*)(\s*#.*)?", line)
        if not found:
            raise PollardError(
                f"{path}, line {number}: `{line}` is not `name slots=8` (the number of ranks, one per GPU).",
                code="nodes.hostfile-line",
            )
        if found[1] in hosts:
            raise PollardError(f"{path}, line {number}: {found[1]} stands there twice.", code="nodes.host-twice")
        hosts[found[1]] = int(found[2])
    if not hosts:
        raise PollardError(f"{path} names no host. Write a line for each: `name slots=8`.", code="nodes.no-hosts")
    return hosts


def reports_over_ssh(hosts: dict[str, int], recipe: str) -> list[NodeReport]:
    """Every host's report; what kept one from reporting is its only fault."""
    if not shutil.which("pdsh"):
        raise PollardError(
            "DeepSpeed reaches the nodes by pdsh, which this machine lacks. Install it, e.g. `apt install pdsh`.",
            code="nodes.no-pdsh",
        )

    def ask(host: str) -> NodeReport:
        command = f"cd {shlex.quote(os.getcwd())} && {shlex.join([sys.executable, str(THIS_FILE), 'here', recipe])}"
        ssh = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", host, command]
        done = subprocess.run(ssh, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return NodeReport(**(json.loads(done.stdout.splitlines()[-1]) | {"host": host}))
        last_line = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        what = f"does not run Pollard at the same place ({sys.executable}, {ROOT}, {os.getcwd()}): share these folders"
        if done.returncode == 255:
            what = f"cannot be reached by ssh without a password: try `ssh-copy-id {host}`"
        return NodeReport(host, None, None, [f"{what} (it says: {last_line})"])

    with ThreadPoolExecutor(32) as pool:
        return list(pool.map(ask, hosts))


def reports_over_srun(recipe: str) -> list[NodeReport]:
    """The report of every node of this SLURM job. Raises PollardError where some do not answer."""
    count = os.environ["SLURM_NNODES"]
    srun = ["srun", "--overlap", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1", "--cpu-bind=none"]
    done = subprocess.run([*srun, sys.executable, str(THIS_FILE), "here", recipe], capture_output=True, text=True, check=False)
    reports = [NodeReport(**json.loads(line)) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or len(reports) != int(count):
        raise PollardError(
            f"{len(reports)} of the job's {count} nodes run Pollard at the same place ({sys.executable}, {ROOT}): "
            f"share these folders. srun says:\n{done.stderr.strip()[-2000:]}",
            code="nodes.not-answering",
        )
    return reports


def check_nodes(reports: list[NodeReport], ranks: list[int]) -> None:
    """Raises PollardError with everything that the nodes lack to run `ranks` ranks each (one number for every report)."""
    here, on_gpus = source_digest(), any(report.gpus for report in reports)
    faults = []
    for report, wanted in zip(reports, ranks, strict=True):
        found = list(report.faults)
        if report.checkout not in (here, None):
            found.append(f"another version of Pollard stands at {ROOT}: share one folder, or copy this one")
        if on_gpus and report.gpus is not None and report.gpus < wanted:
            found.append(f"{report.gpus} GPUs, and {wanted} ranks are to run there")
        faults += [f"{report.host}: {fault}" for fault in found]
    if faults:
        raise PollardError("\n".join(faults), code="nodes.not-ready")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("where", choices=["here", "hostfile", "slurm"])
    parser.add_argument("files", nargs="+", metavar="[HOSTS] RECIPE")
    parser.add_argument("--ranks", type=int)
    arguments = parser.parse_args()
    recipe = arguments.files[-1]
    try:
        if arguments.where == "here":
            # At once: srun lets the nodes' lines through as they come
            sys.stdout.write(json.dumps(asdict(check_this_node(recipe))) + "\n")
        elif arguments.where == "hostfile":
            hosts = parse_hostfile(arguments.files[0])
            check_nodes(reports_over_ssh(hosts, recipe), list(hosts.values()))
        else:
            reports = reports_over_srun(recipe)
            ranks = arguments.ranks or min(report.gpus or 0 for report in reports) or CPU_RANKS
            check_nodes(reports, [ranks] * len(reports))
            print(ranks)
    except PollardError as error:
        print(f"launch.sh: not all nodes are ready:\n{error}" if "\n" in str(error) else f"launch.sh: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
