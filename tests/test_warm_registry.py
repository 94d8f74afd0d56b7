"""The rows of warm sessions: who may write them, how many there may be, and what becomes of them when their host is gone."""

import sqlite3
import threading
import time
from contextlib import closing

import pytest
from cjm_workflow_state.state_store import SQLiteWorkflowStateStore

from cjm_workflow_sessions.errors import InvalidInput
from cjm_workflow_sessions.stores.backup import backup_store
from cjm_workflow_sessions.stores.base import as_store
from cjm_workflow_sessions.stores.examine import examine_store
from cjm_workflow_sessions.stores.schema import MIGRATIONS
from cjm_workflow_sessions.stores.sqlite import SQLiteSessionStore
from cjm_workflow_sessions.stores.transfer import transfer_sessions
from cjm_workflow_sessions.stores.warm_port import COLD, LOG_BYTES, STALE_US, WARM, LimitReached, warm_store
from cjm_workflow_sessions.stores.warm_rows import GONE, LATE
from store_support import FLOW, in_threads, opened, together

HOST = ("h1", "boot-1", "box", 41, 410)
LONG = STALE_US + 1_000_000


@pytest.fixture(params=["sqlite", "postgres"])
def where(request, tmp_path):
    "An empty store, by what another process opens it with."
    if request.param == "sqlite": return str(tmp_path / "sessions.db")
    return request.getfixturevalue("postgres").fresh_url()


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def store(request, tmp_path):
    if request.param == "postgres": store = opened(request.getfixturevalue("postgres").fresh_url())
    else: store = SQLiteSessionStore(":memory:" if request.param == "memory" else tmp_path / "sessions.db")
    yield store
    store.close()


@pytest.fixture
def warm(store): return warm_store(store)


def insert(warm, id="sess_a", owner="ann", app="infer", host_id="h1", **more): return warm.insert(id, owner, app, "1", 60, host_id, **more)

def start(warm, id="sess_a", **more):
    "A session with a worker."
    insert(warm, id, **more)
    return warm.change(id, 1, ("starting",), state="active", epoch=2, pid=7, pid_started=70, address=f"/run/{id}")

def pass_time(warm, us, *, hosts=True, sessions=True):
    "Let everything have happened that much earlier."
    if hosts: warm.store.rows("UPDATE wfs_warm_host SET beat_at = beat_at - ?", (us,))
    if sessions: warm.store.rows("UPDATE wfs_warm SET created_at = created_at - ?, expires_at = expires_at - ?, ended_at = ended_at - ?", (us, us, us))

def about(us, expected): return abs(us - expected) < 1_000_000 # PostgreSQL's clock goes on within a statement
def states(warm): return {row.id: row.state for row in warm.page()}
def written(warm): return dict(warm.store.rows("SELECT warm_id, state FROM wfs_warm"))


# -- one session ---------------------------------------------------------------------------------------------------------

def test_a_session_from_its_start_to_its_end(warm):
    before = warm.now()
    new = insert(warm, flow_id=FLOW, session_id="s1")
    assert (new.state, new.epoch, new.pid, new.call_count, new.reason, new.expires_at, new.is_warm) == ("starting", 1, None, 0, "", None, True)
    assert (new.owner, new.app, new.version, new.timeout_s, new.host_id, new.flow_id, new.session_id) == ("ann", "infer", "1", 60, "h1", FLOW, "s1")
    assert before <= new.created_at <= warm.now() and warm.get("sess_a") == new and warm.logs("sess_a") == ""
    active = warm.change("sess_a", 1, ("starting",), state="active", epoch=2, pid=7, pid_started=70, address="/run/a", timeout_s=9)
    assert (active.state, active.epoch, active.address) == ("active", 2, "/run/a") and about(active.expires_at - active.started_at, 9_000_000)
    assert warm.touch("sess_a", 2, 5, before, before + 1, 10**10)
    assert (seen := warm.get("sess_a")).call_count == 5 and (seen.last_call_at, seen.expires_at, seen.memory_bytes) == (before, before + 1, 10**10)
    ended = warm.change("sess_a", 2, ("active",), state="ended", reason="by its owner", exit_code=-9, logs="loaded\n")
    assert (ended.state, ended.reason, ended.exit_code, ended.is_warm) == ("ended", "by its owner", -9, False) and ended.ended_at >= ended.started_at
    assert warm.get("sess_a") == ended and warm.logs("sess_a") == "loaded\n"


