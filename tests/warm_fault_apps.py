"""Apps that leave traces, for the tests of workers that are killed."""

import os
import signal
import subprocess
import sys
import time

from cjm_workflow_sessions.warm.apps import app


def trace(path, *words):
    "Add a line; one write, so that lines of several processes do not mix."
    with open(path, "ab", buffering=0) as file: file.write((" ".join(map(str, words)) + "\n").encode())


class Traced:
    def setup(self): self.count = 0

    def run(self, input):
        "Count, and leave a line at the beginning and at the end of the call."
        if path := input.get("path"): trace(path, "begin", input.get("mark", "-"))
        time.sleep(input.get("sleep_s", 0))
        self.count += 1
        if path: trace(path, "end", input.get("mark", "-"))
        return self.count

    def whoami(self): return {"pid": os.getpid(), "folder": os.getcwd(), "flag": os.environ.get("WARM_FLAG")}
    def say(self, input):
        print(input["text"] * input.get("times", 1))
        subprocess.run([sys.executable, "-c", "print('from a child')"])

    def parts(self, input):
        try:
            for n in range(input["n"]):
                time.sleep(input.get("sleep_s", 0))
                yield n
        finally:
            if path := input.get("path"): trace(path, "stopped")

    def helper(self, input):
        "Start a process that would outlive its worker, in the worker's group or in one of its own."
        return subprocess.Popen(["sleep", "600"], start_new_session=input["is_detached"]).pid

    def hold(self, input): # Nobody can interrupt it from Python
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        trace(input["path"], "begin")
        time.sleep(60)

    def stop(self): self.session.end()
    def wait_longer(self, input): self.session.set_timeout(input)
    def exit(self, input): os._exit(input)
    def large(self, input): return b"x" * input

    def close(self):
        if path := os.environ.get("WARM_CLOSED"): trace(path, "closed", self.session.id)


app("traced", timeout=60)(Traced)


@app("spawned", timeout=60, start="spawn")
class Spawned(Traced): ...


@app("stuck-in-setup", start_deadline=0.5)
class Stuck:
    def setup(self): time.sleep(60)
    def run(self, input): ...


@app("slow-to-close")
class SlowToClose:
    def run(self, input): ...
    def close(self): time.sleep(60)


@app("dies-in-setup")
class DiesInSetup:
    def setup(self): os._exit(7)
    def run(self, input): ...


@app("given")
class Given:
    def setup(self, init): self.init = init
    def run(self, input): return self.init
