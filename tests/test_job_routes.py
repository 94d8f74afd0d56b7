"""Jobs over HTTP: the contract field for field, whose jobs they are, what hostile input does, and what it costs to be watched."""

import asyncio
import json
import logging
import os
import re
import signal
import socket
import subprocess
import threading
import time

import pytest
from fasthtml.common import FastHTML
from starlette.testclient import TestClient

import job_app
from changes_support import run, sign_in
from cjm_workflow_sessions.errors import InvalidInput, StoreUnavailable
from cjm_workflow_sessions.jobs.service import Jobs
from cjm_workflow_sessions.jobs.watching import job_hub_of
from cjm_workflow_sessions.routes.init import init_session_manager_routers
from cjm_workflow_sessions.routes.jobs import init_job_router
from cjm_workflow_sessions.services.management import SessionManagementService
from cjm_workflow_sessions.stores.base import open_store
from job_support import API, JobStream, ask, jobs_served_here, start, wait_for
from service_support import statements   # noqa: F401
from support import Server

RECORD = ["session_id", "status", "progress", "total_files", "current_file", "processed_files", "stats", "errors",
          "start_time", "end_time", "parameters", "commit_progress", "commit_errors"]
UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


@pytest.fixture
def store(tmp_path):
    store = open_store(f"sqlite:///{tmp_path}/jobs.db")
    yield store
    store.close()


@pytest.fixture
def jobs(store): return job_app.make_jobs(store)


@pytest.fixture
def web(jobs):
    "A browser on an app that runs no jobs."
    return visitor(jobs)


def visitor(jobs, **options):
    router = init_job_router(jobs, API, "file", **{"kind": "ingest", "check_parameters": job_app.check} | options)
    app = FastHTML(secret_key="test", hdrs=router.hdrs)
    router.to_app(app)
    client = TestClient(app, raise_server_exceptions=False, follow_redirects=False)
    client.routes = [(route.path, sorted({*route.methods} - {"HEAD"})[0]) for route in app.routes if getattr(route, "path", "").startswith(API)]
    return client


@pytest.fixture
def served(tmp_path):
    with Server("job_app:make_app", STORE=f"sqlite:///{tmp_path}/jobs.db") as server: yield server


def put(jobs, job_id, **columns):
    "Set a job as if a runner had."
    with jobs.store.edit(job_id) as held: return held.set(**columns)


def finish(jobs, job_id, status="completed"): return put(jobs, job_id, status=status, worker=None, due_at=None, ended_at="now")


# -- the contract --------------------------------------------------------------------------------------------------------

def curl(*args):
    found = subprocess.run(["curl", "-s", "-w", "\n%{http_code}", *args], capture_output=True, text=True, timeout=20, check=True).stdout
    text, _, status = found.rpartition("\n")
    return int(status), json.loads(text)


def test_the_life_of_a_job_by_curl(served):
    api = f"{served.url}{API}"
    assert curl(f"{api}/active-session") == (200, {"session_id": None, "status": None})
    parameters = {"directory": "/media/txt2img-images/2025-10-21", "pattern": "*.png|*.jpg", "enable_nsfw_detection": False, "max_files": 60}
    status, said = curl("-X", "POST", f"{api}/process", "-H", "Content-Type: application/json", "-d", json.dumps({"parameters": parameters}))
    assert status == 202 and list(said) == ["session_id", "status"] and said["status"] in ("starting", "processing")
    job_id = said["session_id"]
    assert re.fullmatch(UUID, job_id)
    status, said = curl(f"{api}/active-session")
    assert status == 200 and said["session_id"] == job_id and said["status"] in ("starting", "processing")
    assert curl("-X", "POST", f"{api}/commit/{job_id}")[0] == 409   # not yet
    record = wait_for(served.url, job_id, "completed")
    assert list(record) == RECORD
    assert {k: record[k] for k in ("session_id", "status", "progress", "total_files", "processed_files", "current_file", "errors", "commit_progress", "commit_errors")} == {
        "session_id": job_id, "status": "completed", "progress": 100, "total_files": 60, "processed_files": 60, "current_file": "00059.png",
        "errors": [], "commit_progress": None, "commit_errors": []}
    assert record["parameters"] == {"directory": "/photos", "pace_ms": 5, "bad_every": 0} | parameters
    assert record["stats"] == {"total_files": 60, "processed_files": 60, "metadata_extracted": 60, "keywords_added": sum(i % 7 for i in range(60)), "errors": 0}
    for name in ("start_time", "end_time"): assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", record[name])
    status, said = curl("-X", "POST", f"{api}/commit/{job_id}")
    assert (status, said) == (202, {"session_id": job_id, "status": "committing"})
    committed = wait_for(served.url, job_id, "committed")
    assert committed["commit_progress"] == 100 and committed["stats"]["committed"] == 60
    assert curl(f"{api}/export/{job_id}") == (200, committed)
    assert curl(f"{api}/sessions")[1]["sessions"] == [{k: v for k, v in committed.items() if k not in ("errors", "commit_errors")}]
    assert curl("-X", "DELETE", f"{api}/session/{job_id}") == (200, {"session_id": job_id, "status": None})
    assert curl(f"{api}/status/{job_id}")[0] == 404
    assert curl(f"{api}/active-session") == (200, {"session_id": None, "status": None})


