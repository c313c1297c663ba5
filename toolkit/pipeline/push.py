"""To the hub, when asked and only then: the result of a run with its model card."""

from pathlib import Path

import huggingface_hub
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from toolkit.moe import checkpoint_files
from toolkit.pipeline.result_files import short_reason
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.run_status import BEST_FIRST, stale_message
from toolkit.pipeline.stage_names import MADE_BY
from toolkit.recipe.roles import Role
from toolkit.report import RunFacts, card
from toolkit.runtime.errors import PollardError
from toolkit.runtime.signed_folders import PROVENANCE


def push(where: str, repository: str, public: bool = False) -> str:
    """Uploads runs/NAME/recovered (refitted or pruned, where nothing was recovered) and returns its address.

    A new repository is private unless `public`; one that is there keeps its visibility. Raises PollardError where there is
    nothing to upload, for an adapter or a damaged index in the folder, for want of a login, and for what the hub answers.
    """
    path = Path(where)
    run = RunDirectory(path.name, path.parent)
    report = _read_report(run)
    for role in BEST_FIRST[: BEST_FIRST.index(report.result) + 1]:  # the result, and what would be a better one
        if role is Role.REFITTED and MADE_BY[role] not in run.read_manifest().get("planned", ()):
            continue  # left by an earlier recipe, which refit
        if (run.path / role).is_dir() and run.why_stale(MADE_BY[role]):
            message = stale_message(run, str(run.path / role), MADE_BY[role])
            raise PollardError(f"{message}Nothing was uploaded.", code="push.stale")
    folder = run.path / report.result
    if not (folder / "config.json").exists():
        raise PollardError(f"There is no {folder} to push: `pollard run {run.recipe}` makes it.", code="push.no-model")
    stays = [name for name in (PROVENANCE, *checkpoint_files(folder).unread) if (folder / name).exists()]  # paths; other models
    if not get_token():
        raise PollardError(
            "Not logged in to the hub: say `hf auth login` once, or set HF_TOKEN to a token that may write.", code="push.no-login"
        )
    try:
        api = HfApi()
        api.create_repo(repository, private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            ignore_patterns=["README.md", *stays],
            commit_message=f"{report.name}: checkpoint",
        )
        text = card(report, repository).encode()
        api.upload_file(path_or_fileobj=text, path_in_repo="README.md", repo_id=repository, commit_message="Model card")
    except (HTTPError, OSError, ValueError) as error:  # the hub's answer, no way to it, a name it does not take
        raise PollardError(f"Cannot push {folder} to {repository}: {_explained(error)}", code="push.refused") from error
    return f"{huggingface_hub.constants.ENDPOINT}/{repository}"


def _read_report(run: RunDirectory) -> RunFacts:
    path = run.path / "report.json"
    try:
        return RunFacts.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError:
        raise PollardError(
            f"{run.path} has no report.json yet: `pollard run {run.recipe}` ends with one.", code="push.no-report"
        ) from None
    except ValueError as error:
        raise PollardError(
            f"{path} is damaged ({short_reason(error)}): `pollard report {run.recipe}` writes it again.",
            code="push.damaged-report",
        ) from None


def _explained(error: Exception) -> str:
    """What the hub or the network says, on one line, and what to do about it."""
    text = " ".join(str(error).split())
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    if status in (401, 403):
        return f"the hub refuses this login ({status}). Use a token that may write to that name (`hf auth login`). {text}"
    return f"{text.rstrip('.')}. The same command tries again; files that are there already are not sent twice."
