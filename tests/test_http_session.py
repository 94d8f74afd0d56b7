"""The stored HTTP session behind a real FastHTML app: every rule of it, on every store that keeps it, and what hostile browsers send."""

import asyncio
import json
import logging
import re
import threading
import time
from base64 import b64encode
from datetime import datetime, timedelta, timezone

import pytest
from cjm_workflow_state.state_store import SQLiteWorkflowStateStore
from fasthtml.common import (Beforeware, EventStream, FastHTML, HTTPException, P, Request, Response, StreamingResponse, add_toast, setup_toasts)
from itsdangerous import Signer, TimestampSigner
from starlette.background import BackgroundTask
from starlette.datastructures import Secret
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.testclient import TestClient

from cjm_workflow_sessions.core import lazy_values, stored_session
from cjm_workflow_sessions.core.http_cookie import digest_of, new_key
from cjm_workflow_sessions.core.http_session import clear_expired, session_of, stored_sessions
from cjm_workflow_sessions.core.job_session import JobSessionManager
from cjm_workflow_sessions.core.lifetime import SECOND
from cjm_workflow_sessions.core.workflow_session import WorkflowSession
from cjm_workflow_sessions.errors import InvalidInput, NotJSON, SessionEnded, StoreUnavailable
from cjm_workflow_sessions.stores.base import HTTPChange, HTTPRow, HTTPTimes, Spent, open_store
from cjm_workflow_sessions.stores.cjm import CjmStore
from cjm_workflow_sessions.utils import dump_json
from changes_support import run
from store_support import in_threads, lock_held

STRANGE = "7D8n5Pr2cYR7Net0GSsZOiZ5lWlJbG5SgdKN-CRX7Qc"   # Looks like a key of the server, and is none
NAME, SECRET, DAY = "session_", "test", 86400


# -- the app and its visitors ----------------------------------------------------------------------------------------------

class Clock:
    "A clock that stands still until it is moved."
    def __init__(self): self.us = 1_800_000_000 * SECOND
    def __call__(self): return self.us
    def forward(self, seconds): self.us += round(seconds * SECOND)


class Counted:
    "A store's HTTP sessions, with the calls that were made."
    remote = False
    def __init__(self, rows): self.rows, self.calls, self.broken = rows, [], None

    @property
    def http_sessions(self): return self

    def __getattr__(self, name):
        def call(*args):
            self.calls.append(name)
            if self.broken: raise self.broken
            return getattr(self.rows, name)(*args)
        return call


@pytest.fixture(params=["file", "memory", "postgres"])
def store(request, tmp_path):
    if request.param == "postgres": url = request.getfixturevalue("postgres").fresh_url()
    else: url = "memory:" if request.param == "memory" else f"sqlite:///{tmp_path}/sessions.db"
    store = open_store(url)
    yield store
    store.close()


@pytest.fixture
def memory():
    store = open_store("memory:")
    yield store
    store.close()


def make_app(store, *, old_secrets=(), idle_s=1000, carry_over_until=None, clock=None, secret=SECRET, max_age=10_000, **options):
    clock = {"clock": clock} if clock else {}
    sess_cls = stored_sessions(store, idle_s=idle_s, old_secrets=old_secrets, carry_over_until=carry_over_until, **clock)
    return add_pages(FastHTML(secret_key=secret, sess_cls=sess_cls, max_age=max_age, **options))


def add_pages(app):
    @app.get("/untouched")
    def untouched(): return "same for all"

    @app.get("/all")
    def everything(sess): return json.dumps(dict(sess))

    @app.get("/set")
    def set_key(sess, key: str, value: str, status: int = 200):
        sess[key] = json.loads(value)
        return Response("set", status_code=status)

    @app.get("/append")
    def append(sess, value: str):
        sess.setdefault("list", []).append({"deep": [value]})
        return "appended"

    @app.get("/deeper")
    def deeper(sess):
        sess["list"][0]["deep"].append("deeper")
        return "appended"

    @app.get("/remove")
    def remove(sess, key: str):
        del sess[key]
        return "removed"

    @app.get("/raise")
    def fail(sess):
        sess["half"] = "done"
        raise RuntimeError("half done")

    @app.get("/http-error")
    def http_error(sess, status: int):
        sess["status"] = status
        raise HTTPException(status)

    @app.get("/bytes")
    def not_json(sess):
        sess["fine"], sess["photo"] = 1, b"raw"
        return "never"

    @app.get("/login")
    def login(sess, status: int = 200):
        sess.cycle_key()
        sess["user"] = "ann"
        return Response(sess.key, status_code=status)

    @app.get("/logout")
    def logout(sess):
        sess.flush()
        return "bye"

    @app.get("/clear")
    def clear(sess):
        sess.clear()
        return "bye"

    return app


def visitor(app, cookie=None, *, base_url="http://testserver", name=NAME):
    client = TestClient(app, base_url=base_url, raise_server_exceptions=False)
    if cookie: client.cookies.set(name, cookie, domain="testserver.local")
    return client

def cookie_of(client): return client.cookies[NAME]
def seen(app, cookie): return visitor(app, cookie).get("/all").json()
def count(store): return store.rows("SELECT count(*) FROM wfs_http_session")[0][0]
def starlette_cookie(content, secret=SECRET): return TimestampSigner(secret).sign(b64encode(json.dumps(content).encode())).decode()
def tomorrow(): return datetime.now(timezone.utc) + timedelta(days=1)


# -- reading and writing ---------------------------------------------------------------------------------------------------

def test_no_work_where_it_is_not_touched(memory):
    counted = Counted(memory.http_sessions)
    app = make_app(counted)
    ann = visitor(app)
    ann.get("/set?key=a&value=1")
    counted.calls.clear()
    answer = ann.get("/untouched")
    assert counted.calls == [] and "set-cookie" not in answer.headers and "Cookie" not in answer.headers["vary"]


def test_a_visitor_without_a_session_costs_no_query_and_gets_no_cookie(memory):
    counted = Counted(memory.http_sessions)
    answer = visitor(make_app(counted)).get("/all")
    assert counted.calls == [] and "set-cookie" not in answer.headers and "Cookie" in answer.headers["vary"]


def test_reading_reads_once_and_writes_nothing(memory):
    counted = Counted(memory.http_sessions)
    ann = visitor(make_app(counted))
    ann.get("/set?key=a&value=[1]")
    counted.calls.clear()
    answer = ann.get("/all")
    assert answer.json() == {"a": [1]} and counted.calls == ["load"] and "set-cookie" not in answer.headers


def test_setting_the_same_value_writes_nothing(memory):
    counted = Counted(memory.http_sessions)
    ann = visitor(make_app(counted))
    for _ in range(2):
        counted.calls.clear()
        ann.get('/set?key=a&value={"x":[1,null]}')
    assert counted.calls == ["load"]


def test_nested_changes_are_kept(store):
    ann = visitor(make_app(store))
    ann.get("/append?value=a"), ann.get("/append?value=b"), ann.get("/deeper")
    assert ann.get("/all").json() == {"list": [{"deep": ["a", "deeper"]}, {"deep": ["b"]}]}


def test_any_text_is_a_key_and_values_are_as_large_as_they_like(store):
    app = make_app(store)
    odd = {"": 1, "a\x00b": "\x00", "é🎈": "\ud800", '"': [None, True, 1.5], "k" * 3000: "x" * 100_000}
    @app.get("/odd")
    def set_odd(sess):
        sess.update(odd)
        return "set"
    ann = visitor(app)
    for _ in range(2): assert ann.get("/odd").text == "set"
    assert ann.get("/all").json() == odd


