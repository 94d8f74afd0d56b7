"""What a session with a warm worker is kept for, on every engine of one machine: the fourteen cases of the contract."""

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cjm_workflow_sessions import open_store, warm
from changes_support import run
from support import Server
from warm_apps import Counter

ENGINES = ("inline", "local")


class Place:
    "A store, an engine for its workers, and clients."
    def __init__(self, engine, path):
        self.engine, self.store = engine, open_store(f"sqlite:///{path}")
        self.client = self.of("ann")

    def of(self, owner, **kwargs): return warm.client(self.store, owner=owner, engine=self.engine, **kwargs)
    def of_async(self, owner="ann"): return warm.async_client(self.store, owner=owner, engine=self.engine)
    def new(self, app="counter", input=None, **task): return self.client.run({"app": app, "input": input or {"action": "init"}, "session": "new"} | task)
    def call(self, sid, action, app="counter", **input): return self.client.run({"app": app, "input": {"action": action, **input}, "session": sid})["output"]
    def state(self, sid): return self.client.sessions.get(sid)["state"]

    def close(self):
        "Leave no process."
        lines = self.client.lines
        lines.close()
        if self.engine == "local":
            lines.engine.stop()
            wait_for(lambda: not os.path.exists(lines.engine.place.path))
        lines.engine.close()
        self.store.close()


@pytest.fixture(params=ENGINES)
def place(request, tmp_path):
    place = Place(request.param, tmp_path / "sessions.db")
    yield place
    place.close()


@pytest.fixture
def local(tmp_path):
    place = Place("local", tmp_path / "sessions.db")
    yield place
    place.close()


def is_alive(pid):
    try: return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError: return False


def descendants(pid):
    found = [int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]
    return found + [below for child in found for below in descendants(child)] if Path(f"/proc/{pid}").exists() else []


