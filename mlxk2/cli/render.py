"""The data of every command as text for people: one function per command, which returns lines and lists."""

from __future__ import annotations

import io
import json
import os
import shlex
from argparse import Namespace
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import IO, Any

from rich.console import Console, RenderableType

from mlxk2 import VERSION_LINE
from mlxk2.cli.tables import Listing, Row, facts
from mlxk2.formatting import human_size, printable
from mlxk2.names import DEFAULT_ORG, short_hash
from mlxk2.spec import (
    CloneData,
    CompletionData,
    HealthData,
    HealthEntry,
    ListData,
    ModelObject,
    PullData,
    PushData,
    RmData,
    RunData,
    ServerData,
    ShowData,
    VersionData,
)

UNBOUNDED_WIDTH = 100_000
PAGE = 24

_NO_CACHE = "No models found: the cache folder is not there."


def render(args: Namespace, data: Mapping[str, Any], stream: IO[str]) -> str:
    """What a command's data says, ready for a stream: fitted to a terminal, plain elsewhere."""
    lines = _RENDERERS[args.command](args, data)
    is_terminal = stream.isatty()
    text = io.StringIO()
    console = Console(
        file=text,
        force_terminal=is_terminal,
        width=os.get_terminal_size(stream.fileno()).columns or None if is_terminal else UNBOUNDED_WIDTH,
        height=PAGE,  # without one, rich takes the width of a dumb terminal to be 80
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=False,
    )
    for line in lines:
        # A table fits itself to the width; text is left to the terminal, so that what is copied is what was meant.
        console.print(printable(line) if isinstance(line, str) else line, soft_wrap=isinstance(line, str))
    return "".join(line.rstrip() + "\n" for line in text.getvalue().splitlines())


def version(args: Namespace, data: VersionData) -> list[RenderableType]:  # noqa: ARG001 - every renderer has this signature
    """`mlxk2 2.0.0`."""
    return [VERSION_LINE]


def list_models(args: Namespace, data: ListData) -> list[RenderableType]:
    """A table of MLX chat models; of all MLX models with --verbose, of everything with --all."""
    models = [model for model in data["models"] if _is_listed(args, model)]
    if not models:
        return [_nothing_listed(args, data)]
    return [Listing(_list_columns(args), [_list_row(args, model) for model in models])]


def _is_listed(args: Namespace, model: ModelObject) -> bool:
    if args.all:
        return True
    return model["framework"] == "MLX" and (args.verbose or model["model_type"] == "chat")


def _nothing_listed(args: Namespace, data: ListData) -> str:
    count = data["count"]
    if not count and args.absence:
        return _NO_CACHE
    if not count:
        download = "No models found. To download one: mlxk2 pull mlx-community/Qwen3-0.6B-4bit"
        return _unnamed(args.pattern) if args.pattern else download
    kind = "MLX models" if args.verbose else "MLX chat models"
    named, pattern = (f" named '{args.pattern}'", f" {shlex.quote(args.pattern)}") if args.pattern else ("", "")
    rest = "the other model" if count == 1 else f"all {count} models"
    return f"No {kind}{named}. To see {rest}: mlxk2 list{pattern} --all"


def _unnamed(pattern: str) -> str:
    return f"No model's name contains '{pattern}'."


def _list_columns(args: Namespace) -> list[str]:
    columns = ["Name", "Hash", "Size", "Modified", "Type"]
    if args.verbose or args.all:
        columns.insert(4, "Framework")
    if args.health:
        columns += ["Integrity", "Runtime", "Reason"] if args.verbose else ["Health"]
    return columns


def _list_row(args: Namespace, model: ModelObject) -> Row:
    name = model["name"] if args.verbose else model["name"].removeprefix(DEFAULT_ORG + "/")
    row = [name, short_hash(model["hash"] or "-"), human_size(model["size_bytes"])]
    row += [ago(model["last_modified"], datetime.now(UTC)), model["model_type"]]
    if args.verbose or args.all:
        row.insert(4, model["framework"])
    if args.health:
        row += _verbose_health(model) if args.verbose else [_short_health(model)]
    return row


def _short_health(model: ModelObject) -> str:
    intact_but_idle = model["health"] == "healthy" and not model["runtime_compatible"]
    return "healthy*" if intact_but_idle else model["health"]


def _verbose_health(model: ModelObject) -> Row:
    runs = "yes" if model["runtime_compatible"] else "no"
    return [model["health"], runs if model["health"] == "healthy" else "-", model["reason"] or "-"]


