"""Warm workers over HTTP and in the manager: the seed's dict as JSON, whose sessions they are, limits, hostile input, and what the list costs."""

import html
import json
import os
import re
import subprocess
import sys
import threading
import time

import pytest
from fasthtml.common import FastHTML
from playwright.sync_api import expect
from starlette.testclient import TestClient

import warm_apps   # noqa: F401
from cjm_workflow_sessions import init_session_manager_routers, init_warm_router, open_store, warm
from cjm_workflow_sessions.errors import InvalidInput
from cjm_workflow_sessions.routes import warm as routes
from cjm_workflow_sessions.services.management import SessionManagementService
from service_support import Page, statements   # noqa: F401
from support import PHONE, Server, axe

API = "/api/warm"
FORM = {"accept": "text/html", "sec-fetch-site": "same-origin"}


BOTH = pytest.mark.parametrize("site", ["file", "postgres"], indirect=True)


def by_header(request): return request.headers.get("user")


class Site:
    "A host over a store, whose workers are threads of this process."
    def __init__(self, store):
        self.store, self.service = store, SessionManagementService(store, "ingest")
        self.client = warm.client(store, engine="inline")

    def visit(self, *routers, user="ann"):
        app = FastHTML(secret_key="test")
        for router in routers: router.to_app(app)

        @app.get("/plain")
        def plain(): return "here"

        return TestClient(app, raise_server_exceptions=False, follow_redirects=False, headers={"user": user})

    def api(self, warm=None, **options): return self.visit(init_warm_router(warm or self.client, **{"get_owner": by_header} | options))
    def manager(self, **options): return self.visit(*init_session_manager_routers(self.service, "/work", warm=self.client, **options).routers)
    def of(self, owner): return warm.client(self.store, engine="inline", owner=owner)
    def close(self):
        self.client.lines.engine.close()
        self.store.close()


@pytest.fixture
def site(request, tmp_path):
    on_server = getattr(request, "param", "file") == "postgres"
    site = Site(open_store(request.getfixturevalue("postgres").fresh_url() if on_server else f"sqlite:///{tmp_path}/sessions.db"))
    yield site
    site.close()


@pytest.fixture
def web(site): return site.api()


def run(web, action="count", *, headers=None, **task):
    body = json.dumps({"app": "counter", "input": {"action": action}} | task)
    return web.post(f"{API}/apps/run", content=body, headers={"content-type": "application/json"} | (headers or {}))


def new(web, **task): return run(web, session="new", **task).json()["session_id"]
def said(answer): return answer.status_code, answer.json()["code"], answer.json()["session_id"]


# -- the endpoints ---------------------------------------------------------------------------------------------------------

def test_the_seeds_dict_over_http(web):
    first = run(web, session="new", session_timeout=30)
    assert first.status_code == 200 and first.headers["cache-control"] == "no-store"
    assert list(first.json()) == ["id", "created_at", "updated_at", "input", "output", "logs", "status", "session_id"]
    sid = first.json()["session_id"]
    assert [run(web, session=sid).json()["output"]["calls"] for _ in range(2)] == [2, 3]
    assert run(web, session=sid, function="echo", input=["ü", None, 1.5]).json()["output"] == ["ü", None, 1.5]
    alone = run(web)
    assert alone.json()["output"]["calls"] == 1 and "session_id" not in alone.json()
    found = web.get(f"{API}/sessions/{sid}").json()
    assert (found["id"], found["state"], found["app_id"], found["owner"], found["idle_timeout"]) == (sid, "active", "counter", "ann", 30)
    kept = web.post(f"{API}/sessions/{sid}/keepalive").json()
    assert kept["expires_at"] >= found["expires_at"]
    assert web.get(f"{API}/sessions/{sid}/logs").json() == {"session_id": sid, "logs": ""}
    assert web.delete(f"{API}/sessions/{sid}").json()["state"] == "ended"
    assert web.delete(f"{API}/sessions/{sid}").json()["state"] == "ended"   # twice is fine
    assert said(run(web, session=sid)) == said(web.post(f"{API}/sessions/{sid}/keepalive")) == (410, "SESSION_ENDED", sid)
    assert "session not found" in run(web, session=sid).json()["error"].lower()


