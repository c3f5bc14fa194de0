"""When a checkpoint counts as complete, and when it is tried again."""

from __future__ import annotations

from math import inf

import pytest

from asyncsync.mounts import is_network
from asyncsync.watching.looks import Seen
from asyncsync.watching.settling import Ready, Settling

SETTLE = 10.0


def looks(settling: Settling, now: float, **seen: str) -> list[Ready]:
    """`a="one"` is a checkpoint with that signature; `a="one!"` one whose last file is there."""
    return settling.look(
        {path: Seen(text.rstrip("!"), text.endswith("!")) for path, text in seen.items()}, now
    )


def test_it_is_complete_when_it_has_not_changed_for_long_enough() -> None:
    settling = Settling(SETTLE)

    assert looks(settling, 0.0, a="1") == []
    assert looks(settling, 9.0, a="2") == []
    assert settling.next_at() == 19.0
    assert looks(settling, 18.999, a="2") == []
    assert settling.unsettled == ["a"]
    assert looks(settling, 19.0, a="2") == [Ready("a", "2")]
    assert looks(settling, 1000.0, a="2") == []
    assert (settling.next_at(), settling.unsettled) == (inf, [])


def test_it_is_complete_at_once_when_its_last_file_is_there() -> None:
    settling = Settling(SETTLE)

    assert looks(settling, 0.0, a="1") == []
    assert looks(settling, 1.0, a="2!", b="1") == [Ready("a", "2")]


def test_what_changes_after_it_was_saved_has_to_settle_again() -> None:
    settling = Settling(SETTLE)
    looks(settling, 0.0, a="1!")

    assert looks(settling, 1.0, a="2!") == []
    assert looks(settling, 11.0, a="2!") == [Ready("a", "2")]
    assert looks(settling, 12.0, a="1!") == []
    assert looks(settling, 22.0, a="1!") == [Ready("a", "1")]


def test_what_has_gone_and_comes_back_is_new() -> None:
    settling = Settling(SETTLE)
    looks(settling, 0.0, a="1!")
    looks(settling, 1.0)

    assert looks(settling, 2.0, a="2") == []
    assert looks(settling, 12.0, a="2") == [Ready("a", "2")]


def test_what_failed_is_tried_again_after_longer_and_longer_pauses() -> None:
    settling = Settling(SETTLE)
    assert looks(settling, 0.0, a="1!")
    now = 0.0
    for pause in (20.0, 40.0, 80.0):
        settling.failed("a", now)
        assert settling.unsettled == ["a"]
        assert looks(settling, now + pause - 0.1, a="1!") == []
        now += pause
        assert looks(settling, now, a="1!") == [Ready("a", "1")]
    for _ in range(100):
        settling.failed("a", now)
        now += 600
        assert looks(settling, now, a="1!") == [Ready("a", "1")]
    settling.succeeded("a")
    looks(settling, now, a="2!")
    assert looks(settling, now + SETTLE, a="2!") == [Ready("a", "2")]


def test_one_without_a_file_is_none_yet() -> None:
    settling = Settling(SETTLE)

    assert looks(settling, 0.0, a="") == []
    assert looks(settling, 100.0, a="") == []
    assert (settling.next_at(), settling.unsettled) == (inf, [])


def test_what_changed_before_it_could_be_saved_settles_again() -> None:
    settling = Settling(SETTLE)
    looks(settling, 0.0, a="1")
    assert looks(settling, 10.0, a="1") == [Ready("a", "1")]
    settling.changed("a")

    assert looks(settling, 11.0, a="2") == []
    assert looks(settling, 21.0, a="2") == [Ready("a", "2")]


def test_in_the_end_what_failed_needs_no_pause() -> None:
    settling = Settling(SETTLE)
    looks(settling, 0.0, a="1!")
    for _ in range(2000):
        settling.failed("a", 0.0)
    assert looks(settling, 100.0, a="1!") == []
    settling.hurry()

    assert looks(settling, 100.0, a="1!") == [Ready("a", "1")]


def test_what_becomes_of_one_that_has_gone_does_not_matter() -> None:
    settling = Settling(SETTLE)
    looks(settling, 0.0, a="1!")
    looks(settling, 1.0)
    settling.failed("a", 2.0)
    settling.succeeded("a")

    assert settling.unsettled == []


MOUNTS = """\
22 1 0:21 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:22 / /mnt/nfs rw - nfs4 head:/x rw,vers=4.2
24 22 0:23 / /mnt/nfs/local rw shared:2 master:3 - tmpfs tmpfs rw
25 22 0:24 / /mnt/a\\040blank rw - fuse.sshfs me@host:/ rw
26 22 0:25 / /mnt/lustre rw - lustre mgs:/scratch rw
27 22 0:26 / /mnt/\u00e9 rw - cifs //head/x rw
28 22 0:27 / /mnt/bro\udcffken rw - nfs head:/y rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", ""),
        ("/mnt/nfs", "nfs4"),
        ("/mnt/nfs/run/7", "nfs4"),
        ("/mnt/nfsx", ""),
        ("/mnt/nfs/local/run", ""),
        ("/mnt/a blank/run", "fuse.sshfs"),
        ("/mnt/lustre/run", "lustre"),
        ("/mnt/\u00e9/run", "cifs"),
        ("/mnt/bro\udcffken/run", "nfs"),
    ],
)
def test_file_systems_that_others_write_to_are_known(path: str, kind: str) -> None:
    assert is_network(path, MOUNTS) == kind


def test_where_mounts_are_not_known_nothing_is_a_network() -> None:
    assert is_network("/mnt/nfs", "") == ""