def test_removed_keys_are_gone_and_others_stay(store):
    ann = visitor(make_app(store))
    for key in "abc": ann.get(f"/set?key={key}&value=1")
    ann.get("/remove?key=b")
    assert ann.get("/all").json() == {"a": 1, "c": 1} and ann.get("/remove?key=b").status_code == 500


def test_a_damaged_value_can_be_removed_and_replaced(store):
    app = make_app(store)
    @app.get("/pop")
    def pop(sess): return json.dumps([sess.pop("bad", "none"), sess.pop("bad", "none"), sess["good"]])
    ann = visitor(app)
    ann.get("/set?key=good&value=1"), ann.get("/set?key=bad&value=1")
    store.rows("""UPDATE wfs_http_value SET value = '{' WHERE key = '"bad"'""")
    assert ann.get("/all").status_code == 500
    assert ann.get("/pop").json() == ["none", "none", 1] and ann.get("/all").json() == {"good": 1}


@pytest.mark.parametrize("path", ["/raise", "/http-error?status=500", "/http-error?status=503", "/set?key=half&value=1&status=500", "/bytes"])
def test_nothing_is_stored_by_an_answer_that_failed(store, path):
    app = make_app(store)
    new = visitor(app)
    assert new.get(path).status_code >= 500 and not new.cookies and count(store) == 0
    ann = visitor(app)
    ann.get("/set?key=a&value=1")
    assert ann.get(path).status_code >= 500
    assert ann.get("/all").json() == {"a": 1}


def test_an_answer_that_refuses_is_no_failure(store):
    ann = visitor(make_app(store))
    for status in (403, 404, 422): assert ann.get(f"/http-error?status={status}").status_code == status
    assert ann.get("/all").json() == {"status": 422}


def test_a_value_that_json_cannot_hold_is_named(memory):
    with pytest.raises(NotJSON, match="'photo'"): TestClient(make_app(memory)).get("/bytes")
    assert count(memory) == 0


@pytest.mark.parametrize("kind", [TypeError, ValueError, OSError, NotJSON])
def test_a_value_that_json_cannot_hold_is_no_business_of_the_hosts_handlers(memory, kind):
    app = make_app(memory, exception_handlers={kind: lambda request, error: Response("the host's own page", status_code=422)})
    @app.get("/own")
    def own(): raise kind("photo", "of the handler's own")
    assert TestClient(app).get("/own").status_code == 422
    with pytest.raises(NotJSON, match="'photo'") as raised: TestClient(app).get("/bytes")
    assert isinstance(raised.value.__cause__, TypeError) and visitor(app).get("/bytes").status_code == 500


def test_the_session_is_stored_before_the_headers_go_out(store):
    app, found = make_app(store), []
    async def send(message):
        if message["type"] == "http.response.start": found.append(count(store))
    scope = {"type": "http", "method": "GET", "path": "/set", "query_string": b"key=a&value=1", "headers": [], "scheme": "http", "server": ("testserver", 80)}
    async def receive(): return {"type": "http.request", "body": b"", "more_body": False}
    run(app(scope, receive, send))
    assert found == [1]


@pytest.mark.parametrize("read, varies", [(lambda request, sess: len(sess), True), (lambda request, sess: request.session.get("a"), True), (lambda request, sess: "a" in sess, True),
                                          (lambda request, sess: sess.pop("a", None), True), (lambda request, sess: sess.cycle_key(), True), (lambda request, sess: request.session, False)])
def test_vary_by_whichever_way_it_is_read(memory, read, varies):
    app = make_app(memory)
    @app.get("/read")
    def reading(request: Request, sess):
        read(request, sess)
        return Response("ok", headers={"Vary": "Accept"})
    vary = visitor(app).get("/read").headers["vary"]
    assert ("Cookie" in vary) == varies and "Accept" in vary


def test_async_handlers_and_beforeware_and_toasts(store):
    def remember(sess): sess["seen"] = sess.get("seen", 0) + 1
    app = make_app(store, before=Beforeware(remember))
    setup_toasts(app)
    @app.get("/toast")
    async def toast(sess):
        await sess.aload()
        add_toast(sess, "Saved & sound", "success")
        return P("page")
    @app.get("/redirected")
    def redirected(sess):
        add_toast(sess, "From elsewhere")
        return Response(status_code=303, headers={"Location": "/toast"})
    ann = visitor(app)
    assert "Saved &amp; sound" in ann.get("/toast").text
    assert "From elsewhere" in ann.get("/redirected").text
    found = ann.get("/all").json()
    assert found["seen"] == 4 and "toasts" not in found


def test_both_classes_have_room_for_what_a_cookie_would_refuse(store):
    app = make_app(store)
    @app.get("/work")
    def work(sess):
        WorkflowSession(sess, "ingest").set("text", "x" * 20_000)
        with WorkflowSession(sess, "ingest").edit("files", default=[]) as files: files += ["a.wav"] * 500
        JobSessionManager(sess).store_job_metadata("j1", {"log": ["line"] * 2000})
        return "done"
    @app.get("/sizes")
    def sizes(sess):
        workflow = WorkflowSession(sess, "ingest")
        return json.dumps([len(workflow.get("text")), len(workflow.get("files")), len(JobSessionManager(sess).get_job_metadata("j1")["log"])])
    ann = visitor(app)
    assert ann.get("/work").text == "done" and ann.get("/sizes").json() == [20_000, 500, 2000]
    assert len(cookie_of(ann)) < 100


# -- keys ------------------------------------------------------------------------------------------------------------------

def test_the_store_knows_no_key(store):
    app = make_app(store)
    ann = visitor(app)
    key = ann.get("/login").text
    assert cookie_of(ann).startswith(key + ".")
    held = repr([store.rows(f"SELECT * FROM {table}") for table in ("wfs_http_session", "wfs_http_value", "wfs_http_spent")])
    assert digest_of(key) in held and key not in held and len(key) >= 43


def signed(key, secret=SECRET):
    "The cookie of a key, as the library signs it: what somebody who knows the secret could send."
    import hashlib
    return Signer(secret, salt="cjm-workflow-sessions key", digest_method=hashlib.sha256).sign(key).decode()


@pytest.mark.parametrize("chosen", [STRANGE, "A" * 43, "", ".", "..", "null", "x" * 5000, "é", "\\342\\202\\254", "'; DROP TABLE wfs_http_session; --", "a.b.c",
                                    starlette_cookie({"user": "eve"}), signed("k", "other"), Signer(SECRET).sign("k").decode(), TimestampSigner(SECRET).sign("k").decode()], ids=lambda _: "cookie")
def test_what_is_not_signed_reaches_no_store_and_is_not_adopted(memory, chosen):
    counted = Counted(memory.http_sessions)
    eve = visitor(make_app(counted))
    headers = {"Cookie": f"{NAME}={chosen}".encode()}
    assert eve.get("/all", headers=headers).json() == {} and counted.calls == []
    assert eve.get("/set?key=a&value=1", headers=headers).text == "set"
    assert counted.calls == ["create"] and cookie_of(eve) != chosen


@pytest.mark.parametrize("key", [STRANGE, "short", "é", ""])
def test_an_unknown_key_is_discarded_even_with_a_signature(store, key):
    app = make_app(store)
    eve, headers = visitor(app), {"Cookie": f"{NAME}={signed(key)}".encode()}
    assert eve.get("/all", headers=headers).json() == {}
    eve.get("/set?key=a&value=1", headers=headers)
    assert cookie_of(eve) != signed(key) and seen(app, cookie_of(eve)) == {"a": 1}
    assert visitor(app).get("/all", headers=headers).json() == {}