def test_cancel_resume_and_retry_by_curl(served):
    api, job_id = f"{served.url}{API}", start(served.url, max_files=120, bad_every=10)
    assert curl("-X", "POST", f"{api}/cancel/{job_id}")[0] == 202
    cancelled = wait_for(served.url, job_id, "cancelled")
    assert cancelled["processed_files"] < 120
    assert curl("-X", "POST", f"{api}/resume/{job_id}") == (202, {"session_id": job_id, "status": "starting"})
    done = wait_for(served.url, job_id, "completed")
    assert (done["processed_files"], done["stats"]["errors"], len(done["errors"]), done["stats"]["metadata_extracted"]) == (120, 12, 12, 108)
    assert done["errors"][0] == "00009.png: ValueError: 00009.png is no <b>image</b>"
    assert curl("-X", "POST", f"{api}/retry/{job_id}")[0] == 202
    again = wait_for(served.url, job_id, "completed")
    assert (again["processed_files"], again["stats"]["metadata_extracted"], len(again["errors"])) == (120, 108, 12)
    for action in ("cancel", "resume"): assert curl("-X", "POST", f"{api}/{action}/{job_id}")[0] == 409


def test_a_running_job_is_deleted_and_writes_no_more(served):
    job_id = start(served.url, max_files=500)
    wait_for(served.url, job_id, "processing")
    assert ask(served.url, "DELETE", f"{API}/session/{job_id}")[0] == 200
    time.sleep(0.6)
    assert ask(served.url, "GET", f"{API}/status/{job_id}")[0] == 404 and ask(served.url, "GET", f"{API}/active-session")[1]["session_id"] is None


def test_two_workflows_with_one_kind_find_their_own(jobs):
    app = FastHTML(secret_key="test")
    for flow in ("a", "b"): init_job_router(jobs, f"/api/{flow}", "file", kind="ingest", flow_id=flow).to_app(app)
    web = TestClient(app)
    a, b = (web.post(f"/api/{flow}/process", json={"parameters": {}}).json()["session_id"] for flow in ("a", "b"))
    for flow, job_id in (("a", a), ("b", b)):
        assert [job["session_id"] for job in web.get(f"/api/{flow}/sessions").json()["sessions"]] == [job_id]
        assert web.get(f"/api/{flow}/active-session").json()["session_id"] == job_id


def test_the_noun_names_the_fields(jobs):
    web = visitor(jobs, kind=None)
    with_items = TestClient(_app(init_job_router(jobs, "/api/jobs")))
    job_id = jobs.start("other", {}).job_id
    assert list(web.get(f"{API}/status/{job_id}").json()) == RECORD
    assert list(with_items.get(f"/api/jobs/status/{job_id}").json()) == [name.replace("file", "item") for name in RECORD]
    assert (API + "/process", "POST") not in web.routes   # without a kind nothing is started


def _app(*routers):
    app = FastHTML(secret_key="test")
    for router in routers: router.to_app(app)
    return app


def test_style_and_script_come_along(web):
    for name in ("sessions.css", "sessions.js", "jobs.css", "jobs.js"): assert web.get(f"{API}/assets/{name}").status_code == 200
    assert web.get(f"{API}/assets/settings.ini").status_code == 404


