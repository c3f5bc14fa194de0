"""Events, errors and results as plain values, and back. Pure."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_args

import msgspec

from ... import errors
from ...errors import AsyncSyncError, TransferError
from ...events import Event
from ...storage import Deleted
from ..base import Receipt, SyncPlan
from ..commits import Commit, ProbeReport, VerifyReport

__all__ = ["METHODS", "STREAMS", "error_of", "error_value", "event_of", "event_value", "result_of"]

METHODS: Mapping[str, Any] = {
    "sync_up": Receipt,
    "plan_up": SyncPlan,
    "sync_down": Receipt,
    "plan_down": SyncPlan,
    "delete": Deleted,
    "clean": list[str],
    "verify": VerifyReport,
    "latest": Commit | None,
    "restore": Receipt,
    "probe": ProbeReport,
}
"""What may be called, and what it returns."""

STREAMS: Mapping[str, Any] = {"commits": Commit, "follow": Commit}
"""What may be iterated over, and what it gives."""

_EVENTS: Mapping[str, type[Event]] = {event.__name__: event for event in get_args(Event)}
_SHOWN = 5


def result_of(method: str, value: object) -> Any:
    """The result of a method, or an item of a stream, from what `msgspec.to_builtins` made."""
    kind = METHODS[method] if method in METHODS else STREAMS[method]
    return msgspec.convert(value, kind)


def event_value(event: Event) -> dict[str, Any]:
    """The fields of an event."""
    return {field.name: getattr(event, field.name) for field in fields(event)}


def event_of(name: str, values: Mapping[str, Any]) -> Event:
    """The event of that class."""
    return _EVENTS[name](**values)


def error_value(error: BaseException) -> dict[str, Any]:
    """An error in words and plain values; of one that is not ours, also where it was raised."""
    if not isinstance(error, AsyncSyncError):
        where = traceback.extract_tb(error.__traceback__)[-_SHOWN:]
        lines = "".join(traceback.format_list(where))
        return {"kind": type(error).__name__, "message": str(error), "details": {"trace": lines}}
    details = dict(vars(error))
    details.pop("__notes__", None)
    if isinstance(error, TransferError):
        details["failures"] = [error_value(failure) for failure in error.failures]
    return {"kind": type(error).__name__, "message": str(error), "details": details}


def error_of(value: Mapping[str, Any]) -> Exception:
    """The error again; RuntimeError for one that is not ours: it is a defect, not an outcome."""
    kind = getattr(errors, value["kind"], None)
    details = dict(value["details"])
    if not (isinstance(kind, type) and issubclass(kind, AsyncSyncError)):
        error = RuntimeError(f"{value['kind']} in the engine: {value['message']}")
        error.add_note(str(details.get("trace", "")))
        return error
    ours = kind.__new__(kind)
    Exception.__init__(ours, value["message"])
    if "failures" in details:
        details["failures"] = tuple(error_of(failure) for failure in details["failures"])
    vars(ours).update({k: tuple(v) if isinstance(v, list) else v for k, v in details.items()})
    return ours
