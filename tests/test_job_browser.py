"""Jobs in a real browser, under `script-src 'self'`: what somebody sees who refreshes, comes back, loses the server, or has no script."""

import itertools
import os
import re
import time

import pytest
from playwright.sync_api import expect

import job_app
from cjm_workflow_sessions.services.management import SessionManagementService
from cjm_workflow_sessions.stores.base import open_store
from job_support import API, ask, start, wait_for
from support import PHONE, Server, axe
from test_changes_browser import SHOW

VIEW = "#wsj-api-ingest-view"


@pytest.fixture
def served(tmp_path, monkeypatch):
    monkeypatch.setenv("STORE", f"sqlite:///{tmp_path}/jobs.db")
    with Server("job_app:make_app") as server:
        server.page = f"{server.url}/ingest-v2"
        yield server


def card(page): return page.locator(f"{VIEW} .wsj-card")
def slot(page, name): return card(page).locator(f'[data-slot="{name}"]')
def button(page, name): return page.get_by_role("button", name=name, exact=True)
def done(page): return int(slot(page, "count").inner_text().split(" ")[0].replace(",", ""))


def open_page(context, url, query=""):
    "Open the page; `page.loads` counts how often it was loaded, `page.asked` says what the script asked for."
    page = context.new_page()
    page.asked = []
    page.on("request", lambda r: page.asked.append(f"{r.resource_type} {r.url.partition('//')[2].partition('/')[2]}"))
    page.goto(url + query)
    return page


def stays(page): page.evaluate("() => { window.same = true }"); return page
def has_stayed(page): return page.evaluate("() => window.same === true")


def settle(server, job_id, *statuses): return wait_for(server.url, job_id, *statuses)


# -- the two recipes of seed 004, and the four views -----------------------------------------------------------------------

def test_refresh_during_processing(served, visitor):
    job_id = start(served.url, directory="/media/txt2img-images/2025-10-21", max_files=300, pace_ms=10, enable_nsfw_detection=True)
    page = open_page(visitor(), served.page)
    expect(slot(page, "status")).to_have_text("Processing")
    expect(slot(page, "count")).to_have_text(re.compile(r"^\d+ of 300 files$"))
    page.reload()
    expect(slot(page, "count")).to_have_text(re.compile(r"^\d+ of 300 files$"))
    stays(page)
    first = done(page)
    page.wait_for_timeout(1000)
    assert done(page) > first
    bar = card(page).get_by_role("progressbar", name="Ingest of /media/txt2img-images/2025-10-21")
    assert bar.get_attribute("aria-valuetext").endswith("of 300 files") and 0 < int(bar.get_attribute("value")) < 100
    expect(slot(page, "rate")).to_have_text(re.compile(r"files/s$"))
    expect(slot(page, "remaining")).to_have_text(re.compile(r"left$"))
    expect(card(page).locator('[data-stat="metadata_extracted"]')).to_have_text(re.compile(r"^\d+$"))
    expect(page.locator("#preview")).to_have_text("300 files were read", timeout=15000)
    expect(slot(page, "status")).to_have_text("Waits for you")
    assert has_stayed(page)
    assert ask(served.url, "GET", f"{API}/status/{job_id}")[1]["status"] == "completed"


def test_the_active_session_is_what_the_page_shows(served, visitor):
    assert ask(served.url, "GET", f"{API}/active-session") == (200, {"session_id": None, "status": None})
    job_id = start(served.url, max_files=300, pace_ms=10)
    assert ask(served.url, "GET", f"{API}/active-session")[1]["session_id"] == job_id
    expect(page_card := card(open_page(visitor(), served.page))).to_have_attribute("data-job", job_id)
    expect(page_card).to_have_attribute("data-live", "")