@BOTH
def test_the_list_and_its_filters(site, web):
    ids = [new(web) for _ in range(3)]
    of_session = site.of("ann").session("counter", flow_id="ingest", session_id="w1").id
    web.delete(f"{API}/sessions/{ids[0]}")
    def listed(query=""): return [s["id"] for s in web.get(f"{API}/sessions{query}").json()["sessions"]]
    assert listed() == [of_session, *reversed(ids)]
    assert listed("?state=warm") == [of_session, ids[2], ids[1]] and listed("?state=cold") == listed("?state=ended") == [ids[0]]
    assert listed("?limit=2") == [of_session, ids[2]] and listed("?workflow_session_id=w1") == [of_session] and listed("?app=other") == []


@pytest.mark.parametrize("task, status, code", [
    ({"function": "boom", "input": {"text": "<b>"}}, 500, "APP_ERROR"),
    ({"app": "broken", "session": "new"}, 503, "WORKER_START"),
    ({"app": "no-such"}, 404, "APP_NOT_FOUND"),
    ({"app": "counter-2", "version": "7", "session": "new"}, 409, "VERSION_MISMATCH"),
    ({"function": "unpicklable"}, 500, "APP_ERROR"),
    ({"function": "echo", "input": float("inf")}, 500, "OUTPUT_NOT_JSON"),
    ({"session": "sess_" + "0" * 32}, 404, "SESSION_NOT_FOUND"),
    ({"session": "new", "session_timeout": True}, 422, "SESSION_TIMEOUT"),
    ({"session_timeout": 5}, 422, "SESSION_TIMEOUT"),
    ({"session": ["new"]}, 422, "BAD_TASK")])
def test_each_error_has_its_status_and_code(web, task, status, code):
    answer = run(web, **task)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert "Traceback" not in answer.text and answer.json()["error"]


def test_an_error_of_the_app_leaves_the_session(web):
    sid = new(web)
    assert said(run(web, session=sid, function="boom")) == (500, "APP_ERROR", sid)
    assert run(web, session=sid).json()["output"]["calls"] == 2
    assert said(run(web, session=sid, app="counter-2")) == (409, "APP_MISMATCH", sid)


def test_only_named_apps_are_run(site):
    web = site.api(apps=["counter-2"])
    assert run(web).json()["error"] == "no app 'counter': there are counter-2"
    assert run(web, app="counter-2").status_code == 200


# -- whose they are --------------------------------------------------------------------------------------------------------

def test_another_owner_finds_nothing(web):
    sid, none, bob = new(web), "sess_" + "f" * 32, {"user": "bob"}
    def ask(session_id, headers=bob):
        at = f"{API}/sessions/{session_id}"
        yield web.get(at, headers=headers)
        yield web.get(f"{at}/logs", headers=headers)
        yield web.post(f"{at}/keepalive", headers=headers)
        yield web.post(f"{at}/end", headers=headers)
        yield web.delete(at, headers=headers)
        yield web.delete(f"{at}?force=true", headers=headers)
        yield run(web, session=session_id, headers=headers)
    for his, missing in zip(ask(sid), ask(none)):
        assert his.status_code == 404 and his.json()["code"] == "SESSION_NOT_FOUND"
        assert his.text.replace(sid, "").replace(sid[:37], "") == missing.text.replace(none, "").replace(none[:37], "")   # nothing tells that it is there
    assert web.get(f"{API}/sessions", headers=bob).json() == {"sessions": []}
    assert {said(a)[:2] for a in ask(sid, {"user": ""})} == {(401, "NOT_SIGNED_IN")}
    assert run(web, session=sid).json()["output"]["calls"] == 2


