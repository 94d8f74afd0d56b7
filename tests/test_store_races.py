"""Many at once on one store: processes, threads, forks, and writers that are killed while they write."""

import os
import random
import threading
import time
from contextlib import closing

import pytest

from cjm_workflow_sessions.errors import SessionExists, SessionNotFound, StoreError
from cjm_workflow_sessions.stores.base import Order
from cjm_workflow_sessions.stores.sqlite import SQLiteSessionStore
from store_support import check, check_file, FLOW, in_threads, lock_held, opened, outside, SPAWN, together

KILLS = int(os.environ.get("STORE_KILLS", "10"))


@pytest.fixture(params=["file", "memory"])
def store(request, tmp_path):
    store = SQLiteSessionStore(tmp_path / "sessions.db" if request.param == "file" else ":memory:")
    store.create_session(FLOW, "s1", owner="ann", state={"n": 0})
    yield store
    store.close()


@pytest.fixture
def path(tmp_path):
    "A store with one session, which this process does not hold open."
    store = SQLiteSessionStore(tmp_path / "sessions.db")
    store.create_session(FLOW, "s1", owner="ann", state={"n": 0})
    store.close()
    return store.where


@pytest.fixture(params=["sqlite", "postgres"])
def where(request):
    "A store with one session, by what another process opens it with."
    if request.param == "sqlite": return request.getfixturevalue("path")
    url = request.getfixturevalue("postgres").fresh_url()
    with closing(opened(url)) as store: store.create_session(FLOW, "s1", owner="ann", state={"n": 0})
    return url


# -- merges and counters -------------------------------------------------------------------------------------------------

def merge(store, name, n):
    for i in range(n): store.update_state(FLOW, "s1", {f"{name}-{i}": i})

def count(store, n):
    for _ in range(n):
        with store.edit_state(FLOW, "s1") as state: state["n"] += 1

def merge_in_process(where, name, n): merge(opened(where), name, n)
def count_in_process(where, n): count(opened(where), n)

def merged(writers, n): return {"n": 0} | {f"{w}-{i}": i for w in range(writers) for i in range(n)}


@pytest.mark.parametrize(("writers", "n"), [(2, 500), (4, 250)])
def test_merges_of_several_processes_are_all_there(where, writers, n):
    together(*((merge_in_process, where, w, n) for w in range(writers)))
    assert opened(where).get_state(FLOW, "s1") == merged(writers, n)
    check(where)


def test_merges_of_several_threads_are_all_there(store):
    in_threads(*(lambda w=w: merge(store, w, 250) for w in range(4)))
    assert store.get_state(FLOW, "s1") == merged(4, 250)


def test_a_counter_of_two_processes_is_exact(where):
    together((count_in_process, where, 200), (count_in_process, where, 200))
    assert opened(where).get_state(FLOW, "s1") == {"n": 400}
    check(where)


def test_a_counter_of_several_threads_is_exact(store):
    in_threads(*(lambda: count(store, 50) for _ in range(4)))
    assert store.get_state(FLOW, "s1") == {"n": 200}


def note_times(where, n):
    store, found = opened(where), []
    for i in range(n):
        store.update_state(FLOW, "s1", {f"{os.getpid()}": i})
        found.append(store.get_session_summary(FLOW, "s1").updated_at)
    return found

def test_the_time_of_update_never_goes_back(where):
    for times in together((note_times, where, 100), (note_times, where, 100)): assert times == sorted(set(times))


# -- sessions that come and go -------------------------------------------------------------------------------------------

def create_taken(where, n):
    store, won = opened(where), 0
    for i in range(n):
        try: store.create_session(FLOW, f"same-{i}", owner="ann", state={"by": os.getpid()})
        except SessionExists: continue
        won += 1
    return won

def test_one_of_several_processes_gets_an_id(where):
    assert sum(together(*[(create_taken, where, 100)] * 3)) == 100
    assert opened(where).count_sessions(FLOW) == 101
    check(where)


