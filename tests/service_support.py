"""What the tests of service, routes and contract share: the stores that drive them, an app over one of them, and readers of its pages."""

import html
import json
import re
import sqlite3
from contextlib import ExitStack
from dataclasses import dataclass
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Callable

import psycopg
import pytest
from cjm_workflow_state.state_store import SQLiteWorkflowStateStore
from fasthtml.common import FastHTML
from starlette.testclient import TestClient

from cjm_workflow_sessions.routes.init import init_session_manager_routers
from cjm_workflow_sessions.services import management
from cjm_workflow_sessions.services.management import SessionManagementService
from cjm_workflow_sessions.stores import cjm, postgres, sql
from cjm_workflow_sessions.stores.postgres import PostgresSessionStore
from cjm_workflow_sessions.stores.sqlite import SQLiteSessionStore
from cjm_workflow_sessions.utils import now_us

FLOW = "ingest"
PAGE = "/manage/sessions"
HTMX = {"HX-Request": "true"}
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


# -- the stores ----------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Kind:
    "One kind of store, as a host makes it, and how to change a stored state behind its back."
    open: Callable # (folder, or the server) -> what a host passes to the service
    damage: Callable # (service, session_id, SQL expression) -> None: what a value of the state becomes, or the whole state where it is one text
    server: bool = False # Whether it lives on the test's PostgreSQL server

def _damage_value(service, session_id, expression):
    with service.store.transaction() as run:
        assert run(f"UPDATE wfs_value SET value = {expression} WHERE id = (SELECT id FROM wfs_session WHERE session_id = ?) RETURNING id", (session_id,))

def _damage_text(service, session_id, expression):
    with service.store.store._get_connection() as db:
        assert db.execute(f"UPDATE workflow_state SET state_json = {expression} WHERE flow_session_key = ?", (f"{service.flow_id}:{session_id}",)).rowcount

KINDS = {
    "file": Kind(lambda folder: SQLiteSessionStore(folder / "sessions.db"), _damage_value),
    "memory": Kind(lambda folder: SQLiteSessionStore(":memory:"), _damage_value),
    "cjm": Kind(lambda folder: SQLiteWorkflowStateStore(folder / "state.db"), _damage_text),
    "postgres": Kind(lambda server: PostgresSessionStore(server.fresh_url()), _damage_value, server=True),
}

@pytest.fixture(params=KINDS)
def kind(request): return KINDS[request.param]

@pytest.fixture
def make(kind, tmp_path, request):
    "Make a service over a store that all services of the test share."
    state_store, made = kind.open(request.getfixturevalue("postgres") if kind.server else tmp_path), []

    def make(flow=FLOW, **options):
        made.append(SessionManagementService(made[0].store if made else state_store, flow, **options))
        return made[-1]

    yield make
    for service in made[:1]: service.store.close()

@pytest.fixture
def statements(monkeypatch):
    "Every statement that any connection runs, in order; asked for before the store is made."
    seen, connect = [], sqlite3.connect

    def traced(*args, **kwargs):
        connection = connect(*args, **kwargs)
        connection.set_trace_callback(seen.append)
        return connection

    monkeypatch.setattr(sqlite3, "connect", traced)
    execute = psycopg.Cursor.execute

    def noted(cursor, query, *args, **kwargs):
        seen.append(query)
        return execute(cursor, query, *args, **kwargs)

    monkeypatch.setattr(psycopg.Cursor, "execute", noted)
    return seen

@pytest.fixture
def clock(monkeypatch):
    "The clock of service and stores, which a test moves on by setting `ahead_s`."
    clock = SimpleNamespace(ahead_s=0)
    for module in (management, sql, postgres, cjm): monkeypatch.setattr(module, "now_us", lambda: now_us() + clock.ahead_s * 1_000_000)
    return clock

def fill(service, n, label="Session {:03}"):
    return [service.create_session(label.format(i), state={"n": i}, current_step=("pick", "process", "review")[i % 3]) for i in range(n)]

def snapshot(service):
    "All that the service can read, to show that nothing has changed."
    rows = service.list_sessions()
    return [(r.summary, r.resolved_label, r.problem or service.get_state(r.summary.session_id)) for r in rows], [r.summary for r in service.trash()]

