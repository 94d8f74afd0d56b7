"""Jobs on many machines: workers in processes of their own over one PostgreSQL server, killed, frozen, cut off. OUTAGE_S=40 makes the long outage as long as it sounds."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from procrastinate.schema import SchemaManager

from cjm_workflow_sessions.errors import StoreError
from cjm_workflow_sessions.jobs.forms import DONE
from cjm_workflow_sessions.jobs.kinds import JobKinds
from cjm_workflow_sessions.jobs.service import Jobs
from cjm_workflow_sessions.stores.job_queue import JobQueue
from cjm_workflow_sessions.stores.postgres import PostgresSessionStore
from cjm_workflow_sessions.stores.queue_schema import prepare_queue, queue_changes, queue_functions
from postgres_support import throwaway
from queue_app import LEASE_S, PATIENCE_S, kinds
from store_support import in_threads
from support import Server

HERE = Path(__file__).parent
OUTAGE_S = float(os.environ.get("OUTAGE_S", "5"))
ACTIVE = ("starting", "processing", "committing", "interrupted")
COMMAND = [sys.executable, "-c", "import sys; from cjm_workflow_sessions.cli import main; sys.exit(main())", "worker", "queue_app:jobs"]


@pytest.fixture(scope="module")
def server():
    "A PostgreSQL server that these tests may stop."
    with throwaway() as cluster: yield cluster


class Farm:
    "A store, its jobs, and workers that can be killed."
    def __init__(self, url, folder, *, make=True):
        self.log, self.said = folder / "log", folder / "said"
        self.log.touch()
        self.env = {"STORE": url, "LOG": str(self.log)}
        self.store = PostgresSessionStore(url)
        if make: self.store.rows("CREATE TABLE effect(job_id TEXT NOT NULL, item BIGINT NOT NULL)")
        self.jobs = Jobs(self.store, kinds, engine="procrastinate", lease_s=LEASE_S)
        self.workers = {}

    def worker(self, *options, wait=True):
        "Start a worker; gives its process id."
        with open(self.said, "ab") as said:
            process = subprocess.Popen([*COMMAND, *options], cwd=HERE, env=os.environ | self.env, stdout=said, stderr=said, start_new_session=True)
        self.workers[process.pid] = process
        if wait: until(lambda: any(f":{process.pid}:" in name for name, _ in self.jobs.runners()), self.said)
        return process.pid

    def end(self, pid, how=signal.SIGKILL):
        "End a worker; gives how long it took, and its exit code."
        began = time.monotonic()
        os.kill(pid, how)
        code = self.workers.pop(pid).wait(30)
        return time.monotonic() - began, code

    def lines(self, job=None):
        "What the kinds have noted: (time, process id, job id, …)."
        rows = [(float(at), int(pid), *rest) for at, pid, *rest in map(str.split, self.log.read_text().splitlines())]
        return [row for row in rows if job is None or job.job_id in row]

    def at_work(self, job, after=0, but=()):
        "Wait until a job has done more than `after` items in a process other than `but`; gives that process, and when it began."
        def found():
            rows = [row for row in self.lines(job) if row[1] not in but]
            return rows if len(rows) > after else None
        rows = until(found, self.said)
        return rows[-1][1], rows[0][0]

    def finished(self, *jobs, within_s=60):
        "Wait until nothing waits or runs."
        def over():
            found = self.jobs.many([job.job_id for job in jobs])
            return all(job.status not in ACTIVE for job in found.values()) and found
        return list(until(over, self.said, within_s).values())

    def check(self, *jobs, redone=60):
        "Assert that every job is complete, every effect there once, and no more than some slices of other work were done again."
        for job in self.finished(*jobs):
            n = job.parameters["n"]
            assert (job.status, job.processing.processed, job.processing.failed) == ("completed", n, 0), (job, self.said.read_text()[-3000:])
            effects = [item for (item,) in self.store.rows("SELECT item FROM effect WHERE job_id = ? ORDER BY item", (job.job_id,))]
            assert effects == list(range(n))
            done = Counter(row[3] for row in self.lines(job))
            assert len(done) == n and sum(done.values()) <= n + redone

    def queue(self): return self.store.rows("SELECT status::text, args->>'job_id' FROM procrastinate_jobs ORDER BY id")

    def close(self):
        for process in self.workers.values():
            with contextlib.suppress(ProcessLookupError): os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
        self.store.close()


@pytest.fixture
def farm(server, tmp_path):
    farm = Farm(server.fresh_url(), tmp_path)
    yield farm
    farm.close()


def until(found, said=None, within_s=30):
    "Wait for something, and give it."
    deadline = time.monotonic() + within_s
    while not (it := found()):
        assert time.monotonic() < deadline, said.read_text()[-3000:] if said else "it did not happen"
        time.sleep(0.01)
    return it


def ingest(farm, n=150): return farm.jobs.start("ingest", {"n": n})


# -- one that goes ---------------------------------------------------------------------------------------------------------

def test_a_killed_worker_is_taken_over_from(farm):
    farm.worker(), farm.worker()
    job = ingest(farm)
    assert farm.at_work(job)[1] - job.created_at / 1e6 < 0.5
    first, _ = farm.at_work(job, 50)
    killed = time.time()
    farm.end(first)
    _, began = farm.at_work(job, but={first})
    assert LEASE_S - 0.5 < began - killed < LEASE_S + 1
    farm.check(job, redone=25)
    until(lambda: not farm.queue())


def test_a_worker_ended_in_order_hands_over(farm):
    farm.worker(), farm.worker()
    job = ingest(farm)
    first, _ = farm.at_work(job, 30)
    told = time.time()
    took, code = farm.end(first, signal.SIGTERM)
    _, began = farm.at_work(job, but={first})
    assert code == 0 and took < 2 and began - told < 1
    farm.check(job, redone=0)
    assert farm.jobs.get(job.job_id).attempts <= 1


def test_a_frozen_worker_that_wakes_up_changes_nothing(farm):
    pids, job = {farm.worker(), farm.worker()}, ingest(farm, 200)
    first, _ = farm.at_work(job, 50)
    (second,) = pids - {first}
    os.kill(first, signal.SIGSTOP)
    farm.at_work(job, 20, but={first})
    before, theirs = farm.jobs.get(job.job_id), len(farm.lines(job))
    os.kill(first, signal.SIGCONT)
    farm.at_work(job, 40, but={first})
    now = farm.jobs.get(job.job_id)
    assert (now.epoch, now.worker) == (before.epoch, before.worker) and f":{second}:" in now.worker
    assert [(status, found) for status, found in farm.queue()] == [("doing", job.job_id)]   # the row of the one that took over
    assert sum(row[1] == first for row in farm.lines(job)[theirs:]) <= 21   # a slice, none of which counts
    farm.end(second)   # and the first, awake, takes over again
    farm.check(job, redone=80)
    assert farm.lines(job)[-1][1] == first


def test_a_worker_frozen_in_a_transaction_does_not_keep_its_locks(farm):
    first = farm.worker()
    job = farm.jobs.start("frozen")
    until(lambda: _is_stopped(first), farm.said)
    second, other, stopped = farm.worker(), ingest(farm, 5), time.time()
    farm.check(other)   # nobody waits with it
    assert farm.finished(job)[0].status == "completed" and time.time() - stopped < LEASE_S + PATIENCE_S + 1
    os.kill(first, signal.SIGCONT)
    until(lambda: "is left to others" in farm.said.read_text() or "job " + job.job_id[:8] + ": lost" in farm.said.read_text(), farm.said)
    assert farm.store.rows("SELECT item FROM effect WHERE job_id = ?", (job.job_id,)) == [(1,)]
    assert farm.end(first, signal.SIGTERM)[1] == farm.end(second, signal.SIGTERM)[1] == 0


def _is_stopped(pid): return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_a_step_longer_than_the_lease_is_not_taken_over(farm):
    farm.worker(), farm.worker()
    job = farm.jobs.start("slow", {"seconds": 1.5 * LEASE_S})
    assert farm.finished(job)[0].status == "completed"
    assert (len(farm.lines(job)), farm.jobs.get(job.job_id).epoch) == (1, 2)


# -- the database goes -----------------------------------------------------------------------------------------------------

def test_the_server_is_restarted(farm, server):
    farm.worker(), farm.worker()
    jobs = [ingest(farm, 200) for _ in range(3)]
    farm.at_work(jobs[0], 20)
    server.restart("immediate")
    farm.check(*jobs)
    late = ingest(farm, 5)
    farm.check(late)
    assert farm.lines(late)[0][0] - late.created_at / 1e6 < 1   # they listen again


def test_the_server_is_away(farm, server):
    first, second = farm.worker(), farm.worker()
    jobs = [ingest(farm, 200) for _ in range(3)]
    farm.at_work(jobs[0], 20)
    server.stop("immediate")
    time.sleep(OUTAGE_S)
    server.start()
    back = time.time()
    assert farm.jobs.get(jobs[0].job_id).status in ACTIVE
    until(lambda: any(row[0] > back for row in farm.lines()), farm.said, 5)
    farm.check(*jobs)
    assert all(process.poll() is None for process in farm.workers.values())
    farm.check(ingest(farm, 5))
    farm.end(first), farm.end(second)
    assert "Traceback" not in farm.said.read_text()


# -- jobs that are trouble -------------------------------------------------------------------------------------------------

def test_a_job_that_ends_programs_is_given_up(farm):
    job, deaths = farm.jobs.start("poison"), 0
    other = ingest(farm, 5)
    while farm.jobs.get(job.job_id).status != "error":
        pid = farm.worker("--threads", "1", wait=False)
        until(lambda: farm.workers[pid].poll() is not None or farm.jobs.get(job.job_id).status == "error", farm.said)
        deaths += farm.workers[pid].poll() == 9
    found = farm.jobs.get(job.job_id)
    # After the first death it goes one item at a time, so the one that ends programs is named.
    assert deaths == 3 and "2 attempts at '3'" in found.message
    farm.check(other)


def test_an_error_of_the_moment_is_tried_again_after_its_pause(farm):
    farm.worker()
    job = farm.jobs.start("flaky")
    until(lambda: farm.jobs.get(job.job_id).message == "OSError: busy")
    assert farm.finished(job)[0].status == "completed"
    first, second = (row[0] for row in farm.lines(job))
    assert 1.9 < second - first < 3.5


def test_limits_hold_over_all_workers(farm):
    for _ in range(3): farm.worker("--threads", "3")
    owners = ["ann"] * 12 + ["bob"] * 4 + ["eve"] * 4
    jobs = [farm.jobs.for_owner(owner).start("alone") for owner in owners]
    assert {job.status for job in farm.finished(*jobs)} == {"completed"}
    running, most = {}, 0
    for _, _, what, job_id, owner in sorted(row for row in farm.lines() if row[2] in ("begin", "end")):
        if what == "end": del running[job_id]
        else:
            assert owner not in running.values()
            running[job_id] = owner
        most = max(most, len(running))
    assert most == 2


def test_who_is_refused_does_not_ask_again_and_again(farm):
    farm.worker("--threads", "3")
    long = farm.jobs.for_owner("ann").start("alone", {"steps": 10**6})
    until(lambda: farm.lines(long))
    refused = [farm.jobs.for_owner("ann").start("alone") for _ in range(5)]
    until(lambda: not [row for row in farm.queue() if row[0] == "todo"])
    time.sleep(1.5)   # three looks of the watch
    assert [job.epoch for job in farm.jobs.many([j.job_id for j in refused]).values()] == [0] * 5
    farm.jobs.cancel(long.job_id)
    assert {job.status for job in farm.finished(*refused)} == {"completed"}


# -- the queue ---------------------------------------------------------------------------------------------------------------

def test_a_job_and_its_row_are_one_commit(farm):
    with pytest.raises(KeyError), farm.store.transaction():
        ingest(farm)
        raise KeyError
    assert (farm.queue(), farm.jobs.page().rows) == ([], [])
    job = ingest(farm)
    assert farm.queue() == [("todo", job.job_id)]
    later = farm.jobs.start("ingest", {"n": 1}, run_at=datetime.now(UTC) + timedelta(seconds=1.5))
    farm.worker()
    farm.check(job, later)
    assert 0 <= farm.lines(later)[0][0] - later.due_at / 1e6 < 1.5


def test_a_row_that_is_lost_is_written_again(farm):
    "A worker fetches a row and is killed before it claims the job; a row is deleted by hand; jobs were started while another engine was named."
    fetched, deleted = ingest(farm, 3), ingest(farm, 3)
    (worker,) = farm.store.rows("SELECT procrastinate_register_worker_v1()")[0]
    assert farm.store.rows("SELECT (procrastinate_fetch_job_v2(NULL, ?)).args->>'job_id'", (worker,)) == [(fetched.job_id,)]
    farm.store.rows("DELETE FROM procrastinate_jobs WHERE queueing_lock = ?", (deleted.job_id,))
    other = Jobs(farm.store, kinds, lease_s=LEASE_S).start("ingest", {"n": 3})
    farm.worker()
    farm.check(deleted, other)
    farm.check(fetched)
    assert farm.lines(fetched)[0][0] - fetched.created_at / 1e6 > LEASE_S   # as long as that worker might have been at it
    until(lambda: not farm.queue())


def test_rows_that_tell_nothing_are_swept(farm):
    queue = JobQueue(farm.store)
    gone, cancelled, runs, waits, old = (ingest(farm) for _ in range(5))
    farm.jobs.delete(gone.job_id)
    farm.jobs.cancel(cancelled.job_id)
    claim = farm.jobs.claim("w", only=(runs.job_id, 0))
    (worker,) = farm.store.rows("SELECT procrastinate_register_worker_v1()")[0]
    farm.store.rows("UPDATE procrastinate_jobs SET status = 'doing', worker_id = ? WHERE queueing_lock = ?", (worker, runs.job_id))
    assert farm.jobs.requeue(old) and not farm.jobs.requeue(old)
    assert (claim.job.epoch, len(farm.queue())) == (1, 5)
    assert (queue.sweep(), queue.sweep()) == (2, 0)
    assert sorted(farm.queue()) == sorted([("doing", runs.job_id), ("todo", waits.job_id), ("todo", old.job_id)])
    farm.store.rows("DELETE FROM procrastinate_workers")
    assert (queue.sweep(), len(farm.queue())) == (1, 2)


# -- its tables --------------------------------------------------------------------------------------------------------------

def shape(store):
    "Tables, columns, indexes, functions and triggers of the queue, as far as a program can tell them apart."
    return [sorted(store.rows(query)) for query in (
        "SELECT table_name::text, column_name::text, data_type::text FROM information_schema.columns WHERE table_schema = current_schema() AND table_name LIKE 'procrastinate%'",
        "SELECT regexp_replace(indexdef, current_schema(), '', 'g') FROM pg_indexes WHERE schemaname = current_schema() AND tablename LIKE 'procrastinate%'",
        "SELECT proname::text, pg_get_function_identity_arguments(oid) FROM pg_proc WHERE pronamespace = current_schema()::regnamespace AND proname LIKE 'procrastinate%'",
        "SELECT tgname::text FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid WHERE c.relnamespace = current_schema()::regnamespace AND NOT tgisinternal AND tgname LIKE 'procrastinate%'")]


def test_older_tables_are_brought_up_to_date(server):
    fresh, old = PostgresSessionStore(server.fresh_url()), PostgresSessionStore(server.fresh_url())
    assert (prepare_queue(fresh), prepare_queue(fresh)) == (True, False)
    before = [file for file in queue_changes() if file.name < "03.02"]
    for file in before:
        with old.transaction() as run: run.connection.execute(file.read_text())
    with old.transaction() as run:
        run('CREATE TABLE wfs_queue_change(name TEXT COLLATE "C" PRIMARY KEY, applied_at BIGINT NOT NULL)')
        run("INSERT INTO wfs_queue_change VALUES(?, 0)", (before[-1].name,))
    assert shape(old) != shape(fresh)
    assert (prepare_queue(old), prepare_queue(old)) == (True, False)
    assert [len(part) for part in shape(old)] == [len(part) for part in shape(fresh)] and shape(old) == shape(fresh)
    with old.transaction() as run: run("INSERT INTO wfs_queue_change VALUES('99.00.00_01_later.sql', 0)")
    with pytest.raises(StoreError, match="newer Procrastinate"): prepare_queue(old)
    for store in (fresh, old): store.close()


def test_ten_that_make_the_tables_at_once_make_them_once(server):
    url = server.fresh_url()
    stores = [PostgresSessionStore(url, max_connections=1) for _ in range(10)]
    in_threads(*(lambda store=store: prepare_queue(store) for store in stores))
    assert stores[0].rows("SELECT name FROM wfs_queue_change") == [(queue_changes()[-1].name,)]
    for store in stores: store.close()


def test_tables_of_the_host_are_used_and_left_to_it(server):
    store = PostgresSessionStore(server.fresh_url())
    with store.transaction() as run: run.connection.execute(SchemaManager.get_schema())
    prepare_queue(store)
    assert not store.rows("SELECT 1 FROM pg_tables WHERE tablename = 'wfs_queue_change' AND schemaname = current_schema()")
    job = Jobs(store, kinds, engine="procrastinate").start("ingest", {"n": 1})
    assert store.rows("SELECT args->>'job_id' FROM procrastinate_jobs") == [(job.job_id,)]
    store.rows("DROP FUNCTION procrastinate_retry_job_v2")
    assert "procrastinate_retry_job_v2" in queue_functions()
    with pytest.raises(StoreError, match="without procrastinate_retry_job_v2"): prepare_queue(store)
    store.close()


def test_a_role_without_the_right_to_make_tables_runs_what_another_has_prepared(server, tmp_path):
    url = server.fresh_url()
    schema = url.rpartition("search_path%3D")[2].partition("%2C")[0]
    with server.admin() as db:
        db.execute("CREATE ROLE runner LOGIN")
        db.execute(f"GRANT USAGE ON SCHEMA {schema} TO runner")
    PostgresSessionStore(url).close()
    with pytest.raises(StoreError, match="GRANT"): Jobs(PostgresSessionStore(server.in_schema(schema, user="runner")), kinds, engine="procrastinate")
    env = os.environ | {"STORE": url, "LOG": str(tmp_path / "log")}
    done = subprocess.run([*COMMAND, "--prepare"], cwd=HERE, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "The tables are up to date.\n"), done.stderr
    with server.admin() as db:
        db.execute(f"CREATE TABLE {schema}.effect(job_id TEXT NOT NULL, item BIGINT NOT NULL)")
        db.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO runner")
        db.execute(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO runner")
    farm = Farm(server.in_schema(schema, user="runner"), tmp_path, make=False)
    try:
        farm.worker()
        farm.check(ingest(farm, 5))
        until(lambda: not farm.queue())
    finally: farm.close()


def test_ten_workers_start_together_on_an_empty_database(server, tmp_path):
    empty = server.fresh_url()
    (tmp_path / "log").touch()
    env = os.environ | {"STORE": empty, "LOG": str(tmp_path / "log")}
    with open(tmp_path / "said", "wb") as said:
        workers = [subprocess.Popen([*COMMAND, "--threads", "1"], cwd=HERE, env=env, stdout=said, stderr=said, start_new_session=True) for _ in range(10)]
    try:
        farm = until(lambda: _joined(empty, tmp_path), within_s=60)
        until(lambda: len(farm.jobs.runners()) == 10, farm.said, 60)
        jobs = [ingest(farm, 10) for _ in range(20)]
        farm.check(*jobs, redone=0)
        assert len({row[1] for row in farm.lines()}) > 3
        farm.close()
    finally:
        for process in workers:
            process.kill()
            process.wait(10)


def _joined(url, folder):
    try: return Farm(url, folder)
    except StoreError: return None


# -- where it runs -----------------------------------------------------------------------------------------------------------

def test_jobs_run_within_the_web_server(farm):
    "Two processes under uvicorn; one server is ended in order, another takes its jobs."
    with Server("queue_app:make_app", workers=2, **farm.env) as web, Server("queue_app:make_app", **farm.env) as other:
        until(lambda: len(farm.jobs.runners()) == 3)
        jobs = [ingest(farm, 100) for _ in range(6)]
        farm.at_work(jobs[0], 10)
        web.process.terminate()
        assert web.process.wait(20) is not None
        farm.check(*jobs, redone=0)
        assert other.answers() and len(farm.jobs.runners()) == 1


def test_engines_can_be_mixed(farm):
    "A worker that looks for itself takes what others are told of, and leaves them only rows that are out of date."
    farm.worker("--engine", "local")
    job = ingest(farm, 5)
    farm.check(job)
    assert farm.queue() == [("todo", job.job_id)]
    farm.worker("--engine", "procrastinate")
    until(lambda: not farm.queue())


# -- web servers as workers ------------------------------------------------------------------------------------------------

def group_of(web):
    "The processes of a web server."
    return set(map(int, subprocess.run(["pgrep", "-g", str(web.process.pid)], capture_output=True, text=True, check=False).stdout.split()))


def test_one_server_is_killed_the_other_frozen_and_then_killed_too(farm):
    with Server("queue_app:make_app", **farm.env) as one, Server("queue_app:make_app", **farm.env) as two, Server("queue_app:make_app", **farm.env) as three:
        webs = [one, two, three]
        until(lambda: len(farm.jobs.runners()) == 3)
        jobs = [ingest(farm, 300) for _ in range(6)]
        first, _ = farm.at_work(jobs[0], 50)
        web = next(w for w in webs if first in group_of(w))
        web.kill()
        webs.remove(web)
        until(lambda: {row[1] for row in farm.lines(jobs[0])} - {first}, within_s=LEASE_S + 5)
        second = farm.lines(jobs[0])[-1][1]
        frozen = next(w for w in webs if second in group_of(w))
        os.killpg(frozen.process.pid, signal.SIGSTOP)
        (last,) = [w for w in webs if w is not frozen]
        farm.at_work(jobs[0], 10, but={first, second})
        os.killpg(frozen.process.pid, signal.SIGCONT)
        last.kill()
        farm.check(*jobs, redone=120)
        until(lambda: not farm.queue())


def test_a_kind_that_is_gone_leaves_its_jobs_interrupted(farm):
    known, other = JobKinds(), JobKinds()
    known.kind("known")(lambda job, cursor: DONE)
    other.kind("gone")(lambda job, cursor: DONE)
    old, new = (Jobs(farm.store, k, engine="procrastinate", lease_s=LEASE_S) for k in (other, known))
    job = old.start("gone")
    with new.runner(unknown_after_s=0.5):
        found = until(lambda: (j := new.get(job.job_id)).due_at is None and j)
        assert found.status == "interrupted" and "knows jobs of the kind 'gone'" in found.message
    with old.runner(unknown_after_s=5):
        old.resume(job.job_id)
        until(lambda: old.get(job.job_id).status == "completed")
