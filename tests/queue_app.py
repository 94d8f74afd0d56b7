"""The jobs of an app, for workers that run in processes of their own. STORE names the database, LOG a file that says what was done where."""

import os
import signal
import time

from cjm_workflow_sessions.jobs.forms import DONE
from cjm_workflow_sessions.jobs.kinds import JobKinds
from cjm_workflow_sessions.jobs.service import Jobs
from cjm_workflow_sessions.stores.postgres import PostgresSessionStore

LEASE_S = float(os.environ.get("LEASE_S", "2")) # Shorter than the default, for a test waits until it runs out
PATIENCE_S = 3.0
ITEM_S = 0.01

kinds = JobKinds()


def said(*words):
    "Note something for the test; one write, so that lines of several processes do not mix."
    with open(os.environ["LOG"], "a", buffering=1) as log: log.write(" ".join(map(str, (time.time(), os.getpid(), *words))) + "\n")


@kinds.each("ingest", items=lambda parameters: [*range(parameters["n"])])
def ingest(job, item):
    "Takes a moment, leaves a line, and a row that must be there once."
    time.sleep(ITEM_S)
    said(job.job_id, item)
    job.once(str(item), lambda: note_effect(job.job_id, item))


def note_effect(job_id, item):
    with store.transaction() as run: run("INSERT INTO effect(job_id, item) VALUES(?,?)", (job_id, item))


@kinds.each("poison", items=lambda parameters: [*range(5)], attempts=2)
def poison(job, item):
    said(job.job_id, item)
    if item == 3: os._exit(9)


@kinds.kind("alone", per_owner=1, at_once=2)
def alone(job, cursor):
    "Runs for some steps; no two of an owner at the same time, no three in all."
    said("begin" if cursor is None else "on", job.job_id, job.owner)
    time.sleep(0.02)
    if (cursor or 0) < job.parameters.get("steps", 3): return (cursor or 0) + 1
    said("end", job.job_id, job.owner)
    return DONE


@kinds.kind("flaky")
def flaky(job, cursor):
    "Fails the first time."
    said(job.job_id, "flaky")
    if cursor is None and job.claim.job.attempts == 1: raise OSError("busy")
    return DONE


@kinds.kind("frozen")
def frozen(job, cursor):
    "Has its program stopped while a checkpoint is being written: what the transaction has locked stays locked. The next program goes on."
    said(job.job_id, "frozen")
    job.once("effect", lambda: freeze(job.job_id) if job.claim.job.epoch == 1 else note_effect(job.job_id, 1))
    return DONE


def freeze(job_id):
    note_effect(job_id, 0)
    os.kill(os.getpid(), signal.SIGSTOP)


@kinds.kind("slow", slice_s=0.1)
def slow(job, cursor):
    "One step that takes longer than the lease."
    said(job.job_id, "slow")
    time.sleep(job.parameters["seconds"])
    return DONE


def make_jobs():
    global store
    store = PostgresSessionStore(os.environ["STORE"], patience_s=PATIENCE_S)
    return Jobs(store, kinds, engine="procrastinate", lease_s=LEASE_S)


jobs = make_jobs() if "STORE" in os.environ else None


def make_app():
    "A web app that runs jobs in its own process."
    from fasthtml.common import FastHTML
    runner = jobs.runner(threads=2)
    app = FastHTML(secret_key="test", on_startup=[runner.start], on_shutdown=[runner.stop])

    @app.get("/ready")
    def ready(): return "ready"
    return app
