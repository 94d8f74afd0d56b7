"""Faults that jobs once had: each test failed before it was mended."""

import asyncio
import threading
import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from fractions import Fraction

import pytest

from cjm_workflow_sessions.errors import StoreUnavailable
from cjm_workflow_sessions.jobs import forms
from cjm_workflow_sessions.jobs.forms import DONE, GiveUp, Unfinished
from cjm_workflow_sessions.jobs.service import Jobs
from cjm_workflow_sessions.models import JobFailure
from cjm_workflow_sessions.stores.job_port import Allowance, Checkpoint, JobLost, NewJob, Once
from cjm_workflow_sessions.stores.sqlite import SQLiteSessionStore
from jobs_support import effects, ended, fast, jobs, leave, listed, raise_odd, short_pauses, store, until   # noqa: F401


def away(): return StoreUnavailable("jobs.db", "another program holds its lock")


# -- whose job it is -------------------------------------------------------------------------------------------------------

def test_the_number_of_a_deleted_job_is_never_given_again(store):
    numbers = []
    for _ in range(3):
        job, _ = store.jobs.insert(NewJob("k", "{}"), lambda run, job: None)
        numbers += [n for (n,) in store.rows("SELECT id FROM wfs_job")]
        store.jobs.delete(job.job_id)
    assert numbers == sorted(set(numbers))


def test_the_run_of_a_job_reaches_no_other_job_under_its_number(store):
    # As it is when the file below a runner is exchanged for a backup.
    store.jobs.insert(NewJob("k", "{}"), lambda run, job: None)
    claim = store.jobs.claim("w", 10**9, [Allowance("k")])
    written = Checkpoint("1", claim.job.progress, "{}", True, [JobFailure(0, "a", "odd")], once=[Once("key", None, JobFailure(0, "a", ""))], lists=[(0, '["a"]')])
    store.jobs.save(claim, written, 10**9)
    before, other = store.jobs.read([claim.job.job_id]), replace(claim, job=replace(claim.job, job_id="gone"))
    for write in (lambda: store.jobs.save(other, written, 1), lambda: store.jobs.renew(other, 1)):
        with pytest.raises(JobLost): write()
    store.jobs.release(other)
    assert store.jobs.read([claim.job.job_id]) == before
    def reads(claim): return store.jobs.kept(claim, "processing", 0), store.jobs.failed_numbers(claim, "processing"), store.jobs.did(claim, "key")
    assert (reads(claim), reads(other)) == ((["a"], {0}, True), ([], set(), False))


def test_the_run_of_a_deleted_job_does_nothing_to_the_next(jobs, store):
    done = []
    @jobs.each("copy", items=lambda p: [f"{p['of']}{n}" for n in range(p["n"])])
    def copy(job, item):
        time.sleep(0.01)
        job.once(str(job.number), lambda: leave(store, job.job_id, item))
        done.append(item)
    ann, bob = jobs.for_owner("ann"), jobs.for_owner("bob")
    with fast(jobs, threads=2):
        hers = ann.start("copy", {"of": "a", "n": 100})
        until(lambda: len(done) > 5)
        ann.delete(hers.job_id)
        his = ended(jobs, bob.start("copy", {"of": "b", "n": 60}))
    assert (his.status, his.processing.processed, effects(store, his.job_id)) == ("completed", 60, [f"b{n}" for n in range(60)])


# -- what a store that is away for a moment leaves out -------------------------------------------------------------------------

@pytest.mark.parametrize("is_async", (False, True))
def test_a_generator_goes_on_where_the_store_was_away(jobs, is_async):
    done, raised = [], []
    def step(n):
        if n == 4 and not raised:
            raised.append(n)
            raise away()
        done.append(n)
        return n + 1
    def plain(job, cursor):
        for n in range(cursor or 0, 10): yield step(n)
    async def coroutine(job, cursor):
        for n in range(cursor or 0, 10): yield step(n)
    jobs.steps("walk")(coroutine if is_async else plain)
    with fast(jobs): found = ended(jobs, jobs.start("walk"))
    assert (found.status, done, raised) == ("completed", list(range(10)), [4])


def test_a_list_is_whole_although_the_store_was_away(jobs):
    raised = []
    def items(parameters):
        for n in range(2500):
            if n == 1500 and not raised:
                raised.append(n)
                raise away()
            yield n
    jobs.each("list", items=items)(str)
    with fast(jobs): found = ended(jobs, jobs.start("list"))
    assert (found.status, found.processing.processed, found.processing.total, raised) == ("completed", 2500, 2500, [1500])


# -- clean-up, cancel, hand-over -----------------------------------------------------------------------------------------------

