"""Warm workers: a call beside a bare pipe, the start of sessions, one that nobody uses, and its end."""

import multiprocessing, os, statistics, threading, time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import warm_apps # noqa: F401
from cjm_workflow_sessions import open_store, warm
from cjm_workflow_sessions.warm.local import LocalEngine
from common import Budget, Result, Table, micro, milli, run, take_turns

IDLE, IDLE_S = 10, 5 # Workers that nobody calls, and for how long they are watched

def echo(pipe: Connection) -> None:
    "Send back what comes, until it is empty."
    while body := pipe.recv_bytes(): pipe.send_bytes(body)

class RawPipe:
    "The least that a call to another process costs: bytes there and back over a pipe of `multiprocessing`."
    def __init__(self, size: int):
        self.body, (self.ours, theirs) = b"x" * size, multiprocessing.Pipe()
        self.process = multiprocessing.get_context("spawn").Process(target=echo, args=(theirs,), daemon=True)
        self.process.start()

    def __call__(self) -> None:
        self.ours.send_bytes(self.body)
        assert len(self.ours.recv_bytes()) == len(self.body)

    def close(self) -> None:
        self.ours.send_bytes(b"")
        self.process.join()

def calls(client: warm.WarmClient, result: Result) -> None:
    "Call one worker beside a bare pipe."
    rows = []
    with client.session("echo") as session:
        for name, size, rounds, repeat in (("1 KB", 1024, 40, 100), ("1 MB", 1 << 20, 20, 5)):
            value, raw = {"text": "x" * size}, RawPipe(size)
            task = {"app": "echo", "input": value, "session": session.id}
            times = take_turns({"call": lambda: session.call("run", value), "task": lambda: client.run(task), "raw": raw}, rounds, repeat)
            raw.close()
            rows += [[name, *(micro(times.median(which)) for which in ("raw", "call", "task"))]]
            if size == 1024:
                for which, title in (("call", "warm call of 1 KB"), ("task", "warm call of 1 KB as a task")):
                    result.budgets.append(Budget(title, times.ratio(which, "raw"), 2, how="time of the same bytes over a multiprocessing pipe"))
    result.tables.append(Table("Microseconds for one call", ["", "bare pipe", "session.call", "client.run"], rows))

def starts(client: warm.WarmClient, engine: LocalEngine, result: Result) -> None:
    "Start sessions one after the other and all at once."
    def one() -> float:
        began = time.perf_counter()
        client.run({"app": "echo", "input": 1, "session": "new"})
        return time.perf_counter() - began
    each = [one() for _ in range(30)]
    result.budgets.append(Budget("start of a session", statistics.median(each) * 1e3, 50, "ms", how="with its first answer, median of 30"))
    threads = [threading.Thread(target=one) for _ in range(50)]
    began = time.perf_counter()
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    result.budgets.append(Budget("50 sessions started", time.perf_counter() - began, 2, "s", how="with their first answers, one thread each"))
    memory = statistics.median(row.memory_bytes or 0 for row in engine.rows.page(states=("active",)))
    result.tables.append(Table("A session", ["", ""], [["start, median", f"{milli(statistics.median(each))} ms"], ["start, slowest of 30", f"{milli(max(each))} ms"],
        ["memory that a worker has for itself", f"{memory / 2**20:.1f} MB"]]))

def family(pid: int) -> list[int]: # With the process itself
    "List a process and all that it has started."
    with suppress(OSError):
        children = [int(n) for task in Path(f"/proc/{pid}/task").iterdir() for n in (task / "children").read_text().split()]
        return [pid, *(p for child in children for p in family(child))]
    return []

def cpu_s(pids: list[int]) -> float:
    "Say how much processor time processes have used."
    parts = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(p[11]) + int(p[12]) for p in parts) / os.sysconf("SC_CLK_TCK")

def idle(client: warm.WarmClient, engine: LocalEngine, result: Result) -> None:
    "Watch workers that nobody calls, and their host."
    for _ in range(IDLE): client.run({"app": "echo", "input": 1, "session": "new"})
    time.sleep(2)   # what is still to be written
    pids = family(engine.host.ask("pid"))
    before = cpu_s(pids)
    time.sleep(IDLE_S)
    result.budgets.append(Budget("idle workers and their host", cpu_s(pids) - before, 0.05, "s", how=f"processor time of {len(pids)} processes in {IDLE_S} s"))

def expiry(client: warm.WarmClient, engine: LocalEngine, result: Result) -> None:
    "See how late sessions expire."
    rows = [engine.rows.get(client.run({"app": "echo", "input": 1, "session": "new", "session_timeout": 1})["session_id"]) for _ in range(20)]
    time.sleep(1.5)
    ended = [engine.rows.get(row.id) for row in rows]
    assert all(row.state == "expired" for row in ended)
    late = [(row.ended_at - (row.last_call_at or row.started_at) - 1_000_000) / 1000 for row in ended]
    result.budgets.append(Budget("expiry of a session", max(0.0, statistics.median(late)), 50, "ms", how=f"after its time, until that is written; median of {len(late)}"))

def measure(folder: Path) -> Result:
    "Measure the local engine over SQLite."
    result, store = Result("Warm workers"), open_store(f"sqlite:///{folder}/warm.db")
    client, engine = warm.client(store), LocalEngine(store)
    def fresh(part: Callable[[], None]) -> None:
        part()
        engine.stop()
        while os.path.exists(engine.place.path): time.sleep(0.01)
        client.run({"app": "echo", "input": 1})   # the host and what workers are made from are there before the next part begins
    try:
        client.run({"app": "echo", "input": 1})
        for part in (lambda: calls(client, result), lambda: starts(client, engine, result), lambda: idle(client, engine, result), lambda: expiry(client, engine, result)): fresh(part)
    finally: engine.stop()
    return result

if __name__ == "__main__": run(measure)
