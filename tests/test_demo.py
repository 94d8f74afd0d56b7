"""The ingest workflow on real files: in real servers that are killed, with a script and without, by one person and by several."""

import base64
import hashlib
import html
import json
import os
import re
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from playwright.sync_api import expect

from cjm_workflow_sessions import SessionManagementService, open_store
from support import PHONE, Server, axe

FACTORY = "cjm_workflow_sessions.demo.app:make_app"
HOSTILE = ["<img src=x onerror=alert(1)>.txt", "\"quoted\" 'both'.txt", "</script><script>alert(1)<", "two\nlines.txt", "\u202etxt.exe", "🎉 party.txt", "${alert(1)}.txt", "a&amp;b.txt", "ends with \\"]


@pytest.fixture
def start(tmp_path):
    "Start servers over one data folder; `service` reads what they store."
    started = []

    def begin(*, workers=1, data="data", **env):
        server = Server(FACTORY, workers=workers, DATA=str(tmp_path / data), CJM_WORKFLOW_SESSIONS_FOLDER=env.pop("folder", ""), **env)
        started.append(server)
        server.data = tmp_path / data
        server.service = SessionManagementService(open_store(f"sqlite:///{server.data}/sessions.db"), "ingest")
        return server

    yield begin
    for server in started: server.kill()


class Person:
    "Someone at a browser without a script: sends forms as they stand in the page."
    def __init__(self, server): self.client = httpx2.Client(base_url=server.url, follow_redirects=True, timeout=30)

    def get(self, path): return self.client.get(path)

    def new(self):
        self.page = self.client.post("/new")
        return str(self.page.url).rpartition("/")[2]

    def send(self, path, session_id, **fields): return self.client.post(path, data={"session_id": session_id} | fields)

    def process(self, session_id, folder, pattern="*", **fields):
        return self.send("/process", session_id, **{"directory": str(folder), "pattern": pattern, "max_files": "500", "recursive": "yes", "extract_metadata": "yes", "extract_keywords": "yes"} | fields)

    def until(self, session_id, text, seconds=20):
        deadline = time.monotonic() + seconds
        while text not in (page := self.get(f"/ingest/{session_id}").text): assert time.monotonic() < deadline, page; time.sleep(0.1)
        return page


def catalogue(server): return {path: row for path, *row in sqlite3.connect(server.data / "catalogue.db").execute("SELECT path, size, sha256, mime, width, height, keywords, owner FROM entry")}
def rows_of(service, session_id): return [row for key, row in sorted(service.get_state(session_id).items()) if key.startswith("row_")]
def names_of(n): return [f"{i:03}.txt" for i in range(n)]
def read_by(server): return dict(sqlite3.connect(f"file:{server.data}/sessions.db?mode=ro", uri=True).execute("SELECT job_id, processed FROM wfs_job"))


def folder_of(tmp_path, n=60, name="files"):
    folder = tmp_path / name
    folder.mkdir()
    for i in range(n): (folder / f"{i:03}.txt").write_text(f"tide and ferry {i}")
    return folder


# -- the whole way, without a script -------------------------------------------------------------------------------------

