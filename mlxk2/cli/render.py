"""Show the data of commands as text for people: one function per command, which returns lines and tables."""

from __future__ import annotations

import io
import json
import os
import shlex
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType

from mlxk2 import VERSION_LINE
from mlxk2.cli.tables import Listing, Row, ago, facts
from mlxk2.formatting import human_size, printable
from mlxk2.names import DEFAULT_ORG, short_hash

if TYPE_CHECKING:
    from mlxk2 import spec
    from mlxk2.commands import health as health_command
    from mlxk2.commands import list as list_command
    from mlxk2.commands import push as push_command
    from mlxk2.commands.context import Context, Data

UNBOUNDED_WIDTH = 100_000
PAGE_LINES = 24


def render(command: str, options: object, context: Context, data: Data) -> str:
    """Return a command's data as text: fitted to the width of a terminal, or plain for other outputs."""
    lines = _RENDERERS[command](options, context, data)
    stdout = context.streams.stdout
    is_terminal = stdout.isatty()
    text = io.StringIO()
    console = Console(
        file=text,
        force_terminal=is_terminal,
        width=os.get_terminal_size(stdout.fileno()).columns or None if is_terminal else UNBOUNDED_WIDTH,
        height=PAGE_LINES,  # Without it, rich uses 80 columns on a dumb terminal.
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=False,
    )
    for line in lines:
        # rich fits tables to the width. The terminal wraps text, so that a copied line contains no line ends.
        console.print(printable(line) if isinstance(line, str) else line, soft_wrap=isinstance(line, str))
    return "".join(line.rstrip() + "\n" for line in text.getvalue().splitlines())


def version(_options: object, _context: Context, _data: spec.VersionData) -> list[RenderableType]:
    """Return `mlxk2 2.0.0`."""
    return [VERSION_LINE]


def list_models(options: list_command.Options, _context: Context, data: spec.ListData) -> list[RenderableType]:
    """Return a table of MLX chat models and its total; with --verbose all MLX models, with --all every model."""
    columns = ["Name", "Hash", "Size", "Modified", "Type"]
    if options.verbose or options.all:
        columns.insert(4, "Framework")
    if options.health:
        columns += ["Integrity", "Runtime", "Reason"] if options.verbose else ["Health"]
    rows: list[Row] = []
    size = 0
    for model in data["models"]:
        is_listed = model["framework"] == "MLX" and (options.verbose or model["model_type"] == "chat")
        if not (options.all or is_listed):
            continue
        name = model["name"] if options.verbose else model["name"].removeprefix(DEFAULT_ORG + "/")
        row = [name, short_hash(model["hash"] or "-"), human_size(model["size_bytes"])]
        row += [ago(model["last_modified"], datetime.now(UTC)), model["model_type"]]
        if options.verbose or options.all:
            row.insert(4, model["framework"])
        is_healthy, runs = model["health"] == "healthy", model["runtime_compatible"]
        if options.health and options.verbose:
            row += [model["health"], ("yes" if runs else "no") if is_healthy else "-", model["reason"] or "-"]
        elif options.health:
            row.append("healthy*" if is_healthy and not runs else model["health"])
        rows.append(row)
        size += model["size_bytes"]
    if not rows:
        return [_explain_empty_list(options, data["count"])]
    shown = f"{len(rows)} of {data['count']}" if len(rows) < data["count"] else f"{len(rows)}"
    noun = "model" if data["count"] == 1 else "models"
    return [Listing(columns, rows), "", f"{shown} {noun}, {human_size(size)}"]


def _explain_empty_list(options: list_command.Options, count: int) -> str:
    """Return why no models are listed, and what to do about it."""
    if not count and options.pattern:
        return _describe_no_match(options.pattern)
    if not count:
        return "No models found. To download one: mlxk2 pull mlx-community/Qwen3-0.6B-4bit"
    kind = "MLX models" if options.verbose else "MLX chat models"
    named = f" named '{options.pattern}'" if options.pattern else ""
    pattern = f" {shlex.quote(options.pattern)}" if options.pattern else ""
    rest = "the other model" if count == 1 else f"all {count} models"
    return f"No {kind}{named}. To see {rest}: mlxk2 list{pattern} --all"


