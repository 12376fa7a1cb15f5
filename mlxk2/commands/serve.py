"""`serve`: the OpenAI-compatible server."""

from __future__ import annotations

import logging
import os
import signal
import socket
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from mlxk2 import names
from mlxk2.cache.runnable import runnable
from mlxk2.cache.store import Cache, find_cache_dir
from mlxk2.errors import CommandError, InterruptedByUser, MlxkError, ValidationError
from mlxk2.formatting import parse_size
from mlxk2.runner.limits import wired_limit
from mlxk2.runner.offline import offline
from mlxk2.runner.request import check_context_length, check_max_tokens
from mlxk2.server.http.listener import LOOPBACK, WILDCARDS, bind, own_names, typed_host_name, url_of

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event

    from mlxk2.checkpoint.snapshot import Snapshot
    from mlxk2.spec import ServerData

KEY_VARIABLE = "MLXK2_API_KEY"
_FUNCTIONS = ("leave", "detach")
_PLAIN = (str, int, list, type(None))
_MAX_CONCURRENT = 1 << 16
_MAX_QUEUE = 1 << 20


def run(args: Namespace) -> None:
    """Serve until Ctrl-C or SIGTERM, then end the process.

    Whatever can be known to be wrong is found before the server's libraries are imported, which takes a second.
    """
    _check(args)
    snapshot = runnable(Cache(find_cache_dir(os.environ)), names.parse(args.model)) if args.model is not None else None
    listener = bind(args.host, args.port)
    data: ServerData = {
        "host": args.host,
        "port": listener.getsockname()[1],
        "url": url_of(listener),
        "model": snapshot.name if snapshot else None,
    }
    args.streams = args.detach()
    _warn_if_open(args)
    serve = _serve_reloading if args.reload else _serve
    serve(args, snapshot, listener, lambda: args.announce(data))


def _serve(args: Namespace, snapshot: Snapshot | None, listener: socket.socket, announce: Callable[[], None]) -> None:
    with offline():
        from mlxk2.server import lifecycle as serving  # noqa: PLC0415 - MLX and FastAPI take a second
    serving.serve(_settings(args, snapshot, serving), listener, announce, args.leave)


def _serve_reloading(
    args: Namespace, snapshot: Snapshot | None, listener: socket.socket, announce: Callable[[], None]
) -> None:
    with offline():
        from mlxk2.server import reload as reloading  # noqa: PLC0415 - MLX and FastAPI take a second
    # What the other process can't be sent, it does not need.
    sent = {key: value for key, value in vars(args).items() if key in _FUNCTIONS or isinstance(value, _PLAIN)}
    target = partial(_serve_anew, Namespace(**sent), snapshot)
    stopped_by = reloading.serve_reloading(target, listener, announce)
    args.leave(InterruptedByUser.exit_code if stopped_by == signal.SIGINT else 0)


def _serve_anew(args: Namespace, snapshot: Snapshot | None, answers: Event, sockets: Sequence[socket.socket]) -> None:
    """Serve in a process that is started again after each change; what stops it is told, and waits for the next."""
    args.detach(is_announced=True)
    try:
        _serve(args, snapshot, sockets[0], answers.set)
    except MlxkError as error:
        logging.critical(error.message)


def _check(args: Namespace) -> None:
    check_max_tokens(args.max_tokens)
    check_context_length(args.context_length)
    _prompt_cache_bytes(args)
    wired_limit(os.environ)
    _api_key(args)
    _names(args)
    if args.adapter is not None and args.model is None:
        raise CommandError("--adapter needs the --model that it belongs to.", command="server")
    if args.adapter is not None and not os.path.isdir(args.adapter):
        raise ValidationError(f"--adapter must be a folder, which {args.adapter!r} is not.")
    if not 0 <= args.port < 1 << 16:
        raise ValidationError(f"--port must be from 0 to 65535, not {args.port}.")
    if not 1 <= args.max_concurrent <= _MAX_CONCURRENT:
        raise ValidationError(f"--max-concurrent must be from 1 to {_MAX_CONCURRENT}, not {args.max_concurrent}.")
    if not 0 <= args.max_queue <= _MAX_QUEUE:
        raise ValidationError(f"--max-queue must be from 0 to {_MAX_QUEUE}, not {args.max_queue}.")


def _settings(args: Namespace, snapshot: Snapshot | None, serving: Any) -> Any:
    pinned = (args.model, serving.ModelKey(snapshot.name, snapshot.path, args.adapter)) if snapshot else None
    return serving.Settings(
        access=serving.Access(args.host, _api_key(args), tuple(args.cors_origin or ()), _names(args)),
        limits=serving.Limits(args.max_concurrent, args.max_queue),
        memory=serving.Chosen(_prompt_cache_bytes(args), wired_limit(os.environ)),
        pinned=pinned,
        max_tokens=args.max_tokens,
        context_length=args.context_length,
        log_level=args.log_level,
        logs_requests=args.verbose,
    )


def _prompt_cache_bytes(args: Namespace) -> int | None:
    given = args.prompt_cache_bytes
    return None if given is None else parse_size(given, "--prompt-cache-bytes", "500MB or 2GB")


def _api_key(args: Namespace) -> str | None:
    """Return the key without white space around it; raise ValidationError for one that no client could send."""
    source = "--api-key" if args.api_key is not None else KEY_VARIABLE
    given = args.api_key if args.api_key is not None else os.environ.get(KEY_VARIABLE)
    if given is None:
        return None
    key = str(given).strip()
    if not key:
        hint = f"Set a key, or leave out --api-key and unset {KEY_VARIABLE} to serve without one."
        raise ValidationError(f"{source} is empty: no client could send this key.", hint=hint)
    if any(c.isspace() or (ord(c) < 0x20 or ord(c) == 0x7F) for c in key):
        hint = "Choose a key without them."
        raise ValidationError(f"{source} has white space or control characters inside the key.", hint=hint)
    return key


def _names(args: Namespace) -> tuple[str, ...]:
    """Return the names that the server answers to, beside its address and the loopback.

    The machine's own names are among them only with a wildcard address and a key: a web page could use them, too.
    """
    names = []
    for given in args.allowed_host or ():
        name = typed_host_name(given.strip())
        if not name:
            raise ValidationError(f"--allowed-host takes a name such as my-mac.local, not {given!r}.")
        names.append(name)
    own = own_names() if args.host in WILDCARDS and _api_key(args) else ()
    return (*names, *own)


def _warn_if_open(args: Namespace) -> None:
    if args.host not in LOOPBACK and not _api_key(args):
        args.streams.warn(f"whoever reaches {args.host} can use this server. Set {KEY_VARIABLE} to ask for a key.")
