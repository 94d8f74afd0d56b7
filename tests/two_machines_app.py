"""An app as it runs on several machines: its sessions, and what it knows of a browser, are in one database."""

import os

from fasthtml.common import A, Button, FastHTML, Form, Input, Main, P, RedirectResponse, Titled

from cjm_workflow_sessions.core.http_session import stored_sessions
from cjm_workflow_sessions.core.workflow_session import WorkflowSession
from cjm_workflow_sessions.routes.guard import active_session
from cjm_workflow_sessions.routes.init import init_session_manager_routers
from cjm_workflow_sessions.services.management import SessionManagementService
from cjm_workflow_sessions.stores.base import open_store


def make_app():
    store = open_store(os.environ["STORE"])
    service = SessionManagementService(store, "ingest")
    sessions = init_session_manager_routers(service, "/work")
    app = FastHTML(secret_key="the same on every machine", sess_cls=stored_sessions(store), default_hdrs=False, hdrs=sessions.hdrs)
    for router in sessions.routers: router.to_app(app)

    @app.get("/ready")
    def ready(): return "yes"

    @app.get("/favicon.ico")
    def favicon(): return ""

    @app.get("/work")
    def work(sess):
        session_id = active_session(sess, "ingest")
        visits = WorkflowSession(sess, "ingest").get("saved", 0)
        form = Form(Input(name="key"), Button("Save"), action="/work", method="post")
        return Titled("Work", Main(P(f"session {session_id}", id="session"), P(f"{len(service.get_state(session_id))} keys", id="keys"), P(f"saved {visits} times", id="saved"),
                                   form, A("All sessions", href=sessions.urls.management_page)))

    @app.post("/work")
    def save(sess, key: str):
        service.update_state(active_session(sess, "ingest"), {key: f"value of {key}"})
        mine = WorkflowSession(sess, "ingest")
        mine.set("saved", mine.get("saved", 0) + 1)
        return RedirectResponse("/work", status_code=303)

    return app