def test_export_is_a_download(jobs, web):
    job_id = jobs.start("ingest", {"max_files": 3}).job_id
    answer = web.get(f"{API}/export/{job_id}")
    assert answer.headers["content-disposition"] == f'attachment; filename="ingest-{job_id[:8]}.json"' and answer.headers["cache-control"] == "no-store"
    assert answer.json() == web.get(f"{API}/status/{job_id}").json()


def test_history_by_pages(jobs, web):
    made = [jobs.start("ingest", {"max_files": i}).job_id for i in range(5)]
    jobs.start("other", {})
    seen, before = [], ""
    while True:
        said = web.get(f"{API}/sessions?limit=2{before}").json()
        seen += [row["session_id"] for row in said["sessions"]]
        if said["before"] is None: break
        before = f"&before={said['before']}"
    assert seen == made[::-1]
    for bad in ("limit=x", "limit=-1", "before=1e3", "limit=" + "9" * 30): assert web.get(f"{API}/sessions?{bad}").status_code == 422


def test_a_repeated_start_gives_the_same_job(web):
    body = {"parameters": {"max_files": 1}, "client_key": "k1"}
    one, two = (web.post(f"{API}/process", json=body).json() for _ in range(2))
    other = web.post(f"{API}/process", json=body | {"client_key": "k2"}).json()
    assert one == two and other["session_id"] != one["session_id"]


def test_a_repeated_start_makes_no_second_session(jobs):
    made = []
    web = visitor(jobs, get_session=lambda request: made.append(1) or f"s{len(made)}")
    for _ in range(3): answer = web.post(f"{API}/process", json={"parameters": {}, "client_key": "form 7"})
    assert answer.status_code == 202 and len(made) == 1 and [j.session_id for j in jobs.page().rows] == ["s1"]


def test_a_mistake_of_the_host_is_said_at_the_start(jobs):
    async def later(request): return "ann"
    for bad in ({"kind": "gone"}, {"prefix": "jobs"}, {"prefix": "/a b"}, {"noun": "a file"}, {"get_owner": later}, {"get_title": "x"}):
        with pytest.raises(InvalidInput): init_job_router(jobs, **bad)


# -- whose ---------------------------------------------------------------------------------------------------------------

def test_another_owner_finds_nothing_on_any_route(jobs):
    web = visitor(jobs, get_owner=lambda request: request.headers.get("user"))
    mine = finish(jobs, jobs.for_owner("ann").start("ingest", {"max_files": 1}).job_id).job_id
    before = jobs.get(mine)
    named = [(path, method) for path, method in web.routes if "{job_id}" in path]
    assert len(named) == 9
    for path, method in named:
        answers = [web.request(method, path.replace("{job_id}", i), headers={"user": "bob"}) for i in (mine, mine[::-1])]
        assert [a.status_code for a in answers] == [404, 404], path
        assert answers[0].text.replace(mine, "?") == answers[1].text.replace(mine[::-1], "?")
    for path, method in web.routes:
        if "assets" not in path: assert web.request(method, path.replace("{job_id}", mine) + "?id=" + mine).status_code == 401, path
    assert web.get(f"{API}/progress?id={mine}", headers={"user": "bob"}).json() == {"sessions": [{"session_id": mine, "status": None}]}
    assert web.get(f"{API}/sessions", headers={"user": "bob"}).json()["sessions"] == []
    assert web.get(f"{API}/active-session", headers={"user": "bob"}).json()["session_id"] is None
    assert jobs.get(mine) == before
    assert web.get(f"{API}/status/{mine}", headers={"user": "ann"}).json()["status"] == "completed"


def test_a_router_has_the_jobs_of_its_kind_only(jobs, web):
    other = jobs.start("other", {}).job_id
    for path, method in web.routes:
        if "{job_id}" in path: assert web.request(method, path.replace("{job_id}", other)).status_code == 404, path
    assert jobs.get(other).status == "starting"


