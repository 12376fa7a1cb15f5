"""The commands of the contract that this version does not have yet."""

from __future__ import annotations

from argparse import Namespace
from typing import NoReturn

from mlxk2.errors import OperationError


def run(args: Namespace) -> NoReturn:
    """OperationError: the command comes with the next version."""
    raise OperationError(f"`{args.command}` is not part of this version yet; it comes next.")
