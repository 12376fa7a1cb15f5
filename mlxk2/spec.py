"""The JSON API as types: the envelope, the model object, and the data of every command.

These types are the only source: `docs/json-api-schema.json` is generated from them. A TypedDict with `@closed` never
gets another key; all others may get more keys. A key that is `NotRequired` is absent unless the command line asked for
it. The functions at the end make the objects that describe a model.
"""

# Do not import annotations from __future__ here: a TypedDict compiles each annotation that is text, which would double
# the import time of this module, and `list` waits for it.

import time
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, NotRequired, TypedDict, TypeVar, cast

from mlxk2.checkpoint.model_info import Framework, ModelInfo, ModelType

if TYPE_CHECKING:
    from mlxk2.checkpoint.describe import ModelMetadata

JSON_API_SPEC_VERSION = "0.2.0"


class Pattern(NamedTuple):
    """A string that matches this regular expression."""

    regex: str


class Minimum(NamedTuple):
    """A number that is at least this."""

    value: int


Count = Annotated[int, Minimum(0)]
Measure = Annotated[float, Minimum(0)]
Port = Annotated[int, Minimum(1)]
Commit = Annotated[str, Pattern("^[A-Za-z0-9]{40}$")]
Timestamp = Annotated[str, Pattern("^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$")]
Version = Annotated[str, Pattern("^[0-9]+\\.[0-9]+\\.[0-9]+$")]

_T = TypeVar("_T", bound=type)

CLOSED: set[type] = set()


def closed(shape: _T) -> _T:
    """Mark a TypedDict as closed: its JSON objects have no other keys than those of the type."""
    CLOSED.add(shape)
    return shape


Command = Literal["list", "show", "health", "pull", "rm", "clone", "version", "push", "run", "server", "completion"]
Shell = Literal["bash", "zsh", "fish"]
Capability = Literal["text-generation", "chat", "embeddings", "completion"]
Health = Literal["healthy", "unhealthy"]
FinishReason = Literal["stop", "length", "interrupted"]


class Error(TypedDict):
    """The error of a failed command: `type` is for programs, `message` for people."""

    type: str
    message: str
    matches: NotRequired[list[str]]
    available_hashes: NotRequired[list[str]]
    hint: NotRequired[str]


@closed
class Envelope(TypedDict):
    """The JSON object that every command prints with `--json`."""

    status: Literal["success", "error"]
    command: Command
    data: dict[str, Any] | None
    error: Error | None
    api_version: NotRequired[Annotated[str, Pattern("^json-[0-9]+\\.[0-9]+\\.[0-9]+$")]]


@closed
class ModelObject(TypedDict):
    """One model of the cache."""

    name: str
    hash: Commit | None
    size_bytes: Count
    last_modified: Timestamp
    framework: Framework
    model_type: ModelType
    capabilities: list[Capability]
    health: Health
    runtime_compatible: bool
    reason: str | None
    cached: bool


@closed
class VersionData(TypedDict):
    """The versions of the program and of this API."""

    cli_version: str
    json_api_spec_version: Version


@closed
class ListData(TypedDict):
    """The models of the cache, sorted by name or by the field of `--sort`."""

    models: list[ModelObject]
    count: Count


@closed
class FileEntry(TypedDict):
    """A file of a model: its path relative to the model, and its size as text for people."""

    name: str
    size: str
    type: Literal["config", "weights", "tokenizer", "readme", "other"]


class Metadata(TypedDict):
    """Numbers of a model's architecture from its config; a key is absent if the config lacks the number."""

    architecture: NotRequired[str]
    context_length: NotRequired[Count]
    vocab_size: NotRequired[Count]
    hidden_size: NotRequired[Count]
    num_hidden_layers: NotRequired[Count]
    num_attention_heads: NotRequired[Count]
    quantization: NotRequired[str]


class ShowData(TypedDict):
    """One model in detail."""

    model: ModelObject
    metadata: Metadata | None
    files: NotRequired[list[FileEntry]]
    config: NotRequired[dict[str, Any] | None]


@closed
class HealthEntry(TypedDict):
    """The verdict on one model."""

    name: str
    status: Health
    reason: str


@closed
class HealthSummary(TypedDict):
    """The numbers of checked, healthy and unhealthy models."""

    total: Count
    healthy_count: Count
    unhealthy_count: Count


@closed
class HealthData(TypedDict):
    """The verdicts on all checked models, sorted by name."""

    healthy: list[HealthEntry]
    unhealthy: list[HealthEntry]
    summary: HealthSummary


class PullData(TypedDict):
    """The result of a pull."""

    model: str | None
    download_status: Literal["success", "already_exists", "access_denied", "failed", "error"]
    message: str
    expanded_name: str | None
    commit_hash: Commit | None