def show(args: Namespace, data: ShowData) -> list[RenderableType]:  # noqa: ARG001
    """The model's facts, one a line, then its files and its config where they were asked for."""
    model = data["model"]
    lines: list[RenderableType] = [facts(_model_facts(model) | _metadata_facts(data))]
    if "files" in data:
        rows = [(file["name"], file["size"], file["type"]) for file in data["files"]]
        lines += ["", Listing(["File", "Size", "Type"], rows)]
    if "config" in data:
        lines += ["", *json.dumps(data["config"], indent=2, ensure_ascii=False).split("\n")]
    return lines


def _model_facts(model: ModelObject) -> dict[str, str]:
    return {
        "Model": model["name"],
        "Hash": model["hash"] or "-",
        "Size": human_size(model["size_bytes"]),
        "Modified": f"{model['last_modified']} ({ago(model['last_modified'], datetime.now(UTC))})",
        "Framework": model["framework"],
        "Type": model["model_type"],
        "Capabilities": ", ".join(model["capabilities"]) or "-",
        "Health": model["health"],
        "Runs here": "yes" if model["runtime_compatible"] else "no",
    } | ({"Reason": model["reason"]} if model["reason"] else {})


def _metadata_facts(data: ShowData) -> dict[str, str]:
    metadata = data["metadata"] or {}
    return {key.replace("_", " ").capitalize(): str(value) for key, value in metadata.items()}


def health(args: Namespace, data: HealthData) -> list[RenderableType]:
    """A line for every model, the unhealthy ones last, and the count."""
    summary = data["summary"]
    if not summary["total"]:
        return [_unnamed(args.pattern) if args.pattern else "No models found."]
    rows = [_health_row(entry) for entry in data["healthy"] + data["unhealthy"]]
    count = f"{summary['healthy_count']} of {summary['total']} healthy"
    return [Listing(["Model", "Health", "Reason"], rows), "", count]


def _health_row(entry: HealthEntry) -> Row:
    return (entry["name"], entry["status"], "" if entry["status"] == "healthy" else entry["reason"])


def message(args: Namespace, data: PullData | RmData | CloneData) -> list[RenderableType]:  # noqa: ARG001
    """What the command did, in its own words."""
    return [data["message"]]


def push(args: Namespace, data: PushData) -> list[RenderableType]:
    """One line that says what a push did, or would do; with --verbose the commit's URL, or the names of the files."""
    outcome = data["message"] or ""
    if data["no_changes"] and not data.get("dry_run"):
        outcome = "no changes"
    if data["created_repo"]:
        outcome = f"repo created, {_uncapitalized(outcome)}"
    if args.verbose and data["commit_url"]:
        outcome += f" — {data['commit_url']}"
    first = f"push (experimental): {data['repo_id']}@{data['branch']} — {_uncapitalized(outcome)}"
    return [first, *_push_details(args, data)]


def _push_details(args: Namespace, data: PushData) -> list[str]:
    if "workspace_health" in data:
        return [f"  {anomaly['severity']}: {anomaly['message']}" for anomaly in data["workspace_health"]["anomalies"]]
    signs = {"+": data.get("added_files", []), "-": data.get("deleted_files", [])} if args.verbose else {}
    return [f"  {sign} {name}" for sign, names in signs.items() for name in names]


def _uncapitalized(text: str) -> str:
    return text[:1].lower() + text[1:]


def run(args: Namespace, data: RunData) -> list[RenderableType]:  # noqa: ARG001
    """Nothing: the command writes the answer itself, so that it is the same to the byte, streamed or not."""
    return []


def completion(args: Namespace, data: CompletionData) -> list[RenderableType]:  # noqa: ARG001
    """The script as it is."""
    return [*data["script"].splitlines()]


def ago(timestamp: str, now: datetime) -> str:
    """How long before `now` a UTC timestamp was: just now, 5m ago, 3h ago, 2d ago, 4mo ago, 1y ago."""
    then = datetime.strptime(timestamp, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    seconds = (now - then).total_seconds()
    units = (("y", 365 * 86400), ("mo", 30 * 86400), ("d", 86400), ("h", 3600), ("m", 60))
    name, length = next((unit for unit in units if seconds >= unit[1]), ("", 0))
    return f"{int(seconds // length)}{name} ago" if length else "just now"


def server(args: Namespace, data: ServerData) -> list[RenderableType]:  # noqa: ARG001
    """Where the server answers, and how to end it."""
    model = f" with {data['model']}" if data["model"] else ""
    return [f"Serving{model} on {data['url']} (chat page and OpenAI API at /v1). Ctrl-C ends it."]


_RENDERERS: dict[str, Callable[[Namespace, Any], list[RenderableType]]] = {
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
