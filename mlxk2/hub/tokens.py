"""The user's token: where it comes from, and whether it can be sent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import constants, get_token
from huggingface_hub.errors import OIDCError

from mlxk2.errors import AuthError, cause

LIBRARY_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
OLDER_VARIABLE = "HUGGINGFACE_HUB_TOKEN"
TOKEN_FILE = "The token file of `hf auth login`"
HINT = "Set it to the token alone, as https://huggingface.co/settings/tokens shows it, or unset it."
FILE_HINT = "Log in again with `hf auth login`, or remove the file with `hf auth logout`."

# What no token holds, and what is wrong with one that does.
FAULTS = (
    (re.compile(r"[\r\n]"), "a line end"),
    (re.compile(r"[\x00-\x1f\x7f]"), "a control character"),
    (re.compile(r"[^\x00-\x7f]"), "a character that is not ASCII"),
    (re.compile(r"[\"'`]"), "a quotation mark"),
    (re.compile(r"\s"), "white space"),
)


def find(environment: Mapping[str, str]) -> str | None:
    """Return `HF_TOKEN`, else the token of `hf auth login`, else the older `HUGGINGFACE_HUB_TOKEN`, else None.

    White space around a token is removed. AuthError when a token can't be sent; the message names its source only.
    """
    # The library removes line ends inside, which makes another token of it; so the variable itself is looked at.
    name = next((name for name in LIBRARY_VARIABLES if environment.get(name)), LIBRARY_VARIABLES[0])
    in_variable = environment.get(name, "").strip()
    _check(name, in_variable)
    try:
        found = get_token()
        _check(TOKEN_FILE, "" if in_variable or not found else _file_text(), FILE_HINT)
    except UnicodeDecodeError as fault:
        raise AuthError(f"{TOKEN_FILE} is not text ({fault.reason}).", hint=FILE_HINT) from fault
    except OSError as fault:
        raise AuthError(f"{TOKEN_FILE} can't be read ({cause(fault)}).", hint=FILE_HINT) from fault
    except OIDCError as fault:
        raise AuthError(f"HF_OIDC_RESOURCE is set, but gives no token: {fault}") from fault
    if found:
        return found
    older = environment.get(OLDER_VARIABLE, "")
    _check(OLDER_VARIABLE, older)
    return older.strip() or None


def _file_text() -> str:
    path = Path(constants.HF_TOKEN_PATH)
    return path.read_text() if path.exists() else ""


def _check(source: str, text: str, hint: str = HINT) -> None:
    """AuthError when the text, less the white space around it, can't be a token."""
    fault = next((fault for pattern, fault in FAULTS if pattern.search(text.strip())), None)
    if fault is not None:
        raise AuthError(f"{source} holds a token that can't be sent: there is {fault} in it.", hint=hint)