def test_an_unknown_key_is_not_answered_with_a_cookie(memory):
    "A request that was on its way during a login must not take the new cookie away."
    assert "set-cookie" not in visitor(make_app(memory), signed(new_key())).get("/all").headers


def test_login_gives_a_new_key_and_keeps_the_data(store):
    app = make_app(store)
    ann = visitor(app)
    ann.get("/set?key=cart&value=[1]")
    before = cookie_of(ann)
    ann.get("/login")
    assert cookie_of(ann) != before and count(store) == 1
    assert seen(app, before) == {} and ann.get("/all").json() == {"cart": [1], "user": "ann"}


def test_a_login_that_fails_changes_neither_key_nor_data(store):
    ann = visitor(make_app(store))
    ann.get("/set?key=cart&value=[1]")
    before = cookie_of(ann)
    assert ann.get("/login?status=500").status_code == 500
    assert cookie_of(ann) == before and ann.get("/all").json() == {"cart": [1]}


@pytest.mark.parametrize("path", ["/logout", "/clear"])
def test_after_logout_the_old_cookie_is_dead_at_once(store, path):
    app = make_app(store)
    ann = visitor(app)
    ann.get("/set?key=a&value=1")
    old = cookie_of(ann)
    answer = ann.get(path)
    assert "Max-Age=0" in answer.headers["set-cookie"] and NAME not in ann.cookies
    assert seen(app, old) == {} and count(store) == 0
    assert store.rows("SELECT count(*) FROM wfs_http_value") == [(0,)]


def test_clear_ends_the_session_with_all_that_others_have_stored_in_it(store):
    app = make_app(store)
    @app.get("/bye")
    def bye(sess):
        sess.clear()
        visitor(app, cookie).get("/set?key=unseen&value=1")
        sess["said"] = "good-bye"
        return "bye"
    ann = visitor(app)
    ann.get("/login")
    cookie = cookie_of(ann)
    ann.get("/bye")
    assert ann.get("/all").json() == {"said": "good-bye"} and cookie_of(ann) != cookie
    assert seen(app, cookie) == {} and count(store) == 1


def test_a_clear_is_undone_if_the_answer_fails(store):
    app = make_app(store)
    @app.get("/bad-clear")
    def bad_clear(sess):
        sess.clear()
        raise RuntimeError
    ann = visitor(app)
    ann.get("/login")
    assert ann.get("/bad-clear").status_code == 500 and ann.get("/all").json() == {"user": "ann"}


@pytest.mark.parametrize("end", ["clear", "flush"])
def test_a_logout_in_the_middle_of_a_transaction_is_refused_rather_than_undone(store, end):
    app = make_app(store)
    store.create_session("f", "s")
    @app.get("/bad-logout")
    def bad_logout(sess):
        with store.edit_state("f", "s"):
            getattr(sess, end)()
            sess.save()
    @app.get("/bad-new")
    def bad_new(sess):
        sess["a"] = 1
        with store.edit_state("f", "s"):
            with pytest.raises(InvalidInput, match="after the block"): sess.save()
        return str(sess.stored_key)
    ann = visitor(app)
    assert ann.get("/bad-new").text == "None" and ann.get("/all").json() == {"a": 1}
    assert ann.get("/bad-logout").status_code == 500 and ann.get("/all").json() == {"a": 1}
    with pytest.raises(InvalidInput, match="after the block"): TestClient(app, cookies=ann.cookies).get("/bad-logout")


def test_a_transaction_of_another_thread_is_waited_for(store):
    ann, began = visitor(make_app(store)), threading.Event()
    store.create_session("f", "s")
    def edit():
        with store.edit_state("f", "s"):
            began.set()
            time.sleep(0.2)
    def save():
        assert began.wait(20)
        assert ann.get("/set?key=a&value=1").status_code == 200
    in_threads(edit, save)
    assert ann.get("/all").json() == {"a": 1}


def test_logout_is_seen_by_a_server_that_has_the_store_open(tmp_path):
    url = f"sqlite:///{tmp_path}/sessions.db"
    here, there = make_app(open_store(url)), make_app(open_store(url))
    ann = visitor(here)
    ann.get("/login")
    old = cookie_of(ann)
    assert seen(there, old) == {"user": "ann"}
    ann.get("/logout")
    assert seen(there, old) == {}


def test_logout_is_done_even_if_the_answer_fails(store):
    app = make_app(store)
    @app.get("/bad-logout")
    def bad_logout(sess):
        sess.flush()
        raise RuntimeError
    ann = visitor(app)
    ann.get("/login")
    assert ann.get("/bad-logout").status_code == 500 and seen(app, cookie_of(ann)) == {}


def test_keys_set_after_a_logout_begin_a_new_session(store):
    app = make_app(store)
    @app.get("/leave")
    def leave(sess):
        sess.flush()
        sess["said"] = "good-bye"
        return "bye"
    ann = visitor(app)
    ann.get("/login")
    old = cookie_of(ann)
    ann.get("/leave")
    assert cookie_of(ann) != old and ann.get("/all").json() == {"said": "good-bye"} and seen(app, old) == {}


def test_secrets_are_rotated_without_a_logout(store):
    first = visitor(make_app(store, secret="old"))
    first.get("/set?key=a&value=1")
    both = make_app(store, secret="new", old_secrets=("older", "old"))
    ann = visitor(both, cookie_of(first))
    answer = ann.get("/all")
    assert answer.json() == {"a": 1}
    renewed = re.match(f"{NAME}=([^;]+)", answer.headers["set-cookie"])[1]
    assert seen(make_app(store, secret="new"), renewed) == {"a": 1}
    assert seen(make_app(store, secret="new"), cookie_of(first)) == {}
    assert "set-cookie" not in visitor(both, renewed).get("/all").headers


def test_a_login_that_fails_keeps_a_cookie_of_an_old_secret_alive(store):
    first = visitor(make_app(store, secret="old"))
    first.get("/set?key=a&value=1")
    app = make_app(store, secret="new", old_secrets=("old",))
    answer = visitor(app, cookie_of(first)).get("/login?status=500")
    assert seen(app, re.match(f"{NAME}=([^;]+)", answer.headers["set-cookie"])[1]) == {"a": 1} == seen(app, cookie_of(first))


# -- the cookie ------------------------------------------------------------------------------------------------------------

def test_attributes_over_http(memory):
    answer = visitor(make_app(memory)).get("/set?key=a&value=1")
    assert re.fullmatch(rf"{NAME}=[\w-]{{43}}\.[\w-]+; Path=/; Max-Age=1000; HttpOnly; SameSite=lax", answer.headers["set-cookie"])


def test_attributes_over_https(memory):
    app = make_app(memory)
    ann = visitor(app, base_url="https://testserver")
    answer = ann.get("/set?key=a&value=1")
    assert re.fullmatch(rf"__Host-{NAME}=\S+; Path=/; Max-Age=1000; HttpOnly; SameSite=lax; Secure", answer.headers["set-cookie"])
    assert ann.get("/all").json() == {"a": 1}
    planted = visitor(app, ann.cookies[f"__Host-{NAME}"], base_url="https://testserver")   # under the plain name, as a neighbour could
    assert planted.get("/all").json() == {}
    removed = ann.get("/logout").headers["set-cookie"]
    assert removed.startswith(f"__Host-{NAME}=;") and "Secure" in removed and "Path=/;" in removed


