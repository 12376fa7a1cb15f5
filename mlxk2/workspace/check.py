"""The check of a folder before it is pushed: the cache's rules of health, every finding with its place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from mlxk2.checkpoint import health
from mlxk2.checkpoint.describe import needs_tokenizer
from mlxk2.checkpoint.files import BrokenFile, File
from mlxk2.checkpoint.health import Rule
from mlxk2.checkpoint.snapshot import Contents
from mlxk2.formatting import printable
from mlxk2.spec import Anomaly, ConfigHealth, IndexHealth, WeightsHealth, WorkspaceHealth
from mlxk2.workspace.folder import Workspace
from mlxk2.workspace.ignore import IGNORE_FILE

CONFIG = "config.json"
README = "README.md"

_CODES: dict[Rule, str] = {
    health.has_config: "invalid_config",
    health.has_weights: "incomplete_weights",
    health.has_whole_weights: "damaged_weights",
    health.has_only_finished_files: "unfinished_file",
    health.has_tokenizer: "no_tokenizer",
}


def check(workspace: Workspace) -> WorkspaceHealth:
    """What the API says of a folder that is to become a model; nothing but the folder is looked at.

    It is the verdict of `show` on the folder, unless a `.hfignore` leaves out more, or a file can't be uploaded.
    """
    contents = workspace.contents()
    anomalies = [*_anomalies(workspace.files, contents), *map(_withheld, workspace.withheld)]
    return {
        "files_count": len(workspace.files),
        "total_bytes": sum(file.size for file in workspace.files),
        "config": _config(contents),
        "weights": _weights(contents),
        "anomalies": anomalies,
        "healthy": not any(anomaly["severity"] == "error" for anomaly in anomalies),
    }


def _config(contents: Contents) -> ConfigHealth:
    exists = CONFIG in contents
    return {"exists": exists, "valid_json": isinstance(contents.config, dict), "path": CONFIG if exists else None}


def _weights(contents: Contents) -> WeightsHealth:
    names = health.weight_names(contents)
    missing = _missing_shards(contents)
    index: IndexHealth = {"has_index": health.index_name(contents) is not None, "missing": missing}
    return {
        "count": len(names),
        "formats": sorted({name.rpartition(".")[2] for name in names}),
        "index": index,
        "pattern_complete": not missing and not health.missing_parts(names),
    }


def _missing_shards(contents: Contents) -> list[str]:
    try:
        return health.missing_shards(contents)
    except BrokenFile:
        return []  # the rule for weights says what is wrong with the index


def _anomalies(files: Sequence[File], contents: Contents) -> Iterator[Anomaly]:
    if not contents.files:
        yield _anomaly("empty_folder", f"{health.has_snapshot(contents)}.")
        return
    unusable = [file for file in files if file.problem]
    for file in unusable:
        yield _anomaly("unusable_file", f"{printable(health.why_unreadable(file))}.", file.name)
    broken = list(_broken_rules(contents, {file.name for file in unusable}))
    yield from broken
    if not broken:
        yield from (_warning("odd_index", f"{warning}.") for warning in health.warnings(contents))
    if README not in contents:
        yield _warning("no_readme", f"There is no {README}.")


def _broken_rules(contents: Contents, reported: set[str]) -> Iterator[Anomaly]:
    """An anomaly for each rule that is broken, less those about files that were reported already."""
    for rule in _rules(contents):
        problem = _ask(rule, contents)
        if problem is None:
            continue
        missing = _missing_shards(contents) if rule is health.has_weights else []
        shards = {f"Missing shard: {shard}": shard for shard in missing}
        path = _named_file(contents, problem)
        if problem not in shards and path not in reported:
            yield _anomaly(_code(rule, contents), f"{problem}.", path)
            reported = reported | ({path} if path else set())
        yield from (_anomaly("missing_shard", f"{text}.", shard) for text, shard in shards.items())


def _rules(contents: Contents) -> Iterable[Rule]:
    rules = [rule for rule in health.RULES if rule is not health.has_snapshot]
    return [*rules, health.has_tokenizer] if needs_tokenizer(contents) else rules


def _ask(rule: Rule, contents: Contents) -> str | None:
    try:
        return rule(contents)
    except BrokenFile as error:
        return str(error)


def _code(rule: Rule, contents: Contents) -> str:
    return "missing_config" if rule is health.has_config and CONFIG not in contents else _CODES[rule]


def _named_file(contents: Contents, problem: str) -> str | None:
    file = contents.file_of(problem)
    return file and file.name


def _withheld(name: str) -> Anomaly:
    shown = printable(name)
    message = f"{shown} looks like a secret and is not pushed; to push it, write !{shown} into {IGNORE_FILE}."
    return _warning("secret_left_out", message, name)


def _warning(code: str, message: str, path: str | None = None) -> Anomaly:
    return {"severity": "warning", "code": code, "message": message, "path": path}


def _anomaly(code: str, message: str, path: str | None = None) -> Anomaly:
    return {"severity": "error", "code": code, "message": message, "path": path}
