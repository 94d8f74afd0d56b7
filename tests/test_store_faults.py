"""What goes wrong under a store: files, disks, locks and damaged rows. Nothing acknowledged is lost, and it works again when the fault is gone."""

import logging
import os
import re
import resource
import shutil
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import pytest
from cjm_workflow_state.state_store import SQLiteWorkflowStateStore

from cjm_workflow_sessions.errors import CorruptState, StoreCorrupt, StoreError, StoreReadOnly, StoreTooNew, StoreUnavailable
from cjm_workflow_sessions.models import ColumnSpec, SessionSummary
from cjm_workflow_sessions.services.management import SessionManagementService
from cjm_workflow_sessions.stores.base import Order
from cjm_workflow_sessions.stores.sqlite import SQLiteSessionStore
from cjm_workflow_sessions.utils import now_us, us_to_text
from store_support import FLOW, check_file, lock_held, outside, unprivileged
from tab_support import Tab, make_app

STATE = {"a": 0, "text": "x" * 3000}


@pytest.fixture
def store(tmp_path):
    "Thirty sessions and a large one, in a folder of their own."
    store = SQLiteSessionStore(tmp_path / "data" / "sessions.db", busy_timeout_s=0.1)
    for i in range(30): store.create_session(FLOW, f"s{i}", f"Session {i:02}", state=STATE, current_step="pick")
    store.create_session(FLOW, "large", "Large", state={"a": 0, "text": "x" * 30_000})
    yield store
    store.close()


def sessions(store): return {s.session_id: (s, store.get_state(FLOW, s.session_id)) for s in store.list_sessions(FLOW)}

def in_thread(job):
    "Run a job on a connection that has not been open before; gives what it returned or raised."
    found = []
    def run():
        try: found.append(job())
        except Exception as e: found.append(e)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


# -- faults that come and go -----------------------------------------------------------------------------------------------

@contextmanager
def with_pragma(store, pragma):
    "Give every connection of the store a further setting for a while."
    pragmas = store._db.pragmas
    store.close()
    store._db.pragmas = (*pragmas, pragma)
    yield
    store._db.pragmas = pragmas
    store.close()

@contextmanager
def locked(store):
    with lock_held(store.where): yield

@contextmanager
def disk_full(store):
    ((pages,),) = store.rows("PRAGMA page_count")
    with with_pragma(store, f"max_page_count = {pages}"): yield

@contextmanager
def disk_refuses(store):
    "Let the operating system refuse what would make a file longer, as a quota does."
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try: yield
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

@contextmanager
def overwritten(store, change):
    "Spoil the file while the store is open; put the same bytes back, as one restores a backup, while it is closed."
    with outside(store.where) as db: db.execute("PRAGMA wal_checkpoint(TRUNCATE)")   # all is in the one file now
    store.close()
    path = Path(store.where)
    good = path.read_bytes()
    store.list_flows()
    change(path)
    yield
    store.close()
    path.write_bytes(good)

def _garbage(path):
    with path.open("r+b") as f: f.write(b"garbage!" * 4000)

@contextmanager
def moved_away(store):
    folder = store.db_path.parent
    folder.rename(folder.with_name("elsewhere"))
    yield
    folder.with_name("elsewhere").rename(folder)

@contextmanager
def table_lost(store):
    with outside(store.where) as db: db.execute("ALTER TABLE wfs_session RENAME TO lost")
    yield
    with outside(store.where) as db: db.execute("ALTER TABLE lost RENAME TO wfs_session")

@dataclass(frozen=True)
class Fault:
    happens: Callable # (store) -> context manager: the fault is there inside
    error: type[StoreError] # What a write raises
    says: str # Part of its message
    readable: bool|None = True # Reads go on; None: on a connection that was open
    small: bool = True # Writes that need no room are refused as well

