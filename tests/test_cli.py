"""The command as a person and a script use it: in processes of its own."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

import cjm_workflow_sessions
from cjm_workflow_sessions import SessionManagementService, open_store

COMMAND = [sys.executable, "-c", "import sys; from cjm_workflow_sessions.cli import main; sys.exit(main())"]


def run(*argv, cwd, stdin="", **env):
    done = subprocess.run([*COMMAND, *map(str, argv)], cwd=cwd, input=stdin, env=os.environ | {"DATA": "", "PORT": "", "HOST": ""} | env, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def service(tmp_path):
    return SessionManagementService(open_store(f"sqlite:///{tmp_path}/s.db"), "ingest")


@pytest.fixture
def at(tmp_path):
    return ("--store", f"sqlite:///{tmp_path}/s.db")


# -- the public face -----------------------------------------------------------------------------------------------------

def test_every_public_name_loads_and_the_lists_agree():
    for name in cjm_workflow_sessions.__all__: assert getattr(cjm_workflow_sessions, name) is not None
    assert cjm_workflow_sessions.__all__ == sorted(cjm_workflow_sessions.__all__) == sorted(cjm_workflow_sessions._ROOM_OF)
    assert set(cjm_workflow_sessions.__all__) <= set(dir(cjm_workflow_sessions))
    with pytest.raises(AttributeError, match="no_such_name"): cjm_workflow_sessions.no_such_name


def test_the_type_checker_sees_the_public_names(tmp_path):
    file = tmp_path / "host.py"
    file.write_text("from cjm_workflow_sessions import SessionManagementService, open_store\nservice = SessionManagementService(open_store('memory:'), 'f')\nreveal_type(service.create_session())\nservice.no_such_method()\n")
    done = subprocess.run([sys.executable, "-m", "mypy", "--follow-imports=silent", "--cache-dir", str(tmp_path / "cache"), str(file)], cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300)
    assert 'Revealed type is "str"' in done.stdout.replace("builtins.", "") and 'has no attribute "no_such_method"' in done.stdout


# -- commands ------------------------------------------------------------------------------------------------------------

def test_nothing_is_made_by_a_command_that_only_reads(tmp_path):
    for argv in (("list",), ("show", "x"), ("export", "x"), ("cleanup",)):
        code, out, err = run(*argv, cwd=tmp_path)
        assert (code, out) == (2, "") and "there is no file '.demo/sessions.db'" in err and err.count("\n") == 1
    assert run("doctor", cwd=tmp_path)[0] == 1
    assert list(tmp_path.iterdir()) == []


def test_a_session_travels_from_one_store_to_another(tmp_path, service, at):
    made = service.create_session("Été <b> \x1b[2J\u202e", state={"deep": {"list": [1, None, "ü"]}}, current_step="review")
    assert run("export", made, *at, "-o", "x.json", cwd=tmp_path)[0] == 0
    code, out, _ = run("import", "x.json", "--store", "sqlite:///new/t.db", "--json", cwd=tmp_path)
    copied = SessionManagementService(open_store(f"sqlite:///{tmp_path}/new/t.db"), "ingest").require_session(json.loads(out)["session_id"])
    assert code == 0 and copied.summary.label == "Été <b> \x1b[2J\u202e" and copied.summary.current_step == "review"
    code, out, _ = run("show", copied.summary.session_id, "--store", "sqlite:///new/t.db", "--json", cwd=tmp_path)
    assert json.loads(out)["state"] == {"deep": {"list": [1, None, "ü"]}}
    shown = run("list", *at, cwd=tmp_path, PYTHONIOENCODING="ascii")[1]
    assert "\x1b" not in shown and "\\x1b[2J" in shown and shown.isascii()


def test_json_is_one_value_for_every_command(tmp_path, service, at):
    made = service.create_session(state={"a": 1})
    (tmp_path / "x.json").write_text(json.dumps(service.export_session(made)))
    for argv in (("list",), ("show", made), ("export", made), ("export", made, "-o", "y.json"), ("import", "x.json"), ("cleanup", "--dry-run"), ("doctor",)):
        code, out, _ = run(*argv, *at, "--json", cwd=tmp_path)
        assert code == 0 and json.loads(out) is not None, argv


@pytest.mark.parametrize("argv, code, says", [
    (("show", "gone"), 1, "not found"), (("export", "gone"), 1, "not found"), (("import", "none.json"), 2, "cannot be read"), (("import", "bad.json"), 2, "is no JSON"), (("import", "list.json"), 2, "no exported session"),
    (("import", "binary"), 2, "cannot be read"), (("import-cjm", "none.db"), 1, "there is no such file"), (("list", "--settings", "none.ini"), 2, "no such settings file"), (("cleanup", "--idle-days", "0"), 2, "idle_days"),
    (("demo", "--folder", "none", "--port", "0"), 2, "is no folder"), (("demo", "--port", "http"), 2, "must be a whole number")])
def test_errors_are_one_line_with_the_right_code(tmp_path, service, at, argv, code, says):
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "binary").write_bytes(b"\xff\x00")
    found, out, err = run(*argv, *at, cwd=tmp_path)
    assert (found, out, err.count("\n")) == (code, "", 1) and says in err


def test_an_old_file_is_copied_side_by_side(tmp_path, at):
    from cjm_workflow_state.state_store import SQLiteWorkflowStateStore
    old = SQLiteWorkflowStateStore(tmp_path / "old.db")
    old.create_session("ingest", "s1", label="Old one")
    old.update_state("ingest", "s1", {"n": 1})
    before = (tmp_path / "old.db").read_bytes()
    code, out, _ = run("import-cjm", "old.db", *at, cwd=tmp_path)
    assert code == 0 and out.startswith("1 session copied")
    assert (tmp_path / "old.db").read_bytes() == before
    assert json.loads(run("show", "s1", *at, "--json", cwd=tmp_path)[1])["label"] == "Old one"
    with sqlite3.connect(tmp_path / "old.db") as db: db.execute("UPDATE workflow_state SET state_json = '{', flow_session_key = 'ingest:s2'")
    code, out, _ = run("import-cjm", "old.db", *at, cwd=tmp_path)
    assert code == 1 and "1 cannot be read" in out and "ingest:s2" in out


def test_cleanup_says_first_and_does_then(tmp_path, service, at):
    made, kept = service.create_session(), service.create_session()
    with sqlite3.connect(tmp_path / "s.db") as db: db.execute("UPDATE wfs_session SET updated_at = updated_at - 40 * 86400000000 WHERE session_id = ?", (made,))
    preview = json.loads(run("cleanup", "--dry-run", "--idle-days", "30", "--json", *at, cwd=tmp_path)[1])
    assert preview["trashed"] == [made] and service.session_exists(made)
    assert json.loads(run("cleanup", "--json", *at, cwd=tmp_path)[1])["trashed"] == []   # without a limit nothing is idle
    assert json.loads(run("cleanup", "--idle-days", "30", "--json", *at, cwd=tmp_path)[1])["trashed"] == [made]
    assert not service.session_exists(made) and service.session_exists(kept)


def test_list_names_other_flows_and_an_owner_sees_only_theirs(tmp_path, service, at):
    service.for_owner("ann").create_session("Hers")
    service.create_session("Nobody's")
    assert "Other flows here, for --flow: ingest (2)" in run("list", *at, "--flow", "drafts", cwd=tmp_path)[1]
    out = run("list", *at, "--owner", "ann", cwd=tmp_path)[1]
    assert "Hers" in out and "Nobody's" not in out
    assert json.loads(run("list", *at, "--limit", "1", "--json", cwd=tmp_path)[1])["total"] == 2


# -- doctor --------------------------------------------------------------------------------------------------------------

APP = """
from fasthtml.common import FastHTML
from cjm_workflow_sessions import SessionManagementService, init_session_manager_routers, open_store
def make(**kw):
    sessions = init_session_manager_routers(SessionManagementService(open_store("memory:"), "f"), "/", **kw)
    app = FastHTML(secret_key="k" * 32, sess_https_only=bool(kw))
    for router in sessions.routers: router.to_app(app)
    return app
