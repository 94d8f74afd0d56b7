"""Running it: backups under load, the doctor, PostgreSQL from the command line, health, and logs that keep what people entered to themselves."""

import ast
import io
import json
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from fasthtml.common import FastHTML
from starlette.testclient import TestClient

import cjm_workflow_sessions
from cjm_workflow_sessions import (
    ColumnSpec, InvalidInput, SessionManagementService, StoreError, backup_store, examine_store, init_health_router, init_session_manager_routers, open_store, setup_logs)
from cjm_workflow_sessions.stores import backup, file_system
from cjm_workflow_sessions.stores.sqlite import SQLiteSessionStore
from store_support import FLOW, SPAWN, outside
from test_cli import COMMAND, run


@pytest.fixture
def store(tmp_path):
    store = SQLiteSessionStore(tmp_path / "s.db")
    yield store
    store.close()


# -- backup ----------------------------------------------------------------------------------------------------------------

def write_on(path, written, stop):
    "Write pairs of keys until told to stop; each pair is one transaction."
    store, n = SQLiteSessionStore(path), 0
    session = store.create_session(FLOW, f"of {os.getpid()}")
    while not stop.is_set():
        n += 1
        store.update_state(FLOW, session, {"a": n, "b": n, f"key {n}": "x" * 500})
        written.value = n
    store.close()


def test_a_backup_is_one_moment_of_a_store_that_others_write_to(tmp_path, store):
    for i in range(200): store.create_session(FLOW, state={"text": "x" * 20_000})
    stop, counters = SPAWN.Event(), [SPAWN.Value("q", 0) for _ in range(2)]
    writers = [SPAWN.Process(target=write_on, args=(store.where, counter, stop), daemon=True) for counter in counters]
    for writer in writers: writer.start()
    try:
        deadline = time.monotonic() + 60
        while min(c.value for c in counters) < 20: assert time.monotonic() < deadline
        for i in range(3):
            before = [c.value for c in counters]
            slow = lambda left, total: time.sleep(0.05)   # as if the disk were slow, so that much is written in the middle of it
            report = backup_store(store, tmp_path / f"{i}.db", progress=slow)
            assert all(c.value > b for c, b in zip(counters, before))   # nobody waited for it
            copy = SQLiteSessionStore(tmp_path / f"{i}.db")
            states = [copy.get_state(FLOW, f"of {writer.pid}") for writer in writers]
            assert all(s["a"] == s["b"] == len(s) - 2 and s["a"] >= b for s, b in zip(states, before))
            assert copy.count_sessions(FLOW) == report.sessions == 202
            copy.close()
    finally:
        stop.set()
        for writer in writers: writer.join(30)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0.db", "1.db", "2.db", "s.db", "s.db-shm", "s.db-wal"]


def test_a_backup_that_is_killed_leaves_nothing_that_looks_like_one(tmp_path, store):
    for i in range(300): store.create_session(FLOW, state={"text": "x" * 100_000})
    slow = """import sys, time
from cjm_workflow_sessions import backup_store, open_store
from cjm_workflow_sessions.stores import backup
backup.PAGES = 100
def progress(left, total): print(left, flush=True); time.sleep(0.05)
backup_store(open_store("sqlite:///s.db"), "copy.db", progress=progress)"""
    process = subprocess.Popen([COMMAND[0], "-c", slow], cwd=tmp_path, stdout=subprocess.PIPE)
    for _ in range(5): assert process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "copy.db").exists()
    left = [p.name for p in tmp_path.iterdir() if not p.name.startswith("s.db")]
    assert left and all(name.startswith(".copy.db.") for name in left)
    assert run("backup", "copy.db", "--store", "sqlite:///s.db", cwd=tmp_path)[0] == 0


