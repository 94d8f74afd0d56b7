"""The local engine: workers that keep their state, in order, until they are ended or idle; and what it costs."""

import importlib
import os
import queue
import signal
import statistics
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cjm_workflow_sessions.stores.base import open_store
from cjm_workflow_sessions.warm.apps import AppSpec, find
from cjm_workflow_sessions.warm.engine import ConnectionLost
from cjm_workflow_sessions.warm.errors import AppError, BadTaskError, WarmError, WorkerStartError
from cjm_workflow_sessions.warm.local import LocalEngine
from cjm_workflow_sessions.warm.wire import Wire, dial
from cjm_workflow_sessions.warm.worker import CALL, request
from store_support import unprivileged
from warm_support import Bench, cpu_s, lines, until


@pytest.fixture
def bench(tmp_path):
    bench = Bench(f"sqlite:///{tmp_path}/sessions.db")
    yield bench
    bench.close()


# -- a session -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("app", ["traced", "spawned"])
def test_state_is_kept_in_one_process(bench, app):
    row = bench.start(app)
    assert [bench.call(row) for _ in range(3)] == [1, 2, 3]
    assert bench.call(row, "whoami")["pid"] == row.pid != os.getpid()
    other = bench.start(app)
    assert (bench.call(other), other.pid == row.pid) == (1, False)
    stored = until(lambda: (found := bench.rows.get(row.id)).call_count == 4 and found)
    assert stored.state == "active" and stored.memory_bytes > 100_000 and stored.last_call_at and stored.expires_at > stored.last_call_at


def test_a_worker_has_the_surroundings_of_who_started_it(bench, tmp_path, monkeypatch):
    bench.start()   # the host and what workers are made from are there already
    monkeypatch.setenv("WARM_FLAG", "set later")
    monkeypatch.chdir(tmp_path)
    found = bench.call(bench.start(), "whoami")
    assert (found["flag"], found["folder"]) == ("set later", str(tmp_path))


def test_what_is_given_to_setup(bench):
    assert bench.call(bench.start("given", init={"model": "small"})) == {"model": "small"}


def test_an_edited_app_is_loaded_anew(bench, tmp_path, monkeypatch):
    module = tmp_path / "warm_edited.py"
    monkeypatch.syspath_prepend(str(tmp_path))
    found = []
    for version in ("one", "two two"):
        module.write_text(f"class App:\n    def run(self, input): return {version!r}\n")
        importlib.import_module("warm_edited")   # the program itself may go on with what it has loaded
        found.append(bench.call(bench.start(spec=AppSpec("edited", "warm_edited:App"))))
    assert found == ["one", "two two"]


def test_an_app_of_the_script_itself(bench, tmp_path):
    script = tmp_path / "warm_script.py"
    script.write_text(f"""
import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]
from warm_support import *
from cjm_workflow_sessions.warm.apps import app

class Point:
    def __init__(self, x): self.x = x

@app("own")
class Own:
    def run(self, input): return Point(input.x + 1)

if __name__ == "__main__":
    bench = Bench({bench.url!r})
    bench.mark = os.environ[MARK] = {bench.mark!r}
    print(bench.call(bench.start("own"), "run", Point(41)).x)
""")
    assert subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout == "42\n"