def test_only_pages_of_this_origin_change_something(jobs, web):
    job = jobs.start("ingest", {"max_files": 1})
    changes = [(path, method) for path, method in web.routes if method != "GET"]
    assert len(changes) == 7
    for path, method in changes:
        for headers in ({"origin": "https://evil.org"}, {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site", "origin": "http://testserver"}):
            answer = web.request(method, path.replace("{job_id}", job.job_id), headers=headers)
            assert answer.status_code == 403 and "error" in answer.json(), path
        if method == "POST": assert web.get(path.replace("{job_id}", job.job_id)).status_code == 405
    assert jobs.get(job.job_id) == job and len(jobs.page().rows) == 1
    trusted = visitor(jobs, trusted_origins=["https://tools.example.org"])
    assert trusted.post(f"{API}/cancel/{job.job_id}", headers={"origin": "https://tools.example.org", "sec-fetch-site": "cross-site"}).status_code == 202


def test_a_manager_shows_the_jobs_of_its_flow_and_its_visitor(statements, tmp_path):
    store = open_store(f"sqlite:///{tmp_path}/a.db")
    jobs, service = job_app.make_jobs(store), SessionManagementService(store, "ingest")
    sessions = init_session_manager_routers(service, "/work", jobs=jobs, job_noun="file", get_owner=lambda request: request.headers.get("user"))
    web = TestClient(_app(*sessions.routers), raise_server_exceptions=False, follow_redirects=False)
    ann = [service.for_owner("ann").create_session(f"S{i}", current_step="read") for i in range(30)]
    def begin(session_id, flow="ingest", owner="ann"): return jobs.for_owner(owner).start("ingest", {"max_files": 1}, flow_id=flow, session_id=session_id).job_id
    def asked(path, user="ann"):
        statements.clear()
        return web.get(f"/manage/sessions{path}", headers={"user": user}), [s for s in statements if "wfs_job" in s]
    empty, read = asked("")
    assert len(read) == 1 and "data-job" not in empty.text
    mine, elsewhere, his = begin(ann[29]), begin(ann[28], flow="other"), begin(ann[27], owner="bob")
    for session_id in ann[10:25]: begin(session_id)
    page, read = asked("")
    assert len(read) == 1   # whatever the number of rows and jobs
    assert page.text.count('class="wsj-row"') == 16 and f'data-job="{mine}"' in page.text and elsewhere not in page.text and his not in page.text
    detail, _ = asked(f"/session_detail?session_id={ann[29]}")
    assert f'data-job="{mine}"' in detail.text and f'action="/manage/sessions/jobs/cancel/{mine}"' in detail.text and "of 1 file" not in detail.text
    for session_id in ann[27:29]: assert "No jobs yet" in asked(f"/session_detail?session_id={session_id}")[0].text
    for job_id in (elsewhere, his): assert web.post(f"/manage/sessions/jobs/cancel/{job_id}", headers={"user": "ann"}).status_code == 404
    assert web.post(f"/manage/sessions/jobs/cancel/{mine}", headers={"user": "bob"}).status_code == 404
    assert web.post(f"/manage/sessions/jobs/cancel/{mine}", headers={"user": "ann"}).status_code == 202
    assert web.post("/manage/sessions/jobs/process", json={"parameters": {}}, headers={"user": "ann"}).status_code in (404, 405)


def test_a_manager_without_jobs_is_as_it_was(tmp_path):
    service = SessionManagementService(open_store(f"sqlite:///{tmp_path}/a.db"), "ingest")
    sessions = init_session_manager_routers(service, "/work")
    session_id = service.create_session("S")
    web = TestClient(_app(*sessions.routers))
    assert len(sessions.routers) == 2 and "Jobs" not in web.get(f"/manage/sessions/session_detail?session_id={session_id}").text
    assert web.get("/manage/sessions/jobs/sessions").status_code == 404


# -- hostile input ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("body", [
    b"", b"{", b"null", b"[]", b"3", b"\"x\"", b"\xff\xfe", b"{\"parameters\": ", b"{}", b"{\"parameters\": null}", b"{\"parameters\": []}", b"{\"parameters\": \"x\"}",
    b"{\"parameters\": {\"max_files\": \"x\"}}", b"{\"parameters\": {\"unknown\": 1}}", b"{\"parameters\": {\"max_files\": NaN}}", b"{\"parameters\": {\"max_files\": 1e999}}",
    b"{\"parameters\": {\"max_files\": " + b"9" * 5000 + b"}}", b"{\"parameters\": {\"directory\": [" + b"[" * 100_000 + b"]" * 100_001 + b"}}", b"{" * 50_000,
    b"{\"parameters\": {}, \"client_key\": 3}", b"{\"parameters\": {}, \"client_key\": [\"x\"]}", b"x" * 3_000_000])
