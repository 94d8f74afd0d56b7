"""One session in the store: update, create, read and delete it, beside the published store, plain sqlite3, Django's sessions and LangGraph's saver."""

import json, sqlite3, time, uuid
from itertools import count, cycle
from pathlib import Path
from typing import Any, Protocol

from cjm_workflow_sessions.stores.sqlite import SQLiteSessionStore
from cjm_workflow_state.state_store import SQLiteWorkflowStateStore
from common import FLOW, SMALL, Budget, Result, Table, Times, micro, run, small_change, state_of, take_turns

SESSIONS = 200 # In each file, of each size
OURS, CJM, SHAPE, BLOB, DJANGO, LANGGRAPH = "ours", "cjm-workflow-state", "raw sqlite3, same shape", "raw sqlite3, blob", "Django sessions", "LangGraph SqliteSaver"

class Subject(Protocol):
    "What is timed."
    def create(self, session_id: str) -> None: "Insert an empty session."
    def put(self, session_id: str, changes: dict[str, Any]) -> None: "Replace some keys of the state."
    def get(self, session_id: str) -> dict[str, Any]: "Read the whole state."
    def delete(self, session_id: str) -> None: "Remove it."

class Ours:
    def __init__(self, path: Path): self.store = SQLiteSessionStore(path)
    def create(self, session_id): self.store.create_session(FLOW, session_id)
    def put(self, session_id, changes): self.store.update_state(FLOW, session_id, changes)
    def get(self, session_id): return self.store.get_state(FLOW, session_id)
    def delete(self, session_id): self.store.clear_state(FLOW, session_id)

class Cjm(Ours):
    "The published store has the same methods."
    def __init__(self, path: Path): self.store = SQLiteWorkflowStateStore(path)

class Shape:
    "The least that keeps what the store promises, in statements alone: its tables and indexes, a transaction a write, one connection that stays open."
    TOUCH = """UPDATE wfs_session AS s SET updated_at = CASE WHEN s.updated_at >= ? THEN s.updated_at + 1 ELSE ? END,
        size = s.size + ? - coalesce((SELECT sum(v.bytes) FROM wfs_value v WHERE v.id = s.id AND v.key IN (?)), 0)
        WHERE s.flow_id = ? AND s.session_id = ? AND s.deleted_at IS NULL RETURNING id"""
    PUT = """INSERT INTO wfs_value(id, bytes, key, value) VALUES(?,?,?,?)
        ON CONFLICT(id, key) DO UPDATE SET bytes = excluded.bytes, value = excluded.value"""
    INSERT = """INSERT INTO wfs_session(flow_id, session_id, owner, label, current_step, created_at, updated_at, size, title, deleted_at)
        VALUES(?,?,?,?,?,?,?,?,?,?) ON CONFLICT(flow_id, session_id) DO NOTHING RETURNING id"""
    TALLY = """INSERT INTO wfs_tally(flow_id, owner, n) VALUES(?,?,?) ON CONFLICT(flow_id, owner) DO UPDATE SET n = wfs_tally.n + excluded.n"""
    READ = """SELECT v.key, v.value FROM wfs_session s JOIN wfs_value v ON v.id = s.id
        WHERE s.flow_id = ? AND s.session_id = ? AND s.deleted_at IS NULL ORDER BY v.seq"""

    def __init__(self, path: Path):
        SQLiteSessionStore(path).close()   # makes the tables
        self.db = connect(path)

    def create(self, session_id):
        now = time.time_ns() // 1000
        title = time.strftime("session %Y-%m-%d %H:%M", time.gmtime(now / 1e6))
        self.db.execute("BEGIN IMMEDIATE")
        self.db.execute(self.INSERT, (FLOW, session_id, "", None, None, now, now, 0, title, None)).fetchone()
        self.db.execute(self.TALLY, (FLOW, "", 1))
        self.db.execute("COMMIT")

    def put(self, session_id, changes):
        values, now = [(json.dumps(k), json.dumps(v)) for k, v in changes.items()], time.time_ns() // 1000
        sizes = [len(k) + len(v) + 4 for k, v in values]
        self.db.execute("BEGIN IMMEDIATE")
        touch = self.TOUCH.replace("(?)", f"({','.join('?' * len(values))})")
        (row_id,), = self.db.execute(touch, (now, now, sum(sizes), *(k for k, _ in values), FLOW, session_id)).fetchall()
        for size, (key, value) in zip(sizes, values): self.db.execute(self.PUT, (row_id, size, key, value))
        self.db.execute("COMMIT")

    def get(self, session_id):
        return json.loads("{" + ",".join(f"{k}:{v}" for k, v in self.db.execute(self.READ, (FLOW, session_id)).fetchall()) + "}")

    def delete(self, session_id):
        self.db.execute("BEGIN IMMEDIATE")
        self.db.execute("DELETE FROM wfs_session WHERE flow_id = ? AND session_id = ? RETURNING owner", (FLOW, session_id)).fetchall()
        self.db.execute(self.TALLY, (FLOW, "", -1))
        self.db.execute("COMMIT")

