"""A page that follows what others do, in a real browser: the change comes, and what the person is doing stays."""

import os
import re

import pytest
from playwright.sync_api import expect

import manager_app
from changes_support import MANAGER, check_each_sees_the_other, label_of, open_live, rename
from support import Server

SHOW = """hidden => {
    Object.defineProperty(document, 'hidden', {configurable: true, get: () => hidden});
    document.dispatchEvent(new Event('visibilitychange'));
}"""


@pytest.fixture
def store_url(tmp_path, monkeypatch):
    monkeypatch.setenv("STORE", f"sqlite:///{tmp_path}/sessions.db")
    return os.environ["STORE"]


@pytest.fixture
def served(store_url):
    service = manager_app.make_service()
    with Server(STORE=store_url) as server:
        server.service = service
        yield server


def fill(service, n): return [service.create_session(f"Session {i:03}", state={"n": i}) for i in range(n)]
def rows(page): return page.locator("[data-session]")
def cursor(page): return page.locator('[role="row"][aria-selected="true"]')
def footer(page): return page.locator("#wsm_sess-footer")


def settled(page):
    "Wait until nothing more is asked: the sessions are so young that the page may have been told of them."
    page.wait_for_timeout(1500)
    page.asked = []
    page.on("request", lambda r: page.asked.append(r.url.split("?")[0].removeprefix("http://").partition("/")[2]))
    return page


def test_a_rename_in_one_browser_appears_in_another_within_two_seconds(store_url, visitor):
    ids = fill(manager_app.make_service(), 5)
    with Server(workers=2, STORE=store_url) as server:
        pages = [open_live(visitor(), server.url) for _ in range(4)]   # enough for both workers
        for other in pages[1:]: check_each_sees_the_other(pages[0], other, ids[2])
        pages[0].keyboard.press("n")
        for page in pages: expect(page.locator("#wsm-session-count")).to_have_text("6 sessions", timeout=2000)
        expect(pages[3].locator('[role="grid"]')).to_have_attribute("aria-rowcount", "7")
        served = manager_app.make_service()
        served.delete_session(ids[0])
        for page in pages: expect(page.locator(f'[data-session="{ids[0]}"]')).to_have_count(0, timeout=2000)
        served.restore_session(ids[0])
        for page in pages: expect(page.locator(f'[data-session="{ids[0]}"]')).to_have_count(1, timeout=2000)


def test_scroll_and_cursor_stay(served, visitor):
    ids = fill(served.service, 100)
    page = settled(open_live(visitor(), served.url))
    for key in ("PageDown", "PageDown", "ArrowUp", "ArrowUp"):
        with page.expect_response(lambda r: "/vc/move" in r.url): page.keyboard.press(key)
    page.wait_for_timeout(100)
    shown, mine = footer(page).inner_text(), cursor(page).get_attribute("data-session")
    top = rows(page).first.get_attribute("data-session")
    served.service.rename_session(ids[0], "Comes first now")
    with page.expect_response(lambda r: "/vc/refresh" in r.url): pass
    page.wait_for_timeout(100)
    assert footer(page).inner_text() == shown
    assert rows(page).first.get_attribute("data-session") == top and cursor(page).get_attribute("data-session") == mine
    served.service.rename_session(mine, "Mine")   # it goes to the top, out of sight: the cursor stays where it was
    place = cursor(page).get_attribute("aria-rowindex")
    with page.expect_response(lambda r: "/vc/refresh" in r.url): pass
    page.wait_for_timeout(100)
    assert cursor(page).get_attribute("aria-rowindex") == place and cursor(page).get_attribute("data-session") != mine


def test_the_cursor_goes_with_its_session(served, visitor):
    ids = fill(served.service, 6)
    page = settled(open_live(visitor(), served.url))
    with page.expect_response(lambda r: "/vc/move" in r.url): page.keyboard.press("ArrowDown")
    expect(cursor(page)).to_have_attribute("data-session", ids[4])
    served.service.rename_session(ids[0], "Comes first now")
    expect(label_of(page, ids[0])).to_have_text("Comes first now", timeout=2000)
    expect(cursor(page)).to_have_attribute("data-session", ids[4])
    expect(cursor(page)).to_have_attribute("aria-rowindex", "4")
    with page.expect_response(lambda r: "/vc/move" in r.url): page.keyboard.press("ArrowDown")
    expect(cursor(page)).to_have_attribute("data-session", ids[3])


