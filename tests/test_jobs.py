"""What jobs keep to, on every store that keeps them."""

import os
import threading
import time
from datetime import datetime, timedelta, timezone

import pytest

from cjm_workflow_sessions.errors import InvalidInput, JobConflict, JobNotFound, StoreUnavailable
from cjm_workflow_sessions.jobs.forms import DONE, Unfinished, each, steps
from cjm_workflow_sessions.jobs.service import Jobs
from cjm_workflow_sessions.stores.cjm import CjmStore
from cjm_workflow_state.state_store import SQLiteWorkflowStateStore
from jobs_support import effects, ended, fast, jobs, leave, listed, short_pauses, store, until   # noqa: F401
from store_support import in_threads


# -- start -----------------------------------------------------------------------------------------------------------------

def test_a_store_of_the_older_library_keeps_no_jobs(tmp_path):
    with pytest.raises(InvalidInput, match="keeps no jobs"): Jobs(CjmStore(SQLiteWorkflowStateStore(tmp_path / "state.db")))


def test_a_start_that_is_repeated_gives_one_job(jobs):
    jobs.each("ingest", items=listed)(len)
    ann, found = jobs.for_owner("ann"), []
    in_threads(*[lambda: found.append(ann.start("ingest", {"n": 1}, client_key="form").job_id)] * 8)
    assert len(set(found)) == 1 and len(jobs.page().rows) == 1
    assert jobs.for_owner("bob").start("ingest", {"n": 1}, client_key="form").job_id != found[0]


def test_nothing_runs_before_a_runner_is_started(jobs):
    jobs.each("ingest", items=listed)(len)
    job = jobs.start("ingest", {"n": 1})
    fast(jobs)
    time.sleep(0.1)
    assert jobs.get(job.job_id) == job and jobs.runners() == []


def test_a_delayed_job_waits_for_its_time(jobs):
    jobs.each("ingest", items=listed)(len)
    at = datetime.now(timezone.utc) + timedelta(seconds=0.4)
    with fast(jobs):
        job = jobs.start("ingest", {"n": 1}, run_at=at)
        assert ended(jobs, job).started_at >= at.timestamp() * 1_000_000 - 2000   # SQLite's clock has milliseconds


# -- a run -----------------------------------------------------------------------------------------------------------------

def test_items_failures_stats_and_effects(jobs, store):
    @jobs.each("ingest", items=listed)
    def ingest(job, item):
        job.once(item, lambda: leave(store, job.job_id, item))
        if item in ("i3", "i7"): raise ValueError("unreadable")
        return {"found": 2}
    with fast(jobs):
        done = ended(jobs, jobs.start("ingest", {"n": 20}))
    assert (done.status, done.processing.processed, done.processing.total, done.processing.failed, done.stats) == ("completed", 20, 20, 2, {"found": 36})
    assert [(f.number, f.item, f.reason) for f in jobs.failures(done.job_id)] == [(3, "i3", "ValueError: unreadable"), (7, "i7", "ValueError: unreadable")]
    assert sorted(effects(store)) == sorted(f"i{n}" for n in range(20))
    assert done.created_at <= done.started_at <= done.updated_at <= done.ended_at and done.worker is None


def test_an_effect_that_fails_takes_only_itself_back(jobs, store):
    @jobs.each("ingest", items=listed)
    def ingest(job, item):
        def effect():
            leave(store, job.job_id, item)
            if item == "i2": store.rows("SELECT * FROM no_such_table") if job.parameters["sql"] else 1 / 0
        job.once(item, effect)
    with fast(jobs):
        for sql, reason in ((False, "ZeroDivisionError"), (True, "Store")):
            done = ended(jobs, jobs.start("ingest", {"n": 5, "sql": sql}))
            assert (done.processing.failed, sorted(effects(store, done.job_id))) == (1, ["i0", "i1", "i3", "i4"])
            assert jobs.failures(done.job_id)[0].reason.startswith(reason)


def test_failures_and_keys_of_a_kind_without_items(jobs, store):
    @jobs.kind("plain")
    def plain(job, cursor):
        for n in range(3):
            job.once(f"k{n}", lambda n=n: leave(store, job.job_id, f"k{n}"))
            job.fail({"n": n}, "odd")
        job.once("k0")
        return DONE if cursor else 1
    with fast(jobs): done = ended(jobs, jobs.start("plain"))
    assert (done.processing.failed, len(jobs.failures(done.job_id)), effects(store)) == (6, 6, ["k0", "k1", "k2"])


