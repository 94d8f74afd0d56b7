"""cjm-workflow-state and our adapter on one file at once, and the import of its files."""

import json
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from cjm_workflow_state.state_store import SQLiteWorkflowStateStore

from cjm_workflow_sessions.errors import CorruptState, InvalidInput, SessionExists, SessionNotFound, StoreCorrupt, StoreError, StoreReadOnly, StoreUnavailable
from cjm_workflow_sessions.stores.base import Order, Shown, as_store
from cjm_workflow_sessions.stores.cjm import CjmStore
from cjm_workflow_sessions.stores.cjm_import import ImportReport, import_cjm
from cjm_workflow_sessions.stores.sqlite import SQLiteSessionStore
from cjm_workflow_sessions.utils import now_us

FLOW = "ingest"


@pytest.fixture
def old(tmp_path): return SQLiteWorkflowStateStore(tmp_path / "state.db")

@pytest.fixture
def ours(old):
    ours = CjmStore(old)
    yield ours
    ours.close()

def sql(store, statement, *args):
    "Do something to the file that neither library does."
    with sqlite3.connect(store.db_path) as db: rows = db.execute(statement, args).fetchall()
    db.close()
    return rows

def ids(rows): return [s.session_id for s in rows]

def run_python(code, *args):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)], stderr=subprocess.PIPE, text=True)


# -- both libraries on one file ------------------------------------------------------------------------------------------

def test_as_store_takes_the_old_store_and_its_subclasses(old, tmp_path):
    class Own(SQLiteWorkflowStateStore): pass
    for store in (old, Own(tmp_path / "own.db")):
        adapter = as_store(store)
        assert isinstance(adapter, CjmStore) and adapter.store is store and adapter.where == str(store.db_path)
        adapter.close()

def test_each_sees_what_the_other_wrote(old, ours):
    first = ours.create_session(FLOW, label="ours", owner="ann", state={"a": 1}, current_step="pick")
    second = old.create_session(FLOW, label="theirs")
    old.update_state(FLOW, first, {"b": 2})
    ours.update_state(FLOW, second, {"c": 3})
    old.set_current_step(FLOW, second, "check")
    ours.set_session_label(FLOW, second, "renamed")
    old.update_step_state(FLOW, first, "pick", {"n": 1})
    ours.update_step_state(FLOW, first, "pick", {"m": 2})
    for store in (old, ours):
        assert store.get_state(FLOW, first) == {"a": 1, "b": 2, "_step_pick": {"n": 1, "m": 2}}
        assert store.get_step_state(FLOW, first, "pick") == {"n": 1, "m": 2}
        assert (store.get_state(FLOW, second), store.get_current_step(FLOW, second)) == ({"c": 3}, "check")
        assert {s.session_id: s.label for s in store.list_sessions(FLOW)} == {first: "ours", second: "renamed"}
        s = store.get_session_summary(FLOW, first)
        assert s.state_size_bytes == len(json.dumps(store.get_state(FLOW, first)))
    assert vars(ours.get_session_summary(FLOW, first)) == {**vars(old.get_session_summary(FLOW, first)), "owner": "ann", "deleted_at": None}
    old.clear_step_state(FLOW, first, "pick")
    assert ours.get_step_state(FLOW, first, "pick") == {}
    old.delete_session(FLOW, first)
    assert ids(ours.list_sessions(FLOW)) == [second] and ours.get_states(FLOW, [first]) == {}
    ours.clear_state(FLOW, second)
    assert old.list_sessions(FLOW) == []

@pytest.mark.parametrize("mode", ["delete", "wal", "truncate"])
def test_the_journal_mode_stays(tmp_path, mode):
    old = SQLiteWorkflowStateStore(tmp_path / "state.db")
    sql(old, f"PRAGMA journal_mode = {mode}")
    header = old.db_path.read_bytes()[18:20]   # file format versions: 1 1 for a rollback journal, 2 2 for WAL
    ours = CjmStore(old)
    sid = ours.create_session(FLOW)
    ours.update_state(FLOW, sid, {"a": 1})
    ours.check()
    ours.close()
    assert old.db_path.read_bytes()[18:20] == header and old.get_state(FLOW, sid) == {"a": 1}