def test_focus_dialogs_and_typing_stay(served, visitor):
    ids = fill(served.service, 6)
    page = settled(open_live(visitor(), served.url))
    def change(n):
        served.service.rename_session(ids[0], f"Elsewhere {n}")
        expect(label_of(page, ids[0])).to_have_text(f"Elsewhere {n}", timeout=2000)
    for n, control in enumerate(("Resume", "Rename", "Delete")):
        button = page.locator(f'[data-session="{ids[3]}"]').get_by_role("button", name=control)
        button.focus()
        change(n)
        expect(button).to_be_focused()
    page.locator('[role="grid"]').focus()
    change(4)
    expect(page.locator('[role="grid"]')).to_be_focused()
    page.locator(f'[data-session="{ids[3]}"]').get_by_role("button", name="Rename").click()
    field = page.get_by_label("Name", exact=True)
    field.fill("half a na")
    change(5)
    expect(field).to_be_focused()
    page.keyboard.type("me")
    page.keyboard.press("Enter")
    expect(label_of(page, ids[3])).to_have_text("half a name")
    page.get_by_role("searchbox").fill("elsewhere")
    expect(rows(page)).to_have_count(1)
    change(6)
    expect(page.get_by_role("searchbox")).to_be_focused()
    assert page.get_by_role("searchbox").input_value() == "elsewhere"
    served.service.rename_session(ids[0], "Found no more")
    expect(page.get_by_text("No session is named like this")).to_be_visible(timeout=2000)
    served.service.rename_session(ids[1], "Elsewhere too")
    expect(rows(page)).to_have_count(1, timeout=2000)


def test_a_change_of_ones_own_is_asked_for_once(served, visitor):
    ids = fill(served.service, 5)
    page = settled(open_live(visitor(), served.url))
    rename(page, ids[2], "Mine")
    page.keyboard.press("n")
    expect(rows(page)).to_have_count(6)
    page.wait_for_timeout(1500)
    assert page.asked == ["manage/sessions/rename_session", "manage/sessions/create_session"]


def test_many_changes_are_one_request_a_second(served, visitor):
    ids = fill(served.service, 5)
    page = settled(open_live(visitor(), served.url))
    for n in range(60):
        served.service.update_state(ids[n % 5], {"n": n})
        page.wait_for_timeout(50)
    page.wait_for_timeout(1500)
    assert 2 <= len(page.asked) <= 7 and set(page.asked) == {"manage/sessions/vc/refresh"}
    expect(rows(page).first).to_contain_text("59 files")


def test_a_page_out_of_sight_holds_no_connection_and_is_told_when_it_is_back(served, visitor):
    ids = fill(served.service, 5)
    page = settled(open_live(visitor(), served.url))
    page.evaluate(SHOW, True)
    expect(page.locator("[data-live]")).to_have_attribute("data-live", "off")
    served.service.rename_session(ids[0], "Meanwhile")
    page.wait_for_timeout(1500)
    assert page.asked == [] and label_of(page, ids[0]).inner_text() == "Session 000"
    page.evaluate(SHOW, False)
    expect(label_of(page, ids[0])).to_have_text("Meanwhile", timeout=2000)
    served.service.delete_session(ids[1])
    expect(rows(page)).to_have_count(4, timeout=2000)
    page.wait_for_timeout(3000)   # until what has happened is older than any doubt
    page.evaluate(SHOW, True)
    page.wait_for_timeout(6000)   # the server has nobody left who watches
    page.asked.clear()
    page.evaluate(SHOW, False)
    expect(page.locator("[data-live]")).to_have_attribute("data-live", "on")
    page.wait_for_timeout(1500)
    assert page.asked == ["manage/sessions/events"]   # nothing has happened
    page.evaluate(SHOW, True)
    served.service.restore_session(ids[1])   # leaves no time
    page.evaluate(SHOW, False)
    expect(rows(page)).to_have_count(5, timeout=2000)


