"""Several at once: reads beside a writer, and writers of one session, where nothing may be lost and nothing seen by halves."""

import sqlite3, time
from itertools import count, cycle
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

from cjm_workflow_sessions.errors import StoreError
from cjm_workflow_sessions.stores.sqlite import SQLiteSessionStore
from cjm_workflow_state.state_store import SQLiteWorkflowStateStore
from common import FLOW, SMALL, Budget, Result, Table, run, small_change, state_of

STORES = {"ours": SQLiteSessionStore, "cjm-workflow-state": SQLiteWorkflowStateStore}
READERS, SECONDS, ROUNDS, SESSIONS = 4, 8.0, 5, 200
WRITERS, MERGES = 2, 300

# -- one writer, four readers -------------------------------------------------------------------------------------------------

def work(
    name: str, # Of `STORES`
    path: Path, # File with sessions s0 … s199
    part: int, # 0 writes small changes, each other one reads whole states, beginning elsewhere
    start: Any, # Barrier of all
    done: Any, # Queue that takes (part, how often, how often in vain)
) -> None:
    "Read or write as fast as it goes, in a process of its own."
    store, n, failed = STORES[name](path), 0, 0
    turn, change = cycle(f"s{(part * 50 + i) % SESSIONS}" for i in range(SESSIONS)), count(SMALL)
    def once() -> Any: return store.get_state(FLOW, next(turn)) if part else store.update_state(FLOW, next(turn), small_change(next(change)))
    start.wait()
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        try: once()
        except (sqlite3.OperationalError, StoreError): failed += 1   # "database is locked", after 5 s of waiting
        else: n += 1
    done.put((part, n, failed))

def beside_a_writer(
    name: str, # Of `STORES`
    path: Path, # File with the sessions
) -> tuple[float, float, int]: # Reads and writes a second, and operations that failed
    "Run one writer and the readers."
    processes = get_context("spawn")
    start, done = processes.Barrier(READERS + 1), processes.Queue()
    parts = [processes.Process(target=work, args=(name, path, part, start, done)) for part in range(READERS + 1)]
    for p in parts: p.start()
    counts = {part: rest for part, *rest in (done.get(timeout=SECONDS + 60) for _ in parts)}
    for p in parts: p.join()
    return sum(n for part, (n, _) in counts.items() if part) / SECONDS, counts[0][0] / SECONDS, sum(failed for _, failed in counts.values())

# -- two writers, one session ---------------------------------------------------------------------------------------------------

def merge(name: str, path: Path, writer: int, start: Any, done: Any) -> None:
    "Add keys to the one session; two of them always together, with the same number. Gives how many updates were acknowledged."
    store, n = STORES[name](path), 0
    start.wait()
    for i in range(MERGES):
        try: store.update_state(FLOW, "one", {f"w{writer}-{i}": i, f"left-{writer}": i, f"right-{writer}": i})
        except (sqlite3.OperationalError, StoreError): continue
        n += 1
    done.put(n)

def lost_and_torn(
    name: str, # Of `STORES`
    path: Path, # A file that is not there
) -> tuple[int, int, int, int]: # Updates acknowledged and lost, updates refused, states read with one of two keys written together, states read
    "Merge into one session from two processes and read it meanwhile."
    store, processes = STORES[name](path), get_context("spawn")
    store.create_session(FLOW, "one")
    start, done = processes.Barrier(WRITERS + 1), processes.Queue()
    writers = [processes.Process(target=merge, args=(name, path, w, start, done)) for w in range(WRITERS)]
    for w in writers: w.start()
    start.wait()
    torn = reads = 0
    while any(w.is_alive() for w in writers):
        try: state = store.get_state(FLOW, "one")
        except (sqlite3.OperationalError, StoreError): continue
        torn += any(state.get(f"left-{w}") != state.get(f"right-{w}") for w in range(WRITERS))
        reads += 1
    acknowledged = sum(done.get(timeout=60) for _ in writers)
    kept = sum(key.startswith("w") for key in store.get_state(FLOW, "one"))
    return max(acknowledged - kept, 0), WRITERS * MERGES - acknowledged, torn, reads

def measure(folder: Path) -> Result:
    "Read beside a writer, then write one session from two processes."
    result, runs = Result("Several at once"), {name: [] for name in STORES}
    for name, kind in STORES.items():
        store = kind(folder / f"{name}.db")
        for i in range(SESSIONS):
            store.create_session(FLOW, f"s{i}")
            store.update_state(FLOW, f"s{i}", state_of(2, i))
    for n in range(ROUNDS):
        for name in list(STORES)[::1 if n % 2 else -1]: runs[name].append(beside_a_writer(name, folder / f"{name}.db"))
    ratio = median(ours[0] / theirs[0] for ours, theirs in zip(*runs.values()))
    result.budgets.append(Budget("reads beside a writer", ratio, 100, at_least=True, how=f"states of 2 KB a second, {READERS} readers, of cjm-workflow-state"))
    rows = [[name, *(", ".join(f"{r[k]:,.0f}" for r in rates) for k in range(3))] for name, rates in runs.items()]
    result.tables.append(Table(f"One writer and {READERS} readers, a process each, {ROUNDS} runs", ["", "reads a second", "writes a second", "failed"], rows))
    found = {name: [lost_and_torn(name, folder / f"{name}-{n}.db") for n in range(3)] for name in STORES}
    how = f"{WRITERS} processes × {MERGES} merges into one session, three times"
    result.budgets += [Budget(what, sum(run[k] for run in found["ours"]), 0, "", how=how) for what, k in (("lost updates", 0), ("torn states", 2))]
    rows = [[name, *(", ".join(f"{run[k]:,}" for run in tried) for k in range(4))] for name, tried in found.items()]
    result.tables.append(Table(how, ["", "updates lost without an error", "updates refused", "torn states read", "states read"], rows))
    return result

if __name__ == "__main__": run(measure)