def test_every_view_is_restored_and_none_needs_a_reload(served, visitor):
    page = stays(open_page(visitor(), served.page))
    expect(page.locator("#parameters")).to_be_visible()
    page.get_by_label("Files").fill("150")
    page.get_by_label("Milliseconds").fill("15")
    button(page, "Start").click()
    expect(slot(page, "status")).to_have_text("Processing")
    assert "?job=" in page.url
    stays(page)
    page.reload()
    expect(slot(page, "status")).to_have_text("Processing")
    stays(page)
    expect(page.locator("#preview")).to_be_visible(timeout=15000)
    page.reload()
    expect(page.locator("#preview")).to_be_visible()
    stays(page)
    button(page, "Commit").click()
    expect(slot(page, "status")).to_have_text("Committing")
    expect(page.locator("#preview")).to_have_count(0)
    page.reload()
    expect(slot(page, "status")).to_have_text("Committing")
    stays(page)
    expect(page.locator("#result")).to_have_text("150 files are in the catalogue", timeout=15000)
    assert has_stayed(page)
    page.reload()
    expect(page.locator("#result")).to_be_visible()
    page.get_by_role("link", name="Start another").click()
    expect(page.locator("#parameters")).to_be_visible()


def test_another_browser_goes_on_with_it(served, visitor):
    job_id = start(served.url, max_files=250, pace_ms=10)
    one, other = (stays(open_page(visitor(), served.page)) for _ in range(2))
    for page in (one, other): expect(card(page)).to_have_attribute("data-job", job_id)
    button(one, "Cancel").click()
    for page in (one, other): expect(slot(page, "status")).to_have_text("Cancelled", timeout=5000)
    button(other, "Resume").click()
    expect(slot(other, "status")).to_have_text("Processing", timeout=5000)
    one.evaluate(SHOW, True); one.evaluate(SHOW, False)   # somebody looks at the first again
    expect(slot(one, "status")).to_have_text("Processing", timeout=5000)
    for page in (one, other): expect(page.locator("#preview")).to_be_visible(timeout=15000)
    assert has_stayed(one) and has_stayed(other)


# -- when something breaks -------------------------------------------------------------------------------------------------

def test_a_killed_server_comes_back_and_the_bar_goes_on(served, visitor):
    start(served.url, max_files=1200, pace_ms=15)
    page = stays(open_page(visitor(), served.page))
    expect(card(page)).to_have_attribute("data-following", "on")
    page.wait_for_function("() => parseInt(document.querySelector('[data-slot=\"count\"]').textContent) > 60")
    served.kill()
    expect(card(page)).to_have_attribute("data-following", re.compile("lost|away"))
    at_the_end = done(page)
    page.wait_for_timeout(3000)   # long enough for the script to give the stream up
    served.start()
    page.wait_for_function(f"() => parseInt(document.querySelector('[data-slot=\"count\"]').textContent) > {at_the_end}", timeout=20000)
    expect(card(page)).to_have_attribute("data-following", "on", timeout=15000)
    expect(page.locator("#preview")).to_have_text("1200 files were read", timeout=60000)
    assert has_stayed(page)


def test_where_no_stream_gets_through_the_page_asks(served, visitor):
    start(served.url, max_files=600, pace_ms=15)
    context = visitor()
    context.route("**/events?*", lambda route: route.abort())
    page = stays(open_page(context, served.page))
    expect(card(page)).to_have_attribute("data-following", "polling", timeout=10000)
    first = done(page)
    page.wait_for_function(f"() => parseInt(document.querySelector('[data-slot=\"count\"]').textContent) > {first}", timeout=5000)
    expect(page.locator("#preview")).to_be_visible(timeout=20000)
    assert has_stayed(page)


def test_a_stream_that_got_through_before_is_tried_as_soon_as_the_server_answers(served, visitor):
    start(served.url, max_files=2000, pace_ms=15)
    context = visitor()
    page = stays(open_page(context, served.page))
    expect(card(page)).to_have_attribute("data-following", "on")
    attempts = itertools.count(1)
    context.route("**/events?*", lambda route: route.abort() if next(attempts) <= 4 else route.continue_())   # after four it asks instead
    page.evaluate(SHOW, True); page.evaluate(SHOW, False)   # ends the stream that is open
    expect(card(page)).to_have_attribute("data-following", "lost")
    expect(card(page)).to_have_attribute("data-following", "on", timeout=15_000)   # and not after 15 polls, which take 30 seconds
    assert has_stayed(page)


