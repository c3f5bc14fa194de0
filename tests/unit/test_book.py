"""The book, driven through random lives of trials by a clock of the test's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil, inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncsync.scheduling.book import Book
from asyncsync.scheduling.due import Decision, Overlap, Rules
from asyncsync.scheduling.jobs import Job, Tree, Urgency

PERIOD = 60.0
TRIALS = 4


def make(slots: int = 2, overlap: Overlap = "coalesce") -> tuple[Book, list[Tree]]:
    book = Book(Rules(period_s=PERIOD, overlap=overlap), slots)
    trees = [tree_of(book, f"t{n}") for n in range(TRIALS)]
    return book, trees


def tree_of(book: Book, name: str) -> Tree:
    tree = Tree(
        trial=name,
        source=f"/{name}",
        target=book.target(f"x://{name}"),
        direction="up",
        reached=True,
    )
    tree.target.trees.append(tree)
    return tree


def checkpoint(trial: str, name: str, size_bytes: int = 0) -> Job:
    return Job(
        trial=trial,
        source=f"/{trial}/{name}",
        target=f"x://{trial}/{name}",
        urgency=Urgency.FORCED,
        size_bytes=size_bytes,
    )


def test_a_period_is_over_when_it_is_exactly_over() -> None:
    book, (tree, *_) = make()
    book.report(tree, 0.0)
    (first,) = book.starts(0.0)
    book.succeeded(first, 5.0)
    book.report(tree, 30.0)

    assert book.starts(30.0) == []
    assert book.next_at() == PERIOD
    assert book.starts(59.999) == []
    assert [job.tree for job in book.starts(60.0)] == [tree]


def test_only_success_restarts_the_period() -> None:
    book, (tree, *_) = make()
    book.report(tree, 0.0)
    (first,) = book.starts(0.0)
    book.failed(first, 5.0, again=False)

    assert book.starts(5.999) == []
    (second,) = book.starts(6.0)
    book.failed(second, 6.0, again=False)
    assert book.next_at() == 8.0


def test_a_tree_rests_after_a_failure_also_where_the_period_is_endless() -> None:
    book = Book(Rules(period_s=inf), 1)
    tree = tree_of(book, "t")
    book.report(tree, 0.0)
    (first,) = book.starts(0.0)
    book.failed(first, 0.0, again=False)

    assert book.starts(0.999) == []
    (second,) = book.starts(1.0)
    book.succeeded(second, 1.0)
    book.report(tree, 2.0)
    assert book.next_at() == inf


def test_a_tree_rests_as_long_as_its_last_failure_says() -> None:
    book, (tree, *_) = make()
    book.report(tree, 0.0)
    (first,) = book.starts(0.0)
    book.failed(first, 0.0, again=False, wait_s=300.0)
    book.ask(book.job_of(tree, Urgency.FORCED), 10.0)
    (second,) = book.starts(10.0)
    book.failed(second, 10.0, again=False)

    assert book.next_at() == 12.0
    assert [job.tree for job in book.starts(12.0)] == [tree]


def test_what_was_not_reported_is_not_synced_again() -> None:
    book, (tree, *_) = make()
    book.report(tree, 0.0)
    (first,) = book.starts(0.0)
    book.succeeded(first, 5.0)

    assert book.next_at() == inf
    assert book.starts(1000.0) == []


def test_a_report_wakes_nobody_unless_there_is_something_to_do_earlier() -> None:
    book, trees = make(slots=TRIALS)
    woken = [book.report(tree, float(n)) for n, tree in enumerate(trees)]
    for number, job in enumerate(book.starts(5.0)):
        book.succeeded(job, 6.0 + number)
    trees[2].rests_until = 100.0
    later = [book.report(trees[n], 10.0) for n in (2, 0, 1, 0)]

    assert woken == [True] * TRIALS  # they may start
    assert later == [True, True, False, False]
    assert book.next_at() == 65.0


def test_urgent_ones_go_first_and_old_ones_before_them() -> None:
    book, trees = make(slots=1)
    book.report(trees[0], 0.0)
    book.report(trees[1], 50.0)
    book.ask(checkpoint("t2", "c"), 51.0)
    book.ask(book.job_of(trees[3], Urgency.FINAL), 130.0)
    order = []
    for now in range(200, 204):
        (job,) = book.starts(now)
        order.append(job.trial)
        book.succeeded(job, now)

    assert order == ["t2", "t0", "t3", "t1"]


def test_nothing_starves_behind_more_urgent_work_than_there_is_time_for() -> None:
    book, trees = make(slots=1)
    now = 0.0
    book.ask(checkpoint("t1", "c0"), now)
    (job,) = book.starts(now)
    book.report(trees[0], now)
    first: list[float] = []
    while job.trial != "t0":
        for number in range(3):  # while one is written, three others come
            book.ask(checkpoint("t1", f"c{now}.{number}"), now)
        first.append(job.asked_at)
        now += 10.0
        book.succeeded(job, now)
        (job,) = book.starts(now)

    assert first == [0.0, *(at for at in (0.0, 10.0, 20.0, 30.0, 40.0, 50.0) for _ in range(3))]


@pytest.mark.parametrize(("later_s", "first"), [(59.9, "t1"), (60.0, "t0"), (60.1, "t0")])
def test_a_minute_is_worth_a_step_of_urgency(later_s: float, first: str) -> None:
    book, trees = make(slots=1)
    book.ask(checkpoint("t2", "c"), 0.0)
    (running,) = book.starts(0.0)
    book.report(trees[0], 10.0)
    book.ask(checkpoint("t1", "c"), 10.0 + later_s)
    book.succeeded(running, 100.0)

    assert [job.trial for job in book.starts(100.0)] == [first]


def test_a_newer_version_has_the_turn_and_the_urgency_of_the_one_whose_place_it_takes() -> None:
    book, (tree, *_) = make(slots=1)
    book.ask(checkpoint("t3", "c"), 0.0)
    (running,) = book.starts(0.0)
    book.ask(checkpoint("t2", "c"), 1.0)
    book.ask(book.job_of(tree, Urgency.FINAL), 2.0)
    book.ask(checkpoint("t1", "c"), 3.0)
    book.ask(checkpoint("t2", "c"), 4.0)
    book.ask(book.job_of(tree, Urgency.FORCED), 70.0)
    book.succeeded(running, 80.0)
    order = []
    while jobs := book.starts(80.0):
        order.append(jobs[0].target)
        book.succeeded(jobs[0], 80.0)

    assert order == ["x://t0", "x://t2/c", "x://t1/c"]


def test_what_has_been_replaced_in_line_takes_no_room_there() -> None:
    book, _ = make(slots=1)
    book.ask(checkpoint("t0", "c"), 0.0)
    (running,) = book.starts(0.0)
    for now in range(1, 1000):
        book.ask(checkpoint("t1", "c"), now)
        book.ask(checkpoint("t2", f"c{now % 5}"), now)

    assert len(book._line) < 100
    book.succeeded(running, 1000.0)
    started = []
    while jobs := book.starts(1000.0):
        started += [job.target for job in jobs]
        book.succeeded(jobs[0], 1000.0)
    assert sorted(started) == ["x://t1/c", *(f"x://t2/c{n}" for n in range(5))]


def test_in_a_hurry_the_newest_checkpoints_go_first_and_small_ones_before_large_ones() -> None:
    book, trees = make(slots=1)
    for trial, name, size in (("t0", "c1", 1), ("t0", "c2", 9), ("t1", "c1", 5)):
        book.ask(checkpoint(trial, name, size), 0.0)
    book.report(trees[2], 0.0)
    book.hurry(on=True)
    order = []
    for _ in range(4):
        (job,) = book.starts(1.0)
        order.append(job.target)
        book.succeeded(job, 1.0)

    assert order == ["x://t1/c1", "x://t0/c2", "x://t2", "x://t0/c1"]


@pytest.mark.parametrize(
    ("overlap", "decisions", "order"),
    [
        ("coalesce", [Decision.JOIN, Decision.JOIN], [3]),
        ("queue", [Decision.QUEUE, Decision.QUEUE], [2, 3]),
        ("skip", [Decision.DROP, Decision.DROP], []),
        ("supersede", [Decision.REPLACE, Decision.REPLACE], [3]),
    ],
)
def test_what_comes_while_a_target_is_written(
    overlap: Overlap, decisions: list[Decision], order: list[int]
) -> None:
    book, _ = make(overlap=overlap)
    jobs = [checkpoint("t0", "c") for _ in range(3)]
    book.ask(jobs[0], 0.0)
    (running,) = book.starts(0.0)
    decided = [book.ask(job, 1.0)[0] for job in jobs[1:]]
    after: list[int] = []
    while running is not None:
        assert len(book.running()) == 1
        book.succeeded(running, 2.0)
        running = next(iter(book.starts(2.0)), None)  # type: ignore[assignment]
        if running is not None:
            after.append(running.number)
            assert {job.number for job in running.with_joined()} <= {1, 2, 3}

    assert (decided, after) == (decisions, order)


def test_the_last_sync_of_a_trial_is_never_skipped() -> None:
    book, (tree, *_) = make(overlap="skip")
    book.report(tree, 0.0)
    (running,) = book.starts(0.0)
    decision, _ = book.ask(book.job_of(tree, Urgency.FINAL), 1.0)
    book.succeeded(running, 2.0)

    assert decision is Decision.JOIN
    assert [job.urgency for job in book.starts(2.0)] == [Urgency.FINAL]


def test_a_tree_whose_sync_was_skipped_stays_due() -> None:
    book, (tree, *_) = make(overlap="skip")
    book.report(tree, 0.0)
    (running,) = book.starts(0.0)
    decision, _ = book.ask(book.job_of(tree, Urgency.FORCED), 5.0)
    book.succeeded(running, 10.0)

    assert decision is Decision.DROP
    assert tree.changed_at == 5.0
    assert book.starts(PERIOD - 0.001) == []
    assert [job.tree for job in book.starts(PERIOD)] == [tree]


def test_a_version_that_is_revoked_gives_its_place_back_to_the_one_before() -> None:
    book, (tree, *_) = make(slots=1)
    book.report(tree, 0.0)
    (running,) = book.starts(0.0)
    versions = [checkpoint("t1", "c") for _ in range(3)]
    for job in versions:
        book.ask(job, 1.0)
    book.revoke(versions[2], 2.0)
    book.succeeded(running, 3.0)

    (next_one,) = book.starts(3.0)
    assert next_one is versions[1]
    assert next_one.joined == [versions[0]]


def test_what_stood_behind_a_withdrawn_job_goes_next() -> None:
    book, (tree, *_) = make(slots=1, overlap="queue")
    book.report(tree, 0.0)
    (running,) = book.starts(0.0)
    first, second = checkpoint("t1", "c"), checkpoint("t1", "c")
    book.ask(first, 1.0)
    book.ask(second, 1.0)
    book.withdraw([first], 2.0)
    book.succeeded(running, 3.0)

    assert book.starts(3.0) == [second]
    book.succeeded(second, 4.0)
    assert "x://t1/c" not in book.targets


@pytest.mark.parametrize("period_s", [PERIOD, 7 * 86400.0, inf])
def test_a_tree_has_one_timer_however_often_it_is_synced_and_changes(period_s: float) -> None:
    book = Book(Rules(period_s=period_s), 1)
    tree = tree_of(book, "t")
    for now in range(0, 10_000, 10):
        book.report(tree, now)
        book.ask(book.job_of(tree, Urgency.FORCED), now)  # as along with a checkpoint
        (job,) = book.starts(now)
        book.succeeded(job, now + 1)
        book.report(tree, now + 2)

        assert len(book._timers) <= 1


def test_a_timer_that_a_nearer_one_has_replaced_wakes_nobody() -> None:
    book, (tree, *_) = make()
    book.report(tree, 0.0)
    (job,) = book.starts(0.0)
    book.failed(job, 0.0, again=False, wait_s=3600.0)
    book.ask(book.job_of(tree, Urgency.FORCED), 6.0)
    (job,) = book.starts(6.0)
    book.succeeded(job, 7.0)
    book.report(tree, 8.0)
    assert book.next_at() == 6.0 + PERIOD
    for now in range(66, 3600, 61):
        (job,) = book.starts(now)
        book.succeeded(job, now)
        book.report(tree, now)
    book.starts(3600.0)

    assert len(book._timers) == 1


@pytest.mark.parametrize("runs", [False, True])
def test_a_version_that_is_revoked_when_it_runs_gives_its_place_back(runs: bool) -> None:
    book, (tree, *_) = make(slots=1)
    book.report(tree, 0.0)
    (running,) = book.starts(0.0)
    older, newer = checkpoint("t1", "c"), checkpoint("t1", "c")
    for job in (older, newer):
        book.ask(job, 1.0)
    book.succeeded(running, 2.0)
    if runs:
        assert book.starts(2.0) == [newer]
    book.revoke(newer, 3.0)
    if runs:
        assert book.starts(3.0) == []  # it has not ended yet
        book.dropped(newer, 4.0)

    assert book.starts(5.0) == [older]


@pytest.mark.parametrize("displaced", [False, True])
def test_a_version_that_was_revoked_gets_no_place_back(displaced: bool) -> None:
    book, (tree, *_) = make(slots=1, overlap="supersede")
    older, newer = checkpoint("t1", "c"), checkpoint("t1", "c")
    if displaced:
        book.ask(older, 1.0)
        book.starts(1.0)
        book.ask(newer, 1.0)
    else:
        book.report(tree, 0.0)
        (running,) = book.starts(0.0)
        book.ask(older, 1.0)
        book.ask(newer, 1.0)
        book.succeeded(running, 2.0)
    book.revoke(older, 3.0)
    book.revoke(newer, 3.0)
    if displaced:
        book.dropped(older, 4.0)

    assert book.starts(5.0) == []
    assert "x://t1/c" not in book.targets


def test_who_is_given_its_place_back_and_came_to_its_end_is_not_done_again() -> None:
    book, _ = make(slots=1, overlap="supersede")
    older, newer = checkpoint("t1", "c"), checkpoint("t1", "c")
    book.ask(older, 1.0)
    book.starts(1.0)
    _, displaced = book.ask(newer, 2.0)
    book.revoke(newer, 3.0)
    book.succeeded(older, 4.0)

    assert displaced is older
    assert book.starts(5.0) == []


@pytest.mark.parametrize("overlap", ["coalesce", "queue", "skip", "supersede"])
@pytest.mark.parametrize("runs", [False, True])
def test_what_goes_up_takes_no_place_of_what_goes_down(overlap: Overlap, runs: bool) -> None:
    book, (up, other, *_) = make(slots=1, overlap=overlap)
    down = Tree(trial="t0", source="/t0", target=up.target, direction="down")
    up.target.trees.append(down)
    if not runs:
        book.report(other, 0.0)
        (first,) = book.starts(0.0)
    going_down = book.job_of(down, Urgency.FORCED)
    book.ask(going_down, 1.0)
    if runs:
        assert book.starts(1.0) == [going_down]
    _, displaced = book.ask(book.job_of(up, Urgency.FINAL), 2.0)
    order = []
    if not runs:
        book.succeeded(first, 3.0)
        (going_down,) = book.starts(3.0)
    for _ in range(2):
        assert going_down.joined == []
        order.append(going_down.direction)
        book.succeeded(going_down, 4.0)
        going_down = next(iter(book.starts(4.0)), going_down)

    assert displaced is None
    assert order == ["down", "up"]


def test_what_goes_down_and_failed_is_tried_again_before_what_goes_up() -> None:
    book, (up, *_) = make(slots=1)
    down = Tree(trial="t0", source="/t0", target=up.target, direction="down")
    up.target.trees.append(down)
    going_down = book.job_of(down, Urgency.FORCED)
    book.ask(going_down, 0.0)
    book.starts(0.0)
    book.ask(book.job_of(up, Urgency.FINAL), 1.0)
    book.failed(going_down, 2.0, again=True)

    assert book.starts(3.0) == [going_down]


def test_in_a_hurry_a_checkpoint_that_comes_later_is_the_newest() -> None:
    book, _ = make(slots=1)
    book.ask(checkpoint("t0", "c1", 1), 0.0)
    book.ask(checkpoint("t1", "c1", 5), 0.0)
    book.hurry(on=True)
    book.ask(checkpoint("t0", "c2", 9), 1.0)
    order = []
    for _ in range(3):
        (job,) = book.starts(2.0)
        order.append(job.target)
        book.succeeded(job, 2.0)

    assert order == ["x://t1/c1", "x://t0/c2", "x://t0/c1"]


def test_a_trial_that_is_over_is_synced_unasked_no_more() -> None:
    book, (tree, other, *_) = make(slots=1)
    book.report(other, 0.0)
    (running,) = book.starts(0.0)
    book.report(tree, 1.0)
    book.report(tree, 2.0)
    book.forget(tree, 3.0)
    book.succeeded(running, 4.0)

    assert book.starts(1000.0) == []
    assert tree.target.name not in book.targets


def test_nothing_starts_where_a_syncer_is_stuck_until_it_ends() -> None:
    book, (tree, other, *_) = make()
    book.report(tree, 0.0)
    (running,) = book.starts(0.0)
    book.stuck(running, 20.0)
    book.report(tree, 21.0)
    decision, _ = book.ask(book.job_of(tree, Urgency.FINAL), 22.0)
    book.report(other, 22.0)

    assert decision is Decision.HOLD
    assert [job.tree for job in book.starts(500.0)] == [other]
    book.unstuck(tree.target, 501.0)
    assert [job.tree for job in book.starts(501.0)] == [tree]


# -- random lives


@dataclass
class World:
    """What a test knows that the book does not."""

    book: Book
    trees: list[Tree]
    now: float = 0.0
    stuck: list[Job] = field(default_factory=list)
    asked: dict[int, Job] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)
    durable: dict[str, int] = field(default_factory=dict)
    made: int = 0

    def check(self) -> None:
        running = self.book.running()
        targets = [job.target for job in running]

        assert len(running) <= self.book.slots
        assert len(targets) == len(set(targets))
        assert not {job.target for job in running} & {job.target for job in self.stuck}

    def start(self) -> None:
        for job in self.book.starts(self.now):
            assert job.not_before <= self.now
            self.check_order(job)
        self.check()

    def check_order(self, started: Job) -> None:
        """Nobody who could start is overtaken by what came long enough after."""
        for target in self.book.targets.values():
            first = next(iter(target.waiting), None)
            if first and target.running is None and not target.stuck and self.may_start(first):
                urgent_s = 60.0 * (first.urgency - started.urgency)
                assert started.asked_at <= first.asked_at + urgent_s

    def may_start(self, job: Job) -> bool:
        return job.not_before <= self.now

    def end(self, job: Job, how: str) -> None:
        if how == "good":
            self.book.succeeded(job, self.now)
            self.done |= {one.number for one in job.with_joined()}
            if job.tree is not None:
                before = self.durable.get(job.trial, -1)
                self.durable[job.trial] = max(before, job.version)
        elif how == "bad":
            self.book.failed(job, self.now, again=job.number in self.asked)
        elif how == "stuck":
            self.book.stuck(job, self.now)
            self.stuck.append(job)
            self.done |= {one.number for one in job.with_joined()}  # its callers are told

    def act(self, what: str, which: float) -> None:
        if what == "report":
            self.book.report(self.trees[int(which)], self.now)
        elif what == "pass":
            self.now += which
        elif what == "ask":
            self.ask(self.book.job_of(self.trees[int(which)], Urgency.FORCED))
        elif what == "checkpoint":
            self.ask(checkpoint(self.trees[int(which)].trial, "same"))
        elif running := self.book.running():
            self.end(running[int(which) % len(running)], what)

    def ask(self, job: Job) -> None:
        _, displaced = self.book.ask(job, self.now)
        self.asked[job.number] = job
        if displaced is not None:
            self.book.dropped(displaced, self.now)

    def rest(self) -> None:
        """From now on everything succeeds; until nothing is left to do."""
        for job in self.stuck:
            self.book.unstuck(self.book.target_of(job), self.now)
        self.stuck.clear()
        for _ in range(10_000):
            self.start()
            for job in self.book.running():
                self.end(job, "good")
            self.start()
            if not self.book.running():
                if (at := self.book.next_at()) == inf:
                    return
                self.now = max(self.now, at)
        raise AssertionError("it does not come to rest")


ACTIONS = st.one_of(
    st.tuples(st.just("report"), st.integers(0, TRIALS - 1)),
    st.tuples(st.just("ask"), st.integers(0, TRIALS - 1)),
    st.tuples(st.just("checkpoint"), st.integers(0, 2)),
    st.tuples(st.just("good"), st.integers(0, 5)),
    st.tuples(st.just("bad"), st.integers(0, 5)),
    st.tuples(st.just("stuck"), st.integers(0, 5)),
    st.tuples(st.just("pass"), st.sampled_from([0.5, 1, 10, 61])),
)


@pytest.mark.parametrize("overlap", ["coalesce", "queue", "supersede"])
@settings(max_examples=150, deadline=None)
@given(actions=st.lists(ACTIONS, max_size=60), slots=st.integers(1, 3))
def test_no_latest_state_is_lost_and_every_request_ends(
    overlap: Overlap, actions: list[tuple[str, float]], slots: int
) -> None:
    book, trees = make(slots, overlap)
    world = World(book, trees)
    for what, which in actions:
        world.act(what, which)
        world.start()
    world.rest()

    assert book.waiting() == []
    assert world.asked.keys() <= world.done
    assert {t.trial: t.version for t in trees if t.version} == {
        name: version for name, version in world.durable.items() if version
    }
    assert all(tree.changed_at == inf for tree in trees)


@settings(max_examples=200, deadline=None)
@given(
    gaps=st.lists(st.one_of(st.just(0.0), st.floats(0.1, 40)), min_size=5, max_size=80),
    transfer_s=st.floats(0.1, 100),
    trials=st.integers(1, 9),
    slots=st.integers(1, 4),
)
def test_the_copy_is_at_most_a_period_a_transfer_and_the_time_in_line_old(
    gaps: list[float], transfer_s: float, trials: int, slots: int
) -> None:
    book = Book(Rules(period_s=PERIOD), slots)
    trees = [tree_of(book, f"t{n}") for n in range(trials)]
    ends: list[tuple[float, Job]] = []
    changed: dict[str, list[float]] = {tree.trial: [] for tree in trees}
    in_line_s = 0.0 if trials <= slots else ceil(trials / slots) * transfer_s
    bound = max(PERIOD, transfer_s) + in_line_s + transfer_s + 1e-6
    now = 0.0

    def run_until(end: float) -> None:
        nonlocal now
        while True:
            for job in book.starts(now):
                assert job.started_at - job.asked_at <= in_line_s + 1e-6  # told as `queued_s`
                ends.append((now + transfer_s, job))
            moments = [when for when, _ in ends]
            if (at := book.next_at()) < inf:
                moments.append(at)
            if not moments or min(moments) > end:
                break
            now = max(now, min(moments))
            for when, job in [one for one in ends if one[0] <= now]:
                ends.remove((when, job))
                book.succeeded(job, now)
                old = [at for at in changed[job.trial] if at <= job.started_at]
                assert all(now - at <= bound for at in old)
                changed[job.trial] = [at for at in changed[job.trial] if at > job.started_at]
        now = end

    for number, gap in enumerate(gaps):
        run_until(now + gap)
        tree = trees[number % trials]
        changed[tree.trial].append(now)
        book.report(tree, now)
    run_until(now + 10 * bound)

    assert all(left == [] for left in changed.values())