def test_without_owners_all_visitors_share_and_a_client_of_one_owner_stays_theirs(site):
    assert run(site.api(get_owner=None), session=new(site.api(get_owner=None))).json()["output"]["calls"] == 2
    ann = site.api(site.of("ann"), get_owner=None)
    assert new(ann) and {s["owner"] for s in ann.get(f"{API}/sessions").json()["sessions"]} == {"ann"}
    with pytest.raises(InvalidInput, match="client of one owner"): init_warm_router(site.of("ann"), get_owner=by_header)
    with pytest.raises(InvalidInput, match="no path"): init_warm_router(site.client, "api")


@BOTH
def test_limits_are_a_clear_429(site):
    web = site.api(warm.client(site.store, engine="inline", per_owner=3))
    for _ in range(2): new(web, app="counter-2")
    full = run(web, app="counter-2", session="new")
    assert said(full) == (429, "SESSION_LIMIT", None) and "2 of 'counter-2' on this machine are in use" in full.json()["error"]
    new(web)
    assert "3 of one owner are in use" in run(web, session="new").json()["error"]
    assert run(web).status_code == 429   # a worker for one call counts as well
    assert run(web, session="new", headers={"user": "bob"}).status_code == 200
    assert len(web.get(f"{API}/sessions").json()["sessions"]) == 3   # nothing is left of what was refused


# -- who may send ------------------------------------------------------------------------------------------------------------

def test_only_pages_of_this_origin_may_change_things(site, web):
    sid, cross = new(web), {"sec-fetch-site": "cross-site", "origin": "https://evil.example"}
    at = f"{API}/sessions/{sid}"
    for answer in (run(web, headers=cross), web.delete(at, headers=cross), web.post(f"{at}/keepalive", headers=cross), web.post(f"{at}/end", headers=cross)):
        assert said(answer) == (403, "CROSS_ORIGIN", None)
    assert web.get(at, headers=cross).json()["state"] == "active"
    trusted = site.api(trusted_origins=["https://evil.example"])
    assert run(trusted, headers=cross).status_code == 200
    for path in ("keepalive", "end"): assert web.get(f"{at}/{path}").status_code == 405


# -- hostile input -------------------------------------------------------------------------------------------------------------

def send(web, content, kind="application/json"): return web.post(f"{API}/apps/run", content=content, headers={"content-type": kind})


@pytest.mark.parametrize("content, status", [
    (b"{", 400), (b"[]", 400), (b"1", 400), (b"\xff\xfe", 400), (b'{"app":' * 100_000, 400), (b'{"app":"' + b"x" * 2_100_000 + b'"}', 413), (b"9" * 5000, 400),
    (b"", 422), (b"{}", 422), (b'{"app": 1}', 422), (b'{"app": ""}', 422), (b'{"app": "counter", "wait": 1}', 422), (b'{"app": "counter", "function": "setup"}', 422),
    (b'{"app": "counter", "function": "__init__"}', 422), (b'{"app": "counter", "session": "new", "session_timeout": 1e400}', 422),
    (b'{"app": "counter", "session": "\\ud800"}', 404), (b'{"app": "\\u0000\\ud800"}', 404), (b'{"app": "counter", "session": "sess_\\u0000"}', 404),
    (b'{"app": "counter", "version": "\\ud800"}', 409)])
def test_a_hostile_body_starts_nothing(site, web, content, status):
    answer = send(web, content)
    assert answer.status_code == status and answer.json()["error"] and "code" in answer.json(), answer.text
    assert len(answer.content) < 500
    assert site.client.sessions.list() == []


def test_other_bodies_start_nothing(site, web):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "multipart/form-data"):
        assert send(web, b"app=counter", kind).status_code in (400, 422)
    assert web.request("DELETE", f"{API}/sessions/x", content=b"x" * 2_100_000).status_code == 413
    assert site.client.sessions.list() == []


def test_text_that_no_database_takes_reaches_the_app_only(web):
    assert run(web, function="echo", input="\x00").json()["output"] == "\x00"
    assert send(web, b'{"app": "counter", "function": "echo", "input": "\\ud800"}').json()["output"] == "\ud800"
    assert said(send(web, b'{"app": "counter", "function": "echo", "input": NaN}'))[:2] == (500, "OUTPUT_NOT_JSON")