def test_opening_again_writes_nothing(old, ours):
    before = old.db_path.read_bytes()
    CjmStore(old).close()
    assert old.db_path.read_bytes() == before

def test_check_leaves_our_tables_as_they_were(old, ours):
    ours.create_session(FLOW, owner="ann")
    before = sql(old, "SELECT * FROM wfs_cjm_owner")
    ours.check()
    assert sql(old, "SELECT * FROM wfs_cjm_owner") == before

def test_both_may_write_at_the_same_time(old, ours):
    for sid in ("theirs", "ours"): old.create_session(FLOW, sid)
    errors = []
    def run(write):
        try:
            for i in range(60): write(i)
        except Exception as e: errors.append(e)
    writes = (lambda i: old.update_state(FLOW, "theirs", {f"k{i}": i}), lambda i: ours.update_state(FLOW, "ours", {f"a{i}": i}), lambda i: ours.update_state(FLOW, "ours", {f"b{i}": i}),
              lambda i: ours.list_sessions(FLOW))
    threads = [threading.Thread(target=run, args=(w,)) for w in writes]
    for t in threads: t.start()
    for t in threads: t.join()
    assert not errors
    assert (len(ours.get_state(FLOW, "theirs")), len(ours.get_state(FLOW, "ours"))) == (60, 120)

MERGES = """
import sys
from cjm_workflow_state.state_store import SQLiteWorkflowStateStore
from cjm_workflow_sessions.stores.cjm import CjmStore
store = CjmStore(SQLiteWorkflowStateStore(sys.argv[1]))
for i in range(150): store.update_state("ingest", "s1", {f"{sys.argv[2]}_{i}": i})
"""

def test_two_processes_lose_nothing(old, ours):
    ours.create_session(FLOW, "s1")
    processes = [run_python(MERGES, old.db_path, name) for name in ("a", "b")]
    for p in processes: assert p.wait(120) == 0, p.stderr.read()
    assert len(old.get_state(FLOW, "s1")) == 300
    for p in processes: p.stderr.close()

def test_a_write_while_editing_joins_the_edit(old, ours):
    ours.create_session(FLOW, "s1", state={"a": 1, "b": 1})
    with ours.edit_state(FLOW, "s1") as state:
        state["a"] = 2
        ours.update_state(FLOW, "s1", {"b": 2})
        assert old.get_state(FLOW, "s1") == {"a": 1, "b": 1}   # not yet for others
    assert old.get_state(FLOW, "s1") == {"a": 2, "b": 2}

def test_a_page_is_one_statement_and_so_are_its_states(old, ours):
    for i in range(50): ours.create_session(FLOW, f"s{i}", state={"i": i}, owner="ann" if i % 2 else "")
    seen = []
    ours._db.get().set_trace_callback(seen.append)
    for order in (Order(), Order("title"), Order("state_size_bytes"), Order("field:files")):
        ours.page_sessions(FLOW, order=order, search="e", owner="ann", start=5, limit=20)
        assert len(seen) == 1
        seen.clear()
    ours.get_states(FLOW, [f"s{i}" for i in range(50)])
    assert len(seen) == 1

def test_the_first_page_reads_only_its_rows(old, ours):
    for i in range(300): ours.create_session(FLOW, f"s{i}", state={"x": "x" * 3000})
    steps = []
    db = ours._db.get()
    db.set_progress_handler(lambda: steps.append(1), 100)
    ours.page_sessions(FLOW, limit=10)
    first_page = len(steps)
    steps.clear()
    ours.page_sessions(FLOW, limit=300)
    assert first_page * 5 < len(steps)


# -- what the old library mixes up -------------------------------------------------------------------------------------------

def test_flows_that_the_old_library_mixes_up(old, ours):
    for flow in ("a_b", "axb", "A_B", "a:b", "flow", "Flow", "a%", "abc"): old.create_session(flow, "s1", label=flow)
    assert {s.label for s in old.list_sessions("a_b")} > {"a_b", "axb", "A_B"} and {s.label for s in old.list_sessions("flow")} == {"flow", "Flow"}
    assert len(old.list_sessions("a%")) > 3   # that these hold is why the adapter asks by range
    for flow in ("a_b", "axb", "A_B", "a:b", "flow", "Flow", "a%", "abc"):
        assert [s.label for s in ours.list_sessions(flow)] == [s.label for s in ours.page_sessions(flow).rows] == [flow]
        assert ours.count_sessions(flow) == 1
    assert ours.list_sessions("a") == [] and ours.count_sessions("a") == 0
    assert ours.list_flows() == {f: 1 for f in sorted(["a_b", "axb", "A_B", "a:b", "flow", "Flow", "a%", "abc"])}