def test_all_steps_by_plain_forms_and_what_is_committed_is_true(start):
    server = start()
    ann = Person(server)
    assert "Start an ingest" in ann.get("/").text
    session_id = ann.new()
    samples = server.data / "samples"
    assert html.escape(str(samples)) in ann.page.text
    ann.process(session_id, samples)
    page = ann.until(session_id, "Review the result")
    assert "500 of 500 files" in page and "Page 1 of 10" in page
    page = ann.send("/review", session_id, shown="0,1,2", keep=["1"], at_page="1", page="2").text   # a pager button keeps what is ticked, too
    assert "Page 2 of 10" in page and "498 of 500 files" in page
    ann.send("/review", session_id, shown="", at_kind="audio", all="drop")
    page = ann.send("/review", session_id, shown="", go="commit").text
    assert "463 files" in page and "37 of 500 are left out" in page
    ann.send("/commit", session_id)
    ann.until(session_id, "463 files are in the catalogue")
    found = catalogue(server)
    assert len(found) == 463 and not any(path.endswith(".wav") for path in found)
    for path, (size, sha, mime, width, height, keywords, owner) in found.items():
        data = open(path, "rb").read()
        assert (size, sha) == (len(data), hashlib.sha256(data).hexdigest())
        if path.endswith(".png"): assert (mime, width, height) == ("image/png", int.from_bytes(data[16:20]), int.from_bytes(data[20:24]))
        if path.endswith((".txt", ".md")): assert keywords
    result = server.service.get_state(session_id)["result"]
    assert ann.send("/commit", session_id).text.count("463 files are in the catalogue") == 1 and len(catalogue(server)) == 463   # a second click changes nothing
    assert server.service.get_state(session_id)["result"] == result == {"added": 463, "changed": 0, "unchanged": 0, "files": 463, "bytes": sum(row[0] for row in found.values())}
    assert "is committed already" in ann.process(session_id, samples).text


def test_what_is_wrong_is_said_and_nothing_is_lost(start, tmp_path):
    server, folder = start(), folder_of(tmp_path, 3)
    ann = Person(server)
    session_id = ann.new()
    for path, pattern, says in ((tmp_path / "none", "*", "is not there"), (folder / "000.txt", "*", "a file, not a folder"), (folder, "*.jpg", "no file in"), (folder, " ", "is empty")):
        answer = ann.process(session_id, path, pattern)
        assert answer.status_code == 422 and says in answer.text and html.escape(str(path)) in answer.text
        assert html.escape(str(path)) in ann.get(f"/ingest/{session_id}").text   # also after a reload
    for most in ("0", "5001", "many"):
        answer = ann.process(session_id, folder, max_files=most)
        assert answer.status_code == 422 and "must be 1 to 5,000" in answer.text
    ann.process(session_id, folder)
    ann.until(session_id, "Review the result")
    ann.send("/review", session_id, shown="0,1,2", go="commit")
    answer = ann.send("/commit", session_id)
    assert answer.status_code == 422 and "none is left to commit" in answer.text
    ann.send("/step", session_id, step="choose")
    assert "is not there" in ann.process(session_id, tmp_path / "none").text and "Back to the result" in ann.get(f"/ingest/{session_id}").text
    ann.send("/step", session_id, step="review")
    ann.send("/review", session_id, shown="0", keep="0", go="commit")
    ann.send("/commit", session_id)
    ann.until(session_id, "1 file is in the catalogue")
    assert list(catalogue(server)) == [str(folder / "000.txt")]   # the folder that was read, not the one typed later


def test_a_file_that_vanishes_is_named_and_left_out(start, tmp_path):
    server, folder = start(), folder_of(tmp_path, 30)
    ann = Person(server)
    session_id = ann.new()
    ann.process(session_id, folder, pace_ms="25")
    (folder / "029.txt").unlink()
    assert "No such file or directory" in ann.until(session_id, "1 file could not be read")
    (folder / "029.txt").write_text("it is back")
    again = re.search(r'action="(/api/ingest/retry/[^"]+)"', ann.get(f"/ingest/{session_id}").text)[1]
    ann.client.post(again, data={"back": f"/ingest/{session_id}"}, headers={"accept": "text/html"})
    assert "could not be read" not in ann.until(session_id, "30 of 30 files</strong> kept")
    ann.send("/review", session_id, go="commit", shown="")
    ann.send("/commit", session_id)
    ann.until(session_id, "30 files are in the catalogue")
    assert len(catalogue(server)) == 30


