"""The newest job of each session in sight: exact, by one statement that the number of jobs does not change."""

import re

import pytest

from cjm_workflow_sessions.jobs.service import Jobs
from cjm_workflow_sessions.stores.postgres import PostgresSessionStore
from cjm_workflow_sessions.stores.sqlite import SQLiteSessionStore
from service_support import statements   # noqa: F401

FLOW = "ingest"


@pytest.fixture(params=("file", "memory", "postgres"))
def store(request, statements, tmp_path):   # noqa: F811
    if request.param == "postgres": store = PostgresSessionStore(request.getfixturevalue("postgres").fresh_url())
    else: store = SQLiteSessionStore(tmp_path / "jobs.db" if request.param == "file" else ":memory:")
    yield store
    store.close()


@pytest.fixture
def jobs(store):
    jobs = Jobs(store)
    jobs.kind("read")(print)
    return jobs


def fill(store, n, owner="ann"):
    "Insert `n` jobs of as many other sessions."
    with store.transaction() as run:
        run.many("""INSERT INTO wfs_job(job_id, kind, owner, flow_id, session_id, status, phase, created_at, updated_at, ended_at)
            VALUES(?,'read',?,'ingest',?,'committed','committing',1,1,1)""", [(f"filler {owner} {i}", owner, f"other {i}") for i in range(n)])
        run("INSERT INTO wfs_job_parameters(id, value) SELECT id, '{}' FROM wfs_job j WHERE NOT EXISTS (SELECT 1 FROM wfs_job_parameters p WHERE p.id = j.id)")


def test_a_thousand_newer_jobs_of_others_hide_none(jobs, store, statements):   # noqa: F811
    ann = jobs.for_owner("ann")
    first, _, second = (ann.start("read", flow_id=FLOW, session_id=s).job_id for s in ("s1", "s2", "s2"))
    jobs.for_owner("bob").start("read", flow_id=FLOW, session_id="s1")
    ann.start("read", flow_id="another", session_id="s1")
    ann.start("read")
    fill(store, 1000)
    statements.clear()
    found = ann.newest(["s1", "s2", "s3", "other 7"], flow_id=FLOW)
    assert len(statements) == 1, statements
    assert {s: job.job_id for s, job in found.items()} == {"s1": first, "s2": second, "other 7": "filler ann 7"}
    assert (ann.newest([]), ann.newest(["s3"]), jobs.for_owner("eve").newest(["s1", "s2"])) == ({}, {}, {})
    assert (jobs.newest(["s1"])["s1"].flow_id, jobs.newest(["s1"], flow_id=FLOW)["s1"].owner) == ("another", "bob")
    assert len(jobs.newest([f"other {i}" for i in range(1000)] + [f"none {i}" for i in range(4000)])) == 1000


@pytest.mark.parametrize("read", ["newest", "newest of an owner", "page", "active"])
def test_only_the_jobs_of_the_sessions_are_looked_at(jobs, store, statements, read):   # noqa: F811
    fill(store, 5000)
    ann = jobs.for_owner("ann")
    wanted = ann.start("read", flow_id=FLOW, session_id="s1")
    if store.dialect.name == "postgres": store.rows("VACUUM ANALYZE wfs_job")   # as the server does by itself in a while
    asked, rows = [], store.rows
    store.rows = lambda statement, args=(): asked.append((statement, args)) or rows(statement, args)
    if read == "page": assert ann.page(flow_id=FLOW, session_id="s1").rows == [wanted]
    elif read == "active": assert ann.active(session_id="s1") == wanted
    else: assert (ann if "owner" in read else jobs).newest(["s1", "s2"], flow_id=FLOW) == {"s1": wanted}
    del store.rows
    statement, args = asked[-1]
    assert len(asked) == (2 if read == "active" else 1)   # the other one asks for the time
    if store.dialect.name == "postgres":
        plan = "\n".join(line for (line,) in rows(f"EXPLAIN {statement}", args))
        assert "wfs_job_session" in plan and not re.search(r"Seq Scan on wfs_job\b", plan), plan
    else:
        plan = [what for *_, what in rows(f"EXPLAIN QUERY PLAN {statement}", args)]
        reads = [what for what in plan if re.match(r"(SEARCH|SCAN) j\b", what)]
        assert any("wfs_job_session" in what for what in reads), plan
        assert all("wfs_job_session" in what or "PRIMARY KEY" in what or "wfs_job_due" in what for what in reads) and not any("SCAN j" in what for what in plan), plan