FAULTS = {
    "locked": Fault(locked, StoreUnavailable, "another program holds its lock"),
    "disk full": Fault(disk_full, StoreUnavailable, "the disk is full: nothing was stored", small=False),
    "disk refuses": Fault(disk_refuses, StoreUnavailable, "the file system reports an error"),
    "read-only": Fault(lambda store: with_pragma(store, "query_only = ON"), StoreReadOnly, "it can be read but not written"),
    "garbage": Fault(lambda store: overwritten(store, _garbage), StoreCorrupt, "restore a backup", readable=False),
    "truncated": Fault(lambda store: overwritten(store, lambda path: os.truncate(path, 8192)), StoreCorrupt, "restore a backup", readable=False),
    "emptied": Fault(lambda store: overwritten(store, lambda path: os.truncate(path, 0)), StoreError, "restore a backup", readable=False),
    "table lost": Fault(table_lost, StoreError, "restore a backup", readable=False),
    "folder moved away": Fault(moved_away, StoreUnavailable, "check that the folder exists", readable=None),
}

@pytest.fixture(params=FAULTS)
def fault(request): return FAULTS[request.param]

def big(n): return {f"k{n}-{i}": "y" * 2000 for i in range(50)}

WRITES = {
    "create_session": lambda s, n: s.create_session(FLOW, f"new-{n}", state=big(n)),
    "update_state": lambda s, n: s.update_state(FLOW, "s1", big(n)),
    "update_step_state": lambda s, n: s.update_step_state(FLOW, "s1", "pick", big(n)),
    "change_session": lambda s, n: s.change_session(FLOW, "s1", updates=big(n), remove=["text"], columns={"label": f"changed {n}"}),
    "insert_sessions": lambda s, n: s.insert_sessions((SessionSummary(FLOW, f"in-{n}-{i}", None, None, us_to_text(now_us()), us_to_text(now_us()), 2), {"b": "z" * 2000}) for i in range(50)),
}

def test_a_write_under_a_fault_is_refused_whole_and_works_afterwards(store, fault):
    before = sessions(store)
    with fault.happens(store):
        for n, write in enumerate(WRITES.values()):
            for attempt in (write, lambda s, n, write=write: in_thread(lambda: write(s, n))):   # on the connection that was open, and on a new one
                try: found = attempt(store, n)
                except StoreError as e: found = e
                assert isinstance(found, fault.error) and fault.says in str(found) and str(store.where) in str(found), repr(found)
        if fault.readable: assert sessions(store) == before == in_thread(lambda: sessions(store))
        if fault.readable is False:
            with pytest.raises(fault.error): sessions(store)
    assert sessions(store) == before == in_thread(lambda: sessions(store))
    check_file(store.where)
    for n, write in enumerate(WRITES.values()): write(store, n)
    assert store.get_state(FLOW, "new-0") == big(0) and store.count_sessions(FLOW) == 31 + 1 + 50
    check_file(store.where)


@pytest.mark.parametrize("name", ["locked", "disk refuses", "read-only"])
def test_check_says_that_nothing_can_be_written(store, name):
    store.check()
    with FAULTS[name].happens(store), pytest.raises(FAULTS[name].error, match=FAULTS[name].says): store.check()
    store.check()


@pytest.mark.parametrize("name", ["disk full", "disk refuses", "read-only"])
def test_an_edit_that_cannot_be_stored_changes_nothing(store, name):
    before = sessions(store)
    with FAULTS[name].happens(store):
        with pytest.raises(FAULTS[name].error):
            with store.edit_state(FLOW, "s1") as state:
                state |= {"a": 1} | big(1)
                store.set_session_label(FLOW, "s2", "joins the transaction")
        assert sessions(store) == before
    assert sessions(store) == before
    with store.edit_state(FLOW, "s1") as state: state["a"] = 2
    assert store.get_state(FLOW, "s1") == STATE | {"a": 2}
    check_file(store.where)