def test_more_files_than_asked_for_are_cut_and_said(start, tmp_path):
    server, folder = start(), folder_of(tmp_path, 12)
    ann = Person(server)
    session_id = ann.new()
    ann.process(session_id, folder, max_files="5")
    page = ann.until(session_id, "Review the result")
    assert "5 of 5 files" in page and "more files than the 5 that were asked for" in page
    assert [row["name"] for row in rows_of(server.service, session_id)] == names_of(5)
    ann.send("/step", session_id, step="choose")
    ann.process(session_id, folder)
    assert "more files than" not in ann.until(session_id, "12 of 12 files")


def test_parameters_out_of_bounds_are_answered(start, tmp_path):
    server = start()
    ann = Person(server)
    session_id = ann.new()
    ann.process(session_id, folder_of(tmp_path, 3))
    ann.until(session_id, "Review the result")
    for query in ("page=99999999999999999999", "page=-1", "page=%D9%A3", "kind=%3Cb%3E", "page=1&page=2"): assert ann.get(f"/ingest/{session_id}?{query}").status_code == 200
    for data in ({"shown": "x,-1,99999", "keep": ["-1", "1e9", "٣"]}, {"all": ["keep", "drop"]}, {"go": "nowhere"}, {"page": "x"}): assert ann.send("/review", session_id, **({"shown": "0"} | data)).status_code == 200
    assert server.service.get_state(session_id)["dropped"] == [0]
    assert ann.send("/draft", session_id, directory="x" * 5000).status_code == 422
    assert ann.client.post("/process", data={"session_id": session_id}, files={"directory": b"a file"}).status_code == 422
    assert ann.client.post("/process", content="[" * 100_000, headers={"content-type": "application/json"}).status_code == 400
    for bad in ("", "none", "\x00", "x" * 5000, "../etc"): assert ann.send("/step", bad, step="choose").status_code in (404, 422)
    for path in ("/new", "/process", "/review", "/commit", "/step", "/draft", "/sign-out", "/api/ingest/process"):
        assert ann.get(path).status_code == 405
        refused = ann.client.post(path, data={"session_id": session_id}, headers={"sec-fetch-site": "cross-site"})
        assert refused.status_code == 403


# -- kill, restart, several processes ------------------------------------------------------------------------------------

def killed_at(server, n, which=-1):
    "Kill the server when a job has `n` items; gives how many it had then."
    deadline = time.monotonic() + 30
    while not (found := read_by(server)) or max(found.values()) < n: assert time.monotonic() < deadline; time.sleep(0.02)
    server.kill()
    return max(read_by(server).values())


def test_a_killed_server_goes_on_by_itself_while_it_reads_and_while_it_commits(start):
    server = start()
    ann = Person(server)
    session_id = ann.new()
    ann.process(session_id, server.data / "samples", pace_ms="25")
    before = killed_at(server, 200)
    seen = rows_of(server.service, session_id)
    assert [row["number"] for row in seen] == list(range(before)) and before < 300   # what was said to be read is there
    server.start()
    ann.until(session_id, "Review the result", 40)   # nobody has to ask for it
    rows = rows_of(server.service, session_id)
    assert rows[:before] == seen and [row["number"] for row in rows] == list(range(500)) and len({row["name"] for row in rows}) == 500
    ann.send("/review", session_id, go="commit", shown="")
    ann.send("/commit", session_id)
    deadline = time.monotonic() + 30
    while not os.path.exists(server.data / "catalogue.db") or len(catalogue(server)) < 200: assert time.monotonic() < deadline; time.sleep(0.02)
    server.kill()
    assert len(catalogue(server)) < 400
    server.start()
    bob = Person(server)   # a browser that was never here sees it, too
    assert "Committing" in bob.get("/").text
    ann.until(session_id, "500 files are in the catalogue", 40)
    assert len(catalogue(server)) == 500
    assert server.service.get_state(session_id)["result"] | {"bytes": 0} == {"added": 500, "changed": 0, "unchanged": 0, "files": 500, "bytes": 0}