def test_a_bad_body_is_refused_in_json(jobs, web, body):
    for kind in ("application/json", "application/json; charset=utf-8", "text/json"):
        answer = web.post(f"{API}/process", content=body, headers={"content-type": kind})
        assert answer.status_code in (400, 413, 422) and list(answer.json()) == ["error"], (kind, answer.text[:200])
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "multipart/form-data", "image/png"):
        assert 400 <= web.post(f"{API}/process", content=body, headers={"content-type": kind}).status_code < 500
    assert jobs.page().rows == []


def test_a_body_that_is_cut_off_starts_nothing(served):
    body = b"pattern=*&directory=/photos/private"
    for kind in (b"application/x-www-form-urlencoded", b"application/json"):
        with socket.create_connection(("127.0.0.1", served.port)) as line:
            line.sendall(b"POST /api/ingest/process HTTP/1.1\r\nHost: x\r\nAccept: text/html\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s" % (kind, len(body), body[:-8]))
            time.sleep(0.3)
    time.sleep(0.7)
    assert ask(served.url, "GET", f"{API}/sessions")[1]["sessions"] == []


def test_deep_and_large_parameters_without_a_check(jobs):
    web = visitor(jobs, check_parameters=None)
    def nested(depth): return b'{"parameters": {"x": ' + b"[" * depth + b"]" * depth + b"}}"
    sent = {500: 202, 700: 422, 900: 422, 3000: 400}
    for depth, status in sent.items():
        answer = web.post(f"{API}/process", content=nested(depth), headers={"content-type": "application/json"})
        assert answer.status_code in (status, 400, 422) if status != 202 else answer.status_code == 202, (depth, answer.text[:200])
    assert web.post(f"{API}/process", json={"parameters": {"x": "y" * 1_200_000}}).status_code == 422
    odd = web.post(f"{API}/process", content=b'{"parameters": {"\\ud800": "\\ud800 \\u0000 </script>", "n": 123456789012345678901234567890}}', headers={"content-type": "application/json"})
    assert odd.status_code == 202
    for path in ("status", "export"): assert web.get(f"{API}/{path}/{odd.json()['session_id']}").json()["parameters"]["n"] == 123456789012345678901234567890
    assert len(web.get(f"{API}/sessions").json()["sessions"]) == 2


@pytest.mark.parametrize("job_id", ["%00", "a%00b", "x" * 3000, "%F0%9F%8E%89", "%ff", "..", "%2e%2e", "a%2fb", "%0d%0aSet-Cookie:x", "' OR 1=1 --", "null", "new"])
def test_an_id_that_is_none(web, job_id):
    for path, method in web.routes:
        if "{job_id}" in path: assert web.request(method, path.replace("{job_id}", job_id)).status_code in (404, 405), (path, method)
    for path in ("progress", "events"): assert web.get(f"{API}/{path}?id={job_id}").status_code == 200
    assert web.get(f"{API}/progress").status_code == web.get(f"{API}/progress?" + "&".join(f"id={i}" for i in range(300))).status_code == 422


def test_a_store_that_is_away(jobs, web, monkeypatch):
    def away(*args, **kwargs): raise StoreUnavailable("/secret/path.db", "it is locked")
    monkeypatch.setattr(jobs.store, "read", away)
    logging.disable()
    try: answer = web.get(f"{API}/status/x")
    finally: logging.disable(logging.NOTSET)
    assert answer.status_code == 503 and answer.json() == {"error": "The session store cannot be used: it is locked"}


# -- forms -----------------------------------------------------------------------------------------------------------------

FORM = {"accept": "text/html,*/*", "content-type": "application/x-www-form-urlencoded", "origin": "http://testserver"}


