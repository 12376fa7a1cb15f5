"""`--version`: print the versions of the program and of its JSON API."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mlxk2 import __version__
from mlxk2.spec import JSON_API_SPEC_VERSION, VersionData

if TYPE_CHECKING:
    from mlxk2.commands.context import Context


class Options(NamedTuple):
    """The version has no options."""


def run(_options: Options, _context: Context) -> VersionData:
    """Return both versions."""
    return {"cli_version": __version__, "json_api_spec_version": JSON_API_SPEC_VERSION}