def test_what_is_stopped_stays_so_and_what_begins_again_begins_anew(start, tmp_path):
    server, folder = start(workers=2), folder_of(tmp_path, 60)
    ann = Person(server)
    session_id = ann.new()
    ann.process(session_id, folder, pace_ms="25")
    ann.until(session_id, "of 60 files")
    ann.send("/step", session_id, step="choose")
    ann.send("/step", session_id, step="process")
    page = ann.until(session_id, "Reading is paused")
    stopped = len(rows_of(server.service, session_id))
    time.sleep(1)
    assert len(rows_of(server.service, session_id)) == stopped < 60
    resume = re.search(r'action="(/api/ingest/resume/[^"]+)"', page)[1]
    for _ in range(4): assert ann.client.post(resume, data={"back": f"/ingest/{session_id}"}, headers={"accept": "text/html"}).status_code == 200
    ann.until(session_id, "Review the result")
    assert [row["name"] for row in rows_of(server.service, session_id)] == names_of(60)
    with ThreadPoolExecutor(4) as pool: list(pool.map(lambda n: Person(server).process(session_id, folder, f"00*|0{n}*", pace_ms="25"), (1, 2, 3, 4)))
    ann.until(session_id, "20 of 20 files")
    assert len(read_by(server)) == 1   # the last of them is left, with its files only
    assert len(rows_of(server.service, session_id)) == 20


def test_a_script_starts_an_ingest_and_its_session_is_in_the_list(start, tmp_path):
    server, folder = start(), folder_of(tmp_path, 20)
    curl = httpx2.Client(base_url=server.url, timeout=30)
    def status(): return curl.get(f"/api/ingest/status/{job_id}").json()
    def until(*wanted):
        deadline = time.monotonic() + 20
        while (found := status())["status"] not in wanted: assert time.monotonic() < deadline, found; time.sleep(0.05)
        return found
    asked = {"directory": str(folder), "pattern": "*.png|*.txt", "max_files": 15, "enable_nsfw_detection": True, "nsfw_threshold": 0.5, "extract_metadata": True, "extract_keywords": True, "import_scores": True}
    for wrong, says in (({"directory": "/nowhere"}, "not there"), ({"nsfw_threshold": 2}, "must be 0 to 1"), ({"colour": "red"}, "is not known here"), ({"max_files": 0}, "must be 1 to 5,000")):
        answer = curl.post("/api/ingest/process", json={"parameters": asked | wrong})
        assert answer.status_code == 422 and says in answer.json()["error"]
    assert server.service.count() == 0   # no session of something that never began
    foreign = curl.post("/api/ingest/process", json={"parameters": asked}, headers={"origin": "https://elsewhere.example"})
    for answer, code in ((foreign, 403), (curl.get("/api/ingest/none"), 404)): assert answer.status_code == code and "error" in answer.json()
    answer = curl.post("/api/ingest/process", json={"parameters": asked})
    assert answer.status_code == 202
    job_id = answer.json()["session_id"]
    record = until("completed")
    assert (record["total_files"], record["processed_files"], record["progress"], record["errors"], record["stats"]["text_files"]) == (15, 15, 100, [], 15)
    assert asked.items() <= record["parameters"].items() and record["stats"]["scores_not_imported"] == 15   # what it does not do it says
    (found,) = server.service.list_sessions()
    assert found.summary.current_step == "review" and "Ingest of files (*.png|*.txt)" in Person(server).get("/manage/sessions").text
    assert "15 of 15 files" in Person(server).get(f"/ingest/{found.summary.session_id}").text
    assert curl.get("/api/ingest/active-session").json() == {"session_id": job_id, "status": "completed"}
    assert curl.post(f"/api/ingest/commit/{job_id}").status_code == 202
    until("committed")
    assert len(catalogue(server)) == 15 and "15 files are in the catalogue" in Person(server).get(f"/ingest/{found.summary.session_id}").text
    assert curl.delete(f"/api/ingest/session/{job_id}").status_code == 200 and curl.get(f"/api/ingest/status/{job_id}").status_code == 404


