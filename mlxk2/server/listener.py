"""The port that the server listens on."""

from __future__ import annotations

import errno
import socket

from mlxk2.errors import OperationError

BACKLOG = 2048
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_LOOPBACK_OF = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_OTHER_HOST = "Choose an address of this machine with --host."


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens on the first address of the host; OperationError when that can't be, as in use."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no host name"
        raise OperationError(f"The server can't listen on {host!r}: {reason}.", hint=_OTHER_HOST) from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _refusal(host, port, error) from error
    return listener


def _refusal(host: str, port: int, error: OSError) -> OperationError:
    reason = "it is in use" if error.errno == errno.EADDRINUSE else error.strerror
    hint = _OTHER_HOST if error.errno == errno.EADDRNOTAVAIL else "Choose another port with --port."
    return OperationError(f"The server can't listen on {host} port {port}: {reason}.", hint=hint)


def url_of(listener: socket.socket) -> str:
    """Return the address that a client on this machine uses."""
    host, port = listener.getsockname()[:2]
    host = _LOOPBACK_OF.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