def test_a_page_out_of_sight_asks_nothing(served, visitor):
    start(served.url, max_files=2000, pace_ms=10)
    page = open_page(visitor(), served.page)
    expect(card(page)).to_have_attribute("data-following", "on")
    page.evaluate(SHOW, True)
    page.wait_for_timeout(300)
    page.asked.clear()
    before = done(page)
    page.wait_for_timeout(1500)
    assert page.asked == [] and done(page) == before
    page.evaluate(SHOW, False)
    page.wait_for_function(f"() => parseInt(document.querySelector('[data-slot=\"count\"]').textContent) > {before}", timeout=3000)
    assert [asked.split("?")[0] for asked in page.asked] == ["eventsource api/ingest/events"]


def test_without_script(served, visitor):
    page = open_page(visitor(java_script_enabled=False), served.page)
    page.get_by_label("Files").fill("100")
    page.get_by_label("Milliseconds").fill("20")
    button(page, "Start").click()
    expect(slot(page, "status")).to_have_text(re.compile("Waiting to start|Processing"))
    expect(page.locator("#preview")).to_be_visible(timeout=20000)   # the page loads itself again
    button(page, "Commit").click()
    expect(slot(page, "status")).to_have_text("Committing")
    button(page, "Cancel").click()
    expect(slot(page, "status")).to_have_text(re.compile("Stopping|Cancelled"))
    expect(slot(page, "status")).to_have_text("Cancelled", timeout=8000)
    card(page).locator("summary", has_text="Delete").click()
    button(page, "Delete for good").click()
    expect(page.locator("#parameters")).to_be_visible()
    assert ask(served.url, "GET", f"{API}/active-session")[1]["session_id"] is None


# -- two jobs --------------------------------------------------------------------------------------------------------------

def test_two_jobs_in_two_tabs_do_not_mix(served, visitor):
    context = visitor()
    tabs = []
    for files, folder in ((320, "/one"), (330, "/two")):
        page = open_page(context, served.page, "?job=new")
        page.get_by_label("Folder").fill(folder)
        page.get_by_label("Files").fill(str(files))
        button(page, "Start").click()
        expect(card(page)).to_contain_text(f"Ingest of {folder}")
        tabs.append(page)
    for _ in range(2):
        for page, files in zip(tabs, (320, 330)): expect(slot(page, "count")).to_have_text(re.compile(f"of {files} files"))
        for page in tabs: page.reload()
    button(tabs[0], "Cancel").click()
    expect(slot(tabs[0], "status")).to_have_text("Cancelled", timeout=5000)
    expect(slot(tabs[1], "status")).to_have_text("Processing")
    expect(tabs[0].locator(".wsj-welcome")).to_contain_text("Ingest of /two")


def test_a_form_that_is_sent_twice_starts_one_job(served, visitor):
    page = open_page(visitor(), served.page)
    page.evaluate("""async () => {
        const form = document.querySelector('#parameters'), headers = { Accept: 'text/html' };
        const send = () => fetch(form.getAttribute('action'), { method: 'POST', headers, body: new URLSearchParams(new FormData(form)) });
        await Promise.all([send(), send()]);
    }""")
    assert len(ask(served.url, "GET", f"{API}/sessions")[1]["sessions"]) == 1


# -- coming back -----------------------------------------------------------------------------------------------------------

def test_welcome_back(served, visitor):
    "Somebody who was away finds what runs, waits, failed and was finished meanwhile; what is old news is left out."
    context = visitor()
    old = start(served.url, max_files=3, directory="/old")
    settle(served, old, "completed"); ask(served.url, "POST", f"{API}/commit/{old}"); settle(served, old, "committed")
    time.sleep(1.1)
    page = open_page(context, served.page, "?job=new")
    expect(page.locator(".wsj-welcome")).to_have_count(0)   # was never here, so has missed nothing
    page.close()
    finished, failed, waiting = (start(served.url, directory=f"/{n}", max_files=3, **more) for n, more in (("finished", {}), ("failed", {"fails": "listing"}), ("waiting", {})))
    for job_id in (finished, waiting): settle(served, job_id, "completed")
    ask(served.url, "POST", f"{API}/commit/{finished}"); settle(served, finished, "committed")
    settle(served, failed, "error")
    running = start(served.url, directory="/running", max_files=400, pace_ms=15)
    settle(served, running, "processing")
    jobs = job_app.make_jobs(open_store(os.environ["STORE"]))
    ahead_s = 3600   # an hour passes for the jobs, which is the same as an hour away
    for job_id in (finished, failed, waiting):
        with jobs.store.edit(job_id) as held: held.set(ended_at=held.job.ended_at + ahead_s * 1_000_000)
    page = open_page(context, served.page, "?job=new")
    strip = page.locator(".wsj-welcome")
    assert re.sub(r"\s+", " ", re.sub(r"\d+ %|Processing", "…", strip.inner_text())) == (
        "Welcome back Running Ingest of /running … Waits for you Ingest of /waiting 3 of 3 files "
        "Failed while you were away Ingest of /failed Finished while you were away Ingest of /finished 3 of 3 files")
    field = page.get_by_label("Folder")
    field.fill("half typed")
    ask(served.url, "POST", f"{API}/cancel/{running}")
    expect(strip).not_to_contain_text("Running", timeout=5000)
    expect(field).to_have_value("half typed")
    strip.get_by_role("link", name="Ingest of /failed").click()
    expect(card(page)).to_contain_text("the folder is gone")
    expect(card(page)).to_have_attribute("data-job", failed)


