"""The hub of jobs on PostgreSQL: what 200 watchers cost and how soon they are told, and that it goes on after a restart of the server."""

import asyncio
import logging
import threading
import time

import pytest
from fasthtml.common import FastHTML

import job_app
from cjm_workflow_sessions.jobs.watching import job_hub_of
from cjm_workflow_sessions.routes.jobs import init_job_router
from cjm_workflow_sessions.stores.postgres import PostgresSessionStore
from changes_support import run
from job_support import API, JobStream, ask, jobs_served_here
from postgres_support import throwaway
from service_support import statements   # noqa: F401

WATCHERS = 200
CALM_S = 4


@pytest.fixture(scope="module")
def server():
    "A PostgreSQL server that these tests may stop, and whose statements are all theirs."
    with throwaway() as cluster: yield cluster


@pytest.fixture
def jobs(server, statements):   # noqa: F811
    store = PostgresSessionStore(server.fresh_url())
    yield job_app.make_jobs(store)
    store.close()


@pytest.fixture
def url(jobs):
    "An app of this process that runs no jobs; both of its routers share the hub."
    app = FastHTML(secret_key="test")
    for router in (init_job_router(jobs, API, "file", kind="ingest"), init_job_router(jobs, "/manager/jobs")): router.to_app(app)
    with jobs_served_here(app, jobs._host_store, jobs) as url: yield url


def put(jobs, job_id, **columns):
    with jobs.store.edit(job_id) as held: held.set(**columns)


async def watch(url, job_id, n):
    paths = [f"{API}/events/{job_id}", f"/manager/jobs/events?id={job_id}"]
    streams = await asyncio.gather(*(JobStream.open(url, paths[i % 2]) for i in range(n)))
    await asyncio.gather(*(s.next("progress") for s in streams))
    return streams


async def all_told(streams, timeout_s=10):
    "What each stream says next: how many are done."
    told = await asyncio.gather(*(s.next("progress", timeout_s) for s in streams))
    return {data.get("processed_files", data.get("processed_items")) for _, _, data in told}


def test_two_hundred_who_watch_cost_what_one_costs(server, jobs, url, statements):   # noqa: F811
    job_id = jobs.start("ingest", {"max_files": 1}).job_id
    async def follow():
        streams = await watch(url, job_id, WATCHERS)
        await asyncio.sleep(1)
        statements.clear()
        before = server.statements()
        await asyncio.sleep(CALM_S)
        asked, ours = server.statements() - before, [s for s in statements if "pg_stat_statements" not in str(s)]
        assert 0 < asked <= 5 * CALM_S and 0 < len(ours) <= 5 * CALM_S, (asked, ours)
        assert [t.name for t in threading.enumerate()].count("job-progress") == 1
        assert (await asyncio.to_thread(ask, url, "GET", f"{API}/active-session"))[0] == 200   # no stream holds a thread that others need
        waits = []
        for n in range(5):
            began = time.monotonic()
            await asyncio.to_thread(put, jobs, job_id, processed=n + 1, total=9)
            assert await all_told(streams) == {n + 1}
            waits.append(time.monotonic() - began)
        assert max(waits) < 0.5, waits
        for s in streams: s.close()
        while job_hub_of(jobs)._watches: await asyncio.sleep(0.05)
    run(follow())


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_it_goes_on_when_the_database_was_restarted(server, jobs, url, caplog, mode):
    job_id = jobs.start("ingest", {"max_files": 1}).job_id
    async def follow():
        streams = await watch(url, job_id, 20)
        await asyncio.to_thread(server.stop, mode)
        await asyncio.sleep(2.5)   # the hub has asked, and nobody was there
        for s in streams:
            with pytest.raises(TimeoutError): await s.next("progress", 0.01)
        await asyncio.to_thread(server.start)
        await asyncio.to_thread(put, jobs, job_id, processed=7, total=9)
        began = time.monotonic()
        assert await all_told(streams) == {7}   # on the same streams
        assert time.monotonic() - began < 4
        await asyncio.to_thread(put, jobs, job_id, processed=8)
        assert await all_told(streams, 1) == {8}   # and as fast as before
        for s in streams: s.close()
    try:
        with caplog.at_level(logging.WARNING): run(follow())
    finally:
        if not server.answers(): server.start()
    said = [r for r in caplog.records if "cannot be watched" in r.message]
    assert len(said) == 1 and said[0].exc_info in (None, False)   # once, not at every attempt
