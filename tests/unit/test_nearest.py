"""Which copy is read: the newest commit, from the nearest place that has it."""

from __future__ import annotations

from asyncsync.syncing.commits import Commit
from asyncsync.syncing.nearest import gather_copies


def commit(location: str, step: int, identity: str, damaged: str | None = None) -> Commit:
    return Commit(location=location, name="c", step=step, identity=identity, damaged=damaged)


def places(*found: list[Commit]) -> list[list[str]]:
    return [[one.location for one in copies.commits] for copies in gather_copies(found)]


def test_the_newest_is_first_and_of_it_the_nearest_place() -> None:
    cloud = [commit("s3://b/c3", 3, "three"), commit("s3://b/c2", 2, "two")]
    head = [commit("peer://head:1/c3", 3, "three")]
    disk = [commit("/disk/c2", 2, "two"), commit("/disk/c1", 1, "one")]

    assert places(cloud, head, disk) == [
        ["peer://head:1/c3", "s3://b/c3"],
        ["/disk/c2", "s3://b/c2"],
        ["/disk/c1"],
    ]


def test_an_old_copy_that_is_near_is_not_taken_for_the_newest() -> None:
    assert places([commit("s3://b/c", 9, "new")], [commit("/disk/c", 8, "old")])[0] == ["s3://b/c"]


def test_among_equals_the_place_that_was_named_first_is_nearest() -> None:
    one, two = [commit("peer://a:1/c", 1, "x")], [commit("peers://b:1/c", 1, "x")]

    assert places(two, one) == [["peers://b:1/c", "peer://a:1/c"]]


def test_a_damaged_copy_is_none_of_a_good_one() -> None:
    good = [commit("s3://b/c", 3, "x")]
    bad = [commit("/disk/c", 3, "", damaged="torn")]

    assert places(good, bad) == [["s3://b/c"], ["/disk/c"]]


def test_a_damaged_one_that_holds_others_comes_before_them() -> None:
    inside = commit("s3://b/trial_1/c3", 3, "x")

    assert places([commit("s3://b/trial_1", 1, "", damaged="torn"), inside]) == [
        ["s3://b/trial_1"],
        ["s3://b/trial_1/c3"],
    ]


def test_the_same_bytes_of_another_step_are_another_commit() -> None:
    assert places([commit("s3://b/c9", 9, "x"), commit("s3://b/c10", 10, "x")]) == [
        ["s3://b/c10"],
        ["s3://b/c9"],
    ]


def test_where_nothing_is_there_is_no_copy() -> None:
    assert places([], []) == []


def test_a_copy_with_a_name_that_is_no_location_is_one_of_several() -> None:
    odd = [commit("peer://a:1/c?token=1", 1, "x")]

    assert places(odd, [commit("/disk/c", 1, "x")]) == [["/disk/c", "peer://a:1/c?token=1"]]