def test_an_item_may_say_that_it_failed(jobs):
    @jobs.each("ingest", items=listed)
    def ingest(job, item):
        if item == "i1": job.fail(item, "blurred")
    with fast(jobs):
        done = ended(jobs, jobs.start("ingest", {"n": 3}))
        assert (done.processing.failed, [f.reason for f in jobs.failures(done.job_id)]) == (1, ["blurred"])
        jobs.retry_failed(done.job_id)
        assert (ended(jobs, done).processing.failed, len(jobs.failures(done.job_id))) == (1, 1)


def test_all_failures_are_counted_and_the_record_shows_a_hundred(jobs):
    @jobs.each("ingest", items=listed)
    def ingest(item): raise ValueError("bad\x00 \ud800")
    with fast(jobs): done = ended(jobs, jobs.start("ingest", {"n": 250}))
    record = jobs.record(done.job_id, "file")
    assert (done.processing.failed, len(record["errors"]), record["stats"]["errors"], record["progress"]) == (250, 100, 250, 100)
    assert [f.number for f in jobs.failures(done.job_id, after=239, limit=500)] == list(range(240, 250))


def test_a_hundred_thousand_items_are_listed_once(jobs, store):
    calls = []
    def many(parameters):
        calls.append(1)
        return (f"path/{n}" for n in range(100_000))
    @jobs.kind("probe", slice_s=60)
    def probe(job, cursor): return DONE
    form = each(lambda item: None, items=many)
    @jobs.kind("long")
    def long(job, cursor):
        if isinstance(cursor, dict) and cursor.get("next", 0) >= 1500: return DONE
        return form(job, cursor)
    with fast(jobs): done = ended(jobs, jobs.start("long"))
    assert (done.status, done.processing.total, done.processing.processed, len(calls)) == ("completed", 100_000, 1500, 1)
    assert store.rows("SELECT count(*) FROM wfs_job_list") == [(100,)]


def test_generators_coroutines_and_plain_steps(jobs):
    import asyncio
    @jobs.steps("generator")
    def generator(job, cursor):
        for n in range(cursor or 0, 5):
            job.progress(n + 1, 5)
            yield n + 1
    @jobs.each("coroutine", items=listed)
    async def coroutine(item):
        await asyncio.sleep(0)
        return {"done": 1}
    @jobs.kind("async")
    async def step(job, cursor):
        await asyncio.sleep(0)
        return DONE if cursor == [3] else [(cursor or [0])[0] + 1]
    with fast(jobs):
        found = [ended(jobs, jobs.start(kind, {"n": 4})) for kind in ("generator", "coroutine", "async")]
    assert [j.status for j in found] == ["completed"] * 3
    assert (found[0].processing.processed, found[1].stats) == (5, {"done": 4})


def test_items_in_processes(jobs):
    @jobs.each("shout", items=listed, processes=2, then=lambda job, item, result: job.count(letters=len(result)))
    def none(item): raise AssertionError("never called")
    jobs.kinds.known["shout"].advance.function = str.upper   # a child finds it
    with fast(jobs):
        done = ended(jobs, jobs.start("shout", {"n": 12}))
    assert (done.status, done.processing.processed, done.processing.failed, done.stats) == ("completed", 12, 0, {"letters": 10 * 2 + 2 * 3})


def test_a_second_phase_leaves_out_what_failed(jobs, store):
    def save(job, item):
        if item == "i4": raise OSError("full")
        job.once("c" + item, lambda: leave(store, job.job_id, item))
    @jobs.each("ingest", items=listed, commit=each(save))
    def ingest(item):
        if item == "i1": raise ValueError("bad")
    with fast(jobs):
        job = jobs.start("ingest", {"n": 6})
        assert ended(jobs, job).status == "completed"
        assert jobs.commit(job.job_id).status == "committing"
        with pytest.raises(JobConflict): jobs.commit(job.job_id)
        done = ended(jobs, job)
        record = jobs.record(job.job_id)
        assert (done.status, done.phase, done.committing.processed, done.committing.total, done.committing.failed) == ("committed", "committing", 5, 5, 1)
        assert (record["commit_progress"], record["commit_errors"], record["errors"]) == (100, ["i4: OSError: full"], ["i1: ValueError: bad"])
        assert sorted(effects(store)) == ["i0", "i2", "i3", "i5"]
        with pytest.raises(JobConflict): jobs.commit(job.job_id)