def churn(where, seed):
    "Do everything that moves the tally, on sessions that others move too."
    store, chance = opened(where), random.Random(seed)
    for i in range(150):
        sid, owner = f"c{chance.randrange(12)}", f"o{chance.randrange(2)}"
        try:
            match chance.randrange(6):
                case 0: store.create_session(FLOW, sid, f"Label {i}", owner=owner, state={"i": i})
                case 1: store.delete_session(FLOW, sid)
                case 2: store.restore_session(FLOW, sid)
                case 3: store.clear_state(FLOW, sid)
                case 4: store.change_session(FLOW, sid, updates={f"k{i % 5}": "x" * i}, remove=[f"k{(i + 1) % 5}"], columns={"label": f"Again {i}"})
                case 5: store.purge_trash(FLOW, 2**62)
        except (SessionExists, SessionNotFound): continue

def test_counts_stay_exact_while_sessions_come_and_go(where):
    together(*((churn, where, seed) for seed in range(3)))
    check(where)


# -- starting and ending ---------------------------------------------------------------------------------------------------

ROUNDS = 4

def open_together(places, name, barrier):
    "Meet the others before each of several places where nothing is yet."
    for place in places:
        barrier.wait(60)
        store = opened(place)
        store.create_session(FLOW, f"of-{name}", owner=name, state={"name": name})
        store.close()   # the last one to close rewrites the file, while others may still be opening it

@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_ten_processes_start_together_where_nothing_is(kind, tmp_path, request):
    if kind == "sqlite": places = [f"{tmp_path}/new-{i}/sessions.db" for i in range(ROUNDS)]
    else: places = [request.getfixturevalue("postgres").fresh_url() for _ in range(ROUNDS)]
    barrier = SPAWN.Barrier(10)
    processes = [SPAWN.Process(target=open_together, args=(places, str(i), barrier), daemon=True) for i in range(10)]
    for p in processes: p.start()
    for p in processes: p.join(120)
    assert [p.exitcode for p in processes] == [0] * 10
    for place in places:
        with closing(opened(place)) as store: assert sorted(s.session_id for s in store.list_sessions(FLOW)) == [f"of-{i}" for i in range(10)]
        check(place)


def close_while_others_write(where):
    "Gives the keys whose write was acknowledged; an error that is no `StoreError` ends this process badly."
    store, stop, done, wrong = opened(where), threading.Event(), [], []
    def write(name):
        i = 0
        while not stop.is_set():
            try: store.update_state(FLOW, "s1", {f"{name}-{i}": i})
            except StoreError: pass
            except Exception as e: wrong.append(e)
            else: done.append(f"{name}-{i}")
            i += 1
    threads = [threading.Thread(target=write, args=(name,)) for name in range(3)]
    for t in threads: t.start()
    for _ in range(50):
        store.close()
        time.sleep(0.005)
    stop.set()
    for t in threads: t.join()
    if wrong: raise wrong[0]
    return done

def test_a_store_may_be_closed_while_other_threads_write(where):
    (done,) = together((close_while_others_write, where))
    assert done and set(done) <= opened(where).get_state(FLOW, "s1").keys()
    check(where)


# -- a writer that is killed ---------------------------------------------------------------------------------------------------



def write_until_killed(where, name, pipe):
    "Write in every way there is; say each time what has been acknowledged."
    store, i = opened(where, 30), 0
    while True:
        i += 1
        store.update_state(FLOW, "s1", {f"{name}-{i}": "x" * (i % 7 * 300)})
        pipe.send(("merged", f"{name}-{i}"))
        store.update_step_state(FLOW, "counts", "pick", {name: i})   # reads, changes and writes under the lock
        pipe.send(("counted", i))
        if i % 3 == 0:
            sid = store.create_session(FLOW, f"{name}-{i}", owner=name, state={f"k{j}": j for j in range(20)})
            pipe.send(("created", sid))
            if i % 2 == 0:
                store.delete_session(FLOW, sid)
                pipe.send(("trashed", sid))

