"""The contract with hosts of the older library: its names, its shapes, its behaviour, and a host that was written for it."""

import inspect
from dataclasses import MISSING, fields
from datetime import datetime, timezone
from importlib import import_module
from types import SimpleNamespace

import pytest
from fasthtml.common import FastHTML, to_xml
from starlette.testclient import TestClient

from cjm_workflow_sessions.html_ids import SessionManagerHtmlIds
from cjm_workflow_sessions.routes.init import init_session_manager_routers
from service_support import FLOW, HTMX, PAGE, Page, fill, kind, make, serve   # noqa: F401

ROOT = "cjm_workflow_sessions"


# -- names, parameters, order, defaults ------------------------------------------------------------------------------------

FUNCTIONS = {
    "components.helpers": {
        "render_section_header": "title, icon_name",
        "render_icon_button": "icon_name, label, color=None, size=None, **kwargs",
        "render_alert": "message, color=None, alert_id=''",
        "render_active_session_badge": "label='Active', badge_id=''"},
    "html_ids": {"SessionManagerHtmlIds.as_selector": "id_str"},
    "routes.init": {"init_session_manager_routers": "service, workflow_url, prefix='/manage/sessions', column_specs=None, get_step_title=None, page_title='Sessions', page_icon='layers'"},
    "services.management": {
        "SessionManagementService": "state_store, flow_id, enricher=None, label_generator=None",
        "SessionManagementService.list_sessions": "self, order_by='updated_at', descending=True",
        "SessionManagementService.get_session": "self, session_id",
        "SessionManagementService.session_exists": "self, session_id",
        "SessionManagementService.create_session": "self, label=None",
        "SessionManagementService.rename_session": "self, session_id, label",
        "SessionManagementService.delete_session": "self, session_id"},
    "components.page_renderer": {
        "render_page_header": "title='Sessions', icon_name='layers'",
        "render_session_manager_page": "urls, render_list_fn, title='Sessions', icon_name='layers'"},
    "components.session_list": {
        "build_session_columns": "column_specs=None",
        "create_session_cell_renderer": "urls, get_active_session_id, get_step_title=None",
        "render_session_toolbar": "urls, total_count=0",
        "render_rename_modal": "urls, modal_id=Ids.RENAME_MODAL, input_id=Ids.RENAME_INPUT",
        "render_list_scripts": "urls",
        "render_session_list": "items, vc_config, vc_state, vc_ids, vc_btn_ids, vc_urls, mgmt_urls, render_cell"},
    "routes.sessions": {"init_session_router": "service, prefix, urls, workflow_url, refresh_items, refresh_items_oob, render_page, render_list"},
    "utils": {
        "parse_sqlite_timestamp": "ts",
        "format_relative_time": "ts, now=None",
        "format_absolute_datetime": "ts",
        "format_bytes": "n",
        "default_label": "created_at"},
    "core.workflow_session": {"WorkflowSession": "sess, workflow_id"},
    "core.job_session": {"JobSessionManager": "sess, prefix='job'"},
}
FIELDS = {
    "EnrichedSessionSummary": "summary, resolved_label, enriched_fields={}",
    "ColumnSpec": "field, header, width_class=None",
    "SessionManagementUrls": "management_page, list_sessions, session_detail, create_session, delete_session, rename_session, resume_session",
    "SessionManagementResult": "routers, urls, routes, render_page, render_list, refresh_items, resume_session",
}
IDS = {name: value for value, name in (line.split() for line in """
    wsm_sess VC_PREFIX|wsm-page-content PAGE_CONTENT|wsm-session-list SESSION_LIST|wsm-session-detail SESSION_DETAIL|wsm-toolbar TOOLBAR|wsm-new-session-btn NEW_SESSION_BTN
    |wsm-resume-btn RESUME_BTN|wsm-rename-btn RENAME_BTN|wsm-delete-btn DELETE_BTN|wsm-delete-modal DELETE_MODAL|wsm-delete-modal-body DELETE_MODAL_BODY|wsm-rename-modal RENAME_MODAL
    |wsm-rename-modal-body RENAME_MODAL_BODY|wsm-rename-input RENAME_INPUT|wsm-alert-area ALERT_AREA|wsm-active-session-badge ACTIVE_SESSION_BADGE""".split("|"))}