@pytest.mark.parametrize("options, expected", [
    ({"sess_https_only": True}, rf"__Host-{NAME}=\S+; Path=/; Max-Age=1000; HttpOnly; SameSite=lax; Secure"),
    ({"sess_path": "/app"}, rf"{NAME}=\S+; Path=/app; Max-Age=1000; HttpOnly; SameSite=lax"),
    ({"sess_domain": "example.org", "same_site": "strict", "session_cookie": "mine"}, r"mine=\S+; Path=/; Max-Age=1000; HttpOnly; SameSite=strict; Domain=example.org"),
    ({"max_age": None}, rf"{NAME}=\S+; Path=/; HttpOnly; SameSite=lax"),
    ({"max_age": 60}, rf"{NAME}=\S+; Path=/; Max-Age=60; HttpOnly; SameSite=lax"),
    ({"idle_s": 50_000}, rf"{NAME}=\S+; Path=/; Max-Age=10000; HttpOnly; SameSite=lax"),
])
def test_the_options_of_fasthtml_keep_their_meaning(memory, options, expected):
    clock = Clock()
    assert re.fullmatch(expected, visitor(make_app(memory, clock=clock, **options)).get("/set?key=a&value=1").headers["set-cookie"])


# -- time ------------------------------------------------------------------------------------------------------------------

def test_an_idle_session_ends_and_a_used_one_lives_until_the_absolute_end(store):
    clock = Clock()
    app = make_app(store, idle_s=100, max_age=1000, clock=clock)
    ann = visitor(app)
    ann.get("/set?key=a&value=1")
    first = cookie_of(ann)
    for _ in range(11):
        clock.forward(90)
        assert seen(app, first) == {"a": 1}
    clock.forward(10)
    assert seen(app, first) == {}   # 1000 seconds after it was made
    ann = visitor(app)
    ann.get("/set?key=a&value=1")
    clock.forward(100)
    assert seen(app, cookie_of(ann)) == {}


def test_a_use_is_written_down_once_in_a_while_with_the_cookie(memory):
    clock, counted = Clock(), Counted(memory.http_sessions)
    ann = visitor(make_app(counted, idle_s=1000, clock=clock))
    ann.get("/set?key=a&value=1")
    written = []
    for second in range(200):
        clock.forward(1)
        counted.calls.clear()
        answer = ann.get("/all")
        assert ("change" in counted.calls) == ("set-cookie" in answer.headers)
        if "change" in counted.calls: written.append(second + 1)
    assert written == [50, 100, 150, 200]
    assert "Max-Age=1000" in answer.headers["set-cookie"]


def test_a_busy_writer_is_prolonged_too(memory):
    clock = Clock()
    ann = visitor(make_app(memory, idle_s=100, clock=clock))
    for n in range(100):
        ann.get(f"/set?key=a&value={n}")
        clock.forward(3)
    assert ann.get("/all").json() == {"a": 99}


def test_one_session_lives_longer_than_others(store):
    clock = Clock()
    app = make_app(store, idle_s=100, max_age=1000, clock=clock)
    @app.get("/remember-me")
    def remember(sess, seconds: int):
        sess.set_expiry(seconds or None)
        return "ok"
    ann = visitor(app)
    ann.get("/set?key=a&value=1")
    assert "Max-Age=500" in ann.get("/remember-me?seconds=500").headers["set-cookie"]
    clock.forward(499)
    assert ann.get("/all").json() == {"a": 1}
    assert "Max-Age=100;" in ann.get("/remember-me?seconds=0").headers["set-cookie"]
    clock.forward(100)
    assert ann.get("/all").json() == {}


def test_a_request_that_reads_leaves_the_span_that_another_one_sets(store):
    clock = Clock()
    app = make_app(store, idle_s=1000, clock=clock)
    @app.get("/short")
    def short(sess):
        sess.set_expiry(10)
        return "ok"
    @app.get("/slow")
    def slow(sess):
        found = len(sess)
        visitor(app, cookie).get("/short")
        return str(found)
    ann = visitor(app)
    ann.get("/set?key=a&value=1")
    cookie = cookie_of(ann)
    clock.forward(500)
    assert "Max-Age=10;" in ann.get("/slow").headers["set-cookie"]
    clock.forward(10)
    assert seen(app, cookie) == {}


def test_a_handler_that_runs_past_the_idle_end_loses_nothing(store):
    clock = Clock()
    app = make_app(store, idle_s=100, max_age=1000, clock=clock)
    @app.route("/slow", methods=["POST"])
    def slow(sess, seconds: int):
        sess["slow"] = seconds
        clock.forward(seconds)
        return "done"
    ann = visitor(app)
    ann.get("/set?key=a&value=1")
    clock.forward(99)
    assert ann.post("/slow?seconds=200").status_code == 200 and ann.get("/all").json() == {"a": 1, "slow": 200}
    assert ann.post("/slow?seconds=900").status_code == 409 and ann.get("/all").json() == {}   # the absolute end holds


def test_a_login_begins_the_absolute_span_anew(memory):
    clock = Clock()
    ann = visitor(make_app(memory, idle_s=800, max_age=1000, clock=clock))
    ann.get("/set?key=a&value=1")
    clock.forward(700)
    assert "Max-Age=800" in ann.get("/login").headers["set-cookie"]
    clock.forward(700)
    assert ann.get("/all").json() == {"a": 1, "user": "ann"}


def test_what_is_over_is_cleared_in_batches(store):
    clock = Clock()
    app = make_app(store, idle_s=100, clock=clock)
    for _ in range(7): visitor(app).get("/set?key=a&value=1")
    clock.forward(50)
    ann = visitor(app)
    ann.get("/set?key=a&value=1")
    clock.forward(60)
    assert clear_expired(store, batch=3, clock=clock) == 7 and clear_expired(store, batch=3, clock=clock) == 0
    assert ann.get("/all").json() == {"a": 1} and store.rows("SELECT count(*) FROM wfs_http_value") == [(1,)]


def test_clearing_counts_sessions_and_goes_on_after_another_cleaner(store):
    rows = store.http_sessions
    for i in range(30): rows.create(f"d{i}", HTTPRow(HTTPTimes(0, 0, 5), {"a": "1"}), Spent(f"c{i}", 5) if i % 2 else None)
    for i in range(30): rows.delete(f"gone{i}", Spent(f"gone{i}", 5))
    cleared = []
    in_threads(*[lambda: cleared.append(clear_expired(store, batch=4, clock=lambda: 9))] * 3)
    assert sum(cleared) == 30 and count(store) == 0 and store.rows("SELECT count(*) FROM wfs_http_spent") == [(0,)]
    for i in range(3): rows.delete(f"gone{i}", Spent(f"gone{i}", 5))
    assert clear_expired(store) == 0 and not rows.is_spent("gone1")
    for batch in (0, -1, 1.5, None):
        with pytest.raises(InvalidInput, match="batch"): clear_expired(store, batch=batch)


# -- at the same time ------------------------------------------------------------------------------------------------------

def test_requests_that_change_different_keys_are_both_kept(store):
    app = make_app(store)
    ann = visitor(app)
    ann.get("/set?key=first&value=0")
    cookie, writers, each = cookie_of(ann), 4, 25
    def write(who):
        client = visitor(app, cookie)
        for n in range(each): assert client.get(f"/set?key={who}-{n}&value={n}").status_code == 200
    in_threads(*(lambda who=who: write(who) for who in range(writers)))
    assert seen(app, cookie) == {"first": 0} | {f"{who}-{n}": n for who in range(writers) for n in range(each)}


