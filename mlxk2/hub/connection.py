"""The way to the hub: its address, the user's token, and one client for both."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from huggingface_hub import HfApi, get_token

from mlxk2 import __version__
from mlxk2.hub import endpoint, library

# It decides in Rust, when its first session starts.
XET_TELEMETRY_VARIABLE = "HF_XET_TELEMETRY_ENABLED"


@dataclass(frozen=True, slots=True)
class Connection:
    """A client of the hub that `HF_ENDPOINT` names, with the user's token where there is one."""

    api: HfApi
    token: str | None

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a request to the hub itself; the token must go to no other host."""
        headers: dict[str, str] = self.api._build_hf_headers()
        return headers


def connect() -> Connection:
    """The connection that the environment describes; nothing is asked of the hub yet.

    ValidationError when HF_ENDPOINT is no address.
    """
    library.quiet()
    os.environ.setdefault(XET_TELEMETRY_VARIABLE, "0")
    found = token(os.environ)
    # False stands for none, where None would make the library look for one.
    api = HfApi(
        endpoint=endpoint.of(os.environ), token=found or False, library_name="mlxk2", library_version=__version__
    )
    return Connection(api, found)


def token(environment: Mapping[str, str]) -> str | None:
    """`HF_TOKEN`, else the token of `hf auth login`, else the older `HUGGINGFACE_HUB_TOKEN`, else None."""
    return get_token() or environment.get("HUGGINGFACE_HUB_TOKEN", "").strip() or None