def wait_for(what, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


# -- A1 to A4: making, continuing, ending ------------------------------------------------------------------------------

def test_a1_each_creation_gives_an_id_of_its_own(place):
    ids = [place.new()["session_id"] for _ in range(2)]
    assert len(set(ids)) == 2 and "new" not in ids and all(i.startswith("sess_") for i in ids)


def test_a2_a_session_goes_on_in_the_same_worker(place):
    first = place.new(input={"action": "set_value", "key": "a", "value": 5})
    sid = first["session_id"]
    again = place.client.run({"app": "counter", "input": {"action": "get_value", "key": "a"}, "session": sid})
    assert (again["output"], again["session_id"]) == ({"value": 5}, sid)
    assert set(again) == {"id", "created_at", "updated_at", "input", "output", "logs", "status", "session_id"} and again["id"] != first["id"]
    assert len({place.call(sid, "count")["pid"] for _ in range(3)}) == 1


@pytest.mark.parametrize("timeout", [0, 3601, -1, "x", "60", True, 1.5, float("nan"), []])
def test_a3_a_wrong_timeout_starts_nothing(place, timeout):
    with pytest.raises(warm.SessionTimeoutValueError) as error: place.new(session_timeout=timeout)
    assert (error.value.status, isinstance(error.value, ValueError), place.client.sessions.list()) == (422, True, [])
    with pytest.raises(warm.SessionTimeoutValueError): place.client.session("counter", timeout=timeout)
    assert place.client.sessions.list() == []


def test_a3_a_timeout_goes_with_a_new_session_only(place):
    sid = place.new(session_timeout=300)["session_id"]
    assert place.client.sessions.get(sid)["idle_timeout"] == 300
    for session in (sid, None):
        with pytest.raises(warm.SessionTimeoutValueError): place.client.run({"app": "counter", "input": {"action": "count"}, "session": session, "session_timeout": 300})
    assert (place.call(sid, "count")["calls"], len(place.client.sessions.list())) == (2, 1)


def test_a4_idle_and_explicit_ends_leave_nothing(place, tmp_path):
    idle, ended = place.new(session_timeout=1), place.new()
    for number, result in enumerate((idle, ended)): place.call(result["session_id"], "set_value", key="closing", value=str(tmp_path / str(number)))
    place.client.sessions.end(ended["session_id"])
    assert place.state(ended["session_id"]) == "ended"
    wait_for(lambda: place.state(idle["session_id"]) == "expired", 5)
    for number, result in enumerate((idle, ended)):
        assert (tmp_path / str(number)).read_text() == "closed"
        if place.engine == "local": wait_for(lambda: not is_alive(result["output"]["pid"]), 2)
    assert [s["status"] for s in place.client.sessions.list()] == ["ended", "expired"]


def test_a4_the_idle_time_begins_anew_with_each_call_and_never_runs_out_in_one(place):
    sid = place.new(session_timeout=1)["session_id"]
    for _ in range(3):
        time.sleep(0.6)
        place.call(sid, "count")
    assert place.call(sid, "process", id=1, sleep=1.5)["id"] == 1
    time.sleep(0.5)
    before = time.time()
    assert place.client.sessions.keepalive(sid)["status"] == "active"
    time.sleep(0.7)
    assert place.call(sid, "count")["calls"] == 5
    with pytest.raises(warm.AppError): place.call(sid, "boom")   # it counts as a call
    began = time.monotonic()
    wait_for(lambda: place.state(sid) == "expired", 5)
    assert 0.9 < time.monotonic() - began < 1.6 and time.time() > before


# -- A5 to A8: the use cases -------------------------------------------------------------------------------------------

def test_a5_a_model_is_loaded_once(place):
    began = time.monotonic()
    loaded = place.new("ml-inference", {"action": "load_model", "model": "large"}, session_timeout=600)
    load_s, sid = time.monotonic() - began, loaded["session_id"]
    for item in ("a", "b", "c", "d"):
        began = time.monotonic()
        output = place.call(sid, "predict", "ml-inference", data=item)
        assert time.monotonic() - began < load_s / 10
        assert output["model"] == loaded["output"]["model"] and output["label"].startswith("large: ")


PAGE = """<title>Sign in</title><button id=login-btn onclick="document.querySelector('#username').hidden = false">Sign in</button><input id=username hidden>
<canvas width=1200 height=700></canvas><script>
const context = document.querySelector('canvas').getContext('2d'), image = context.createImageData(1200, 700)
for (let i = 0; i < image.data.length; i++) image.data[i] = i % 4 == 3 ? 255 : Math.random() * 256
context.putImageData(image, 0, 0)</script>"""


@pytest.mark.browser
def test_a6_a_browser_stays_open_between_calls(place, tmp_path):
    (tmp_path / "page.html").write_text(PAGE)
    before = set(descendants(os.getpid()))
    started = place.new("browser-automation", {"action": "start", "url": (tmp_path / "page.html").as_uri()}, session_timeout=300)
    sid, pid = started["session_id"], started["output"]["pid"]
    helpers = set(descendants(pid)) - before
    assert started["output"]["title"] == "Sign in" and len(helpers) > 2
    place.call(sid, "click", "browser-automation", selector="#login-btn")
    place.call(sid, "type", "browser-automation", selector="#username", text="user@example.com")
    picture = place.call(sid, "screenshot", "browser-automation")
    assert picture.startswith(b"\x89PNG") and len(picture) > 500_000
    place.client.sessions.end(sid)
    wait_for(lambda: not any(map(is_alive, helpers)))


@pytest.mark.parametrize("how", ["end", "force", "kill -9", "expiry"])
def test_a6_what_a_worker_started_dies_with_it(local, how):
    started = local.new("parent", session_timeout=1 if how == "expiry" else 60)
    sid, pids = started["session_id"], (started["output"]["child"], started["output"]["pid"])
    assert all(map(is_alive, pids))
    if how == "kill -9": os.kill(started["output"]["pid"], signal.SIGKILL)
    elif how != "expiry": local.client.sessions.end(sid, force=how == "force")
    wait_for(lambda: not any(map(is_alive, pids)))


def test_a7_a_conversation_remembers(place):
    sid = place.new("chat-with-memory", {"action": "init", "system": "You are helpful."})["session_id"]
    for message in ("first", "second", "third"):
        output = place.client.run({"app": "chat-with-memory", "input": {"message": message}, "session": sid})["output"]
    assert output["response"] == "3. you said before: ['first', 'second']"


def test_a8_data_is_read_once(place, tmp_path):
    (tmp_path / "data.csv").write_text("value\n" + "\n".join(str(n % 7 + n / 10) for n in range(200)) + "\n900\n")
    sid = place.new("data-processor", {"action": "load", "dataset": str(tmp_path / "data.csv")})["session_id"]
    (tmp_path / "data.csv").unlink()
    outputs = [place.call(sid, "analyze", "data-processor", type=kind) for kind in ("summary", "correlations", "outliers", "trends")]
    assert [o["reads"] for o in outputs] == [1] * 4
    assert (outputs[0]["result"]["rows"], outputs[2]["result"], outputs[3]["result"]) == (201, [900.0], "up")


# -- A9 to A11: what becomes of a session, and how to go on ------------------------------------------------------------

def end_it(place, sid, pid, how):
    "Bring a session to its end; its timeout is a second."
    if how == "expired": wait_for(lambda: place.state(sid) == "expired", 5)
    elif how == "killed":
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not is_alive(pid))
    elif how == "left": place.call(sid, "leave")
    else: place.client.sessions.end(sid)