def test_two_sessions_in_two_tabs_do_not_mix_also_with_two_workers(start, tmp_path):
    server = start(workers=2)
    one, two = folder_of(tmp_path, 12, "one"), folder_of(tmp_path, 7, "two")
    ann = Person(server)   # one browser, one cookie; the tabs differ in the id that their forms carry
    a, b = ann.new(), ann.new()
    ann.process(a, one); ann.process(b, two)
    ann.until(a, "12 of 12 files"); ann.until(b, "7 of 7 files")
    ann.send("/review", a, shown="0,1", keep=[], go="commit"); ann.send("/review", b, shown="0", keep=[], go="commit")
    ann.send("/commit", a)
    ann.until(a, "10 files are in the catalogue")
    assert "6 files" in ann.get(f"/ingest/{b}").text   # untouched by the commit of the other
    ann.send("/commit", b)
    ann.until(b, "6 files are in the catalogue")
    assert sorted(os.path.relpath(p, tmp_path).split(os.sep)[0] for p in catalogue(server)) == ["one"] * 10 + ["two"] * 6
    assert str(ann.get("/").url).endswith(b)   # what was worked on last is active


def test_a_session_that_is_gone_says_so(start):
    server = start()
    ann = Person(server)
    session_id = ann.new()
    server.service.delete_session(session_id)
    for answer in (ann.get(f"/ingest/{session_id}"), ann.send("/review", session_id), ann.process(session_id, "/"), ann.send("/commit", session_id)):
        assert answer.status_code == 404 and "This session is gone" in answer.text and 'action="/new"' in answer.text
    assert "Start an ingest" in ann.get("/").text


# -- names ---------------------------------------------------------------------------------------------------------------

def test_with_names_each_person_has_their_own(start, tmp_path):
    server, folder = start(CJM_WORKFLOW_SESSIONS_USERS="yes"), folder_of(tmp_path, 4)
    ann, bob, eve = Person(server), Person(server), Person(server)
    assert "Who are you?" in ann.get("/").text and "Who are you?" in ann.get("/manage/sessions").text
    assert eve.client.post("/new").text.count("Who are you?") == 1 and server.service.count() == 0
    for person, name in ((ann, "Ann"), (bob, "<img src=x onerror=alert(1)>")): person.client.post("/sign-in", data={"name": name})
    hers, his = ann.new(), bob.new()
    ann.process(hers, folder); bob.process(his, folder)
    ann.until(hers, "Review the result"); bob.until(his, "Review the result")
    unknown = bob.get("/ingest/00000000-0000-4000-8000-000000000000")
    foreign = bob.get(f"/ingest/{hers}")
    assert (foreign.status_code, foreign.text.replace(hers, "?")) == (404, unknown.text.replace("00000000-0000-4000-8000-000000000000", "?"))
    for path in ("/commit", "/review", "/draft", "/step", "/process"): assert bob.send(path, hers, step="choose").status_code == 404
    assert hers not in bob.get("/manage/sessions").text and his in bob.get("/manage/sessions").text
    job_id = ann.client.get("/api/ingest/active-session").json()["session_id"]
    for path in ("status", "export", "events"): assert bob.client.get(f"/api/ingest/{path}/{job_id}").status_code == 404
    for path in ("commit", "cancel", "resume", "delete"): assert bob.client.post(f"/api/ingest/{path}/{job_id}").status_code == 404
    assert eve.client.get("/api/ingest/sessions").status_code == 401
    ann.send("/review", hers, go="commit", shown=""); ann.send("/commit", hers)
    bob.send("/review", his, go="commit", shown="0"); bob.send("/commit", his)
    ann.until(hers, "4 files are in the catalogue"); bob.until(his, "3 files are in the catalogue")
    with sqlite3.connect(server.data / "catalogue.db") as db: assert dict(db.execute("SELECT owner, count(*) FROM entry GROUP BY owner")) == {"Ann": 4, "<img src=x onerror=alert(1)>": 3}
    page = bob.get("/").text
    assert "<img src=x" not in page and "&lt;img src=x" in page
    ann.client.post("/sign-out")
    assert "Who are you?" in ann.get(f"/ingest/{hers}").text
    polled = ann.client.get(f"/ingest/{hers}", headers={"hx-request": "true"})
    assert polled.headers["hx-redirect"] == "/sign-in"
    bob.client.post("/sign-in", data={"name": "Eve"})
    left = json.loads(base64.b64decode(next(iter(bob.client.cookies.jar)).value.split(".")[0]))
    assert set(left) == {"user", "_jobs_seen:/api/ingest"} and left["user"] == "Eve" and "Start an ingest" in bob.get("/").text   # nothing of the person before is left


