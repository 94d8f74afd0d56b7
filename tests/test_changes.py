"""What one process commits, those who watch in another are told: who, what, at what cost, and what happens when something breaks."""

import asyncio
import logging
import os
import signal
import threading
import time

import pytest

import manager_app
from cjm_workflow_sessions.models import SessionSummary
from cjm_workflow_sessions.services.changes import ChangeHub, hub_of
from cjm_workflow_sessions.stores.base import Changed, open_store
from cjm_workflow_sessions.utils import now_us
from changes_support import MANAGER, Stream, get, mark_of, run, served_here, sign_in
from service_support import kind, make, statements   # noqa: F401
from support import Server
from tab_support import make_app

LONG_AGO = "2020-01-01 00:00:00"


def imported(session_id, flow="ingest", owner=""): return SessionSummary(flow, session_id, None, None, LONG_AGO, LONG_AGO, 2, owner), {}


@pytest.fixture
def served(tmp_path, monkeypatch):
    "A server in a process of its own, and a service over the same file in this one."
    monkeypatch.setenv("STORE", f"sqlite:///{tmp_path}/sessions.db")
    service = manager_app.make_service()
    with Server(STORE=os.environ["STORE"]) as server:
        server.service = service
        yield server


async def first_change(stream):
    "The first may come before the hub has begun to follow: then the stream knows that something was missed, not what."
    return await stream.change() or []


async def none_comes(stream, timeout_s=1.0):
    with pytest.raises(TimeoutError): await stream.next("change", timeout_s)


# -- what is noticed -----------------------------------------------------------------------------------------------------

def test_a_feed_of_every_store_notices_every_kind_of_change(make):
    service = make()
    kept = service.create_session("Kept")
    store, feed = service.store, service.store.open_feed()
    def noticed(sessions):   # a store of cjm-workflow-state says only that something has changed
        deadline, found = time.monotonic() + 5, []
        while not found and time.monotonic() < deadline: found = feed.poll([service.flow_id])
        names = {c.session_id for c in found}
        assert names == sessions or found == [Changed()], found
        return found
    feed.poll([service.flow_id])
    new = service.create_session("New")
    noticed({new})
    service.rename_session(kept, "Renamed"); noticed({kept})
    service.update_state(kept, {"n": 1}); noticed({kept})
    store.delete_session("ingest", new); noticed({new})
    store.restore_session("ingest", new); noticed({new})
    store.delete_session("ingest", new); noticed({new})
    store.purge_trash("ingest", now_us() + 1_000_000); noticed({new})
    store.clear_state("ingest", kept); noticed({kept})
    assert feed.poll(["ingest"]) == []
    feed.close()


def test_a_late_commit_with_an_older_time_is_noticed(tmp_path):
    store = open_store(f"sqlite:///{tmp_path}/a.db")
    feed = store.open_feed()
    for name in ("slow", "fast"): store.create_session("f", name)
    feed.poll(["f"])
    with store.transaction() as run: run("UPDATE wfs_session SET updated_at = updated_at + 9 WHERE session_id = ?", ("fast",))
    assert [c.session_id for c in feed.poll(["f"])] == ["fast"]
    with store.transaction() as run: run("UPDATE wfs_session SET updated_at = updated_at + 1 WHERE session_id = ?", ("slow",))
    assert [c.session_id for c in feed.poll(["f"])] == ["slow"]


def test_a_long_list_is_followed_at_both_ends(tmp_path):
    store = open_store(f"sqlite:///{tmp_path}/a.db")
    store.insert_sessions([imported(f"s{i}", "f", "ann") for i in range(1000)])
    feed = store.open_feed(); feed.poll(["f"])
    ahead = SessionSummary("f", "ahead", None, None, LONG_AGO, "2199-01-01 00:00:00", 2, "cy")
    store.insert_sessions([(ahead, {})])
    assert feed.poll(["f"]) == [Changed("f", None, "cy")]
    store.set_session_label("f", "s5", "x")   # one that was not among the recent ones
    assert [(c.session_id, c.owner) for c in feed.poll(["f"])] == [("s5", "ann")]
    store.delete_session("f", "s5")   # another moves up among the recent ones, and is not named
    assert [c.session_id for c in feed.poll(["f"])] == ["s5"]
    store.clear_state("f", "s7")   # never in sight: whose it was is known
    assert feed.poll(["f"]) in ([Changed("f", None, "ann")], [Changed("f", "s7", "ann")])
    store.insert_sessions([imported(f"t{i}", "f", "bob") for i in range(500)])
    assert feed.poll(["f"]) == [Changed("f", None, "bob")]
    for i in range(300): store.set_session_label("f", f"s{i + 200}", "x")
    assert feed.poll(["f"]) == [Changed("f")]   # more than can be named


