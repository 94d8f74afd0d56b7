"""Durable jobs: what a checkpoint, a long job, a thousand short ones and a page of the list cost."""

import sqlite3, time
from itertools import count
from pathlib import Path
from typing import Any

from cjm_workflow_sessions.jobs.forms import DONE
from cjm_workflow_sessions.jobs.service import Jobs
from cjm_workflow_sessions.models import JobProgress
from cjm_workflow_sessions.stores.job_port import Allowance, Checkpoint, NewJob
from cjm_workflow_sessions.stores.sqlite import SQLiteSessionStore
from common import Budget, Result, Table, micro, milli, run, take_turns

LEASE_US = 10**9
ITEM_S, ITEMS = 0.01, 150 # Of a job, and of the same loop without one
MANY, STORED = 1_000, 10_000 # Jobs run one after the other; jobs among which a page is read

class RawCommit:
    "The least that a checkpoint has to do: its UPDATE in a transaction of its own, on one connection that stays open."
    UPDATE = """UPDATE wfs_job SET cursor = ?, processed = ?, total = ?, item = ?, failed = ?, stats = ?, message = ?, attempts = ?,
        due_at = CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000 + ?,
        updated_at = CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000, revision = revision + 1 WHERE id = ? AND epoch = ? RETURNING cancelling"""

    def __init__(self, path: Path, row_id: int, epoch: int):
        self.db, self.numbers, self.which = sqlite3.connect(path, isolation_level=None), count(), (row_id, epoch)
        self.db.execute("PRAGMA synchronous = NORMAL")

    def __call__(self) -> None:
        n = next(self.numbers)
        self.db.execute("BEGIN IMMEDIATE")
        assert self.db.execute(self.UPDATE, (f'{{"next": {n}, "end": 500}}', n, 500, f"photo-{n}.png", 0, '{"found": 3}', "", 1, LEASE_US, *self.which)).fetchall()
        self.db.execute("COMMIT")

def claimed(store: SQLiteSessionStore) -> Any: # A claim
    store.jobs.insert(NewJob("bench", '{"folder": "photos"}'), lambda run, job: None)
    return store.jobs.claim("bench", LEASE_US, [Allowance("bench")])

def checkpoints(folder: Path, result: Result) -> None:
    "Write checkpoints beside raw commits of the same row."
    stores = [SQLiteSessionStore(folder / name) for name in ("ours.db", "raw.db")]
    ours, raw = map(claimed, stores)
    rows, numbers = stores[0].jobs, count()
    def checkpoint() -> None:
        n = next(numbers)
        rows.save(ours, Checkpoint(f'{{"next": {n}, "end": 500}}', JobProgress(n, 500, f"photo-{n}.png"), '{"found": 3}', True), LEASE_US)
    times = take_turns({"ours": checkpoint, "raw": RawCommit(folder / "raw.db", raw.row_id, raw.job.epoch)}, 200, 20)
    result.budgets.append(Budget("job checkpoint", times.ratio("ours", "raw"), 2, how="time of the same UPDATE and commit in plain sqlite3"))
    result.tables.append(Table("Microseconds for one checkpoint", ["", "µs"], [["ours", micro(times.median("ours"))], ["plain sqlite3", micro(times.median("raw"))]]))

def long_job(folder: Path, result: Result) -> None:
    "Run a job of short waits beside the same waits in a loop."
    jobs = Jobs(SQLiteSessionStore(folder / "long.db"))
    jobs.each("long", items=lambda parameters: list(range(ITEMS)))(lambda item: time.sleep(ITEM_S))
    def loop() -> None:
        for _ in range(ITEMS): time.sleep(ITEM_S)
    def job() -> None: until_done(jobs, jobs.start("long").job_id)
    with jobs.runner(threads=1): times = take_turns({"job": job, "loop": loop}, 7)
    result.budgets.append(Budget("job of 10 ms items", max(0.0, times.ratio("job", "loop") - 1) * 100, 2, "%", how=f"added to {ITEMS} items in a plain loop, the start of the job included"))

def many_jobs(folder: Path, result: Result) -> None:
    "Queue and run many short jobs."
    jobs, seconds = Jobs(SQLiteSessionStore(folder / "many.db")), list[float]()
    jobs.kind("short")(lambda job, cursor: DONE)
    with jobs.runner(threads=2):
        for _ in range(3):
            began = time.perf_counter()
            started = [jobs.start("short").job_id for _ in range(MANY)]
            for job_id in reversed(started): until_done(jobs, job_id)
            seconds.append(time.perf_counter() - began)
    result.budgets.append(Budget(f"{MANY:,} jobs queued and run", min(seconds), 2, "s", how="two threads, the best of three"))

def lists(folder: Path, result: Result) -> None:
    "Read a page among many jobs."
    jobs = Jobs(SQLiteSessionStore(folder / "list.db"))
    jobs.kind("short")(lambda job, cursor: DONE)
    owners = [jobs.for_owner(f"user{n}") for n in range(10)]
    for n in range(STORED):
        job = owners[n % 10].start("short", {"directory": "/media/photos", "max_files": n})
        if n % 100:
            with jobs.store.edit(job.job_id) as held: held.set(status="completed", due_at=None, ended_at="now")
    ann = owners[3]
    times = take_turns({"page": lambda: ann.page(limit=50), "all": lambda: jobs.page(limit=50), "active": ann.active, "one": lambda: jobs.get(job.job_id)}, 100)
    result.budgets.append(Budget(f"list of 50 among {STORED:,} jobs", times.median("page") * 1e3, 2, "ms", how="of one owner, newest first"))
    result.tables.append(Table(f"Milliseconds among {STORED:,} jobs", ["", "ms"], [["page of 50 of one owner", milli(times.median("page"))], ["page of 50 of all", milli(times.median("all"))],
        ["the active job of one owner", milli(times.median("active"))], ["one job", milli(times.median("one"))]]))

def until_done(jobs: Jobs, job_id: str) -> None:
    while jobs.get(job_id).due_at is not None: time.sleep(0.002)

def measure(folder: Path) -> Result:
    "Measure jobs on SQLite, with write-ahead logging and synchronous = NORMAL."
    result = Result("Durable jobs")
    for part in (checkpoints, long_job, many_jobs, lists): part(folder, result)
    return result

if __name__ == "__main__": run(measure)