GONE = {"expired": (warm.SessionExpiredError, 410, "SESSION_EXPIRED"), "ended": (warm.SessionEndedError, 410, "SESSION_ENDED"),
        "left": (warm.SessionEndedError, 410, "SESSION_ENDED"), "killed": (warm.WorkerLostError, 500, "WORKER_LOST")}


@pytest.mark.parametrize("how", GONE)
def test_a9_a_program_that_looks_for_words_is_right(place, capsys, how):
    if (place.engine, how) == ("inline", "killed"): pytest.skip("a thread cannot be killed")
    result = place.new(session_timeout=1)
    session_id = result["session_id"]
    end_it(place, session_id, result["output"]["pid"], how)
    kind, status, code = GONE[how]
    for _ in range(2): # First from the connection, then from the store
        try: place.client.run({"app": "counter", "input": {"action": "count"}, "session": session_id})
        except Exception as e:
            if "session not found" in str(e).lower(): print("Session expired, creating new one")
            assert (type(e), e.status, e.code, e.session_id, e.may_have_run) == (kind, status, code, session_id, False)
    assert capsys.readouterr().out == "Session expired, creating new one\n" * 2


def test_a9_other_errors_do_not_look_like_that(place):
    sid = place.new()["session_id"]
    for code, task in (("APP_MISMATCH", {"app": "chat-with-memory", "session": sid}), ("VERSION_MISMATCH", {"app": "counter", "session": sid, "version": "9"}),
                       ("BAD_TASK", {"app": "counter", "session": sid, "function": "nothing"}), ("APP_ERROR", {"app": "counter", "session": sid, "input": {"action": "boom"}}),
                       ("APP_NOT_FOUND", {"app": "no-such-app", "session": "new"}), ("WORKER_START", {"app": "broken", "session": "new"})):
        with pytest.raises(warm.WarmError) as error: place.client.run(task)
        assert error.value.code == code
        assert "session" not in str(error.value).lower() and not isinstance(error.value, warm.SessionError)
    assert place.call(sid, "count")["calls"] == 2
    with pytest.raises(warm.SessionNotFoundError): place.client.run({"app": "counter", "session": "sess_" + "0" * 32})


def test_a10_a_cleanup_call_is_answered_and_is_the_last(place):
    result = place.new()
    assert place.call(result["session_id"], "leave") == {"bye": True}
    with pytest.raises(warm.SessionEndedError): place.call(result["session_id"], "count")
    assert place.state(result["session_id"]) == "ended"
    if place.engine == "local": wait_for(lambda: not is_alive(result["output"]["pid"]), 2)