def test_a_server_that_starts_again_is_found_again(served, visitor):
    ids = fill(served.service, 5)
    page = settled(open_live(visitor(), served.url))
    page.wait_for_timeout(1500)
    served.kill()
    expect(page.locator("[data-live]")).to_have_attribute("data-live", "off")
    served.start()
    expect(page.locator("[data-live]")).to_have_attribute("data-live", "on", timeout=15_000)
    page.wait_for_timeout(1000)
    assert "manage/sessions/vc/refresh" not in page.asked   # nothing has happened meanwhile
    served.service.rename_session(ids[1], "Afterwards")
    expect(label_of(page, ids[1])).to_have_text("Afterwards", timeout=2000)
    expect(page.locator("#wsm-alert-area .alert")).to_have_count(0)


def test_where_no_stream_gets_through_the_page_asks(served, visitor):
    ids = fill(served.service, 5)
    context = visitor()
    context.route(re.compile("/events"), lambda route: route.fulfill(status=502, body="bad gateway"))
    page = context.new_page()
    page.goto(f"{served.url}{MANAGER}")
    expect(page.locator("[data-live]")).to_have_attribute("data-live", "polling", timeout=15_000)
    served.service.rename_session(ids[1], "Seen by asking")
    expect(label_of(page, ids[1])).to_have_text("Seen by asking", timeout=15_000)
    served.kill()   # what the page asks by itself fails without a word
    page.wait_for_timeout(12_000)
    expect(page.locator("#wsm-alert-area .alert")).to_have_count(0)
    context.unroute_all()
    served.start()
    expect(page.locator("[data-live]")).to_have_attribute("data-live", "on", timeout=30_000)   # the server is back: perhaps the stream is, too
    page.trouble.clear()   # the browser itself reports the failed requests


def test_who_has_signed_out_is_not_told_every_second(store_url, visitor):
    service = manager_app.make_service().for_owner("ann")
    ids = fill(service, 3)
    with Server(STORE=store_url, OWNERS="1") as server:
        context = visitor()
        page = context.new_page()
        page.goto(f"{server.url}/login?user=ann")
        expect(page.locator('[data-live="on"]')).to_be_visible()
        settled(page)
        context.clear_cookies()
        service.rename_session(ids[0], "Not for a stranger")
        expect(page.locator("[data-live]")).to_have_attribute("data-live", "off", timeout=4000)
        assert label_of(page, ids[0]).inner_text() == "Session 000"
        expect(page.locator("#wsm-alert-area .alert")).to_have_count(0)


def test_two_managers_on_one_page_follow_each_its_own(served, visitor):
    [first] = fill(served.service, 1)
    page = visitor().new_page()
    page.goto(f"{served.url}/both")
    expect(page.locator('[data-live="on"]')).to_have_count(2)
    settled(page)
    served.service.store.create_session("drafts", "d1", "A draft")
    expect(label_of(page, "d1")).to_contain_text("A draft", timeout=2000)
    served.service.rename_session(first, "A session")
    expect(label_of(page, first)).to_have_text("A session", timeout=2000)
    asked = [path for path in page.asked if path.endswith("/refresh")]
    assert sorted(asked) == ["drafts/sessions/vc/refresh", "manage/sessions/vc/refresh"]


def test_a_click_is_not_torn_apart(served, visitor):
    ids = fill(served.service, 6)
    page = settled(open_live(visitor(), served.url))
    box = page.locator(f'[data-session="{ids[3]}"]').get_by_role("button", name="Rename").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    served.service.rename_session(ids[0], "While pressing")
    page.wait_for_timeout(1500)
    assert page.asked == []
    page.mouse.up()
    expect(page.get_by_label("Name", exact=True)).to_have_value("Session 003")
    expect(label_of(page, ids[0])).to_have_text("While pressing", timeout=2000)
