"""Moving every session to another database: nothing lost, nothing doubled, wherever the move is broken off."""

import hashlib
import json
import os
import signal
import subprocess
import time
import tracemalloc
from contextlib import closing, contextmanager
from dataclasses import replace

import psycopg
import pytest

from cjm_workflow_sessions import InvalidInput, StoreError, open_store, transfer_sessions
from cjm_workflow_sessions.stores.sqlite import SQLiteSessionStore
from store_support import FLOW, outside
from test_cli import COMMAND, run

MANY = int(os.environ.get("MIGRATE_SESSIONS", "30000"))
HELD = """SELECT s.flow_id, s.session_id, s.owner, s.label, s.current_step, s.created_at, s.updated_at, s.deleted_at, s.size, s.title, s.sort_fields, s.shown_by,
    v.bytes, v.key, v.value FROM wfs_session s LEFT JOIN wfs_value v ON v.id = s.id ORDER BY s.id, v.seq"""
COUNTS = "SELECT (SELECT count(*) FROM wfs_session), (SELECT count(*) FROM wfs_value)"
TALLIES = "SELECT flow_id, owner, n FROM wfs_tally WHERE n <> 0 ORDER BY flow_id, owner"


@contextmanager
def at(url):
    "Open a store, and close it."
    store = open_store(url)
    try: yield store
    finally: store.close()


def held_by(url):
    "A digest of every row in the order of creation, read past the library."
    found = hashlib.sha256()
    if url.startswith("sqlite"):
        with outside(url.removeprefix("sqlite:///")) as db:
            for row in db.execute(HELD): found.update(repr(row).encode())
    else:
        with psycopg.connect(url) as db, db.cursor(name="all") as cursor:
            for row in cursor.execute(HELD): found.update(repr(row).encode())
    return found.hexdigest()


def fill(url, n):
    "Insert `n` sessions with three keys each, every tenth in the trash."
    with at(url): pass
    with outside(url.removeprefix("sqlite:///")) as db:
        db.execute("PRAGMA synchronous = OFF")
        db.execute("BEGIN")
        db.execute("""WITH RECURSIVE number(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM number WHERE i + 1 < ?)
            INSERT INTO wfs_session(flow_id, session_id, owner, label, current_step, created_at, updated_at, size, title, deleted_at)
            SELECT 'ingest', printf('%08x-0000-4000-8000-%012x', i * 7919 % 1000003, i), CASE WHEN i % 3 THEN 'ann' ELSE '' END, CASE WHEN i % 4 THEN 'Läbel ' || i END,
                'pick', 1600000000000000 + i, 1600000000000000 + i * 31 % 1000003, 60, 'läbel ' || i, CASE WHEN i % 10 = 7 THEN 1700000000000000 + i END FROM number""", (n,))
        db.execute("""INSERT INTO wfs_value(id, bytes, key, value) SELECT s.id, 20, k.key, CASE k.key WHEN '"zeta"' THEN s.id ELSE k.value END FROM wfs_session s,
            (SELECT 1 AS place, '"zeta"' AS key, '' AS value UNION ALL SELECT 2, '"_step_pick"', '{"b": [1, 2.50], "a": "\\u0000"}' UNION ALL SELECT 3, '"alpha"', 'null') AS k
            ORDER BY s.id, k.place""")
        db.execute("INSERT INTO wfs_tally(flow_id, owner, n) SELECT flow_id, owner, count(*) FROM wfs_session WHERE deleted_at IS NULL GROUP BY 1, 2")
        db.execute("COMMIT")


# -- killed in the middle --------------------------------------------------------------------------------------------------

def migrate(source, target, cwd):
    code, out, err = run("migrate", source, target, "--json", cwd=cwd)
    assert code == 0, err
    return json.loads(out)