def test_a_program_cleans_up_only_what_it_knows(jobs, store):
    jobs.kind("train", keep_s=None)(lambda job, cursor: DONE)
    with fast(jobs): kept = ended(jobs, jobs.start("train"))
    store.rows("UPDATE wfs_job SET ended_at = 1")
    other = Jobs(store)
    other.kind("mail")(lambda job, cursor: DONE)
    other.start("mail")
    assert other.cleanup() == [] and jobs.get(kept.job_id).status == "completed"


def test_a_job_that_is_resumed_before_it_has_stopped_works_on(jobs):
    begun, go_on = threading.Event(), threading.Event()
    @jobs.each("slow", items=listed)
    def slow(job, item):
        begun.set()
        if item == "i0": until(lambda: go_on.is_set())
        if job.stopping: raise Unfinished
    with fast(jobs) as runner:
        job = jobs.start("slow", {"n": 5})
        begun.wait()
        jobs.cancel(job.job_id)
        until(lambda: runner.beat.held[0].stopping)
        jobs.resume(job.job_id)
        go_on.set()
        assert ended(jobs, job, 5).processing.processed == 5


def test_a_cancel_is_heard_while_items_are_listed(jobs):
    def items(parameters):
        for n in range(3000):
            time.sleep(0.01)
            yield n
    jobs.each("slow", items=items)(str)
    with fast(jobs):
        job = jobs.start("slow")
        until(lambda: jobs.get(job.job_id).processing.total)
        jobs.cancel(job.job_id)
        at = time.monotonic()
        assert ended(jobs, job).status == "cancelled" and time.monotonic() - at < 3


def test_orderly_ends_during_a_long_step_are_no_attempts(jobs, monkeypatch):
    ends = threading.Event()
    @jobs.kind("long")
    def long(job, cursor):
        ends.wait(20)
        return DONE
    job = jobs.start("long")
    for _ in range(4):
        runner = fast(jobs, threads=1)
        runner.start()
        until(lambda: jobs.get(job.job_id).status == "processing")
        runner.stop(timeout_s=0.05)
        assert jobs.get(job.job_id).attempts == 0
    ends.set()
    with fast(jobs): assert ended(jobs, job).status == "completed"


def test_a_listing_that_always_fails_is_given_up(jobs):
    calls = []
    def items(parameters):
        calls.append(1)
        for n in range(1500): yield n
        raise OSError("the disk is gone")
    jobs.each("list", items=items)(str)
    with fast(jobs): found = ended(jobs, jobs.start("list"))
    # An attempt that came further than the ones before is not counted.
    assert (found.status, found.message) == ("error", "OSError: the disk is gone") and 3 <= len(calls) < 10


# -- odd ends ------------------------------------------------------------------------------------------------------------------

def raising(error):
    def step(*_): raise error
    return step


def test_a_coroutine_that_was_cancelled_fails_its_item(jobs):
    @jobs.each("fetch", items=listed)
    async def fetch(item):
        if item == "i1": raise asyncio.CancelledError
    with fast(jobs): done = ended(jobs, jobs.start("fetch", {"n": 3}))
    assert (done.status, [f.reason for f in jobs.failures(done.job_id)]) == ("completed", ["CancelledError"])


@pytest.mark.parametrize("error", (KeyboardInterrupt(), SystemExit("odd"), asyncio.CancelledError(), OverflowError("too large")), ids=repr)
def test_whatever_ends_a_step_or_an_effect_is_named(jobs, error):
    @jobs.kind("effect")
    def effect(job, cursor):
        job.once("k", raising(error))
        return DONE
    jobs.kind("step")(raising(error))
    with fast(jobs):
        for kind in ("step", "effect"):
            found = ended(jobs, jobs.start(kind))
            assert (found.status, found.message.partition(":")[0], found.attempts) == ("error", type(error).__name__, 3)


def test_an_effect_through_a_second_store_of_the_file_is_named(tmp_path):
    path = tmp_path / "jobs.db"
    store, second = SQLiteSessionStore(path), SQLiteSessionStore(path, busy_timeout_s=0.05)
    jobs = Jobs(store)
    second.create_session("flow", "s1")
    @jobs.each("write", items=listed)
    def write(job, item): job.once(item, lambda: second.create_session("flow", item))
    with fast(jobs): found = ended(jobs, jobs.start("write", {"n": 3}))
    assert found.status == "error" and "another store" in found.message and found.attempts == 1
    for each in (store, second): each.close()