def test_the_command_backs_up_and_never_replaces_unasked(tmp_path, store):
    made = store.create_session(FLOW, state={"n": 1})
    at = ("--store", "sqlite:///s.db")
    code, out, _ = run("backup", "copy.db", *at, "--json", cwd=tmp_path)
    assert code == 0 and json.loads(out) == {"file": "copy.db", "bytes": (tmp_path / "copy.db").stat().st_size, "sessions": 1, "values": 1, "jobs": 0}
    assert (tmp_path / "copy.db").stat().st_mode & 0o777 == 0o600
    before = (tmp_path / "copy.db").read_bytes()
    code, _, err = run("backup", "copy.db", *at, cwd=tmp_path)
    assert code == 2 and "exists" in err and (tmp_path / "copy.db").read_bytes() == before
    store.update_state(FLOW, made, {"n": 2})
    assert run("backup", "copy.db", *at, "--replace", cwd=tmp_path)[0] == 0
    assert json.loads(run("show", made, "--store", "sqlite:///copy.db", "--json", cwd=tmp_path)[1])["state"] == {"n": 2}
    for argv, says in ((("backup", "no/copy.db"), "cannot be written"), (("backup", "s.db", "--replace"), "the store itself")):
        code, _, err = run(*argv, *at, cwd=tmp_path)
        assert code == 2 and says in err and err.count("\n") == 1


def test_a_name_that_is_taken_meanwhile_is_left_alone(tmp_path, store):
    store.create_session(FLOW)
    def take(left, total): (tmp_path / "copy.db").write_text("another's")
    with pytest.raises(InvalidInput, match="by another program"): backup_store(store, tmp_path / "copy.db", progress=take)
    assert (tmp_path / "copy.db").read_text() == "another's" and not list(tmp_path.glob(".copy*"))


def test_a_copy_that_is_not_whole_is_no_backup(tmp_path, store, monkeypatch):
    for i in range(50): store.create_session(FLOW, state={"text": "x" * 10_000})
    copied = backup._copy
    def damaged(source, copy, progress):
        found = copied(source, copy, progress)
        with open(copy, "r+b") as file:
            file.seek(40_000)
            file.write(b"\xff" * 20_000)
        return found
    monkeypatch.setattr(backup, "_copy", damaged)
    with pytest.raises(StoreError, match="damaged"): backup_store(store, tmp_path / "copy.db")
    def short(source, copy, progress): return tuple(n + 1 for n in copied(source, copy, progress))
    monkeypatch.setattr(backup, "_copy", short)
    with pytest.raises(StoreError, match="rows"): backup_store(store, tmp_path / "copy.db")
    assert not (tmp_path / "copy.db").exists() and not list(tmp_path.glob(".copy*"))


# -- network file systems ------------------------------------------------------------------------------------------------------

@pytest.fixture
def on_nfs(tmp_path, monkeypatch):
    "Let the temporary folder look like one of a file server."
    listed = tmp_path / "mounts"
    root = "25 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
    listed.write_text(f"{root}30 25 0:40 / {str(tmp_path.resolve()).replace(' ', chr(92) + '040')} rw - nfs4 files:/srv rw\n")
    monkeypatch.setattr(file_system, "MOUNTS", listed)
    monkeypatch.setattr(file_system.file_system_of, "__kwdefaults__", {"mounts": listed})
    monkeypatch.setattr(file_system.refuse_network, "__kwdefaults__", {"mounts": listed})


def test_a_file_on_a_network_file_system_is_refused_before_it_is_made(tmp_path, on_nfs):
    url = f"sqlite:///{tmp_path}/data/s.db"
    with pytest.raises(StoreError, match=r"network file system \(nfs4\).*on_network"): open_store(url)
    assert not (tmp_path / "data").exists()
    store = open_store(url, on_network=True)
    store.check()
    found = {f.check: f for f in examine_store(store)}
    assert found["file system"].status == "problem" and "nfs4" in found["file system"].text
    store.close()


def test_memory_lies_on_no_file_system(on_nfs): open_store("memory:").check()