# -- the card --------------------------------------------------------------------------------------------------------------

def test_failures_are_shown_and_tried_again(served, visitor):
    job_id = start(served.url, max_files=300, bad_every=10, pace_ms=5)
    page = stays(open_page(visitor(), served.page))
    page.get_by_text("What failed").click(timeout=10000)
    expect(page.locator(".wsj-failures li").nth(8)).to_be_visible(timeout=10000)   # stays open while the card is rendered anew
    expect(page.locator("#preview")).to_be_visible(timeout=15000)
    failures = page.locator(".wsj-failures")
    expect(failures.locator("li")).to_have_count(10)
    expect(failures).to_contain_text("… and 20 more")
    expect(failures).to_contain_text("00009.png is no <b>image</b>")
    expect(slot(page, "failed")).to_have_text("30 failed")
    button(page, "Retry failed").click()
    expect(slot(page, "status")).to_have_text(re.compile("Trying again|Waits for you"))
    settle(served, job_id, "completed")
    with page.expect_download() as download: page.get_by_role("link", name="Export").click()
    assert download.value.suggested_filename == f"ingest-{job_id[:8]}.json"
    assert has_stayed(page)


def test_a_refused_press_says_why(served, visitor):
    job_id = start(served.url, max_files=10)
    settle(served, job_id, "completed")
    page = open_page(visitor(), served.page)
    page.evaluate("() => { document.querySelector('[data-job-send=\"commit\"]').action = document.querySelector('[data-job-send=\"commit\"]').getAttribute('action').replace('commit', 'cancel') }")
    button(page, "Commit").click()
    expect(card(page).get_by_role("alert")).to_contain_text("it has ended, so there is nothing to cancel")
    served.kill()
    button(page, "Commit").click()
    expect(card(page).get_by_role("alert")).to_contain_text("cannot be reached")


def test_text_is_text(served, visitor):
    evil = "<img src=x onerror=\"alert(1)\">\u202e</script><script>alert(2)</script>"
    start(served.url, max_files=200, pace_ms=10, directory=evil)
    page = open_page(visitor(), served.page)
    expect(card(page)).to_contain_text("<img src=x")
    page.wait_for_timeout(800)
    assert page.locator("img").count() == 0


def test_what_is_said_aloud_is_little(served, visitor):
    start(served.url, max_files=200, pace_ms=10)
    page = open_page(visitor(), served.page)
    page.evaluate("""() => { window.heard = []; let last = null;
        setInterval(() => { const now = document.querySelector('[data-slot="said"]')?.textContent; if (now && now !== last) window.heard.push(last = now); }, 20) }""")
    expect(page.locator("#preview")).to_be_visible(timeout=15000)
    page.wait_for_timeout(400)
    heard = page.evaluate("() => window.heard")
    assert len(heard) <= 7 and heard[-1] == "Waits for you. 200 files done", heard
    assert "Processing, 50 % done" in heard


