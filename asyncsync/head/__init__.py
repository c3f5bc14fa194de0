"""A head: it keeps the trees of many workers, and carries them on."""

from .events import Forwarded, HeadEvent, Listener, Listening, NotForwarded, Renewed, Vanished
from .forwarding import Forwarding, check_place
from .notes import Note, Notes
from .service import Service, join_address, join_string, serve, split_address
from .state import Settings, State, default_state

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
    "Service",
    "Settings",
    "State",
    "Vanished",
    "check_place",
    "default_state",
    "join_address",
    "join_string",
    "serve",
    "split_address",
]