def test_numbers_that_no_database_takes(jobs):
    @jobs.each("score", items=lambda p: [1, 2, 3])
    def score(item): return {"score": float("nan") if item == 2 else Fraction(1, 2)}
    @jobs.kind("step")
    def step(job, cursor):
        job.progress(processed="12 of 30")
        return DONE
    with fast(jobs):
        done = ended(jobs, jobs.start("score"))
        assert (done.status, done.processing.failed, done.stats) == ("completed", 1, {"score": 1.0})
        assert "processed: must be a whole number" in ended(jobs, jobs.start("step")).message


# -- steps that are done again -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("error", (away(), OSError("odd")), ids=repr)
def test_what_is_said_twice_counts_once(jobs, error):
    raised = []
    def maybe(n):
        if n == 3 and len(raised) < 2:
            raised.append(n)
            raise error
    @jobs.kind("step")
    def step(job, cursor):
        job.count(rows=1)
        job.fail(cursor, "odd")
        maybe(cursor or 0)
        return DONE if cursor == 4 else (cursor or 0) + 1
    with fast(jobs): done = ended(jobs, jobs.start("step"))
    assert (done.status, done.stats, done.processing.failed, len(raised)) == ("completed", {"rows": 5}, 5, 2)


def test_an_item_that_is_left_unfinished_counts_once(jobs):
    calls = []
    @jobs.each("count", items=listed)
    def count(job, item):
        job.count(rows=1)
        calls.append(item)
        if len(calls) == 1: raise Unfinished
    with fast(jobs): done = ended(jobs, jobs.start("count", {"n": 3}))
    assert (done.stats, calls) == ({"rows": 3}, ["i0", "i0", "i1", "i2"])


def test_an_effect_of_a_step_that_fails_is_tried_again(jobs, store):
    tries = []
    def effect(job, n):
        tries.append(n)
        leave(store, job.job_id, n)
        if n == "3" and tries.count(n) < 3: raise RuntimeError("only sometimes")
    @jobs.steps("import")
    def rows(job, cursor):
        for n in range(cursor or 0, 6):
            job.once(str(n), lambda n=n: effect(job, str(n)))
            yield n + 1
    with fast(jobs): done = ended(jobs, jobs.start("import"))
    assert (done.status, done.processing.failed, effects(store)) == ("completed", 0, ["0", "1", "2", "3", "4", "5"])


def test_an_effect_may_give_the_job_up_and_the_slice_does_not_count(jobs, store):
    gone = []
    @jobs.each("keep", items=listed, slice_s=5)
    def keep(job, item):
        def effect():
            if gone and item == "i2": raise GiveUp("the session was deleted")
            leave(store, job.job_id, item)
        job.once(item, effect)
    gone.append(1)
    with fast(jobs):
        found = ended(jobs, jobs.start("keep", {"n": 4}))
        assert (found.status, found.message, found.processing.failed, effects(store)) == ("error", "the session was deleted", 0, [])
        gone.clear()
        jobs.resume(found.job_id)
        done = ended(jobs, found)
    assert (done.status, done.processing.processed, effects(store)) == ("completed", 4, ["i0", "i1", "i2", "i3"])


# -- what a kind leaves behind -------------------------------------------------------------------------------------------------

def test_a_task_that_cannot_be_cancelled_does_not_keep_the_thread(jobs, monkeypatch, caplog):
    monkeypatch.setattr(forms, "LEAVE_S", 0.1)
    @jobs.each("stubborn", items=listed)
    async def stubborn(item):
        async def for_ever():
            while True:
                try: await asyncio.sleep(3600)
                except asyncio.CancelledError: pass
        asyncio.create_task(for_ever())
        await asyncio.sleep(0)
    with fast(jobs, threads=1):
        for _ in range(2): assert ended(jobs, jobs.start("stubborn", {"n": 1}), 5).status == "completed"
        until(lambda: "the kind 'stubborn' do not end" in caplog.text)


@pytest.mark.parametrize("fails", (False, True))
def test_an_async_generator_is_closed_in_its_loop(jobs, caplog, fails):
    closed = []
    @jobs.steps("walk")
    async def walk(job, cursor):
        try:
            for i in range(cursor or 0, 3):
                if i == 2 and fails: raise OSError("odd")
                yield i + 1
        finally:
            await asyncio.sleep(0)
            closed.append(1)
    with fast(jobs): found = ended(jobs, jobs.start("walk"))
    assert (found.status, len(closed)) == (("error", 3) if fails else ("completed", 1)) and "a run of job" not in caplog.text