# -- in a browser --------------------------------------------------------------------------------------------------------

def walk_to_review(page, server, folder, pace="0"):
    page.goto(server.url)
    page.locator("main").get_by_role("button", name="Start an ingest").click()
    page.get_by_label("Folder", exact=True).fill(str(folder))
    page.get_by_label("Pace").select_option(pace)
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_role("heading", name="Review the result").wait_for(timeout=20_000)
    return page.url.rpartition("/")[2]


def check(page):
    assert axe(page) == [] and page.evaluate("document.documentElement.scrollWidth <= innerWidth") and page.locator("main").count() == 1


@pytest.mark.parametrize("kind", [{}, PHONE, {"color_scheme": "dark"}], ids=["wide", "phone", "dark"])
def test_all_steps_in_a_browser_under_the_policy(start, visitor, tmp_path, kind):
    server, folder = start(), folder_of(tmp_path, 60)
    page = visitor(**kind).new_page()
    page.goto(server.url); check(page)
    page.locator("main").get_by_role("button", name="Start an ingest").click()
    page.get_by_label("Folder", exact=True).fill("/nowhere")
    page.get_by_role("button", name="Start", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("is not there"); check(page)
    page.get_by_label("Folder", exact=True).fill(str(folder))
    page.get_by_label("Pace").select_option("25")
    page.get_by_role("button", name="Start", exact=True).click()
    expect(page.get_by_role("heading", name="Reading files")).to_be_visible()
    expect(page.locator("main [data-job]")).to_have_attribute("data-following", "on"); check(page)
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("heading", name="Reading is paused")).to_be_visible(); check(page)
    page.get_by_role("button", name="Resume").click()
    page.get_by_role("heading", name="Review the result").wait_for(timeout=10_000); check(page)   # comes by itself
    with page.expect_response(lambda r: r.url.endswith("/review")): page.get_by_role("checkbox", name="Keep 001.txt").uncheck()
    expect(page.locator("#kept")).to_contain_text("59 of 60 files")
    page.get_by_role("button", name="Next").click()
    expect(page.get_by_text("Page 2 of 2")).to_be_visible()
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_text("1 of 60 are left out")).to_be_visible(); check(page)
    page.get_by_role("button", name="Commit").click()
    expect(page.get_by_role("heading", name="Committing to the catalogue")).to_be_visible(); check(page)
    expect(page.get_by_text("59 files are in the catalogue")).to_be_visible(timeout=10_000); check(page)   # comes by itself, too
    expect(page).to_have_title("Done – Ingest")
    assert len(catalogue(server)) == 59
    page.goto(f"{server.url}/ingest/none"); check(page)


def test_begun_in_one_browser_and_resumed_in_another_after_a_kill(start, visitor, tmp_path):
    server, folder = start(), folder_of(tmp_path, 20)
    page = visitor().new_page()
    session_id = walk_to_review(page, server, folder)
    with page.expect_response(lambda r: r.url.endswith("/review")): page.get_by_role("checkbox", name="Keep 003.txt").uncheck()
    page.context.close()
    before = server.service.get_state(session_id)
    server.kill()
    server.start()
    page = visitor(**PHONE).new_page()
    page.goto(f"{server.url}/manage/sessions")
    row = page.locator(f'[data-session="{session_id}"]')
    expect(row).to_contain_text("Ingest of files"); expect(row).to_contain_text("Review")
    row.get_by_role("button", name="Resume").click()
    page.get_by_role("heading", name="Review the result").wait_for()
    assert page.url.endswith(session_id) and server.service.get_state(session_id) == before
    expect(page.get_by_role("checkbox", name="Keep 003.txt")).not_to_be_checked()
    expect(page.locator("#kept")).to_contain_text("19 of 20 files")


