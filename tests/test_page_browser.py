"""The manager page in a real browser, under `script-src 'self'`: each test is something a person does."""

import os
import re
from datetime import datetime, timedelta, timezone

import pytest
from playwright.sync_api import expect

import manager_app
from cjm_workflow_sessions.utils import format_relative_time
from support import PHONE, Server, axe

HOSTILE = [
    "<img src=x onerror=\"alert(1)\">",
    "\\'); alert(1); //",
    "'); alert(1); ('",
    "ends with \\",
    "two\nlines",
    "&lt;b&gt;",
    "\u202eright to left",
    "🎉 party",
    "\"quoted\" 'both'",
    "</script><script>alert(1)</script>",
    "${alert(1)}",
    "x" * 900]

SET_TIME = """moment => {
    const shown = document.querySelector('time[data-ago]');
    shown.dateTime = moment;
    shown.textContent = '?';
    document.dispatchEvent(new Event('htmx:afterSettle'));
}"""


@pytest.fixture
def served(tmp_path, monkeypatch):
    "A server over a store of its own, and the service over the same store."
    monkeypatch.setenv("STORE", f"sqlite:///{tmp_path}/sessions.db")
    service = manager_app.make_service()
    with Server(STORE=os.environ["STORE"]) as server:
        server.service = service
        server.page = f"{server.url}/manage/sessions"
        yield server


def fill(service, n, label="Session {:03}"):
    steps = ("pick", "process", "review")
    return [service.create_session(label.format(i), state={"n": i}, current_step=steps[i % 3]) for i in range(n)]


def open_manager(context, url):
    page = context.new_page()
    # At no size of these tests do the 20 rows of the first render fit
    with page.expect_response(lambda r: "/vc/update_viewport" in r.url): page.goto(url)
    page.wait_for_timeout(150)
    return page


def cursor(page): return page.locator('[role="row"][aria-selected="true"]')
def rows(page): return page.locator("[data-session]")
def labels(page): return [link.inner_text() for link in rows(page).locator('[role="gridcell"]:first-child a').all()]
def place(page): return int(cursor(page).get_attribute("aria-rowindex")) - 2
def dialog(page): return page.locator("dialog[open]")
def message(page): return page.locator("#wsm-alert-area .alert").last


def press(page, *keys):
    for key in keys:
        with page.expect_response(lambda r: "/vc/move" in r.url): page.keyboard.press(key)
    page.wait_for_timeout(60)


def test_settles_with_one_more_request_and_moves_by_keys(served, visitor):
    fill(served.service, 100)
    context = visitor()
    seen = []
    context.on("request", lambda r: seen.append(r.url))
    page = open_manager(context, served.page)
    page.wait_for_timeout(400)
    seen = [url for url in seen if "/vc/refresh" not in url]   # one, because the sessions are younger than two seconds
    assert len(seen) == 5, seen   # page, css, js, the stream of changes, the number of rows that fit
    shown = rows(page).count()
    assert 8 <= shown <= 20 and place(page) == 0
    press(page, "ArrowDown", "ArrowDown", "ArrowUp")
    assert place(page) == 1
    press(page, "PageDown")
    assert place(page) == 2 * shown - 2
    press(page, "End")
    assert (place(page), labels(page)[-1]) == (99, "Session 000")
    press(page, "Home")
    assert (place(page), labels(page)[0]) == (0, "Session 099")
    assert page.locator('[role="grid"]').get_attribute("aria-activedescendant") == cursor(page).get_attribute("id")


