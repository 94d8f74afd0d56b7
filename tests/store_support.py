"""What the tests of a store under stress share: other processes, and a look into its file from outside."""

import contextlib
import json
import multiprocessing
import os
import sqlite3
import threading
import traceback

import psycopg

from cjm_workflow_sessions.stores.postgres import PostgresSessionStore
from cjm_workflow_sessions.stores.sqlite import SQLiteSessionStore

FLOW = "ingest"
SPAWN = multiprocessing.get_context("spawn")   # a fresh interpreter, as another program is
NOBODY = 65534   # uid that owns nothing


# -- threads -------------------------------------------------------------------------------------------------------------

def in_threads(*jobs):
    "Run each job in a thread of its own, all at once; raise what any of them raised."
    errors, start = [], threading.Barrier(len(jobs))
    def run(job):
        try:
            start.wait()
            job()
        except BaseException as e: errors.append(e)
    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for t in threads: t.start()
    for t in threads: t.join()
    if errors: raise errors[0]


# -- other processes -----------------------------------------------------------------------------------------------------

def together(*jobs, unprivileged=False):
    "Run each (function, *arguments) in a process of its own, all at once; gives what they returned."
    barrier = SPAWN.Barrier(len(jobs))
    running = []
    for job, *args in jobs:
        ours, theirs = SPAWN.Pipe(duplex=False)
        process = SPAWN.Process(target=_child, args=(job, args, barrier, theirs, unprivileged), daemon=True)
        process.start()
        theirs.close()
        running.append((process, ours))
    found = [_answer(process, pipe) for process, pipe in running]
    trouble = [text for _, text in found if text]
    assert not trouble, "\n".join(trouble)
    return [value for value, _ in found]


def unprivileged(job, *args):
    "Run a function as a user whom file modes stop; root is not stopped by them."
    return together((job, *args), unprivileged=True)[0]


def _child(job, args, barrier, pipe, unprivileged):
    try:
        if unprivileged and os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        barrier.wait(60)
        pipe.send((job(*args), ""))
    except BaseException: pipe.send((None, traceback.format_exc()))


def _answer(process, pipe):
    try: answer = pipe.recv()
    except EOFError: answer = None
    process.join(60)
    return answer or (None, f"the process ended by itself, exit code {process.exitcode}")


@contextlib.contextmanager
def lock_held(path):
    "Let another process hold the write lock; gives the process."
    ours, theirs = SPAWN.Pipe(duplex=False)
    process = SPAWN.Process(target=_hold, args=(str(path), theirs), daemon=True)
    process.start()
    assert ours.recv() == "locked"
    try: yield process
    finally:
        process.kill()
        process.join(60)


def _hold(path, pipe):
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    db.execute("UPDATE wfs_session SET label = 'never committed'")
    pipe.send("locked")
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])


# -- a store, by its path or its address ---------------------------------------------------------------------------------

def opened(where, patience_s=5.0):
    if str(where).startswith("postgresql://"): return PostgresSessionStore(where, patience_s=patience_s, max_connections=4)
    return SQLiteSessionStore(where, busy_timeout_s=patience_s)


def check(where):
    "Assert that what is kept twice agrees, and that an SQLite file is sound."
    if not str(where).startswith("postgresql://"): return check_file(where)
    with psycopg.connect(where) as db: check_tables(lambda statement, args=(): db.execute(statement.replace("?", "%s"), args).fetchall())


# -- the file, as another program sees it --------------------------------------------------------------------------------

@contextlib.contextmanager
def outside(path):
    "Open the file without the library."
    db = sqlite3.connect(path, isolation_level=None)
    try: yield db
    finally: db.close()


def check_file(path):
    "Assert that the file is sound and that what is kept twice agrees."
    with outside(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        check_tables(lambda statement, args=(): db.execute(statement, args).fetchall())


def check_tables(rows):
    "Assert that sizes and counts are those of the rows."
    for row_id, size in rows("SELECT id, size FROM wfs_session"):
        values = rows("SELECT key, value, bytes FROM wfs_value WHERE id = ? ORDER BY seq", (row_id,))
        assert [n for *_, n in values] == [len(key) + len(value) + 4 for key, value, _ in values]
        state = {json.loads(key): json.loads(value) for key, value, _ in values}
        assert size == (len(json.dumps(state)) if state else 0)
    counted = rows("SELECT flow_id, owner, count(*) FROM wfs_session WHERE deleted_at IS NULL GROUP BY 1, 2 ORDER BY 1, 2")
    assert rows("SELECT flow_id, owner, n FROM wfs_tally WHERE n <> 0 ORDER BY 1, 2") == counted
