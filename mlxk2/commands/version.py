"""`--version`: the program's version and that of its JSON API."""

from __future__ import annotations

from argparse import Namespace

from mlxk2 import __version__
from mlxk2.spec import JSON_API_SPEC_VERSION, VersionData


def run(args: Namespace) -> VersionData:  # noqa: ARG001 - every command has this signature
    """Both versions."""
    return {"cli_version": __version__, "json_api_spec_version": JSON_API_SPEC_VERSION}