def seed_parameters(text): return list(inspect.signature(eval(f"lambda {text}: None", {"Ids": SessionManagerHtmlIds})).parameters.values())

def found(module, name):
    found = import_module(f"{ROOT}.{module}")
    for part in name.split("."): found = getattr(found, part)
    return found

@pytest.mark.parametrize("module, name, seed", [(m, n, s) for m, names in FUNCTIONS.items() for n, s in names.items()])
def test_parameters(module, name, seed):
    ours = list(inspect.signature(found(module, name)).parameters.values())
    wanted = seed_parameters(seed)
    plain = [p for p in ours if p.kind is not p.KEYWORD_ONLY]
    assert [(p.name, p.kind, p.default) for p in plain] == [(p.name, p.kind, p.default) for p in wanted]
    assert all(p.default is not p.empty for p in ours if p.kind is p.KEYWORD_ONLY)

@pytest.mark.parametrize("name, seed", FIELDS.items())
def test_fields(name, seed):
    ours = fields(found("models", name))
    wanted = seed_parameters(seed)
    default = lambda f: f.default_factory() if f.default_factory is not MISSING else f.default
    for field, parameter in zip(ours, wanted):
        assert field.name == parameter.name
        if parameter.default is not parameter.empty: assert default(field) == parameter.default
    assert len(ours) >= len(wanted) and all(default(f) is not MISSING for f in ours[len(wanted):])
    made = found("models", name)(*(p.name for p in wanted))
    assert [getattr(made, p.name) for p in wanted] == [p.name for p in wanted]

def test_other_names():
    models = import_module(f"{ROOT}.models")
    assert models.SessionEnricher and models.LabelGenerator
    assert {name: getattr(SessionManagerHtmlIds, name) for name in IDS} == IDS
    assert SessionManagerHtmlIds.as_selector("wsm-toolbar") == SessionManagerHtmlIds().as_selector("wsm-toolbar") == "#wsm-toolbar"

def test_formatting():
    utils = import_module(f"{ROOT}.utils")
    now = datetime(2026, 4, 8, 20, 11, 50, tzinfo=timezone.utc)
    assert utils.parse_sqlite_timestamp("2026-04-08 19:11:50") == datetime(2026, 4, 8, 19, 11, 50, tzinfo=timezone.utc)
    assert [utils.parse_sqlite_timestamp(t) for t in (None, "", "soon", 5)] == [None] * 4
    assert [utils.format_relative_time(t, now) for t in ("2026-04-08 19:11:50", "2026-04-08 20:11:40", "2026-04-07 19:00:00", "2026-04-05 20:11:50", "2026-03-25 20:11:50", "2025-01-02 03:04:05", None)] == [
        "1 hour ago", "just now", "yesterday", "3 days ago", "2 weeks ago", "Jan 02, 2025", "—"]
    assert [utils.format_absolute_datetime(t) for t in ("2026-04-08 19:11:50", None, "soon")] == ["Apr 08, 2026 19:11", "—", "—"]
    assert [utils.format_bytes(n) for n in (0, 512, 1229, 3 * 1024 * 1024, None, -1)] == ["0 B", "512 B", "1.2 KB", "3.0 MB", "—", "—"]
    assert [utils.default_label(t) for t in ("2026-04-08 19:11:50", None)] == ["Session 2026-04-08 19:11", "Untitled Session"]