def test_a_reader_whose_use_cannot_be_written_down_lost_nothing(memory, caplog):
    clock = Clock()
    app = make_app(memory, idle_s=100, clock=clock)
    @app.get("/read-and-be-logged-out")
    def reading(sess):
        found = sess["user"]
        memory.http_sessions.delete(digest_of(sess.key))
        return found
    ann = visitor(app)
    ann.get("/login")
    clock.forward(50)
    answer = ann.get("/read-and-be-logged-out")
    assert answer.text == "ann" and "set-cookie" not in answer.headers and "dropped" not in caplog.text


def test_requests_that_overlap_keep_each_others_keys(store):
    app, read, go = make_app(store), threading.Event(), threading.Event()
    @app.get("/slow")
    def slow(sess):
        sess["slow"] = len(sess)
        read.set()
        assert go.wait(20)
        return "slow"
    ann = visitor(app)
    ann.get("/set?key=a&value=1")
    cookie = cookie_of(ann)
    def quick():
        assert read.wait(20)
        ann.get("/set?key=b&value=2"), ann.get("/remove?key=a")
        go.set()
    in_threads(lambda: visitor(app, cookie).get("/slow"), quick)
    assert seen(app, cookie) == {"slow": 1, "b": 2}


def test_removing_the_last_key_leaves_the_session_to_those_who_are_in_it(store, caplog):
    app, read, go, keys = make_app(store), threading.Event(), threading.Event(), []
    @app.route("/slow", methods=["POST"])
    def slow(sess):
        keys.append(sess.key)
        read.set()
        assert go.wait(20)
        sess["cart"] = ["book"]
        return "added"
    ann = visitor(app)
    ann.get('/set?key=toast&value="saved"')
    cookie = cookie_of(ann)
    def quick():
        assert read.wait(20)
        assert "set-cookie" not in ann.get("/remove?key=toast").headers
        go.set()
    in_threads(lambda: visitor(app, cookie).post("/slow"), quick)
    assert seen(app, cookie) == {"cart": ["book"]} and "dropped" not in caplog.text
    ann.get("/remove?key=cart")
    with session_of(store, keys[0]) as sess: sess["result"] = 42
    assert seen(app, cookie) == {"result": 42}


@pytest.mark.parametrize("method, status", [("GET", 200), ("HEAD", 200), ("POST", 409), ("PUT", 409), ("PATCH", 409), ("DELETE", 409)])
@pytest.mark.parametrize("ending", ["/logout", "/clear", "/login"])
def test_a_change_that_comes_after_the_end_is_not_answered_as_if_it_were_kept(memory, method, status, ending, caplog):
    app, later = make_app(memory), []
    @app.route("/slow", methods=[method])
    def slow(sess):
        sess["cart"] = sess["user"]
        ann.get(ending)
        return Response("added to your cart", background=BackgroundTask(later.append, 1))
    @app.route("/look", methods=[method])
    def look(sess):
        found = sess["user"]
        ann.get(ending)
        return found
    ann = visitor(app)
    ann.get("/login")
    answer = visitor(app, cookie_of(ann)).request(method, "/slow")
    assert answer.status_code == status and "set-cookie" not in answer.headers and "were dropped" in caplog.text
    assert ("ended" in answer.text, later) == ((True, []) if status == 409 else (False, [1]))
    ann.get("/login")
    assert visitor(app, cookie_of(ann)).request(method, "/look").status_code == 200   # it had nothing to lose


@pytest.mark.parametrize("path", ["/logout", "/login"])
def test_a_late_save_neither_brings_a_session_back_nor_reaches_the_one_after_a_login(store, path, caplog):
    app, read, go, answers = make_app(store), threading.Event(), threading.Event(), []
    @app.get("/slow")
    def slow(sess):
        sess["stolen"] = True
        read.set()
        assert go.wait(20)
        return "what the handler did is done"
    ann = visitor(app)
    ann.get("/set?key=a&value=1")
    cookie = cookie_of(ann)
    def other():
        assert read.wait(20)
        ann.get(path)
        go.set()
    with caplog.at_level(logging.WARNING):
        in_threads(lambda: answers.append(visitor(app, cookie).get("/slow")), other)
    assert answers[0].status_code == 200 and "set-cookie" not in answers[0].headers
    assert "were dropped" in caplog.text and cookie.partition(".")[0] not in caplog.text
    assert seen(app, cookie) == {} and count(store) == (path == "/login")
    assert ann.get("/all").json() == ({"a": 1, "user": "ann"} if path == "/login" else {})


def test_a_logout_that_races_with_saves_always_wins(store):
    app = make_app(store)
    for _ in range(15):
        ann = visitor(app)
        ann.get("/set?key=a&value=1")
        cookie = cookie_of(ann)
        def write(who):
            for n in range(4): assert visitor(app, cookie).get(f"/set?key={who}-{n}&value=1").status_code == 200
        in_threads(lambda: write(1), lambda: write(2), lambda: visitor(app, cookie).get("/logout"))
        assert seen(app, cookie) == {}
    assert store.rows("SELECT count(*) FROM wfs_http_value v WHERE NOT EXISTS(SELECT 1 FROM wfs_http_session h WHERE h.id = v.id)") == [(0,)]


def test_of_several_logins_at_once_one_wins(store):
    app = make_app(store)
    ann = visitor(app)
    ann.get("/set?key=cart&value=[1]")
    cookie, cookies = cookie_of(ann), []
    def login():
        answer = visitor(app, cookie).get("/login")
        if "set-cookie" in answer.headers: cookies.append(re.match(f"{NAME}=([^;]+)", answer.headers["set-cookie"])[1])
    in_threads(*[login] * 4)
    with_cart = [c for c in cookies if seen(app, c) == {"cart": [1], "user": "ann"}]
    assert len(with_cart) == 1 and seen(app, cookie) == {}


def test_emptying_leaves_what_another_request_stored(store):
    rows = store.http_sessions
    rows.create("d", HTTPRow(HTTPTimes(0, 0, 100), {"a": "1"}))
    for change in (HTTPChange({"b": "2"}), HTTPChange({}, ["a"])): assert rows.change("d", 1, change) == HTTPTimes(0, 0, 100)
    assert dict(rows.load("d", 1).values) == {"b": "2"}


def test_a_writer_that_waits_for_the_file_does_not_stop_the_server(tmp_path):
    store = open_store(f"sqlite:///{tmp_path}/sessions.db")
    store.create_session("f", "s")
    app = make_app(store)
    @app.get("/async-set")
    async def async_set(sess):
        sess["a"] = 1
        return "set"
    async def both():
        from httpx2 import ASGITransport, AsyncClient
        async with AsyncClient(transport=ASGITransport(app), base_url="http://testserver") as client:
            await client.get("/untouched")
            with lock_held(store.where) as holder:
                waiting = asyncio.create_task(client.get("/async-set"))
                await asyncio.sleep(0.1)
                began = time.monotonic()
                assert (await client.get("/untouched")).status_code == 200
                took = time.monotonic() - began
                holder.kill()
                return took, (await waiting).status_code
    took, status = run(both())
    assert took < 1 and status == 200


def ask_in_a_loop(app, path, **cookies):
    async def ask():
        from httpx2 import ASGITransport, AsyncClient
        async with AsyncClient(transport=ASGITransport(app), base_url="http://testserver", cookies=cookies) as client: return await client.get(path)
    return run(ask())