def nested(depth):
    "A list in a list in a list …"
    value = 1
    for _ in range(depth): value = [value]
    return value


# -- an app ----------------------------------------------------------------------------------------------------------------

class App:
    "A host with one manager or more, and one browser that visits it."
    def __init__(self, service, *more, workflow_url="/work", **options):
        self.service, self.closing = service, ExitStack()
        self.sessions = init_session_manager_routers(service, workflow_url, **options)
        self.managers = [self.sessions, *(init_session_manager_routers(s, url, prefix) for s, url, prefix in more)]
        self.app = FastHTML(secret_key="test", hdrs=self.sessions.hdrs)
        for manager in self.managers:
            for router in manager.routers: router.to_app(self.app)
        self.routes = [(path, route.methods) for route in self.app.routes if (path := getattr(route, "path", "")).startswith(self.sessions.urls.management_page)]

        @self.app.get("/cookie")
        def cookie(sess): return json.dumps(dict(sess))

        @self.app.get("/login")
        def login(sess, user: str): sess["user"] = user

        self.browser = self.visitor()

    def visitor(self, user=None):
        client = self.closing.enter_context(TestClient(self.app, raise_server_exceptions=False, follow_redirects=False))   # entered, it keeps one event loop
        if user: client.get("/login", params={"user": user})
        return client

    def get(self, path="", **kwargs): return self.browser.get(PAGE + path, **kwargs)
    def post(self, path, data=None, **kwargs): return self.browser.post(PAGE + path, data=data, **kwargs)

    def cookie(self, client=None): return json.loads(html.unescape((client or self.browser).get("/cookie").text))

@pytest.fixture
def serve(make):
    "Make an app: over a service of its own unless one is given."
    made = []

    def serve(service=None, *more, **options):
        of_service = {k: options.pop(k) for k in ("enricher", "label_generator") if k in options}
        made.append(App(service or make(**of_service), *more, **options))
        return made[-1]

    yield serve
    for app in made: app.closing.close()

def by_login(request): return request.session.get("user")

def view(**changes):
    "The hidden input of a tab."
    return json.dumps({"start": 0, "rows": 20, "cursor": 0, "sort": "updated", "ascending": False, "search": "", "anchor": None} | changes)


# -- pages -----------------------------------------------------------------------------------------------------------------

class Page(HTMLParser):
    "What a browser would make of an answer."
    def __init__(self, response):
        super().__init__()
        self.elements, self.texts, self.active = [], [], []   # (tag, attributes), (tag around it, text), sessions marked as active
        self.open, self.row = [], None
        self.feed(response if isinstance(response, str) else response.text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.row = dict(attrs).get("data-session", self.row)
        if tag not in ("meta", "link", "input", "br", "hr", "use", "path"): self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag: pass

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))
        if data.strip() == "Active": self.active.append(self.row)

    def attributes(self, name): return [attrs[name] for _, attrs in self.elements if attrs.get(name)]

    @property
    def text(self): return " ".join(" ".join(text for _, text in self.texts).split())
    @property
    def rows(self): return self.attributes("data-session")
    @property
    def ids(self): return self.attributes("id")
    @property
    def cursor(self): return next((int(attrs["aria-rowindex"]) - 2 for _, attrs in self.elements if attrs.get("aria-selected") == "true" and "aria-rowindex" in attrs), None)   # the header is row 1
    @property
    def view(self): return next(attrs["value"] for _, attrs in self.elements if attrs.get("name") == "view")

    @property
    def dangers(self):
        "What could run: scripts with a text, handlers, addresses that are scripts, elements that load something."
        bad = [("text of a script", text) for tag, text in self.texts if tag == "script" and text.strip()]
        for tag, attrs in self.elements:
            if tag in ("img", "iframe", "object", "embed", "base"): bad.append((tag, attrs))
            bad += [(tag, name) for name, value in attrs.items() if name.startswith("on") or name in ADDRESSES and str(value).strip().lower().startswith(("javascript:", "data:text"))]
        return bad

ADDRESSES = ("href", "src", "action", "formaction", "data", "srcdoc", "style")