def test_helpers_as_the_older_library_calls_them():
    helpers = import_module(f"{ROOT}.components.helpers")
    assert "Files" in to_xml(helpers.render_section_header("Files", "folder"))
    button = to_xml(helpers.render_icon_button("trash-2", "Delete", "btn-error", "btn-sm", hx_post="/x"))
    assert all(part in button for part in ('type="button"', 'title="Delete"', "btn-error", "btn-sm", 'hx-post="/x"'))
    assert 'type="submit"' in to_xml(helpers.render_icon_button("trash-2", "Delete", type="submit"))
    assert 'id="note"' in to_xml(helpers.render_alert("Saved", "alert-success", "note"))
    assert "&lt;b&gt;" in to_xml(helpers.render_alert("<b>"))
    badge = to_xml(helpers.render_active_session_badge("Here", "badge"))
    assert "Here" in badge and 'id="badge"' in badge


# -- behaviour of the service ------------------------------------------------------------------------------------------------

def test_service_is_bound_to_its_flow(make):
    service = make()
    assert service.flow_id == FLOW
    with pytest.raises(AttributeError): service.flow_id = "other"

def test_create_gives_an_id_that_is_there(make):
    service = make()
    first, second = service.create_session(), service.create_session(label="Named")
    assert first != second and len(first) == 36 and isinstance(first, str)
    assert service.session_exists(first) and not service.session_exists("none")
    row = service.get_session(second)
    assert (row.resolved_label, row.summary.label, row.summary.flow_id, row.summary.session_id, row.enriched_fields) == ("Named", "Named", FLOW, second, {})
    assert service.get_session("none") is None
    s = service.get_session(first).summary
    assert (s.label, s.current_step, s.state_size_bytes) == (None, None, 2) and s.created_at[:19] == s.updated_at[:19]

def test_rename_of_a_missing_session_does_nothing(make):
    service = make()
    assert service.rename_session("none", "x") is None
    assert service.list_sessions() == []

def test_rename_with_none_clears_the_label(make):
    service = make()
    session_id = service.create_session("First")
    service.rename_session(session_id, "Second")
    assert service.get_session(session_id).resolved_label == "Second"
    service.rename_session(session_id, None)
    row = service.get_session(session_id)
    assert row.summary.label is None and row.resolved_label == import_module(f"{ROOT}.utils").default_label(row.summary.created_at)

def test_rename_counts_as_an_update(make):
    service = make()
    first, second = service.create_session("a"), service.create_session("b")
    service.rename_session(first, "c")
    assert [r.summary.session_id for r in service.list_sessions()] == [first, second]

def test_delete_is_idempotent(make):
    service = make()
    kept, gone = service.create_session(), service.create_session()
    for _ in range(3): assert service.delete_session(gone) is None
    assert service.delete_session("none") is None
    assert [r.summary.session_id for r in service.list_sessions()] == [kept]
    assert not service.session_exists(gone) and service.get_session(gone) is None

@pytest.mark.parametrize("order_by, ascending", [("updated_at", [1, 2, 0]), ("created_at", [0, 1, 2]), ("label", [2, 0, 1])])
def test_list_sessions_orders(make, order_by, ascending):
    service = make()
    ids = [service.create_session(label) for label in ("beta", "Gamma", "alpha")]
    service.rename_session(ids[0], "beta")
    order = lambda **kwargs: [ids.index(r.summary.session_id) for r in service.list_sessions(**kwargs)]
    assert order(order_by=order_by, descending=False) == ascending
    assert order(order_by=order_by) == ascending[::-1]
    assert [ids.index(r.summary.session_id) for r in service.list_sessions(order_by, False)] == ascending

def test_list_sessions_defaults_to_the_last_update_first(make):
    service = make()
    ids = fill(service, 5)
    assert [r.summary.session_id for r in service.list_sessions()] == ids[::-1]
    with pytest.raises(ValueError): service.list_sessions(order_by="size; DROP TABLE x")

