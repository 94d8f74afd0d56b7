"""The job that a page restores, against the rule said again in plain words, over random histories on every store."""

import random

import pytest

from cjm_workflow_sessions.jobs.service import Jobs
from cjm_workflow_sessions.stores.postgres import PostgresSessionStore
from cjm_workflow_sessions.stores.sqlite import SQLiteSessionStore

SECOND = 1_000_000
HELD, RESTING = ("starting", "processing", "committing"), ("completed", "error", "committed", "cancelled", "interrupted")


@pytest.fixture(params=("memory", "postgres"))
def jobs(request):
    store = PostgresSessionStore(request.getfixturevalue("postgres").fresh_url()) if request.param == "postgres" else SQLiteSessionStore(":memory:")
    jobs = Jobs(store)
    for kind in ("a", "b"): jobs.kind(kind)(print)
    yield jobs
    store.close()


def restored(history, now):
    "Running first, the newest of them; else one completed in the last five minutes; else the newest by start time; else none."
    running = [job for job in history if job["stored"] in HELD]
    if running: return running[-1]["id"]
    recent = [job for job in history if job["stored"] == "completed" and now - job["ended"] < 300 * SECOND]
    if recent: return max(recent, key=lambda job: job["ended"])["id"]
    return history[-1]["id"] if history else None


def a_history(rng, jobs, owner):
    "Jobs of one owner, oldest first, anywhere in their lives; a runner that holds one may be gone."
    history, now = [], jobs.store.now()
    for created in sorted(rng.sample(range(900), rng.randint(0, 7)), reverse=True):
        kind, session, is_held = rng.choice("ab"), rng.choice(("s1", "s2", None)), rng.random() < 0.25
        stored = rng.choice(HELD if is_held else RESTING)
        job = jobs.for_owner(owner).start(kind, session_id=session)
        ended = None if is_held else now - rng.choice([n for n in range(0, created + 1) if abs(n - 300) > 20]) * SECOND
        due = now + rng.choice((-60, 60)) * SECOND if is_held else None   # of a lease that has run out, or not
        jobs._host_store.rows(
            "UPDATE wfs_job SET status = ?, created_at = ?, ended_at = ?, due_at = ?, worker = ? WHERE job_id = ?",
            (stored, now - created * SECOND, ended, due, "w" if is_held and stored != "starting" else None, job.job_id))
        history.append({"id": job.job_id, "stored": stored, "ended": ended, "kind": kind, "session": session})
    return history


def test_the_rule_holds_over_random_histories(jobs):
    rng, seen = random.Random(4), set()
    for n in range(150):
        owner = f"owner {n}"
        history = a_history(rng, jobs, owner)
        mine = jobs.for_owner(owner)
        for kind in (None, "a", "b"):
            for session in (None, "s1", "s2"):
                fitting = [job for job in history if kind in (None, job["kind"]) and session in (None, job["session"])]
                found, expected = mine.active(kind, session_id=session), restored(fitting, jobs.store.now())
                assert (found and found.job_id) == expected, (n, kind, session, fitting)
                seen.add(found and found.status)
    assert seen == {None, *HELD, *RESTING}   # every way to end was met