def test_an_async_handler_that_blocks_on_a_remote_store_is_told_once(memory, caplog):
    counted = Counted(memory.http_sessions)
    app = make_app(counted)
    @app.get("/careless")
    async def careless(sess): return str(len(sess))
    @app.get("/careful")
    async def careful(sess):
        await sess.aload()
        sess["seen"] = 1
        await sess.asave()
        return "ok"
    @app.get("/plain")
    def plain(sess):
        sess["seen"] = 2
        return "ok"
    cookie = signed(new_key())
    def told(path):
        stored_session._warn.cache_clear()
        caplog.clear()
        for _ in range(2): assert visitor(app, cookie).get(path).status_code == 200
        return caplog.text.count("aload")
    assert told("/careless") == 0   # SQLite
    counted.remote = True
    assert [told(path) for path in ("/careless", "/careful", "/plain")] == [1, 0, 0]


def test_stores_say_whether_a_network_lies_between(store): assert store.http_sessions.remote == ("postgresql" in store.where)


@pytest.mark.parametrize("size, in_loop", [(10, True), (30_000, False)])
def test_large_values_are_compared_in_a_thread(memory, monkeypatch, size, in_loop):
    app, threads, loops = make_app(memory), [], []
    @app.get("/read")
    async def read(sess):
        loops.append(threading.current_thread())
        await sess.aload()
        return str(len(sess["text"]))
    @app.get("/write")
    async def write(sess):
        loops.append(threading.current_thread())
        sess["text"] = "x" * size
        return "ok"
    def noted(key, value):
        threads.append(threading.current_thread())
        return dump_json(key, value)
    monkeypatch.setattr(lazy_values, "dump_json", noted)
    cookie = re.match("[^;]+", ask_in_a_loop(app, "/write").headers["set-cookie"])[0].partition("=")[2]
    assert threads[0] is not loops[0]   # what is new is stored, which takes a thread anyway
    threads.clear()
    assert ask_in_a_loop(app, "/read", **{NAME: cookie}).text == str(size)
    assert threads and (loops[1] in threads) == in_loop


# -- outside a request -----------------------------------------------------------------------------------------------------

def test_blocks_in_threads_and_coroutines(store):
    app = make_app(store)
    ann = visitor(app)
    key = ann.get("/login").text
    with session_of(store, key) as sess: sess["progress"] = {"done": 1}
    async def twice():
        for n in (2, 3):
            async with session_of(store, key) as sess: sess["progress"]["done"] = n
    run(twice())
    assert ann.get("/all").json() == {"user": "ann", "progress": {"done": 3}}
    def failing():
        with session_of(store, key) as sess:
            sess["progress"] = "half"
            raise ValueError
    with pytest.raises(ValueError): failing()
    assert ann.get("/all").json()["progress"] == {"done": 3}


def test_a_block_on_a_session_that_is_over(store):
    clock = Clock()
    app = make_app(store, idle_s=100, clock=clock)
    ann = visitor(app)
    key = ann.get("/login").text
    with pytest.raises(SessionEnded), session_of(store, key, clock=clock) as sess:
        ann.get("/logout")
        sess["late"] = 1
    with pytest.raises(SessionEnded), session_of(store, key, clock=clock): raise AssertionError("never inside")
    with pytest.raises(SessionEnded), session_of(store, "chosen"): raise AssertionError("never inside")
    key = visitor(app).get("/login").text
    clock.forward(100)
    with pytest.raises(SessionEnded), session_of(store, key, clock=clock): raise AssertionError("never inside")
    assert dict(visitor(app).get("/all").json()) == {}


def test_a_block_neither_prolongs_a_session_nor_changes_its_key(store):
    clock = Clock()
    app = make_app(store, idle_s=100, clock=clock)
    ann = visitor(app)
    key = ann.get("/login").text
    clock.forward(60)
    with session_of(store, key, clock=clock) as sess:
        sess["a"] = 1
        for refused in (sess.cycle_key, lambda: sess.set_expiry(500)):
            with pytest.raises(InvalidInput): refused()
    clock.forward(40)
    with pytest.raises(SessionEnded), session_of(store, key, clock=clock): raise AssertionError("never inside")


def test_a_block_is_open_once_at_a_time_and_can_be_opened_again(memory):
    ann = visitor(make_app(memory))
    block = session_of(memory, ann.get("/login").text)
    with block as outer:
        outer["outer"] = 1
        with pytest.raises(InvalidInput, match="another one"), block: raise AssertionError("never inside")
    with block as again: again["again"] = 2
    assert ann.get("/all").json() == {"user": "ann", "outer": 1, "again": 2}


@pytest.mark.parametrize("key", [None, 5, b"x", "", "\ud800", "é"])
def test_what_is_no_key_opens_no_block(memory, key):
    with pytest.raises(InvalidInput, match="sess.key"): session_of(memory, key)


def test_a_block_that_clears_begins_anew_under_the_same_key(store):
    ann = visitor(make_app(store))
    with session_of(store, ann.get("/login").text) as sess:
        ann.get("/set?key=unseen&value=1")
        sess.clear()
        sess["restarted"] = True
    assert ann.get("/all").json() == {"restarted": True}
    with session_of(store, sess.key) as sess: sess.clear()
    assert ann.get("/all").json() == {} and count(store) == 0


def test_a_block_can_log_somebody_out(store):
    ann = visitor(make_app(store))
    with session_of(store, ann.get("/login").text) as sess: sess.flush()
    assert ann.get("/all").json() == {} and count(store) == 0


def test_a_background_task_and_a_key_handed_on_before_the_first_save(store):
    app = make_app(store)
    def work(key):
        with session_of(store, key) as sess: sess["result"] = "from the task"
    @app.get("/start")
    def start(sess):
        key = sess.key
        sess.save()
        return Response("started", background=BackgroundTask(work, key))
    @app.get("/start-plain")
    def start_plain(sess):
        def later(): sess["plain"] = "set when the answer was out"
        sess["asked"] = True
        return Response("started", background=BackgroundTask(later))
    ann = visitor(app)
    ann.get("/start"), ann.get("/start-plain")
    assert ann.get("/all").json() == {"result": "from the task", "asked": True, "plain": "set when the answer was out"}


def test_what_was_saved_by_hand_is_not_written_again(memory):
    counted = Counted(memory.http_sessions)
    app = make_app(counted)
    @app.get("/by-hand")
    def by_hand(sess):
        sess["b"] = [2]
        sess.save()
        return Response("ok", background=BackgroundTask(lambda: sess["b"]))
    ann = visitor(app)
    ann.get("/set?key=a&value=1")
    counted.calls.clear()
    ann.get("/by-hand")
    assert counted.calls == ["load", "change"] and ann.get("/all").json() == {"a": 1, "b": [2]}


def test_what_a_browser_without_a_key_is_given_too_late_is_dropped_with_a_warning(memory, caplog):
    app = make_app(memory)
    @app.get("/late")
    def late(sess):
        def later(): sess["late"] = 1
        return Response("ok", background=BackgroundTask(later))
    assert visitor(app).get("/late").text == "ok"
    assert "cannot be given one now" in caplog.text and count(memory) == 0


def test_a_stream_of_events(store):
    app = make_app(store)
    @app.get("/events")
    def events(sess):
        key = sess.key
        sess["started"] = True
        async def stream():
            for n in range(3):
                async with session_of(store, key) as mine: mine["sent"] = n
                yield f"data: {n}\n\n"
        return EventStream(stream())
    ann = visitor(app)
    assert ann.get("/events").text.count("data:") == 3
    assert ann.get("/all").json() == {"started": True, "sent": 2}