def test_callbacks_are_given_what_they_were_given(make):
    seen = []
    def generator(summary, state):
        seen.append((summary.session_id, summary.label, state))
        return f"{state['n']} files"
    service = make(enricher=lambda state: {"files": state["n"] * 2, "name": "x"}, label_generator=generator)
    session_id = service.create_session(state={"n": 3})
    row = service.get_session(session_id)
    assert (row.resolved_label, row.enriched_fields) == ("3 files", {"files": "6", "name": "x"})
    assert seen == [(session_id, None, {"n": 3})]

def test_failing_callbacks_leave_a_row(make):
    service = make(enricher=lambda state: state["missing"], label_generator=lambda s, state: 1 / 0)
    row = service.get_session(service.create_session())
    assert row.enriched_fields == {} and row.resolved_label.startswith("Session 20")


# -- what init_session_manager_routers gives -------------------------------------------------------------------------------------

def test_result_shapes(serve):
    app = serve()
    result = app.sessions
    assert isinstance(result.routers, list) and all(callable(r.to_app) for r in result.routers)
    names = [f.name for f in fields(result.urls)][:7]
    assert names == seed_names() and result.urls.management_page == PAGE
    assert all(getattr(result.urls, name) == f"{PAGE}/{name}" for name in names[1:])
    for name in names:
        assert callable(result.routes[name]) and result.routes[name].to() == getattr(result.urls, name)
    for f in (result.render_page, result.render_list, result.refresh_items): assert not inspect.iscoroutinefunction(f)
    assert inspect.signature(result.refresh_items).parameters["request"].default is None

def seed_names(): return FIELDS["SessionManagementUrls"].split(", ")

def test_paths_follow_the_prefix(make):
    urls = init_session_manager_routers(make(), "/work", "/tools/runs").urls
    assert urls.management_page == "/tools/runs" and urls.resume_session == "/tools/runs/resume_session" and urls.collection == "/tools/runs/vc"

def test_arguments_by_position(make):
    column = found("models", "ColumnSpec")("files", "Files", "w-24")
    service = make(enricher=lambda state: {"files": f"{state['n']} files"})
    fill(service, 3)
    result = init_session_manager_routers(service, "/work", "/runs", [column], {"pick": "Choose", "process": "Work", "review": "Look"}.__getitem__, "My runs", "play")
    page = Page(to_xml(result.render_page()))
    assert all(text in page.text for text in ("My runs", "2 files", "Choose", "Files"))

def test_render_callables_need_no_request(serve):
    app = serve()
    ids = fill(app.service, 3)
    assert Page(to_xml(app.sessions.render_page())).rows == Page(to_xml(app.sessions.render_list())).rows == ids[::-1]
    app.service.delete_session(ids[0])
    assert Page(to_xml(app.sessions.refresh_items())).rows == ids[:0:-1]
    assert Page(to_xml(app.sessions.render_list())).rows == ids[:0:-1]

def test_resume_callable_writes_the_pointer(serve):
    app = serve()
    session_id, sess = app.service.create_session(), {"other": 1}
    app.sessions.resume_session(sess, session_id)
    assert sess == {"other": 1, "_workflow_session_id": session_id, f"_workflow_session_id:{FLOW}": session_id}
    with pytest.raises(LookupError): app.sessions.resume_session(sess, "none")
    assert sess["_workflow_session_id"] == session_id

def test_keys_in_the_http_session(serve):
    app = serve()
    pointer = lambda: {k: v for k, v in app.cookie().items() if k.startswith("_workflow")}
    app.get()
    assert app.cookie() == {}   # looking at the page makes no session up
    app.post("/create_session", headers=HTMX)
    first = app.service.latest_session()
    assert pointer() == app.cookie() == {"_workflow_session_id": first, f"_workflow_session_id:{FLOW}": first}
    second = app.service.create_session()
    app.post("/resume_session", {"session_id": second})
    assert pointer() == {"_workflow_session_id": second, f"_workflow_session_id:{FLOW}": second}
    app.post("/delete_session", {"session_id": second})
    assert pointer() == {"_workflow_session_id": first, f"_workflow_session_id:{FLOW}": first}

