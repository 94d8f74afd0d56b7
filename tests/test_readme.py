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


def printed_apps():
    "The app of sessions, and the app of jobs."
    return [block for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if "serve()" in block]


@contextlib.contextmanager
def running(folder, port, path="/manage/sessions"):
    "Run main.py as the README says; ended at once, as by a power switch."
    process = subprocess.Popen(
        [sys.executable, "main.py"], cwd=folder, env=os.environ | {"PORT": str(port)}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2)
                break
            time.sleep(0.1)
        else: pytest.fail("the app did not start")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def test_they_are_short(): assert [len(code.splitlines()) <= 15 for code in printed_apps()] == [True, True]


def test_it_runs_and_keeps_what_was_typed(tmp_path, visitor):
    (tmp_path / "main.py").write_text(printed_apps()[0])
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


def test_the_app_of_jobs_counts_and_goes_on_after_a_kill(tmp_path, visitor):
    code, folder = printed_apps()[1], tmp_path / "texts"
    folder.mkdir()
    for i in range(300): (folder / f"{i:03}.txt").write_text("three short words")
    slow = code.replace("def count_words(job, path): ", "def count_words(job, path): __import__('time').sleep(0.02); ")
    assert slow != code   # so that there is time to kill it
    (tmp_path / "main.py").write_text(slow)
    port, page = free_port(), visitor().new_page()
    with running(tmp_path, port, "/") as address:
        page.goto(address)
        page.get_by_label("Folder").fill("/nowhere")
        page.get_by_role("button", name="Count").click()
        expect(page.locator('[data-slot="status"]')).to_have_text("Done")   # nothing is nothing to count
        page.get_by_role("link", name="Start another").click()
        page.get_by_label("Folder").fill(str(folder))
        page.get_by_role("button", name="Count").click()
        page.wait_for_function("() => parseInt(document.querySelector('[data-slot=\"count\"]').textContent) > 20")
    with running(tmp_path, port, "/") as address:
        page.goto(address)
        expect(page.locator('[data-slot="status"]')).to_have_text("Done", timeout=30_000)
        expect(page.locator('[data-stat="words"]')).to_have_text("900")
        expect(page.locator('[data-slot="count"]')).to_have_text("300 of 300 files")
