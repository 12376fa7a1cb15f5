"""Open the port of the server, and parse host names."""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
import sys
from typing import Any

from mlxk2.errors import OperationError, system_message

BACKLOG = 2048
LOOPBACK = ("localhost", "127.0.0.1", "::1")
WILDCARDS = ("0.0.0.0", "::", "")
_HOST = re.compile(r"(?:\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[a-z0-9_.-]+))(?::[0-9]{0,5})?", re.IGNORECASE)
# As browsers send it (https://www.rfc-editor.org/rfc/rfc6454#section-6.2): in lower case, without a default port.
_ORIGIN = re.compile(
    r"(?!http:.*:80$|https:.*:443$)[a-z][a-z0-9+.-]*://(?:\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::[0-9]{1,5})?"
)
_LOOPBACK_OF = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_PROBE_SECONDS = 1.0  # To wait for another program that may use the port.
_OTHER_HOST = "Choose an address of this machine with --host."


def bind(host: str, port: int, platform: str = sys.platform) -> socket.socket:
    """Return a socket that listens on the first address of the host; raise OperationError if that fails."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, ValueError) as error:
        reason = system_message(error) if isinstance(error, OSError) else "it is not a host name"
        raise OperationError(f"The server can't listen on {host!r}: {reason}.", hint=_OTHER_HOST) from error
    if platform == "darwin" and port and _is_in_use(family, address):
        # BSD systems let two servers share a port if one binds 127.0.0.1 and the other one all addresses.
        raise _refusal(host, port, OSError(errno.EADDRINUSE, ""))
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _refusal(host, port, error) from error
    return listener


def _is_in_use(family: int, address: tuple[Any, ...]) -> bool:
    """Return whether another program already accepts connections at the address that local clients would use."""
    host, *rest = address
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        if probe.connect_ex((_LOOPBACK_OF.get(host, host), *rest)):
            return False
        # The system can choose this port for the probe itself; then the probe is connected to itself.
        return bool(probe.getsockname() != probe.getpeername())


def _refusal(host: str, port: int, error: OSError) -> OperationError:
    reason = "it is in use" if error.errno == errno.EADDRINUSE else system_message(error)
    hint = _OTHER_HOST if error.errno == errno.EADDRNOTAVAIL else "Choose another port with --port."
    return OperationError(f"The server can't listen on {host} port {port}: {reason}.", hint=hint)


def url_of(listener: socket.socket) -> str:
    """Return the address that a client on this machine uses."""
    host, port = listener.getsockname()[:2]
    host = _LOOPBACK_OF.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def host_name(text: str) -> str:
    """Return the name or address in a Host header, in lower case, without the port and a final dot.

    Return "" for any other text.
    """
    match = _HOST.fullmatch(text)
    name = (match["address"] or match["name"]).lower().removesuffix(".") if match else ""
    return str(ipaddress.ip_address(name)) if is_address(name) else name


def typed_host_name(text: str) -> str:
    """Return the `host_name` of a typed text, which can be an IPv6 address without brackets."""
    return host_name(f"[{text}]" if ":" in text and is_address(text) else text)


def is_origin(text: str) -> bool:
    """Whether a browser sends this text as the origin of a web page."""
    return _ORIGIN.fullmatch(text) is not None


def is_address(name: str) -> bool:
    """Return whether a name is an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def own_names() -> tuple[str, ...]:
    """Return the names of this machine in the local network, in the form of `host_name`."""
    name = host_name(socket.gethostname())
    first = name.partition(".")[0]
    return tuple({name, first, f"{first}.local"}) if first else ()