# -- doctor ------------------------------------------------------------------------------------------------------------------

def findings(tmp_path, *argv):
    code, out, err = run("doctor", "--json", *argv, cwd=tmp_path)
    return code, {f["check"]: f for f in json.loads(out)}


def test_the_doctor_looks_under_the_store(tmp_path, store):
    os.chmod(store.where, 0o644)
    for name in ("a", "b"): store.create_session(FLOW, name)
    store.delete_session(FLOW, "a")
    with outside(store.where) as db: db.execute("UPDATE wfs_session SET deleted_at = 1 WHERE deleted_at IS NOT NULL")
    code, found = findings(tmp_path, "--store", "sqlite:///s.db")
    assert code == 0 and found["journal"]["text"].startswith("WAL, synchronous = NORMAL")
    assert found["permissions"]["status"] == "note" and "chmod 600 s.db" in found["permissions"]["text"]
    assert found["trash"]["status"] == "note" and "cleanup" in found["trash"]["text"]
    assert found["tables"]["status"] == "ok" and found["disk"]["text"].endswith("are free")


def test_the_doctor_finds_an_unfinished_move(tmp_path, store):
    with outside(store.where) as db:
        db.execute("CREATE TABLE wfs_transfer(source TEXT PRIMARY KEY, position BIGINT NOT NULL, started_at BIGINT NOT NULL, finished_at BIGINT)")
        db.execute("INSERT INTO wfs_transfer VALUES('old.db', 5, 1, NULL)")
    code, found = findings(tmp_path, "--store", "sqlite:///s.db")
    assert code == 1 and "run `migrate` again" in found["migrate"]["text"]


def test_the_doctor_looks_at_postgresql(tmp_path, postgres):
    url = postgres.fresh_url(user="postgres:hush")
    code, found = findings(tmp_path, "--store", url)
    assert code == 0 and found["server"]["status"] == found["connections"]["status"] == found["clock"]["status"] == found["search"]["status"] == "ok"
    assert "hush" not in json.dumps(found)
    with postgres.admin() as db: db.execute(f"DROP INDEX {url.split('csearch_path')[1][3:].split('%2C')[0]}.wfs_session_search")
    sessions = open_store(url)
    with sessions.transaction() as run_: run_("INSERT INTO wfs_tally(flow_id, owner, n) VALUES('long', '', 60000)")
    sessions.close()
    code, found = findings(tmp_path, "--store", url)
    assert code == 0 and found["search"]["status"] == "note" and "CREATE INDEX CONCURRENTLY" in found["search"]["text"]


# -- the command line on PostgreSQL ---------------------------------------------------------------------------------------------

def test_commands_work_on_postgresql(tmp_path, postgres):
    at = ("--store", postgres.fresh_url())
    service = SessionManagementService(open_store(at[1]), FLOW)
    made = service.create_session("Été", state={"z": 1, "a": ["ü"]}, current_step="review")
    assert run("export", made, *at, "-o", "x.json", cwd=tmp_path)[0] == 0
    copied = json.loads(run("import", "x.json", *at, "--json", cwd=tmp_path)[1])["session_id"]
    assert list(json.loads(run("show", copied, *at, "--json", cwd=tmp_path)[1])["state"]) == ["z", "a"]
    assert json.loads(run("list", *at, "--json", cwd=tmp_path)[1])["total"] == 2
    service.delete_session(copied)
    store = service.store
    with store.transaction() as run_: run_("INSERT INTO wfs_http_session(digest, created_at, seen_at, expires_at) VALUES('d', 1, 1, 1)")
    assert json.loads(run("cleanup", *at, "--json", cwd=tmp_path)[1]) == {"trashed": [], "purged": 0, "http_sessions": 1, "dry_run": False}
    code, _, err = run("backup", "x.db", *at, cwd=tmp_path)
    assert code == 2 and "pg_dump" in err and not (tmp_path / "x.db").exists()
    store.close()