class Blob:
    "The least that keeps a state: one text in one table, read, changed and written in a transaction."
    def __init__(self, path: Path):
        self.db = connect(path)
        self.db.execute("CREATE TABLE session(id TEXT PRIMARY KEY, state TEXT NOT NULL)")

    def create(self, session_id): self.db.execute("INSERT INTO session VALUES(?, '{}')", (session_id,))

    def put(self, session_id, changes):
        self.db.execute("BEGIN IMMEDIATE")
        self.db.execute("UPDATE session SET state = ? WHERE id = ?", (json.dumps({**self.get(session_id), **changes}), session_id))
        self.db.execute("COMMIT")

    def get(self, session_id): return json.loads(self.db.execute("SELECT state FROM session WHERE id = ?", (session_id,)).fetchone()[0])
    def delete(self, session_id): self.db.execute("DELETE FROM session WHERE id = ?", (session_id,))

class Django:
    "Sessions in the database, with the write-ahead log and immediate transactions that Django's own documentation advises for SQLite."
    def __init__(self, path: Path):
        import django
        from django.conf import settings
        if not settings.configured:
            options = {"init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL", "transaction_mode": "IMMEDIATE"}
            settings.configure(SECRET_KEY="bench", INSTALLED_APPS=["django.contrib.sessions"],
                               DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": path, "OPTIONS": options, "CONN_MAX_AGE": None}})
            django.setup()
            from django.core.management import call_command
            call_command("migrate", verbosity=0)
        from django.contrib.sessions.backends.db import SessionStore
        self.session, self.keys = SessionStore, {}   # Django makes the keys

    def create(self, session_id):
        session = self.session()
        session.create()
        self.keys[session_id] = session.session_key

    def put(self, session_id, changes):
        session = self.session(self.keys[session_id])
        session.update(changes)
        session.save()

    def get(self, session_id): return dict(self.session(self.keys[session_id]).items())
    def delete(self, session_id): self.session(self.keys.pop(session_id)).delete()

class LangGraph:
    "A checkpoint per update; the saver keeps every earlier one."
    def __init__(self, path: Path):
        from langgraph.checkpoint.base import empty_checkpoint
        from langgraph.checkpoint.sqlite import SqliteSaver
        self.saver, self.empty = SqliteSaver(sqlite3.connect(path, check_same_thread=False)), empty_checkpoint
        self.saver.setup()

    def _config(self, session_id): return {"configurable": {"thread_id": session_id, "checkpoint_ns": ""}}
    def create(self, session_id): self._save(session_id, {})
    def put(self, session_id, changes): self._save(session_id, {**self.get(session_id), **changes})
    def get(self, session_id): return self.saver.get_tuple(self._config(session_id)).checkpoint["channel_values"]
    def delete(self, session_id): self.saver.delete_thread(session_id)

    def _save(self, session_id, state):
        checkpoint = self.empty() | {"channel_values": state}
        self.saver.put(self._config(session_id), checkpoint, {"source": "update", "step": 0}, {})

SUBJECTS: dict[str, type] = {OURS: Ours, CJM: Cjm, SHAPE: Shape, BLOB: Blob, DJANGO: Django, LANGGRAPH: LangGraph}
RUNS = {OURS: 300, SHAPE: 300, BLOB: 100, CJM: 30, DJANGO: 30, LANGGRAPH: 30} # In one turn; enough for a checkpoint of the log to fall into it

def connect(
    path: Path,
) -> sqlite3.Connection: # In autocommit
    "Open a file with the settings that the store gives its own connections."
    settings = SQLiteSessionStore(path.with_suffix(".settings"))
    db = sqlite3.connect(path, isolation_level=None, cached_statements=256)
    for name in ("journal_mode", "synchronous", "foreign_keys", "cache_size", "wal_autocheckpoint"):
        ((value,),) = settings.rows(f"PRAGMA {name}")
        db.execute(f"PRAGMA {name} = {value}").fetchall()
    settings.close()
    return db

def works(
    subjects: dict[str, Subject],
    operation: str, # "create", "update", "get" or "delete"
    ids: list[str], # Sessions there, one after the other
) -> dict[str, Any]: # Subject -> one run
    "Make what is timed. Created sessions are deleted by the same name, in the same order."
    def of(subject: Subject):
        turn, new, change = cycle(ids), count(), count(SMALL)
        return {"create": lambda: subject.create(f"new-{next(new)}"), "delete": lambda: subject.delete(f"new-{next(new)}"),
                "update": lambda: subject.put(next(turn), small_change(next(change))), "get": lambda: subject.get(next(turn))}[operation]
    return {name: of(subject) for name, subject in subjects.items()}

def same_state(
    subjects: dict[str, Subject],
    session_id: str,
) -> None:
    "Check that all have done the same work. Raises `AssertionError`."
    found = {name: subject.get(session_id) for name, subject in subjects.items()}
    for name, state in found.items(): assert state == found[OURS], f"{name} holds another state than {OURS}"

def measure(folder: Path) -> Result:
    "Update one key of a state, and create, read and delete sessions."
    result, rows = Result("One session in the store"), []
    for kilobytes in (2, 100):
        subjects = {name: kind(folder / f"{kind.__name__}.{0 if kind is Django else kilobytes}.db") for name, kind in SUBJECTS.items()}
        ids = [str(uuid.UUID(int=i)) for i in range(SESSIONS)]
        for i, session_id in enumerate(ids):
            for subject in subjects.values():
                subject.create(session_id)
                subject.put(session_id, state_of(kilobytes, i))
        same_state(subjects, ids[0])
        for operation in ("update", "get") + (("create", "delete") if kilobytes == 2 else ()):
            times = take_turns(works(subjects, operation, ids), 15 if operation == "update" else 7, RUNS)
            rows.append([f"{operation}, {kilobytes} KB" if operation in ("update", "get") else operation] + [cell(times, name) for name in SUBJECTS])
            if operation == "update":
                limit = 1 / 20 if kilobytes == 2 else 1 / 40
                result.budgets.append(Budget(f"update one key of {kilobytes} KB", times.ratio(OURS, CJM), limit, how="time, of cjm-workflow-state"))
        # The two that are close get a closer look: many turns right beside each other, so that both see the same machine.
        pair = {name: subjects[name] for name in (OURS, SHAPE)}
        close = take_turns(works(pair, "update", ids), 60, 400)
        result.budgets += [Budget(f"update one key of {kilobytes} KB", close.ratio(OURS, SHAPE), 1.2, how="time, of raw SQL of the same shape"),
                           Budget(f"update one key of {kilobytes} KB", close.ratio_cpu(OURS, SHAPE), 1.2, how="CPU, of raw SQL of the same shape")]
    result.tables.append(Table("Microseconds for one operation (ratio to ours)", ["", *SUBJECTS], rows))
    return result

def cell(times: Times, name: str) -> str:
    return micro(times.median(name)) + (f" ({times.ratio(name, OURS):.1f}×)" if name != OURS else "")

if __name__ == "__main__": run(measure)
