"""`peer://` and `peers://`: trees that another node keeps."""

from .store import PeerTrees, open_trees

__all__ = ["PeerTrees", "open_trees"]