def test_everything_by_keyboard(served, visitor):
    ids = fill(served.service, 5)
    page = open_manager(visitor(), served.page)
    press(page, "ArrowDown")
    page.keyboard.press("F2")
    field = page.get_by_label("Name", exact=True)
    expect(field).to_be_focused()
    assert field.input_value() == "Session 003"
    page.keyboard.type("Renamed by key")
    page.keyboard.press("ArrowDown")   # a key in a dialog stays in it
    page.keyboard.press("Enter")
    expect(message(page)).to_contain_text("Renamed to “Renamed by key”")
    expect(dialog(page)).to_have_count(0)
    expect(page.locator('[role="grid"]')).to_be_focused()
    assert served.service.get_session(ids[3]).resolved_label == "Renamed by key"
    assert labels(page)[0] == "Renamed by key" and place(page) == 1

    page.keyboard.press("Delete")
    expect(dialog(page).get_by_role("button", name="Cancel")).to_be_focused()
    expect(dialog(page)).to_contain_text("Session 004")
    page.keyboard.press("Tab"); page.keyboard.press("Enter")
    expect(message(page)).to_contain_text("Deleted “Session 004”")
    expect(page.locator("#wsm-session-count")).to_have_text("4 sessions")
    message(page).get_by_role("button", name="Undo").press("Enter")
    expect(page.locator("#wsm-session-count")).to_have_text("5 sessions")

    page.keyboard.press("n")
    expect(message(page)).to_contain_text("Created")
    expect(page.locator("#wsm-session-count")).to_have_text("6 sessions")
    page.keyboard.press("?")
    expect(dialog(page)).to_contain_text("Keyboard shortcuts")
    page.keyboard.press("n"); page.keyboard.press("Escape")   # n does nothing behind a dialog
    expect(page.locator("#wsm-session-count")).to_have_text("6 sessions")
    page.keyboard.press("/")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.type("SESSION 002")
    expect(rows(page)).to_have_count(1)
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    page.wait_for_url("**/work")
    assert page.inner_text("body") == f"working on {ids[2]}"


def test_buttons_work_by_keyboard_and_give_focus_back(served, visitor):
    fill(served.service, 3)
    page = open_manager(visitor(), served.page)
    page.get_by_role("button", name="New session").press("Enter")
    expect(page.locator("#wsm-session-count")).to_have_text("4 sessions")
    button = rows(page).nth(2).get_by_role("button", name="Rename")
    button.press("Enter")
    page.keyboard.press("Escape")
    expect(button).to_be_focused()
    button.press("Space")
    dialog(page).get_by_role("button", name="Cancel").press("Enter")
    expect(button).to_be_focused()


def test_held_key_on_a_slow_link_loses_no_step(served, visitor):
    fill(served.service, 100)
    context = visitor()
    page = open_manager(context, served.page)
    slow = context.new_cdp_session(page)
    slow.send("Network.enable")
    link = {"offline": False, "latency": 120, "downloadThroughput": -1, "uploadThroughput": -1}
    slow.send("Network.emulateNetworkConditions", link)
    sent = []
    page.on("request", lambda r: sent.append(r.url) if "/vc/move" in r.url else None)
    page.focus('[role="grid"]')
    for _ in range(30):
        page.keyboard.down("ArrowDown")
        page.wait_for_timeout(33)
    page.keyboard.up("ArrowDown")
    expect(cursor(page)).to_have_attribute("aria-rowindex", "32")
    assert len(sent) <= 15, len(sent)


def test_wheel_and_scroll_bar(served, visitor):
    fill(served.service, 200)
    page = open_manager(visitor(), served.page)
    page.locator('[role="grid"]').hover()
    page.mouse.wheel(0, 400)
    expect(page.locator("#wsm_sess-footer")).to_contain_text(re.compile(r"Showing (1[0-9])-"))
    press(page, "ArrowDown")
    assert place(page) == 1
    box = page.locator("#wsm_sess-scrollbar-track").bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5); page.mouse.down()
    page.mouse.move(box["x"] + 5, box["y"] + box["height"] - 1, steps=8); page.mouse.up()
    expect(page.locator("#wsm_sess-footer")).to_contain_text("-200 of 200")
    at_the_end = "end => Math.abs(document.getElementById('wsm_sess-scrollbar-thumb')?.getBoundingClientRect().bottom - end) < 3"
    page.wait_for_function(at_the_end, arg=box["y"] + box["height"])   # what is in sight is the end of the list
    rows(page).nth(2).locator('[role="gridcell"]').nth(3).click()
    expect(cursor(page)).to_have_attribute("data-session", rows(page).nth(2).get_attribute("data-session"))


