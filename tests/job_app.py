"""The app that the tests of jobs look at: a kind of work like that of seed 004, its page, and a manager, under a strict policy, over the store named by the environment."""

import os
import time

from fasthtml.common import Button, Div, FastHTML, Form, H1, Input, Label, Main, P, RedirectResponse, Request
from starlette.middleware import Middleware

from cjm_workflow_sessions.errors import InvalidInput
from cjm_workflow_sessions.jobs.forms import each
from cjm_workflow_sessions.jobs.service import Jobs
from cjm_workflow_sessions.routes.guard import active_session
from cjm_workflow_sessions.routes.init import init_session_manager_routers
from cjm_workflow_sessions.routes.job_restore import restore_view
from cjm_workflow_sessions.routes.jobs import init_job_router
from cjm_workflow_sessions.services.management import SessionManagementService
from cjm_workflow_sessions.stores.base import open_store
from manager_app import StrictPolicy

API = "/api/ingest"
KNOWN = {"directory": str, "pattern": str, "enable_nsfw_detection": bool, "max_files": int, "pace_ms": int, "bad_every": int, "fails": str}


def check(parameters):
    "Take the parameters as JSON has them, or as the text of a form."
    unknown = set(parameters) - set(KNOWN)
    if unknown: raise InvalidInput(sorted(unknown)[0], "is not known")
    taken = {"directory": "/photos", "max_files": 50, "pace_ms": 5, "bad_every": 0}
    for name, value in parameters.items():
        if KNOWN[name] is int and isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 7: value = int(value)
        if type(value) is not KNOWN[name]: raise InvalidInput(name, f"must be of type {KNOWN[name].__name__}")
        taken[name] = value
    return taken


def list_files(parameters):
    if parameters.get("fails") == "listing": raise OSError("the folder is gone")
    return [f"{i:05}.png" for i in range(parameters["max_files"])]


def read(job, name):
    time.sleep(job.parameters["pace_ms"] / 1000)
    bad, number = job.parameters["bad_every"], int(name[:5])
    if bad and number % bad == bad - 1: raise ValueError(f"{name} is no <b>image</b>")
    job.count(metadata_extracted=1, keywords_added=number % 7)


def keep(job, name):
    time.sleep(job.parameters["pace_ms"] / 1000)
    job.count(committed=1)


def make_jobs(store):
    jobs = Jobs(store, lease_s=float(os.environ.get("LEASE_S", "2")))
    jobs.each("ingest", items=list_files, commit=each(keep, items=list_files))(read)
    jobs.each("other", items=list_files)(read)
    return jobs


def make_app():
    store = open_store(os.environ["STORE"])
    jobs = make_jobs(store)
    service = SessionManagementService(store, "ingest")
    owners = {"get_owner": lambda request: request.session.get("user")} if os.environ.get("OWNERS") else {}
    sessions = init_session_manager_routers(service, "/ingest-v2", jobs=jobs, **owners)
    ingest = init_job_router(
        jobs, API, "file", kind="ingest", flow_id="ingest", check_parameters=check,
        get_session=lambda request: active_session(request.session, "ingest"), get_title=lambda job: f"Ingest of {job.parameters['directory']}", **owners)
    runner = jobs.runner(threads=2)
    on = {"on_startup": [runner.start], "on_shutdown": [runner.stop]} if os.environ.get("RUNNER", "yes") == "yes" else {}
    app = FastHTML(secret_key="test", default_hdrs=False, hdrs=ingest.hdrs, middleware=[Middleware(StrictPolicy)], title="Ingest", htmlkw={"lang": "en"}, **on)
    for router in (*sessions.routers, ingest): router.to_app(app)

    def form(hidden):
        return Form(
            *hidden,
            Label("Folder", fr="directory"), Input(id="directory", name="directory", value="/photos", cls="input"),
            Label("Files", fr="max_files"), Input(id="max_files", name="max_files", value="200", cls="input"),
            Label("Milliseconds for each", fr="pace_ms"), Input(id="pace_ms", name="pace_ms", value="10", cls="input"),
            Button("Start", cls="btn btn-primary"),
            action=f"{API}/process", method="post", id="parameters", cls="flex flex-col gap-2")

    @app.get("/ingest-v2")
    def page(request: Request):
        return Main(
            H1("Ingest", cls="text-xl mb-3"),
            restore_view(
                request, ingest, render_form=form,
                render_preview=lambda job: Div(P(f"{job.processing.processed} files were read"), id="preview"),
                render_result=lambda job: Div(P(f"{job.stats.get('committed', 0)} files are in the catalogue"), id="result")),
            cls="max-w-3xl mx-auto p-4")

    @app.get("/ready")
    def ready(): return "yes"

    @app.get("/favicon.ico")
    def favicon(): return ""

    @app.get("/login")
    def login(sess, user: str):
        sess["user"] = user
        return RedirectResponse("/ingest-v2")

    return app
