"""`push`: make a branch on the hub equal to a folder, in one commit."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from mlxk2 import names
from mlxk2.commands.context import hub_imports
from mlxk2.errors import CommandError, DependencyMissingError, OperationError, RepoNotFoundError, ValidationError
from mlxk2.formatting import cut, join_names
from mlxk2.hub import endpoint
from mlxk2.workspace import check, diff, folder
from mlxk2.workspace.check import WorkspaceHealth
from mlxk2.workspace.diff import ChangeCounts, Upload
from mlxk2.workspace.folder import Workspace
from mlxk2.workspace.ignore import IGNORE_FILE

if TYPE_CHECKING:
    from mlxk2 import spec
    from mlxk2.commands.context import Context
    from mlxk2.hub.push import Branch, BranchState
    from mlxk2.spec import ChangeSummary, PushData

DEFAULT_BRANCH = "main"
DISCLAIMER = (
    "Alpha feature: the branch becomes a mirror of the folder, deletions included. Review the result on the hub."
)


class Options(NamedTuple):
    """The folder to push, the repo and branch, the commit message, and whether to create the repo or the branch.

    With `check_only`, only check the folder, without network; then, with `exit_code`, the exit code is 1 if the folder
    is unhealthy. With `dry_run`, only compare the folder with the hub.
    """

    local_dir: str
    repo_id: str
    private: bool
    create: bool
    branch: str
    commit: str
    check_only: bool
    exit_code: bool
    dry_run: bool
    verbose: bool


def run(options: Options, context: Context) -> PushData:
    """Check the folder, or plan the push, or push, as the options say; only a push changes anything."""
    if not (options.private or options.check_only or options.dry_run):
        raise CommandError("While `push` is an alpha feature, it needs --private (--dry-run and --check-only do not).")
    if options.exit_code and not options.check_only:
        raise CommandError("--exit-code goes with --check-only.")
    if "@" in options.repo_id or options.repo_id.count("/") != 1:
        shown = cut(options.repo_id, names.MAX_LENGTH)
        raise ValidationError(f"Invalid repo {shown!r}: write org/model, and --branch BRANCH.")
    names.parse_repo(f"{options.repo_id}@{options.branch}")
    if not options.commit.strip():
        raise ValidationError("A commit needs a message; omit --commit to use the default message.")
    workspace = folder.find(options.local_dir)
    if options.check_only:
        health = check.check(workspace)
        verdict = health.first_error.message if health.first_error else "The folder is a complete model."
        data = _data(options, context, workspace, verdict)
        data["workspace_health"] = _health_object(health)
        return data
    try:
        with hub_imports():
            from mlxk2.hub.push import Branch  # noqa: PLC0415 - slow, and a check of the folder does not need it
    except OperationError as error:
        cause = error.__cause__
        if not isinstance(cause, ModuleNotFoundError):
            raise
        raise DependencyMissingError(
            f"Pushing needs the package huggingface_hub ({cause.name} is not installed).",
            hint="Install it with: pip install huggingface_hub",
        ) from error
    branch = Branch.open(context.environment, options.repo_id, options.branch, workspace.root)
    action = _plan if options.dry_run else _push
    return action(options, context, workspace, branch)


def exit_code(options: Options, data: PushData) -> int:
    """With `exit_code`, return 1 if the folder is unhealthy; otherwise return 0."""
    return int(options.exit_code and not data["workspace_health"]["healthy"])


def _health_object(health: WorkspaceHealth) -> spec.WorkspaceHealth:
    """Return the JSON object of a check's result."""
    return {
        "files_count": health.files_count,
        "total_bytes": health.total_bytes,
        "config": {
            "exists": health.has_config,
            "valid_json": health.has_valid_config,
            "path": check.CONFIG if health.has_config else None,
        },
        "weights": {
            "count": health.weights_count,
            "formats": list(health.weight_formats),
            "index": {"has_index": health.has_index, "missing": list(health.missing_shards)},
            "pattern_complete": health.has_all_parts,
        },
        "anomalies": [
            {"severity": found.severity, "code": found.code, "message": found.message, "path": found.path}
            for found in health.anomalies
        ],
        "healthy": health.first_error is None,
    }


