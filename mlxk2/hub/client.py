"""The way to the hub: its address, the user's token, and one client for both."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from huggingface_hub import HfApi

from mlxk2 import __version__
from mlxk2.hub import endpoint, guard, private, tokens
from mlxk2.hub.limits import Limits

# It decides in Rust, when its first session starts.
XET_TELEMETRY_VARIABLE = "HF_XET_TELEMETRY_ENABLED"


@dataclass(frozen=True, slots=True)
class Connection:
    """A client of the hub that `HF_ENDPOINT` names, with the user's token where there is one."""

    api: HfApi
    token: str | None
    limits: Limits = field(default_factory=Limits)

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a request to the hub itself; the token goes to no other host."""
        headers: dict[str, str] = self.api._build_hf_headers()
        return headers


def connect(limits: Limits | None = None) -> Connection:
    """The connection that the environment describes; nothing is asked of the hub yet.

    ValidationError when HF_ENDPOINT is no address, AuthError when the token can't be sent.
    """
    private.quiet()
    os.environ.setdefault(XET_TELEMETRY_VARIABLE, "0")
    address = endpoint.of(os.environ)
    limits = limits or Limits.patient(private.constants.HF_HUB_ETAG_TIMEOUT, private.constants.HF_HUB_DOWNLOAD_TIMEOUT)
    private.set_client_factory(lambda: guard.client(address, limits))
    found = tokens.find(os.environ)
    # False stands for none, where None would make the library look for one.
    api = HfApi(endpoint=address, token=found or False, library_name="mlxk2", library_version=__version__)
    return Connection(api, found, limits)
