"""What a command is given besides its options: where it reads and writes, and what it may do to the process.

Its named tuples are made at every start. Annotations that are texts would be compiled then, each by itself.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

from mlxk2.errors import MlxkError, OperationError
from mlxk2.formatting import Progress, printable, reason_of
from mlxk2.sleep import NoSleep

Data = Mapping[str, Any]  # a command's data, as the JSON API has them
Leave = Callable[[int], None]  # ends the process at once, with an exit code


class Streams(NamedTuple):
    """Where a command reads and writes while it works."""

    stdin: IO[str]
    stdout: IO[str]
    stderr: IO[str]

    def warn(self, text: str) -> None:
        """Write one line about something that does not end the command."""
        self.stderr.write(f"Warning: {printable(text)}\n")


# Replaces stdout and stderr by streams that never wait for their readers; True when the data are announced already.
Detach = Callable[[bool], Streams]


class Context(NamedTuple):
    """The surroundings of one command.

    `environment` are the variables of the process, which no command reads elsewhere. `is_json` says that stdout belongs
    to one JSON document. The last three are for commands that go on after they have their data: `detach` the streams,
    `announce` the data on them, and `leave` the process.
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
    """Raised by a command that failed with an error of the tree and has data to show beside it.

    The JSON envelope has both: a pull that failed, for instance, also says which model it was about.
    """

    def __init__(self, error: MlxkError, data: Data) -> None:
        super().__init__(error.message)
        self.error = error
        self.data = data


@contextmanager
def hub_imports() -> Iterator[None]:
    """Import modules of `hub` inside a fence; raise OperationError, with the cause, where an import fails.

    The hub's client library takes a third of a second to import, and what the environment sets can make it fail.
    """
    from mlxk2.fence import fence  # noqa: PLC0415 - imports logging, and most commands do without it and the hub

    try:
        with fence():
            yield
    except MlxkError:
        raise
    except Exception as error:
        raise OperationError(
            f"The hub can't be reached from here: {reason_of(error)}.",
            hint="Install mlxk2 again, with its dependencies.",
        ) from error
