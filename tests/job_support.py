"""What the tests of job routes share: readers of their streams, and a server in this process."""

import asyncio
import contextlib
import http.client
import json
import time

from changes_support import Stream, served_here
from cjm_workflow_sessions.jobs.watching import job_hub_of

API = "/api/ingest"


class JobStream(Stream):
    "One open stream of the events of jobs."
    @classmethod
    async def open(cls, url, path, *, cookie="", last_id=""):
        host, port = url.removeprefix("http://").split(":")
        stream = cls(*await asyncio.open_connection(host, int(port)))
        headers = {"Host": host, "Accept": "text/event-stream"} | ({"Cookie": cookie} if cookie else {}) | ({"Last-Event-ID": last_id} if last_id else {})
        stream.writer.write("\r\n".join([f"GET {path} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items()), "", ""]).encode())
        stream.head = (await stream.reader.readuntil(b"\r\n\r\n")).decode()
        return stream

    @property
    def status(self): return int(self.head.split()[1])

    async def next(self, name=None, timeout_s=10):
        "The next event of that name, or of any: (name, id or None, data). None at the end of the stream."
        async with asyncio.timeout(timeout_s):
            while True:
                while "\n\n" not in self.text:
                    chunk = await self._chunk()
                    if not chunk: return None
                    self.text += chunk
                block, _, self.text = self.text.partition("\n\n")
                fields = dict(line.split(": ", 1) for line in block.splitlines())
                if "event" in fields and name in (None, fields["event"]):
                    return fields["event"], int(fields["id"]) if "id" in fields else None, json.loads(fields["data"])

    async def rest(self, timeout_s=20):
        "All events until the stream ends."
        found = []
        while event := await self.next(timeout_s=timeout_s): found.append(event)
        return found


@contextlib.contextmanager
def jobs_served_here(app, store, jobs):
    "Run an app on a free port of this process; gives its address."
    with served_here(app, store) as url:
        try: yield url
        finally: job_hub_of(jobs).close()   # in a thread the server has no signal by which the hub could know


def ask(url, method, path, body=None, **headers):
    "One request; gives (status, what it says as JSON, or as text)."
    host, port = url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=20)
    try:
        if isinstance(body, dict): body, headers = json.dumps(body), {"Content-Type": "application/json"} | headers
        connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        text = answer.read().decode()
        return answer.status, json.loads(text) if "json" in answer.getheader("Content-Type", "") else text
    finally: connection.close()


def start(url, cookie="", **parameters):
    "Start a job; gives its id."
    status, said = ask(url, "POST", f"{API}/process", {"parameters": parameters}, **({"Cookie": cookie} if cookie else {}))
    assert status == 202, said
    return said["session_id"]


def wait_for(url, job_id, *statuses, cookie="", timeout_s=30):
    "Wait until a job has one of these statuses; gives its record."
    deadline = time.monotonic() + timeout_s
    while True:
        status, said = ask(url, "GET", f"{API}/status/{job_id}", **({"Cookie": cookie} if cookie else {}))
        if status == 200 and said["status"] in statuses: return said
        assert time.monotonic() < deadline, said
        time.sleep(0.05)
