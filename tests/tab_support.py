"""A tab without a browser, and the app that it looks at."""

import json
from html.parser import HTMLParser

# The web framework is imported where it is used: the processes that tests start take a second less to come up.


def make_app(service, **options):
    "An app with a manager at its usual place, and a page of its own."
    from fasthtml.common import FastHTML
    from cjm_workflow_sessions.routes.init import init_session_manager_routers
    app = FastHTML(secret_key="test", default_hdrs=False)
    manager = init_session_manager_routers(service, "/work", **options)
    for router in manager.routers: router.to_app(app)

    @app.get("/")
    def home(): return "the host's own page"

    return app


class _Answer(HTMLParser):
    "Collect the rows of an answer by position, and the view that it sends back."
    def __init__(self, text):
        super().__init__()
        self.view, self.rows = None, {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if attrs.get("name") == "view": self.view = attrs["value"]
        if "data-session" in attrs: self.rows[int(attrs["aria-rowindex"]) - 2] = attrs["data-session"]


class Tab:
    "The page's script without the page: it sends the view along and keeps the one that comes back."
    def __init__(self, app, prefix="/manage/sessions"):
        from fasthtml.common import Client
        self.client, self.prefix, self.view, self.rows = Client(app), prefix, "", {}

    def open(self, query=""): return self._take(self.client.get(self.prefix + query))

    def post(self, name, *, status=200, **data):
        return self._take(self.client.post(f"{self.prefix}/{name}", data={"view": self.view} | data, headers={"HX-Request": "true"}), status)

    def move(self, moves): return self.post("vc/move", moves=moves)
    def sort(self, column): return self.post("vc/sort", column=column)
    def search(self, text): return self.post("vc/search", search=text)

    def _take(self, response, status=200):
        assert response.status_code == status, f"{response.status_code}: {response.text[:1000]}"
        answer = _Answer(response.text)
        self.view, self.rows = answer.view or self.view, answer.rows
        return response

    @property
    def place(self): return json.loads(self.view)
