"""A job that is started for a session is seen on every page that shows the session, wherever it was started: a page of another tab, another process, another machine."""

import asyncio
import re
import time

import pytest
from fasthtml.common import FastHTML
from playwright.sync_api import expect

import job_app
from cjm_workflow_sessions.routes.init import init_session_manager_routers
from cjm_workflow_sessions.services.changes import hub_of
from cjm_workflow_sessions.services.management import SessionManagementService
from cjm_workflow_sessions.stores.base import open_store
from changes_support import MANAGER, Stream, mark_of, open_live, run, served_here, sign_in
from service_support import statements   # noqa: F401
from support import Server
from test_changes import none_comes

WITHIN_S = 2
LOOKED_S = 1.2 # By then a hub that somebody has come to has looked at the store


@pytest.fixture(params=("sqlite", "postgres"))
def url(request, tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path}/jobs.db" if request.param == "sqlite" else request.getfixturevalue("postgres").fresh_url()
    monkeypatch.setenv("STORE", url)
    return url


class Elsewhere:
    "Another process's view of the store: sessions and jobs of the flow."
    def __init__(self, url):
        self.store = open_store(url)
        self.sessions, self.jobs = SessionManagementService(self.store, "ingest"), job_app.make_jobs(self.store)

    def start(self, session_id, owner=None, flow="ingest", **parameters):
        jobs = self.jobs if owner is None else self.jobs.for_owner(owner)
        return jobs.start("ingest", job_app.check(parameters), flow_id=flow, session_id=session_id)


@pytest.fixture
def elsewhere(url, statements):   # noqa: F811
    elsewhere = Elsewhere(url)
    yield elsewhere
    elsewhere.store.close()


# -- the stream ------------------------------------------------------------------------------------------------------------

def test_those_who_watch_are_told_and_the_session_stays_as_it_was(elsewhere):
    sessions = [elsewhere.sessions.create_session(f"S{i}", current_step="read") for i in range(3)]
    before = elsewhere.sessions.list_sessions()
    async def follow(url):
        stream = await Stream.open(url)
        await stream.next("beat")
        await asyncio.sleep(LOOKED_S)
        for session_id in sessions[:2]:
            began = time.monotonic()
            elsewhere.start(session_id)
            assert await stream.change() == [session_id] and time.monotonic() - began < WITHIN_S
        elsewhere.start(None); elsewhere.start(sessions[2], flow="drafts"); elsewhere.start(sessions[2], flow=None)
        await none_comes(stream)   # of another flow, or of no session
    with Server("job_app:make_app", RUNNER="no") as server: run(follow(server.url))
    assert elsewhere.sessions.list_sessions() == before


def test_only_the_owner_is_told(elsewhere):
    hers = elsewhere.sessions.for_owner("ann").create_session("Hers", current_step="read")
    async def follow(url):
        streams = {user: await Stream.open(url, cookie=sign_in(url, user)) for user in ("ann", "bob")}
        for stream in streams.values(): await stream.next("beat")
        await asyncio.sleep(LOOKED_S)
        elsewhere.start(hers, owner="ann")
        assert await streams["ann"].change() == [hers]
        await none_comes(streams["bob"])
    with Server("job_app:make_app", RUNNER="no", OWNERS="1") as server: run(follow(server.url))


def test_a_page_that_was_away_is_told_what_was_started_meanwhile(elsewhere):
    sessions = [elsewhere.sessions.create_session(f"S{i}", current_step="read") for i in range(2)]
    with Server("job_app:make_app", RUNNER="no") as server:
        time.sleep(2.1)   # older than the margin of a mark
        mark = mark_of(server.url)
        async def nothing(): await none_comes(await Stream.open(server.url, mark))
        async def told(): return await (await Stream.open(server.url, mark)).change()
        run(nothing())
        server.kill()
        elsewhere.start(sessions[0])
        server.start()
        assert run(told()) == [sessions[0]]
        server.kill()
        for _ in range(60): elsewhere.start(sessions[1])
        server.start()
        assert run(told()) is None   # too many to be named


