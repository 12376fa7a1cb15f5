"""The address of the hub; to read it takes nothing of the client library."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from mlxk2.errors import ValidationError

DEFAULT = "https://huggingface.co"


def of(environment: Mapping[str, str]) -> str:
    """`HF_ENDPOINT`, or the hub that everybody means; ValidationError when it is no address."""
    endpoint = environment.get("HF_ENDPOINT") or DEFAULT
    try:
        parts = urlsplit(endpoint)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise ValidationError(f"HF_ENDPOINT is not the address of a hub, such as {DEFAULT}.")
    return endpoint
