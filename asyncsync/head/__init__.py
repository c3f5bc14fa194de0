"""A head: it keeps the trees of many workers, and carries them on."""

from .events import Forwarded, HeadEvent, Listener, Listening, NotForwarded, Renewed, Vanished
from .forwarding import Forwarding, check_place
from .notes import Note, Notes

__all__ = [
    "Forwarded",
    "Forwarding",
    "HeadEvent",
    "Listener",
    "Listening",
    "NotForwarded",
    "Note",
    "Notes",
    "Renewed",
    "Vanished",
    "check_place",
]