class SessionManager:
    "How a program of the older kind keeps a session: whatever fails and speaks of a session is answered with a new one."
    def __init__(self, client, app, timeout):
        self.client, self.app, self.timeout, self.session_id = client, app, timeout, None

    def ensure_session(self):
        if self.session_id is None:
            started = self.client.run({"app": self.app, "input": {"action": "init"}, "session": "new", "session_timeout": self.timeout})
            self.session_id = started["session_id"]
        return self.session_id

    def send(self, data): return self.client.run({"app": self.app, "input": data, "session": self.ensure_session()})

    def run(self, data):
        try: return self.send(data)
        except Exception as problem:
            if "session" not in str(problem).lower(): raise
            self.session_id = None
            return self.send(data)


@pytest.mark.parametrize("how", GONE)
def test_a11_the_recovery_class_goes_on(place, tmp_path, how):
    if (place.engine, how) == ("inline", "killed"): pytest.skip("a thread cannot be killed")
    manager, marks = SessionManager(place.client, "counter", timeout=1), tmp_path / "marks"
    first = manager.run({"action": "count"})
    assert first["output"]["calls"] == 2   # `init` and this one
    old = manager.session_id
    end_it(place, old, first["output"]["pid"], how)
    manager.run({"action": "note", "path": str(marks)})
    assert marks.read_text() == "x\n" and manager.session_id != old
    assert manager.run({"action": "count"})["output"]["calls"] == 2   # `init` ran once in the new one
    session_id = manager.session_id
    with pytest.raises(warm.AppError): manager.run({"action": "boom", "text": "it is on fire"})
    assert manager.session_id == session_id and manager.run({"action": "count"})["output"]["calls"] == 3


@pytest.mark.parametrize("how", GONE)
def test_a11_a_resilient_session_goes_on(place, how):
    if (place.engine, how) == ("inline", "killed"): pytest.skip("a thread cannot be killed")
    with place.client.resilient("counter", init={"action": "init"}, timeout=1) as steady:
        first = steady.run({"action": "count"})
        old = steady.session_id
        end_it(place, old, first["output"]["pid"], how)
        assert (steady.run({"action": "count"})["output"]["calls"], steady.restarts, steady.session_id == old) == (2, 1, False)
        with pytest.raises(warm.AppError): steady.run({"action": "boom", "text": "session not found"})   # the app's own words
        assert (steady.run({"action": "count"})["output"]["calls"], steady.restarts) == (3, 1)
        last = steady.session_id
    assert place.state(last) == "ended"


def in_a_call(place, steady, marks, tmp_path):
    "Begin a call that leaves a mark, and wait until it is in the app."
    started = tmp_path / "started"
    call = ThreadPoolExecutor(1).submit(steady.run, {"action": "note", "path": str(marks), "started": str(started), "sleep": 0.5})
    wait_for(started.exists)
    started.unlink()
    return call


@pytest.mark.parametrize("app, times", [("counter", 1), ("repeatable", 2)])
def test_a11_what_may_have_run_is_run_again_only_if_the_app_says_so(place, tmp_path, app, times):
    marks, steady = tmp_path / "marks", place.client.resilient(app, init={"action": "init"}, timeout=30)
    pid = steady.run({"action": "count"})["output"]["pid"]
    call = in_a_call(place, steady, marks, tmp_path)
    if place.engine == "local": os.kill(pid, signal.SIGKILL)
    else: place.client.sessions.end(steady.session_id, force=True)
    if times == 1:
        with pytest.raises(warm.WorkerLostError if place.engine == "local" else warm.SessionEndedError) as error: call.result(10)
        assert error.value.may_have_run and "may have run" in str(error.value)
    else: call.result(10)
    assert marks.read_text() == "x\n" * times
    assert steady.run({"action": "count"})["output"]["calls"] == 2   # `init` once, in the new one


# -- A12: event loops --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("gathered", [False, True])
def test_a12_coroutines_of_one_session_run_in_order(place, gathered):
    async def session_workflow():
        client = place.of_async()
        sid = (await client.run({"app": "counter", "input": {"action": "init"}, "session": "new", "session_timeout": 300}))["session_id"]
        tasks = [client.run({"app": "counter", "input": {"action": "process", "id": i, "sleep": 0.05 if i % 3 == 0 else 0}, "session": sid}) for i in range(10)]
        worst, last, done = 0.0, time.monotonic(), False

        async def watch():
            nonlocal worst, last
            while not done:
                await asyncio.sleep(0.002)
                worst, last = max(worst, time.monotonic() - last), time.monotonic()

        watching = asyncio.create_task(watch())
        results = await asyncio.gather(*tasks) if gathered else [await task for task in tasks]
        done = True
        await watching
        return [r["output"]["id"] for r in results], results[-1]["output"]["order"], worst

    ids, order, worst = run(session_workflow())
    assert ids == order == list(range(10))
    assert worst < 0.045   # shorter than one call that sleeps


