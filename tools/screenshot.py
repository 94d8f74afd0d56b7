"""Take the picture in the README: the manager page over sessions that look like work, in light and dark."""

import shutil
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import uvicorn
from fasthtml.common import FastHTML
from playwright.sync_api import sync_playwright

from cjm_workflow_sessions import ColumnSpec, SessionManagementService, SessionSummary, init_session_manager_routers, open_store
from cjm_workflow_sessions.utils import now_us, us_to_text

FOLDER = Path(__file__).resolve().parents[1] / "docs"
SESSIONS = ( # (name, step, files, minutes since the last write)
    ("Interviews, second round", "review", 48, 4),
    ("Holiday photos 2025", "process", 1284, 18),
    (None, "pick", 0, 55),
    ("Podcast archive", "done", 212, 190),
    ("Field recordings – spring", "review", 97, 1500),
    ("Scanned letters", "done", 340, 3300),
    ("Lecture notes", "process", 66, 9000),
    ("Test run", "pick", 12, 15000))
STEPS = {"pick": "Choose files", "process": "Process", "review": "Review", "done": "Committed"}

def invented(
    i: int, # Number of the session
    label: str|None, # None: nobody has named it
    step: str, # Key in `STEPS`
    files: int, # How many it holds
    minutes: int, # Since it was written last
) -> tuple[SessionSummary, dict]: # As a store takes it
    "Make a session up."
    moment = us_to_text(now_us() - timedelta(minutes=minutes) // timedelta(microseconds=1))
    state = {"files": files, "parameters": {"pattern": "*"}, "names": ["x"] * files}
    return SessionSummary("ingest", f"s{i}", label, step, moment, moment, 0), state

def make_app() -> FastHTML:
    "Serve a manager over invented sessions."
    store = open_store("memory:")
    store.insert_sessions(invented(i, *facts) for i, facts in enumerate(SESSIONS))
    service = SessionManagementService(store, "ingest", enricher=lambda state: {"files": f"{state['files']:,}"})
    files = ColumnSpec("files", "Files", "w-20")
    sessions = init_session_manager_routers(service, "/", column_specs=[files], get_step_title=STEPS.__getitem__)
    app = FastHTML(secret_key="picture", default_hdrs=False, hdrs=sessions.hdrs)
    for router in sessions.routers: router.to_app(app)

    @app.get("/start")
    def start(sess): sessions.resume_session(sess, "s1")
    return app

def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    server = uvicorn.Server(uvicorn.Config(make_app(), host="127.0.0.1", port=0, log_level="warning"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started: time.sleep(0.05)
    address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    with sync_playwright() as playwright:
        path = shutil.which("chromium") or sys.exit("no chromium: run `make browser`")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": 1120, "height": 560}, color_scheme=scheme)
            page.goto(f"{address}/start")
            page.goto(f"{address}/manage/sessions")
            page.wait_for_timeout(600)
            page.screenshot(path=FOLDER / f"manager-{scheme}.png")
        browser.close()
    server.should_exit = True

if __name__ == "__main__": main()