def test_a_pointer_of_the_older_library_is_read(serve):
    app = serve()
    ids = fill(app.service, 2)

    @app.app.get("/older")
    def older(sess): sess["_workflow_session_id"] = ids[0]

    app.browser.get("/older")
    assert Page(app.get()).active == [ids[0]]


def test_a_host_may_move_the_pointer_itself(serve, make):
    "The step-flow library and hosts written for it know the plain key only."
    app = serve(make(), (make("drafts"), "/drafts/work", "/drafts/sessions"))
    ids = fill(app.service, 3)
    moved = iter(ids[1:])

    @app.app.get("/start-over")
    def start_over(sess): sess["_workflow_session_id"] = next(moved)

    app.post("/resume_session", {"session_id": ids[0]})
    app.browser.get("/start-over")
    assert Page(app.get()).active == [ids[1]]
    app.browser.post("/drafts/sessions/create_session", headers=HTMX)
    assert Page(app.browser.get("/drafts/sessions")).active and len(Page(app.get()).active) == 1
    app.browser.get("/start-over")
    app.post("/delete_session", {"session_id": ids[2]}, headers=HTMX)
    assert app.cookie()["_workflow_session_id"] == ids[1]


# -- the router on its own ---------------------------------------------------------------------------------------------------

def test_init_session_router_as_the_older_library_calls_it(make):
    service, asked = make(), []
    first = service.create_session("One")
    urls = found("models", "SessionManagementUrls")("", "", "", "", "", "", "")
    render = lambda what: lambda request=None: asked.append(what) or SimpleNamespace(__ft__=lambda: what) and what
    router, routes = found("routes.sessions", "init_session_router")(service, "/runs", urls, "/work", render("items"), lambda request=None: (), render("page"), render("list"))
    app = FastHTML(secret_key="test")
    router.to_app(app)
    client = TestClient(app, follow_redirects=False)
    assert set(seed_names()) <= set(routes) and urls.create_session == "/runs/create_session"
    assert "page" in client.get("/runs").text and "list" in client.get("/runs/list_sessions").text
    assert client.post("/runs/create_session", headers=HTMX).status_code == 200 and len(service.list_sessions()) == 2
    assert client.post("/runs/resume_session", data={"session_id": first}, headers=HTMX).headers["hx-redirect"] == "/work"


# -- a host written for the older library ------------------------------------------------------------------------------------

HOST = '''
from pathlib import Path

from cjm_workflow_state.state_store import SQLiteWorkflowStateStore
from fasthtml.common import Div, FastHTML, Link

from ROOT.html_ids import SessionManagerHtmlIds
from ROOT.models import ColumnSpec, EnrichedSessionSummary, SessionManagementResult
from ROOT.routes.init import init_session_manager_routers
from ROOT.services.management import SessionManagementService
from ROOT.utils import format_bytes

STEPS = {"pick": "Choose files", "review": "Look it over"}

def enrich(state):
    files = state.get("files", [])
    return {"files": str(len(files)), "size": format_bytes(sum(f["size"] for f in files))}

def name(summary, state): return f"{len(state['files'])} files" if state.get("files") else "Nothing yet"

store = SQLiteWorkflowStateStore(Path(folder) / "state.db")
service = SessionManagementService(state_store=store, flow_id="ingest", enricher=enrich, label_generator=name)
manager = init_session_manager_routers(service=service, workflow_url="/", prefix="/manage/sessions", column_specs=[ColumnSpec(field="files", header="Files", width_class="w-20")],
                                       get_step_title=lambda step_id: STEPS.get(step_id, step_id), page_title="Runs", page_icon="layers")
assert isinstance(manager, SessionManagementResult)

app = FastHTML(secret_key="test", hdrs=(Link(rel="icon", href="data:,"),))
for router in manager.routers: router.to_app(app)

@app.get("/")
def index(sess): return f"working on {sess.get('_workflow_session_id')}"

@app.get("/embedded")
def embedded(request):
    manager.refresh_items(request=request)
    return Div(manager.render_page(), id="host")

@app.get("/list")
async def embedded_list(request):
    manager.refresh_items(request)
    return manager.render_list()

@app.get("/open")
def open_session(sess, session_id: str):
    manager.resume_session(sess, session_id)
    return "opened"
'''