def test_phone(served, visitor):
    fill(served.service, 100, "A label of a session that is far too long for the narrow screen of a phone, number {:03}")
    context = visitor(**PHONE)
    page = open_manager(context, served.page)
    for name in ("Resume", "Rename", "Delete"):
        box = rows(page).first.get_by_role("button", name=name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["height"] >= 40, (name, box)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    link = rows(page).first.get_by_role("link")
    assert link.get_attribute("title").endswith("number 099") and link.bounding_box()["width"] < 300
    first = labels(page)[0]
    touch = context.new_cdp_session(page)
    swipe = {"x": 120, "y": 600, "yDistance": -350, "gestureSourceType": "touch", "speed": 1200}
    touch.send("Input.synthesizeScrollGesture", swipe)
    expect(page.locator("#wsm_sess-footer")).not_to_contain_text("Showing 1-")
    assert labels(page)[0] != first
    rows(page).first.get_by_role("button", name="Delete").tap()
    dialog(page).get_by_role("button", name="Delete").tap()
    expect(page.locator("#wsm-session-count")).to_have_text("99 sessions")


def test_hostile_labels_are_text_everywhere(served, visitor):
    ids = [served.service.create_session(label) for label in HOSTILE]
    page = open_manager(visitor(), served.page)
    for label, session_id in zip(HOSTILE, ids):
        one_line = label.replace("\n", " ") + "!"
        row = page.locator(f'[data-session="{session_id}"]')
        row.get_by_role("button", name="Rename").click()
        field = page.get_by_label("Name", exact=True)
        assert field.input_value() == label.replace("\n", "")   # a one-line field
        field.fill(one_line)
        dialog(page).get_by_role("button", name="Rename").click()
        expect(dialog(page)).to_have_count(0)
        assert served.service.get_session(session_id).resolved_label == one_line
        row.get_by_role("button", name="Delete").click()
        expect(page.locator("#wsm-delete-modal-body")).to_have_text(one_line, use_inner_text=False)
        dialog(page).get_by_role("button", name="Delete").click()
        expect(row).to_have_count(0)
    page.get_by_role("link", name="Recently deleted").click()
    expect(page.get_by_role("button", name="Restore")).to_have_count(len(HOSTILE))
    assert page.evaluate("document.querySelectorAll('img').length") == 0


def test_empty_list_and_search_without_result(served, visitor):
    page = open_with_nothing(visitor(), served.page)
    expect(page.get_by_text("No sessions yet")).to_be_visible()
    page.get_by_role("main").get_by_role("button", name="New session").last.click()
    expect(rows(page)).to_have_count(1)
    expect(page.locator("#wsm-session-count")).to_have_text("1 session")
    page.get_by_role("searchbox").fill("nothing like it")
    expect(page.get_by_text("No session is named like this")).to_be_visible()
    page.get_by_role("button", name="Clear search").click()
    expect(rows(page)).to_have_count(1)
    page.keyboard.press("Delete")
    dialog(page).get_by_role("button", name="Delete").click()
    expect(message(page)).to_contain_text("was created and is active now")


def open_with_nothing(context, url):
    page = context.new_page()
    page.goto(url)
    return page


def test_sort_search_and_place_survive_rename_delete_and_reload(served, visitor):
    fill(served.service, 60)
    page = open_manager(visitor(), served.page)
    page.get_by_role("button", name="Session", exact=True).click()
    expect(page.get_by_role("columnheader", name="Session", exact=True)).to_have_attribute("aria-sort", "ascending")
    expect(page.get_by_role("button", name="Session", exact=True)).to_be_focused()
    page.get_by_role("searchbox").fill("session 0")
    expect(page.locator("#wsm-session-count")).to_have_text("60 sessions found")
    page.get_by_role("searchbox").press("Enter")
    press(page, "PageDown", "PageDown")
    before, first = place(page), labels(page)[0]
    assert before > 15 and first > "Session 01"
    cursor(page).get_by_role("button", name="Delete").click()
    dialog(page).get_by_role("button", name="Delete").click()
    expect(page.locator("#wsm-session-count")).to_have_text("59 sessions found")
    assert (place(page), labels(page)[0]) == (before, first)
    page.reload()
    expect(page.locator("#wsm-session-count")).to_have_text("59 sessions found")
    expect(page.get_by_role("columnheader", name="Session", exact=True)).to_have_attribute("aria-sort", "ascending")
    expect(cursor(page)).to_have_attribute("aria-rowindex", str(before + 2))
    assert page.get_by_role("searchbox").input_value() == "session 0"


def test_every_header_sorts_by_what_it_shows(served, visitor):
    fill(served.service, 12)
    page = open_manager(visitor(), served.page)
    def column(n): return [row.locator('[role="gridcell"]').nth(n).inner_text() for row in rows(page).all()]
    for n, name, key in ((0, "Session", str), (1, "Step", str), (2, "Files", lambda t: int(t.split()[0])), (4, "Size", str)):
        for direction in ("ascending", "descending"):
            header = page.get_by_role("columnheader", name=name, exact=True)
            for _ in range(2):
                if header.get_attribute("aria-sort") == direction: break
                with page.expect_response(lambda r: "/vc/sort" in r.url): header.get_by_role("button").click()
                page.wait_for_timeout(60)
            shown = column(n)
            assert shown == sorted(shown, key=key, reverse=direction == "descending"), (name, direction)


def view_of(page):
    header = page.get_by_role("columnheader", name="Session", exact=True)
    active = page.locator(".badge-success").count()
    return place(page), rows(page).count(), labels(page)[0], header.get_attribute("aria-sort"), active


@pytest.mark.parametrize("workers", [1, 2])
def test_browsers_and_tabs_do_not_see_each_other(tmp_path, monkeypatch, visitor, workers):
    monkeypatch.setenv("STORE", f"sqlite:///{tmp_path}/sessions.db")
    fill(manager_app.make_service(), 60)
    with Server(workers=workers, STORE=os.environ["STORE"]) as server:
        url = f"{server.url}/manage/sessions"
        ann, bob = visitor(), visitor(viewport={"width": 1000, "height": 500})
        a, tab, b = open_manager(ann, url), open_manager(ann, url), open_manager(bob, url)
        untouched = view_of(tab), view_of(b)
        press(a, *["ArrowDown"] * 5)
        a.get_by_role("button", name="Session", exact=True).click()
        expect(a.get_by_role("columnheader", name="Session", exact=True)).to_have_attribute("aria-sort", "ascending")
        a.get_by_role("searchbox").fill("Session 00")
        expect(rows(a)).to_have_count(10)
        a.get_by_role("searchbox").press("Enter")
        press(a, "End")
        assert (view_of(tab), view_of(b)) == untouched
        press(tab, "ArrowDown"); press(b, "ArrowDown", "ArrowDown")
        assert [place(p) for p in (a, tab, b)] == [9, 1, 2]
        assert labels(tab)[0] == labels(b)[0] == "Session 059" and rows(tab).count() > rows(b).count()
        with a.expect_navigation(): cursor(a).get_by_role("button", name="Resume").click()
        tab.reload(); b.reload()
        expect(tab.locator(".badge-success")).to_have_count(0)   # it is further down in this tab's list
        for page, badges in ((tab, 1), (b, 0)):   # the session that `a` resumed, in sight of both
            page.get_by_role("searchbox").fill("Session 009")
            expect(rows(page)).to_have_count(1)
            expect(page.locator(".badge-success")).to_have_count(badges)


def test_two_owners_and_two_managers(tmp_path, monkeypatch, visitor):
    monkeypatch.setenv("STORE", f"sqlite:///{tmp_path}/sessions.db")
    service = manager_app.make_service()
    fill(service.for_owner("ann"), 3, "Ann {}"); fill(service.for_owner("bob"), 2, "Bob {}")
    with Server(STORE=os.environ["STORE"], OWNERS="1") as server:
        for user, expected in (("ann", "3 sessions"), ("bob", "2 sessions")):
            page = open_with_nothing(visitor(), f"{server.url}/login?user={user}")
            expect(page.locator("#wsm-session-count")).to_have_text(expected)
        page.goto(f"{server.url}/drafts/sessions")
        expect(page.locator("#wsm-drafts-sessions-session-count")).to_have_text("0 sessions")
        page.locator("#wsm-drafts-sessions-new-session-btn").click()
        expect(page.locator("#wsm-drafts-sessions-session-count")).to_have_text("1 session")
        stranger = open_with_nothing(visitor(), f"{server.url}/manage/sessions")
        expect(stranger.get_by_role("alert")).to_contain_text("sign in")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(served, visitor, scheme):
    fill(served.service, 30)
    served.service.rename_session(served.service.latest_session(), "x" * 300)
    page = open_manager(visitor(color_scheme=scheme), served.page)
    page.keyboard.press("n")
    expect(message(page)).to_be_visible()
    assert axe(page) == []
    for key in ("F2", "Delete", "?"):
        page.keyboard.press(key)
        page.wait_for_timeout(400)   # the dialog fades in
        assert axe(page) == [], key
        page.keyboard.press("Escape")
    for path in ("session_detail?session_id=" + served.service.latest_session(), "trash", "session_detail?session_id=none"):
        page.goto(f"{served.page}/{path}")
        assert axe(page) == [], path


def test_phone_and_empty_pages_pass_axe(served, visitor):
    page = open_with_nothing(visitor(**PHONE), served.page)
    assert axe(page) == []
    fill(served.service, 3)
    page.reload()
    expect(rows(page)).to_have_count(3)
    assert axe(page) == []


def test_relative_times_are_those_of_the_server(served, visitor):
    fill(served.service, 1)
    page = open_manager(visitor(), served.page)
    ages = (-3600, -30, 0, 59, 60, 119, 120, 3599, 3600, 7200, 86399, 86400, 172799, 172800, 604799, 604800, 1209600, 2591999)
    for age in ages:
        moment = datetime.now(timezone.utc) - timedelta(seconds=age + 0.4)
        page.evaluate(SET_TIME, moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ"))
        expected = format_relative_time(moment.strftime("%Y-%m-%d %H:%M:%S.%f"))
        assert page.locator("time[data-ago]").first.inner_text() == expected, age


def test_a_server_that_is_gone_is_said_so(served, visitor):
    fill(served.service, 3)
    page = open_manager(visitor(), served.page)
    served.kill()
    page.keyboard.press("n")
    expect(message(page)).to_contain_text("cannot be reached")
    served.start()
    page.keyboard.press("n")
    expect(page.locator("#wsm-session-count")).to_have_text("4 sessions")
    page.trouble.clear()   # the browser itself reports the failed request


def test_a_session_deleted_elsewhere_is_answered_with_a_message(served, visitor):
    ids = fill(served.service, 3)
    context = visitor()
    page, detail = open_manager(context, served.page), open_with_nothing(context, f"{served.page}/session_detail?session_id={ids[1]}")
    row = page.locator(f'[data-session="{ids[1]}"]')
    row.get_by_role("button", name="Rename").click()
    served.service.delete_session(ids[0]); served.service.store.clear_state("ingest", ids[1])
    page.get_by_label("Name", exact=True).fill("late")
    dialog(page).get_by_role("button", name="Rename").click()
    expect(dialog(page).get_by_role("alert")).to_contain_text("not found")   # inside the dialog, where it can be read
    page.keyboard.press("Escape")
    with detail.expect_navigation() as answer: detail.get_by_role("button", name="Resume").click()
    assert answer.value.status == 404
    expect(detail.get_by_role("alert")).to_contain_text("not found")
    detail.get_by_role("link", name="All sessions").click()
    expect(rows(detail)).to_have_count(1)


def test_without_script(served, visitor):
    ids = fill(served.service, 3)
    page = open_with_nothing(visitor(java_script_enabled=False), served.page)
    page.get_by_role("link", name="Session 002").click()
    page.get_by_label("Name of the session").fill("By form")
    page.get_by_role("button", name="Rename").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("By form")
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("status").filter(has_text="Deleted “By form”")).to_be_visible()
    page.get_by_role("button", name="Undo").click()
    expect(rows(page)).to_have_count(3)
    rows(page).first.get_by_role("button", name="Resume").click()
    assert page.inner_text("body") == f"working on {ids[2]}"