def test_one_row_is_not_two_sessions(old, ours):
    old.create_session("a:b", "c", label="theirs")
    assert old.get_session_summary("a", "b:c").label == "theirs"   # the same row under another name
    for write in (lambda: ours.create_session("a", "b:c"), lambda: ours.update_state("a", "b:c", {"x": 1}), lambda: ours.set_current_step("a", "b:c", "pick"),
                  lambda: ours.update_step_state("a", "b:c", "pick", {"x": 1})):
        with pytest.raises(InvalidInput) as e: write()
        assert e.value.field == "session_id"
    for write in (lambda: ours.change_session("a", "b:c", updates={"x": 1}), lambda: ours.update_state("a", "b:c", {"x": 1}, owner="")):
        with pytest.raises(SessionNotFound): write()
    ours.delete_session("a", "b:c")
    ours.clear_state("a", "b:c")
    assert (ours.get_state("a", "b:c"), ours.get_session_summary("a", "b:c"), ours.restore_session("a", "b:c")) == ({}, None, False)
    assert ours.get_session_summary("a:b", "c").label == "theirs" and ours.get_state("a:b", "c") == {}

def test_a_key_without_a_colon_is_no_session_and_does_no_harm(old, ours):
    for key in ("stray", "stray;", "", "stray9"): sql(old, "INSERT INTO workflow_state(flow_session_key) VALUES(?)", key)
    assert ours.list_flows() == {} and ours.list_sessions("") == [] and ours.list_sessions("stray") == []


# -- owners and trash beside the old library ---------------------------------------------------------------------------------

def test_a_row_made_again_by_the_old_library_has_no_owner(old, ours):
    ours.create_session(FLOW, "s1", owner="ann", state={"secret": 1})
    old.delete_session(FLOW, "s1")
    old.update_state(FLOW, "s1", {"new": 1})
    assert ours.get_session_summary(FLOW, "s1").owner == "" and not ours.session_exists(FLOW, "s1", owner="ann")
    assert ids(ours.page_sessions(FLOW, owner="").rows) == ["s1"]

def test_the_old_library_may_take_an_id_that_lies_in_the_trash(old, ours):
    ours.create_session(FLOW, "s1", owner="ann", state={"first": 1})
    ours.delete_session(FLOW, "s1")
    assert not old.session_exists(FLOW, "s1")
    old.update_state(FLOW, "s1", {"second": 1})
    assert (ours.get_state(FLOW, "s1"), ours.get_session_summary(FLOW, "s1").owner) == ({"second": 1}, "")
    assert ours.session_exists(FLOW, "s1", owner="ann") is False
    ours.update_state(FLOW, "s1", {"third": 1})   # it is live, so it can be written
    for owner in (None, "ann"):
        with pytest.raises(SessionExists): ours.restore_session(FLOW, "s1", owner=owner)
    assert ours.get_state(FLOW, "s1") == {"second": 1, "third": 1}
    old.clear_state(FLOW, "s1")
    assert ours.restore_session(FLOW, "s1", owner="ann") and old.get_state(FLOW, "s1") == {"first": 1}

def test_a_row_number_taken_meanwhile_is_no_hindrance(old, ours):
    ours.create_session(FLOW, "s1")
    ours.delete_session(FLOW, "s1")
    old.create_session(FLOW, "s2")   # SQLite gives it the row number of s1
    assert ours.restore_session(FLOW, "s1") and sorted(ids(ours.list_sessions(FLOW))) == ["s1", "s2"]

