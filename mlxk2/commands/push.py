"""`push`: a folder becomes the content of a branch on the hub, in one commit."""

from __future__ import annotations

import os
from argparse import Namespace
from dataclasses import replace
from typing import TYPE_CHECKING

from mlxk2 import names
from mlxk2.errors import CommandError, DependencyMissingError, OperationError, RepoNotFoundError, ValidationError
from mlxk2.fence import import_hub
from mlxk2.formatting import cut, listed
from mlxk2.hub import endpoint
from mlxk2.spec import ChangeSummary, PushData, WorkspaceHealth
from mlxk2.workspace import check, diff, folder
from mlxk2.workspace.diff import Upload, counted
from mlxk2.workspace.folder import Workspace
from mlxk2.workspace.ignore import IGNORE_FILE

if TYPE_CHECKING:
    from mlxk2.hub.push import Branch, Pushed, Standing

DEFAULT_BRANCH = "main"
DISCLAIMER = (
    "Alpha feature: the branch becomes a mirror of the folder, deletions included. Review the result on the hub."
)


def run(args: Namespace) -> PushData:
    """Check the folder, or plan the push, or do it, as `args` says; only the last changes anything."""
    _check_usage(args)
    workspace = folder.find(args.local_dir)
    if args.check_only:
        return _checked(args, workspace)
    branch = _branch_class().open(args.repo_id, args.branch, workspace.root)
    return _planned(args, workspace, branch) if args.dry_run else _pushed(args, workspace, branch)


def _check_usage(args: Namespace) -> None:
    if not (args.private or args.check_only or args.dry_run):
        raise CommandError(
            "While `push` is an alpha feature, it needs --private (--dry-run and --check-only do not).", command="push"
        )
    if "@" in args.repo_id or args.repo_id.count("/") != 1:
        shown = cut(args.repo_id, names.MAX_LENGTH)
        raise ValidationError(f"Invalid repo {shown!r}: write org/model, and --branch BRANCH.")
    names.parse_repo(f"{args.repo_id}@{args.branch}")
    if not args.commit.strip():
        raise ValidationError("A commit needs a message; leave out --commit for the default one.")


def _branch_class() -> type[Branch]:
    # The library takes a third of a second to import, and a check of the folder does without it.
    try:
        branch: type[Branch] = import_hub("mlxk2.hub.push").Branch
    except OperationError as error:
        cause = error.__cause__
        if not isinstance(cause, ModuleNotFoundError):
            raise
        raise DependencyMissingError(
            f"Pushing needs the package huggingface_hub ({cause.name} is not installed).",
            hint="Install it with: pip install huggingface_hub",
        ) from error
    return branch


def _checked(args: Namespace, workspace: Workspace) -> PushData:
    health = check.check(workspace)
    data = _nothing_done(args, workspace, _verdict(health))
    data["workspace_health"] = health
    return data


def _verdict(health: WorkspaceHealth) -> str:
    if health["healthy"]:
        return "The folder is a whole model."
    return next(anomaly["message"] for anomaly in health["anomalies"] if anomaly["severity"] == "error")


def _planned(args: Namespace, workspace: Workspace, branch: Branch) -> PushData:
    standing = branch.look()
    found = diff.compare(workspace, standing.files, args.progress)
    makes_branch = not standing.has_branch and (standing.has_repo or args.branch != DEFAULT_BRANCH)
    data = _nothing_done(args, workspace, f"Dry-run: {counted(found.summary)}{_missing(args, standing)}")
    data["no_changes"] = found.are_none
    data["dry_run"] = True
    data["dry_run_summary"] = data["change_summary"] = found.summary
    data["would_create_repo"] = not standing.has_repo
    data["would_create_branch"] = makes_branch
    data["added_files"] = [file.name for file in found.added]
    data["deleted_files"] = list(found.deleted)
    _name_secrets(args, workspace, standing, data)
    return data


def _name_secrets(args: Namespace, workspace: Workspace, standing: Standing, data: PushData) -> None:
    """Name the secrets that a push leaves out, and those that it leaves on the hub: in the data, or as warnings."""
    on_hub = sorted(name for name in standing.files if workspace.ignore.withholds(name) or name in workspace.withheld)
    if workspace.withheld:
        data["secrets_left_out"] = workspace.withheld
    if on_hub:
        data["secrets_on_hub"] = on_hub
    if args.json:
        return
    if workspace.withheld:
        args.streams.warn(
            f"Not pushed, as they look like secrets: {listed(workspace.withheld)}. "
            f"To push one, write !{workspace.withheld[0]} into {IGNORE_FILE}."
        )
    if on_hub:
        args.streams.warn(
            f"Left on the hub, where others may read them, though they look like secrets: {listed(on_hub)}. "
            "Delete them there, and renew what they open."
        )


def _missing(args: Namespace, standing: Standing) -> str:
    if standing.has_branch or args.create:
        return ""
    return f"; the {'branch' if standing.has_repo else 'repo'} is not there yet, so push with --create"


def _pushed(args: Namespace, workspace: Workspace, branch: Branch) -> PushData:
    diff.uploadable(workspace)
    standing, created = _prepared(args, branch)
    found = diff.compare(workspace, standing.files, args.progress)
    upload = Upload(found, standing.commit if standing.has_branch else None, workspace.ignore.text, args.commit)
    streams = args.streams
    pushed = branch.push(
        upload,
        makes=args.create,
        shows=not args.json and streams.stderr.isatty(),
        echo=streams.stderr if args.verbose else None,
    )
    data = _nothing_done(args, workspace, pushed.remark or _told(found.summary, standing))
    data["created_repo"] = created
    data["hf_logs"] = pushed.said
    _name_secrets(args, workspace, standing, data)
    if pushed.commit is None:
        data["no_changes"] = True
    else:
        _add_commit(data, pushed, found.summary)
    return data


def _prepared(args: Namespace, branch: Branch) -> tuple[Standing, bool]:
    """How the branch stands, after what --create allows was made of it; and whether the repo is new."""
    standing = branch.look()
    creates_repo = not standing.has_repo
    if creates_repo:
        if not args.create:
            raise RepoNotFoundError(args.repo_id)
        branch.make_repo()
        standing = branch.look()
    if args.create and not standing.has_branch:
        branch.make()
        standing = replace(standing, has_branch=True)
    return standing, creates_repo


def _told(summary: ChangeSummary, standing: Standing) -> str:
    return f"Pushed: {counted(summary)}" + ("; the repo is public" if standing.is_public else "")


def _add_commit(data: PushData, pushed: Pushed, summary: ChangeSummary) -> None:
    modified = summary["modified"]
    data["commit_sha"] = pushed.commit
    data["commit_url"] = pushed.url
    data["uploaded_files_count"] = None if modified is None else summary["added"] + modified + summary["deleted"]
    data["change_summary"] = summary


def _nothing_done(args: Namespace, workspace: Workspace, message: str) -> PushData:
    """What there is to say of a push that changed nothing."""
    return {
        "repo_id": args.repo_id,
        "branch": args.branch,
        "commit_sha": None,
        "commit_url": None,
        "repo_url": f"{endpoint.shown(os.environ)}/{args.repo_id}",
        "uploaded_files_count": 0,
        "local_files_count": len(workspace.files),
        "no_changes": False,
        "created_repo": False,
        "message": message,
        "experimental": True,
        "disclaimer": DISCLAIMER,
    }
