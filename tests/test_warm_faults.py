"""Whoever is killed, frozen or away: a call runs once or its caller is told, and no process is left behind."""

import contextlib
import os
import queue
import signal
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from cjm_workflow_sessions.errors import StoreError
from cjm_workflow_sessions.warm.engine import ConnectionLost
from cjm_workflow_sessions.warm.errors import WorkerStartError
from postgres_support import throwaway
from warm_support import MARK, Bench, lines, until


@pytest.fixture
def bench(tmp_path):
    bench = Bench(f"sqlite:///{tmp_path}/sessions.db")
    yield bench
    bench.close()


@pytest.fixture
def path(tmp_path): return tmp_path / "trace"


@contextlib.contextmanager
def in_a_call(bench, row, path, mark="busy", sleep_s=1.0):
    "A call that has begun; gives where its outcome will be."
    outcome = queue.Queue()
    def call():
        try: outcome.put(bench.call(row, "run", {"path": str(path), "mark": mark, "sleep_s": sleep_s}))
        except ConnectionLost as e: outcome.put(e)
    thread = threading.Thread(target=call)
    thread.start()
    until(lambda: f"begin {mark}" in lines(path))
    yield outcome
    thread.join(30)
    assert not thread.is_alive()


def is_gone(pid):
    try: return not Path(f"/proc/{pid}/environ").read_bytes()   # a zombie has none
    except (FileNotFoundError, ProcessLookupError): return True


def kill(*pids):
    for pid in pids: os.kill(pid, signal.SIGKILL)


def refused(bench, row):
    "Whether a new call may have run."
    with pytest.raises(ConnectionLost) as found: bench.call(row)
    return found.value.may_have_run


def nursery_of(row): return int(Path(f"/proc/{row.pid}/stat").read_text().rpartition(")")[2].split()[1])


# -- the worker, what it was made from, the host -------------------------------------------------------------------------

VICTIMS = {"worker": lambda bench, row: [row.pid], "nursery": lambda bench, row: [nursery_of(row)], "host": lambda bench, row: [bench.host_pid],
           "host and nursery": lambda bench, row: [bench.host_pid, nursery_of(row)]}


@pytest.mark.parametrize("victim", VICTIMS)
def test_killed_while_idle(bench, path, victim):
    row, host = bench.start(), bench.host_pid
    way = bench.connect(row)
    way.call(os.urandom(16), "run", {"path": str(path)})
    helper = bench.call(row, "helper", {"is_detached": False})
    kill(*VICTIMS[victim](bench, row))
    until(lambda: is_gone(row.pid), 2)
    with pytest.raises(ConnectionLost) as found: way.call(os.urandom(16), "run", {"path": str(path)})
    assert not found.value.may_have_run and not refused(bench, row)
    assert lines(path) == ["begin -", "end -"]
    lost = bench.engine.verdict(row)
    assert (lost.state, bench.state(row)) == ("lost", "lost")
    assert lost.exit_code == (None if "host" in victim else -9)
    until(lambda: is_gone(row.pid) and is_gone(helper), 2)
    assert bench.call(bench.start()) == 1 and (bench.host_pid == host) == ("host" not in victim)


@pytest.mark.parametrize("victim", VICTIMS)
def test_killed_in_a_call(bench, path, victim):
    row = bench.start()
    with in_a_call(bench, row, path, sleep_s=60) as outcome:
        waiting = threading.Thread(target=lambda: outcome.put(refused(bench, row)))   # sent, but not begun
        waiting.start()
        time.sleep(0.2)
        kill(*VICTIMS[victim](bench, row))
        waiting.join(10)
    first, second = outcome.get(), outcome.get()
    told = {type(o): o for o in (first, second)}
    assert told[ConnectionLost].may_have_run and told[bool] is False
    assert lines(path) == ["begin busy"]
    assert bench.engine.verdict(row).state == "lost"
    until(lambda: is_gone(row.pid), 2)
    assert bench.call(bench.start()) == 1


def test_all_processes_killed_at_once(bench, path):
    row = bench.start()
    for pid in bench.processes(): kill(pid)
    assert not refused(bench, row) and bench.engine.verdict(row).state == "lost"
    assert bench.call(bench.start()) == 1


def test_a_worker_that_exits_by_itself(bench):
    row = bench.start()
    with pytest.raises(ConnectionLost) as found: bench.call(row, "exit", 3)
    lost = bench.engine.verdict(row)
    assert (found.value.may_have_run, lost.state, lost.exit_code, lost.reason) == (True, "lost", 3, "its process exited with 3")


