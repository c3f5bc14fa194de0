"""An upload to a target that others write to as well."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import BusyError, ConflictError, quote
from .base import Receipt
from .requests import Request
from .upload import Upload

__all__ = ["run_contended"]


async def run_contended(request: Request, make: Callable[[Request], Upload]) -> Receipt:
    """Run the upload that `make` makes; once more if somebody else was there first.

    Raises:
        ConflictError: another commit is there that the request may not replace.
        BusyError: others commit there again and again.
    """
    try:
        return await make(request).run()
    except ConflictError:
        if request.group is not None:  # it has looked itself
            raise
        # Somebody committed after we had looked: whether that is a conflict or the same content
        # is for a second look to say.
        return await _second(request, make)


async def _second(request: Request, make: Callable[[Request], Upload]) -> Receipt:
    try:
        return await make(request).run()
    except ConflictError as exc:
        if not request.replace:
            raise
        raise BusyError(
            f"{quote(str(request.remote))} is being written by others again and again; try later",
            side="target",
        ) from exc