def test_what_is_cold_stays_cold(warm):
    for state in COLD:
        start(warm, state)
        assert warm.change(state, 2, WARM, state=state)
        assert warm.change(state, 2, WARM, state="active") is None and not warm.touch(state, 2, 1, None, 1)
        with pytest.raises(InvalidInput, match="cannot be started again"): warm.change(state, 2, (state,), state="active")
        assert warm.change(state, 2, COLD, logs="late").state == state and warm.logs(state) == "late"


def test_times_by_the_clock_of_the_database_and_times_that_are_given(warm):
    start(warm)
    row = warm.change("sess_a", 2, ("active",), last_call_at="now", expires_at=5, started_at=4)
    assert abs(row.last_call_at - warm.now()) < 5_000_000 and (row.expires_at, row.started_at) == (5, 4)


@pytest.mark.parametrize("columns", [{}, {"owner": "eve"}, {"id": 1}, {"warm_id": "x"}, {"flow_id": "x"}, {"state = 'active', owner": "x"}, {"state": "asleep"},
                                     {"address": "a\x00b"}])
def test_a_change_that_makes_no_sense_is_refused(warm, columns):
    start(warm)
    with pytest.raises(InvalidInput): warm.change("sess_a", 2, ("active",), **columns)
    assert warm.get("sess_a").owner == "ann"


@pytest.mark.parametrize("field", ["id", "owner", "app", "host_id", "session_id"])
def test_text_that_a_database_cannot_hold_is_refused(warm, field):
    with pytest.raises(InvalidInput, match=field): insert(warm, **{field: "a\x00b"})
    assert warm.page() == []


def test_a_log_of_any_bytes_keeps_its_end(warm):
    start(warm)
    warm.change("sess_a", 2, WARM, state="lost", reason="\x00" + "x" * 1000, logs="first\x00" + "é" * LOG_BYTES + "\ud800end")
    kept = warm.logs("sess_a")
    assert kept.endswith("é?end") and "first" not in kept and LOG_BYTES - 4 <= len(kept.encode()) <= LOG_BYTES
    assert len(warm.get("sess_a").reason) == 500


def test_an_id_is_used_once(warm):
    insert(warm)
    with pytest.raises(InvalidInput, match="taken"): insert(warm, owner="eve")
    assert warm.get("sess_a").owner == "ann"


def test_a_session_is_not_started_in_the_middle_of_a_write(store, warm):
    store.create_session(FLOW, "s1")
    with store.edit_state(FLOW, "s1") as state:
        with pytest.raises(InvalidInput, match="edit_state"): insert(warm)
        state["a"] = 1
    assert warm.page() == [] and store.get_state(FLOW, "s1") == {"a": 1}


# -- owners and lists ----------------------------------------------------------------------------------------------------

def test_another_owner_sees_nothing(warm):
    start(warm)
    warm.change("sess_a", 2, WARM, state="ended", logs="secret")
    for owner in ("bob", "", "a%", "ANN"):
        assert warm.get("sess_a", owner=owner) is None and warm.logs("sess_a", owner) is None and warm.page(owner) == []
    assert warm.get("sess_a", owner="ann") and warm.logs("sess_a", "ann") == "secret" and len(warm.page("ann")) == 1
    insert(warm, "sess_b", owner="")
    assert [r.id for r in warm.page("")] == ["sess_b"]