def test_what_was_acknowledged_before_the_disk_was_full_is_there(store):
    done = []
    with disk_full(store):
        with pytest.raises(StoreUnavailable, match="disk is full"):
            for i in range(1000): done.append(store.create_session(FLOW, f"fill-{i}", state={"i": i}))
        assert done and len(done) < 1000
        assert {f"fill-{i}": store.get_state(FLOW, f"fill-{i}") for i in range(len(done))} == {sid: {"i": i} for i, sid in enumerate(done)}
        store.clear_state(FLOW, "s1")   # deleting makes room
        store.create_session(FLOW, "s1", state={"room": 1})
    assert store.count_sessions(FLOW) == 31 + len(done)
    check_file(store.where)


# -- the same over HTTP ----------------------------------------------------------------------------------------------------

def timeless(response): return re.sub(r' data-since="[^"]*"', "", response.text)   # when its rows were read

def test_over_http_a_fault_gives_503_with_the_reason_and_leaves_the_rest_intact(store, fault):
    app = make_app(SessionManagementService(store, FLOW))
    tab = Tab(app)
    tab.open()
    tab.post("create_session", label="Active")
    shown = timeless(tab.open())
    with fault.happens(store):
        for action in ("create_session", "rename_session", "delete_session") if fault.small else ():
            response = tab.post(action, session_id="s1", label="Other", status=503)
            assert fault.says in response.text and response.headers["cache-control"] == "no-store" and "set-cookie" not in response.headers
        copy = lambda **headers: tab.client.post("/manage/sessions/fork_session", data={"session_id": "large"}, headers=headers)
        assert (part := copy(**{"HX-Request": "true"})).status_code == 503 and fault.says in part.text and "<main" not in part.text
        assert (page := copy()).status_code == 503 and fault.says in page.text and "<main" in page.text
        assert (data := copy(Accept="application/json")).status_code == 503 and fault.says in data.json()["error"]
        if fault.readable: assert timeless(tab.open()) == shown
        else:
            page = tab.client.get("/manage/sessions")
            assert page.status_code == 503 and fault.says in page.text and "<main" in page.text
            assert fault.says in tab.post("vc/move", moves="down", status=503).text
        assert tab.client.get("/").text.count("the host's own page") == 1
    assert timeless(tab.open()) == shown
    assert "Created “After”" in tab.post("create_session", label="After").text
    assert "After" in tab.open().text
    check_file(store.where)

@pytest.mark.parametrize("name", ["locked", "read-only", "disk full"])
def test_a_list_that_only_reads_is_shown_although_nothing_can_be_written(store, name):
    "Sorting and searching by what the host's callbacks give recomputes it first; that it cannot be kept is no reason to show nothing."
    service = SessionManagementService(store, FLOW, enricher=lambda state: {"a": str(state["a"]) * 500}, label_generator=lambda summary, state: "generated")
    tab = Tab(make_app(service, column_specs=[ColumnSpec("a", "A")]))
    with FAULTS[name].happens(store):
        tab.open()
        for column in ("label", "a"):
            tab.sort(column)
            assert len(tab.rows) == 20
        tab.search("session 07")
        assert tab.rows == {0: "s7"}


# -- opening ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("content", [b"Dear diary, this is no database.\n" * 100, b"hi", b"SQLite format 3\x00" + b"\xff" * 5000], ids=["text", "short", "header only"])
def test_what_is_no_database_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "notes.db"
    path.write_bytes(content)
    with pytest.raises(StoreCorrupt, match="(choose another path|restore a backup)") as e: SQLiteSessionStore(path)
    assert str(path) in str(e.value)
    assert path.read_bytes() == content and os.listdir(tmp_path) == ["notes.db"]


def test_a_folder_is_no_store(tmp_path):
    with pytest.raises(StoreUnavailable, match="cannot be opened"): SQLiteSessionStore(tmp_path)


def test_a_file_where_the_folder_belongs(tmp_path):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(StoreUnavailable, match="its folder cannot be made: "): SQLiteSessionStore(tmp_path / "data" / "x" / "sessions.db")


