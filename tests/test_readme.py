"""The app in the README runs as printed, and what it promises holds in a browser."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import expect

from support import free_port

README = Path(__file__).parents[1] / "README.md"


def printed_app():
    code, = [block for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if "serve()" in block]
    return code


@contextlib.contextmanager
def running(folder, port):
    "Run main.py as the README says; ended at once, as by a power switch."
    process = subprocess.Popen(
        [sys.executable, "main.py"], cwd=folder, env=os.environ | {"PORT": str(port)}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/manage/sessions", timeout=2)
                break
            time.sleep(0.1)
        else: pytest.fail("the app did not start")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def test_it_is_short(): assert len(printed_app().splitlines()) <= 15


def test_it_runs_and_keeps_what_was_typed(tmp_path, visitor):
    (tmp_path / "main.py").write_text(printed_app())
    port, context = free_port(), visitor()
    with running(tmp_path, port) as address:
        page = context.new_page()
        page.goto(address)
        expect(page).to_have_url(f"{address}/manage/sessions")   # there is no session yet
        page.get_by_role("main").get_by_role("button", name="New session").last.click()
        with page.expect_navigation(): page.get_by_role("button", name="Resume").click()
        page.get_by_role("textbox").fill("remember <b>me</b>")
        with page.expect_navigation(): page.get_by_role("button", name="Save").click()
    with running(tmp_path, port) as address:
        page.goto(address)
        assert page.get_by_role("textbox").input_value() == "remember <b>me</b>"
        other = visitor().new_page()
        other.goto(f"{address}/manage/sessions")
        with other.expect_navigation(): other.get_by_role("button", name="Resume").click()
        assert other.get_by_role("textbox").input_value() == "remember <b>me</b>"