def test_a_websocket_reads_and_writes_the_session(store):
    app = make_app(store)
    @app.ws("/ws")
    async def ws(sess, msg: str, send):
        sess["said"] = [*sess.get("said", []), msg]
        if msg == "save": await sess.asave()
        if msg == "block":
            async with session_of(store, sess.key) as fresh: fresh["block"] = dict(fresh)["web"]
        await send(P(msg))
    ann = visitor(app)
    ann.get("/set?key=a&value=1")
    with ann.websocket_connect("/ws") as socket:
        def say(msg):
            socket.send_text(json.dumps({"msg": msg}))
            return socket.receive_text()
        say("first"); assert "said" not in ann.get("/all").json()
        say("save"); assert ann.get("/all").json()["said"] == ["first", "save"]
        ann.get("/set?key=web&value=2")
        say("block"); assert ann.get("/all").json()["block"] == 2
        say("last")
    assert ann.get("/all").json() == {"a": 1, "said": ["first", "save", "block", "last"], "web": 2, "block": 2}


def test_a_websocket_does_not_prolong_what_its_cookie_cannot_follow(memory):
    clock = Clock()
    app = make_app(memory, idle_s=100, clock=clock)
    @app.ws("/ws")
    async def ws(sess, msg: str, send):
        sess["said"] = msg
        await send(P(msg))
    ann = visitor(app)
    ann.get("/set?key=a&value=1")
    with ann.websocket_connect("/ws") as socket:
        clock.forward(60)
        socket.send_text(json.dumps({"msg": "hello"}))
        socket.receive_text()
    clock.forward(1)
    answer = ann.get("/all")
    assert answer.json() == {"a": 1, "said": "hello"} and "Max-Age=100;" in answer.headers["set-cookie"]


def test_a_websocket_that_outlives_the_logout_stores_nothing(store, caplog):
    app = make_app(store)
    @app.ws("/ws")
    async def ws(sess, msg: str, send):
        sess["said"] = msg
        try: await sess.asave()
        except SessionEnded: msg = "over"
        await send(P(msg))
    ann = visitor(app)
    ann.get("/login")
    cookie = cookie_of(ann)
    with ann.websocket_connect("/ws") as socket:
        visitor(app, cookie).get("/logout")
        socket.send_text(json.dumps({"msg": "hello"}))
        assert "over" in socket.receive_text()
    assert count(store) == 0 and seen(app, cookie) == {}


# -- a store that is away --------------------------------------------------------------------------------------------------

def test_an_outage_is_a_503_that_says_nothing_of_the_store_and_ends(memory):
    counted = Counted(memory.http_sessions)
    app = make_app(counted)
    ann = visitor(app)
    ann.get("/set?key=a&value=1")
    counted.broken = StoreUnavailable("/secret/place.db", "the disk is full")
    for path in ("/all", "/set?key=b&value=1"):
        answer = ann.get(path)
        assert answer.status_code == 503 and answer.headers["retry-after"] and "secret" not in answer.text
    new = visitor(app).get("/set?key=b&value=1")
    assert new.status_code == 503 and "set-cookie" not in new.headers
    assert ann.get("/untouched").status_code == 200
    counted.broken = None
    assert ann.get("/all").json() == {"a": 1}


def test_a_save_that_meets_an_outage_replaces_the_whole_answer(memory):
    counted = Counted(memory.http_sessions)
    app = make_app(counted)
    @app.get("/stream")
    def stream(sess):
        sess["a"] = 1
        return StreamingResponse(iter(["part one ", "part two"]))
    counted.broken = StoreUnavailable("here", "away")
    answer = visitor(app).get("/stream")
    assert answer.status_code == 503 and "part" not in answer.text


@pytest.mark.parametrize("asgi", ["2.3", "2.4"])
@pytest.mark.parametrize("between", [None, "middleware", "handler"])   # of the host, who may want to answer too
def test_a_stream_without_an_end_is_stopped_when_another_answer_takes_its_place(memory, asgi, between, caplog):
    counted = Counted(memory.http_sessions)
    counted.broken = StoreUnavailable("here", "away")
    class Between(BaseHTTPMiddleware):
        async def dispatch(self, request, call_next): return await call_next(request)
    app = make_app(counted, middleware=[Middleware(Between)] if between == "middleware" else None,
                   exception_handlers={OSError: lambda request, error: Response("of the host")} if between == "handler" else None)
    sent, parts = [], []
    @app.get("/endless")
    def endless(sess):
        sess["a"] = 1
        async def stream():
            while True:
                parts.append(1)
                yield "part"
                await asyncio.sleep(0)
        return StreamingResponse(stream())
    async def send(message): sent.append(message)
    asked = [{"type": "http.request", "body": b"", "more_body": False}]
    async def receive():
        if asked: return asked.pop()
        await asyncio.sleep(3600)
    scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": asgi}, "method": "GET", "path": "/endless", "query_string": b"", "headers": [], "scheme": "http", "server": ("testserver", 80)}
    run(asyncio.wait_for(app(scope, receive, send), 20))
    assert [m["status"] for m in sent if "status" in m] == [503] and b"part" not in b"".join(m.get("body", b"") for m in sent)
    assert len(parts) < 100 and "failed after" not in caplog.text


def test_the_app_cannot_add_to_the_answer_that_replaces_its_own(memory):
    counted = Counted(memory.http_sessions)
    counted.broken = StoreUnavailable("here", "away")
    def apologise(request, error): return Response("the host's own page", status_code=200)
    app = make_app(counted, exception_handlers={StoreUnavailable: apologise})
    sent = []
    async def send(message): sent.append(message)
    async def receive(): return {"type": "http.request", "body": b"", "more_body": False}
    scope = {"type": "http", "method": "GET", "path": "/set", "query_string": b"key=a&value=1", "headers": [], "scheme": "http", "server": ("testserver", 80)}
    run(app(scope, receive, send))
    assert [m["type"] for m in sent] == ["http.response.start", "http.response.body"] and sent[0]["status"] == 503


def test_a_store_without_http_sessions_says_which_has_them(tmp_path):
    cjm = CjmStore(SQLiteWorkflowStateStore(tmp_path / "state.db"))
    for use in (stored_sessions, clear_expired, lambda store: session_of(store, "k")):
        with pytest.raises(InvalidInput, match=r"CjmStore keeps no HTTP sessions: pass open_store"): use(cjm)


@pytest.mark.parametrize("options", [{"idle_s": 0}, {"idle_s": 1.5}, {"max_age": -1}, {"same_site": "lax; Domain=x"}, {"old_secrets": ("",)}, {"old_secrets": "old"}, {"carry_over_until": datetime(2026, 3, 1)},
                                     {"session_cookie": ""}, {"session_cookie": "é"}, {"session_cookie": "日"}, {"session_cookie": "a;b"}, {"session_cookie": "a=b"}, {"same_site": "none"},
                                     {"session_cookie": "__Host-x"}, {"session_cookie": "__Host-x", "sess_https_only": True, "sess_path": "/app"}, {"sess_domain": "a;b"},
                                     {"session_cookie": "__Host-x", "sess_https_only": True, "sess_domain": "example.org"}])
def test_options_that_make_no_sense_are_refused_at_the_start(memory, options):
    with pytest.raises(InvalidInput): TestClient(make_app(memory, **options)).get("/untouched")


def test_a_secret_is_a_secret(memory, tmp_path, monkeypatch):
    middleware = stored_sessions(memory)
    for none in (None, "", Secret("")):
        with pytest.raises(InvalidInput, match="secret_key"): middleware(None, none)
    assert middleware(None, Secret("s")).cookie.secret_keys == ("s",)
    with pytest.raises(InvalidInput, match="partitioned"): middleware(None, "s", partitioned=True)
    monkeypatch.chdir(tmp_path)   # FastHTML makes a secret and keeps it here if none is given
    ann = visitor(make_app(memory, secret=None))
    ann.get("/set?key=a&value=1")
    assert signed(cookie_of(ann).partition(".")[0], (tmp_path / ".sesskey").read_text()) == cookie_of(ann)
    assert seen(make_app(memory, secret=None), cookie_of(ann)) == {"a": 1}
    (tmp_path / ".sesskey").write_text("")
    with pytest.raises(InvalidInput, match="secret_key"): TestClient(make_app(memory, secret=None)).get("/untouched")


