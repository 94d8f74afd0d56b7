"""Moving jobs to another database: each goes on where it was, with every item once, and none runs in two places."""

import json
import time
import tracemalloc
from contextlib import ExitStack, closing
from datetime import datetime, timedelta, timezone

import pytest

from cjm_workflow_sessions import InvalidInput, StoreError, open_store, transfer_sessions
from cjm_workflow_sessions.jobs.kinds import JobKinds
from cjm_workflow_sessions.jobs.service import Jobs
from cjm_workflow_sessions.stores.job_whole import JOB, PARTS, read_jobs
from jobs_support import effects, ended, leave, make_traces, until
from store_support import FLOW
from test_cli import run
from test_migrate import Fragile, at

ROWS = {table.name: f"SELECT {', '.join(table.columns)} FROM {table.name} ORDER BY {', '.join(table.key)}" for table in (JOB, *PARTS)}
LEASE_S = 0.5
N = 400


def held_by(store): return {name: store.rows(statement) for name, statement in ROWS.items()}


def listed(parameters): return [f"i{n}" for n in range(parameters["n"])]


def kinds_over(store):
    "Kinds whose effects are rows of the store they run on."
    kinds = JobKinds()

    @kinds.each("ingest", items=listed, slice_s=0.02)
    def ingest(job, item):
        time.sleep(job.parameters.get("item_s", 0))
        if job.parameters.get("bad") and int(item[1:]) % 10 == 3: raise ValueError(f"{item}: \u202e ä\n")
        job.once(item, lambda: leave(store, job.job_id, item))

    @kinds.steps("import", slice_s=0.02)
    def import_rows(job, cursor):
        job.once("table", lambda: leave(store, job.job_id, "table"))
        for n in range(cursor or 0, job.parameters["n"]):
            job.once(f"row {n}", lambda n=n: leave(store, job.job_id, f"row {n}"))
            time.sleep(0.005)
            yield n + 1

    return kinds


def jobs_over(store, **options):
    make_traces(store)
    return Jobs(store, kinds_over(store), lease_s=LEASE_S, **options)


@pytest.fixture
def opened(tmp_path, request):
    "Open an empty store of a kind; closed with the test."
    with ExitStack() as stack:
        def open_one(kind, name="a"):
            url = f"sqlite:///{tmp_path}/{name}.db" if kind == "sqlite" else request.getfixturevalue("postgres").fresh_url()
            return stack.enter_context(at(url))
        yield open_one


