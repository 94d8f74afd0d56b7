"""Faults that jobs once had: each test failed before it was mended."""

import threading
import time
from dataclasses import replace

import pytest

from cjm_workflow_sessions.errors import StoreUnavailable
from cjm_workflow_sessions.jobs import work as work_module
from cjm_workflow_sessions.jobs.forms import DONE, Unfinished
from cjm_workflow_sessions.jobs.service import Jobs
from cjm_workflow_sessions.models import JobFailure
from cjm_workflow_sessions.stores.job_port import Allowance, Checkpoint, JobLost, NewJob, Once
from jobs_support import effects, ended, fast, jobs, leave, listed, short_pauses, store, until   # noqa: F401


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
    assert (found.status, found.message) == ("error", "OSError: the disk is gone") and 3 <= len(calls) <= 5