def test_a_missing_folder_is_made(tmp_path):
    store = SQLiteSessionStore(tmp_path / "a" / "b" / "sessions.db")
    store.create_session(FLOW, "s1")
    store.close()
    check_file(store.where)


def test_a_store_of_a_newer_version_is_refused_and_left_alone(store):
    store.rows("INSERT INTO wfs_migration(number, name, applied_at) VALUES(999, 'from the future', 0)")
    store.close()
    before = Path(store.where).read_bytes()
    with pytest.raises(StoreTooNew, match="upgrade cjm-workflow-sessions") as e: SQLiteSessionStore(store.where)
    assert e.value.found == 999 > e.value.known and e.value.where == store.where
    del e
    assert Path(store.where).read_bytes() == before


def test_a_file_of_cjm_workflow_state_is_refused_with_advice_and_left_alone(tmp_path):
    old = SQLiteWorkflowStateStore(tmp_path / "state.db")
    old.update_state(FLOW, "s1", {"a": 1})
    before = old.db_path.read_bytes()
    with pytest.raises(StoreError, match="belongs to cjm-workflow-state") as e: SQLiteSessionStore(old.db_path)
    assert "import_cjm" in str(e.value)
    assert old.db_path.read_bytes() == before
    assert old.get_state(FLOW, "s1") == {"a": 1}


def test_a_new_store_is_not_made_while_the_disk_refuses(tmp_path):
    with disk_refuses(None), pytest.raises(StoreUnavailable, match="the file system reports an error"): SQLiteSessionStore(tmp_path / "sessions.db", busy_timeout_s=0.1)
    store = SQLiteSessionStore(tmp_path / "sessions.db")
    store.create_session(FLOW, "s1")
    store.close()
    check_file(store.where)


# -- file modes, as a user whom they stop ------------------------------------------------------------------------------------

@pytest.fixture
def open_folder():
    "A folder that every user may enter."
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def refused(path):
    "Say how opening ended."
    try: SQLiteSessionStore(path, busy_timeout_s=0.1)
    except StoreError as e: return type(e).__name__, str(e)
    return "opened", ""

def test_a_folder_that_cannot_be_made(open_folder):
    open_folder.chmod(0o555)
    assert unprivileged(refused, open_folder / "data" / "sessions.db") == ("StoreUnavailable", f"session store {open_folder}/data/sessions.db: its folder cannot be made: Permission denied")


def test_a_file_that_cannot_be_made(open_folder):
    open_folder.chmod(0o555)
    kind, message = unprivileged(refused, open_folder / "sessions.db")
    assert kind == "StoreUnavailable" and "check that the folder exists and may be written" in message
    assert os.listdir(open_folder) == []


def test_a_file_that_may_not_be_read(open_folder):
    path = open_folder / "sessions.db"
    SQLiteSessionStore(path).close()
    path.chmod(0o000)
    kind, message = unprivileged(refused, path)
    assert kind == "StoreUnavailable" and "cannot be opened" in message


def test_a_file_that_may_not_be_written_in_a_folder_that_may_not_be_written(open_folder):
    path = open_folder / "sessions.db"
    SQLiteSessionStore(path).close()
    path.chmod(0o444)
    open_folder.chmod(0o555)
    kind, message = unprivileged(refused, path)
    assert kind == "StoreReadOnly" and "check the owner and mode of the file and of its folder" in message


def read_and_try_to_write(path):
    store = SQLiteSessionStore(path, busy_timeout_s=0.1)
    read = store.get_state(FLOW, "s1"), [s.session_id for s in store.list_sessions(FLOW)]
    for write in (lambda: store.update_state(FLOW, "s1", {"a": 2}), lambda: store.create_session(FLOW), lambda: store.delete_session(FLOW, "s1"), store.check):
        with pytest.raises(StoreReadOnly, match="check the owner and mode of the file"): write()
    return read

