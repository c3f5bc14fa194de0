"""Who answers which request: one function for each route, and none without a policy."""

from __future__ import annotations

from . import push_calls, read_calls, tree_calls
from .calls import Handler

__all__ = ["HANDLERS"]

HANDLERS: dict[str, Handler] = {
    "hello": tree_calls.hello,
    "authority": tree_calls.authority,
    "renew": tree_calls.renew,
    "manifest": tree_calls.manifest,
    "header": tree_calls.header,
    "find": tree_calls.find,
    "glance": tree_calls.glance,
    "files": tree_calls.files,
    "confirm": tree_calls.confirm,
    "delete": tree_calls.delete,
    "clean": tree_calls.clean,
    "mark": tree_calls.mark,
    "probe": tree_calls.probe,
    "part": push_calls.part,
    "gather": push_calls.gather,
    "open": read_calls.open_,
    "read": read_calls.read,
    "read_many": read_calls.read_many,
    "close": read_calls.close,
    "turn": read_calls.turn,
    "begin": push_calls.begin,
    "plan": push_calls.plan,
    "recall": push_calls.recall,
    "write": push_calls.write,
    "write_many": push_calls.write_many,
    "discard": push_calls.discard,
    "commit": push_calls.commit,
    "leave": push_calls.leave,
}