def test_forms_lead_back_to_their_page(jobs, web):
    led = web.post(f"{API}/process", content="directory=%2Fphotos&max_files=7&back=%2Fingest%3Ftab%3D2%26job%3Dold&client_key=abc", headers=FORM)
    job = jobs.page().rows[0]
    assert (led.status_code, led.headers["location"]) == (303, f"/ingest?tab=2&job={job.job_id}")
    assert (job.parameters["max_files"], "back" in job.parameters) == (7, False)
    for target in ("https://evil.org", "//evil.org", "/\\evil.org", "javascript:alert(1)", "/%0d%0aSet-Cookie: a=b", ""):
        led = web.post(f"{API}/cancel/{job.job_id}", content=f"back={target}", headers=FORM)
        assert (led.status_code, led.headers["location"]) == (303, "/")
    refused = web.post(f"{API}/process", content="max_files=many&back=%2Fingest", headers=FORM)
    assert refused.status_code == 422 and "max_files" in refused.text and 'href="/ingest"' in refused.text and "<html" in refused.text
    assert web.post(f"{API}/commit/{job.job_id}", content="back=%2Fx", headers=FORM).status_code == 409
    assert web.post(f"{API}/delete/{job.job_id}", content="back=%2Fingest", headers=FORM).headers["location"] == "/ingest"


# -- live progress -----------------------------------------------------------------------------------------------------------

def test_a_stream_tells_a_job_to_its_end(served):
    async def follow():
        job_id = await asyncio.to_thread(start, served.url, max_files=100, bad_every=25)
        stream = await JobStream.open(served.url, f"{API}/events/{job_id}")
        head = stream.head.lower()
        assert "content-type: text/event-stream" in head and "cache-control: no-store" in head and "x-accel-buffering: no" in head and "set-cookie" not in head
        told = await stream.rest()
        assert [name for name, _, _ in told[:-1]] == ["progress"] * (len(told) - 1) and told[-1][0] == "end"
        ids = [number for _, number, _ in told]
        assert ids == sorted(set(ids))
        last = told[-1][2]
        assert (last["status"], last["progress"], last["processed_files"], last["failed"], last["shown"]["text"]["brief"]) == ("completed", 100, 100, 4, "Waits for you")
        assert {"parameters", "errors", "commit_errors"} & set(last) == set()
        assert (await JobStream.open(served.url, f"{API}/events/{job_id}", last_id=str(ids[-1]))).status == 204   # nothing was missed, and nothing will come
        missed = await (await JobStream.open(served.url, f"{API}/events/{job_id}", last_id=str(ids[0]))).rest()
        assert [(name, number) for name, number, _ in missed] == [("end", ids[-1])]
    run(follow())


def test_a_reader_that_comes_back_after_a_restart_sees_the_end(served):
    async def follow():
        job_id = await asyncio.to_thread(start, served.url, max_files=200, pace_ms=10)
        stream = await JobStream.open(served.url, f"{API}/events/{job_id}")
        while (event := await stream.next("progress"))[2]["processed_files"] < 40: pass
        await asyncio.to_thread(served.kill)
        await asyncio.to_thread(served.start)
        told = await (await JobStream.open(served.url, f"{API}/events/{job_id}", last_id=str(event[1]))).rest()
        assert told[0][2]["processed_files"] >= 40   # from the checkpoint
        assert told[-1][0] == "end" and told[-1][2]["status"] == "completed" and told[-1][2]["stats"]["metadata_extracted"] == 200
    run(follow())


def test_several_jobs_in_one_stream(jobs, store):
    web = _app(init_job_router(jobs, API, "file", kind="ingest"))
    one, two = (jobs.start("ingest", {"max_files": 1}).job_id for _ in range(2))
    other = jobs.start("other", {}).job_id
    async def follow(url):
        stream = await JobStream.open(url, f"{API}/events?id={one}&id={two}&id={other}&id={one}&id=gone")
        first = [await stream.next() for _ in range(4)]
        assert [(name, number, data["session_id"], data["status"]) for name, number, data in first] == [
            ("progress", None, one, "starting"), ("progress", None, two, "starting"), ("end", None, other, None), ("end", None, "gone", None)]
        jobs.cancel(two)
        assert (await stream.next())[2]["session_id"] == two
        jobs.delete(one)
        assert await stream.next() == ("end", None, {"session_id": one, "status": None})
        assert await stream.next() is None
    with jobs_served_here(web, store, jobs) as url: run(follow(url))