def test_a_file_of_another_user_can_be_read(open_folder):
    store = SQLiteSessionStore(open_folder / "sessions.db")
    store.create_session(FLOW, "s1", state={"a": 1})
    store.db_path.chmod(0o444)
    assert unprivileged(read_and_try_to_write, store.where) == ({"a": 1}, ["s1"])
    store.update_state(FLOW, "s1", {"a": 3})
    store.close()
    check_file(store.where)


def lose_and_regain_the_right_to_write(folder):
    "Gives what each write came to."
    store = SQLiteSessionStore(folder / "data" / "sessions.db", busy_timeout_s=0.1)
    store.create_session(FLOW, "s1", state={"a": 1})
    files, found = list(store.db_path.parent.iterdir()), []
    def write(n):
        try: store.update_state(FLOW, "s1", {"a": n})
        except StoreError as e: return type(e).__name__
        return n if store.get_state(FLOW, "s1") == {"a": n} else "lost"
    for f in files: f.chmod(0o444)
    found.append(in_thread(lambda: write(2)))   # this thread has its file open and may go on; a new one may not
    found.append(in_thread(lambda: store.get_state(FLOW, "s1")))
    for f in files: f.chmod(0o644)
    found += [in_thread(lambda: write(3)), write(4)]
    return found

def test_it_writes_again_when_the_modes_are_mended(open_folder):
    assert unprivileged(lose_and_regain_the_right_to_write, open_folder) == ["StoreReadOnly", {"a": 1}, 3, 4]


def start_read_only_then_regain(path):
    "The file was read-only when this program started; somebody mends that while it runs."
    store = SQLiteSessionStore(path, busy_timeout_s=0.1)
    with pytest.raises(StoreReadOnly): store.update_state(FLOW, "s1", {"a": 2})
    assert in_thread(lambda: store.get_state(FLOW, "s1")) == {"a": 1}
    for f in Path(path).parent.iterdir(): f.chmod(0o644)
    store.update_state(FLOW, "s1", {"a": 3})
    in_thread(lambda: store.update_state(FLOW, "s1", {"b": 4}))
    return store.get_state(FLOW, "s1")

def make_read_only(folder):
    store = SQLiteSessionStore(folder / "data" / "sessions.db")
    store.create_session(FLOW, "s1", state={"a": 1})
    store.close()
    store.db_path.chmod(0o444)

def test_a_program_that_started_read_only_writes_when_the_modes_are_mended(open_folder):
    unprivileged(make_read_only, open_folder)
    assert unprivileged(start_read_only_then_regain, str(open_folder / "data" / "sessions.db")) == {"a": 3, "b": 4}


# -- the folder is deleted -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("what", ["folder", "files"])
def test_no_write_is_acknowledged_that_goes_into_a_deleted_file(store, what):
    "A deleted file stays open and takes writes that nobody will ever read."
    folder = store.db_path.parent
    if what == "folder": shutil.rmtree(folder)
    else:
        for f in folder.iterdir(): f.unlink()
    for job in (lambda: store.update_state(FLOW, "s1", {"a": 1}), lambda: store.create_session(FLOW), store.check):
        for found in (in_thread(job), _outcome(job)): assert isinstance(found, StoreError), repr(found)

def _outcome(job):
    try: return job()
    except StoreError as e: return e


# -- damaged rows ------------------------------------------------------------------------------------------------------------

DAMAGE = {
    "not JSON": "'{broken'",
    "empty": "''",
    "cut off": """'"text'""",
    "bytes": "x'fffe'",
    "not UTF-8": "CAST(x'22ff22' AS TEXT)",
    "too deep": f"'{'[' * 50_000}'",
}

@pytest.fixture(params=DAMAGE)
def damaged(request, store):
    with outside(store.where) as db: assert db.execute(f"UPDATE wfs_value SET value = {DAMAGE[request.param]} WHERE key = '\"a\"' AND id = (SELECT id FROM wfs_session WHERE session_id = 's7')").rowcount == 1
    store.update_step_state(FLOW, "s8", "pick", {"n": 1})
    return store