def test_focus_stays_where_it_was(served, visitor):
    start(served.url, max_files=1000, pace_ms=10, bad_every=20)
    page = open_page(visitor(), served.page)
    page.get_by_text("What failed").click(timeout=10000)
    listed = page.locator(".wsj-failures li").count()
    button(page, "Cancel").focus()
    expect(page.locator(".wsj-failures li").nth(listed + 2)).to_be_visible(timeout=10000)   # the card was rendered anew
    expect(button(page, "Cancel")).to_be_focused()


def test_those_who_do_not_look_at_the_failures_fetch_nothing(served, visitor):
    start(served.url, max_files=1000, pace_ms=5, bad_every=15)
    page = stays(open_page(visitor(), served.page))
    expect(card(page)).to_have_attribute("data-following", "on")
    expect(slot(page, "failed")).to_have_text(re.compile(r"^\d+ failed"), timeout=10000)
    page.asked.clear()
    expect(slot(page, "failed")).to_have_text(re.compile(r"^[3-6]\d failed"), timeout=15000)
    assert page.asked == [] and has_stayed(page)
    page.get_by_text("What failed").click()
    expect(page.locator(".wsj-failures li").nth(8)).to_be_visible(timeout=5000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", ["wide", "phone"])
def test_every_state_can_be_read(served, visitor, scheme, size):
    bad = start(served.url, max_files=40, bad_every=5, pace_ms=1, directory="/a/very/long/folder/name/that/does/not/fit/" + "x" * 120)
    settle(served, bad, "completed")
    failed = start(served.url, fails="listing")
    settle(served, failed, "error")
    running = start(served.url, max_files=3000, pace_ms=10)
    page = open_page(visitor(color_scheme=scheme, **(PHONE if size == "phone" else {})), served.page, "?job=new")
    for query in ("?job=new", f"?job={running}", f"?job={bad}", f"?job={failed}"):
        page.goto(served.page + query)
        page.wait_for_timeout(300)
        if page.locator(".wsj-failures:not([hidden])").count(): page.get_by_text("What failed").first.click()
        assert axe(page) == [], query
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth"), query


# -- the manager -------------------------------------------------------------------------------------------------------------

def test_rows_and_detail_of_the_manager(served, visitor):
    store = open_store(os.environ["STORE"])
    service, jobs = SessionManagementService(store, "ingest"), job_app.make_jobs(store)
    sessions = {name: service.create_session(name, current_step="process") for name in ("Running", "Ready", "Broken", "Quiet")}
    def begin(name, **more): return jobs.start("ingest", job_app.check(more), flow_id="ingest", session_id=sessions[name]).job_id
    ready, broken = begin("Ready", max_files=3), begin("Broken", fails="listing")
    settle(served, ready, "completed"); settle(served, broken, "error")
    running = begin("Running", max_files=300, pace_ms=15)
    page = stays(open_page(visitor(), f"{served.url}/manage/sessions"))
    def row(name): return page.locator(f'[data-session="{sessions[name]}"]')
    expect(row("Running").locator('[data-slot="brief"]')).to_have_text(re.compile(r"^[1-9]\d* %$"), timeout=5000)
    first = int(row("Running").get_by_role("progressbar").get_attribute("value"))
    expect(row("Ready").locator('[data-slot="brief"]')).to_have_text("Waits for you")
    expect(row("Broken").locator('[data-slot="brief"]')).to_have_text("Failed")
    assert row("Quiet").locator("[data-job]").count() == 0
    page.wait_for_function(f"() => document.querySelector('[data-job][data-live] progress').value > {first}", timeout=5000)
    expect(row("Running").locator('[data-slot="brief"]')).to_have_text("Waits for you", timeout=15000)
    assert has_stayed(page)
    assert sum("eventsource manage/sessions/jobs/events" in asked for asked in page.asked) <= 2
    row("Broken").get_by_role("link").click()
    expect(page.locator(".wsj-card")).to_contain_text("the folder is gone")
    page.goto(f"{served.url}/manage/sessions/session_detail?session_id={sessions['Running']}")
    expect(page.locator(".wsj-card")).to_have_attribute("data-job", running)
    button(page, "Commit").click()
    expect(page.locator(".wsj-card")).to_have_attribute("data-status", "committed", timeout=15000)
    page.locator(".wsj-card summary", has_text="Delete").click()
    button(page, "Delete for good").click()
    expect(page.get_by_text("No jobs yet")).to_be_visible()
    assert axe(page) == []