def test_an_async_generator_that_is_stopped_is_closed_in_its_loop(jobs, caplog):
    closed = []
    @jobs.steps("walk")
    async def walk(job, cursor):
        try:
            for i in range(cursor or 0, 1000):
                await asyncio.sleep(0.01)
                yield i + 1
        finally:
            await asyncio.sleep(0)
            closed.append(1)
    with fast(jobs):
        job = jobs.start("walk")
        until(lambda: jobs.get(job.job_id).status == "processing")
    assert (jobs.get(job.job_id).attempts, closed) == (0, [1]) and "a run of job" not in caplog.text


def test_an_error_that_cannot_be_carried_between_processes_says_what_it_said(jobs):
    pids = []
    jobs.each("odd", items=listed, processes=1, then=lambda job, item, pid: pids.append(pid))(raise_odd)
    with fast(jobs): done = ended(jobs, jobs.start("odd", {"n": 3}))
    assert [f.reason for f in jobs.failures(done.job_id)] == ["Odd: the real reason"] * 2 and done.status == "completed"


# -- runners that come, go and clean up ----------------------------------------------------------------------------------------

def test_jobs_that_no_runner_knew_go_on_when_one_is_back(jobs, store):
    jobs.kind("known")(lambda job, cursor: DONE)
    other = Jobs(store, lease_s=1.0)
    other.kind("train", commit=lambda job, cursor: DONE)(lambda job, cursor: DONE)
    with fast(other): second = ended(other, other.start("train"))
    first = other.start("train")
    other.commit(second.job_id)
    wanted = other.cancel(other.start("train").job_id)
    with fast(jobs, unknown_after_s=0.3):
        assert [ended(jobs, job).status for job in (first, second)] == ["interrupted"] * 2
        with fast(other, unknown_after_s=30):
            until(lambda: [other.get(job.job_id).status for job in (first, second)] == ["completed", "committed"])
    assert other.get(wanted.job_id) == wanted


def test_a_cancelled_job_of_a_kind_that_no_runner_knows_rests_as_cancelled(jobs, store):
    jobs.kind("known")(lambda job, cursor: DONE)
    job, _ = store.jobs.insert(NewJob("gone", "{}"), lambda run, job: None)
    store.rows("UPDATE wfs_job SET due_at = 1, updated_at = 1, worker = 'w', cancelling = 1")
    with fast(jobs, unknown_after_s=0.2): assert ended(jobs, job).status == "cancelled"


def test_what_was_just_handed_over_is_not_put_to_rest(jobs, store):
    job, _ = store.jobs.insert(NewJob("theirs", "{}"), lambda run, job: None)
    store.rows("UPDATE wfs_job SET due_at = 0")
    assert store.jobs.strand(60_000_000, str) == 0 and jobs.get(job.job_id).due_at == 0


def test_a_large_cleanup_keeps_nobody_waiting(jobs, store, monkeypatch):
    jobs.kind("mail", keep_s=0)(lambda job, cursor: DONE)
    begun, go_on = threading.Event(), threading.Event()
    @jobs.kind("long")
    def long(job, cursor):
        until(lambda: begun.is_set())
        time.sleep(2.5)   # longer than the lease
        return DONE
    old = [store.jobs.insert(NewJob("mail", "{}"), lambda run, job: None)[0] for _ in range(60)]
    store.rows("UPDATE wfs_job SET due_at = NULL, status = 'completed', ended_at = 1")
    job = jobs.start("long")   # clears some
    assert 50 < sum(j.kind == "mail" for j in jobs.page(limit=100).rows) < 60
    clear = jobs.store.clear
    def slow(*args, **options):
        begun.set()
        go_on.wait(10)
        return clear(*args, **options)
    monkeypatch.setattr(jobs.store, "clear", slow)
    with fast(jobs):
        found = ended(jobs, job)
        go_on.set()
        assert (found.status, found.attempts) == ("completed", 1)
        until(lambda: not jobs.many([j.job_id for j in old]))


def test_a_clock_that_was_set_back_keeps_nobody_waiting(jobs, store):
    jobs.kind("quick")(lambda job, cursor: DONE)
    waits, left, later = jobs.start("quick"), jobs.start("quick"), jobs.start("quick", run_at=datetime.now(timezone.utc) + timedelta(hours=2))
    with jobs.store.edit(left.job_id) as held: held.set(status="processing", worker="gone")
    store.rows("UPDATE wfs_job SET due_at = due_at + 3600000000, created_at = created_at + 3600000000, updated_at = updated_at + 3600000000")
    with fast(jobs, unknown_after_s=0.6):
        assert [ended(jobs, job, 8).status for job in (waits, left)] == ["completed"] * 2
        assert ended(jobs, jobs.start("quick")) and jobs.get(later.job_id).status == "starting"
