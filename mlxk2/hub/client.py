"""The connection to the hub: its address, the user's token, and one client for both."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import OIDCError

from mlxk2 import __version__
from mlxk2.errors import AuthError, cause
from mlxk2.hub import endpoint, guard, private
from mlxk2.hub.limits import Limits

# The Xet client reads this variable when its first session starts.
XET_TELEMETRY_VARIABLE = "HF_XET_TELEMETRY_ENABLED"

TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
OLDER_TOKEN_VARIABLE = "HUGGINGFACE_HUB_TOKEN"
TOKEN_FILE = "The token file of `hf auth login`"
VARIABLE_HINT = "Set it to the token alone, as https://huggingface.co/settings/tokens shows it, or unset it."
FILE_HINT = "Log in again with `hf auth login`, or remove the file with `hf auth logout`."

# Characters that a token can't contain, and their names in messages.
TOKEN_FAULTS = (
    (re.compile(r"[\r\n]"), "a line end"),
    (re.compile(r"[\x00-\x1f\x7f]"), "a control character"),
    (re.compile(r"[^\x00-\x7f]"), "a character that is not ASCII"),
    (re.compile(r"[\"'`]"), "a quotation mark"),
    (re.compile(r"\s"), "white space"),
)


@dataclass(frozen=True, slots=True)
class Connection:
    """A client of the hub at `HF_ENDPOINT`, with the user's token if the user has one."""

    api: HfApi
    token: str | None
    limits: Limits = field(default_factory=Limits)

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a request to the hub itself; they contain the token, so never send them to another host."""
        headers: dict[str, str] = self.api._build_hf_headers()
        return headers


def connect(environment: Mapping[str, str], limits: Limits | None = None) -> Connection:
    """Return the connection that an environment describes, without sending a request.

    Raise ValidationError if HF_ENDPOINT is not an address, and AuthError if the token can't be sent.
    """
    private.silence_library()
    os.environ.setdefault(XET_TELEMETRY_VARIABLE, "0")
    address = endpoint.read(environment)
    limits = limits or Limits.patient(private.constants.HF_HUB_ETAG_TIMEOUT, private.constants.HF_HUB_DOWNLOAD_TIMEOUT)
    private.set_client_factory(lambda: guard.make_client(address, limits))
    token = find_token(environment)
    # False means no token; with None, the library would search for one itself.
    api = HfApi(endpoint=address, token=token or False, library_name="mlxk2", library_version=__version__)
    return Connection(api, token, limits)


def find_token(environment: Mapping[str, str]) -> str | None:
    """Return `HF_TOKEN`, or the token of `hf auth login`, or the older `HUGGINGFACE_HUB_TOKEN`, or None.

    Remove white space around the token. Raise AuthError if a token can't be sent; the message names only its source.
    """
    # The library silently removes line ends inside a token, so check the variable itself.
    name = next((name for name in TOKEN_VARIABLES if environment.get(name)), TOKEN_VARIABLES[0])
    in_variable = environment.get(name, "").strip()
    _check_token(name, in_variable)
    try:
        token = get_token()
        if token and not in_variable:
            path = Path(constants.HF_TOKEN_PATH)
            _check_token(TOKEN_FILE, path.read_text() if path.exists() else "", FILE_HINT)
    except UnicodeDecodeError as error:
        raise AuthError(f"{TOKEN_FILE} is not text ({error.reason}).", hint=FILE_HINT) from error
    except OSError as error:
        raise AuthError(f"{TOKEN_FILE} can't be read ({cause(error)}).", hint=FILE_HINT) from error
    except OIDCError as error:
        raise AuthError(f"HF_OIDC_RESOURCE is set, but gives no token: {error}") from error
    if token:
        return token
    older = environment.get(OLDER_TOKEN_VARIABLE, "")
    _check_token(OLDER_TOKEN_VARIABLE, older)
    return older.strip() or None


def _check_token(source: str, text: str, hint: str = VARIABLE_HINT) -> None:
    """Raise AuthError when the text, without the white space around it, is not a valid token."""
    fault = next((fault for pattern, fault in TOKEN_FAULTS if pattern.search(text.strip())), None)
    if fault is not None:
        raise AuthError(f"{source} holds a token that can't be sent: it contains {fault}.", hint=hint)
