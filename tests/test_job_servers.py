"""Whole uvicorn servers are killed at 40 % of a job, alone and beside another; 20 jobs under `uvicorn --workers 2`. JOB_KILLS is how often."""

import os
import subprocess
import time
from collections import Counter

import pytest

from cjm_workflow_sessions.jobs.service import Jobs
from cjm_workflow_sessions.stores.base import open_store
from job_support import ask, wait_for
from jobs_support import ITEM_S, LEASE_S, effects, make_traces, touched, traced_kinds, until
from support import Server

KILLS = int(os.environ.get("JOB_KILLS", "2"))
SLICE = round(0.2 / ITEM_S) + 10
API = "/api/ingest"


@pytest.fixture(params=("sqlite", "postgres"))
def where(request, tmp_path):
    return request.getfixturevalue("postgres").fresh_url() if request.param == "postgres" else f"sqlite:///{tmp_path}/jobs.db"


@pytest.fixture
def store(where):
    store = open_store(where)
    make_traces(store)
    yield store
    store.close()


@pytest.fixture
def jobs(store, tmp_path): return Jobs(store, traced_kinds(store, tmp_path / "trace"), lease_s=LEASE_S)


def begin(server, n):
    status, said = ask(server.url, "POST", f"{API}/process", {"parameters": {"n": n}})
    assert status == 202
    return said["session_id"]


def check(store, url, job_id, n, trace, redone):
    record = wait_for(url, job_id, "completed", "error", timeout_s=60)
    assert (record["status"], record["processed_files"], record["total_files"], record["errors"]) == ("completed", n, n, [])
    assert sorted(effects(store, job_id)) == sorted(f"i{k}" for k in range(n))
    lines = [(int(pid), float(at), item) for pid, at, job, item in touched(trace) if job == job_id]
    assert len({item for *_, item in lines}) == n and len(lines) - n <= redone, len(lines) - n
    return lines


def pids(server):
    "The processes of a server."
    found = subprocess.run(["pgrep", "-g", str(server.process.pid)], capture_output=True, text=True, check=False).stdout.split()
    return set(map(int, found))


def test_the_only_server_is_killed_and_started_again(where, store, jobs, tmp_path):
    with Server("trace_app:make_app", STORE=where, TRACE=str(tmp_path / "trace")) as server:
        for _ in range(KILLS):
            job_id = begin(server, 500)
            until(lambda: jobs.get(job_id).processing.processed >= 200)
            server.kill()
            assert jobs.get(job_id).processing.processed < 500
            server.start()
            check(store, server.url, job_id, 500, tmp_path / "trace", SLICE)


def test_one_of_two_servers_is_killed_and_the_other_takes_over(where, store, jobs, tmp_path):
    env = dict(STORE=where, TRACE=str(tmp_path / "trace"))
    with Server("trace_app:make_app", **env) as one, Server("trace_app:make_app", **env) as two:
        servers = [one, two]
        for _ in range(KILLS):
            job_id = begin(servers[0], 500)
            at = until(lambda: (found := jobs.get(job_id)).processing.processed >= 200 and found)
            pid = int(at.worker.split(":")[1])
            victim = next(s for s in servers if pid in pids(s))
            other = next(s for s in servers if s is not victim)
            killed = time.time()
            victim.kill()
            lines = check(store, other.url, job_id, 500, tmp_path / "trace", SLICE)
            assert min(when for p, when, _ in lines if p != pid) - killed < LEASE_S + 1
            victim.start()


def test_twenty_jobs_under_uvicorn_with_two_workers(tmp_path):
    url, trace = f"sqlite:///{tmp_path}/jobs.db", tmp_path / "trace"
    store = open_store(url)
    make_traces(store)
    with Server("trace_app:make_app", workers=2, STORE=url, TRACE=str(trace), THREADS="2") as server:
        ids = [begin(server, 50) for _ in range(20)]
        for job_id in ids: check(store, server.url, job_id, 50, trace, 0)
        assert len(effects(store)) == 1000
        lines = touched(trace)
        assert Counter((job, item) for *_, job, item in lines).most_common(1)[0][1] == 1 and len(lines) == 1000
        assert len({pid for pid, *_ in lines}) == 2, "one worker did everything"
    store.close()