def test_a_job_whose_runner_is_gone_shows_it_although_nothing_was_written(jobs, store):
    app = _app(init_job_router(jobs, API, "file", kind="ingest"))
    jobs.lease_s = 0.5
    job_id = jobs.start("ingest", {"max_files": 1}).job_id
    jobs.claim("a worker that dies")
    async def follow(url):
        stream = await JobStream.open(url, f"{API}/events/{job_id}")
        name, number, data = await stream.next()
        assert (name, data["status"]) == ("progress", "processing")
        name, same, data = await stream.next("progress", 8)
        assert (same, data["status"], data["shown"]["live"]) == (number, "interrupted", True)   # it may be taken up again
    with jobs_served_here(app, store, jobs) as url: run(follow(url))


def test_two_hundred_who_watch_cost_what_one_costs(statements, tmp_path):
    store = open_store(f"sqlite:///{tmp_path}/a.db")
    jobs = job_app.make_jobs(store)
    job_id = jobs.start("ingest", {"max_files": 1}).job_id
    api, manager = init_job_router(jobs, API, "file", kind="ingest"), init_job_router(jobs, "/manager/jobs")
    async def follow(url):
        paths = [f"{API}/events/{job_id}", f"/manager/jobs/events?id={job_id}"]   # both share the hub
        streams = await asyncio.gather(*(JobStream.open(url, paths[i % 2]) for i in range(200)))
        await asyncio.gather(*(s.next("progress") for s in streams))
        await asyncio.sleep(1)
        statements.clear()
        await asyncio.sleep(4)
        assert 0 < len(statements) <= 20, statements   # 5 a second
        assert [t.name for t in threading.enumerate()].count("job-progress") == 1
        assert (await asyncio.to_thread(ask, url, "GET", f"{API}/active-session"))[0] == 200   # no stream holds a thread that others need
        waits = []
        for n in range(3):
            began = time.monotonic()
            await asyncio.to_thread(put, jobs, job_id, processed=n + 1, total=9)
            told = await asyncio.gather(*(s.next("progress") for s in streams))
            waits.append(time.monotonic() - began)
            assert {data["processed_files" if "processed_files" in data else "processed_items"] for _, _, data in told} == {n + 1}
        assert max(waits) < 0.5, waits
        for s in streams: s.close()
        while job_hub_of(jobs)._watches: await asyncio.sleep(0.05)
    with jobs_served_here(_app(api, manager), store, jobs) as url: run(follow(url))


def test_owners_follow_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("STORE", f"sqlite:///{tmp_path}/a.db")
    with Server("job_app:make_app", OWNERS="1", RUNNER="no") as server:
        cookies = {user: sign_in(server.url, user) for user in ("ann", "bob")}
        job_id = start(server.url, cookies["ann"], max_files=1)
        async def follow():
            assert [(await JobStream.open(server.url, f"{API}/events/{job_id}", cookie=c)).status for c in ("", cookies["bob"], cookies["ann"])] == [401, 404, 200]
            stream = await JobStream.open(server.url, f"{API}/events?id={job_id}", cookie=cookies["bob"])
            assert await stream.next() == ("end", None, {"session_id": job_id, "status": None})
            his = await asyncio.to_thread(start, server.url, cookies["bob"], max_files=1)
            stream = await JobStream.open(server.url, f"{API}/events?id={job_id}&id={his}", cookie=cookies["bob"])
            assert [(await stream.next())[2]["session_id"] for _ in range(2)] == [job_id, his]
            jobs = job_app.make_jobs(open_store(os.environ["STORE"]))
            put(jobs, job_id, processed=1)
            with pytest.raises(TimeoutError): await stream.next(timeout_s=1.5)   # his stream is alive, and says nothing of hers
            put(jobs, his, processed=1)
            assert (await stream.next())[2]["session_id"] == his
        run(follow())


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_that_is_told_to_stop_is_not_held_by_its_streams(tmp_path, workers):
    with Server("job_app:make_app", workers=workers, STORE=f"sqlite:///{tmp_path}/a.db", RUNNER="no") as server:
        job_id = start(server.url, max_files=1)
        async def stop():
            streams = [await JobStream.open(server.url, f"{API}/events/{job_id}") for _ in range(3 * workers)]
            for s in streams: await s.next("progress")
            told_at = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            for s in streams: assert await s.rest(10) == []
            await asyncio.to_thread(server.process.wait, 10)
            assert time.monotonic() - told_at < 5
        run(stop())