def test_a_host_killed_while_it_starts_a_worker(bench):
    bench.start()
    host, outcome = bench.host_pid, queue.Queue()
    def start():
        try: bench.start("stuck-in-setup")
        except WorkerStartError as e: outcome.put(e)
    thread = threading.Thread(target=start)
    thread.start()
    until(lambda: len(bench.processes()) >= 5)
    kill(host)
    thread.join(10)
    error = outcome.get(timeout=1)
    assert bench.state(bench.rows.get(error.session_id)) in ("ended", "lost")
    until(lambda: not bench.processes(), 5)


# -- callers and web processes -------------------------------------------------------------------------------------------

CALLER = """
    row = bench.rows.get(sys.argv[1]); way = bench.connect(row)
    way.call(os.urandom(16), "run", {"path": sys.argv[2], "mark": "first"})
    if sys.argv[3] == "busy": way.call(os.urandom(16), "run", {"path": sys.argv[2], "mark": "second", "sleep_s": 1})
    time.sleep(60)
"""


@pytest.mark.parametrize("when", ["idle", "busy"])
def test_a_killed_caller_leaves_the_session_as_it_is(bench, path, when):
    row = bench.start()
    program = bench.program(CALLER, row.id, path, when)
    until(lambda: ("begin second" if when == "busy" else "end first") in lines(path))
    program.kill()
    program.communicate()
    done = 2 if when == "busy" else 1
    assert bench.call(row) == done + 1   # behind what the killed one had begun
    assert lines(path) == [f"{word} {mark}" for mark in ("first", "second")[:done] for word in ("begin", "end")]


@pytest.mark.parametrize("when", ["idle", "busy"])
def test_a_killed_web_process_leaves_its_sessions_to_the_others(bench, path, when):
    program = bench.program("""
        row = bench.start(); print(row.id, flush=True)
        if sys.argv[2] == "busy": bench.call(row, "run", {"path": sys.argv[1], "mark": "web", "sleep_s": 1})
        time.sleep(60)
    """, path, when)
    row = bench.rows.get(program.stdout.readline().strip())   # the program has started the host as well
    if when == "busy": until(lambda: "begin web" in lines(path))
    os.killpg(program.pid, signal.SIGKILL)
    program.communicate()
    assert bench.call(row) == (2 if when == "busy" else 1) and bench.state(row) == "active"
    assert lines(path) == (["begin web", "end web"] if when == "busy" else [])


def test_a_caller_that_takes_nothing_holds_nobody_up_who_comes_before_it_asks(bench, path):
    row = bench.start()
    way = bench.connect(row)
    way.wire.sock.sendall(b"\x00\x00\x00\x00\x00\x00\x00\x50half of a message")
    assert bench.call(row) == 1   # another caller is not kept waiting
    way.close()
    assert bench.call(row) == 2


# -- frozen --------------------------------------------------------------------------------------------------------------

def test_a_frozen_worker_goes_on_where_it_was(bench, path):
    row = bench.start(timeout_s=1)
    with in_a_call(bench, row, path, sleep_s=0.5) as outcome:
        os.kill(row.pid, signal.SIGSTOP)
        time.sleep(1.5)
        assert outcome.empty()
        os.kill(row.pid, signal.SIGCONT)
    assert outcome.get() == 1 and lines(path) == ["begin busy", "end busy"]
    assert bench.call(row) == 2


def test_a_call_to_a_frozen_worker_is_run_once_or_refused(bench, path):
    row = bench.start(timeout_s=1)
    os.kill(row.pid, signal.SIGSTOP)
    outcome = queue.Queue()
    thread = threading.Thread(target=lambda: outcome.put(bench.call(row, "run", {"path": str(path)})))
    thread.start()
    time.sleep(1.5)   # its idle time is over, but the call came before the worker could see that
    os.kill(row.pid, signal.SIGCONT)
    thread.join(10)
    assert outcome.get() == 1 and lines(path) == ["begin -", "end -"]
    assert until(lambda: bench.state(row) == "expired", 5)


def test_a_worker_frozen_beyond_its_time_expires_when_it_wakes(bench):
    row = bench.start(timeout_s=1)
    os.kill(row.pid, signal.SIGSTOP)
    time.sleep(1.5)
    assert bench.state(row) == "active"
    os.kill(row.pid, signal.SIGCONT)
    assert bench.engine.verdict(row).state == "expired"


def test_a_killed_worker_that_was_frozen(bench):
    row = bench.start()
    os.kill(row.pid, signal.SIGSTOP)
    assert bench.engine.kill(row).state == "ended"
    assert is_gone(row.pid)


