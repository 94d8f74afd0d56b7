"""Write the pages in every state as HTML, for the css build to scan. Usage: render_states.py FOLDER"""

import logging
import sys
from pathlib import Path

from fastcore.xml import to_xml
from fasthtml.common import Client, FastHTML

from cjm_workflow_sessions.components.helpers import render_alert, render_icon_button
from cjm_workflow_sessions.components.page_renderer import render_error_page
from cjm_workflow_sessions.components.job_progress import JobLook, render_job, render_job_brief, render_reload
from cjm_workflow_sessions.components.job_view import render_another, render_commit, render_missing, render_view, render_welcome
from cjm_workflow_sessions.components.warm_view import render_worker, render_worker_mark
from cjm_workflow_sessions.models import ColumnSpec, Job, JobFailure, JobProgress, JobUrls
from cjm_workflow_sessions.routes.init import init_session_manager_routers
from cjm_workflow_sessions.services.management import SessionManagementService
from cjm_workflow_sessions.stores.base import open_store

def job_parts() -> str: # HTML
    "Render a job in every state."
    look = JobLook(JobUrls("/jobs"), actions=lambda job: ("commit", "resume", "retry", "cancel", "export", "delete"))
    states = ("starting", "processing", "completed", "error", "committing", "committed", "cancelled", "interrupted")
    jobs = [Job(state, "x", state, "processing", {}, processing=JobProgress(1, 3, "x", 1), stats={"x": 1}, message="x") for state in states]
    cards = [render_job(job, look, failures=[JobFailure(1, "x", "x")]) for job in jobs]
    groups = {name: [(jobs[1], "/")] * 4 for name in ("running", "waiting", "failed", "finished")}
    rest = (render_commit(jobs[2], look, "/"), render_another("/"), render_missing(), render_reload("/"), render_welcome(groups, look), render_job_brief(jobs[1], look))
    return to_xml(render_view(look, *cards, *rest))

def worker_parts() -> str: # HTML
    "Render a warm worker in every state."
    worker = dict(id="x", app_id="x", app_version_id="1", reason="x", created_at="2026-01-01", last_call_at="2026-01-01", ended_at=None, expires_at="2026-01-01", idle_timeout=60, call_count=1, memory_bytes=1)
    states = [worker | {"state": state} for state in ("starting", "active", "ended", "expired", "lost")]
    return to_xml((*(render_worker(w, "/x", "/x?y=1", 0, logs=logs) for w in states for logs in (None, "", "x")), render_worker_mark(states[1], 0)))

def pages() -> dict[str, str]: # Name of the state → HTML
    "Render each state through the routes."
    store = open_store("memory:")
    service = SessionManagementService(store, "states", enricher=lambda state: {"files": state["files"]})
    sessions = init_session_manager_routers(service, "/", column_specs=[ColumnSpec("files", "Files", "w-24")])
    app = FastHTML(secret_key="states", default_hdrs=False, hdrs=sessions.hdrs)
    for router in sessions.routers: router.to_app(app)
    client, urls = Client(app), sessions.urls
    def page(query: str = "") -> str: return client.get(f"{urls.management_page}{query}").text
    def send(name: str, **data: str) -> str:
        return client.post(f"{urls.management_page}/{name}", data=data, headers={"hx-request": "true"}).text
    found = {"empty": page(), "nothing-found": page("?q=x")}
    state = {"files": "3", "deep": {"list": [1, {"x": None}]}}
    ids = [service.create_session(f"Session {i}", state=state, current_step="pick") for i in range(30)]   # more than fit, so that there is a scroll bar
    broken = service.create_session()   # its state has no "files", so the enricher fails and the row shows a warning
    found |= {
        "created": send("create_session"),
        "renamed": send("rename_session", session_id=ids[0], label="x"),
        "deleted": send("delete_session", session_id=ids[0]),
        "sorted": send("vc/sort", column="label"),
        "moved": send("vc/move", moves="down"),
        "refused": send("rename_session", session_id="none", label="x")}
    for i, session_id in enumerate((ids[1], broken)):
        found[f"detail-{i}"] = client.get(f"{urls.session_detail}?session_id={session_id}").text
    alerts = (render_alert("x", f"alert-{color}") for color in ("success", "error", "warning", "info"))
    return found | {
        "full": page(),
        "ascending": page("?sort=label&dir=asc"),
        "trash": client.get(urls.trash).text,
        "error": to_xml(render_error_page("x", urls)),
        "jobs": job_parts(),
        "workers": worker_parts(),
        "parts": to_xml((*alerts, render_icon_button("play", "x")))}

if __name__ == "__main__":
    logging.disable()   # one state is a session whose enricher fails
    for name, html in pages().items(): (Path(sys.argv[1])/f"{name}.html").write_text(html)
