"""What the tests of local workers share: an engine of their own, sessions in it, and a look at the processes from outside."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from uuid import uuid4

import warm_fault_apps
from cjm_workflow_sessions.stores.base import open_store
from cjm_workflow_sessions.stores.warm_port import warm_store
from cjm_workflow_sessions.warm.apps import AppSpec, find
from cjm_workflow_sessions.warm.engine import ConnectionLost
from cjm_workflow_sessions.warm.local import LocalEngine

MARK = "WARM_TEST" # In the environment of all processes of one test


def until(found, timeout_s=20.0):
    "Wait for something that is true, and give it."
    deadline = time.monotonic() + timeout_s
    while not (value := found()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)
    return value


def lines(path): return Path(path).read_text().splitlines() if Path(path).exists() else []


def cpu_s(pids):
    "Seconds of processor time that processes have used."
    ticks = 0
    for pid in pids:
        parts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(parts[11]) + int(parts[12])
    return ticks / os.sysconf("SC_CLK_TCK")


class Bench:
    "An engine over a store, and all that a test does with it."
    def __init__(self, url, *, leave_s=60.0):
        self.url, self.leave_s, self.mark = url, leave_s, uuid4().hex
        os.environ[MARK] = self.mark   # this process's own environment, as the kernel shows it, stays as it was
        self.open()

    def open(self):
        self.store = open_store(self.url)
        self.rows, self.engine = warm_store(self.store), LocalEngine(self.store, leave_s=self.leave_s)

    def start(self, app="traced", *, timeout_s=60, init=None, spec=None):
        spec = spec or find(app)
        row = self.rows.insert(f"sess_{uuid4().hex}", "", spec.name, spec.version, timeout_s, self.engine.host_id, start_us=120_000_000)
        return self.engine.start(spec, row, init)

    def connect(self, row): return self.engine.connect(row)

    def call(self, row, function="run", input=None, **options):
        connection = self.connect(row)
        try: return connection.call(os.urandom(16), function, {} if input is None else input, **options)
        finally: connection.close()

    @property
    def host_pid(self): return self.engine.host.ask("pid")

    def state(self, row): return self.rows.get(row.id).state

    def processes(self):
        "Who is alive of all that this test has begun."
        wanted, tracker = f"{MARK}={self.mark}".encode(), b"multiprocessing.resource_tracker"   # which belongs to this process for good
        found = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == os.getpid(): continue
            with contextlib.suppress(OSError):
                if wanted not in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"): continue
                if tracker not in Path(f"/proc/{entry}/cmdline").read_bytes(): found.append(int(entry))
        return found

    def program(self, code, *args):
        "Another program on the same store: `bench` is one of these in it."
        head = f"import sys; sys.path[:0] = {[str(Path(__file__).parent)]!r}\nfrom warm_support import *\nbench = Bench({self.url!r})\n"
        env = os.environ | {MARK: self.mark}
        return subprocess.Popen([sys.executable, "-c", head + f"os.environ[MARK] = bench.mark = {self.mark!r}\n" + textwrap.dedent(code), *map(str, args)],
                                stdout=subprocess.PIPE, text=True, env=env, start_new_session=True)

    def close(self):
        "End all, and see that nothing is left."
        try:
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError): os.kill(pid, signal.SIGCONT)
            self.engine.stop()
            until(lambda: not self.processes(), 10)
            self.store.close()
        finally:
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError): os.kill(pid, signal.SIGKILL)
            shutil.rmtree(self.engine.place.path, ignore_errors=True)   # a host that was killed leaves its folder
            os.environ.pop(MARK, None)
