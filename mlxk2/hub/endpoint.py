"""The address of the hub. This module does not import huggingface_hub, so that other modules can import it early."""

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


def read(environment: Mapping[str, str]) -> str:
    """Return `HF_ENDPOINT` without surrounding white space, or the default; raise ValidationError if it is invalid."""
    endpoint = environment.get("HF_ENDPOINT", "").strip() or DEFAULT
    try:
        parts = urlsplit(endpoint)
        is_address = parts.scheme in SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise ValidationError(f"HF_ENDPOINT is not the address of a hub, such as {DEFAULT}.")
    return endpoint


def read_public(environment: Mapping[str, str]) -> str:
    """Return the address for messages, without credentials."""
    endpoint = read(environment)
    return endpoint.replace(credentials_in(endpoint), "", 1).rstrip("/")


def credentials_in(endpoint: str) -> str:
    """Return the user name and password before the host, with the `@`; an empty text if the address has none."""
    return "".join(urlsplit(endpoint).netloc.rpartition("@")[:2])


def check_timeouts(environment: Mapping[str, str]) -> None:
    """Raise ValidationError when a time-out of huggingface_hub is not a whole number of seconds."""
    for name in TIMEOUTS:
        value = environment.get(name, "0")
        try:
            int(value)
        except ValueError as error:
            raise ValidationError(f"{name} is not a whole number of seconds: {cut(value, 40)!r}.") from error


def check_xet_store(store: str, endpoint: str) -> None:
    """Raise ValueError when a Xet store is a folder of this machine and the hub is not on this machine.

    The Xet client accepts `local:///folder` as a store and writes there, so a hub could choose any folder.
    """
    host = urlsplit(endpoint).hostname or ""
    is_on_this_machine = host == "localhost"
    with suppress(ValueError):
        is_on_this_machine = ipaddress.ip_address(host).is_loopback
    if store.partition("://")[0].lower() not in SCHEMES and not is_on_this_machine:
        raise ValueError("the hub sent the address of a Xet store that is not on the network")
