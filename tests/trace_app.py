"""The app whose servers tests kill: traced jobs, run in the processes of the web server, over the store named by STORE."""

import os

from fasthtml.common import FastHTML

from cjm_workflow_sessions.jobs.service import Jobs
from cjm_workflow_sessions.routes.jobs import init_job_router
from jobs_support import LEASE_S, traced_kinds
from cjm_workflow_sessions.stores.base import open_store


def make_app():
    store = open_store(os.environ["STORE"])
    jobs = Jobs(store, traced_kinds(store, os.environ["TRACE"]), lease_s=LEASE_S)
    runner = jobs.runner(threads=int(os.environ.get("THREADS", "1")))
    app = FastHTML(secret_key="test", on_startup=[runner.start], on_shutdown=[runner.stop])
    init_job_router(jobs, "/api/ingest", "file", kind="trace").to_app(app)

    @app.get("/ready")
    def ready(): return "yes"
    return app