@pytest.mark.parametrize("sid", ["x", "sess_", "sess_" + "A" * 32, "sess_%00" + "0" * 31, "%ED%A0%80", "..%2f..", "sess_" + "0" * 3000, "'%20OR%201=1--", "%3Cscript%3E"])
def test_hostile_ids(web, sid):
    at = f"{API}/sessions/{sid}"
    for answer in (web.get(at), web.delete(at), web.post(f"{at}/keepalive"), web.get(f"{at}/logs")):
        assert answer.status_code == 404 and len(answer.content) < 500
        assert "<script" not in answer.text or answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("query", ["limit=-1", "limit=x", "limit=", "limit=" + "9" * 40, "state=x", "state=%00", "app=%00", "app=", "app=" + "x" * 300, "workflow_session_id=%00"])
@BOTH
def test_hostile_queries(web, query): assert said(web.get(f"{API}/sessions?{query}"))[:2] == (422, "INVALID_INPUT")


# -- forms, and calls that take long --------------------------------------------------------------------------------------------

def test_forms_lead_back_and_say_what_did_not_work(web):
    at = f"{API}/sessions/{new(web)}"
    answer = web.post(f"{at}/keepalive", data={"back": "/m?session_id=1"}, headers=FORM)
    assert (answer.status_code, answer.headers["location"]) == (303, "/m?session_id=1")
    for evil in ("//evil.example", "https://evil.example", "/\\evil.example"):
        assert web.post(f"{at}/keepalive", data={"back": evil}, headers=FORM).headers["location"] == "/"
    assert web.post(f"{at}/end", data={"back": "/m"}, headers=FORM).headers["location"] == "/m"
    page = web.post(f"{at}/keepalive", data={"back": "/m"}, headers=FORM)
    assert page.status_code == 410 and "has been ended" in page.text and 'href="/m"' in page.text


def test_a_form_does_not_hang_while_a_call_runs(site, web, monkeypatch):
    monkeypatch.setattr(routes, "FORM_S", 0.2)
    session = site.of("ann").session("counter")
    at, calling = f"{API}/sessions/{session.id}", threading.Thread(target=lambda: session.call("process", {"id": 1, "sleep": 1.5}))
    with web:   # one event loop for all requests, as on a server
        calling.start()
        time.sleep(0.2)
        began = time.monotonic()
        assert web.post(f"{at}/keepalive", data={"back": "/m"}, headers=FORM).status_code == 303
        busy = web.post(f"{at}/end", data={"back": "/m"}, headers=FORM)
        assert busy.status_code == 409 and "it is in a call" in html.unescape(busy.text)
        assert time.monotonic() - began < 1
        calling.join()
        deadline = time.monotonic() + 5
        while web.get(at).json()["state"] != "ended": assert time.monotonic() < deadline


def test_long_calls_leave_the_threads_of_the_host_free(web):
    with web:
        sid = new(web)
        calls = [threading.Thread(target=run, args=(web, "process"), kwargs={"session": sid, "input": {"action": "process", "id": i, "sleep": 0.03}}) for i in range(60)]   # the host has 40
        for call in calls: call.start()
        time.sleep(0.5)
        began = time.monotonic()
        assert web.get("/plain").text == "here" and time.monotonic() - began < 0.5
        for call in calls: call.join()
        order = run(web, session=sid, input={"action": "process", "id": 60}).json()["output"]["order"]
        assert sorted(order) == list(range(61))


# -- the manager ---------------------------------------------------------------------------------------------------------------

