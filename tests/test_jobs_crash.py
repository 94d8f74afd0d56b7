"""Jobs whose runners are killed, frozen and stopped: real processes, real signals, on both databases.

`JOB_KILLS` is how often a runner is killed on each database; 20 in all take about two minutes.
"""

import os
import signal
import time
from collections import Counter

import pytest

from cjm_workflow_sessions.jobs.service import Jobs
from jobs_support import ITEM_S, LEASE_S, Worker, effects, ended, make_traces, touched, traced_kinds, until, workers
from store_support import lock_held, opened

KILLS = int(os.environ.get("JOB_KILLS", "2"))
SLICE = round(0.2 / ITEM_S) + 10 # Items that a slice has time for, at most


@pytest.fixture(params=("sqlite", "postgres"))
def where(request, tmp_path):
    return request.getfixturevalue("postgres").fresh_url() if request.param == "postgres" else str(tmp_path / "jobs.db")


@pytest.fixture
def store(where):
    store = opened(where)
    make_traces(store)
    yield store
    store.close()


@pytest.fixture
def trace(tmp_path): return tmp_path / "trace"


@pytest.fixture
def jobs(store, trace): return Jobs(store, traced_kinds(store, trace), lease_s=LEASE_S)


def whole(store, jobs, job, n, phases=1):
    "Assert that a job has ended with every item and every effect, once."
    done = ended(jobs, job)
    assert (done.status, done.processing.processed, done.processing.failed) == ("committed" if phases == 2 else "completed", n, 0)
    expected = [f"i{k}" for k in range(n)] + [f"ci{k}" for k in range(n)] * (phases - 1)
    assert sorted(effects(store, job.job_id)) == sorted(expected)
    return done


def test_a_runner_killed_at_forty_percent(where, store, trace, jobs):
    running, n = [Worker(where, trace, threads=1) for _ in range(2)], 500
    try:
        for _ in range(KILLS):
            job = jobs.start("trace", {"n": n})
            at = until(lambda: (found := jobs.get(job.job_id)).processing.processed >= 0.4 * n and found)
            victim = next(w for w in running if f":{w.pid}:" in at.worker)
            victim.kill()
            killed_at = time.time()
            running = [w for w in running if w is not victim]
            whole(store, jobs, job, n)
            lines = [(int(pid), float(when), item) for pid, when, job_id, item in touched(trace) if job_id == job.job_id]
            assert len(lines) - n <= SLICE and len({item for *_, item in lines}) == n
            taken_over_at = min(when for pid, when, _ in lines if pid != victim.pid)
            assert taken_over_at - killed_at < LEASE_S + 1
            running.append(Worker(where, trace, threads=1))
    finally:
        for w in running: w.kill()


def test_a_runner_killed_in_the_second_phase(where, store, trace, jobs):
    with workers(where, trace, 1) as (first,):
        job = jobs.start("trace", {"n": 300})
        ended(jobs, job)
        first.kill()
        with workers(where, trace, 1) as (second,):
            jobs.commit(job.job_id)
            until(lambda: jobs.get(job.job_id).worker)
            second.kill()
            until(lambda: jobs.get(job.job_id).status == "interrupted")
        with workers(where, trace, 1): whole(store, jobs, job, 300, phases=2)


def test_a_job_without_a_runner_shows_interrupted_and_goes_on(where, store, trace, jobs):
    with workers(where, trace, 1) as (only,):
        job = jobs.start("trace", {"n": 300})
        until(lambda: jobs.get(job.job_id).processing.processed > 50)
        only.kill()
        assert jobs.get(job.job_id).status == "processing"
        left = until(lambda: (found := jobs.get(job.job_id)).status == "interrupted" and found, LEASE_S + 1)
        assert jobs.page(statuses=["interrupted"]).rows == [left] and not left.is_running
    with workers(where, trace, 1): whole(store, jobs, job, 300)


def test_a_frozen_runner_writes_nothing_when_it_awakes(where, store, trace, jobs):
    with workers(where, trace, 2, threads=1) as both:
        job = jobs.start("trace", {"n": 500})
        at = until(lambda: (found := jobs.get(job.job_id)).processing.processed >= 100 and found)
        frozen = next(w for w in both if f":{w.pid}:" in at.worker)
        frozen.send(signal.SIGSTOP)
        try: until(lambda: (found := jobs.get(job.job_id)).worker not in (at.worker, None) and found.processing.processed > at.processing.processed)
        finally: frozen.send(signal.SIGCONT)
        done = whole(store, jobs, job, 500)
        assert len([1 for *_, job_id, _ in touched(trace) if job_id == job.job_id]) - 500 <= 2 * SLICE   # of the frozen one, and of the one that was awake
        assert jobs.get(job.job_id) == done
        again = [jobs.start("trace", {"n": 20}) for _ in range(8)]
        for each in again: whole(store, jobs, each, 20)
        assert frozen.process.is_alive()


def test_two_processes_share_jobs_without_doubling_anything(where, store, trace, jobs):
    with workers(where, trace, 2) as both:
        started = [jobs.start("trace", {"n": 25}) for _ in range(20)]
        for job in started: whole(store, jobs, job, 25)
    lines = touched(trace)
    assert Counter((job_id, item) for *_, job_id, item in lines).most_common(1)[0][1] == 1 and len(lines) == 500
    assert {int(pid) for pid, *_ in lines} == {w.pid for w in both}


def test_sigterm_hands_over(where, store, trace, jobs):
    with workers(where, trace, 2, threads=1) as both:
        job = jobs.start("trace", {"n": 500})
        at = until(lambda: (found := jobs.get(job.job_id)).processing.processed >= 100 and found)
        told = next(w for w in both if f":{w.pid}:" in at.worker)
        told.send(signal.SIGTERM)
        assert told.ours.recv() == "stopped"
        whole(store, jobs, job, 500)
    assert len(touched(trace)) == 500   # nothing was done twice
    assert jobs.get(job.job_id).attempts <= 1


@pytest.mark.parametrize("poison, spared", [("i4", 4)])
def test_a_poison_item_is_named_and_given_up(where, store, trace, jobs, poison, spared):
    job, deaths = jobs.start("trace", {"n": 10, "poison": poison, "item_s": 0.01}), 0
    while jobs.get(job.job_id).due_at is not None and deaths < 8:
        with workers(where, trace, 1, threads=1) as (w,):
            until(lambda: w.process.exitcode is not None or jobs.get(job.job_id).due_at is None)
            deaths += w.process.exitcode == 9
    found = jobs.get(job.job_id)
    assert (found.status, found.processing.processed) == ("error", spared)
    assert f"after 3 attempts at '{poison}'" in found.message
    assert deaths == 4   # the first came before anything of its slice was written: not at this item, as far as anybody could know
    assert sorted(effects(store)) == [f"i{n}" for n in range(spared)]


def test_a_file_that_is_locked_for_a_while(tmp_path, trace):
    store = opened(tmp_path / "jobs.db", patience_s=0.2)
    make_traces(store)
    jobs = Jobs(store, traced_kinds(store, trace), lease_s=LEASE_S)
    store.create_session("ingest")
    with jobs.runner(threads=1):
        job = jobs.start("trace", {"n": 200})
        until(lambda: jobs.get(job.job_id).processing.processed > 20)
        with lock_held(tmp_path / "jobs.db"): time.sleep(1.5)   # longer than the lease, and than the patience of a write
        whole(store, jobs, job, 200)
        assert len(touched(trace)) - 200 <= SLICE
    store.close()
