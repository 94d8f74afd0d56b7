"""What the tests of jobs share: kinds that leave traces, and workers in processes of their own."""

import contextlib
import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest

from cjm_workflow_sessions.jobs import work as work_module
from cjm_workflow_sessions.jobs.forms import each
from cjm_workflow_sessions.jobs.kinds import JobKinds
from cjm_workflow_sessions.jobs.service import Jobs
from cjm_workflow_sessions.stores.postgres import PostgresSessionStore
from cjm_workflow_sessions.stores.sqlite import SQLiteSessionStore
from store_support import SPAWN, opened

ITEM_S = 0.002
LEASE_S = 1.0


def until(found, timeout_s=30.0):
    "Wait for something that is true, and give it."
    deadline = time.monotonic() + timeout_s
    while not (value := found()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)
    return value


def ended(jobs, job, timeout_s=30.0):
    "Wait for a job to rest."
    return until(lambda: (found := jobs.get(job.job_id)).due_at is None and found, timeout_s)


# -- traces: a table of the host in the same database, for what `once` does, and a file for what is done at least once ---

def make_traces(store):
    with store.transaction() as run: run("CREATE TABLE IF NOT EXISTS effect(job_id TEXT, item TEXT)")


def effects(store, job_id=None):
    where, args = ("", ()) if job_id is None else (" WHERE job_id = ?", (job_id,))
    return [item for (item,) in store.rows(f"SELECT item FROM effect{where}", args)]


def leave(store, job_id, item):
    with store.transaction() as run: run("INSERT INTO effect(job_id, item) VALUES(?,?)", (job_id, item))


def touch(path, *words):
    "Add a line; one write, so that lines of several processes do not mix."
    with open(path, "ab", buffering=0) as file: file.write((" ".join(map(str, words)) + "\n").encode())


def touched(path): return [line.split() for line in Path(path).read_text().splitlines()] if Path(path).exists() else []


# -- kinds -----------------------------------------------------------------------------------------------------------------

def traced_kinds(store, trace):
    "Kinds that work on `n` items: each is touched, and leaves an effect."
    kinds = JobKinds()

    def numbers(parameters): return [f"i{n}" for n in range(parameters["n"])]

    @kinds.each("trace", items=numbers, commit=each(lambda job, item: job.once("c" + item, lambda: leave(store, job.job_id, "c" + item))))
    def trace_item(job, item):
        time.sleep(job.parameters.get("item_s", ITEM_S))
        if item == job.parameters.get("poison"): os._exit(9)
        touch(trace, os.getpid(), time.time(), job.job_id, item)
        job.once(item, lambda: leave(store, job.job_id, item))

    return kinds


def worker(where, trace, threads, pipe):
    "A process that runs jobs until it is killed, or told to stop by SIGTERM."
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()   # not to outlive the tests
    store = opened(where)
    runner = Jobs(store, traced_kinds(store, trace), lease_s=LEASE_S).runner(threads=threads)
    pipe.send(os.getpid())
    runner.run_forever()
    pipe.send("stopped")


class Worker:
    "A runner in a process of its own."
    def __init__(self, where, trace, threads=2):
        self.ours, theirs = SPAWN.Pipe(duplex=False)
        self.process = SPAWN.Process(target=worker, args=(str(where), str(trace), threads, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.pid = self.ours.recv()

    def send(self, number): os.kill(self.pid, number)

    def kill(self):
        self.process.kill()
        self.process.join(10)


@contextlib.contextmanager
def workers(where, trace, n, threads=2):
    started = [Worker(where, trace, threads) for _ in range(n)]
    try: yield started
    finally:
        for w in started: w.kill()


class Odd(Exception):
    "Cannot be unpickled: it is made of two arguments and keeps one."
    def __init__(self, first, second): super().__init__(f"{first} {second}")


def raise_odd(item):
    if item != "i0": raise Odd("the real", "reason")
    return os.getpid()


# -- fixtures ---------------------------------------------------------------------------------------------------------------

@pytest.fixture(params=("file", "memory", "postgres"))
def store(request, tmp_path):
    if request.param == "postgres": store = PostgresSessionStore(request.getfixturevalue("postgres").fresh_url())
    else: store = SQLiteSessionStore(tmp_path / "jobs.db" if request.param == "file" else ":memory:")
    make_traces(store)
    yield store
    store.close()


@pytest.fixture
def jobs(store): return Jobs(store, lease_s=1.0)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch): monkeypatch.setattr(work_module, "PAUSE_S", 0.05)


def listed(parameters): return [f"i{n}" for n in range(parameters["n"])]


def fast(jobs, **options): return jobs.runner(**{"poll_s": 0.05} | options)