def migrate_and_kill(source, target, cwd):
    "Begin a move in another process and end it when a third of the sessions are there."
    process = subprocess.Popen([*COMMAND, "migrate", source, target], cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    with at(target) as store:
        deadline = time.monotonic() + 120
        while store.rows(COUNTS)[0][0] < MANY // 3:
            assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        ((sessions, values),) = store.rows(COUNTS)
        assert 0 < sessions < MANY and values == 3 * sessions
    process.stderr.close()
    return sessions


def test_many_sessions_go_to_postgresql_and_back_killed_on_the_way(tmp_path, postgres):
    first, server, back = f"sqlite:///{tmp_path}/first.db", postgres.fresh_url(), f"sqlite:///{tmp_path}/back.db"
    fill(first, MANY)
    digests = {held_by(first)}
    for source, target in ((first, server), (server, back)):
        there = migrate_and_kill(source, target, tmp_path)
        report = migrate(source, target, tmp_path)
        assert (report["sessions"], report["values"], report["repeated"]) == (MANY, 3 * MANY, 0)
        assert 0 < report["copied"] <= MANY - there   # it went on where it was
        digests |= {held_by(target)}
    assert len(digests) == 1
    with at(first) as a, at(server) as b, at(back) as c:
        assert a.rows(TALLIES) == b.rows(TALLIES) == c.rows(TALLIES)
        assert a.count_sessions(FLOW, in_trash=True) == b.count_sessions(FLOW, in_trash=True) == MANY // 10


class Fragile(SQLiteSessionStore):
    "A store whose process ends at its n-th statement."
    left = 10**9

    def _tick(self):
        self.left -= 1
        if self.left < 0: raise KeyboardInterrupt

    def rows(self, statement, args=()):
        self._tick()
        return super().rows(statement, args)

    @contextmanager
    def transaction(self):
        with super().transaction() as run:
            tick = self._tick
            class Ticking:
                def __call__(self, statement, args=()):
                    tick()
                    return run(statement, args)
                def many(self, statement, each):
                    tick()
                    run.many(statement, each)
            yield Ticking()
            self._tick()   # before the commit


def test_a_move_may_end_at_any_statement(tmp_path):
    source = f"sqlite:///{tmp_path}/source.db"
    fill(source, 1200)
    wanted, broken = held_by(source), 0
    with at(source) as ours:
        for n in range(1, 200):
            target = Fragile(tmp_path / f"{n}.db")
            with closing(target):
                target.left = n
                try: transfer_sessions(ours, target)
                except KeyboardInterrupt: broken += 1
                else: break
                target.left = 10**9
                assert transfer_sessions(ours, target).sessions == 1200
                assert held_by(f"sqlite:///{target.where}") == wanted
    assert broken == n - 1 > 20


def test_a_move_that_is_broken_off_again_and_again_comes_to_its_end(tmp_path):
    source = f"sqlite:///{tmp_path}/source.db"
    fill(source, 3000)
    target = Fragile(tmp_path / "target.db")
    with at(source) as ours, closing(target):
        for attempt in range(100):
            target.left = 12 + attempt
            try: transfer_sessions(ours, target)
            except KeyboardInterrupt: continue
            break
    assert attempt > 3 and held_by(f"sqlite:///{target.where}") == held_by(source)


# -- everything is carried ---------------------------------------------------------------------------------------------------

def fill_oddly(store):
    state = {"z": 1.50, "a\x00": [None, True, {"ü": "\ud83d\ude00"}], "": "", "_step_pick": {"deep": [[[]]]}, "huge": "x" * 3_000_000}
    for owner in ("", "ann", "O'Brien %s ?"):
        store.create_session("flow:with:colons", owner=owner, label=" \x1b[31m\u202e%s?", state=state, current_step="?")
    trashed = store.create_session(FLOW, "in the trash", state={"b": 1, "a": 2})
    store.delete_session(FLOW, trashed)
    store.create_session(FLOW, "empty", label="", current_step="")
    store.create_session("", "")
    gone = store.create_session(FLOW)
    store.clear_state(FLOW, gone)
    store.update_state(FLOW, "empty", {"late": 1})
    with store.transaction() as run:
        ((visitor,),) = run("INSERT INTO wfs_http_session(digest, created_at, seen_at, expires_at) VALUES(?,?,?,?) RETURNING id", ("d" * 64, 1, 2, 2**60))
        run.many("INSERT INTO wfs_http_value(id, key, value) VALUES(?,?,?)", [(visitor, key, value) for key, value in VISITOR])
        run("INSERT INTO wfs_http_spent(digest, expires_at) VALUES(?,?)", ("old cookie", 2**60))


VISITOR = [('"user"', '"ann"'), ('"cart\\u0000"', "[]")]
VISITS = "SELECT s.digest, s.created_at, s.seen_at, s.expires_at, s.idle_s, v.key, v.value FROM wfs_http_session s JOIN wfs_http_value v ON v.id = s.id ORDER BY v.seq"


@pytest.mark.parametrize("way", ["sqlite to sqlite", "sqlite to postgres", "postgres to sqlite", "postgres to postgres"])
def test_what_is_odd_is_carried_exactly(tmp_path, request, way):
    def url(kind, name): return f"sqlite:///{tmp_path}/{name}.db" if kind == "sqlite" else request.getfixturevalue("postgres").fresh_url()
    source, target = (url(kind, name) for kind, name in zip(way.split(" to "), ("source", "target")))
    with at(source) as a, at(target) as b:
        fill_oddly(a)
        report = transfer_sessions(a, b)
        assert (report.sessions, report.http_sessions) == (6, 1)
        assert held_by(source) == held_by(target)
        assert a.rows(TALLIES) == b.rows(TALLIES)
        assert b.rows(VISITS) == a.rows(VISITS) == [("d" * 64, 1, 2, 2**60, None, key, value) for key, value in VISITOR]
        assert b.rows("SELECT digest, expires_at FROM wfs_http_spent") == [("old cookie", 2**60)]
        assert transfer_sessions(a, b) == replace(report, copied=0, repeated=0)   # again: nothing to do
        made = b.create_session(FLOW, state={"new": 1})   # numbers of rows go on after those that were copied
        assert b.get_state(FLOW, made) == {"new": 1} and b.page_sessions(FLOW, limit=1).rows[0].session_id == made


def test_the_source_is_only_read(tmp_path):
    source = f"sqlite:///{tmp_path}/source.db"
    fill(source, 700)
    with at(source) as a, at("memory:") as b:
        before = a.rows("PRAGMA data_version"), (tmp_path / "source.db").read_bytes()
        transfer_sessions(a, b)
        assert (a.rows("PRAGMA data_version"), (tmp_path / "source.db").read_bytes()) == before


def test_memory_does_not_grow_with_the_store(tmp_path):
    with at("memory:") as a, at(f"sqlite:///{tmp_path}/target.db") as b:
        for i in range(120): a.create_session(FLOW, state={"text": "x" * 500_000})
        tracemalloc.start()
        try:
            transfer_sessions(a, b)
            assert tracemalloc.get_traced_memory()[1] < 40_000_000   # of 60,000,000
        finally: tracemalloc.stop()


# -- others write meanwhile --------------------------------------------------------------------------------------------------

def once(write):
    "Write as soon as the first batch is copied."
    done = []
    def progress(what, n):
        if not done:
            done.append(what)
            write()
    return progress


def test_what_is_written_to_the_source_meanwhile_is_copied_again(tmp_path, postgres):
    source = f"sqlite:///{tmp_path}/source.db"
    fill(source, 2000)
    with at(source) as a, at(postgres.fresh_url()) as b:
        ids = [session_id for (session_id,) in a.rows("SELECT session_id FROM wfs_session WHERE id < 400 AND deleted_at IS NULL")]   # of the first batch
        first = ids[0]
        def write():
            a.update_state(FLOW, first, {"late": True})
            a.delete_session(FLOW, ids[1])
            a.clear_state(FLOW, ids[2])
            a.create_session(FLOW, "00000000-new")
        report = transfer_sessions(a, b, progress=once(write))
        assert (report.sessions, report.repeated) == (2000, 3)
        assert b.get_state(FLOW, first)["late"] and b.get_trashed(FLOW, ids[1]) and not b.session_exists(FLOW, ids[2])
        assert a.rows(TALLIES) == b.rows(TALLIES)


def test_a_source_that_does_not_rest_is_an_error_that_a_later_run_mends(tmp_path):
    source = f"sqlite:///{tmp_path}/source.db"
    fill(source, 1500)
    with at(source) as a, at("memory:") as b:
        first = min(s.session_id for s in a.page_sessions(FLOW, limit=1500).rows)
        def restless(what, n): a.update_state(FLOW, first, {what: n})   # it is compared before the others
        with pytest.raises(StoreError) as error: transfer_sessions(a, b, progress=restless)
        assert first in str(error.value) and "run the same again" in str(error.value)
        report = transfer_sessions(a, b)
        assert (report.sessions, report.repeated) == (1500, 1) and b.get_state(FLOW, first) == a.get_state(FLOW, first)


def test_what_was_written_to_the_target_is_not_replaced(tmp_path):
    with at("memory:") as a, at("memory:") as b:
        for name in ("both", "deleted"): a.create_session(FLOW, name, state={"from": "a"})
        transfer_sessions(a, b)
        b.update_state(FLOW, "both", {"from": "b"})
        b.clear_state(FLOW, "deleted")
        b.create_session(FLOW, "new", state={"from": "b"})
        with pytest.raises(StoreError, match="3 of its sessions differ"): transfer_sessions(a, b)
        assert (b.get_state(FLOW, "both"), b.get_state(FLOW, "new"), b.session_exists(FLOW, "deleted")) == ({"from": "b"}, {"from": "b"}, False)


def test_two_moves_into_one_target_at_once_do_not_double_anything(tmp_path):
    source = f"sqlite:///{tmp_path}/source.db"
    fill(source, 2000)
    with at(source) as a, at(f"sqlite:///{tmp_path}/b.db") as b:
        with pytest.raises(InvalidInput, match="another process"): transfer_sessions(a, b, progress=once(lambda: transfer_sessions(a, b)))
        assert transfer_sessions(a, b).sessions == 2000
    assert held_by(source) == held_by(f"sqlite:///{tmp_path}/b.db")


# -- refused ------------------------------------------------------------------------------------------------------------------

def test_a_target_that_holds_something_else_is_refused(tmp_path, postgres):
    with at("memory:") as a, at("memory:") as used, at(postgres.fresh_url()) as b, at(postgres.fresh_url()) as c:
        a.create_session(FLOW)
        used.create_session(FLOW)
        with pytest.raises(InvalidInput, match="holds sessions already"): transfer_sessions(a, used)
        transfer_sessions(a, b)
        with pytest.raises(InvalidInput, match="was moved from"): transfer_sessions(used, b)
        with pytest.raises(InvalidInput, match="the source itself"): transfer_sessions(b, b)
        transfer_sessions(b, c)   # another schema of the same database is another store
        with pytest.raises(InvalidInput, match="import_cjm"): transfer_sessions("old.db", b)
        assert used.count_sessions(FLOW) == 1


def test_a_damaged_session_is_named(tmp_path, postgres):
    source = f"sqlite:///{tmp_path}/source.db"
    fill(source, 10)
    with outside(tmp_path / "source.db") as db: db.execute("UPDATE wfs_value SET value = x'00ff' WHERE id = 4 AND key = '\"alpha\"'")
    with at(source) as a, at(postgres.fresh_url()) as b:
        ((name,),) = a.rows("SELECT session_id FROM wfs_session WHERE id = 4")
        with pytest.raises(StoreError, match=name): transfer_sessions(a, b)
        a.update_state(FLOW, name, {"alpha": 1})
        assert transfer_sessions(a, b).sessions == 10


def test_the_command_repeats_no_password(tmp_path):
    fill(f"sqlite:///{tmp_path}/source.db", 3)
    for target in ("postgresql://ann:hush@127.0.0.1:1/app", "postgresql://ann:hu%sh@127.0.0.1:1/app", "mysql://ann:hush@db/app"):
        code, out, err = run("migrate", "sqlite:///source.db", target, cwd=tmp_path)
        assert code in (1, 2) and err.count("\n") == 1 and "hu" not in (out + err).replace("could", "")