class RmData(TypedDict):
    """The result of a removal, or its plan."""

    model: str | None
    action: Literal["deleted", "planned", "requires_confirmation"]
    message: str
    lock_files_cleaned: Count
    freed_bytes: Count
    locks_detected: NotRequired[bool]
    lock_files: NotRequired[list[str]]


class CloneData(TypedDict):
    """The result of a clone."""

    model: str
    clone_status: Literal["success", "error", "access_denied", "pull_failed", "health_check_failed", "filesystem_error"]
    message: str
    target_dir: str
    expanded_name: str | None
    method: Literal["apfs_clonefile", "reflink", "copy"] | None


class ChangeSummary(TypedDict):
    """The numbers of files that a push adds, modifies and deletes; null if only the hub can compare."""

    added: Count
    modified: Count | None
    deleted: Count


class ConfigHealth(TypedDict):
    """The state of a workspace's config.json."""

    exists: bool
    valid_json: bool
    path: str | None


class IndexHealth(TypedDict):
    """Whether a workspace has an index of shards, and which of them are missing."""

    has_index: bool
    missing: list[str]


class WeightsHealth(TypedDict):
    """The weight files of a workspace."""

    count: Count
    formats: list[str]
    index: IndexHealth
    pattern_complete: bool


class Anomaly(TypedDict):
    """A problem of a workspace that a person should look at."""

    severity: Literal["error", "warning"]
    code: str
    message: str
    path: str | None


class WorkspaceHealth(TypedDict):
    """The check of a folder before it is pushed."""

    files_count: Count
    total_bytes: Count
    config: ConfigHealth
    weights: WeightsHealth
    anomalies: list[Anomaly]
    healthy: bool


class PushData(TypedDict):
    """The result of a push, or its plan."""

    repo_id: str
    branch: str
    commit_sha: str | None
    commit_url: str | None
    repo_url: str
    uploaded_files_count: Count | None
    local_files_count: Count | None
    no_changes: bool
    created_repo: bool
    message: str | None
    hf_logs: NotRequired[list[str]]
    experimental: bool
    disclaimer: str
    change_summary: NotRequired[ChangeSummary]
    workspace_health: NotRequired[WorkspaceHealth]
    dry_run: NotRequired[bool]
    dry_run_summary: NotRequired[ChangeSummary]
    would_create_repo: NotRequired[bool]
    would_create_branch: NotRequired[bool]
    added_files: NotRequired[list[str]]
    deleted_files: NotRequired[list[str]]
    secrets_left_out: NotRequired[list[str]]
    secrets_on_hub: NotRequired[list[str]]


class RunData(TypedDict):
    """A completion with its measurements; times are in seconds, counts in tokens.

    `tokens_per_second` is the speed of the generation after the first token. `time_to_first_token_s` is absent if no
    token was generated, and `prompt_tokens_per_second` if no token of the prompt was computed.
    """

    model: str
    prompt: str
    response: str
    reasoning: str | None
    finish_reason: FinishReason
    prompt_tokens: Count
    tokens_generated: Count
    generation_time_s: Measure
    tokens_per_second: Measure
    time_to_first_token_s: NotRequired[Measure]
    prompt_tokens_per_second: NotRequired[Measure]


class ServerData(TypedDict):
    """The address of the server; printed as soon as it accepts requests."""

    host: str
    port: Port
    url: str
    model: str | None


class CompletionData(TypedDict):
    """The script with which a shell completes command lines."""

    shell: Shell
    script: str


DATA_OF_COMMAND: dict[Command, Any] = {
    "version": VersionData,
    "list": ListData,
    "show": ShowData,
    "health": HealthData,
    "pull": PullData,
    "rm": RmData,
    "clone": CloneData,
    "push": PushData,
    "run": RunData,
    "server": ServerData,
    "completion": CompletionData,
}

_CAPABILITIES: dict[ModelType, tuple[Capability, ...]] = {
    "chat": ("text-generation", "chat"),
    "base": ("text-generation", "completion"),
    "embedding": ("embeddings",),
    "unknown": (),
}


def model_object(info: ModelInfo) -> ModelObject:
    """Return the JSON object of a model."""
    return {
        "name": info.name,
        "hash": info.commit,
        "size_bytes": info.size_bytes,
        "last_modified": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(info.modified)),
        "framework": info.framework,
        "model_type": info.model_type,
        "capabilities": list(_CAPABILITIES[info.model_type]),
        "health": "healthy" if info.is_healthy else "unhealthy",
        "runtime_compatible": info.is_runnable,
        "reason": info.why_not_runnable,
        "cached": True,
    }


def metadata_object(metadata: "ModelMetadata | None") -> Metadata | None:
    """Return the JSON object of a model's metadata, without unknown numbers."""
    if metadata is None:
        return None
    return cast("Metadata", {key: value for key, value in metadata._asdict().items() if value is not None})
