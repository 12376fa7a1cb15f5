"""The context of a command: its streams, the environment, and functions that act on the process.

Do not import annotations from __future__ here: a NamedTuple compiles each annotation that is text, at every start.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

from mlxk2.errors import MlxkError, OperationError
from mlxk2.formatting import Progress, printable, reason_of
from mlxk2.sleep import NoSleep

Data = Mapping[str, Any]  # The data of a command, as in the JSON API.
Leave = Callable[[int], None]  # Ends the process at once, with an exit code.


class Streams(NamedTuple):
    """The streams that a command reads and writes while it works."""

    stdin: IO[str]
    stdout: IO[str]
    stderr: IO[str]

    def warn(self, text: str) -> None:
        """Write one line about a problem that does not end the command."""
        self.stderr.write(f"Warning: {printable(text)}\n")


# Replaces stdout and stderr by streams that never wait for their readers. The argument is True if the command's data
# are already printed.
Detach = Callable[[bool], Streams]


class Context(NamedTuple):
    """The context of one command.

    `environment` holds the variables of the process; commands read them only from here. If `is_json` is true, stdout
    must contain one JSON document. The last three fields are for commands that continue after they have their data:
    `detach` the streams, `announce` the data on them, and `leave` the process.
    """

    streams: Streams
    environment: Mapping[str, str]
    is_json: bool
    progress: Progress
    no_sleep: NoSleep
    announce: Callable[["Context", Data], None]
    detach: Detach
    leave: Leave


class Failed(Exception):
    """A command failed with an MlxkError, and has data to show with it.

    The JSON envelope contains both. For example, the data of a failed pull name the model.
    """

    def __init__(self, error: MlxkError, data: Data) -> None:
        super().__init__(error.message)
        self.error = error
        self.data = data


@contextmanager
def hub_imports() -> Iterator[None]:
    """Import modules of `hub` inside a fence; raise OperationError with the cause when an import fails.

    Importing huggingface_hub takes a third of a second, and variables of the environment can make it fail.
    """
    from mlxk2.fence import fence  # noqa: PLC0415 - it imports logging, which most commands do not need

    try:
        with fence():
            yield
    except MlxkError:
        raise
    except Exception as error:
        raise OperationError(
            f"The hub can't be reached, because a library can't be imported: {reason_of(error)}.",
            hint="Install mlxk2 again, with its dependencies.",
        ) from error