def test_purging_drops_what_is_left_of_sessions_that_the_old_library_deleted(old, ours):
    for i in range(3): ours.create_session(FLOW, f"s{i}", owner="ann")
    ours.save_shown(FLOW, "v1", [(s, Shown("x")) for s in ours.outdated_shown(FLOW, "v1")])
    old.delete_session(FLOW, "s0")
    ours.delete_session(FLOW, "s1")
    assert ours.purge_trash("other", now_us() + 1) == 0
    assert sql(old, "SELECT flow_session_key FROM wfs_cjm_owner") == [("ingest:s2",)]
    assert sql(old, "SELECT flow_session_key FROM wfs_cjm_shown ORDER BY 1") == [("ingest:s1",), ("ingest:s2",)]
    assert ours.restore_session(FLOW, "s1", owner="ann") is True


# -- times of whole seconds ----------------------------------------------------------------------------------------------

def test_our_writes_rise_above_those_of_the_old_library(old, ours):
    old.create_session(FLOW, "s1")
    sql(old, "UPDATE workflow_state SET updated_at = '2999-01-01 00:00:00'")
    for later in ("2999-01-01 00:00:00.000001", "2999-01-01 00:00:00.000002"):
        ours.update_state(FLOW, "s1", {"a": 1})
        assert ours.get_session_summary(FLOW, "s1").updated_at == later

def test_ties_within_a_second_go_by_creation(old, ours):
    for sid in "cab": old.create_session(FLOW, sid)
    sql(old, "UPDATE workflow_state SET updated_at = '2026-04-08 19:11:50', created_at = '2026-04-08 19:11:50'")
    for by in ("updated_at", "created_at", "title"):
        assert ids(ours.page_sessions(FLOW, order=Order(by, False)).rows) == list("cab") and ids(ours.page_sessions(FLOW, order=Order(by)).rows) == list("bac")

def test_a_write_of_the_old_library_within_the_second_is_noticed(old, ours):
    old.create_session(FLOW, "s1", label="one")
    made = lambda: ours.save_shown(FLOW, "v1", [(s, Shown(s.label)) for s in ours.outdated_shown(FLOW, "v1")])
    made()
    assert ours.count_sessions(FLOW, search="one") == 1
    old.set_session_label(FLOW, "s1", "two")   # in all likelihood within the same second
    made()
    assert ours.count_sessions(FLOW, search="two") == 1

def test_what_was_never_made_comes_first(old, ours):
    for i in range(7): old.create_session(FLOW, f"s{i}")
    seen = set()
    for _ in range(3):
        rows = ours.outdated_shown(FLOW, "v1", limit=3)
        ours.save_shown(FLOW, "v1", [(s, Shown("x")) for s in rows])
        seen.update(ids(rows))
    assert len(seen) == 7   # though within their second all of them stay outdated

def test_what_was_made_well_after_the_second_stays(old, ours):
    for sid in ("past", "now", "future"): old.create_session(FLOW, sid)
    sql(old, "UPDATE workflow_state SET updated_at = datetime('now', '-10 seconds') WHERE flow_session_key = 'ingest:past'")
    sql(old, "UPDATE workflow_state SET updated_at = datetime('now', '+1 hour') WHERE flow_session_key = 'ingest:future'")
    ours.save_shown(FLOW, "v1", [(s, Shown("x")) for s in ours.outdated_shown(FLOW, "v1")])
    assert ids(ours.outdated_shown(FLOW, "v1")) == ["now"]
    deadline = time.monotonic() + 5
    while ours.outdated_shown(FLOW, "v1"):
        ours.save_shown(FLOW, "v1", [(s, Shown("x")) for s in ours.outdated_shown(FLOW, "v1")])
        assert time.monotonic() < deadline
        time.sleep(0.05)


# -- rows of other programs ------------------------------------------------------------------------------------------------

ODD_ROWS = {"no state": ("state_json", None), "empty state": ("state_json", ""), "no times": ("updated_at", None), "odd time": ("updated_at", "yesterday"), "number as time": ("created_at", 5),
            "no creation": ("created_at", None), "blob as label": ("label", b"\x00\x01"), "NaN": ("state_json", '{"loss": NaN}'), "label with NUL": ("label", "a\x00b")}