def test_a_module_with_threads_is_not_forked(bench, tmp_path, monkeypatch):
    (tmp_path / "warm_threads.py").write_text("import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
                                              "class App:\n    def run(self, input): return threading.active_count()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import warm_threads  # noqa: F401
    assert bench.call(bench.start(spec=AppSpec("threads", "warm_threads:App"))) >= 3   # main, its own, the one that waits for the host


def test_a_host_holds_no_output_of_the_program_open(bench):
    program = bench.program("bench.start(); print('done')")
    assert program.communicate(timeout=20)[0] == "done\n"   # its end is the end of the pipe
    assert bench.host_pid


# -- calls ---------------------------------------------------------------------------------------------------------------

def test_the_same_call_is_run_once_and_answered_twice(bench, tmp_path):
    row, call_id, path = bench.start(), os.urandom(16), tmp_path / "trace"
    one, two = bench.connect(row), bench.connect(row)
    input = {"path": str(path)}
    assert [c.call(call_id, "run", input) for c in (one, two, one)] == [1, 1, 1]
    assert lines(path) == ["begin -", "end -"]


def test_a_broken_connection_is_opened_again_for_the_same_call(bench, tmp_path):
    row, path = bench.start(), tmp_path / "trace"
    connection = bench.connect(row)
    connection.call(os.urandom(16), "run", {})
    connection.wire.sock.shutdown(2)
    assert connection.call(os.urandom(16), "run", {"path": str(path)}) == 2
    threading.Timer(0.2, lambda: connection.wire.sock.shutdown(2)).start()   # in the middle of the call: its answer is asked for again
    assert connection.call(os.urandom(16), "run", {"path": str(path), "sleep_s": 0.5}) == 3
    assert lines(path) == ["begin -", "end -"] * 2


def test_calls_of_several_programs_are_counted_exactly(bench):
    row = bench.start()
    programs = [bench.program("""
        row = bench.rows.get(sys.argv[1]); way = bench.connect(row)
        found = [way.call(os.urandom(16), "run", {}) for _ in range(250)]
        assert found == sorted(found); print(*found)
    """, row.id) for _ in range(4)]
    found = [int(n) for p in programs for n in p.communicate(timeout=60)[0].split()]
    assert sorted(found) == list(range(1, 1001))


def test_callers_wait_in_the_order_in_which_they_came(bench, tmp_path):
    row, path = bench.start(), tmp_path / "trace"
    threads, ways = [], [bench.connect(row) for _ in range(6)]   # some have called before, the others come anew
    for n in range(12):
        call = ways.pop().call if n % 2 else lambda _, *args: bench.call(row, *args)
        threads.append(threading.Thread(target=call, args=(os.urandom(16), "run", {"path": str(path), "mark": n, "sleep_s": 0.4 if n == 0 else 0.01})))
        threads[-1].start()
        time.sleep(0.02)
    for thread in threads: thread.join()
    assert lines(path) == [f"{word} {n}" for n in range(12) for word in ("begin", "end")]


def test_parts_come_as_they_are_made(bench, tmp_path):
    row, path = bench.start(), tmp_path / "trace"
    way = bench.connect(row)
    began = time.monotonic()
    parts = way.call(os.urandom(16), "parts", {"n": 5, "sleep_s": 0.1}, stream=True)
    assert next(parts) == 0 and time.monotonic() - began < 0.3
    assert list(parts) == [1, 2, 3, 4]
    parts = way.call(os.urandom(16), "parts", {"n": 10_000, "sleep_s": 0.001, "path": str(path)}, stream=True)
    next(parts)
    parts.close()   # the caller has seen enough
    assert way.call(os.urandom(16), "run", {}) == 1
    assert lines(path) == ["stopped"]


def test_large_values_and_values_that_do_not_travel(bench):
    row = bench.start()
    assert bench.call(row, "large", 30_000_000) == b"x" * 30_000_000
    with pytest.raises(BadTaskError): bench.call(row, "run", lambda: 0)
    with pytest.raises(AppError, match="run"): bench.call(row, "no_such_function")
    assert bench.call(row) == 1


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_connection_that_was_forked_is_not_shared(bench):
    row = bench.start()
    way = bench.connect(row)
    way.call(os.urandom(16), "run", {})
    inherited = way.wire
    pid = os.fork()
    if not pid:
        try:
            count, socket = way.call(os.urandom(16), "run", {"sleep_s": 0.5}), way.wire
            os._exit(count if socket is not inherited else 98)
        finally: os._exit(99)
    time.sleep(0.2)
    assert way.call(os.urandom(16), "run", {}) == 3   # not what the other one waits for
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2


def test_what_is_printed_is_kept_to_its_end(bench):
    row = bench.start()
    way = bench.connect(row)
    way.call(os.urandom(16), "say", {"text": "hello"})
    assert way.logs() == "hello\nfrom a child\n"
    way.call(os.urandom(16), "say", {"text": "0123456789", "times": 200_000})
    assert len(way.logs()) == 65_536 and way.logs().endswith("789\nfrom a child\n")
    way.end()
    assert bench.rows.logs(row.id).endswith("789\nfrom a child\n") and way.logs() == ""


# -- the end -------------------------------------------------------------------------------------------------------------

def lost(run):
    with pytest.raises(ConnectionLost) as found: run()
    return found.value.may_have_run


def test_an_idle_session_expires_in_time_and_a_call_puts_it_off(bench):
    rows = [bench.start(timeout_s=1) for _ in range(10)]
    kept = bench.start(timeout_s=1)
    way = bench.connect(kept)
    late = []
    for _ in range(6):
        time.sleep(0.3)
        way.call(os.urandom(16), "run", {})
    for row in rows:
        ended = bench.engine.verdict(row)
        assert (ended.state, ended.reason, ended.exit_code) == ("expired", "no call for 1 s", 0)
        late.append((ended.ended_at - row.expires_at) / 1000)
    assert bench.state(kept) == "active"
    # Written with the first of the two, so a little earlier than the worker's clock began is possible.
    assert -5 < statistics.median(late) <= 50, late
    assert not lost(lambda: bench.call(rows[0])) and bench.engine.verdict(rows[0]).state == "expired"
    expires_at = way.keepalive()
    time.sleep(max(0, expires_at / 1e6 - time.time()) - 0.2)
    assert bench.state(kept) == "active"
    assert bench.engine.verdict(until(lambda: (r := bench.rows.get(kept.id)).state == "expired" and r)).state == "expired"


def test_a_call_that_takes_longer_than_the_timeout_is_not_cut(bench):
    row = bench.start(timeout_s=1)
    way = bench.connect(row)
    assert way.call(os.urandom(16), "run", {"sleep_s": 1.7}) == 1
    time.sleep(0.7)
    assert way.call(os.urandom(16), "run", {}) == 2   # the time began anew with the end of the call


def test_an_app_ends_its_session_and_changes_its_timeout(bench):
    row = bench.start(timeout_s=60)
    bench.call(row, "wait_longer", 100)
    until(lambda: bench.rows.get(row.id).expires_at > bench.rows.now() + 90_000_000)
    assert bench.call(row, "stop") is None
    assert not lost(lambda: bench.call(row))
    ended = bench.engine.verdict(row)
    assert (ended.state, ended.reason) == ("ended", "by the app")


def test_the_end_waits_for_calls_before_it_and_refuses_those_after(bench, tmp_path):
    row, path, found = bench.start(), tmp_path / "trace", queue.Queue()
    def call(mark):
        try: found.put(bench.call(row, "run", {"path": str(path), "mark": mark, "sleep_s": 0.3}))
        except ConnectionLost as e: found.put(e.may_have_run)
    first = threading.Thread(target=call, args=("first",))
    first.start()
    until(lambda: lines(path))
    way = bench.connect(row)
    ending = threading.Thread(target=way.end)
    ending.start()
    time.sleep(0.05)
    call("after")
    first.join(), ending.join()
    assert sorted([found.get(), found.get()]) == [False, 1] and lines(path) == ["begin first", "end first"]
    assert bench.state(row) == "ended"


def test_close_is_called_and_one_that_hangs_is_cut(bench, tmp_path, monkeypatch):
    path = tmp_path / "closed"
    monkeypatch.setenv("WARM_CLOSED", str(path))
    row = bench.start()
    bench.connect(row).end()
    assert lines(path) == [f"closed {row.id}"]
    slow = bench.start("slow-to-close", timeout_s=1)
    ended = until(lambda: (r := bench.rows.get(slow.id)).state == "expired" and r)
    assert ended.exit_code == -signal.SIGKILL and not Path(f"/proc/{slow.pid}").exists()


def test_force_ends_a_call(bench, tmp_path):
    row, path, found = bench.start(), tmp_path / "trace", queue.Queue()
    thread = threading.Thread(target=lambda: found.put(lost(lambda: bench.call(row, "hold", {"path": str(path)}))))
    thread.start()
    until(lambda: lines(path))
    ended = bench.engine.kill(row)
    thread.join()
    assert (ended.state, ended.reason, found.get()) == ("ended", "by force", True)


@pytest.mark.parametrize("is_detached", [False, True])
@pytest.mark.parametrize("end", ["end", "kill"])
def test_what_a_worker_has_started_goes_with_it(bench, is_detached, end):
    row, other = bench.start(), bench.start()
    helper, kept = (bench.call(r, "helper", {"is_detached": is_detached}) for r in (row, other))
    assert Path(f"/proc/{helper}").exists()
    if end == "end": bench.connect(row).end()
    else: os.kill(row.pid, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{helper}").exists(), 5)
    assert Path(f"/proc/{kept}").exists()


# -- what cannot be started ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("app, reason", [("stuck-in-setup", "it took longer than 0.5 s"), ("dies-in-setup", "exited with 7")])
def test_a_start_that_fails_leaves_no_process(bench, app, reason):
    before = len(bench.processes()) if bench.start() else 0
    with pytest.raises(WorkerStartError, match=reason) as found: bench.start(app)
    row = bench.rows.get(found.value.session_id)
    assert row.state == "ended" and reason in row.reason
    until(lambda: len(bench.processes()) <= before + 2)   # one nursery more at most
    assert bench.call(bench.start()) == 1


def test_a_module_that_cannot_be_loaded(bench, tmp_path, monkeypatch):
    (tmp_path / "warm_wrong.py").write_text("class App:\n    def run(self, input): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import warm_wrong  # noqa: F401
    (tmp_path / "warm_wrong.py").write_text("import no_such_module_at_all\n")
    with pytest.raises(WorkerStartError, match="no_such_module_at_all") as found: bench.start(spec=AppSpec("wrong", "warm_wrong:App"))
    assert "Traceback" in found.value.traceback


def test_a_session_of_elsewhere(bench):
    row = bench.start()
    with pytest.raises(WarmError, match="another machine"): bench.connect(replace(row, host_id="host_elsewhere"))
    assert bench.engine.verdict(replace(row, host_id="host_elsewhere")).state == "active"


# -- strangers -----------------------------------------------------------------------------------------------------------

def dial_as_stranger(path):
    try: dial(path, b"")
    except PermissionError: return "refused"
    return "let in"


def call_as_stranger(path, key):
    try:
        wire = dial(path, key)   # the other side may have hung up by then
        wire.send(request(CALL, os.urandom(16), "run", b"\x80\x05N."))
        wire.receive()
    except (EOFError, OSError): return "refused"
    return "let in"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_who_has_the_key_is_refused(bench):
    row, place = bench.start(), bench.engine.place
    try:
        os.chmod(place.path, 0o755)   # by mistake
        for path in (place.host_socket, place.files(row.id)[0]):
            os.chmod(path, 0o777)
            assert unprivileged(call_as_stranger, path, Path(place.path, "key").read_bytes()) == "refused"
    finally: os.chmod(place.path, 0o700)
    assert bench.call(row) == 1


def test_nobody_else_gets_in(bench, tmp_path):
    row = bench.start()
    folder = Path(bench.engine.place.path)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in (bench.engine.place.host_socket, bench.engine.place.files(row.id)[0]):
        with pytest.raises((EOFError, OSError)):
            wire = dial(path, b"not the key")
            wire.send(request(CALL, os.urandom(16), "run", b"\x80\x05N."))
            wire.receive()
        if os.geteuid() == 0: assert unprivileged(dial_as_stranger, path) == "refused"
    assert bench.call(row) == 1


def test_a_folder_that_is_not_ours_is_refused(tmp_path, monkeypatch):
    store = open_store(f"sqlite:///{tmp_path}/sessions.db")
    engine = LocalEngine(store)
    os.mkdir(engine.place.path, 0o755)
    try:
        with pytest.raises(WarmError, match="this user alone"): engine.host.ask("pid")
    finally: os.rmdir(engine.place.path)
    store.close()


def test_no_address_on_a_command_line_or_in_an_environment(bench, tmp_path):
    row = bench.start()
    for pid in bench.processes():
        for name in ("cmdline", "environ"): assert f"{tmp_path}/sessions.db".encode() not in Path(f"/proc/{pid}/{name}").read_bytes()
    assert row.pid in bench.processes()


# -- what it costs -------------------------------------------------------------------------------------------------------

def test_starts_are_quick(bench):
    bench.start()
    took = []
    for _ in range(15):
        began = time.monotonic()
        bench.call(bench.start())
        took.append(time.monotonic() - began)
    assert statistics.median(took) <= 0.05, took


def test_fifty_sessions_at_once(bench):
    bench.start()
    began = time.monotonic()
    threads = [threading.Thread(target=bench.start) for _ in range(50)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert time.monotonic() - began <= 2
    assert len(bench.rows.page(states=("active",), limit=100)) == 51


def test_nothing_is_done_while_all_are_idle(bench):
    rows = [bench.start() for _ in range(10)]
    for row in rows: bench.call(row)
    time.sleep(1.5)   # what is still to be written
    pids = bench.processes()
    assert len(pids) == 12   # host, nursery, ten workers
    before = cpu_s(pids)
    time.sleep(5)
    assert cpu_s(pids) - before <= 0.03   # at most one sign of life of the host


def test_the_host_leaves_when_it_is_not_needed(tmp_path):
    bench = Bench(f"sqlite:///{tmp_path}/sessions.db", leave_s=0.5)
    try:
        row = bench.start(timeout_s=1)
        assert bench.engine.verdict(until(lambda: (r := bench.rows.get(row.id)).state == "expired" and r))
        until(lambda: not bench.processes(), 5)
        assert not os.path.exists(bench.engine.place.path)
        assert bench.call(bench.start()) == 1   # and comes back
    finally: bench.close()