# -- moving from the cookie ------------------------------------------------------------------------------------------------

def test_the_content_of_a_cookie_is_carried_over_once(store):
    app = make_app(store, carry_over_until=tomorrow())
    old = starlette_cookie({"user": "ann", "cart": [1]})
    ann = visitor(app, old)
    answer = ann.get("/all")
    assert answer.json() == {"user": "ann", "cart": [1]} and count(store) == 1
    new = re.match(f"{NAME}=([^;]+)", answer.headers["set-cookie"])[1]
    assert len(new) < 100 and seen(app, new) == {"user": "ann", "cart": [1]}
    assert "set-cookie" not in visitor(app, new).get("/all").headers


def test_carrying_over_is_no_work_where_the_session_is_not_touched(memory):
    counted = Counted(memory.http_sessions)
    answer = visitor(make_app(counted, carry_over_until=tomorrow()), starlette_cookie({"a": 1})).get("/untouched")
    assert counted.calls == [] and "set-cookie" not in answer.headers


def test_a_page_that_sends_several_requests_at_once_reaches_one_session(store):
    app, old = make_app(store, carry_over_until=tomorrow()), starlette_cookie({"user": "ann"})
    in_threads(*(lambda n=n: visitor(app, old).get(f"/set?key={n}&value={n}") for n in range(6)))
    assert count(store) == 1
    assert seen(app, old) == {"user": "ann"} | {str(n): n for n in range(6)}


@pytest.mark.parametrize("ending", ["/logout", "/clear", "/login"])
def test_a_cookie_replayed_after_logout_or_login_is_refused(store, ending):
    app, old = make_app(store, carry_over_until=tomorrow()), starlette_cookie({"user": "ann"})
    ann = visitor(app, old)
    ann.get("/all")
    ann.get(ending)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for replay in (old, *(old[:-1] + c for c in alphabet)): assert seen(app, replay) == {}   # four spellings have the same signature
    assert visitor(app, old).get("/set?key=a&value=1").status_code == 200 and "user" not in seen(app, old)


def test_a_request_that_read_a_cookie_before_it_was_spent_cannot_bring_it_back(store):
    app, old = make_app(store, carry_over_until=tomorrow()), starlette_cookie({"user": "ann"})
    @app.get("/meanwhile")
    def meanwhile(sess):
        sess["read"] = sess["user"]
        visitor(app, old).get("/all"), visitor(app, old).get("/logout")
        with pytest.raises(SessionEnded): sess.save()
        sess["again"] = True
        return "late"
    answer = visitor(app, old).get("/meanwhile")
    assert answer.text == "late" and seen(app, old) == {}
    assert seen(app, re.match(f"{NAME}=([^;]+)", answer.headers["set-cookie"])[1]) == {"again": True}


@pytest.mark.parametrize("path", ["/logout", "/clear"])
def test_a_logout_as_the_first_request_spends_the_cookie(store, path):
    app, old = make_app(store, carry_over_until=tomorrow()), starlette_cookie({"user": "ann"})
    assert "Max-Age=0" in visitor(app, old).get(path).headers["set-cookie"]
    assert seen(app, old) == {} and count(store) == 0


def test_a_login_as_the_first_request_keeps_the_content(store):
    app, old = make_app(store, carry_over_until=tomorrow()), starlette_cookie({"cart": [1]})
    answer = visitor(app, old).get("/login")
    new = re.match(f"{NAME}=([^;]+)", answer.headers["set-cookie"])[1]
    assert seen(app, new) == {"cart": [1], "user": "ann"} and seen(app, old) == {}


def test_a_first_request_that_fails_leaves_the_cookie_as_it_was(store):
    app, old = make_app(store, carry_over_until=tomorrow()), starlette_cookie({"user": "ann"})
    assert visitor(app, old).get("/raise").status_code == 500 and count(store) == 0
    assert seen(app, old) == {"user": "ann"}


def test_no_cookie_is_carried_over_without_a_date_or_after_it(store):
    old = starlette_cookie({"user": "ann"})
    for until in (None, datetime.now(timezone.utc) - timedelta(seconds=1)): assert seen(make_app(store, carry_over_until=until), old) == {}


@pytest.mark.parametrize("cookie", [starlette_cookie({"user": "eve"}, "other"), starlette_cookie(["user"]), starlette_cookie("user"), TimestampSigner(SECRET).sign("%%%").decode(),
                                    TimestampSigner(SECRET).sign(b64encode(b"[" * 3000)).decode(), b64encode(b'{"user": "eve"}').decode(), "null", "." * 300], ids=lambda _: "cookie")
def test_hostile_cookies_carry_nothing_over(memory, cookie):
    app = make_app(memory, carry_over_until=tomorrow())
    assert seen(app, cookie) == {} and count(memory) == 0


def test_a_cookie_beyond_its_age_is_not_carried_over(memory):
    old, now = starlette_cookie({"user": "ann"}), time.time_ns() // 1000
    for age, content in ((62, {}), (-5, {}), (58, {"user": "ann"})):
        assert seen(make_app(memory, carry_over_until=tomorrow(), max_age=60, clock=lambda: now + age * SECOND), old) == content


def test_what_was_never_json_is_left_out(memory, caplog):
    app = make_app(memory, carry_over_until=tomorrow())
    assert seen(app, starlette_cookie({"a": 1, "b": float("inf")})) == {"a": 1} and "it is no JSON" in caplog.text


def test_moving_to_https_in_the_same_step_removes_the_plain_cookie(memory):
    app = make_app(memory, carry_over_until=tomorrow())
    ann = visitor(app, starlette_cookie({"user": "ann"}), base_url="https://testserver")
    answer = ann.get("/all")
    assert answer.json() == {"user": "ann"} and [c.partition("=")[0] for c in answer.headers.get_list("set-cookie")] == [f"__Host-{NAME}", NAME]
    assert list(ann.cookies.keys()) == [f"__Host-{NAME}"] and ann.get("/all").json() == {"user": "ann"}


def test_spent_cookies_are_forgotten_when_no_server_takes_them(store):
    app = make_app(store, carry_over_until=tomorrow(), max_age=60)
    seen(app, starlette_cookie({"user": "ann"}))
    now = time.time_ns() // 1000
    def clear(seconds): return clear_expired(store, clock=lambda: now + seconds * SECOND), store.rows("SELECT count(*) FROM wfs_http_spent")[0][0]
    assert [clear(seconds) for seconds in (50, 70, DAY - 60, DAY + 60)] == [(0, 1), (1, 1), (0, 1), (0, 0)]


def test_a_spent_cookie_stays_spent_when_the_span_is_made_longer(store):
    now, old, until = time.time_ns() // 1000, starlette_cookie({"user": "ann"}), tomorrow()
    first = visitor(make_app(store, carry_over_until=until, max_age=60), old)
    assert first.get("/all").json() == {"user": "ann"}
    first.get("/logout")
    clear_expired(store, clock=lambda: now + 3600 * SECOND)
    assert seen(make_app(store, carry_over_until=until, max_age=10_000, clock=lambda: now + 3600 * SECOND), old) == {}