@pytest.mark.parametrize("name", ODD_ROWS)
def test_an_odd_row_is_listed_and_can_be_written(old, ours, name):
    column, value = ODD_ROWS[name]
    for sid in ("s1", "s2"): ours.create_session(FLOW, sid)
    sql(old, f"UPDATE workflow_state SET {column} = ? WHERE flow_session_key = 'ingest:s1'", value)
    for by in ("updated_at", "created_at", "title", "state_size_bytes", "current_step"): assert sorted(ids(ours.page_sessions(FLOW, order=Order(by)).rows)) == ["s1", "s2"]
    assert ours.count_sessions(FLOW, search="e") >= 1
    ours.save_shown(FLOW, "v1", [(s, Shown("x")) for s in ours.outdated_shown(FLOW, "v1")])
    assert ours.outdated_shown(FLOW, "v1") == []
    before = ours.get_session_summary(FLOW, "s1").updated_at
    ours.update_state(FLOW, "s1", {"a": 1})
    with ours.edit_state(FLOW, "s1") as state: state["b"] = 2
    assert (ours.get_state(FLOW, "s1")["a"], old.get_state(FLOW, "s1")["b"]) == (1, 2)
    assert ours.get_session_summary(FLOW, "s1").updated_at > before or before == "yesterday"
    ours.delete_session(FLOW, "s1")
    assert ours.restore_session(FLOW, "s1") and ours.session_exists(FLOW, "s1")

@pytest.mark.parametrize("text", ["{broken", "[1, 2]", "7", '"text"', "null", "[" * 100_000])
def test_a_state_that_is_no_object_is_damaged(old, ours, text):
    for sid in ("s1", "s2"): ours.create_session(FLOW, sid, state={"a": sid})
    sql(old, "UPDATE workflow_state SET state_json = ? WHERE flow_session_key = 'ingest:s1'", text)
    with pytest.raises(CorruptState): ours.get_state(FLOW, "s1")
    with pytest.raises(CorruptState): ours.update_state(FLOW, "s1", {"a": 1})
    assert sql(old, "SELECT state_json FROM workflow_state WHERE flow_session_key = 'ingest:s1'") == [(text,)]
    assert ours.get_states(FLOW, ["s1", "s2"])["s2"] == {"a": "s2"} and len(ours.list_sessions(FLOW)) == 2


# -- errors --------------------------------------------------------------------------------------------------------------

def test_a_file_without_the_table_is_refused(old):
    sql(old, "DROP TABLE workflow_state")
    with pytest.raises(StoreError, match="no table workflow_state"): CjmStore(old)

