"""A caller's mistake, told apart from a fault of ours: the one is a sentence and exit code 2, the other a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class WrongUse(ValueError):
    """What a command was asked cannot be done; the message says what can."""


@contextmanager
def asked() -> Iterator[None]:
    """Around all that reads a command's arguments: what is raised there is the caller's mistake."""
    try:
        yield
    except WrongUse:
        raise
    except KeyError as error:
        raise WrongUse(error.args[0] if error.args else "a key is missing") from error
    except (ValueError, FileNotFoundError) as error:
        raise WrongUse(str(error)) from error