def _describe_no_match(pattern: str) -> str:
    verb = "matches" if any(mark in pattern for mark in "*?[") else "contains"
    return f"No model's name {verb} '{pattern}'."


def show(_options: object, _context: Context, data: spec.ShowData) -> list[RenderableType]:
    """Return the model's facts, one per line, then its files and its config if requested."""
    model = data["model"]
    values = {
        "Model": model["name"],
        "Hash": model["hash"] or "-",
        "Size": human_size(model["size_bytes"]),
        "Modified": f"{model['last_modified']} ({ago(model['last_modified'], datetime.now(UTC))})",
        "Framework": model["framework"],
        "Type": model["model_type"],
        "Capabilities": ", ".join(model["capabilities"]) or "-",
        "Health": model["health"],
        "Runs here": "yes" if model["runtime_compatible"] else "no",
    }
    if model["reason"]:
        values["Reason"] = model["reason"]
    values |= {key.replace("_", " ").capitalize(): str(value) for key, value in (data["metadata"] or {}).items()}
    lines: list[RenderableType] = [facts(values)]
    if "files" in data:
        rows = [(file["name"], file["size"], file["type"]) for file in data["files"]]
        lines += ["", Listing(["File", "Size", "Type"], rows)]
    if "config" in data:
        lines += ["", *json.dumps(data["config"], indent=2, ensure_ascii=False).split("\n")]
    return lines


def health(options: health_command.Options, _context: Context, data: spec.HealthData) -> list[RenderableType]:
    """Return a table of all checked models, the unhealthy ones last, and the number of healthy ones."""
    summary = data["summary"]
    if not summary["total"]:
        return [_describe_no_match(options.pattern) if options.pattern else "No models found."]
    rows = [(entry["name"], entry["status"], "") for entry in data["healthy"]]
    rows += [(entry["name"], entry["status"], entry["reason"]) for entry in data["unhealthy"]]
    count = f"{summary['healthy_count']} of {summary['total']} healthy"
    return [Listing(["Model", "Health", "Reason"], rows), "", count]


def message(
    _options: object, _context: Context, data: spec.PullData | spec.RmData | spec.CloneData
) -> list[RenderableType]:
    """Return the command's message."""
    return [data["message"]]


def push(options: push_command.Options, _context: Context, data: spec.PushData) -> list[RenderableType]:
    """Return the result or the plan of a push; with --verbose also the commit's URL, or the names of the files."""
    outcome = data["message"] or ""
    if data["no_changes"] and not data.get("dry_run"):
        outcome = "no changes"
    if data["created_repo"]:
        outcome = f"repo created, {_lower_first(outcome)}"
    if options.verbose and data["commit_url"]:
        outcome += f" — {data['commit_url']}"
    lines = [f"push (alpha): {data['repo_id']}@{data['branch']} — {_lower_first(outcome)}"]
    if "workspace_health" in data:
        anomalies = data["workspace_health"]["anomalies"]
        lines += [f"  {anomaly['severity']}: {anomaly['message']}" for anomaly in anomalies]
    elif options.verbose:
        lines += [f"  + {name}" for name in data.get("added_files", [])]
        lines += [f"  - {name}" for name in data.get("deleted_files", [])]
    return [*lines]


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def run(_options: object, _context: Context, _data: spec.RunData) -> list[RenderableType]:
    """Return nothing, because the command prints the completion itself, byte for byte the same, streamed or not."""
    return []


def completion(_options: object, _context: Context, data: spec.CompletionData) -> list[RenderableType]:
    """Return the script unchanged."""
    return [*data["script"].splitlines()]


def server(_options: object, _context: Context, data: spec.ServerData) -> list[RenderableType]:
    """Return the address of the server, and how to stop it."""
    model = f" with {data['model']}" if data["model"] else ""
    return [f"Serving{model} on {data['url']} (chat page and OpenAI API at /v1). Ctrl-C ends it."]


_RENDERERS: dict[str, Callable[[Any, Context, Any], list[RenderableType]]] = {
    "version": version,
    "list": list_models,
    "show": show,
    "health": health,
    "pull": message,
    "rm": message,
    "clone": message,
    "push": push,
    "run": run,
    "completion": completion,
    "server": server,
}