def test_a_frozen_host_is_in_nobodys_way_and_finds_what_was_given_up(bench):
    kept, lost = bench.start(), bench.start()
    host = bench.host_pid
    os.kill(host, signal.SIGSTOP)
    try:
        assert bench.call(kept) == 1   # calls go to the worker itself
        assert bench.rows.change(lost.id, lost.epoch, ("active",), state="lost", reason="given up by a reader")
        assert bench.call(lost) == 1   # which cannot know yet
    finally: os.kill(host, signal.SIGCONT)
    until(lambda: is_gone(lost.pid), 5)   # the store refuses what the host writes of it
    assert (bench.state(lost), bench.state(kept), bench.call(kept)) == ("lost", "active", 2)


# -- the store -----------------------------------------------------------------------------------------------------------

@contextlib.contextmanager
def locked(bench):
    "Another program holds the lock of the file."
    db = sqlite3.connect(bench.store.db_path, isolation_level=None)
    db.execute("BEGIN EXCLUSIVE")
    try: yield
    finally: db.close()


def test_a_locked_store_delays_no_call_and_loses_no_end(bench, path):
    row, other = bench.start(), bench.start(timeout_s=1)
    with locked(bench):
        for n in range(1, 4): assert bench.call(row) == n
        kill(row.pid)
        until(lambda: is_gone(row.pid) and is_gone(other.pid), 5)
        time.sleep(6)   # longer than the host waits for the lock
        assert bench.engine.verdict(row).state == "lost"   # in the host's words: it cannot be read yet
    until(lambda: (bench.state(row), bench.state(other)) == ("lost", "expired"), 10)
    assert bench.rows.get(row.id).exit_code == -9


@pytest.fixture(scope="module")
def cluster():
    with throwaway() as cluster: yield cluster


@pytest.fixture
def away(cluster):
    bench = Bench(cluster.fresh_url())
    yield bench
    if cluster.process.poll() is not None: start_again(cluster)
    bench.close()


def start_again(cluster):
    mark = os.environ.pop(MARK)   # the server is none of the processes that must be gone in the end
    cluster.start()
    os.environ[MARK] = mark


@pytest.mark.parametrize("when", ["idle", "busy"])
def test_a_killed_store_takes_no_session_with_it(away, cluster, path, when):
    bench, row, short = away, away.start(), away.start(timeout_s=1)
    way = bench.connect(row)
    assert way.call(os.urandom(16), "run", {}) == 1
    with in_a_call(bench, row, path, sleep_s=1.5) if when == "busy" else contextlib.nullcontext(queue.Queue()) as outcome:
        cluster.stop("immediate")
        with pytest.raises((StoreError, WorkerStartError)): bench.start()
        until(lambda: is_gone(short.pid), 5)
    if when == "busy": assert outcome.get() == 2
    before = way.call(os.urandom(16), "run", {})
    start_again(cluster)
    assert way.call(os.urandom(16), "run", {}) == before + 1
    until(lambda: (bench.state(row), bench.state(short)) == ("active", "expired"), 20)
    assert lines(path) == (["begin busy", "end busy"] if when == "busy" else [])
    assert bench.call(bench.start()) == 1


# -- races ---------------------------------------------------------------------------------------------------------------

def test_six_programs_start_one_host(bench):
    gate = time.time() + 1.5
    programs = [bench.program("""
        time.sleep(max(0, float(sys.argv[1]) - time.time()))
        row = bench.start(); print(bench.host_pid, bench.call(row), row.id)
    """, gate) for _ in range(6)]
    found = [p.communicate(timeout=60)[0].split() for p in programs]
    assert len({host for host, _, _ in found}) == 1 and [n for _, n, _ in found] == ["1"] * 6
    assert len({id for *_, id in found}) == 6 and len(bench.rows.page(states=("active",))) == 6
    until(lambda: len(bench.processes()) == 8, 5)   # host, nursery, six workers


def test_calls_against_the_expiry_are_run_or_refused_never_both(bench, path):
    rows = [bench.start(timeout_s=1) for _ in range(12)]
    ran = refused = 0
    outcomes = queue.Queue()
    def call(row, n):
        time.sleep(max(0, row.expires_at / 1e6 - time.time() + (n - 6) / 1000))
        try: outcomes.put((n, bench.call(row, "run", {"path": str(path), "mark": n})))
        except ConnectionLost as e: outcomes.put((n, e))
    threads = [threading.Thread(target=call, args=(row, n)) for n, row in enumerate(rows)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    while not outcomes.empty():
        n, outcome = outcomes.get()
        has_run = f"end {n}" in lines(path)
        if isinstance(outcome, ConnectionLost):
            assert not outcome.may_have_run and not has_run
            assert bench.engine.verdict(rows[n]).state == "expired"
            refused += 1
        else:
            assert outcome == 1 and has_run
            ran += 1
    assert ran + refused == 12