def test_the_address_may_come_from_the_environment(tmp_path, postgres):
    assert "0 sessions" in run("list", cwd=tmp_path, CJM_WORKFLOW_SESSIONS_STORE=postgres.fresh_url())[1]


@pytest.mark.parametrize("url", ["postgresql://ann:hush@127.0.0.1:1/app", "postgres://ann:hu sh@[/app", "mysql://ann:hush@db/app", "postgresql:/ann:hush@db"])
def test_no_command_repeats_a_password(tmp_path, url):
    (tmp_path / "settings.ini").write_text(f"[DEFAULT]\nstore = {url}\n")
    for argv in (("list",), ("doctor",), ("cleanup",), ("backup", "x.db"), ("migrate", url, url)):
        code, out, err = run(*argv, cwd=tmp_path)
        assert code in (1, 2) and "hush" not in out + err and "hu sh" not in out + err and err.count("\n") <= 1, argv


# -- health --------------------------------------------------------------------------------------------------------------------

def test_ready_follows_the_server_and_live_does_not(postgres):
    sessions = open_store(postgres.fresh_url())
    app = FastHTML(secret_key="test")
    init_health_router(sessions).to_app(app)
    client = TestClient(app)
    def statuses(): return [client.get(f"/health/{what}").status_code for what in ("live", "ready")]
    def wait_for(wanted):
        deadline = time.monotonic() + 30
        while statuses() != wanted:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert statuses() == [200, 200]
    before = postgres.statements()
    for _ in range(500): client.get("/health/ready")
    assert postgres.statements() - before <= 5
    postgres.stop()
    try:
        wait_for([200, 503])
        assert "postgres" not in client.get("/health/ready").text
    finally: postgres.start()
    wait_for([200, 200])
    sessions.close()


# -- logs ------------------------------------------------------------------------------------------------------------------------

SECRETS = ("secret-value", "secret-label", "secret-key", "secret-owner")


@contextmanager
def all_logs(log_format):
    "Collect every line of the library, from DEBUG on."
    logger = logging.getLogger("cjm_workflow_sessions")
    before, out = (logger.level, logger.propagate, list(logger.handlers)), io.StringIO()
    setup_logs(log_format, level=logging.DEBUG, stream=out)
    try: yield out
    finally:
        logger.level, logger.propagate = before[:2]
        logger.handlers[:] = before[2]


def failing_app(store):
    "An app whose callbacks quote what they were given."
    def enricher(state): raise ValueError(f"cannot use {state}")
    def label(summary, state): raise KeyError(f"{state} of {summary}")
    service = SessionManagementService(store, FLOW, enricher, label)
    app = FastHTML(secret_key="test")
    for router in init_session_manager_routers(service, "/", column_specs=[ColumnSpec("n", "N")], get_step_title=lambda step: 1 / 0).routers: router.to_app(app)
    return TestClient(app, raise_server_exceptions=False), service


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_log_line_holds_what_people_entered(tmp_path, store, log_format):
    with all_logs(log_format) as out:
        client, service = failing_app(store)
        made = service.for_owner("secret-owner").create_session(state={"secret-key": "secret-value"}, current_step="review")
        named = service.create_session("secret-label", state={"secret-key": {"deep": "secret-value"}})
        for path in ("", "/session_detail?session_id=" + made, "?sort=n", "?q=secret-value", "/export_session?session_id=" + named): client.get("/manage/sessions" + path)
        for name in ("rename_session", "fork_session", "delete_session", "resume_session"):
            client.post(f"/manage/sessions/{name}", data={"session_id": named, "label": "secret-label"})
        with outside(store.where) as db: db.execute("UPDATE wfs_value SET value = '{\"secret-value'")
        for path in ("", "/session_detail?session_id=" + made): client.get("/manage/sessions" + path)
        with outside(store.where) as db: db.execute("ALTER TABLE wfs_session RENAME TO elsewhere")
        client.post("/manage/sessions/create_session", data={"label": "secret-label"})
        client.get("/manage/sessions")
    lines = out.getvalue()
    assert "enricher failed" in lines and "label generator failed" in lines and "get_step_title failed" in lines and "session store" in lines
    for secret in SECRETS: assert secret not in lines
    if log_format == "json":
        found = [json.loads(line) for line in lines.splitlines()]
        assert {"builtins.ValueError", "builtins.KeyError", "builtins.ZeroDivisionError"} <= {f["exception"]["type"] for f in found if "exception" in f}
        assert all(len(f["session"]) == 8 for f in found if "session" in f) and any("flow" in f for f in found)