BIG = [[n] for n in range(300_000)] # Takes longer to send than what comes after it


def test_a12_what_takes_long_to_send_is_not_overtaken(place):
    async def gathered():
        client = place.of_async()
        async with client.session("counter") as session:
            inputs = [{"id": i, "pad": [] if i % 3 else BIG} for i in range(9)]
            calls = [session.call("process", given) if given["id"] % 2 else client.run({"app": "counter", "function": "process", "input": given, "session": session.id}) for given in inputs]
            return (await asyncio.gather(*calls))[-1]["output"]["order"]
    assert run(gathered()) == list(range(9))


def test_a12_both_ways_of_entering_a_session(place):
    async def both():
        client = place.of_async()
        async with client.session("counter", timeout=60) as one: first = (await one.call("count"))["output"]["calls"]
        async with await client.session("async-counter", timeout=60) as two:
            second = [(await two.run({"sleep": 0.01}))["output"]["calls"] for _ in range(2)]
            parts = [p["output"] async for p in await two.call("parts", {"number": 3}, stream=True)]
        return first, second, parts, [s["state"] for s in await client.sessions.list()]
    assert run(both()) == (1, [1, 2], [0, 1, 2, [0, 1, 2]], ["ended", "ended"])


# -- A13: what programs of the remote service do -----------------------------------------------------------------------

def test_a13_values_are_kept_and_counted(place):
    with place.client.session("counter") as session:
        assert session.call("set_value", {"key": "a", "value": [1, {"b": None}]})["output"] == {"ok": True}
        assert session.call("get_value", {"key": "a"})["output"] == {"value": [1, {"b": None}]}
        assert [session.call("increment", {"key": "n", "by": 2})["output"]["value"] for _ in range(3)] == [2, 4, 6]
        assert session.call("get_all", {})["output"] == {"values": {"a": [1, {"b": None}], "n": 6}}
        assert session.call("get_value", {"key": "none"})["output"] == {"value": None}


def test_a13_sessions_do_not_see_each_other(place):
    with place.client.session("counter") as one, place.client.session("counter") as two:
        one.call("set_value", {"key": "a", "value": 1})
        assert two.call("get_all", {})["output"] == {"values": {}} and one.id != two.id


def test_a13_sessions_are_described_kept_and_ended(place):
    session = place.client.session("counter", timeout=60)
    for _ in range(2): session.call("count")
    info = place.client.sessions.get(session.id)
    assert (info["id"], info["app_id"], info["app_version_id"], info["status"], info["idle_timeout"]) == (session.id, "counter", "1", "active", 60)
    assert [s["id"] for s in place.client.sessions.list()] == [session.id]
    wait_for(lambda: session.info()["call_count"] == 2, 4)   # counted about once a second
    time.sleep(0.01)
    assert session.keepalive()["expires_at"] > info["expires_at"]
    place.client.sessions.end(session.id)
    assert session.info()["status"] == "ended" and session.info()["ended_at"]
    place.client.sessions.end(session.id)   # again
    with pytest.raises(warm.SessionEndedError): session.call("count")
    with pytest.raises(RuntimeError): session.call("count")
    for wrong in ("sess_none", "", "sess_" + "f" * 32):
        with pytest.raises(warm.SessionNotFoundError): place.client.sessions.get(wrong)


def test_a13_a_warm_call_is_quick(place):
    with place.client.session("counter") as session:
        took = []
        for _ in range(20):
            began = time.monotonic()
            session.call("count")
            took.append(time.monotonic() - began)
        assert sorted(took)[10] < 0.02 and max(took) < 2


# -- A14: several web processes ----------------------------------------------------------------------------------------