def test_a_locked_file_says_so(old, ours):
    ours.close()
    ours._db.busy_timeout_s = 0.1
    other = sqlite3.connect(old.db_path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    for call in (lambda: ours.create_session(FLOW), lambda: ours.list_sessions(FLOW), ours.check):
        with pytest.raises(StoreUnavailable, match="lock"): call()
    other.execute("ROLLBACK")
    other.close()
    ours.create_session(FLOW)

def test_a_file_that_cannot_be_written_can_be_read(old, ours):
    ours.create_session(FLOW, "s1", state={"a": 1})
    ours._db.pragmas = (*ours._db.pragmas, "query_only = ON")   # a connection that meets it is opened anew, in case it was mended
    ours.close()
    for call in (lambda: ours.create_session(FLOW), lambda: ours.update_state(FLOW, "s1", {"a": 2}), lambda: ours.delete_session(FLOW, "s1"), ours.check):
        with pytest.raises(StoreReadOnly): call()
    assert ours.get_state(FLOW, "s1") == {"a": 1} and len(ours.list_sessions(FLOW)) == 1

def test_a_file_that_is_overwritten_says_so(old, ours):
    ours.create_session(FLOW)
    ours.close()
    old.db_path.write_bytes(b"just text, long enough to be no database " * 200)
    with pytest.raises(StoreCorrupt): ours.list_sessions(FLOW)


# -- import --------------------------------------------------------------------------------------------------------------

@pytest.fixture
def new(tmp_path):
    new = SQLiteSessionStore(tmp_path / "new.db")
    yield new
    new.close()

class FakeStore:
    "Takes sessions as a store does, and can fail in the middle."
    def __init__(self, fail_at=None):
        self.sessions, self.fail_at = {}, fail_at

    def insert_sessions(self, rows, *, skip_existing=False):
        inserted = 0
        for summary, state in rows:
            key = summary.flow_id, summary.session_id
            if key in self.sessions:
                if not skip_existing: raise SessionExists(summary.session_id)
                continue
            if len(self.sessions) == self.fail_at: raise StoreUnavailable("new.db", "the disk is full")
            self.sessions[key] = (summary, state)
            inserted += 1
        return inserted

def old_files(old):
    "Bytes and times of the file and of the journal files that hold data."
    found = {}
    for suffix in ("", "-wal", "-journal"):
        path = Path(f"{old.db_path}{suffix}")
        if path.exists() and path.stat().st_size: found[suffix] = (path.read_bytes(), path.stat().st_mtime_ns)
    return found

def fill(old, n, seed=1):
    rng = random.Random(seed)
    labels = [None, "", " ", "Holiday", "'; DROP TABLE workflow_state; --", "<img src=x onerror=alert(1)>", "\u202eabc", "😀", "x" * 1000, "line\nbreak"]
    states = [{}, {"a": 1}, {"_step_pick": {"n": [1, None, 1.5]}, "é\x00\ud800": "日本"}, {"big": "x" * 5000}]
    with sqlite3.connect(old.db_path) as db:
        for i in range(n):
            created, updated = sorted(f"2026-04-08 19:{rng.randrange(60):02}:{rng.randrange(60):02}" for _ in range(2))
            db.execute("INSERT INTO workflow_state(flow_session_key, current_step, state_json, created_at, updated_at, label) VALUES(?,?,?,?,?,?)",
                       (f"{rng.choice(['ingest', 'a:b', 'a_b'])}:s{i:05}", rng.choice([None, "pick"]), json.dumps(rng.choice(states)), created, updated, rng.choice(labels)))
    db.close()

def test_import_keeps_everything(old, new):
    fill(old, 2500)
    assert import_cjm(old.db_path, new) == ImportReport(2500, 0, ())
    adapter = CjmStore(old)
    assert new.list_flows() == adapter.list_flows()
    for flow in adapter.list_flows():
        for order in (Order(), Order(descending=False), Order("created_at"), Order("title", False), Order("state_size_bytes")):
            mine, theirs = (s.page_sessions(flow, order=order, limit=3000).rows for s in (new, adapter))
            assert ids(mine) == ids(theirs)   # also where times are equal
        for a, b in zip(mine, theirs):
            assert (a.label, a.current_step, a.created_at, a.updated_at, a.state_size_bytes, a.owner) == (b.label, b.current_step, b.created_at + ".000000", b.updated_at + ".000000", b.state_size_bytes, "")
        assert new.get_states(flow, ids(mine)) == adapter.get_states(flow, ids(mine))
    adapter.close()

def test_import_again_takes_only_what_is_new(old, new):
    fill(old, 1200)
    import_cjm(old.db_path, new, owner="ann")
    new.update_state("ingest", (kept := new.list_sessions("ingest")[0].session_id), {"written": "later"})
    new.delete_session("ingest", (trashed := new.list_sessions("ingest")[1].session_id))
    old.create_session(FLOW, "fresh", label="since then")
    assert import_cjm(old.db_path, new, owner="bob") == ImportReport(1, 1200, ())
    assert new.get_state("ingest", kept)["written"] == "later" and not new.session_exists("ingest", trashed)
    assert (new.get_session_summary(FLOW, "fresh").owner, new.get_session_summary("ingest", kept).owner) == ("bob", "ann")

def test_an_import_that_broke_off_is_finished_by_the_next(old):
    fill(old, 1500)
    new = FakeStore(fail_at=700)
    with pytest.raises(StoreUnavailable, match="new.db"): import_cjm(old.db_path, new)
    assert len(new.sessions) == 700
    new.fail_at = None
    assert import_cjm(old.db_path, new) == ImportReport(800, 700, ())

DAMAGED = {
    "{broken": dict(state_json="{broken"), "list": dict(state_json="[1]"), "NaN": dict(state_json='{"loss": NaN}'), "bytes": dict(state_json="CAST(x'7B22612222FF227D' AS TEXT)"),
    "deep": dict(state_json='{"a":' + "[" * 100_000), "label": dict(label="a\x00b"), "label bytes": dict(label="CAST(x'FF' AS TEXT)"), "blob": dict(label="x'00'"), "time": dict(created_at="yesterday"),
    "no time": dict(updated_at=None), "stray": dict(flow_session_key="stray"), "key": dict(flow_session_key="ingest:a\x00b"), "step": dict(current_step="\x00"),
}

@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_row_is_named_and_the_others_come(old, new, name):
    for sid in ("s0", "s1", "s2"): old.create_session(FLOW, sid, label=sid)
    [(column, value)] = DAMAGED[name].items()
    raw = isinstance(value, str) and (value.startswith("CAST") or value.startswith("x'"))
    sql(old, f"UPDATE workflow_state SET {column} = {value if raw else '?'} WHERE flow_session_key = 'ingest:s1'", *([] if raw else [value]))
    before = old_files(old)
    for imported in (2, 0):
        report = import_cjm(old.db_path, new)
        [(key, reason)] = report.damaged
        assert (report.imported, report.skipped) == (imported, 2 - imported)
        assert key == (value if column == "flow_session_key" else "ingest:s1") and (column in reason or column == "flow_session_key") and len(reason) < 300
    assert sorted(ids(new.list_sessions(FLOW))) == ["s0", "s2"] and old_files(old) == before

def test_import_leaves_the_old_file_alone(old, new):
    fill(old, 50)
    os.utime(old.db_path, (1, 1))
    before = old_files(old)
    import_cjm(old.db_path, new)
    assert old_files(old) == before and list(before) == [""] and old.db_path.stat().st_mtime == 1

DIE_WRITING = """
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute(f"PRAGMA journal_mode = {sys.argv[2]}")
if sys.argv[2] == "wal":
    db.execute("INSERT INTO workflow_state(flow_session_key) VALUES('ingest:in the wal')")
else:
    db.execute("PRAGMA cache_size = 1")
    db.execute("BEGIN")
    db.execute("UPDATE workflow_state SET label = state_json")
os._exit(9)
"""

def die_writing(old, mode):
    process = run_python(DIE_WRITING, old.db_path, mode)
    assert process.wait(60) == 9, process.stderr.read()
    process.stderr.close()

def test_import_reads_what_is_still_in_the_wal(old, new):
    fill(old, 50)
    die_writing(old, "wal")
    before = old_files(old)
    assert set(before) == {"", "-wal"}
    assert import_cjm(old.db_path, new).imported == 51 and new.session_exists(FLOW, "in the wal")
    assert old_files(old) == before

def test_import_does_not_undo_an_unfinished_write_itself(old, new):
    fill(old, 500)
    die_writing(old, "delete")
    before = old_files(old)
    assert set(before) == {"", "-journal"}
    with pytest.raises(StoreUnavailable, match="open it once with cjm-workflow-state"): import_cjm(old.db_path, new)
    assert old_files(old) == before and new.list_flows() == {}
    SQLiteWorkflowStateStore(old.db_path)
    assert import_cjm(old.db_path, new).imported == 500

def test_import_while_somebody_is_writing(old, new):
    fill(old, 50)
    db = sqlite3.connect(old.db_path, isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    db.execute("INSERT INTO workflow_state(flow_session_key) VALUES('ingest:not committed')")
    assert import_cjm(old.db_path, new).imported == 50
    db.execute("COMMIT")
    db.close()
    assert import_cjm(old.db_path, new) == ImportReport(1, 50, ())

def test_import_does_not_hold_up_the_old_library(old):
    fill(old, 2500)
    class Slow(FakeStore):
        def insert_sessions(self, rows, **options):
            def watched():
                for i, row in enumerate(rows):
                    if i % 500 == 0: sqlite_write(old)
                    yield row
            return super().insert_sessions(watched(), **options)
    def sqlite_write(old):
        db = sqlite3.connect(old.db_path, timeout=0)
        with db: db.execute("UPDATE workflow_state SET label = 'x' WHERE flow_session_key = 'ingest:s00001'")
        db.close()
    assert import_cjm(old.db_path, Slow()).imported == 2500

@pytest.mark.parametrize("name", ["old #1?.db", "é 100%.db", "a&mode=rwc.db", "file:x.db", "a\\b'c\".db"])
def test_any_file_name_will_do(tmp_path, new, name):
    old = SQLiteWorkflowStateStore(tmp_path / name)
    old.create_session(FLOW, "s1")
    before, files = old_files(old), set(os.listdir(tmp_path))
    assert import_cjm(str(old.db_path), new).imported == 1
    assert old_files(old) == before and set(os.listdir(tmp_path)) == files

def test_flow_ids_say_where_a_key_is_cut(old, new):
    for key in ("a:b:c", "a:b:c:d", "x:y:z", "ab:c"): sql(old, "INSERT INTO workflow_state(flow_session_key) VALUES(?)", key)
    import_cjm(old.db_path, new, flow_ids=["a", "a:b", "x"])
    assert {f: ids(new.list_sessions(f, "created_at", False)) for f in new.list_flows()} == {"a:b": ["c", "c:d"], "ab": ["c"], "x": ["y:z"]}

def test_owners_trash_and_microseconds_of_the_adapter_come_along(old, ours, new):
    for sid, owner in (("s1", "ann"), ("s2", ""), ("s3", "bob"), ("s4", "")): ours.create_session(FLOW, sid, owner=owner, state={"id": sid})
    ours.delete_session(FLOW, "s3")
    ours.delete_session(FLOW, "s4")
    assert import_cjm(old.db_path, new, owner="host") == ImportReport(4, 0, ())
    assert {s.session_id: s.owner for s in new.list_sessions(FLOW)} == {"s1": "ann", "s2": "host"}
    for sid in ("s1", "s2"):
        a, b = new.get_session_summary(FLOW, sid), ours.get_session_summary(FLOW, sid)
        assert (a.created_at, a.updated_at) == (b.created_at, b.updated_at)
    trash = {s.session_id: s for s in new.page_sessions(FLOW, in_trash=True).rows}
    assert {sid: s.owner for sid, s in trash.items()} == {"s3": "bob", "s4": "host"}
    assert [trash[s.session_id].deleted_at for s in ours.page_sessions(FLOW, in_trash=True).rows] == [s.deleted_at for s in ours.page_sessions(FLOW, in_trash=True).rows]
    assert new.restore_session(FLOW, "s3", owner="bob") and new.get_state(FLOW, "s3") == {"id": "s3"}

def test_a_session_made_again_by_the_old_library_is_imported_without_its_former_owner(old, ours, new):
    ours.create_session(FLOW, "s1", owner="ann")
    old.delete_session(FLOW, "s1")
    old.create_session(FLOW, "s1")
    import_cjm(old.db_path, new, owner="host")
    assert new.get_session_summary(FLOW, "s1").owner == "host"

def test_a_file_from_before_labels(tmp_path, new):
    with sqlite3.connect(tmp_path / "older.db") as db:
        db.execute("CREATE TABLE workflow_state(flow_session_key TEXT PRIMARY KEY, current_step TEXT, state_json TEXT DEFAULT '{}', created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP)")
        db.execute("INSERT INTO workflow_state(flow_session_key, current_step) VALUES('ingest:s1', 'pick')")
    db.close()
    assert import_cjm(tmp_path / "older.db", new).imported == 1 and new.get_current_step(FLOW, "s1") == "pick"

def test_files_that_cannot_be_imported(tmp_path, new):
    (tmp_path / "text.db").write_text("just text, long enough to be no database " * 30)
    (tmp_path / "empty.db").touch()
    sqlite3.connect(tmp_path / "host.db").execute("CREATE TABLE other(x)").connection.close()
    for name, error, message in (("missing.db", StoreUnavailable, "no such file"), ("", StoreUnavailable, "no such file"), ("text.db", StoreCorrupt, "not an SQLite database"),
                                 ("empty.db", StoreError, "no table workflow_state"), ("host.db", StoreError, "no table workflow_state")):
        with pytest.raises(error, match=message) as e: import_cjm(tmp_path / name, new)
        assert str(tmp_path / name) in str(e.value)
    assert not (tmp_path / "missing.db").exists() and (tmp_path / "empty.db").stat().st_size == 0
    with pytest.raises(InvalidInput, match="owner"): import_cjm(tmp_path / "host.db", new, owner="\ud800")

def test_an_empty_old_file_is_fine(old, new):
    assert import_cjm(old.db_path, new) == ImportReport(0, 0, ())