@BOTH
def test_rows_are_marked_by_one_query(statements, site):   # noqa: F811
    web, ann = site.manager(get_owner=by_header), site.service.for_owner("ann")
    ids = [ann.create_session(f"S{i}") for i in range(30)]
    def asked(path="", user="ann"):
        statements.clear()
        return web.get(f"/manage/sessions{path}", headers={"user": user}).text, [s for s in statements if "wfs_warm" in s]
    page, read = asked()
    assert len(read) == 1 and "wsw-mark" not in page
    mine, cold = (site.of("ann").session("counter", timeout=600, flow_id="ingest", session_id=s) for s in (ids[29], ids[28]))
    cold.end()
    site.of("bob").session("counter", flow_id="ingest", session_id=ids[27])   # for a session of hers
    site.of("ann").session("counter", flow_id="other", session_id=ids[26])
    for s in ids[15:20]: site.of("ann").session("counter", session_id=s)
    page, read = asked()
    assert len(read) == 1   # whatever the number of rows and workers
    assert page.count('class="wsw-mark"') == 6 and re.search(r'class="wsw-left">\s*(10|9) min<', page)
    at = f"/session_detail?session_id={ids[29]}"
    page, read = asked(at)
    assert len(read) == 1 and f'action="/manage/sessions/workers/sessions/{mine.id}/end"' in page
    assert "Cold: it was ended, by its owner." in html.unescape(asked(f"/session_detail?session_id={ids[28]}")[0])
    for s in ids[26:28]: assert "No worker" in asked(f"/session_detail?session_id={s}")[0]
    for path in ("keepalive", "end"):
        assert web.post(f"/manage/sessions/workers/sessions/{mine.id}/{path}", headers={"user": "bob"}).status_code == 404
        assert web.post(f"/manage/sessions/workers/sessions/{mine.id}/{path}", headers={"origin": "https://evil.example"}).status_code == 403
    assert web.post(f"/manage/sessions/workers/sessions/{mine.id}/end", data={"back": f"/manage/sessions{at}"}, headers=FORM).status_code == 303
    assert "Cold: it was ended" in asked(at)[0] and asked()[0].count('class="wsw-mark"') == 5


@BOTH
def test_rows_of_a_dead_host_read_as_lost(site):
    session_id = site.service.create_session("S")
    worker, web = site.client.session("counter", flow_id="ingest", session_id=session_id), site.manager()
    assert "wsw-mark" in web.get("/manage/sessions").text
    with site.store.transaction() as write:
        write("UPDATE wfs_warm SET created_at = 1")
        write("UPDATE wfs_warm_host SET beat_at = 1")
    assert "wsw-mark" not in web.get("/manage/sessions").text
    page = web.get(f"/manage/sessions/session_detail?session_id={session_id}").text
    assert "Cold: it was lost, its host is gone." in page and "/end" not in page and worker.id in page


@BOTH
def test_the_page_of_a_session_takes_hostile_names(site):
    session_id = site.service.create_session("S")
    with site.store.transaction() as write:
        for i, state in enumerate(("ended", "lost")):
            write("INSERT INTO wfs_warm(warm_id, owner, app, version, state, reason, epoch, host_id, timeout_s, session_id, created_at, ended_at, logs) VALUES(?,'',?,?,?,?,1,'h',60,?,1,1,?)",
                  (f"sess_{i:032x}", "<script>alert(1)</script>", '"><img src=x>', state, "<b>bold", session_id, "<script>alert(2)</script>\n" * 3000))
    web = site.manager()
    for query in ("", f"&worker=sess_{0:032x}", "&worker=%3Cscript%3E", "&worker=%00"):
        page = Page(web.get(f"/manage/sessions/session_detail?session_id={session_id}{query}"))
        assert page.dangers == [] and page.text.count("<script>alert(1)") == 2
        assert page.text.count("alert(2)") == (100 if query.endswith("0") and "sess" in query else 0)


def test_a_manager_offers_the_buttons_only(site):
    web = site.manager()
    assert web.post("/manage/sessions/workers/apps/run", json={"app": "counter"}).status_code == 404
    assert web.get("/manage/sessions/workers/sessions").status_code == 404
    assert site.client.sessions.list() == []