def test_lists(warm):
    for i in range(6): insert(warm, f"sess_{i}", owner="ab"[i % 2], app="xy"[i // 3], host_id=f"h{i % 3}", flow_id=FLOW, session_id=f"s{i % 2}" if i < 4 else None)
    warm.change("sess_5", 1, WARM, state="expired")
    found = lambda *args, **which: [int(r.id[-1]) for r in warm.page(*args, **which)]
    assert found() == [5, 4, 3, 2, 1, 0] and found(limit=2) == [5, 4] and found(limit=0) == []
    assert found("a") == [4, 2, 0] and found("a", "x") == [2, 0] and found(app="y", host_id="h1") == [4] and found(flow_id="other") == []
    assert found(states=WARM) == [4, 3, 2, 1, 0] and found(states=["expired", "lost"]) == [5]
    assert found(session_ids=["s1", "?"]) == [3, 1] and found("a", session_ids={"s0": 1}.keys()) == [2, 0] and found(session_ids=[]) == []
    assert found(session_ids=[f"s{i}" for i in range(2000)]) == [3, 2, 1, 0]


def test_a_list_is_one_query_and_reads_no_logs(store, warm, monkeypatch):
    for i in range(20):
        start(warm, f"sess_{i}")
        warm.change(f"sess_{i}", 2, WARM, state="ended", logs="x" * 1000)
    statements, rows = [], store.rows
    monkeypatch.setattr(store, "rows", lambda statement, args=(): statements.append(statement) or rows(statement, args))
    assert len(warm.page("ann", session_ids=None)) == 20 and len(statements) == 1 and "logs" not in statements[0]


def test_lists_and_counts_use_indexes(store, warm):
    with store.transaction() as run:
        run.many("INSERT INTO wfs_warm(warm_id, owner, app, version, state, epoch, host_id, timeout_s, session_id, created_at, ended_at) VALUES(?,?,'infer','1','ended',1,'h1',60,?,1,1)",
                 [(f"old_{i}", f"u{i % 500}", f"s{i}") for i in range(5000)])
    if store.dialect.name == "postgres": store.rows("VACUUM ANALYZE wfs_warm")
    explain = "EXPLAIN " if store.dialect.name == "postgres" else "EXPLAIN QUERY PLAN "
    def plan(index, ask):
        asked, rows = [], store.rows
        store.rows = lambda statement, args=(): asked.append((statement, args)) or rows(statement, args)
        try: ask()
        finally: del store.rows
        text = "\n".join(str(row[-1]) for statement, args in asked for row in store.rows(explain + statement, args))
        assert index in text and "Seq Scan on wfs_warm w" not in text and "SCAN w\n" not in text + "\n", text
    plan("wfs_warm_owner", lambda: warm.page("u7", limit=1000))
    plan("wfs_warm_session", lambda: warm.page(session_ids=["s1", "s7"]))
    plan("wfs_warm_live", lambda: warm.page(states=WARM, host_id="h1"))
    plan("_live", lambda: warm.lose())


# -- limits --------------------------------------------------------------------------------------------------------------

def test_limits_count_what_is_warm_on_a_machine_or_of_an_owner(warm):
    for i in range(2): start(warm, f"sess_{i}", max_sessions=2)
    with pytest.raises(LimitReached) as refused: insert(warm, "sess_2", owner="bob", max_sessions=2)
    assert (refused.value.what, refused.value.name, refused.value.limit) == ("app", "infer", 2)
    insert(warm, "sess_3", owner="bob", app="other", max_sessions=2)
    insert(warm, "sess_4", owner="bob", host_id="h2", max_sessions=2)
    with pytest.raises(LimitReached) as refused: insert(warm, "sess_5", owner="bob", host_id="h3", per_owner=2)
    assert (refused.value.what, refused.value.name, refused.value.limit) == ("owner", "bob", 2)
    with pytest.raises(LimitReached): insert(warm, "sess_6", max_sessions=0)
    warm.change("sess_0", 2, WARM, state="ended")
    insert(warm, "sess_7", owner="bob", max_sessions=2)
    assert set(states(warm)) == {"sess_0", "sess_1", "sess_3", "sess_4", "sess_7"}


def test_a_dead_host_takes_no_room(warm):
    warm.beat(*HOST)
    for i in range(2): start(warm, f"sess_{i}")
    pass_time(warm, LONG)
    insert(warm, "sess_2", max_sessions=1, per_owner=1)
    with pytest.raises(LimitReached): insert(warm, "sess_3", max_sessions=1)


def try_insert(warm, id, **more):
    try: insert(warm, id, **more)
    except LimitReached: return False
    return True

def try_insert_in_process(where, id):
    with closing(opened(where, 30)) as store: return try_insert(store.warm, id, max_sessions=3, per_owner=100)


@pytest.mark.parametrize("limit", ["max_sessions", "per_owner"])
def test_eight_threads_do_not_get_past_a_limit(warm, limit):
    for turn in range(5):
        done = []
        in_threads(*(lambda i=i: done.append(try_insert(warm, f"sess_{turn}_{i}", **{limit: 3})) for i in range(8)))
        assert done.count(True) == 3 == len(warm.page(states=WARM))
        for row in warm.page(states=WARM): warm.change(row.id, 1, WARM, state="ended")


def test_eight_processes_do_not_get_past_a_limit(where):
    opened(where).close()
    assert together(*((try_insert_in_process, where, f"sess_{i}") for i in range(8))).count(True) == 3
    with closing(opened(where)) as store: assert len(store.warm.page()) == 3


# -- the epoch -----------------------------------------------------------------------------------------------------------

def take(warm, name, n):
    "Try to take each of some sessions; gives which."
    return [i for i in range(n) if warm.change(f"sess_{i}", 1, ("starting",), state="active", epoch=2, address=name)]

def take_in_process(where, name, n):
    with closing(opened(where, 30)) as store: return take(store.warm, name, n)


def test_of_eight_threads_one_takes_a_session(warm):
    for i in range(20): insert(warm, f"sess_{i}")
    taken = {}
    in_threads(*(lambda name=name: taken.update({name: take(warm, name, 20)}) for name in "abcdefgh"))
    assert sorted(sum(taken.values(), [])) == list(range(20))
    assert {r.id: r.address for r in warm.page()} == {f"sess_{i}": name for name, mine in taken.items() for i in mine}


def test_of_four_processes_one_takes_a_session(where):
    with closing(opened(where)) as store:
        for i in range(50): insert(store.warm, f"sess_{i}")
        taken = together(*((take_in_process, where, name, 50) for name in "abcd"))
        assert sorted(sum(taken, [])) == list(range(50))
        assert {r.address for r in store.warm.page(limit=50)} == {name for name, mine in zip("abcd", taken) if mine}


def work(where, epoch):
    "Be a worker that touches its row until it is fenced; gives how often it could."
    n = 0
    with closing(opened(where, 30)) as store:
        while n < 10_000 and store.warm.touch("sess_a", epoch, n + 1, None, 1):
            n += 1
            time.sleep(0.001)
    return n

def take_over(where):
    "Wait until the worker works, then raise the epoch a hundred times; gives how often it was done."
    with closing(opened(where, 30)) as store:
        while store.warm.get("sess_a").call_count < 20: time.sleep(0.01)
        return sum(store.warm.change("sess_a", e, ("active",), epoch=e + 1) is not None for e in range(2, 102))


def test_a_worker_that_is_fenced_writes_nothing_more(where):
    with closing(opened(where)) as store:
        start(store.warm)
        fenced, raised = together((work, where, 2), (take_over, where))
        assert raised == 100 and fenced >= 20
        row = store.warm.get("sess_a")
        assert row.call_count == fenced and row.epoch == 102
        assert not store.warm.touch("sess_a", 101, 10**6, None, 1) and store.warm.touch("sess_a", 102, 10**6, None, 1)


def test_an_old_epoch_can_neither_end_nor_change_a_session(warm):
    start(warm)
    for epoch in (0, 1, 3): assert warm.change("sess_a", epoch, WARM, state="ended", logs="x") is None and not warm.touch("sess_a", epoch, 9, 9, 9)
    assert (warm.get("sess_a").state, warm.get("sess_a").call_count, warm.logs("sess_a")) == ("active", 0, "")


def test_call_against_expiry_has_one_winner(warm):
    for i in range(10):
        start(warm, f"sess_{i}")
        done = []
        in_threads(*(lambda state=state: done.append(warm.change(f"sess_{i}", 2, WARM, state=state)) for state in ("expired", "ended", "lost", "ended")))
        (winner,) = [row for row in done if row]
        assert warm.get(f"sess_{i}") == winner


# -- hosts ---------------------------------------------------------------------------------------------------------------

def test_sessions_of_a_silent_host_read_as_lost_before_and_after_it_is_written(warm):
    warm.beat(*HOST)
    start(warm)
    start(warm, "sess_b", host_id="h2")
    warm.beat("h2", "boot-2", "other", 42, 420)
    warm.change("sess_b", 2, WARM, state="expired", reason="in time")
    start(warm, "sess_c", host_id="h2")
    pass_time(warm, LONG)
    warm.beat("h2", "boot-2", "other", 42, 420) # Too late for sess_c, which was lost by then
    start(warm, "sess_d", host_id="h2")
    expected = {"sess_a": "lost", "sess_b": "expired", "sess_c": "lost", "sess_d": "active"}
    assert states(warm) == expected and written(warm)["sess_a"] == "active"
    assert warm.get("sess_a").reason == GONE and warm.get("sess_b").reason == "in time"
    assert [r.id for r in warm.page(states=["lost"])] == ["sess_c", "sess_a"] and [r.id for r in warm.page(states=WARM)] == ["sess_d"]
    assert warm.lose() == 1 and warm.lose() == 0
    assert states(warm) == expected == written(warm) and warm.get("sess_a").reason == GONE and warm.get("sess_a").ended_at is not None


def test_a_frozen_host_that_comes_back_has_lost_its_sessions_for_good(warm):
    warm.beat(*HOST)
    start(warm)
    pass_time(warm, LONG)
    assert warm.get("sess_a").state == "lost"
    assert not warm.touch("sess_a", 2, 9, 9, 9)
    for state in ("active", "expired", "ended"): assert warm.change("sess_a", 2, WARM, state=state) is None
    assert warm.beat(*HOST) == {}
    assert warm.get("sess_a").state == "lost" == written(warm)["sess_a"]
    assert not warm.touch("sess_a", 2, 9, 9, 9) and warm.get("sess_a").call_count == 0


def test_a_beat_says_which_workers_may_live(warm):
    warm.beat(*HOST)
    start(warm)
    insert(warm, "sess_b")
    start(warm, "sess_c", host_id="h2")
    assert warm.beat(*HOST) == {"sess_a": 2, "sess_b": 1}
    warm.change("sess_a", 2, WARM, state="ended")
    assert warm.beat(*HOST) == {"sess_b": 1}


def test_a_host_that_beats_keeps_its_sessions_however_old(warm):
    warm.beat(*HOST)
    start(warm)
    pass_time(warm, 10 * LONG, hosts=False)
    assert warm.beat(*HOST) == {"sess_a": 2} and warm.lose() == 0 and warm.get("sess_a").state == "active"


@pytest.mark.parametrize("again", [("h1", "boot-2", "box", 41, 410), ("h1", "boot-1", "box", 43, 410), ("h1", "boot-1", "box", 41, 999)])
def test_a_host_that_was_started_anew_has_none_of_the_old_workers(warm, again):
    warm.beat(*HOST)
    start(warm)
    insert(warm, "sess_b") # Asked for, which is why the host was started anew
    assert warm.beat(*again) == {"sess_b": 1}
    assert states(warm) == {"sess_a": "lost", "sess_b": "starting"} == written(warm)


def test_a_host_may_begin_to_speak_after_it_was_asked_for(warm):
    insert(warm)
    pass_time(warm, STALE_US - 5_000_000)
    assert warm.get("sess_a").state == "starting" and warm.lose() == 0
    pass_time(warm, 6_000_000)
    assert warm.get("sess_a").state == "lost"
    insert(warm, "sess_b")
    assert warm.beat(*HOST) == {"sess_b": 1}


def test_a_host_that_leaves_takes_its_workers_and_leaves_what_was_asked_for(warm):
    warm.beat(*HOST)
    start(warm)
    insert(warm, "sess_b")
    start(warm, "sess_c", host_id="h2")
    assert warm.host_gone("h1", "the machine is shut down") == 1 and warm.host_gone("h1") == 0
    assert states(warm) == {"sess_a": "lost", "sess_b": "starting", "sess_c": "active"} and warm.get("sess_a").reason == "the machine is shut down"
    assert warm.beat(*HOST) == {"sess_b": 1}
    assert warm.host_gone("nobody") == 0


def test_a_start_that_takes_too_long_is_lost(warm):
    warm.beat(*HOST)
    insert(warm, start_us=5_000_000)
    assert about(warm.get("sess_a").expires_at - warm.get("sess_a").created_at, 5_000_000)
    start(warm, "sess_b", start_us=5_000_000)
    pass_time(warm, 6_000_000, hosts=False)
    assert (warm.get("sess_a").state, warm.get("sess_a").reason, warm.get("sess_b").state) == ("lost", LATE, "active")
    assert warm.change("sess_a", 1, ("starting",), state="active", epoch=2) is None
    assert warm.lose() == 1 and warm.get("sess_a").reason == LATE


def test_lose_with_a_time_of_its_own(warm):
    warm.beat(*HOST)
    start(warm)
    pass_time(warm, 5_000_000)
    assert warm.lose() == 0 and warm.lose(10_000_000) == 0 and warm.lose(2_000_000) == 1


def test_many_that_beat_lose_and_touch_at_once_do_not_wait_for_each_other(warm):
    hosts = [(f"h{i}", "boot", "box", i, i) for i in range(4)]
    for host in hosts:
        warm.beat(*host)
        for i in range(5): start(warm, f"{host[0]}_{i}", host_id=host[0])
    pass_time(warm, LONG, hosts=False)
    stop = time.monotonic() + 1.5
    def until(call):
        while time.monotonic() < stop: call()
    def leave():
        warm.host_gone("h3")
        warm.beat(*hosts[3])
    in_threads(lambda: until(lambda: warm.lose(20_000_000)), lambda: until(lambda: warm.lose()), lambda: until(lambda: warm.beat(*hosts[0])), lambda: until(leave),
               lambda: until(lambda: [warm.touch(f"h{h}_{i}", 2, 1, None, 1) for h in range(4) for i in range(5)]), lambda: until(lambda: warm.forget(10**12)))
    assert {row.state for row in warm.page(host_id="h0")} == {"active"} and {row.state for row in warm.page(host_id="h3")} == {"lost"}


# -- what is forgotten ---------------------------------------------------------------------------------------------------

def test_only_old_cold_rows_are_forgotten(warm):
    warm.beat(*HOST)
    for i, state in enumerate(COLD):
        start(warm, f"sess_{i}")
        warm.change(f"sess_{i}", 2, WARM, state=state)
    pass_time(warm, 3_600_000_000, hosts=False)
    start(warm, "sess_8")
    start(warm, "sess_9")
    warm.change("sess_9", 2, WARM, state="ended")
    assert warm.forget(7_200_000_000) == 0 and warm.forget(1_800_000_000) == 3
    assert states(warm) == {"sess_8": "active", "sess_9": "ended"}


def test_what_was_lost_without_a_word_is_forgotten_in_its_time(warm):
    warm.beat(*HOST)
    start(warm)
    pass_time(warm, 7_200_000_000)
    assert warm.forget(3_600_000_000) == 0 and written(warm) == {"sess_a": "lost"}   # it begins to be old now
    assert warm.store.rows("SELECT count(*) FROM wfs_warm_host") == [(0,)]
    pass_time(warm, 7_200_000_000)
    assert warm.forget(3_600_000_000) == 1 and warm.page() == []


# -- the store around it -------------------------------------------------------------------------------------------------

def go_back(monkeypatch):
    "Be the library as it was before it knew warm sessions."
    for module in ("schema", "sqlite"): monkeypatch.setattr(f"cjm_workflow_sessions.stores.{module}.MIGRATIONS", MIGRATIONS[:3])

def columns_of(store):
    if store.dialect.name == "postgres":
        return store.rows("SELECT table_name, column_name, data_type, column_default, is_nullable FROM information_schema.columns WHERE table_schema = current_schema() ORDER BY 1, 2"), \
               [d.split(" ON ")[-1].split(".")[-1] for (d,) in store.rows("SELECT indexdef FROM pg_indexes WHERE schemaname = current_schema() ORDER BY indexname")]
    return store.rows("SELECT name, sql FROM sqlite_master ORDER BY name")


def test_a_store_of_before_gets_the_tables(where, monkeypatch, request):
    with monkeypatch.context() as m:
        go_back(m)
        with closing(opened(where)) as store: store.create_session(FLOW, "s1", owner="ann", state={"n": 1})
    with closing(opened(where)) as store:
        assert store.rows("SELECT max(number) FROM wfs_migration") == [(MIGRATIONS[-1].number,)]
        assert store.get_state(FLOW, "s1") == {"n": 1} and start(store.warm).state == "active"
        other = "memory:" if store.dialect.name == "sqlite" else request.getfixturevalue("postgres").fresh_url()
        with closing(SQLiteSessionStore(":memory:") if other == "memory:" else opened(other)) as fresh: assert columns_of(store) == columns_of(fresh)


def open_and_insert(where, id):
    with closing(opened(where, 30)) as store: return insert(store.warm, id).state

def test_several_processes_that_open_a_store_of_before_at_once(where, monkeypatch):
    with monkeypatch.context() as m:
        go_back(m)
        opened(where).close()
    assert together(*((open_and_insert, where, f"sess_{i}") for i in range(4))) == ["starting"] * 4


def test_a_store_of_cjm_workflow_state_is_refused_clearly(tmp_path):
    with closing(as_store(SQLiteWorkflowStateStore(tmp_path / "state.db"))) as old:
        with pytest.raises(InvalidInput, match="CjmStore keeps no warm sessions: pass open_store"): warm_store(old)
    with sqlite3.connect(tmp_path / "state.db") as db: assert not db.execute("SELECT 1 FROM sqlite_master WHERE name GLOB 'wfs_warm*'").fetchall()
    for other in (None, "sessions.db", {}):
        with pytest.raises(InvalidInput, match="keeps no warm sessions"): warm_store(other)


def test_rows_outlive_the_process_that_wrote_them(where):
    with closing(opened(where)) as store: row = start(store.warm)
    with closing(opened(where)) as store: assert store.warm.get("sess_a") == row


def test_a_backup_has_the_rows_and_they_are_lost_there(tmp_path):
    with closing(SQLiteSessionStore(tmp_path / "sessions.db")) as store:
        store.warm.beat(*HOST)
        start(store.warm)
        backup_store(store, tmp_path / "copy.db")
    with closing(SQLiteSessionStore(tmp_path / "copy.db")) as copy:
        assert copy.warm.get("sess_a").state == "active"
        pass_time(copy.warm, LONG)
        assert copy.warm.get("sess_a").state == "lost"


def test_a_process_does_not_move_with_the_sessions(store, tmp_path):
    store.create_session(FLOW, "s1", owner="ann", state={"n": 1})
    start(store.warm, flow_id=FLOW, session_id="s1")
    with closing(SQLiteSessionStore(tmp_path / "target.db")) as target:
        report = transfer_sessions(store, target)
        assert report and target.get_state(FLOW, "s1") == {"n": 1} and target.warm.page() == []
        transfer_sessions(store, target)
    assert store.warm.get("sess_a").state == "active"


def test_the_doctor_finds_nothing_wrong(store):
    start(store.warm)
    tables = next(f for f in examine_store(store) if f.check == "tables")
    assert tables.status == "ok" and MIGRATIONS[-1].name in tables.text


def test_from_many_threads(warm):
    start(warm)
    errors = []
    def read():
        try: assert all(warm.get("sess_a", owner="ann").state == "active" for _ in range(50))
        except BaseException as e: errors.append(e)
    threads = [threading.Thread(target=read) for _ in range(6)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert not errors
