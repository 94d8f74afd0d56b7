"""What the tests of changes share: a reader of streams, a server in this process, and two browsers of which one sees what the other does."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.cookies import SimpleCookie

import uvicorn
from playwright.sync_api import expect

from cjm_workflow_sessions.services.changes import hub_of

MANAGER = "/manage/sessions"


# -- without a browser ---------------------------------------------------------------------------------------------------

def run(scenario):
    "Run a coroutine in a thread of its own: in this one a browser of the same test run may keep an event loop."
    with ThreadPoolExecutor(1) as pool: return pool.submit(asyncio.run, scenario).result()


class Stream:
    "One open stream of events."
    def __init__(self, reader, writer): self.reader, self.writer, self.head, self.text = reader, writer, "", ""

    @classmethod
    async def open(cls, url, since="", *, manager=MANAGER, cookie="", last_id=""):
        host, port = url.removeprefix("http://").split(":")
        stream = cls(*await asyncio.open_connection(host, int(port)))
        headers = {"Host": host, "Accept": "text/event-stream", "Cookie": cookie, "Last-Event-ID": last_id}
        lines = [f"GET {manager}/events?since={since} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items() if v), "", ""]
        stream.writer.write("\r\n".join(lines).encode())
        stream.head = (await stream.reader.readuntil(b"\r\n\r\n")).decode()
        return stream

    async def _chunk(self): # Of a chunked body; "" at its end
        size = int(await self.reader.readline() or b"0", 16)
        return (await self.reader.readexactly(size + 2))[:-2].decode() if size else ""

    async def next(self, name=None, timeout_s=10):
        "The next event of that name, or of any: (name, id, data). None at the end of the stream."
        async with asyncio.timeout(timeout_s):
            while True:
                while "\n\n" not in self.text:
                    chunk = await self._chunk()
                    if not chunk: return None
                    self.text += chunk
                block, _, self.text = self.text.partition("\n\n")
                fields = dict(line.split(": ", 1) for line in block.splitlines())
                if "event" in fields and name in (None, fields["event"]): return fields["event"], int(fields["id"]), json.loads(fields["data"])

    async def change(self, timeout_s=10):
        "The sessions of the next change, without their times; None where any may have changed."
        _, _, data = await self.next("change", timeout_s)
        return None if data["sessions"] is None else sorted(session_id for session_id, _ in data["sessions"])

    def close(self): self.writer.close()


def get(url, path, cookie=""):
    "Ask for a page; gives its head and its body."
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n{f'Cookie: {cookie}' if cookie else ''}\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    return answer.split("\r\n\r\n", 1)


def sign_in(url, user):
    "The cookie of a visitor with a name."
    head, _ = get(url, f"/login?user={user}")
    cookie = SimpleCookie(next(line.split(": ", 1)[1] for line in head.splitlines() if line.lower().startswith("set-cookie")))
    return "; ".join(f"{name}={value.value}" for name, value in cookie.items())


def mark_of(url, cookie=""):
    "How far a page that is loaded now has seen."
    _, body = get(url, MANAGER, cookie)
    return body.split('data-since="')[1].split('"')[0]


@contextlib.contextmanager
def served_here(app, store):
    "Run an app on a free port of this process; gives its address."
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started and thread.is_alive(): time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        hub_of(store).close()   # in a thread the server has no signal by which the hub could know
        thread.join(10)
        listener.close()
        assert not thread.is_alive()


# -- with two browsers ---------------------------------------------------------------------------------------------------

def open_live(context, url, *, manager=MANAGER):
    "Open the manager, and wait until it follows what others change."
    page = context.new_page()
    page.goto(f"{url}{manager}")
    expect(page.locator('[data-live="on"]').first).to_be_visible()
    return page


def rename(page, session_id, name):
    "Rename a session as a person does."
    page.locator(f'[data-session="{session_id}"]').get_by_role("button", name="Rename").click()
    page.get_by_label("Name", exact=True).fill(name)
    page.locator("dialog[open]").get_by_role("button", name="Rename").click()
    expect(page.locator("dialog[open]")).to_have_count(0)


def label_of(page, session_id): return page.locator(f'[data-session="{session_id}"] [role="gridcell"]').first


def check_each_sees_the_other(one, other, session_id, *, within_s=2):
    "Rename a session in one browser and see it in the other, in both directions."
    for turn, (here, there) in enumerate([(one, other), (other, one)]):
        rename(here, session_id, f"Renamed {turn}")
        expect(label_of(there, session_id)).to_have_text(f"Renamed {turn}", timeout=1000 * within_s)