def test_a_manager_without_warm_workers_loads_nothing_of_them():
    code = """import sys
from cjm_workflow_sessions import SessionManagementService, init_session_manager_routers, open_store
made = init_session_manager_routers(SessionManagementService(open_store("memory:"), "ingest"), "/work")
assert len(made.routers) == 2
print([name for name in sys.modules if "warm" in name and name.startswith("cjm_") and ".stores." not in name])"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# -- in a browser --------------------------------------------------------------------------------------------------------------

@pytest.fixture
def place(tmp_path, monkeypatch):
    "A server, and the workers of another process on the same store."
    monkeypatch.setenv("STORE", f"sqlite:///{tmp_path}/warm.db")
    store = open_store(os.environ["STORE"])
    client = warm.client(store)
    with Server("warm_page_app:make_app") as server:
        try: yield server, SessionManagementService(store, "ingest"), client
        finally:
            client.lines.close()
            client.lines.engine.stop()
            deadline = time.monotonic() + 10
            while os.path.exists(client.lines.engine.place.path): assert time.monotonic() < deadline
            store.close()


BESIDE = """id => {
    const [name, mark] = ["a", ".wsw-mark"].map(e => document.querySelector(`[data-session="${id}"] .wsm-label > ${e}`)?.getBoundingClientRect());
    return name?.width > 90 && mark?.width > 20 && mark.left >= name.right - 1;
}"""

@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", ["wide", "phone"])
def test_every_state_of_a_worker_can_be_read_and_used(place, visitor, scheme, size):
    server, service, client = place
    warm_one, quiet = service.create_session("A session with a name that is much too long for the row of a phone", current_step="process"), service.create_session("Quiet")
    for end in (lambda s: s.end(), lambda s: client.lines.engine.kill(s.row)): end(client.session("counter", session_id=warm_one))
    rows = client.lines.rows
    rows.insert("sess_" + "0" * 32, "", "starts", "1", 60, client.lines.engine.host_id, session_id=warm_one, start_us=60_000_000)
    live = client.session("counter", timeout=600, flow_id="ingest", session_id=warm_one)
    live.call("say", {"text": "a very long line " * 40})
    page = visitor(color_scheme=scheme, **(PHONE if size == "phone" else {})).new_page()
    page.goto(f"{server.url}/manage/sessions")
    mark = page.locator(f'[data-session="{warm_one}"] .wsw-mark')
    expect(mark).to_be_visible()
    expect(mark).to_contain_text("warm")
    assert page.locator(f'[data-session="{quiet}"] .wsw-mark').count() == 0
    page.wait_for_function(BESIDE, arg=warm_one)
    assert axe(page) == [] and page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    page.goto(f"{server.url}/manage/sessions/session_detail?session_id={warm_one}")
    card = page.locator(f"#wsw-{live.id}")
    expect(card).to_contain_text(re.compile("kept for another (10|9) min"))
    expect(card).to_contain_text("MB")
    assert page.locator(".wsw-card").count() == 4 and page.locator(".wsw-card form").count() == 3   # one that starts can be ended
    card.get_by_text("End", exact=True).click()
    card.get_by_role("link", name="Show what it printed").focus()
    assert axe(page) == [] and page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    card.get_by_role("link", name="Show what it printed").click()
    expect(card.get_by_role("region", name="What it printed")).to_contain_text("A VERY LONG LINE")
    assert axe(page) == [] and page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    card.get_by_role("button", name="Keep alive").click()
    expect(card).to_contain_text(re.compile("kept for another (10|9) min"))
    card.get_by_text("End", exact=True).click()
    card.get_by_role("button", name="End it").click()
    expect(card).to_contain_text("Cold: it was ended")
    expect(card.get_by_role("button")).to_have_count(0)
    assert client.sessions.get(live.id)["state"] == "ended"


def test_the_buttons_need_no_script(place, visitor):
    server, service, client = place
    session_id = service.create_session("S")
    live = client.session("counter", session_id=session_id)
    page = visitor(java_script_enabled=False).new_page()
    page.goto(f"{server.url}/manage/sessions/session_detail?session_id={session_id}")
    card = page.locator(f"#wsw-{live.id}")
    card.get_by_role("button", name="Keep alive").click()
    card.get_by_text("End", exact=True).click()
    card.get_by_role("button", name="End it").click()
    expect(card).to_contain_text("Cold: it was ended")