def test_another_process_is_told(served):
    service, store = served.service, served.service.store
    async def follow():
        stream = await Stream.open(served.url, mark_of(served.url))
        first = service.create_session("One"); assert await first_change(stream) in ([], [first])
        service.rename_session(first, "Two"); assert await stream.change() == [first]
        store.delete_session("ingest", first); assert await stream.change() == [first]
        service.restore_session(first); assert await stream.change() == [first]
        store.insert_sessions([imported("past")]); assert await stream.change() == ["past"]
        store.insert_sessions([imported(f"p{i}") for i in range(60)]); assert await stream.change() is None
        store.create_session("drafts", "elsewhere"); await none_comes(stream)
        store.clear_state("ingest", first); assert await stream.change() == [first]
    run(follow())


# -- who is told ---------------------------------------------------------------------------------------------------------

def test_an_owner_learns_nothing_of_others(tmp_path, monkeypatch):
    monkeypatch.setenv("STORE", f"sqlite:///{tmp_path}/sessions.db")
    service = manager_app.make_service()
    ann, bob = service.for_owner("ann"), service.for_owner("bob")
    async def follow(url):
        cookies = {user: sign_in(url, user) for user in ("ann", "bob")}
        streams = {user: await Stream.open(url, mark_of(url, cookie), cookie=cookie) for user, cookie in cookies.items()}
        hers = ann.create_session("Hers"); assert await first_change(streams["ann"]) in ([], [hers])
        ann.rename_session(hers, "Hers still"); assert await streams["ann"].change() == [hers]
        ann.delete_session(hers); assert await streams["ann"].change() == [hers]
        ann.restore_session(hers); assert await streams["ann"].change() == [hers]
        service.store.insert_sessions([imported(f"h{i}", owner="ann") for i in range(200)]); assert await streams["ann"].change() is None
        his = bob.create_session("His"); assert await streams["bob"].change() == [his]   # the first that he is told
        await none_comes(streams["ann"])
        stranger = await Stream.open(url)
        assert " 401 " in stranger.head.splitlines()[0]
    with Server(STORE=os.environ["STORE"], OWNERS="1") as server: run(follow(server.url))


def test_the_stream_is_private_and_keeps_nobody_signed_in(served):
    async def follow():
        cookie = sign_in(served.url, "ann")
        head = (await Stream.open(served.url, cookie=cookie)).head.lower()
        assert "content-type: text/event-stream" in head and "cache-control: no-store" in head and "x-accel-buffering: no" in head
        assert "set-cookie" not in head and "content-length" not in head
    run(follow())


# -- what it costs -------------------------------------------------------------------------------------------------------

def test_two_hundred_who_watch_cost_what_one_costs(statements, tmp_path):
    from cjm_workflow_sessions.services.management import SessionManagementService
    store = open_store(f"sqlite:///{tmp_path}/a.db")
    service = SessionManagementService(store, "ingest")
    first = service.create_session("One")
    async def follow(url):
        streams = await asyncio.gather(*(Stream.open(url) for _ in range(200)))
        await asyncio.gather(*(s.next("beat") for s in streams))
        await asyncio.sleep(1)
        statements.clear()
        await asyncio.sleep(3)
        assert 0 < len(statements) <= 15, statements
        assert [t.name for t in threading.enumerate()].count("session-changes") == 1
        assert (await asyncio.to_thread(get, url, "/"))[1]   # no stream holds a thread that others need
        service.rename_session(first, "Two")
        statements.clear()
        assert await asyncio.gather(*(s.change() for s in streams)) == [[first]] * 200
        assert len(statements) <= 10, statements
        for s in streams: s.close()
        while hub_of(store)._watches: await asyncio.sleep(0.05)
    with served_here(make_app(service), store) as url: run(follow(url))


