"""What several tests need: a real server in a process of its own, and a real browser."""

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
AXE = HERE.parent / "node_modules" / "axe-core" / "axe.min.js"
BROWSER_ARGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync"]
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
REPORT_REFUSALS = """document.addEventListener('securitypolicyviolation',
    refused => console.error('CSP ' + refused.violatedDirective + ' ' + refused.sample))"""


@contextlib.contextmanager
def chromium():
    "Start Chromium; Debian's, never one that Playwright downloads."
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert path, "no chromium on this machine: run `make browser`"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=BROWSER_ARGS)
        try: yield browser
        finally: browser.close()


class Server:
    "An app under uvicorn, in processes that can be killed."
    def __init__(self, factory="manager_app:make_app", *, workers=1, port=None, **env):
        self.factory, self.workers, self.env = factory, workers, env
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        command = [sys.executable, "-m", "uvicorn", "--factory", self.factory, "--host", "127.0.0.1", "--port", str(self.port),
                   "--workers", str(self.workers), "--log-level", "warning", "--app-dir", str(HERE)]
        self.process = subprocess.Popen(command, env=os.environ | self.env, start_new_session=True)
        deadline = time.monotonic() + 30
        while not self.answers():
            assert self.process.poll() is None and time.monotonic() < deadline, "the server did not start"
            time.sleep(0.05)

    def answers(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status < 500
        except OSError: return False
        finally: connection.close()

    def kill(self):
        "End every process of the server at once, as a power switch does."
        with contextlib.suppress(ProcessLookupError): os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        while _is_open(self.port): time.sleep(0.005)   # its workers may take a moment longer

    def __enter__(self): return self
    def __exit__(self, *_): self.kill()


def _is_open(port):
    try: socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except ConnectionRefusedError: return False
    except OSError: return True
    return True


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener: return listener.getsockname()[1]


def watch(page):
    "Collect what must not happen on a page: errors, refused scripts, requests to other machines, dialogs that a label opened."
    page.trouble = []

    def console(said):
        expected = said.text.startswith("Failed to load resource")
        if said.type in ("error", "warning") and not expected: page.trouble.append(said.text)

    def dialog(opened):
        page.trouble.append(f"dialog {opened.message}")
        opened.dismiss()

    def request(sent):
        if not sent.url.startswith(("http://127.0.0.1:", "data:", "blob:")): page.trouble.append(f"request to {sent.url}")

    page.on("console", console)
    page.on("pageerror", lambda error: page.trouble.append(str(error)))
    page.on("dialog", dialog)
    page.on("request", request)
    page.add_init_script(REPORT_REFUSALS)
    return page


def axe(page):
    "Run axe-core over the page as it is; gives (rule, number of places, first place)."
    # Injected through the debugger's world, so that the page's own policy stays in force.
    page.evaluate(AXE.read_text() + "\n;0")
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [(v["id"], len(v["nodes"]), v["nodes"][0]["html"][:200]) for v in found["violations"]]
