"""Apps that warm workers run in the tests: the use cases that a session is kept for, and some that misbehave."""

import asyncio
import csv
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from cjm_workflow_sessions import warm
from support import BROWSER_ARGS


@warm.app("counter", timeout=30)
class Counter:
    "Keeps values, counts, and says who it is."
    def setup(self):
        self.values, self.calls, self.inside, self.order = {}, 0, 0, []

    def run(self, input):
        return getattr(self, input.get("action", "count"))(input)

    def init(self, input): return self.count(input)
    def count(self, input=None):
        self.calls += 1
        return {"calls": self.calls, "pid": os.getpid()}

    def set_value(self, input):
        self.values[input["key"]] = input["value"]
        return {"ok": True}

    def get_value(self, input): return {"value": self.values.get(input["key"])}
    def get_all(self, input): return {"values": dict(self.values)}
    def increment(self, input):
        self.values[input["key"]] = self.values.get(input["key"], 0) + input.get("by", 1)
        return {"value": self.values[input["key"]]}

    def process(self, input):
        "Say in which order calls came, and fail if two are here at once."
        self.inside += 1
        assert self.inside == 1, "two calls at once"
        time.sleep(input.get("sleep", 0))
        self.order.append(input["id"])
        self.inside -= 1
        return {"id": input["id"], "order": list(self.order)}

    def boom(self, input): raise KeyError(input.get("text", "no such thing"))
    def echo(self, input): return input
    def unpicklable(self, input): return lambda: None
    def note(self, input):
        "Leave a mark outside, so that a second run would be seen."
        with open(input["path"], "a") as file: file.write(f"{input.get('mark', 'x')}\n")
        if input.get("started"): Path(input["started"]).touch()
        time.sleep(input.get("sleep", 0))
        return {"pid": os.getpid()}

    def leave(self, input):
        "Answer, and end the session."
        self.session.end()
        return {"bye": True}

    def longer(self, input):
        self.session.set_timeout(input["seconds"])
        return {}

    def whose(self, input): return {"id": self.session.id, "owner": self.session.owner, "app": self.session.app}
    def parts(self, input):
        for number in range(input["number"]):
            time.sleep(input.get("sleep", 0))
            yield number

    def say(self, input):
        print(input["text"])
        print(input["text"].upper(), file=sys.stderr)
        return {}

    def close(self):
        if path := self.values.get("closing"): Path(path).write_text("closed")


@warm.app("counter-2", version="2", max_sessions=2)
class Second(Counter):
    "Another version of another name, of which there may be two."


@warm.app("repeatable", idempotent=True)
class Repeatable(Counter):
    "An app whose calls may run twice."


@warm.app("async-counter")
class AsyncCounter:
    async def setup(self): self.loop, self.calls = asyncio.get_running_loop(), 0
    async def run(self, input):
        assert asyncio.get_running_loop() is self.loop, "another event loop than in setup"
        await asyncio.sleep(input.get("sleep", 0))
        self.calls += 1
        return {"calls": self.calls}

    async def parts(self, input):
        for number in range(input["number"]):
            await asyncio.sleep(0)
            yield number

    async def close(self): pass


@warm.app("broken")
class Broken:
    def setup(self): raise RuntimeError("the disk is on fire")
    def run(self, input): return input


@warm.app("stuck", start_deadline=0.5)
class Stuck:
    def setup(self): time.sleep(20)
    def run(self, input): return input


@warm.app("ml-inference", timeout=60)
class Model:
    "A model that is slow to load and quick to ask."
    model = None
    def run(self, input): return getattr(self, input["action"])(input)
    def load_model(self, input):
        time.sleep(0.5)
        self.model = {"name": input["model"], "weights": list(range(1000))}
        return {"model": id(self.model)}

    def predict(self, input): return {"model": id(self.model), "label": f"{self.model['name']}: {sum(map(ord, input['data'])) % 7}"}


@warm.app("chat-with-memory", timeout=60)
class Chat:
    def run(self, input):
        if input.get("action") == "init":
            self.told = [input["system"]]
            return {"ready": True}
        self.told.append(input["message"])
        return {"response": f"{len(self.told) - 1}. you said before: {self.told[1:-1]}"}


@warm.app("data-processor", timeout=60)
class Data:
    def run(self, input):
        if input["action"] == "load":
            self.reads = getattr(self, "reads", 0) + 1
            with open(input["dataset"], newline="") as file: self.values = [float(row["value"]) for row in csv.DictReader(file)]
            return {"rows": len(self.values)}
        return {"reads": self.reads, "result": getattr(self, input["type"])()}

    def summary(self): return {"mean": statistics.fmean(self.values), "rows": len(self.values)}
    def correlations(self): return round(statistics.correlation(self.values, range(len(self.values))), 3)
    def outliers(self): return [v for v in self.values if abs(v - statistics.fmean(self.values)) > 3 * statistics.pstdev(self.values)]
    def trends(self): return "up" if self.values[-1] > self.values[0] else "down"


@warm.app("browser-automation", timeout=60)
class Browser:
    "One page of a real browser, kept between calls."
    def setup(self):
        from playwright.sync_api import sync_playwright
        self.playwright = sync_playwright().start()
        path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
        self.browser = self.playwright.chromium.launch(executable_path=path, args=BROWSER_ARGS)
        self.page = self.browser.new_page(viewport={"width": 1280, "height": 800})

    def run(self, input): return getattr(self, input["action"])(input)
    def start(self, input):
        self.page.goto(input["url"])
        return {"title": self.page.title(), "pid": os.getpid()}

    def click(self, input): self.page.click(input["selector"])
    def type(self, input): self.page.fill(input["selector"], input["text"])
    def screenshot(self, input): return self.page.screenshot()
    def close(self):
        self.browser.close()
        self.playwright.stop()


@warm.app("parent")
class Parent:
    "Starts a process of its own, and does not clean up after itself."
    def setup(self): self.child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    def run(self, input): return {"child": self.child.pid, "pid": os.getpid()}