def test_the_manager_shows_step_files_and_size(start, visitor, tmp_path):
    server, folder = start(), folder_of(tmp_path, 20)
    page = visitor().new_page()
    walk_to_review(page, server, folder)
    page.goto(f"{server.url}/manage/sessions")
    for text in ("Ingest of files", "Review", "20", "330 B"): expect(page.locator("[data-session]")).to_contain_text(text)


def test_a_half_typed_form_is_kept(start, visitor):
    server = start()
    page = visitor().new_page()
    page.goto(server.url)
    page.locator("main").get_by_role("button", name="Start an ingest").click()
    with page.expect_response(lambda r: r.url.endswith("/draft")):
        page.get_by_label("Pattern", exact=True).fill("*.png|*.gif")
        page.get_by_label("Pattern", exact=True).press("Tab")
    with page.expect_response(lambda r: r.url.endswith("/draft")): page.get_by_label("Keywords of texts").uncheck()
    page.goto(f"{server.url}/manage/sessions")
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_label("Pattern", exact=True)).to_have_value("*.png|*.gif")
    expect(page.get_by_label("Keywords of texts")).not_to_be_checked()


def test_hostile_file_names_are_text(start, visitor, tmp_path):
    folder = tmp_path / "<b>in"
    folder.mkdir()
    for name in HOSTILE: (folder / name.replace("/", "-")).write_text("tide")
    (folder / os.fsdecode(b"not utf-8 \xff.txt")).write_text("tide")
    server = start(folder=str(folder))
    page = visitor().new_page()
    walk_to_review(page, server, folder)
    names = page.locator("tbody td:nth-child(2) > span:first-child")
    shown = [name.text_content() for name in names.all()]
    assert {name.replace("/", "-") for name in HOSTILE} <= set(shown) and len(shown) == len(HOSTILE) + 1
    with page.expect_response(lambda r: r.url.endswith("/review")): page.locator("tbody input").first.uncheck()
    expect(page.locator("#kept")).to_contain_text(f"{len(HOSTILE)} of {len(HOSTILE) + 1} files")
    page.get_by_role("button", name="Continue").click()
    page.get_by_role("button", name="Commit").click()
    expect(page.get_by_text("files are in the catalogue")).to_be_visible()
    page.goto(f"{server.url}/manage/sessions")
    expect(page.locator("[data-session]")).to_contain_text("Ingest of <b>in")


def test_the_page_is_not_loaded_anew_while_it_follows(start, visitor, tmp_path):
    server, folder = start(), folder_of(tmp_path, 60)
    for i in range(30, 60): (folder / f"{i:03}.txt").rename(folder / f"{i:03}.png")   # a number of another kind joins the others
    page = visitor().new_page()
    page.goto(server.url)
    page.locator("main").get_by_role("button", name="Start an ingest").click()
    page.get_by_label("Folder", exact=True).fill(str(folder))
    page.get_by_label("Pace").select_option("200")
    page.get_by_role("button", name="Start", exact=True).click()
    expect(page.locator("main [data-job]")).to_have_attribute("data-following", "on")
    page.evaluate("() => { window.same = true }")
    expect(page.locator('[data-stat="image_files"]')).to_be_visible(timeout=15_000)
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("heading", name="Reading is paused")).to_be_visible()
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("heading", name="Reading files")).to_be_visible()
    page.wait_for_timeout(4000)   # longer than a page without a script waits until it loads itself
    assert page.evaluate("() => window.same === true")


