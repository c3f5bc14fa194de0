"""What goes wrong at a head by itself: whoever runs it hears of it, and whoever asked only that."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import ConfigError, TransientError

__all__ = ["own_files", "tell"]


def tell(message: str, error: BaseException) -> None:
    """Report it to the exception handler of the loop, which by default logs it."""
    asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error})


@contextmanager
def own_files(what: str) -> Iterator[None]:
    """The block writes files of the head's own state.

    Raises:
        TransientError: one of them cannot be written now, instead of a ConfigError, which would be
            for the worker to mend, and names a path of the head.
    """
    try:
        yield
    except ConfigError as exc:
        tell(f"the head cannot {what}", exc)
        raise TransientError(f"the head cannot {what} now; its log says why") from None