@pytest.fixture
def host(tmp_path):
    "The host above, on its own old store."
    names = {"folder": str(tmp_path), "__name__": "host"}
    exec(compile(HOST.replace("ROOT", ROOT), "host.py", "exec"), names)
    yield SimpleNamespace(**names, client=TestClient(names["app"], follow_redirects=False))
    names["service"].store.close()

def test_host_of_the_older_library_works_with_another_import_root(host):
    client, service, urls = host.client, host.service, host.manager.urls
    empty, full = service.create_session(), service.create_session("By hand")
    host.store.update_state("ingest", empty, {"files": [{"size": 1000}, {"size": 24}]})   # a step of the host writes through the old store
    host.store.set_current_step("ingest", empty, "review")
    page = client.get(urls.management_page)
    assert page.status_code == 200 and all(text in page.text for text in ("Runs", "2 files", "By hand", "Look it over", "Files"))
    assert [r.resolved_label for r in service.list_sessions(order_by="label", descending=False)] == ["2 files", "By hand"]

    for path in ("/embedded", "/list", urls.list_sessions):
        answer = client.get(path)
        assert answer.status_code == 200 and sorted(Page(answer).rows) == sorted([empty, full]), path
    assert "<title>" not in client.get(urls.list_sessions, headers=HTMX).text

    assert client.get("/open", params={"session_id": full}).text == "opened"
    assert full in client.get("/").text and Page(client.get(urls.management_page)).active == [full]
    answer = client.post(urls.resume_session, data={"session_id": empty}, headers=HTMX)
    assert (answer.status_code, answer.headers["hx-redirect"], answer.content) == (204, "/", b"") and empty in client.get("/").text

    assert client.post(urls.create_session, headers=HTMX).status_code == 200
    created = service.list_sessions()[0].summary.session_id
    assert created in client.get("/").text and len(service.list_sessions()) == 3
    assert client.post(urls.rename_session, data={"session_id": created, "label": "New name"}, headers=HTMX).status_code == 200
    assert host.store.get_session_summary("ingest", created).label == "New name"
    assert client.post(urls.rename_session, data={"session_id": created, "label": ""}, headers=HTMX).status_code == 200
    assert service.get_session(created).resolved_label == "Nothing yet"
    assert client.post(urls.delete_session, data={"session_id": created}, headers=HTMX).status_code == 200
    assert not host.store.session_exists("ingest", created)
    assert empty in client.get("/").text or full in client.get("/").text

def test_answers_carry_the_elements_that_a_host_swaps(host):
    answer = Page(host.client.post(host.manager.urls.create_session, headers=HTMX))
    assert answer.rows == [host.service.latest_session()]
    assert any(attrs.get("hx-swap-oob") for _, attrs in answer.elements)
    assert host.manager.render_list and SessionManagerHtmlIds.SESSION_LIST in Page(host.client.get("/list")).ids

def test_refresh_items_keeps_nothing_of_a_visitor(host):
    ids = [host.service.create_session(f"Session {i:02}") for i in range(40)]
    ann, bob = (TestClient(host.app) for _ in range(2))
    ann.get("/open", params={"session_id": ids[39]})
    before = Page(bob.get("/embedded"))
    Page(ann.get("/embedded", params={"sort": "label", "dir": "asc", "q": "Session 0", "at": "5"}))
    after = Page(bob.get("/embedded"))
    assert (after.rows, after.cursor, after.view, after.active) == (before.rows, before.cursor, before.view, before.active) and after.active == []
    assert Page(ann.get(host.manager.urls.management_page)).active == [ids[39]]
