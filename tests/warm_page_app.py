"""The app that the browser tests of warm workers look at: a manager that shows them, under a strict policy, over the store named by the environment."""

import os

from fasthtml.common import FastHTML
from starlette.middleware import Middleware

import warm_apps   # noqa: F401
from cjm_workflow_sessions import open_store, warm
from cjm_workflow_sessions.routes.init import init_session_manager_routers
from cjm_workflow_sessions.services.management import SessionManagementService
from manager_app import StrictPolicy


def make_app():
    store = open_store(os.environ["STORE"])
    sessions = init_session_manager_routers(SessionManagementService(store, "ingest"), "/work", warm=warm.client(store))
    app = FastHTML(secret_key="test", default_hdrs=False, hdrs=sessions.hdrs, middleware=[Middleware(StrictPolicy)], title="App")
    for router in sessions.routers: router.to_app(app)

    @app.get("/ready")
    def ready(): return "yes"

    @app.get("/favicon.ico")
    def favicon(): return ""

    return app
