"""The three sources of the settings, and the file that the project ships."""

import shutil
import tempfile
from dataclasses import asdict, fields
from pathlib import Path

import pytest

from cjm_workflow_sessions import InvalidInput, Settings, load_settings
from store_support import unprivileged

ROOT = Path(__file__).resolve().parents[1]


def test_the_shipped_file_says_what_it_is_and_holds_the_defaults():
    text = (ROOT / "settings.ini").read_text()
    assert "run time" in text.splitlines()[0] and "nbdev" in text.splitlines()[0]
    assert load_settings(ROOT / "settings.ini", {}) == Settings()
    for f in fields(Settings): assert f"\n{f.name} =" in text


def test_the_file_of_the_working_directory_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_settings(environ={}) == Settings()
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nport = 7000\n")
    assert load_settings(environ={}).port == 7000


def test_the_environment_of_the_process_is_read_when_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PORT", "7001")
    assert load_settings().port == 7001
    monkeypatch.setenv("CJM_WORKFLOW_SESSIONS_PORT", "7002")
    assert load_settings().port == 7002
    assert load_settings(port=7003).port == 7003


@pytest.mark.parametrize("name", [f.name for f in fields(Settings)])
def test_every_setting_comes_from_every_source(tmp_path, name):
    other = {"store": "memory:", "flow_id": "x", "prefix": "/s", "host": "::1", "port": 1, "data": Path("d"), "folder": "f", "users": True, "max_files": 9, "idle_days": 3, "trash_hours": 1,
             "on_network": True, "log_format": "json"}[name]
    file = tmp_path / "s.ini"
    file.write_text(f"[DEFAULT]\n{name} = {other}\n")
    wanted = asdict(Settings()) | {name: other}
    assert asdict(load_settings(file, {})) == wanted
    assert asdict(load_settings(environ={f"CJM_WORKFLOW_SESSIONS_{name.upper()}": str(other)}, path=None)) == wanted
    assert asdict(load_settings(environ={}, **{name: other})) == wanted


def test_a_percent_sign_is_a_percent_sign(tmp_path):
    file = tmp_path / "s.ini"
    file.write_text("[DEFAULT]\nfolder = 100% of %(port)s\nport = 1\n")
    assert load_settings(file, {}).folder == "100% of %(port)s"


def test_a_wrong_value_names_its_source(tmp_path):
    file = tmp_path / "s.ini"
    file.write_text("[DEFAULT]\ntrash_hours = soon\n")
    with pytest.raises(InvalidInput, match=r"trash_hours in .*s\.ini: 'soon' must be a whole number from 1"): load_settings(file, {})
    with pytest.raises(InvalidInput, match="^CJM_WORKFLOW_SESSIONS_USERS: 'perhaps' must be yes or no"): load_settings(environ={"CJM_WORKFLOW_SESSIONS_USERS": "perhaps"})
    with pytest.raises(InvalidInput, match="^port: "): load_settings(environ={}, port=-1)


@pytest.mark.parametrize("content", [b"port = 1", b"[DEFAULT\nport", b"\xff\xfe[DEFAULT]", b"[DEFAULT]\nport = 1\nport = 2"])
def test_a_file_that_is_none_is_refused_in_words(tmp_path, content):
    file = tmp_path / "s.ini"
    file.write_bytes(content)
    with pytest.raises(InvalidInput, match="is no settings file"): load_settings(file, {})


def test_a_misspelt_line_is_reported_and_a_foreign_file_is_not(tmp_path, caplog):
    file = tmp_path / "s.ini"
    file.write_text("[DEFAULT]\nport = 1\nprot = 2\n")
    assert load_settings(file, {}).port == 1 and "prot: no such setting" in caplog.text
    caplog.clear()
    file.write_text("[DEFAULT]\nlib_name = other\nversion = 1\n")
    assert load_settings(file, {}) == Settings() and not caplog.text


def refusal(file):
    with pytest.raises(InvalidInput) as e: load_settings(file, {})
    return str(e.value)


def test_a_file_that_may_not_be_read_is_not_passed_over(tmp_path):
    file = Path(tempfile.mkdtemp()) / "s.ini"   # below a folder that another user can enter, as `tmp_path` is not
    file.parent.chmod(0o755)
    file.write_text("[DEFAULT]\nport = 1\n")
    file.chmod(0)
    assert "cannot be read" in unprivileged(refusal, file)
    shutil.rmtree(file.parent)