def break_off(jobs, kind, n, **parameters):
    "Run a job until it has done a part, then cancel it."
    job = jobs.start(kind, {"n": n} | parameters, flow_id=FLOW, session_id="s1")
    with jobs.runner(poll_s=0.02):
        until(lambda: jobs.get(job.job_id).processing.processed > n // 4 or len(effects(jobs._host_store, job.job_id)) > n // 4)
        jobs.cancel(job.job_id)
        assert ended(jobs, job).status == "cancelled"
    done = effects(jobs._host_store, job.job_id)
    assert n // 4 < len(done) < n
    return job, done


# -- everything is carried -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("way", ["sqlite to sqlite", "sqlite to postgres", "postgres to sqlite", "postgres to postgres"])
def test_jobs_go_on_in_the_new_place_with_every_item_once(opened, way):
    a, b = (opened(kind, name) for kind, name in zip(way.split(" to "), "ab"))
    jobs = jobs_over(a)
    ann = jobs.for_owner("ann")
    ann.delete(ann.start("ingest", {"n": 1}).job_id)   # so that numbers have a gap
    later = ann.start("ingest", {"n": 2, "ü": "\U0001f600"}, run_at=datetime.now(timezone.utc) + timedelta(hours=1), client_key="form 7")
    failed = ann.start("ingest", {"n": 300, "bad": True})
    with jobs.runner(poll_s=0.02): ended(jobs, failed)
    jobs.pin(failed.job_id)
    (cut, done), (rows, rows_done) = break_off(jobs, "ingest", N, item_s=0.002), break_off(jobs, "import", 120)
    waits = ann.start("ingest", {"n": 30})

    report = transfer_sessions(a, b)
    assert (report.jobs, held_by(b), [j.digest() for j in read_jobs(b)]) == (5, held_by(a), [j.digest() for j in read_jobs(a)])
    there = jobs_over(b)
    assert there.page().rows == jobs.page().rows and len(there.failures(failed.job_id)) == 30
    assert (there.record(failed.job_id), there.get(failed.job_id).is_pinned) == (jobs.record(failed.job_id), True)
    assert there.for_owner("ann").start("ingest", client_key="form 7") == there.get(later.job_id) == jobs.get(later.job_id)

    with there.runner(poll_s=0.02):
        assert ended(there, waits).status == "completed"   # nobody has to press anything
        for job in (cut, rows): there.resume(job.job_id)
        for job in (cut, rows): assert ended(there, job).status == "completed"
        assert sorted(done + effects(b, cut.job_id)) == sorted(f"i{n}" for n in range(N))
        assert sorted(rows_done + effects(b, rows.job_id)) == sorted(["table", *(f"row {n}" for n in range(120))])
        assert there.get(cut.job_id).processing.processed == N and there.get(later.job_id).status == "starting"
        again = there.retry_failed(failed.job_id)
        assert ended(there, again).processing.failed == 30   # the same items
        new = there.start("ingest", {"n": 1})
        assert ended(there, new).status == "completed" and there.page(limit=1).rows[0].job_id == new.job_id
    assert set(effects(a, waits.job_id)) == set()   # the old place has only been read


def test_a_queue_is_told_of_what_was_carried(opened, postgres):
    "Procrastinate's own rows stay behind: the watch of the new place tells its workers of every job that is due."
    a, b = opened("sqlite"), opened("postgres")
    jobs = jobs_over(a)
    cut, done = break_off(jobs, "ingest", N, item_s=0.002)
    waits = [jobs.start("ingest", {"n": 20}) for _ in range(5)]
    later = jobs.start("ingest", {"n": 1}, run_at=datetime.now(timezone.utc) + timedelta(seconds=3))
    transfer_sessions(a, b)
    there = jobs_over(b, engine="procrastinate")
    assert b.rows("SELECT count(*) FROM procrastinate_jobs") == [(0,)]
    with there.runner(poll_s=0.1):
        there.resume(cut.job_id)
        for job in (*waits, cut, later): assert ended(there, job).status == "completed"
    assert sorted(done + effects(b, cut.job_id)) == sorted(f"i{n}" for n in range(N))
    assert all(len(effects(b, job.job_id)) == 20 for job in waits) and there.get(later.job_id).started_at >= jobs.get(later.job_id).due_at
    c = opened("sqlite", "c")
    report = transfer_sessions(b, c)   # and back, where there is no queue
    assert report.jobs == 7 and held_by(c) == held_by(b)


# -- jobs that run ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_jobs_that_run_are_not_carried_until_they_rest(opened, kind):
    a, b = opened(kind), opened("sqlite", "b")
    jobs = jobs_over(a)
    a.create_session(FLOW, "s1")
    rests = jobs.start("ingest", {"n": 0})
    with jobs.runner(poll_s=0.02):
        ended(jobs, rests)
        job = jobs.start("ingest", {"n": N, "item_s": 0.01})
        until(lambda: len(effects(a)) > 20)
        with pytest.raises(StoreError) as error: transfer_sessions(a, b)
        assert f"1 of its jobs are running ({job.job_id})" in str(error.value) and "stop the programs" in str(error.value)
        assert b.session_exists(FLOW, "s1") and b.rows("SELECT count(*) FROM wfs_job") == [(0,)]
    done = effects(a, job.job_id)   # the app was stopped: it has handed the job over
    assert jobs.get(job.job_id).status == "interrupted" and transfer_sessions(a, b).jobs == 2
    there = jobs_over(b)
    with there.runner(poll_s=0.02): assert ended(there, job).status == "completed"
    assert sorted(done + effects(b)) == sorted(f"i{n}" for n in range(N))


def test_a_job_whose_program_was_killed_is_carried_when_its_lease_is_over(opened):
    a, b = opened("sqlite"), opened("sqlite", "b")
    jobs = jobs_over(a)
    job = jobs.start("ingest", {"n": 3})
    jobs.claim("a program that dies")
    with pytest.raises(StoreError, match="killed is free some seconds later"): transfer_sessions(a, b)
    time.sleep(LEASE_S)
    transfer_sessions(a, b)
    there = jobs_over(b)
    assert there.get(job.job_id).status == "interrupted" and held_by(a) == held_by(b)
    with there.runner(poll_s=0.02): assert ended(there, job).status == "completed"


def test_a_job_that_is_taken_in_the_middle_of_the_move_is_noticed(opened):
    a, b = opened("sqlite"), opened("sqlite", "b")
    jobs = jobs_over(a)
    for n in range(600): jobs.start("ingest", {"n": n})
    claims = []
    def take(what, n):
        if a.rows("SELECT count(*) FROM wfs_job")[0][0] and not claims: claims.append(jobs.claim("w"))
    with pytest.raises(StoreError, match="1 of its jobs are running"): transfer_sessions(a, b, progress=take)
    jobs.store.release(claims[0])
    assert transfer_sessions(a, b).jobs == 600 and held_by(a) == held_by(b)


# -- broken off, repeated ----------------------------------------------------------------------------------------------------

def fill(store, n=700):
    "Jobs with parts of every sort, by their rows."
    with store.transaction() as run:
        run.many("""INSERT INTO wfs_job(job_id, kind, owner, flow_id, session_id, client, status, phase, cursor, created_at, updated_at, ended_at)
            VALUES(?,'ingest','ann','ingest',?,?,'completed','processing','{"next": 1}',1,2,3)""", [(f"job {i}", f"s{i}", f"client {i}") for i in range(n)])
        run("INSERT INTO wfs_job_parameters(id, value) SELECT id, '{}' FROM wfs_job")
        run("INSERT INTO wfs_job_list(id, phase, number, items) SELECT id, 'processing', 0, '[1, 2]' FROM wfs_job")
        run("INSERT INTO wfs_job_failure(id, phase, number, item, reason) SELECT id, f.phase, f.number, '1', 'odd' FROM wfs_job, (SELECT 'processing' AS phase, 2 AS number UNION ALL "
            "SELECT 'committing', 1) AS f")
        run("INSERT INTO wfs_job_once(id, digest) SELECT id, job_id FROM wfs_job")


def test_a_move_may_end_at_any_statement(tmp_path, opened):
    a, broken = opened("sqlite"), 0
    fill(a)
    wanted = held_by(a)
    for n in range(1, 300):
        with closing(Fragile(tmp_path / f"{n}.db")) as b:
            b.left = n
            try: transfer_sessions(a, b)
            except KeyboardInterrupt: broken += 1
            else: break
            b.left = 10**9
            assert transfer_sessions(a, b).jobs == 700 and held_by(b) == wanted
    assert broken == n - 1 > 20


def test_what_has_changed_between_two_runs_is_copied_again_in_its_place(opened):
    a, b = opened("sqlite"), opened("postgres")
    fill(a, 20)
    for number in (4, 5): a.rows("UPDATE wfs_job SET message = '', updated_at = 2 WHERE id = ?", (number,))
    first = transfer_sessions(a, b)
    b.rows("UPDATE wfs_transfer SET finished_at = NULL")   # as if it had been broken off at its end
    a.rows("DELETE FROM wfs_job WHERE id = 3")
    a.rows("UPDATE wfs_job SET cursor = '{\"next\": 2}', updated_at = 9 WHERE id = 4")
    a.rows("DELETE FROM wfs_job_failure WHERE id = 5 AND number = 2")
    report = transfer_sessions(a, b)
    assert (report.jobs, first.jobs, report.jobs_digest == first.jobs_digest) == (19, 20, False)
    assert held_by(a) == held_by(b) and [row[0] for row in b.rows("SELECT id FROM wfs_job ORDER BY id")] == [n for n in range(1, 21) if n != 3]


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_what_the_new_place_has_done_is_not_replaced(opened, kind):
    a, b = opened("sqlite"), opened(kind, "b")
    jobs, there = jobs_over(a), jobs_over(b)
    job = jobs.start("ingest", {"n": 5})
    transfer_sessions(a, b)
    with there.runner(poll_s=0.02): ended(there, job)
    theirs = there.start("ingest", {"n": 6}, client_key="k")
    late = jobs.start("ingest", {"n": 7}, client_key="k")   # takes the number, and the key, that the new place has given to another
    before = held_by(b)
    with pytest.raises(StoreError, match="2 of its jobs differ") as error: transfer_sessions(a, b)
    assert job.job_id in str(error.value) and held_by(b) == before
    jobs.delete(late.job_id)
    assert there.get(theirs.job_id) == theirs and there.get(job.job_id).status == "completed"


def test_a_target_with_jobs_is_refused(opened):
    a, b = opened("sqlite"), opened("sqlite", "b")
    jobs_over(b).start("ingest", {"n": 1})
    with pytest.raises(InvalidInput, match="holds jobs already"): transfer_sessions(a, b)


def test_a_damaged_job_is_named(opened):
    a, b = opened("sqlite"), opened("postgres")
    fill(a, 5)
    a.rows("UPDATE wfs_job_failure SET reason = x'00ff' WHERE id = 4")
    with pytest.raises(StoreError, match="'job 3' is damaged"): transfer_sessions(a, b)
    a.rows("DELETE FROM wfs_job WHERE id = 4")
    assert transfer_sessions(a, b).jobs == 4


def test_memory_does_not_grow_with_a_job(opened):
    a, b = opened("sqlite"), opened("sqlite", "b")
    fill(a, 1)
    with a.transaction() as run:
        for n in range(1, 80): run("INSERT INTO wfs_job_list(id, phase, number, items) VALUES(1,'processing',?,?)", (n, json.dumps(["x" * 499_000])))
        run.many("INSERT INTO wfs_job_once(id, digest) VALUES(1,?)", [(f"{n:064}",) for n in range(100_000)])
    tracemalloc.start()
    try:
        transfer_sessions(a, b)
        assert tracemalloc.get_traced_memory()[1] < 30_000_000   # of 40,000,000 in lists, and as much in keys
    finally: tracemalloc.stop()
    assert held_by(a) == held_by(b)


def test_the_command_says_what_it_has_moved_and_why_it_cannot(tmp_path, opened):
    a = opened("sqlite")
    jobs = jobs_over(a)
    job = jobs.start("ingest", {"n": 1})
    claim = jobs.claim("w")
    a.rows("UPDATE wfs_job SET due_at = due_at + 3600000000")
    code, out, err = run("migrate", "sqlite:///a.db", "sqlite:///b.db", cwd=tmp_path)
    assert code == 1 and job.job_id in err and "stop the programs that run jobs" in err and err.count("\n") == 1
    jobs.store.release(claim)
    code, out, err = run("migrate", "sqlite:///a.db", "sqlite:///b.db", cwd=tmp_path)
    assert (code, err) == (0, "") and "; 1 job, digest " in out
    found = json.loads(run("migrate", "sqlite:///a.db", "sqlite:///b.db", "--json", cwd=tmp_path)[1])
    assert found["jobs"] == 1 and found["jobs_digest"] in out
    said = json.loads(run("doctor", "--store", "sqlite:///b.db", "--json", cwd=tmp_path)[1])
    assert [f["text"] for f in said if f["check"] == "jobs"] == ["1 interrupted; runners: 0"]
