"""The app that the page's tests look at: a manager under a strict policy, over the store named by the environment."""

import os

from fasthtml.common import FastHTML, RedirectResponse
from starlette.middleware import Middleware

from cjm_workflow_sessions.models import ColumnSpec
from cjm_workflow_sessions.routes.init import init_session_manager_routers
from cjm_workflow_sessions.services.management import SessionManagementService
from cjm_workflow_sessions.stores.base import open_store

STEPS = {"pick": "Choose files", "process": "Process", "review": "Look it over"}


class StrictPolicy:
    "Send the Content-Security-Policy under which the page must work."
    def __init__(self, app): self.app = app

    async def __call__(self, scope, receive, send):
        async def with_policy(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", b"script-src 'self'; connect-src 'self'")]
            await send(message)
        await self.app(scope, receive, with_policy)


def make_service():
    store = open_store(os.environ["STORE"])
    return SessionManagementService(store, "ingest", enricher=lambda state: {"files": f"{state.get('n', 0)} files"})


def make_app():
    service = make_service()
    options = dict(column_specs=[ColumnSpec("files", "Files", "w-24")], get_step_title=STEPS.__getitem__)
    if os.environ.get("OWNERS"): options["get_owner"] = lambda request: request.session.get("user")
    sessions = init_session_manager_routers(service, "/work", **options)
    second = init_session_manager_routers(SessionManagementService(service.store, "drafts"), "/drafts/work", "/drafts/sessions")
    app = FastHTML(secret_key="test", default_hdrs=False, hdrs=sessions.hdrs, middleware=[Middleware(StrictPolicy)], title="App")
    for router in (*sessions.routers, *second.routers): router.to_app(app)

    @app.get("/ready")
    def ready(): return "yes"

    @app.get("/favicon.ico")
    def favicon(): return ""

    @app.get("/work")
    def work(sess): return f"working on {sess.get('_workflow_session_id:ingest')}"

    @app.get("/both")
    def both(request): return sessions.render_list(request), second.render_list(request)

    @app.get("/login")
    def login(sess, user: str):
        sess["user"] = user
        return RedirectResponse(sessions.urls.management_page)

    return app