def test_a_damaged_value_is_named_and_hurts_nothing_else(damaged):
    for read in (lambda: damaged.get_state(FLOW, "s7"), lambda: damaged.edit_state(FLOW, "s7").__enter__()):
        with pytest.raises(CorruptState) as e: read()
        assert (e.value.session_id, e.value.key) == ("s7", "a")
    states = damaged.get_states(FLOW, [f"s{i}" for i in range(30)])
    assert isinstance(states["s7"], CorruptState) and states["s7"].key == "a" and [sid for sid, state in states.items() if isinstance(state, CorruptState)] == ["s7"]
    assert len(damaged.list_sessions(FLOW)) == 31
    damaged.update_state(FLOW, "s7", {"text": "other keys can be written"})
    damaged.set_session_label(FLOW, "s7", "renamed")
    with pytest.raises(CorruptState): damaged.get_state(FLOW, "s7")
    damaged.update_state(FLOW, "s7", {"a": 5})
    assert damaged.get_state(FLOW, "s7") == {"a": 5, "text": "other keys can be written"}


def test_a_damaged_value_marks_its_row_and_the_page_is_intact(damaged, caplog):
    caplog.set_level(logging.CRITICAL)
    tab = Tab(make_app(SessionManagementService(damaged, FLOW, enricher=lambda state: {"a": str(state["a"])}), column_specs=[ColumnSpec("a", "A")]))
    page = tab.open("?sort=label&dir=asc")
    assert list(tab.rows.values()) == ["large", *(f"s{i}" for i in range(19))]
    assert page.text.count('class="wsm-problem"') == 1
    assert "damaged" in page.text
    detail = tab.client.get("/manage/sessions/session_detail?session_id=s7")
    assert detail.status_code == 200 and "damaged" in detail.text
    assert tab.client.get("/manage/sessions/export_session?session_id=s7").status_code == 422
    assert "Renamed" in tab.post("rename_session", session_id="s7", label="Renamed").text
    assert "Deleted" in tab.post("delete_session", session_id="s7").text
    assert "s7" not in tab.rows.values() and len(tab.rows) == 20


@pytest.mark.parametrize("garbage", ["'{broken'", "''", "x'ff00'", "'[1, 2]'", "'null'", "'{\"weight\": {\"not\": \"text\"}}'", "CAST(x'7b22ff' AS TEXT)"])
def test_garbage_among_the_sort_fields_hurts_no_list(store, garbage):
    with outside(store.where) as db: db.execute(f"UPDATE wfs_session SET sort_fields = {garbage} WHERE session_id = 's7'")
    for descending in (True, False):
        order = Order("field:weight", descending)
        assert {s.session_id for s in store.page_sessions(FLOW, order=order).rows} == {"large", *(f"s{i}" for i in range(30))}
        page = store.page_sessions(FLOW, order=order, start=10, limit=5, total=31)
        assert len(store.page_sessions(FLOW, order=order, start=12, limit=5, total=31, anchor=page.anchor).rows) == 5
    tab = Tab(make_app(SessionManagementService(store, FLOW), column_specs=[ColumnSpec("weight", "Weight")]))
    tab.open("?sort=weight&dir=asc")
    assert len(tab.rows) == 20


@pytest.mark.parametrize("column", ["label", "current_step"])
def test_text_that_is_not_utf8_hurts_no_list(store, column):
    with outside(store.where) as db: db.execute(f"UPDATE wfs_session SET {column} = CAST(x'61ff62' AS TEXT) WHERE session_id = 's7'")
    assert len(store.page_sessions(FLOW).rows) == 31
    tab = Tab(make_app(SessionManagementService(store, FLOW)))
    tab.open("?sort=updated&dir=asc")
    assert list(tab.rows.values()) == [f"s{i}" for i in range(20)]
