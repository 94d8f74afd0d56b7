"""Two servers of two processes each on one PostgreSQL: work through a load balancer while servers are killed, and lists that follow each other."""

import asyncio
from contextlib import closing

import pytest
from playwright.sync_api import expect

from cjm_workflow_sessions.stores.postgres import PostgresSessionStore
from changes_support import Stream, check_each_sees_the_other, mark_of, open_live, run
from proxy_support import RoundRobin
from store_support import FLOW, check
from support import Server

KEYS = 3   # Saved in each session
ROUNDS = 5   # Sessions that the person makes


@pytest.fixture
def url(postgres): return postgres.fresh_url()


@pytest.fixture
def machines(url):
    with Server("two_machines_app:make_app", workers=2, STORE=url) as one, Server("two_machines_app:make_app", workers=2, STORE=url) as other:
        yield one, other


def kill(server, proxy):
    "Pull the plug: pages and streams under way are cut off. A change that was sent and not answered has no honest end, so none is under way."
    with proxy.without_changes(server.port): server.kill()


def make_and_rename(page, name):
    page.locator('[data-list]').wait_for()
    page.get_by_role("button", name="New session").first.click()
    expect(page.locator("#wsm-alert-area .alert").last).to_contain_text("Created")
    page.locator("[data-session]").first.locator('[data-act="rename"]').click()
    page.locator("dialog[open] input[name=label]").fill(name)
    page.keyboard.press("Enter")
    expect(page.locator("#wsm-alert-area .alert").last).to_contain_text(f"Renamed to “{name}”")


def resume(page, name):
    row = page.locator("[data-session]", has_text=name)
    session_id = row.get_attribute("data-session")
    row.locator(".wsm-resume").click()
    page.wait_for_url("**/work")
    expect(page.locator("#session")).to_have_text(f"session {session_id}")
    return session_id


def work(page, n):
    for i in range(n):
        before = int(page.locator("#saved").inner_text().split()[1])
        page.locator("input[name=key]").fill(f"key {i}")
        page.get_by_role("button", name="Save").click()
        expect(page.locator("#saved")).to_have_text(f"saved {before + 1} times")
        expect(page.locator("#keys")).to_have_text(f"{i + 1} keys")


def test_nothing_is_lost_while_servers_are_killed_and_come_back(machines, url, visitor):
    one, other = machines
    with RoundRobin([one.port, other.port]) as proxy:
        page, made, bad = visitor().new_page(), {}, []
        page.on("response", lambda r: r.status >= 500 and bad.append((r.status, r.url)))
        page.on("requestfailed", lambda r: r.method == "POST" and bad.append((r.failure, r.url)))
        page.goto(f"{proxy.url}/manage/sessions")
        incidents = {   # (round, moment) -> what happens before it
            (1, "resume"): lambda: kill(one, proxy),
            (2, "work"): one.start,
            (3, "rename"): lambda: kill(other, proxy),
            (3, "work"): other.start,
            (4, "resume"): lambda: kill(one, proxy)}
        for number in range(ROUNDS):
            def moment(name): incidents.get((number, name), lambda: None)()
            name = f"Trip {number}"
            moment("rename")
            make_and_rename(page, name)
            moment("resume")
            made[name] = resume(page, name)
            moment("work")
            work(page, KEYS)
            page.get_by_role("link", name="All sessions").click()
            page.wait_for_url("**/manage/sessions*")
        expect(page.locator("[data-session]")).to_have_count(ROUNDS)
        assert [row.get_attribute("data-session") for row in page.locator("[data-session]").all()] == list(made.values())[::-1]
        assert not bad and len(set(made.values())) == ROUNDS
        page.goto(f"{proxy.url}/work")
        expect(page.locator("#saved")).to_have_text(f"saved {ROUNDS * KEYS} times")
        assert min(proxy.served.values()) > 10   # both had their share
    with closing(PostgresSessionStore(url)) as store:
        assert {s.label: s.session_id for s in store.list_sessions(FLOW)} == made
        for session_id in made.values(): assert store.get_state(FLOW, session_id) == {f"key {i}": f"value of key {i}" for i in range(KEYS)}
        assert store.rows("SELECT count(*) FROM wfs_http_session") == [(1,)]
    check(url)


def test_a_rename_on_one_machine_appears_on_the_other_within_two_seconds(machines, url, visitor):
    with closing(PostgresSessionStore(url)) as store: session_id = store.create_session(FLOW, label="First")
    pages = [open_live(visitor(), server.url) for server in machines for _ in range(2)]
    for other in pages[1:]: check_each_sees_the_other(pages[0], other, session_id)


def test_two_hundred_browsers_cost_the_database_next_to_nothing(postgres, url):
    with Server("two_machines_app:make_app", STORE=url) as server, closing(PostgresSessionStore(url)) as store:
        async def watch():
            mark = mark_of(server.url)
            streams = [await Stream.open(server.url, mark) for _ in range(200)]
            for stream in streams: await stream.next("beat")
            await asyncio.sleep(1)
            before = await asyncio.to_thread(postgres.statements)
            await asyncio.sleep(4)
            asked = await asyncio.to_thread(postgres.statements) - before
            created = await asyncio.to_thread(store.create_session, FLOW)
            assert [await stream.change() for stream in streams] == [[created]] * 200
            for stream in streams: stream.close()
            return asked
        assert run(watch()) <= 5 * 4