def test_no_log_call_is_given_a_state_or_a_label():
    allowed_calls = {"log.debug", "log.info", "log.warning", "log.error", "log.exception", "log.critical"}
    entered = {"state", "value", "values", "updates", "label", "labels", "key", "keys", "title", "owner", "fields", "data", "search", "args"}
    root, seen = Path(cjm_workflow_sessions.__file__).parent, 0
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func) in allowed_calls): continue
            seen += 1
            named = {n.id for a in (*node.args, *(k.value for k in node.keywords)) for n in ast.walk(a) if isinstance(n, ast.Name)}
            named |= {n.attr for a in node.args for n in ast.walk(a) if isinstance(n, ast.Attribute)}
            assert not named & entered, f"{path.name}:{node.lineno}: {ast.unparse(node)}"
    assert seen > 5


def test_the_demo_writes_lines_that_a_program_reads(tmp_path):
    server = subprocess.Popen([*COMMAND, "demo", "--json"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              env=os.environ | {"DATA": str(tmp_path / "data"), "PORT": "0", "HOST": "", "CJM_WORKFLOW_SESSIONS_LOG_FORMAT": "json"})
    try:
        url = json.loads("".join(iter(server.stdout.readline, "}\n")) + "}")["url"]
        import urllib.error, urllib.request
        with urllib.request.urlopen(url + "/health/ready", timeout=10) as answer: assert answer.status == 200
        with sqlite3.connect(tmp_path / "data" / "sessions.db") as db: db.execute("ALTER TABLE wfs_session RENAME TO elsewhere")
        with pytest.raises(urllib.error.HTTPError): urllib.request.urlopen(url + "/manage/sessions", timeout=10)
        server.send_signal(signal.SIGINT)
        _, err = server.communicate(timeout=20)
    finally: server.kill()
    found = [json.loads(line) for line in err.splitlines()]
    assert found and all({"time", "level", "logger", "message"} <= f.keys() for f in found)
    assert any("tables are missing" in f["message"] for f in found)


# -- the page about it -------------------------------------------------------------------------------------------------------------

def test_the_page_names_what_there_is(tmp_path):
    import re
    text = (Path(__file__).parents[1] / "docs" / "operations.md").read_text()
    helped = run("--help", cwd=tmp_path)[1]
    for command in set(re.findall(r"cjm-workflow-sessions (\w[\w-]*)", text)): assert f"\n    {command} " in helped, command
    for name in set(re.findall(r"\b(\w+)\((?:url|store|path|\"json\"|open_store)", text)): assert hasattr(cjm_workflow_sessions, name) or name == "PostgresSessionStore", name
    for setting in ("on_network", "log_format", "idle_days", "trash_hours"):
        assert f"`{setting}" in text and hasattr(cjm_workflow_sessions.Settings(), setting)


def test_health_asks_for_no_name(tmp_path):
    from cjm_workflow_sessions.demo.app import make_app
    (tmp_path / "offered").mkdir()
    client = TestClient(make_app(cjm_workflow_sessions.Settings(data=tmp_path / "data", folder=str(tmp_path / "offered"), users=True)))
    assert [client.get(path, follow_redirects=False).status_code for path in ("/health/live", "/health/ready", "/")] == [200, 200, 303]