def test_failed_items_alone_are_tried_again(jobs, store):
    bad, seen = {"i2", "i5", "i8"}, []
    @jobs.each("ingest", items=listed)
    def ingest(job, item):
        seen.append(item)
        job.once(item, lambda: leave(store, job.job_id, item))
        if item in bad: raise ValueError("bad")
    with fast(jobs):
        job = jobs.start("ingest", {"n": 10})
        assert ended(jobs, job).processing.failed == 3
        bad.discard("i5"); seen.clear()
        assert jobs.retry_failed(job.job_id).is_retry
        done = ended(jobs, job)
        assert (seen, done.status, done.is_retry) == (["i2", "i5", "i8"], "completed", False)
        assert (done.processing.processed, done.processing.failed, [f.item for f in jobs.failures(job.job_id)]) == (10, 2, ["i2", "i8"])
        bad.clear()
        jobs.retry_failed(job.job_id)
        assert ended(jobs, job).processing.failed == 0
        with pytest.raises(JobConflict): jobs.retry_failed(job.job_id)
    assert sorted(effects(store)) == [f"i{n}" for n in range(10)]   # once each, whatever was tried how often


# -- errors ----------------------------------------------------------------------------------------------------------------

def test_an_error_is_tried_again_from_the_checkpoint_and_then_stays(jobs):
    calls = []
    @jobs.kind("flaky")
    def flaky(job, cursor):
        calls.append(cursor)
        if cursor == 2: raise OSError("no disk")
        return (cursor or 0) + 1
    with fast(jobs):
        job = jobs.start("flaky")
        done = ended(jobs, job)
        assert (done.status, done.message, done.attempts) == ("error", "OSError: no disk", 3)
        assert calls == [None, 1, 2, 2, 2]
        jobs.resume(job.job_id)
        assert ended(jobs, job).status == "error" and calls[5:] == [2, 2, 2]
    assert jobs.record(job.job_id)["errors"] == ["OSError: no disk"]


@pytest.mark.parametrize("step, words", [(lambda job, cursor: None, "return the next cursor"), (lambda job, cursor: object(), "cannot be stored as JSON"), (lambda job, cursor: exit(3), "SystemExit")])
def test_what_a_kind_may_not_do(jobs, step, words):
    jobs.kind("odd", attempts=1)(step)
    with fast(jobs): done = ended(jobs, jobs.start("odd"))
    assert done.status == "error" and words in done.message


def test_a_store_that_is_away_for_a_moment_stops_nothing(jobs, store, monkeypatch):
    jobs.each("ingest", items=listed)(lambda job, item: job.once(item, lambda: leave(store, job.job_id, item)))
    kept, away = store.jobs.__class__.save, [0]
    def save(self, *args):
        away[0] += 1
        if away[0] % 2: raise StoreUnavailable("here", "the disk is full")
        return kept(self, *args)
    monkeypatch.setattr(store.jobs.__class__, "save", save)
    with fast(jobs): done = ended(jobs, jobs.start("ingest", {"n": 5}))
    assert (done.status, len(effects(store))) == ("completed", 5)


def test_an_item_waits_for_a_store_that_is_away(jobs):
    tries = []
    @jobs.each("ingest", items=listed)
    def ingest(item):
        tries.append(item)
        if len(tries) < 3: raise StoreUnavailable("here", "another program holds its lock")
    with fast(jobs): done = ended(jobs, jobs.start("ingest", {"n": 2}))
    assert (tries, done.processing.failed) == (["i0"] * 3 + ["i1"], 0)


# -- stop, cancel, resume, delete ------------------------------------------------------------------------------------------

def test_cancel_and_resume(jobs, store):
    seen = []
    @jobs.each("slow", items=listed, slice_s=0.05)
    def slow(job, item):
        seen.append(item)
        time.sleep(0.005)
    with fast(jobs):
        job = jobs.start("slow", {"n": 100})
        until(lambda: jobs.get(job.job_id).processing.processed > 20)
        jobs.cancel(job.job_id)
        stopped = ended(jobs, job)
        assert stopped.status == "cancelled" and 20 < stopped.processing.processed < 100
        assert len(seen) == stopped.processing.processed   # the slice is kept
        jobs.resume(job.job_id)
        assert ended(jobs, job).processing.processed == 100
    assert seen == [f"i{n}" for n in range(100)]
    with pytest.raises(JobConflict): jobs.cancel(job.job_id)
    with pytest.raises(JobConflict): jobs.resume(job.job_id)


def test_stop_hands_over_within_a_slice(jobs, store):
    seen = []
    @jobs.each("slow", items=listed, slice_s=0.05)
    def slow(item):
        seen.append(item)
        time.sleep(0.005)
    runner = fast(jobs)
    runner.start()
    job = jobs.start("slow", {"n": 60})
    until(lambda: jobs.get(job.job_id).processing.processed > 10)
    runner.stop()
    left = jobs.get(job.job_id)
    assert (left.status, left.due_at, left.attempts) == ("interrupted", 0, 0) and not runner.is_running
    assert len(seen) == left.processing.processed < 60
    with fast(jobs): assert ended(jobs, job).status == "completed"
    assert seen == [f"i{n}" for n in range(60)]