def test_two_hundred_who_watch_cost_what_one_costs(statements, elsewhere, url):   # noqa: F811
    session_id, manager = elsewhere.sessions.create_session("S", current_step="read"), init_session_manager_routers(elsewhere.sessions, "/work", jobs=elsewhere.jobs)
    app = FastHTML(secret_key="test")
    for router in manager.routers: router.to_app(app)
    async def follow(url):
        streams = await asyncio.gather(*(Stream.open(url) for _ in range(200)))
        await asyncio.gather(*(s.next("beat") for s in streams))
        await asyncio.sleep(LOOKED_S)
        statements.clear()
        await asyncio.to_thread(elsewhere.start, session_id)
        assert await asyncio.gather(*(s.change() for s in streams)) == [[session_id]] * 200
        assert len(statements) <= 20, statements   # most of them start the job
        for s in streams: s.close()
        while hub_of(elsewhere.store)._watches: await asyncio.sleep(0.05)
    with served_here(app, elsewhere.store) as served: run(follow(served))


# -- the page --------------------------------------------------------------------------------------------------------------

def test_the_row_of_an_open_page_shows_a_job_of_another_process(elsewhere, visitor):
    sessions = [elsewhere.sessions.create_session(f"S{i}", current_step="read") for i in range(4)]
    with Server("job_app:make_app", RUNNER="yes") as server:
        page = open_live(visitor(), server.url)
        page.evaluate("() => { window.same = true }")
        page.wait_for_timeout(1000 * LOOKED_S)
        def row(n): return page.locator(f'[data-session="{sessions[n]}"]')
        order = page.locator("[data-session]").evaluate_all("rows => rows.map(r => r.dataset.session)")
        assert page.locator("[data-job]").count() == 0
        for n in (0, 2):   # the oldest, and one in the middle
            began = time.monotonic()
            job = elsewhere.start(sessions[n], max_files=150, pace_ms=15)
            expect(row(n).locator(f'[data-job="{job.job_id}"]')).to_be_visible(timeout=1000 * WITHIN_S)
            assert time.monotonic() - began < WITHIN_S
        expect(row(0).locator('[data-slot="brief"]')).to_have_text(re.compile(r"^[1-9]\d* %$"), timeout=5000)   # and it is followed
        expect(row(0).locator('[data-slot="brief"]')).to_have_text("Waits for you", timeout=15000)
        again = elsewhere.start(sessions[0], max_files=150, pace_ms=15)
        expect(row(0).locator(f'[data-job="{again.job_id}"]')).to_be_visible(timeout=1000 * WITHIN_S)   # the newest takes its place
        assert page.locator("[data-session]").evaluate_all("rows => rows.map(r => r.dataset.session)") == order
        assert page.evaluate("() => window.same === true")


def test_a_job_that_is_started_in_one_tab_is_seen_in_another(elsewhere, visitor):
    with Server("job_app:make_app", RUNNER="yes") as server:
        context = visitor()
        session_id = elsewhere.sessions.create_session("Mine", current_step="read")
        manager, work = open_live(context, server.url), context.new_page()
        manager.wait_for_timeout(1000 * LOOKED_S)
        manager.locator(f'[data-session="{session_id}"]').get_by_role("button", name="Resume").click()
        work.goto(f"{server.url}/ingest-v2?job=new")
        manager.goto(f"{server.url}{MANAGER}")
        expect(manager.locator('[data-live="on"]').first).to_be_visible()
        manager.wait_for_timeout(1000 * LOOKED_S)
        work.get_by_role("button", name="Start", exact=True).click()
        expect(manager.locator(f'[data-session="{session_id}"] [data-job]')).to_be_visible(timeout=1000 * WITHIN_S + 500)   # and half a second for the click
