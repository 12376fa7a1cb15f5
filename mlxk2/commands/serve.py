"""`serve`: run the OpenAI-compatible server."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from mlxk2 import names
from mlxk2.cache.runnable import resolve_runnable
from mlxk2.cache.store import Cache, find_cache_dir
from mlxk2.errors import CommandError, MlxkError, OperationCancelled, ValidationError
from mlxk2.formatting import cut, parse_size
from mlxk2.runner.memory import MemoryChoice, wired_limit
from mlxk2.runner.offline import offline
from mlxk2.runner.request import check_context_length, check_max_tokens
from mlxk2.server.http.listener import LOOPBACK, WILDCARDS, bind, is_origin, own_names, typed_host_name, url_of

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event

    from mlxk2.checkpoint.snapshot import Snapshot
    from mlxk2.commands.context import Context, Detach, Leave
    from mlxk2.spec import ServerData

KEY_VARIABLE = "MLXK2_API_KEY"
_MAX_CONCURRENT = 1 << 16
_MAX_QUEUE = 1 << 20


class Options(NamedTuple):
    """The model to serve, the address, who may connect, and the limits."""

    model: str | None
    adapter: str | None
    host: str
    port: int
    max_tokens: int | None
    context_length: int | None
    api_key: str | None
    allowed_host: Sequence[str] | None
    cors_origin: Sequence[str] | None
    max_concurrent: int
    max_queue: int
    prompt_cache_bytes: str | None
    log_level: str
    reload: bool
    verbose: bool


class Job(NamedTuple):
    """Everything that a process needs to serve; it can be sent to another process."""

    options: Options
    environment: Mapping[str, str]
    snapshot: Snapshot | None
    detach: Detach
    leave: Leave

    def serve(self, listener: socket.socket, announce: Callable[[], None]) -> None:
        """Serve until a signal comes, then end the process; call `announce` as soon as the server accepts requests."""
        options, snapshot = self.options, self.snapshot
        with offline():
            # Importing MLX and FastAPI takes a second.
            from mlxk2.server.http.access import Access  # noqa: PLC0415
            from mlxk2.server.lifecycle import Settings, serve  # noqa: PLC0415
            from mlxk2.server.messages import ModelKey  # noqa: PLC0415
            from mlxk2.server.scheduler import Limits  # noqa: PLC0415
        key = None if snapshot is None else ModelKey(snapshot.name, snapshot.path, options.adapter)
        api_key = _api_key(options, self.environment)
        settings = Settings(
            cache_dir=find_cache_dir(self.environment),
            access=Access(options.host, api_key, tuple(options.cors_origin or ()), _names(options, api_key)),
            limits=Limits(options.max_concurrent, options.max_queue),
            memory=MemoryChoice(_prompt_cache_bytes(options), wired_limit(self.environment)),
            pinned=None if options.model is None or key is None else (options.model, key),
            max_tokens=options.max_tokens,
            context_length=options.context_length,
            log_level=options.log_level,
            logs_requests=options.verbose,
        )
        serve(settings, listener, announce, self.leave)

    def serve_again(self, answers: Event, sockets: Sequence[socket.socket]) -> None:
        """Serve in a process that restarts after each change of the code; after an error, wait for the next change."""
        self.detach(True)
        try:
            self.serve(sockets[0], answers.set)
        except MlxkError as error:
            logging.critical(error.message)


def run(options: Options, context: Context) -> None:
    """Serve until Ctrl-C or SIGTERM, then end the process.

    Run all checks first, because importing the server's libraries takes a second.
    """
    key = _check(options, context.environment)
    snapshot = None
    if options.model is not None:
        snapshot = resolve_runnable(Cache(find_cache_dir(context.environment)), names.parse(options.model))
    listener = bind(options.host, options.port)
    data: ServerData = {
        "host": options.host,
        "port": listener.getsockname()[1],
        "url": url_of(listener),
        "model": snapshot.name if snapshot else None,
    }
    context = context._replace(streams=context.detach(False))
    if options.host not in LOOPBACK and not key:
        everyone = f"anyone who can reach {options.host} can use this server"
        context.streams.warn(f"{everyone}. Set {KEY_VARIABLE} to require a key.")
    announce = partial(context.announce, context, data)
    job = Job(options, dict(context.environment), snapshot, context.detach, context.leave)
    if not options.reload:
        job.serve(listener, announce)
        return
    with offline():
        from mlxk2.server.reload import serve_reloading  # noqa: PLC0415 - FastAPI takes a second
    stopped_by = serve_reloading(job.serve_again, listener, announce)
    context.leave(OperationCancelled.exit_code if stopped_by == signal.SIGINT else 0)


def _check(options: Options, environment: Mapping[str, str]) -> str | None:
    """Check the options, and return the key that clients must send; raise an error for invalid options."""
    check_max_tokens(options.max_tokens)
    check_context_length(options.context_length)
    _prompt_cache_bytes(options)
    wired_limit(environment)
    key = _api_key(options, environment)
    _names(options, key)
    _check_origins(options.cors_origin or ())
    if options.adapter is not None and options.model is None:
        raise CommandError("--adapter needs --model, the model that the adapter belongs to.")
    if options.adapter is not None and not os.path.isdir(options.adapter):
        raise ValidationError(f"--adapter must be a folder; {options.adapter!r} is not one.")
    if not 0 <= options.port < 1 << 16:
        raise ValidationError(f"--port must be from 0 to 65535, not {options.port}.")
    if not 1 <= options.max_concurrent <= _MAX_CONCURRENT:
        raise ValidationError(f"--max-concurrent must be from 1 to {_MAX_CONCURRENT}, not {options.max_concurrent}.")
    if not 0 <= options.max_queue <= _MAX_QUEUE:
        raise ValidationError(f"--max-queue must be from 0 to {_MAX_QUEUE}, not {options.max_queue}.")
    return key


def _check_origins(origins: Sequence[str]) -> None:
    """Raise ValidationError for origins that browsers never send, and for `null`, the origin of files."""
    for origin in origins:
        if origin == "null":
            hint = "Serve the page from an address, or allow all pages with --cors-origin '*'."
            raise ValidationError("--cors-origin null would allow every file and every sandboxed page.", hint=hint)
        if origin != "*" and not is_origin(origin):
            form = "an origin without a path, in lower case, such as https://chat.example or http://localhost:3000"
            raise ValidationError(f"--cors-origin takes {form}, or '*' for all pages; not {cut(origin, 80)!r}.")


def _prompt_cache_bytes(options: Options) -> int | None:
    given = options.prompt_cache_bytes
    return None if given is None else parse_size(given, "--prompt-cache-bytes", "500MB or 2GB")


def _api_key(options: Options, environment: Mapping[str, str]) -> str | None:
    """Return the key without white space around it; raise ValidationError if clients can't send it."""
    source = "--api-key" if options.api_key is not None else KEY_VARIABLE
    given = options.api_key if options.api_key is not None else environment.get(KEY_VARIABLE)
    if given is None:
        return None
    key = str(given).strip()
    if not key:
        hint = f"Set a key, or leave out --api-key and unset {KEY_VARIABLE} to serve without one."
        raise ValidationError(f"{source} is empty: no client could send this key.", hint=hint)
    if any(c.isspace() or (ord(c) < 0x20 or ord(c) == 0x7F) for c in key):
        hint = "Choose a key without such characters."
        raise ValidationError(f"{source} has white space or control characters inside the key.", hint=hint)
    return key


def _names(options: Options, key: str | None) -> tuple[str, ...]:
    """Return the host names that the server accepts in requests, in addition to its address and the loopback.

    The machine's own names are accepted only with a wildcard address and a key, because web pages can use them too.
    """
    names = []
    for given in options.allowed_host or ():
        name = typed_host_name(given.strip())
        if not name:
            raise ValidationError(f"--allowed-host must be a name such as my-mac.local, not {given!r}.")
        names.append(name)
    own = own_names() if options.host in WILDCARDS and key else ()
    return (*names, *own)