def test_a_step_that_does_not_end_is_left_behind(jobs):
    going_on, calls = threading.Event(), []
    @jobs.kind("long")
    def long(job, cursor):
        calls.append(job)
        if len(calls) == 1: going_on.wait(20)
        job.count(ran=1)
        return DONE
    runner = fast(jobs)
    runner.start()
    job = jobs.start("long")
    until(lambda: calls)
    runner.stop(timeout_s=0.1)
    assert jobs.get(job.job_id).status == "interrupted" and calls[0].stopping
    with fast(jobs):
        done = ended(jobs, job)
        going_on.set()
        time.sleep(0.1)
        assert jobs.get(job.job_id) == done and done.stats == {"ran": 1}


def test_a_long_step_keeps_its_lease_and_hears_of_a_cancel(jobs):
    calls = []
    @jobs.kind("long")
    def long(job, cursor):
        calls.append(1)
        deadline = time.monotonic() + 10
        while not job.stopping and time.monotonic() < deadline: time.sleep(0.01)
        raise Unfinished
    with fast(jobs, threads=2):
        job = jobs.start("long")
        until(lambda: calls)
        time.sleep(1.5)   # longer than the lease
        assert jobs.get(job.job_id).status == "processing" and len(calls) == 1
        jobs.cancel(job.job_id)
        assert ended(jobs, job).status == "cancelled" and len(calls) == 1


def test_deleting_a_running_job_stops_it_and_nothing_is_left(jobs, store):
    seen = []
    @jobs.each("slow", items=listed, slice_s=0.05)
    def slow(job, item):
        seen.append(item)
        job.once(item, lambda: None)
        if item == "i1": raise ValueError
        time.sleep(0.005)
    with fast(jobs) as runner:
        job = jobs.start("slow", {"n": 1000})
        until(lambda: jobs.get(job.job_id).processing.processed > 10)
        jobs.delete(job.job_id)
        until(lambda: not runner.beat.held)
        assert len(seen) < 500
    with pytest.raises(JobNotFound): jobs.get(job.job_id)
    for table in ("wfs_job", "wfs_job_parameters", "wfs_job_list", "wfs_job_failure", "wfs_job_once"): assert store.rows(f"SELECT count(*) FROM {table}") == [(0,)]


@pytest.mark.filterwarnings("ignore:This process")
def test_a_runner_after_a_fork_is_not_taken_for_a_running_one(jobs):
    with fast(jobs) as runner:
        child = os.fork()
        if child == 0: os._exit(0 if not runner.is_running else 1)
        assert os.waitpid(child, 0)[1] == 0 and runner.is_running


# -- limits ----------------------------------------------------------------------------------------------------------------

def test_limits_hold_whatever_the_number_of_threads(jobs):
    running, most, lock = {}, {}, threading.Lock()
    @jobs.kind("limited", at_once=3, per_owner=2)
    def limited(job, cursor):
        with lock:
            for key in (job.owner, "all"):
                running[key] = running.get(key, 0) + 1
                most[key] = max(most.get(key, 0), running[key])
        time.sleep(0.03)
        with lock:
            for key in (job.owner, "all"): running[key] -= 1
        return DONE
    started = [jobs.for_owner(owner).start("limited") for owner in ("ann",) * 6 + ("bob",) * 3 + ("eve",) * 3]
    with fast(jobs, threads=4), fast(jobs, threads=4):
        for job in started: assert ended(jobs, job).status == "completed"
    assert most["all"] == 3 and max(most.values()) == 3 and most["ann"] == 2


def test_other_kinds_pass_those_that_wait_for_their_turn(jobs):
    gate = threading.Event()
    jobs.kind("one", at_once=1)(lambda job, cursor: gate.wait(10) and DONE)
    jobs.kind("free")(lambda job, cursor: DONE)
    blocked = [jobs.start("one") for _ in range(3)]
    with fast(jobs, threads=3):
        assert ended(jobs, jobs.start("free")).status == "completed"
        gate.set()
        for job in blocked: ended(jobs, job)


# -- kinds that are gone, clean-up -----------------------------------------------------------------------------------------

