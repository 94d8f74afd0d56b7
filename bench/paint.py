"""First paint in a browser: our page with its built files, and the reference with the files of its CDN served from the disk."""

import contextlib, os, shutil, socket, subprocess, sys, time, urllib.request
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import apps
from common import Budget, Result, Table, run

ROUNDS, SESSIONS = 10, 5 # Few sessions: here the files are compared, not the lists
PAINT = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
SEEN = f"""() => {{
    const loaded = [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource').filter(e => e.initiatorType != 'xmlhttprequest')];
    return {{paint: ({PAINT})(), sizes: loaded.map(e => e.decodedBodySize), failed: loaded.filter(e => e.responseStatus >= 400 && !e.name.endsWith('favicon.ico')).map(e => e.name)}}
}}"""
QUIET = """() => new Promise(done => {
    let last = performance.now()
    new MutationObserver(() => { last = performance.now() }).observe(document.body, {childList: true, subtree: true})
    const wait = setInterval(() => { if (performance.now() - last > 400) { clearInterval(wait); done(last) } }, 50)
})""" # Milliseconds until the page stopped changing
ARGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]

@contextlib.contextmanager
def server(
    factory: str, # Of `apps`
    file: Path, # Not there yet
) -> Iterator[str]: # Address of its manager page
    "Run an app in a process of its own."
    with socket.create_server(("127.0.0.1", 0)) as listener: port = listener.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "--factory", f"apps:{factory}", "--port", str(port), "--log-level", "warning", "--app-dir", str(Path(__file__).parent)]
    process = subprocess.Popen(command, env=os.environ | {"FILE": str(file), "N": str(SESSIONS)})
    url = f"http://127.0.0.1:{port}{apps.PREFIX}" + ("" if factory == "serve_ours" else "/management_page")
    try:
        deadline = time.monotonic() + 60
        while not _answers(url): assert process.poll() is None and time.monotonic() < deadline, f"{factory} did not start"
        yield url
    finally:
        process.terminate()
        process.wait(10)

def _answers(url: str) -> bool:
    try: return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError: time.sleep(0.1)
    return False

def visit(
    browser: Any,
    url: str,
) -> tuple[float, float, int, int]: # Milliseconds to the first paint and to the last change, files loaded, their bytes
    "Open the page as a new visitor, with nothing kept from before."
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.goto(url, wait_until="load")
    page.wait_for_function(PAINT)
    complete, seen = page.evaluate(QUIET), page.evaluate(SEEN)
    context.close()
    assert not seen["failed"], f"{url}: {seen['failed']}"
    return seen["paint"], complete, len(seen["sizes"]), sum(seen["sizes"])

def measure(folder: Path) -> Result:
    "Open both pages in turn."
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not chromium: return Result("First paint", notes=["First paint was not measured: no Chromium on this machine."])
    from playwright.sync_api import sync_playwright
    found: dict[str, list[tuple[float, float, int, int]]] = {"ours": [], "reference": []}
    with sync_playwright() as playwright, server("serve_ours", folder / "o.db") as ours, server("serve_theirs", folder / "t.db") as theirs:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGS)
        for n in range(ROUNDS + 1):
            for name, url in [("ours", ours), ("reference", theirs)][::1 if n % 2 else -1]:
                seen = visit(browser, url)
                if n: found[name].append(seen)
        browser.close()
    ratio = median(a[0] / b[0] for a, b in zip(*found.values()))
    rows = [[name, *(f"{median(s[k] for s in seen):,.0f}" for k in range(3)), f"{median(s[3] for s in seen) / 1024:,.0f}"] for name, seen in found.items()]
    return Result("First paint", [Budget("first paint", ratio, 1 / 2, how="time, of the reference with its CDN's files on disk")],
                  [Table(f"A new visitor, {SESSIONS} sessions", ["", "first paint, ms", "page complete, ms", "files", "KB, not compressed"], rows)],
                  ["The reference's files come from the same server as its page, without the way to a CDN; three small scripts of its head, which are in no package, are left out. The reference begins with one row and asks for the others one by one; ours come with the page."])

if __name__ == "__main__": run(measure)