shared = make()
owned = make(get_owner=lambda request: request.session.get("user"))
"""


def doctor(tmp_path, *argv):
    code, out, _ = run("doctor", "--json", *argv, cwd=tmp_path)
    return code, {f["check"]: f for f in json.loads(out)}


def test_doctor_finds_an_open_manager_and_a_loose_key(tmp_path, service, at):
    (tmp_path / "host.py").write_text(APP)
    (tmp_path / ".sesskey").write_text("secret")
    (tmp_path / ".sesskey").chmod(0o644)
    code, found = doctor(tmp_path, *at, "--app", "host:shared")
    assert code == 1 and found["secret key"]["status"] == "problem" and "chmod 600 .sesskey" in found["secret key"]["text"]
    assert found["owner"]["status"] == "note" and "get_owner" in found["owner"]["text"] and "not Secure" in found["cookie"]["text"]
    (tmp_path / ".sesskey").chmod(0o600)
    code, found = doctor(tmp_path, *at, "--app", "host:owned")
    assert code == 0 and found["secret key"]["status"] == "ok" and found["owner"]["text"] == "/manage/sessions answers 401 to a stranger" and found["cookie"]["text"].endswith("Secure")


@pytest.mark.parametrize("app", ["none:app", "host", "host:none", "json:dumps", "host:broken"])
def test_doctor_says_why_an_app_cannot_be_loaded(tmp_path, service, at, app):
    (tmp_path / "host.py").write_text("def broken(): raise RuntimeError('no database')\n")
    code, found = doctor(tmp_path, *at, "--app", app)
    assert code == 1 and "cannot be loaded" in found["app"]["text"]


def test_doctor_names_a_store_that_does_not_work(tmp_path):
    (tmp_path / "text.db").write_text("this is no database, whatever its name says" * 50)
    code, found = doctor(tmp_path, "--store", "sqlite:///text.db")
    assert code == 1 and found["store"]["status"] == "problem" and "not an SQLite database" in found["store"]["text"]


# -- demo ----------------------------------------------------------------------------------------------------------------

def demo(tmp_path, *argv, **env):
    return subprocess.Popen([*COMMAND, "demo", *argv], cwd=tmp_path, env=os.environ | {"DATA": str(tmp_path / "data"), "PORT": "0", "HOST": ""} | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_demo_asks_nothing_prints_its_address_and_stops_on_ctrl_c(tmp_path):
    server = demo(tmp_path, "--json")
    try:
        found = json.loads("".join(iter(server.stdout.readline, "}\n")) + "}")
        assert found["url"].startswith("http://127.0.0.1:") and found["sessions"] == found["url"] + "/manage/sessions"
        with urllib.request.urlopen(found["url"], timeout=10) as page: assert b"Start an ingest" in page.read()
        server.send_signal(signal.SIGINT)
        _, err = server.communicate(timeout=15)
    finally: server.kill()
    assert (server.returncode, err) == (0, "")
    assert (os.stat(tmp_path / "data").st_mode & 0o777, os.stat(tmp_path / "data" / ".sesskey").st_mode & 0o777) == (0o700, 0o600)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data"]
    assert sum(p.is_file() for p in (tmp_path / "data" / "samples").rglob("*")) == 500


def test_demo_says_what_to_do_about_a_taken_port(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        out, err = (server := demo(tmp_path, PORT=str(port))).communicate(timeout=60)
    assert (server.returncode, out) == (2, "") and err == f"cjm-workflow-sessions: port: {port} is taken by another program: choose another, PORT={port + 1} or --port {port + 1}, or 0 for any free one\n"
    assert not (tmp_path / "data").exists()


def test_demo_says_that_its_data_folder_cannot_be_made(tmp_path):
    (tmp_path / "data").write_text("a file")
    _, err = (server := demo(tmp_path)).communicate(timeout=60)
    assert server.returncode == 2 and "cannot be made or written" in err and err.count("\n") == 1