def test_a14_any_web_process_goes_on_with_any_session(local, tmp_path):
    def post(server, task):
        request = urllib.request.Request(server.url + "/run", json.dumps(task).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer: return json.load(answer)

    with Server("warm_web:make_app", workers=3, WARM_STORE=f"sqlite:///{tmp_path}/sessions.db") as server, ThreadPoolExecutor(6) as pool:
        sid = post(server, {"app": "counter", "input": {"action": "init"}, "session": "new", "session_timeout": 60})["session_id"]
        task = {"app": "counter", "input": {"action": "increment", "key": "n"}, "session": sid}
        answers = list(pool.map(lambda _: post(server, task), range(300)))
        webs = {a["web"] for a in answers}
        assert sorted(a["output"]["value"] for a in answers) == list(range(1, 301))
        assert len(webs) == 3
    assert local.call(sid, "increment", key="n") == {"value": 301}   # the web server is gone, the session is not
    assert local.call(sid, "count")["pid"] not in webs


# -- the rest of what is promised --------------------------------------------------------------------------------------

def test_another_owner_finds_nothing(place):
    sid, bob = place.new()["session_id"], place.of("bob")
    for attempt in (bob.sessions.get, bob.sessions.keepalive, bob.sessions.end, bob.sessions.logs, lambda s: bob.sessions.end(s, force=True),
                    lambda s: bob.run({"app": "counter", "input": {"action": "count"}, "session": s}), lambda s: bob.run({"app": "counter", "session": s}, wait=False)):
        with pytest.raises(warm.SessionNotFoundError) as error: attempt(sid)
        assert str(error.value) == str(warm.SessionNotFoundError(sid))
    assert bob.sessions.list() == bob.sessions.list(owner="ann") == []
    assert place.call(sid, "count")["calls"] == 2 and place.state(sid) == "active"
    assert place.call(sid, "whose") == {"id": sid, "owner": "ann", "app": "counter"}


def test_limits_refuse_one_too_many(place):
    two = [place.new("counter-2")["session_id"] for _ in range(2)]
    with pytest.raises(warm.SessionLimitError) as error: place.new("counter-2")
    assert (error.value.status, error.value.code) == (429, "SESSION_LIMIT")
    with pytest.raises(warm.SessionLimitError): place.of("ann", per_owner=2).session("counter")
    place.of("bob", per_owner=2).session("counter").end()
    place.client.sessions.end(two[0])
    assert place.new("counter-2")["session_id"]


def test_a_worker_that_does_not_start_says_why(place):
    with pytest.raises(warm.WorkerStartError, match="the disk is on fire") as error: place.new("broken")
    assert error.value.status == 503 and "warm_apps.py" in error.value.traceback
    began = time.monotonic()
    with pytest.raises(warm.WorkerStartError, match="0.5 s"): place.new("stuck")
    assert time.monotonic() - began < 5
    assert place.client.sessions.list(state="warm") == []


def test_an_error_of_the_app_tells_where_it_was_raised(place):
    sid = place.new()["session_id"]
    with pytest.raises(warm.AppError) as error: place.call(sid, "boom", text="gone")
    assert (error.value.type, str(error.value), error.value.session_id) == ("KeyError", "counter: KeyError: 'gone'", sid)
    assert "in boom" in error.value.traceback and "warm_apps.py" in error.value.traceback
    with pytest.raises(warm.AppError): place.call(sid, "unpicklable")
    with pytest.raises(warm.BadTaskError): place.call(sid, "echo", value=threading.Lock())
    assert place.call(sid, "count")["calls"] == 2


def test_parts_come_as_they_are_made(place):
    sid = place.new()["session_id"]
    task = {"app": "counter", "function": "parts", "session": sid}
    seen = [(time.monotonic(), p["status"], p["output"]) for p in place.client.run(task | {"input": {"number": 3, "sleep": 0.1}}, stream=True)]
    assert [s[1:] for s in seen] == [("running", 0), ("running", 1), ("running", 2), ("completed", [0, 1, 2])] and seen[2][0] - seen[0][0] > 0.15
    assert place.client.run(task | {"input": {"number": 3}})["output"] == [0, 1, 2]
    endless = place.client.run(task | {"input": {"number": 10**9}}, stream=True)
    assert [p["output"] for p in itertools.islice(endless, 3)] == [0, 1, 2]
    endless.close()   # the worker goes on with the next call
    assert place.call(sid, "count")["calls"] == 2


def test_callers_take_turns(place):
    with place.client.session("counter") as session, ThreadPoolExecutor(8) as pool:
        outputs = list(pool.map(lambda number: session.run({"action": "process", "id": number})["output"], range(200)))
        assert [o["id"] for o in outputs] == list(range(200))
        assert sorted(session.run({"action": "process", "id": 200})["output"]["order"]) == list(range(201))


def test_tasks_that_nobody_waits_for_yet(place):
    begun = place.client.run({"app": "counter", "input": {"action": "process", "id": 1, "sleep": 0.2}, "session": "new"}, wait=False)
    assert begun["status"] == "running" and begun["output"] is None
    assert place.call(begun["session_id"], "whose")["id"] == begun["session_id"]   # it may not have started yet
    assert place.client.wait_for_completion(begun["id"], 20)["output"]["id"] == 1
    task = {"app": "counter", "session": begun["session_id"]}
    begun = [place.client.run(task | {"input": {"action": "process", "id": i, "pad": BIG if i == 2 else []}}, wait=False) for i in range(2, 6)]
    assert place.client.wait_for_completion(begun[-1]["id"], 20)["output"]["order"] == [1, 2, 3, 4, 5]


def test_without_a_session_every_call_begins_anew(place):
    results = [place.client.run({"app": "counter", "input": {"action": "count"}}) for _ in range(2)]
    assert [r["output"]["calls"] for r in results] == [1, 1] and "session_id" not in results[0]
    assert place.client.sessions.list(state="warm") == []


def test_what_an_app_prints_is_kept(local):
    with local.client.session("counter") as session:
        session.call("say", {"text": "hello"})
        wait_for(lambda: "HELLO" in session.logs(), 3)
        assert "hello" in session.logs()
    assert "hello" in session.logs() and "HELLO" in session.logs()   # after its end too
    result = local.client.run({"app": "counter", "function": "say", "input": {"text": "once"}})
    assert {"once", "ONCE"} <= set(result["logs"])


def test_an_app_changes_how_long_it_is_kept(place):
    sid = place.new(session_timeout=30)["session_id"]
    place.call(sid, "longer", seconds=1)
    wait_for(lambda: place.state(sid) == "expired", 5)


def test_warm_calls_leave_the_store_alone(place, monkeypatch):
    sid = place.new()["session_id"]
    place.client.lines.close()
    place.call(sid, "count")
    reads = []
    rows = place.client.lines.rows
    monkeypatch.setattr(rows, "get", lambda *args, **kwargs: reads.append(args))
    for _ in range(5): place.of("ann").run({"app": "counter", "input": {"action": "count"}, "session": sid})   # a client for each request
    assert reads == []


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning") # What is tested: a server that forks its workers
def test_a_forked_process_has_connections_of_its_own(local):
    sid = local.new()["session_id"]
    pid = os.fork()
    if pid == 0:
        try: os._exit(0 if local.call(sid, "count")["calls"] >= 2 else 1)
        except BaseException: os._exit(2)
    for _ in range(50): local.call(sid, "count")
    assert os.waitpid(pid, 0)[1] == 0 and local.call(sid, "count")["calls"] == 53


def test_no_thread_outlives_its_program(tmp_path):
    path = tmp_path / "sessions.db"
    program = f"import warm_apps\nfrom cjm_workflow_sessions import open_store, warm\nwarm.client(open_store('sqlite:///{path}'), engine='inline').session('counter').call('count')"
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parent, check=True, timeout=30)
    store = open_store(f"sqlite:///{path}")
    assert [(s["state"], s["reason"], s["call_count"]) for s in warm.client(store).sessions.list()] == [("ended", "by the end of the program", 1)]
    store.close()


def test_the_class_is_an_ordinary_one():
    counter = Counter()
    counter.setup()
    assert counter.run({"action": "increment", "key": "a"}) == {"value": 1}