def test_nobody_watches_and_nothing_is_asked(statements, tmp_path):
    store = open_store(f"sqlite:///{tmp_path}/a.db")
    hub = ChangeHub(store, tick_s=0.01, linger_s=0.05)
    async def come_and_go():
        with hub.watch("f") as watch:
            while not watch.checked: await asyncio.sleep(0.01)
        thread = hub._thread
        await asyncio.to_thread(thread.join, 5)
        assert not thread.is_alive()
        statements.clear()
        await asyncio.sleep(0.2)
        assert statements == []
        with hub.watch("f") as watch:   # and again
            while not watch.checked: await asyncio.sleep(0.01)
            store.create_session("f", "s")
            assert (await watch.next(5)).sessions[0][0] == "s"
    run(come_and_go())
    hub.close()


# -- what is missed ------------------------------------------------------------------------------------------------------

def test_a_page_is_told_what_it_missed_and_only_then(served):
    service = served.service
    service.store.insert_sessions([imported("old")])
    async def follow():
        mark = mark_of(served.url)
        assert mark.endswith(".1")
        quiet = await Stream.open(served.url, mark)
        await none_comes(quiet)
        service.store.delete_session("ingest", "old")
        assert await first_change(quiet) in ([], ["old"])
        assert await (await Stream.open(served.url, mark)).change() is None
        served.kill(); served.start()
        assert await (await Stream.open(served.url, mark)).change() is None   # from a hub that was not there
        seen = mark_of(served.url)
        await none_comes(await Stream.open(served.url, seen))   # a restart alone makes no page load
        served.kill()
        service.store.restore_session("ingest", "old")   # leaves no time
        served.start()
        assert await (await Stream.open(served.url, seen)).change() is None
        new = service.create_session("New")
        assert await (await Stream.open(served.url, str(now_us() - 60_000_000))).change() == [new]   # by its name
        assert await (await Stream.open(served.url, last_id=str(now_us() - 60_000_000))).change() == [new]
    run(follow())


def test_a_store_that_goes_away_and_comes_back(tmp_path, caplog):
    from cjm_workflow_sessions.services.management import SessionManagementService
    file = tmp_path / "a.db"
    store = open_store(f"sqlite:///{file}")
    service = SessionManagementService(store, "ingest")
    async def follow(url):
        stream = await Stream.open(url, mark_of(url))
        first = service.create_session("One"); assert await first_change(stream) in ([], [first])
        file.rename(tmp_path / "away.db")
        await none_comes(stream, 2.5)
        (tmp_path / "away.db").rename(file)
        assert await stream.change() is None
        service.rename_session(first, "Two"); assert await stream.change() == [first]
    with caplog.at_level(logging.WARNING), served_here(make_app(service), store) as url: run(follow(url))
    said = [r for r in caplog.records if "cannot be followed" in r.message]
    assert len(said) == 1 and said[0].exc_info in (None, False)


# -- the end -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_that_is_told_to_stop_is_not_held_by_its_streams(tmp_path, workers):
    async def open_some(url):
        streams = [await Stream.open(url) for _ in range(3 * workers)]
        for s in streams: await s.next("beat")
        return streams
    async def stop(server):
        streams = await open_some(server.url)
        told_at = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        for s in streams: assert await s.next("change", 10) is None   # each ends as an answer does
        await asyncio.to_thread(server.process.wait, 10)
        assert time.monotonic() - told_at < 5
    with Server(workers=workers, STORE=f"sqlite:///{tmp_path}/a.db") as server: run(stop(server))


def test_two_managers_over_one_store_share_a_hub(served):
    async def follow():
        drafts = await Stream.open(served.url, mark_of(served.url), manager="/drafts/sessions")
        sessions = await Stream.open(served.url, mark_of(served.url), manager=MANAGER)
        served.service.store.create_session("drafts", "d1")
        assert await first_change(drafts) in ([], ["d1"])
        await none_comes(sessions)
    run(follow())
