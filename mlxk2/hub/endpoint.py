"""The address of the hub; to read it takes nothing of the client library."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import urlsplit

from mlxk2.errors import ValidationError
from mlxk2.formatting import cut

TIMEOUTS = ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT")
DEFAULT = "https://huggingface.co"
SCHEMES = ("http", "https")


def of(environment: Mapping[str, str]) -> str:
    """`HF_ENDPOINT`, less white space around it, or the hub itself; ValidationError when it is no address."""
    endpoint = environment.get("HF_ENDPOINT", "").strip() or DEFAULT
    try:
        parts = urlsplit(endpoint)
        is_address = parts.scheme in SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise ValidationError(f"HF_ENDPOINT is not the address of a hub, such as {DEFAULT}.")
    return endpoint


def shown(environment: Mapping[str, str]) -> str:
    """Return the address for people to read, without the credentials that may stand in it."""
    endpoint = of(environment)
    return endpoint.replace(credentials_in(endpoint), "", 1).rstrip("/")


def credentials_in(endpoint: str) -> str:
    """Return the user's name and password that stand before the host, with the `@`; nothing where none do."""
    return "".join(urlsplit(endpoint).netloc.rpartition("@")[:2])


def check_timeouts(environment: Mapping[str, str]) -> None:
    """Raise ValidationError when a time-out of the library is no whole number of seconds."""
    for name in TIMEOUTS:
        value = environment.get(name, "0")
        try:
            int(value)
        except ValueError as error:
            raise ValidationError(f"{name} is not a whole number of seconds: {cut(value, 40)!r}.") from error


def check_store(store: str, endpoint: str) -> None:
    """Refuse, with ValueError, a store of Xet that is a folder of this machine, unless the hub is on it, too.

    The Xet client takes `local:///folder` for a store and writes there, so that a hub could choose any folder.
    """
    if store.partition("://")[0].lower() not in SCHEMES and not _is_loopback(endpoint):
        raise ValueError("the hub names a store for Xet that is not on the network")


def _is_loopback(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