def test_a_kind_that_no_runner_knows(jobs, store):
    jobs.kind("known")(lambda job, cursor: DONE)
    other = Jobs(store, lease_s=1.0)
    other.kind("gone")(lambda job, cursor: DONE)
    job = other.start("gone")
    with fast(jobs, unknown_after_s=0.3):
        stranded = ended(jobs, job)
        assert stranded.status == "interrupted" and "knows jobs of the kind 'gone'" in stranded.message
        with pytest.raises(InvalidInput): jobs.resume(job.job_id)
        assert jobs.get(job.job_id) == stranded   # what was refused has changed nothing
        with fast(other, unknown_after_s=0.3): assert until(lambda: other.get(job.job_id).status == "completed")


def test_a_kind_that_another_runner_knows_is_left_to_it(jobs, store):
    jobs.kind("known")(lambda job, cursor: DONE)
    other, gate = Jobs(store, lease_s=1.0), threading.Event()
    other.kind("theirs")(lambda job, cursor: gate.wait(10) and DONE)
    with fast(other, threads=1, unknown_after_s=0.3), fast(jobs, unknown_after_s=0.3):
        first, second = other.start("theirs"), other.start("theirs")
        time.sleep(1)
        assert jobs.get(second.job_id).status == "starting"
        gate.set()
        ended(jobs, first), ended(jobs, second)


def test_cleanup(jobs, store):
    jobs.kind("short", keep_s=60)(lambda job, cursor: DONE)
    jobs.kind("kept", keep_s=None)(lambda job, cursor: DONE)
    jobs.kind("day")(lambda job, cursor: DONE)
    made = {name: jobs.start(kind).job_id for name, kind in
            (("old", "short"), ("new", "short"), ("pinned", "short"), ("waits", "short"), ("for ever", "kept"), ("today", "day"), ("yesterday", "day"))}
    ages = {"old": 61, "new": 30, "pinned": 10**6, "for ever": 10**8, "today": 80_000, "yesterday": 90_000}
    for name, age in ages.items():
        with jobs.store.edit(made[name]) as held: held.set(status="completed", due_at=None, ended_at=jobs.store.now() - age * 1_000_000)
    with jobs.store.edit(made["waits"]) as held: held.set(due_at=1)
    jobs.pin(made["pinned"])
    names = {job_id: name for name, job_id in made.items()}
    assert sorted(names[i] for i in jobs.cleanup(dry_run=True)) == ["old", "yesterday"]
    assert len(jobs.page().rows) == 7
    assert sorted(names[i] for i in jobs.cleanup()) == ["old", "yesterday"]
    jobs.unpin(made["pinned"])
    jobs.start("day")   # cleans up by the way
    assert made["pinned"] not in jobs.many(list(names)) and len(jobs.page().rows) == 5


# -- lists and the active job ------------------------------------------------------------------------------------------------

def test_pages_and_owners(jobs):
    jobs.kind("a")(lambda job, cursor: DONE)
    jobs.kind("b")(lambda job, cursor: DONE)
    started = [jobs.for_owner("ann" if n % 3 else "bob").start("a" if n % 2 else "b", session_id=f"s{n % 5}", flow_id="f").job_id for n in range(40)]
    newest = started[::-1]
    def walk(service, **which):
        found, before = [], None
        while True:
            page = service.page(limit=7, before=before, **which)
            found += [j.job_id for j in page.rows]
            if page.before is None: return found
            before = page.before
    assert walk(jobs) == newest
    assert walk(jobs.for_owner("ann")) == [j for j in newest if started.index(j) % 3]
    assert walk(jobs, kind="a", session_id="s1", flow_id="f") == [j for j in newest if started.index(j) % 2 and started.index(j) % 5 == 1]
    assert walk(jobs, statuses=["starting"]) == newest and walk(jobs, statuses=["error"]) == []
    assert set(jobs.for_owner("ann").many(started)) == set(walk(jobs.for_owner("ann")))


def test_jobs_of_two_sessions_do_not_mix(jobs):
    jobs.kind("a")(lambda job, cursor: DONE)
    first, second = (jobs.start("a", session_id=s) for s in ("s1", "s2"))
    assert (jobs.active(session_id="s1"), jobs.active(session_id="s2"), jobs.active()) == (first, second, second)


def test_a_revision_for_every_change_that_can_be_seen(jobs):
    jobs.each("a", items=listed, slice_s=0.01)(lambda item: time.sleep(0.005))
    job, seen = jobs.start("a", {"n": 30}), {}
    with fast(jobs):
        while (found := jobs.get(job.job_id)).due_at is not None:
            shown = (found.status, found.processing, found.is_cancelling)
            assert seen.setdefault(found.revision, shown) == shown
    assert list(seen) == sorted(seen) and len(seen) > 5
