"""What tokenizers raise, as an error that says that they are damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mlxk2.errors import MlxkError, ModelUnhealthyError

# Errors that are told already, and what ends programs.
_NO_FAULTS: tuple[type[BaseException], ...] = (MlxkError, KeyboardInterrupt, SystemExit, GeneratorExit)


@contextmanager
def as_damage(told: Callable[[BaseException], str], *, but: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
    """Turn what is raised, `but` for these, into ModelUnhealthyError with the message that is `told` of it.

    Rust's tokenizers raise bare Exceptions, and where they panic something that is no Exception at all.
    """
    try:
        yield
    except _NO_FAULTS + but:
        raise
    except BaseException as fault:  # of panics no narrower class can be imported
        raise ModelUnhealthyError(told(fault)) from fault
