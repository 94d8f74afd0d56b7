"""The same small shop twice: over the stored HTTP session, and over FastHTML's own cookie beside it."""

import os

from fasthtml.common import FastHTML

from cjm_workflow_sessions.core.http_session import stored_sessions
from cjm_workflow_sessions.stores.base import open_store


def make_stored(): return add_pages(FastHTML(secret_key="test", sess_cls=stored_sessions(open_store(os.environ["STORE"]))))
def make_stock(): return add_pages(FastHTML(secret_key="test"))


def add_pages(app):
    @app.get("/ready")
    def ready(): return "ready"

    @app.get("/fill")
    def fill(sess, n: int):
        sess["text"] = "x" * n
        return "filled"

    @app.get("/length")
    def length(sess): return str(len(sess.get("text", "")))

    @app.get("/append")
    def append(sess, item: str):
        sess.setdefault("cart", []).append(item)
        return " ".join(sess["cart"])

    @app.get("/cart")
    def cart(sess): return " ".join(sess.get("cart", [])) or "empty"

    @app.get("/login")
    def login(sess, user: str):
        if hasattr(sess, "cycle_key"): sess.cycle_key()
        sess["user"] = user
        return "welcome"

    @app.get("/logout")
    def logout(sess):
        if hasattr(sess, "flush"): sess.flush()
        else: sess.clear()
        return "bye"

    @app.get("/me")
    def me(sess): return sess.get("user", "nobody")

    return app
