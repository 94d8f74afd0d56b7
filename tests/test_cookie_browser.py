"""The size limit is the browser's: what the guard lets through stays in Chromium, one byte more would be dropped there."""

import contextlib
import socket
import threading
import time

import pytest
import uvicorn
from fasthtml.common import FastHTML

from cjm_workflow_sessions.core.cookie import COOKIE_LIMIT, cookie_size
from cjm_workflow_sessions.core.workflow_session import WorkflowSession
from cjm_workflow_sessions.errors import CookieTooLarge

MOMENT = 1761790891.4871387 # A fixed time stamp: its digits are part of the cookie


def open_workflow(sess, cookie_name): return WorkflowSession(sess, "a", cookie_name=cookie_name, clock=lambda: MOMENT)


def make_app(cookie_name):
    app = FastHTML(secret_key="test", session_cookie=cookie_name)

    @app.get("/guarded")
    def guarded(sess, n: int):
        try: open_workflow(sess, cookie_name).set("text", "x" * n)
        except CookieTooLarge as e: return f"refused {e.size}"
        return "stored"

    @app.get("/unguarded")
    def unguarded(sess, n: int):
        sess["workflow_a_text"], sess["__a_last_modified"] = "x" * n, MOMENT
        return str(cookie_size(sess, cookie_name))

    @app.get("/length")
    def length(sess): return str(len(open_workflow(sess, cookie_name).get("text", "")))

    return app


@contextlib.contextmanager
def serve(app):
    "Run `app` on a free port of this machine; gives its address."
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started and thread.is_alive(): time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


def largest_length(cookie_name):
    "Longest text that the guard lets into an empty session."
    for n in range(COOKIE_LIMIT, 0, -1):
        with contextlib.suppress(CookieTooLarge):
            open_workflow({}, cookie_name).set("text", "x" * n)
            return n


# The value grows in steps of four bytes (base64), so the length of the name decides how close to the limit it gets.
@pytest.mark.parametrize("cookie_name, kept, dropped", [("session_", 4095, 4099), ("session_9", 4096, 4100), ("session_10", 4093, 4097)])
def test_the_guard_stops_where_chromium_does(browser, cookie_name, kept, dropped):
    largest = largest_length(cookie_name)
    with serve(make_app(cookie_name)) as address, contextlib.closing(browser.new_context()) as context:
        page = context.new_page()
        def ask(path): page.goto(address + path); return page.inner_text("body").strip()

        assert ask(f"/guarded?n={largest}") == "stored"
        cookie, = context.cookies()
        assert len(cookie["name"]) + len(cookie["value"]) == kept
        assert ask("/length") == str(largest)

        assert ask(f"/guarded?n={largest + 1}") == f"refused {dropped}"
        assert ask("/length") == str(largest)

        assert ask("/guarded?n=7") == "stored"
        assert ask(f"/unguarded?n={largest + 1}") == str(dropped)   # the server is content,
        assert ask("/length") == "7"                                # the browser kept the old cookie
