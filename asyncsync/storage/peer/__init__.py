"""`peer://` and `peers://`: trees that another node keeps."""

from .credentials import VARIABLE
from .joining import Joined, join_head
from .store import PeerTrees, open_joined, open_trees

__all__ = ["VARIABLE", "Joined", "PeerTrees", "join_head", "open_joined", "open_trees"]
