"""Any ObjectStore as a TreeStore, by the commit protocol.

place.py   one tree in a bucket: keys, the manifest, requests that several steps share
record.py  the attempt record: who writes or deletes here, and which objects are theirs
writer.py  one attempt to write: data first, the manifest last
store.py   the TreeStore itself, and deleting
"""

from .store import CommittedTrees

__all__ = ["CommittedTrees"]
