"""Check a folder before it is pushed, by the same rules of health as a model in the cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from mlxk2.checkpoint import health
from mlxk2.checkpoint.describe import needs_tokenizer
from mlxk2.checkpoint.files import BrokenFile
from mlxk2.checkpoint.health import Rule
from mlxk2.checkpoint.snapshot import Snapshot
from mlxk2.formatting import printable
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
    health.has_whole_tokenizer: "damaged_tokenizer",
}


class Anomaly(NamedTuple):
    """A problem of a folder that a person should look at; `path` is the file with the problem, or None."""

    severity: Literal["error", "warning"]
    code: str
    message: str
    path: str | None = None


class WorkspaceHealth(NamedTuple):
    """The result of a check; `missing_shards` are the shards in the index whose files are missing."""

    files_count: int
    total_bytes: int
    has_config: bool
    has_valid_config: bool
    weights_count: int
    weight_formats: tuple[str, ...]
    has_index: bool
    missing_shards: tuple[str, ...]
    has_all_parts: bool
    anomalies: tuple[Anomaly, ...]

    @property
    def first_error(self) -> Anomaly | None:
        """The first anomaly with the severity "error", or None."""
        return next((anomaly for anomaly in self.anomalies if anomaly.severity == "error"), None)


def check(workspace: Workspace) -> WorkspaceHealth:
    """Check a folder that will become a model, without network.

    The verdict is the same as that of `show` on the folder, unless `.hfignore` excludes more files or a file can't be
    uploaded.
    """
    snapshot = workspace.snapshot()
    anomalies: list[Anomaly] = []
    if not snapshot.files:
        problem = health.has_snapshot(snapshot)
        assert problem is not None  # The rule requires at least one file.
        anomalies.append(Anomaly("error", "empty_folder", f"{problem.text}."))
    else:
        unusable = [file for file in workspace.files if file.problem]
        for file in unusable:
            anomalies.append(Anomaly("error", "unusable_file", f"{printable(health.why_unreadable(file))}.", file.name))
        broken = list(_broken_rules(snapshot, {file.name for file in unusable}))
        anomalies += broken
        if not broken:
            anomalies += [Anomaly("warning", "odd_index", f"{warning}.") for warning in health.warnings(snapshot)]
        if README not in snapshot:
            anomalies.append(Anomaly("warning", "no_readme", f"There is no {README}."))
    for name in workspace.secrets:
        shown = printable(name)
        message = f"{shown} looks like a secret and is not pushed; to push it, write !{shown} into {IGNORE_FILE}."
        anomalies.append(Anomaly("warning", "secret_left_out", message, name))
    weights = health.weight_names(snapshot)
    missing = _missing_shards(snapshot)
    return WorkspaceHealth(
        files_count=len(workspace.files),
        total_bytes=sum(file.size for file in workspace.files),
        has_config=CONFIG in snapshot,
        has_valid_config=isinstance(snapshot.config, dict),
        weights_count=len(weights),
        weight_formats=tuple(sorted({name.rpartition(".")[2] for name in weights})),
        has_index=health.index_name(snapshot) is not None,
        missing_shards=tuple(missing),
        has_all_parts=not missing and not health.missing_parts(weights),
        anomalies=tuple(anomalies),
    )


def _missing_shards(snapshot: Snapshot) -> list[str]:
    try:
        return health.missing_shards(snapshot)
    except BrokenFile:
        return []  # The rule for weights reports the unreadable index.


def _broken_rules(snapshot: Snapshot, reported: set[str]) -> Iterator[Anomaly]:
    """Yield an anomaly for each broken rule, except about files that are already reported."""
    rules = [rule for rule in health.RULES if rule is not health.has_snapshot]
    if needs_tokenizer(snapshot):
        rules += health.TOKENIZER_RULES
    for rule in rules:
        problem = health.apply(rule, snapshot)
        if problem is None:
            continue
        missing = _missing_shards(snapshot) if rule is health.has_weights else []
        path = problem.file if problem.file and problem.file in snapshot else None
        if problem.file not in missing and path not in reported:
            code = "missing_config" if rule is health.has_config and CONFIG not in snapshot else _CODES[rule]
            yield Anomaly("error", code, f"{problem.text}.", path)
            reported = reported | ({path} if path else set())
        for shard in missing:
            yield Anomaly("error", "missing_shard", f"Missing shard: {shard}.", shard)