def test_no_acknowledged_write_is_lost_by_kills(where):
    chance, store, keys = random.Random(1), opened(where), set()
    def start(name):
        ours, theirs = SPAWN.Pipe(duplex=False)
        process = SPAWN.Process(target=write_until_killed, args=(where, name, theirs), daemon=True)
        process.start()
        theirs.close()
        return process, ours, name, []
    for turn in range(KILLS // 2):
        writers = [start(f"{turn}{side}") for side in "ab"]   # one of the two dies while the other writes
        for process, pipe, _, told in writers:
            for _ in range(chance.randrange(1, 40)): told.append(pipe.recv())
            process.kill()
        for process, pipe, name, told in writers:
            try:
                while True: told.append(pipe.recv())
            except EOFError: pass
            process.join(60)
            assert process.exitcode == -9
            keys |= {what for event, what in told if event == "merged"}
            assert keys <= store.get_state(FLOW, "s1").keys()
            assert store.get_step_state(FLOW, "counts", "pick").get(name, 0) >= max((what for event, what in told if event == "counted"), default=0)
            for event, sid in told:
                if event == "created": assert store.session_exists(FLOW, sid) or store.get_trashed(FLOW, sid)
                if event == "trashed": assert store.get_trashed(FLOW, sid)
        check(where)
    assert len(keys) > 3 * KILLS


# -- fork ------------------------------------------------------------------------------------------------------------------

def forked(job, parent=lambda: None):
    "Run a job in a fork of this process while `parent` runs here; say whether the job's writes were acknowledged. A refusal by `StoreError` is not."
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        answer = b"failed"
        try:
            job()
            answer = b"done"
        except StoreError: answer = b"refused"
        finally:
            os.write(theirs, answer)
            os._exit(0)
    parent()
    answer = os.read(ours, 100)
    os.waitpid(pid, 0)
    assert answer != b"failed"
    return answer == b"done"

def connections_of(store): return store._db.get() if isinstance(store, SQLiteSessionStore) else store._db.pool()

def count_with_a_fork(where):
    store = opened(where)
    count(store, 10)
    inherited = connections_of(store)
    def child():
        count(store, 100)
        assert connections_of(store) is not inherited
    return forked(child, lambda: count(store, 100))

def test_a_fork_uses_a_connection_of_its_own(where):
    assert together((count_with_a_fork, where)) == [True]
    assert opened(where).get_state(FLOW, "s1") == {"n": 210}
    check(where)


def outlive_the_parent(where):
    "As a program does that goes to the background: the child goes on when the parent's connections are closed."
    store = opened(where)
    store.update_state(FLOW, "s1", {"parent": 1})
    (child_reads, parent_writes), (parent_reads, child_writes) = os.pipe(), os.pipe()
    def child():
        store.update_state(FLOW, "s1", {"before": 1})
        os.write(child_writes, b"x")
        os.read(child_reads, 1)
        store.update_state(FLOW, "s1", {"after": 1})
    def parent():
        os.read(parent_reads, 1)
        store.close()
        os.write(parent_writes, b"x")
    return forked(child, parent)

def test_a_write_of_a_fork_outlives_the_parents_connections(where):
    (acknowledged,) = together((outlive_the_parent, where))
    assert acknowledged
    assert opened(where).get_state(FLOW, "s1") == {"n": 0, "parent": 1, "before": 1, "after": 1}


def fork_while_a_thread_writes(where):
    store, inside, leave = opened(where, 1), threading.Event(), threading.Event()
    def write():
        with store.edit_state(FLOW, "s1") as state:
            state["thread"] = "x" * 50_000
            inside.set()
            leave.wait(30)
    writer = threading.Thread(target=write)
    writer.start()
    inside.wait(30)
    def parent():
        leave.set()
        writer.join()
        store.update_state(FLOW, "s1", {"parent": 1})
    return forked(lambda: store.update_state(FLOW, "s1", {"child": 1}), parent)

def test_a_fork_during_a_write_disturbs_nobody(where):
    (acknowledged,) = together((fork_while_a_thread_writes, where))
    expected = {"n": 0, "thread": "x" * 50_000, "parent": 1} | ({"child": 1} if acknowledged else {})
    assert opened(where).get_state(FLOW, "s1") == expected
    check(where)


# -- readers while somebody writes -----------------------------------------------------------------------------------------

READS = {
    "session_exists": lambda s: s.session_exists(FLOW, "s1"),
    "get_session_summary": lambda s: s.get_session_summary(FLOW, "s1"),
    "get_state": lambda s: s.get_state(FLOW, "s1"),
    "get_step_state": lambda s: s.get_step_state(FLOW, "s1", "pick"),
    "get_states": lambda s: s.get_states(FLOW, ["s1"]),
    "get_trashed": lambda s: s.get_trashed(FLOW, "s1"),
    "list_sessions": lambda s: s.list_sessions(FLOW),
    "page by title": lambda s: s.page_sessions(FLOW, order=Order("title"), search="s"),
    "count_sessions": lambda s: s.count_sessions(FLOW),
    "list_steps": lambda s: s.list_steps(FLOW),
    "list_flows": lambda s: s.list_flows(),
    "outdated_shown": lambda s: s.outdated_shown(FLOW, "v1"),
}

def test_readers_go_on_while_a_writer_holds_the_lock(path):
    store, reader = SQLiteSessionStore(path), SQLiteSessionStore(path, busy_timeout_s=0)   # a reader that had to wait would raise
    before = {name: read(reader) for name, read in READS.items()}
    seen = []
    with store.edit_state(FLOW, "s1") as state:
        state["n"] = 99
        store.set_session_label(FLOW, "s1", "joins the transaction")
        in_threads(lambda: seen.append({name: read(reader) for name, read in READS.items()}))
    assert seen == [before]
    assert reader.get_state(FLOW, "s1") == {"n": 99}


def test_readers_go_on_while_another_process_holds_the_lock(path):
    reader = SQLiteSessionStore(path, busy_timeout_s=0)
    before = {name: read(reader) for name, read in READS.items()}
    with lock_held(path): assert {name: read(reader) for name, read in READS.items()} == before


def test_a_writer_goes_on_while_a_reader_is_in_the_middle_of_its_rows(path):
    store = SQLiteSessionStore(path, busy_timeout_s=0)
    with outside(path) as db:
        db.execute("BEGIN")
        rows = db.execute("SELECT key FROM wfs_value")
        assert rows.fetchone() == ('"n"',)
        store.update_state(FLOW, "s1", {"m": 1})
        assert rows.fetchone() is None and db.execute("SELECT count(*) FROM wfs_value").fetchone() == (1,)   # it reads what was there when it began
    assert store.get_state(FLOW, "s1") == {"n": 0, "m": 1}


def open_and_read(path):
    return SQLiteSessionStore(path, busy_timeout_s=0).get_state(FLOW, "s1")

def test_a_store_opens_for_reading_while_another_process_holds_the_lock(path):
    keeper = SQLiteSessionStore(path)   # so that the file stays as it is in use
    with lock_held(path): assert open_and_read(path) == {"n": 0}
    keeper.close()


def test_a_writer_waits_for_its_turn(path):
    store = SQLiteSessionStore(path)
    inside = threading.Event()
    def hold():
        with store.edit_state(FLOW, "s1") as state:
            inside.set()
            time.sleep(0.3)
            state["n"] += 1
    def wait():
        inside.wait(30)
        with store.edit_state(FLOW, "s1") as state: state["n"] += 10
    in_threads(hold, wait)
    assert store.get_state(FLOW, "s1") == {"n": 11}


def test_the_lock_of_a_killed_process_is_free_at_once(path):
    store = SQLiteSessionStore(path, busy_timeout_s=0)
    with lock_held(path) as holder:
        with pytest.raises(StoreError): store.update_state(FLOW, "s1", {"n": 1})
        holder.kill()
        holder.join(60)
        store.update_state(FLOW, "s1", {"n": 2})
    assert store.get_state(FLOW, "s1") == {"n": 2} and store.get_session_summary(FLOW, "s1").label is None
    check_file(path)