def test_a_commit_of_nothing_can_be_mended(start, tmp_path):
    server, folder = start(), folder_of(tmp_path, 5)
    ann = Person(server)
    session_id = ann.new()
    ann.process(session_id, folder)
    ann.until(session_id, "Review the result")
    ann.send("/review", session_id, all="drop", at_kind="")
    job_id = ann.client.get("/api/ingest/active-session").json()["session_id"]
    assert ann.client.post(f"/api/ingest/commit/{job_id}").status_code == 202   # as a script does, which sees no page
    deadline = time.monotonic() + 10
    while (found := ann.client.get(f"/api/ingest/status/{job_id}").json())["status"] != "error": assert time.monotonic() < deadline; time.sleep(0.05)
    assert "No file is left to commit" in found["commit_errors"][0]
    assert "Review the result" in ann.get(f"/ingest/{session_id}").text
    ann.send("/review", session_id, shown="0,1,2,3,4", keep=["0", "3"], go="commit")
    with ThreadPoolExecutor(4) as pool: answers = list(pool.map(lambda _: Person(server).send("/commit", session_id).status_code, range(4)))
    assert answers == [200] * 4
    ann.until(session_id, "2 files are in the catalogue")
    assert len(catalogue(server)) == 2


def test_a_page_that_is_open_finds_out_what_happened(start, visitor, tmp_path):
    server, folder = start(), folder_of(tmp_path, 60)
    page = visitor().new_page()
    page.goto(server.url)
    page.locator("main").get_by_role("button", name="Start an ingest").click()
    page.get_by_label("Folder", exact=True).fill(str(folder))
    page.get_by_label("Pace").select_option("200")
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_role("button", name="Cancel").focus()
    expect(page.locator('[data-slot="count"]')).to_have_text(re.compile("^[2-9] of 60 files"), timeout=10_000)
    assert page.evaluate("document.activeElement.textContent") == "Cancel"   # the numbers change, the focus stays
    server.service.delete_session(page.url.rpartition("/")[2])
    expect(page.get_by_role("heading", name="This session is gone")).to_be_visible(timeout=8000)
    page.trouble[:] = [t for t in page.trouble if "404" not in t]   # the browser reports the answer that the page then shows


def test_without_a_script(start, browser, tmp_path):
    server, folder = start(), folder_of(tmp_path, 12)
    context = browser.new_context(java_script_enabled=False)
    try:
        page = context.new_page()
        page.goto(server.url)
        page.locator("main").get_by_role("button", name="Start an ingest").click()
        page.get_by_label("Folder", exact=True).fill(str(folder))
        page.get_by_label("Pace").select_option("200")
        page.get_by_role("button", name="Start", exact=True).click()
        deadline = time.monotonic() + 20
        while page.get_by_role("heading", name="Review the result").count() == 0:
            assert time.monotonic() < deadline
            page.wait_for_timeout(500)   # the page loads itself again
        page.get_by_role("checkbox", name="Keep 000.txt").uncheck()
        page.get_by_role("button", name="Continue").click()
        page.get_by_role("button", name="Commit").click()
        expect(page.get_by_text("11 files are in the catalogue")).to_be_visible(timeout=15_000)
        page.goto(f"{server.url}/manage/sessions")
        page.get_by_role("button", name="Resume").click()
        expect(page.get_by_role("heading", name="Committed")).to_be_visible()
    finally: context.close()


def test_the_policy_names_this_origin_only_and_every_answer_carries_it(start):
    server = start()
    ann = Person(server)
    session_id = ann.new()
    for path in ("/", f"/ingest/{session_id}", "/manage/sessions", "/none", "/ingest/none", "/manage/sessions/session_detail?session_id=" + session_id):
        headers = ann.get(path).headers
        assert re.search(r"script-src 'self'(;|$)", headers["content-security-policy"]) and headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
    cookie = next(iter(ann.client.cookies.jar))
    assert cookie.name.startswith("ingest_") and cookie.has_nonstandard_attr("httponly")