def _plan(options: Options, context: Context, workspace: Workspace, branch: Branch) -> PushData:
    """Compare the folder with the branch and report what a push would do."""
    state = branch.read()
    found = diff.compare(workspace, state.files, context.progress)
    message = f"Dry-run: {found.counts}"
    if not state.has_branch and not options.create:
        message += f"; the {'branch' if state.has_repo else 'repo'} does not exist yet, so push with --create"
    data = _data(options, context, workspace, message)
    data["no_changes"] = found.is_empty
    data["dry_run"] = True
    data["dry_run_summary"] = data["change_summary"] = _summary_object(found.counts)
    data["would_create_repo"] = not state.has_repo
    data["would_create_branch"] = not state.has_branch and (state.has_repo or options.branch != DEFAULT_BRANCH)
    data["added_files"] = [file.name for file in found.added]
    data["deleted_files"] = list(found.deleted)
    _report_secrets(context, workspace, state, data)
    return data


def _push(options: Options, context: Context, workspace: Workspace, branch: Branch) -> PushData:
    """Create the repo or the branch if they are missing and --create allows it, then upload the changes."""
    diff.check_uploadable(workspace)
    state = branch.read()
    creates_repo = not state.has_repo
    if creates_repo:
        if not options.create:
            raise RepoNotFoundError(options.repo_id)
        branch.create_repo()
        state = branch.read()
    if options.create and not state.has_branch:
        branch.create()
        state = replace(state, has_branch=True)
    found = diff.compare(workspace, state.files, context.progress)
    upload = Upload(found, state.commit if state.has_branch else None, workspace.ignore.text, options.commit)
    stderr = context.streams.stderr
    pushed = branch.push(
        upload,
        may_create=options.create,
        show_bars=not context.is_json and stderr.isatty(),
        echo=stderr if options.verbose else None,
    )
    message = f"Pushed: {found.counts}" + ("; the repo is public" if state.is_public else "")
    data = _data(options, context, workspace, pushed.remark or message)
    data["created_repo"] = creates_repo
    data["hf_logs"] = pushed.log
    _report_secrets(context, workspace, state, data)
    if pushed.commit is None:
        data["no_changes"] = True
        return data
    added, modified, deleted = found.counts
    data["commit_sha"] = pushed.commit
    data["commit_url"] = pushed.url
    data["uploaded_files_count"] = None
    if modified is not None:
        data["uploaded_files_count"] = added + modified + deleted
    data["change_summary"] = _summary_object(found.counts)
    return data


def _summary_object(counts: ChangeCounts) -> ChangeSummary:
    return {"added": counts.added, "modified": counts.modified, "deleted": counts.deleted}


def _report_secrets(context: Context, workspace: Workspace, state: BranchState, data: PushData) -> None:
    """Report the secrets that a push does not upload, and those that stay on the hub: in the data, or as warnings."""
    on_hub = sorted(name for name in state.files if workspace.ignore.is_secret(name) or name in workspace.secrets)
    if workspace.secrets:
        data["secrets_left_out"] = workspace.secrets
    if on_hub:
        data["secrets_on_hub"] = on_hub
    if context.is_json:
        return
    if workspace.secrets:
        context.streams.warn(
            f"Not pushed, because they look like secrets: {join_names(workspace.secrets)}. "
            f"To push one, write !{workspace.secrets[0]} into {IGNORE_FILE}."
        )
    if on_hub:
        context.streams.warn(
            f"These files on the hub look like secrets, and others may be able to read them: {join_names(on_hub)}. "
            "Delete them there, and replace the keys or passwords in them."
        )


def _data(options: Options, context: Context, workspace: Workspace, message: str) -> PushData:
    """Return the data of a push that changed nothing."""
    return {
        "repo_id": options.repo_id,
        "branch": options.branch,
        "commit_sha": None,
        "commit_url": None,
        "repo_url": f"{endpoint.read_public(context.environment)}/{options.repo_id}",
        "uploaded_files_count": 0,
        "local_files_count": len(workspace.files),
        "no_changes": False,
        "created_repo": False,
        "message": message,
        "experimental": True,
        "disclaimer": DISCLAIMER,
    }
