"""The manager over HTTP, on cjm-workflow-state's own store and on ours: methods, origins, owners, hostile input, answers, pointers, faults."""

import html
import json
import re
import uuid
from email.message import Message
from urllib.parse import quote, urlencode

import pytest
from fasthtml.common import FastHTML
from starlette.testclient import TestClient

from cjm_workflow_sessions.errors import StoreUnavailable
from cjm_workflow_sessions.models import ColumnSpec
from cjm_workflow_sessions.routes.init import ids_for, init_session_manager_routers
from cjm_workflow_sessions.routes.view import MAX_ROWS
from service_support import FLOW, HTMX, PAGE, UUID, Page, by_login, fill, kind, make, nested, serve, snapshot, statements, view   # noqa: F401

READS = ["", "/list_sessions", "/session_detail", "/trash", "/export_session"]
ACTIONS = ["/create_session", "/rename_session", "/delete_session", "/restore_session", "/fork_session", "/resume_session"]
MOVES = ["/vc/move", "/vc/update_viewport", "/vc/sort", "/vc/search", "/vc/refresh"]
WRITES = ACTIONS + MOVES

def fields_for(path, session_id):
    "What the page sends to a route."
    return {
        "": {"q": "", "deleted": ""}, "/list_sessions": {"q": "", "sort": "label", "dir": "asc", "at": "0"}, "/trash": {},
        "/session_detail": {"session_id": session_id}, "/export_session": {"session_id": session_id}, "/create_session": {"label": "x"}, "/rename_session": {"session_id": session_id, "label": "x"},
        "/fork_session": {"session_id": session_id, "label": "x"}, "/vc/move": {"view": view(), "moves": "down"}, "/vc/update_viewport": {"view": view(), "visible_rows": "10"},
        "/vc/sort": {"view": view(), "column": "label"}, "/vc/search": {"view": view(), "search": "x"}, "/vc/refresh": {"view": view()}}.get(path, {"session_id": session_id})

def send(client, path, fields, **kwargs):
    return client.get(PAGE + path, params=fields, **kwargs) if path in READS else client.post(PAGE + path, data=fields, **kwargs)


# -- methods ---------------------------------------------------------------------------------------------------------------

def test_the_lists_above_name_every_route(serve):
    paths = {path.removeprefix(PAGE) for path, _ in serve().routes}
    assert paths == {*READS, *WRITES, "/assets/{name}", "/events"}

def test_what_changes_something_is_post_only(serve):
    app = serve()
    [session_id] = fill(app.service, 1)
    before = snapshot(app.service)
    for path in WRITES:
        for method in ("GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
            answer = app.browser.request(method, PAGE + path, params=fields_for(path, session_id))
            assert answer.status_code == 405 and answer.headers.get("allow") == "POST", (path, method)
    assert snapshot(app.service) == before and app.cookie() == {}

def test_what_reads_answers_get_and_head_and_changes_nothing(serve):
    app = serve()
    session_id = fill(app.service, 3)[0]
    app.service.delete_session(fill(app.service, 1)[0])
    before = snapshot(app.service)
    for path in READS:
        got, head = (app.browser.request(method, PAGE + path, params=fields_for(path, session_id), headers={"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}) for method in ("GET", "HEAD"))
        assert got.status_code == head.status_code == 200 and got.content and not head.content, path
        assert head.headers["content-type"] == got.headers["content-type"] and "set-cookie" not in got.headers
        for method in ("POST", "PUT", "DELETE"): assert app.browser.request(method, PAGE + path, data=fields_for(path, session_id)).status_code == 405, (path, method)
    assert snapshot(app.service) == before


# -- where a request comes from --------------------------------------------------------------------------------------------------

ORIGINS = [ # headers of the request, whether it may change something
    ({}, True),
    ({"Sec-Fetch-Site": "same-origin"}, True),
    ({"Sec-Fetch-Site": "none"}, True),
    ({"Sec-Fetch-Site": "same-origin", "Origin": "http://testserver"}, True),
    ({"Origin": "http://testserver"}, True),
    ({"Origin": "https://testserver"}, True),   # behind a proxy that ends TLS
    ({"Origin": "https://tools.example.org"}, True),   # trusted
    ({"Origin": "https://tools.example.org", "Sec-Fetch-Site": "cross-site"}, True),
    ({"Sec-Fetch-Site": "same-site"}, False),
    ({"Sec-Fetch-Site": "cross-site"}, False),
    ({"Sec-Fetch-Site": ""}, False),
    ({"Sec-Fetch-Site": "SAME-ORIGIN, cross-site"}, False),
    ({"Sec-Fetch-Site": "cross-site", "Origin": "http://testserver"}, False),
    ({"Sec-Fetch-Site": "cross-site", "Origin": "null"}, False),
    ({"Sec-Fetch-Site": "same-site", "Origin": "http://sub.testserver"}, False),
    ({"Origin": "https://evil.example"}, False),
    ({"Origin": "null"}, False),
    ({"Origin": ""}, False),
    ({"Origin": "http://testserver.evil.example"}, False),
    ({"Origin": "http://evil.example/testserver"}, False),
    ({"Origin": "http://testserver@evil.example"}, False),
    ({"Origin": "http://evil.example@testserver"}, False),
    ({"Origin": "http://testserver:81"}, False),
    ({"Origin": "http://sub.testserver"}, False),
    ({"Origin": "testserver"}, False),
    ({"Origin": "https://tools.example.org.evil.example"}, False),
    ({"Origin": "http://["}, False),
    ({"Origin": "http://[::1"}, False),
    ({"Origin": "http://\xbd"}, False),
    ({"Origin": "x" * 5000}, False),
    ({"Origin": "https://evil.example", "Referer": "http://testserver/manage/sessions"}, False),
    ({"Origin": "https://evil.example", "X-Forwarded-Host": "evil.example"}, False),
]

@pytest.mark.parametrize("path", WRITES)
def test_only_pages_of_this_origin_change_something(serve, path):
    app = serve(trusted_origins=("https://tools.example.org",))
    [session_id] = fill(app.service, 1)
    before, wrong = snapshot(app.service), []
    for headers, allowed in ORIGINS:
        if allowed: continue
        sent = {k: v.encode("latin-1") for k, v in headers.items()}
        answer = send(app.browser, path, fields_for(path, session_id), headers=sent)
        if answer.status_code != 403 or "refused" not in answer.text: wrong.append((headers, answer.status_code))
    assert not wrong
    assert snapshot(app.service) == before and app.cookie() == {}
    for headers, allowed in ORIGINS:
        if not allowed: continue
        [session_id] = fill(app.service, 1)
        if path == "/restore_session": app.service.delete_session(session_id)
        answer = send(app.browser, path, fields_for(path, session_id), headers=headers | HTMX)
        if answer.status_code not in (200, 204): wrong.append((headers, answer.status_code))
    assert not wrong


# -- owners ----------------------------------------------------------------------------------------------------------------

def normal(response, *ids):
    "Status, headers and body without ids, times and date."
    body = response.text
    for session_id in ids: body = body.replace(session_id, "ID")
    body = re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?Z?|[A-Z][a-z]{2} \d\d, \d{4} \d\d:\d\d", "TIME", UUID.sub("NEW", body))
    body = re.sub(r'anchor":\[[^]]*\]|data-since="[0-9.]*"', "ANCHOR", html.unescape(body))
    headers = {k: v.replace(ids[0], "ID") if k != "set-cookie" else "set" for k, v in response.headers.items() if k not in ("date", "content-length")}
    return response.status_code, headers, body

@pytest.mark.parametrize("headers", [{}, HTMX, {"Accept": "application/json"}], ids=["form", "htmx", "json"])
@pytest.mark.parametrize("trashed", [False, True])
def test_another_owners_id_is_answered_like_an_unknown_one(headers, trashed, serve):
    app = serve(get_owner=by_login)
    ann = app.service.for_owner("ann")
    hers = ann.create_session("Ann's secret", state={"secret": 1}, current_step="pick")
    ann.create_session("Another")
    if trashed: ann.delete_session(hers)
    bob, his = app.visitor("bob"), app.service.for_owner("bob")
    fill(his, 2)
    before, different = (snapshot(ann), snapshot(his)), []
    for path, _ in app.routes:
        path = path.removeprefix(PAGE).replace("{name}", hers)
        def ask(session_id):
            fields = {k: v.replace("ID", session_id) for k, v in fields_for(path, "ID").items()} | {"deleted": session_id}
            if path == "/create_session": fields["session_id"] = session_id
            answer = send(bob, path.replace(hers, session_id), fields, headers=headers) if not path.startswith("/assets") else bob.get(PAGE + path.replace(hers, session_id), headers=headers)
            pointer = app.cookie(bob).get("_workflow_session_id")
            if path == "/create_session": his.store.clear_state(FLOW, pointer); pointer = "new"
            return normal(answer, session_id), pointer
        foreign, unknown = ask(hers), ask(str(uuid.uuid4()))
        if foreign != unknown: different.append((path, foreign, unknown))
        if path in ("/session_detail", "/export_session", *ACTIONS[1:]): assert foreign[0][0] == 404, path
        assert "Ann's" not in html.unescape(foreign[0][2]), path
    assert not different
    assert (snapshot(ann), snapshot(his)) == before

def test_each_owner_has_a_list_of_her_own(serve):
    app = serve(get_owner=by_login)
    mine = {user: fill(app.service.for_owner(user), n, user + " {}") for user, n in (("ann", 3), ("bob", 2))}
    fill(app.service, 4)
    for user, ids in mine.items():
        client = app.visitor(user)
        for path in ("", "/list_sessions"): assert sorted(Page(client.get(PAGE + path)).rows) == sorted(ids)
        for path in MOVES: assert set(Page(send(client, path, fields_for(path, ids[0]) | {"search": "", "moves": "down scroll*5 to*9"})).rows) <= set(ids)
        client.post(PAGE + "/create_session", headers=HTMX)
        assert app.service.for_owner(user).count() == len(ids) + 1
    assert app.service.count() == 11

def test_nobody_signed_in_gets_nothing(serve):
    app = serve(get_owner=by_login)
    session_id = fill(app.service.for_owner("ann"), 1)[0]
    fill(app.service, 1)
    before = snapshot(app.service)
    for path in READS + WRITES:
        for headers in ({}, HTMX, {"Accept": "application/json"}):
            answer = send(app.browser, path, fields_for(path, session_id), headers=headers)
            assert answer.status_code == 401 and "sign in" in answer.text and "Session 0" not in answer.text, path
            assert ("application/json" in answer.headers["content-type"]) == ("Accept" in headers)
    assert snapshot(app.service) == before and app.cookie() == {}
    assert app.get("/assets/manager.js").status_code == 200   # the error page has a style too

@pytest.mark.parametrize("owner", ["ann\x00", "\ud800", "a" * 5000, "<img src=x onerror=alert(1)>", "'; --"])
def test_an_odd_owner_sees_an_empty_list_or_an_error_that_says_so(owner, serve):
    app = serve(get_owner=lambda request: owner)
    fill(app.service.for_owner("ann"), 2)
    for path in READS + WRITES:
        answer = send(app.browser, path, fields_for(path, "none"), headers=HTMX)
        assert answer.status_code < 500 and not Page(answer).dangers, (path, answer.status_code)
    assert app.service.for_owner("ann").count() == 2

def test_resuming_and_deleting_stay_with_the_owner(serve):
    app = serve(get_owner=by_login)
    ann, bob = app.service.for_owner("ann"), app.service.for_owner("bob")
    first, last = fill(bob, 2)
    newest = ann.create_session("Newest of all")
    client = app.visitor("bob")
    client.post(PAGE + "/resume_session", data={"session_id": last})
    answer = client.post(PAGE + "/delete_session", data={"session_id": last}, headers=HTMX)
    assert app.cookie(client)[f"_workflow_session_id:{FLOW}"] == first and "Session 000" in answer.text
    client.post(PAGE + "/delete_session", data={"session_id": first}, headers=HTMX)
    assert app.cookie(client)[f"_workflow_session_id:{FLOW}"] == bob.latest_session() not in (newest, first, last) and bob.count() == 1 and ann.count() == 1


# -- hostile input -----------------------------------------------------------------------------------------------------------

MB = "x" * 1_000_000
TEXTS = ["", " ", "none", "%00", "a%00b", "%ED%A0%80", "%FF%FE", "%E2%80%AEabc", "%F0%9F%98%80", "%0D%0ASet-Cookie:%20a=1", "%27", "%22", "%5C", "..%2F..%2Fx", "%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E",
         "%3C%2Fscript%3E%3Cscript%3Ealert(1)%3C%2Fscript%3E", "-1", "0", "1e999", "9" * 400, "-" + "9" * 39, "--5", "+-5", "5-", "0x10", "1_000", "%C2%B2", "%D9%A3", "NaN", "null", "true", "[]", "{}", "%5B" * 5000,
         "down*" + "9" * 15, "down*-99", "to*" + "9" * 16, "up " * 101, "scroll*1*1", "focus", "first*", "%25s", "{ID}", "label", "x'%20OR%201=1;--", MB]
ODD_PATHS = [(path, name) for path in READS + WRITES for name in fields_for(path, "") if name != "view"]
OF_MEMORY_AND_CJM = pytest.mark.parametrize("kind", ["memory", "cjm"], indirect=True)   # a file answers a bad request as memory does

@OF_MEMORY_AND_CJM
@pytest.mark.parametrize("path, name", ODD_PATHS, ids=lambda value: value or "page")
def test_hostile_texts(serve, path, name):
    app = serve(enricher=lambda state: {"n": state.get("n", "")}, column_specs=[ColumnSpec("n", "N")])
    session_id = fill(app.service, 4)[0]
    before, wrong = snapshot(app.service), []
    rest = urlencode({k: v for k, v in fields_for(path, session_id).items() if k != name})
    statuses = {"session_id": (404, 422), "moves": (200, 422), "visible_rows": (200, 422), "search": (200, 422), "label": (200, 303, 422), "column": (200, 422)}.get(name, (200,))
    for i, text in enumerate(TEXTS):
        body, headers = f"{rest}&{quote(name)}={text}", HTMX if i % 2 else {}
        if path in READS: answer = app.browser.get(f"{PAGE}{path}?{body[:50_000]}", headers=headers)
        else: answer = app.browser.post(PAGE + path, content=body, headers=headers | {"Content-Type": "application/x-www-form-urlencoded"})
        if answer.status_code not in statuses: wrong.append((text[:40], answer.status_code))
        if text is MB and path in WRITES and answer.status_code != 422: wrong.append(("1 MB", answer.status_code))
        if path in WRITES and answer.status_code >= 400 and len(answer.content) > 5_000: wrong.append((text[:40], len(answer.content)))
        if "%3C" in text and (found := Page(answer).dangers): wrong.append((text[:40], found))
        if name == "label":
            if answer.status_code == 422 and snapshot(app.service) != before: wrong.append((text[:40], "stored"))
            before = snapshot(app.service)
    assert not wrong
    assert snapshot(app.service) == before
    assert app.get().status_code == 200

BODIES = { # body, content type, statuses for a route that needs a field
    "nothing": (b"", None, {422}),
    "text": (b"session_id=ID&moves=down&column=label&visible_rows=5&label=x", "text/plain", {422}),
    "no type": (b"session_id=ID", None, {422}),
    "JSON": (b'{"session_id": "none", "label": "x", "moves": "sideways", "column": 5, "visible_rows": "x", "search": [1]}', "application/json", {404, 422}),
    "JSON numbers": (b'{"session_id": 5, "label": 5, "moves": 5, "column": 5, "visible_rows": 5, "search": 5, "view": 5}', "application/json", {422}),
    "JSON null": (b'{"session_id": null, "label": null, "moves": null, "column": null, "visible_rows": null, "search": null, "view": null}', "application/json", {422}),
    "JSON objects": (b'{"session_id": {}, "label": {}, "moves": {}, "column": {}, "visible_rows": {}, "search": {}, "view": {}}', "application/json", {422}),
    "JSON lists": (b'{"session_id": [], "label": ["x"], "moves": [], "column": [], "visible_rows": [1], "search": [], "view": []}', "application/json", {422}),
    "JSON true": (b'{"session_id": true, "label": true, "moves": true, "column": true, "visible_rows": true, "search": true, "view": true}', "application/json", {422}),
    "JSON half pair": (b'{"session_id": "\\ud800", "label": "\\u0000", "moves": "\\ud800", "column": {}, "visible_rows": "\\ud800", "search": ["\\ud800"], "view": "\\ud800"}', "application/json", {404, 422}),
    "JSON list": (b"[1]", "application/json", {400}),
    "JSON text": (b'"x"', "application/json", {400}),
    "JSON cut off": (b'{"session_id": ', "application/json", {400}),
    "JSON not UTF-8": (b'{"a": "\xff"}', "application/json", {400}),
    "JSON deep": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "application/json", {400, 422}),
    "JSON large number": (b'{"session_id": ' + b"9" * 10_000 + b"}", "application/json", {400, 422}),
    "multipart without boundary": (b"--x\r\n\r\n", "multipart/form-data", {400}),
    "multipart empty boundary": (b"--x\r\n\r\nx" * 9, "multipart/form-data; boundary=", {400}),
    "multipart garbage": (b"garbage" * 99, "multipart/form-data; boundary=x", {400}),
    "multipart cut off": (b'--x\r\nContent-Disposition: form-data; name="session_id"\r\n\r\nI', "multipart/form-data; boundary=x", {400, 422}),
    "multipart without name": (b"--x\r\nContent-Disposition: form-data\r\n\r\nhi\r\n--x--\r\n", "multipart/form-data; boundary=x", {400}),
    "multipart odd charset": (b'--x\r\nContent-Disposition: form-data; name="q"\r\n\r\nh\xff\r\n--x--\r\n', "multipart/form-data; charset=nope; boundary=x", {400, 422}),
    "files": (b"".join(b'--x\r\nContent-Disposition: form-data; name="%s"; filename="a.txt"\r\nContent-Type: text/plain\r\n\r\nx\r\n' % name for name in (b"session_id", b"label", b"moves", b"column", b"visible_rows", b"search", b"view")) + b"--x--\r\n",
              "multipart/form-data; boundary=x", {422}),
    "repeated": (b"&".join(b"%s=a&%s=b" % (n, n) for n in (b"session_id", b"label", b"moves", b"column", b"visible_rows", b"search", b"view")), "application/x-www-form-urlencoded", {422}),
    "not UTF-8": (b"session_id=\xff&label=\x00&moves=\xff&column=\xff&visible_rows=\xff&search=\xff&view=\xff", "application/x-www-form-urlencoded", {404, 422}),
    "5,000 fields": (b"&".join(b"f%d=1" % i for i in range(5000)), "application/x-www-form-urlencoded", {400, 422}),
    "odd type": (b"session_id=ID", "application/xml", {422}),
    "no such type": (b"session_id=ID", ";;;", {422}),
}
NEEDS = ["/rename_session", "/delete_session", "/restore_session", "/fork_session", "/resume_session", "/vc/move", "/vc/update_viewport"]

@OF_MEMORY_AND_CJM
@pytest.mark.parametrize("name", BODIES)
def test_hostile_bodies(serve, name):
    app = serve()
    session_id = fill(app.service, 4)[0]
    before, wrong = snapshot(app.service), []
    body, content_type, statuses = BODIES[name]
    headers = {"Content-Type": content_type} if content_type else {}
    for i, path in enumerate(READS + WRITES):
        answer = app.browser.request("GET" if path in READS else "POST", PAGE + path, content=body.replace(b"ID", session_id.encode()), headers=headers | ({}, HTMX, {"Accept": "application/json"})[i % 3])
        if answer.status_code >= 500 or path in NEEDS and answer.status_code not in statuses: wrong.append((path, answer.status_code))
        if "Traceback" in answer.text: wrong.append((path, "traceback"))
    assert not wrong
    live, trash = snapshot(app.service)   # only a session without a name may have been created
    assert [row for row in live if row[0].session_id in {r[0].session_id for r in before[0]}] == before[0] and trash == [] and len(live) <= 5
    assert app.get().status_code == 200

@pytest.mark.parametrize("body", [{"at": 5}, {"at": None}, {"at": [1]}, {"q": 5, "sort": [], "dir": {}, "deleted": 5}, {"session_id": 5}, {"view": {}}, "at=1&at=2", "q=a&q=b&sort=a&sort=b&dir=a&dir=b&deleted=a&deleted=b"], ids=str)
def test_a_body_where_none_belongs(serve, body):
    app = serve()
    session_id = fill(app.service, 3)[0]
    sent = {"json": body} if isinstance(body, dict) else {"content": body, "headers": {"Content-Type": "application/x-www-form-urlencoded"}}
    statuses = {path: app.browser.request("GET", PAGE + path, params={"session_id": session_id}, **sent).status_code for path in READS}
    assert not {path: status for path, status in statuses.items() if status not in (200, 400, 422)}

def test_fields_given_twice_in_the_address(serve):
    app = serve()
    ids = fill(app.service, 2)
    assert app.get(f"/session_detail?session_id={ids[0]}&session_id={ids[1]}").status_code in (200, 422)
    assert app.get("?at=1&at=2&q=a&q=b&sort=label&sort=x&dir=asc&dir=").status_code == 200

VIEWS = {
    "deep": "[" * 9_000 + "]" * 9_000, "deep object": '{"a":' * 3_000 + "1" + "}" * 3_000, "deep anchor": '{"sort":"label","start":5,"anchor":' + "[" * 2000 + "]" * 2000 + "}", "large": '{"search": "' + "x" * 1_000_000 + '"}',
    "many keys": json.dumps({f"k{i}": i for i in range(1500)}), "list": "[1, 2]", "number": "5", "text": '"x"', "null": "null", "cut off": '{"start": 5', "NaN": '{"start": NaN, "rows": NaN}', "infinity": '{"start": Infinity, "cursor": -Infinity}',
    "floats": view(start=1.5, rows=2.5, cursor=0.5), "large integers": view(start=10**400, rows=10**400, cursor=10**400), "digits": '{"start": ' + "9" * 10_000 + "}", "negative": view(start=-5, rows=-5, cursor=-5), "zero": view(rows=0),
    "texts": view(start="5", rows="5", cursor="5"), "truths": view(start=True, rows=True, cursor=True), "lists": view(start=[], rows={}, cursor=None, sort=[], ascending=[], search=[], anchor={}),
    "nulls": view(start=None, rows=None, cursor=None, sort=None, ascending=None, search=None), "a billion rows": view(rows=10**9), "sort unknown": view(sort="nothing"), "sort hostile": view(sort="label; DROP TABLE wfs_session"),
    "sort field": view(sort="field:x"), "sort number": view(sort=5), "search NUL": view(search="a\x00b"), "search half pair": view(search="\ud800"), "search long": view(search="ﬃ" * 1000), "search percent": view(search="%"),
    "beyond the end": view(start=10**6, cursor=10**6), "far": view(start=2**53, cursor=2**53), "duplicate keys": '{"rows": 5, "rows": 7}', "BOM": "\ufeff{}",
}
ANCHORS = [[], [1, 2], [1, 2, 3, 4], "x", {"position": 1}, [None, None, None], [-1, 5, 5], [5, -5, 5], [5, 5, -5], [5, 10**30, 5], [10**30, 5, 5], [5, "x", 5], [5, 5.5, 5], [5, True, 5], [True, 5, 5], [5, [1], 5], [5, None, 5],
           [5, "\ud800", 5], [5, "a\x00", 5], [5, "x" * 5000, 5], [5, 0, 5], [5, 2**62 - 1, 2**62 - 1], [11, 0, 0], [10, 1, 1], [2**61, 1, 1], [5, "", 0]]

@OF_MEMORY_AND_CJM
@pytest.mark.parametrize("path", MOVES)
def test_hostile_views(serve, path):
    app = serve(enricher=lambda state: {"n": state.get("n", "")}, column_specs=[ColumnSpec("n", "N")])
    ids = fill(app.service, 12)
    before, wrong, texts = snapshot(app.service), [], dict(VIEWS)
    if path in ("/vc/refresh", "/vc/move"):
        texts |= {f"anchor {a!r:.60} sort {s}": view(start=5, cursor=5, rows=4, sort=s, ascending=s == "label", anchor=a) for a in ANCHORS for s in ("updated", "label", "n")}
    for name, text in texts.items():
        answer = app.post(path, fields_for(path, ids[0]) | {"view": text, "search": "", "visible_rows": "5"}, headers=HTMX)
        if answer.status_code != 200: wrong.append((name, answer.status_code)); continue
        page = Page(answer)
        state = json.loads(page.view)
        if not (0 <= state["start"] <= 11 and 1 <= state["rows"] <= MAX_ROWS and 0 <= state["cursor"] <= 11 and len(state["search"]) <= 200): wrong.append((name, state))
        if page.dangers: wrong.append((name, page.dangers))
        if name.startswith("anchor") and path == "/vc/refresh" and len(set(page.rows)) != 4: wrong.append((name, len(page.rows)))
    assert not wrong
    assert snapshot(app.service) == before and app.cookie() == {}

def test_the_number_of_rows_is_bounded_and_ones_own(serve):
    app = serve()
    fill(app.service, 210)
    other = app.visitor()
    before = Page(other.get(PAGE)).rows
    for sent, rows in (("1000000000", 200), ("201", 200), ("200", 200), ("0", 1), ("-3", 1), ("+7", 7), (" 7 ", 7), ("007", 7), ("1", 1)):
        answer = Page(app.post("/vc/update_viewport", {"view": view(), "visible_rows": sent}, headers=HTMX))
        assert len(answer.rows) == json.loads(answer.view)["rows"] == rows, sent
    assert Page(other.get(PAGE)).rows == before and len(Page(app.get()).rows) == 20

def test_long_and_odd_ids_are_unknown(serve):
    app = serve()
    fill(app.service, 1)
    for session_id in ("x", "x" * 199, "x" * 5000, " ", "a\nb", "\u202e", "\x7f", "😀", "a:b", "%", "<b>"):
        for path in ("/session_detail", "/export_session", *ACTIONS[1:]):
            answer = send(app.browser, path, fields_for(path, "") | {"session_id": session_id}, headers=HTMX)
            assert answer.status_code == 404 and "not found" in answer.text and len(answer.content) < 5000 and not Page(answer).dangers, (path, session_id)


# -- labels as text ------------------------------------------------------------------------------------------------------------

LABELS = ["<img src=x onerror=alert(1)>", "</title><script>alert(1)</script>", "\"><svg onload=alert(1)>", "' onmouseover='alert(1)", "javascript:alert(1)", "</textarea></option></select><iframe src=javascript:alert(1)>", "\\'); alert(1); ('",
          "ends with \\", "two\nlines", "&lt;b&gt;&quot;", "\u202eright to left", "\ufeff😀", "<!-- ", "--><![CDATA[", "${alert(1)}{{7*7}}", "\x01\x0b\x1b\x7f", "x" * 1000, "<b " * 300]

@OF_MEMORY_AND_CJM
@pytest.mark.parametrize("label", LABELS)
def test_a_label_is_text_everywhere(make, label, serve):
    service = make(enricher=lambda state: {"n": state["n"]})
    app = serve(service, column_specs=[ColumnSpec("n", label)], get_step_title=lambda step: step, page_title=label)
    service.create_session("before"); service.create_session("after")
    session_id = service.create_session(label, state={"n": label, label: {label: [label]}}, current_step=label)
    text = label.replace("\r\n", "\n")
    answers = {
        "page": app.get(), "list": app.get("/list_sessions"), "detail": app.get("/session_detail", params={"session_id": session_id}), "search": app.get(params={"q": label}), "search found": app.post("/vc/search", {"view": view(), "search": label}, headers=HTMX),
        "search none": app.get(params={"q": label + "-"}), "move": app.post("/vc/move", {"view": view(), "moves": "down"}, headers=HTMX), "sort": app.post("/vc/sort", {"view": view(), "column": label}, headers=HTMX),
        "rename": app.post("/rename_session", {"session_id": session_id, "label": label}, headers=HTMX), "fork": app.post("/fork_session", {"session_id": session_id}, headers=HTMX), "resume": app.post("/resume_session", {"session_id": session_id}),
        "delete": app.post("/delete_session", {"session_id": session_id}, headers=HTMX), "deleted": app.get(params={"deleted": session_id}), "trash": app.get("/trash"), "restore": app.post("/restore_session", {"session_id": session_id}, headers=HTMX),
        "create": app.post("/create_session", {"label": label}, headers=HTMX), "unknown": app.get("/session_detail", params={"session_id": label}), "bad moves": app.post("/vc/move", {"view": view(), "moves": label}), "bad number": app.post("/vc/update_viewport", {"view": view(), "visible_rows": label})}
    pages = {name: Page(answer) for name, answer in answers.items()}
    assert not {name: (answers[name].status_code, page.dangers) for name, page in pages.items() if page.dangers or answers[name].status_code >= 500}
    for name in ("page", "detail", "delete", "trash", "rename", "create"):
        page, cut = pages[name], text[:100].strip()
        shown = [t for _, t in page.texts] + [v for _, attrs in page.elements for v in attrs.values() if v]
        assert any(cut in t for t in shown), name
    for name in ("page", "detail"):
        plain = Page(answers[name].text.replace(html.escape(label), "x"))
        assert [tag for tag, _ in pages[name].elements] == [tag for tag, _ in plain.elements], name
    assert not service.trash() and service.get_session(session_id).resolved_label == label.strip()

@pytest.mark.parametrize("name", ["a\udcffb.txt", "a\x00b", "\ud83d", "x" * 100_000], ids=["half pair", "NUL", "half emoji", "long"])
def test_whatever_a_state_holds_can_be_shown(make, name, serve):
    "File names that are not UTF-8 reach Python with half surrogate pairs (PEP 383), and JSON keeps them."
    app = serve(make(enricher=lambda state: {"file": state["file"]}, label_generator=lambda summary, state: state["file"]), column_specs=[ColumnSpec("file", "File")], get_step_title=lambda step: name)
    session_id = app.service.create_session(state={"file": name, name: [name]}, current_step="pick")
    fill_others = app.service.create_session("other", state={"file": "f"}, current_step="pick")
    answers = {
        "page": app.get(), "by label": app.get("?sort=label"), "by file": app.get("?sort=file&dir=asc"), "by step": app.get("?sort=status"), "found": app.get("?q=other"), "list": app.get("/list_sessions"),
        "detail": app.get("/session_detail", params={"session_id": session_id}), "export": app.get("/export_session", params={"session_id": session_id}), "move": app.post("/vc/move", {"view": view(), "moves": "down"}, headers=HTMX),
        "fork": app.post("/fork_session", {"session_id": session_id}, headers=HTMX), "delete": app.post("/delete_session", {"session_id": session_id}, headers=HTMX), "trash": app.get("/trash"), "restore": app.post("/restore_session", {"session_id": session_id}, headers=HTMX)}
    assert {n: a.status_code for n, a in answers.items() if a.status_code != 200} == {}
    assert fill_others in Page(answers["page"]).rows and answers["export"].json()["state"]["file"] == name

def test_a_state_with_many_levels_can_be_shown_and_exported(serve):
    app = serve()
    for depth in (100, 500, 900, 1200, 1490):
        try: session_id = app.service.create_session("deep", state={"a": nested(depth)})
        except TypeError: continue   # refused, which is fine
        for path in ("/session_detail", "/export_session"): assert app.get(path, params={"session_id": session_id}).status_code == 200, (path, depth)
        assert app.post("/fork_session", {"session_id": session_id}, headers=HTMX).status_code == 200
        assert session_id in Page(app.get()).rows


# -- what the answers say ------------------------------------------------------------------------------------------------------

def test_resume(serve):
    app = serve(workflow_url="/work?step=1")
    first, second = fill(app.service, 2)
    answer = app.post("/resume_session", {"session_id": first}, headers=HTMX)
    assert (answer.status_code, answer.headers["hx-redirect"], answer.content) == (204, "/work?step=1", b"")
    assert app.cookie() == {"_workflow_session_id": first, f"_workflow_session_id:{FLOW}": first}
    answer = app.post("/resume_session", {"session_id": second})
    assert (answer.status_code, answer.headers["location"]) == (303, "/work?step=1") and app.cookie()["_workflow_session_id"] == second
    app.service.delete_session(first)
    for session_id in ("none", first, str(uuid.uuid4())):
        for headers in ({}, HTMX):
            answer = app.post("/resume_session", {"session_id": session_id}, headers=headers)
            assert answer.status_code == 404 and "hx-redirect" not in answer.headers and "location" not in answer.headers
            assert "not found" in Page(answer).text and any(attrs.get("role") == "alert" for _, attrs in Page(answer).elements)
    assert app.cookie()[f"_workflow_session_id:{FLOW}"] == second

def test_create(serve):
    app = serve()
    page = Page(app.post("/create_session", {"label": "Mine"}, headers=HTMX))
    session_id = app.service.latest_session()
    assert page.rows == page.active == [session_id] and "Created “Mine”" in page.text and "1 session" in page.text
    assert app.post("/create_session").headers["location"] == PAGE and app.service.count() == 2
    assert app.cookie()["_workflow_session_id"] == app.service.latest_session() != session_id
    assert app.service.get_session(app.service.latest_session()).summary.label is None

def test_rename(serve):
    app = serve()
    ids = fill(app.service, 3)
    page = Page(app.post("/rename_session", {"session_id": ids[0], "label": "  New name "}, headers=HTMX))
    assert page.rows == [ids[0], ids[2], ids[1]] and "Renamed to “New name”" in page.text
    answer = app.post("/rename_session", {"session_id": ids[0], "label": " "})
    assert answer.status_code == 303 and app.browser.get(answer.headers["location"]).status_code == 200
    assert app.service.get_session(ids[0]).summary.label is None
    answer = app.post("/rename_session", {"session_id": ids[0], "label": "x" * 1001}, headers=HTMX)
    assert answer.status_code == 422 and "1,000" in answer.text
    assert app.post("/rename_session", {"session_id": ids[0]}, headers=HTMX).status_code == 422   # a missing label is not an empty one
    assert app.post("/rename_session", {"session_id": "none", "label": "x"}, headers=HTMX).status_code == 404

def test_delete_and_undo(serve):
    app = serve()
    ids = fill(app.service, 3)
    page = Page(app.post("/delete_session", {"session_id": ids[1]}, headers=HTMX))
    assert page.rows == [ids[2], ids[0]] and "Deleted “Session 001”" in page.text and "2 sessions" in page.text
    undo = [attrs["action"] for tag, attrs in page.elements if tag == "form"]
    assert undo == [f"{PAGE}/restore_session"] and ids[1] in page.attributes("value")
    again = app.post("/delete_session", {"session_id": ids[1]}, headers=HTMX)
    assert again.status_code == 200 and app.service.count() == 2
    assert ids[1] in Page(app.get("/trash")).attributes("value")
    page = Page(app.post("/restore_session", {"session_id": ids[1]}, headers=HTMX))
    assert page.rows == ids[::-1] and "Restored “Session 001”" in page.text
    assert app.post("/restore_session", {"session_id": ids[1]}, headers=HTMX).status_code == 200   # twice is fine
    answer = app.post("/delete_session", {"session_id": ids[1]})
    assert answer.status_code == 303
    page = Page(app.browser.get(answer.headers["location"]))
    assert "Deleted “Session 001”" in page.text and f"{PAGE}/restore_session" in page.attributes("action")
    for path in ("/session_detail", "/export_session", "/rename_session", "/fork_session", "/resume_session"):
        assert send(app.browser, path, fields_for(path, ids[1])).status_code == 404, path

def test_deleting_the_active_session_moves_the_pointer_and_says_where(serve):
    app = serve()
    ids = fill(app.service, 4)
    app.post("/resume_session", {"session_id": ids[3]})
    app.service.rename_session(ids[1], "Written last")
    page = Page(app.post("/delete_session", {"session_id": ids[3]}, headers=HTMX))
    assert app.cookie() == {"_workflow_session_id": ids[1], f"_workflow_session_id:{FLOW}": ids[1]}
    assert page.active == [ids[1]] and "Deleted “Session 003”" in page.text and "“Written last” is active now" in page.text

    page = Page(app.post("/delete_session", {"session_id": ids[0]}, headers=HTMX))   # not the active one
    assert app.cookie()["_workflow_session_id"] == ids[1] and "active now" not in page.text
    answer = app.post("/delete_session", {"session_id": ids[1]})
    assert app.cookie()["_workflow_session_id"] == ids[2] and Page(app.browser.get(answer.headers["location"])).active == [ids[2]]

    page = Page(app.post("/delete_session", {"session_id": ids[2]}, headers=HTMX))   # the last one
    fresh = app.service.latest_session()
    assert app.service.count() == 1 and fresh not in ids and app.cookie()["_workflow_session_id"] == fresh
    assert page.rows == page.active == [fresh] and "was created and is active now" in page.text

def test_another_browsers_pointer_is_left_alone(serve):
    app = serve()
    ids = fill(app.service, 3)
    other = app.visitor()
    other.post(PAGE + "/resume_session", data={"session_id": ids[0]})
    app.post("/delete_session", {"session_id": ids[0]}, headers=HTMX)
    assert app.cookie(other)["_workflow_session_id"] == ids[0] and app.cookie() == {}
    assert other.get(PAGE).status_code == 200 and Page(other.get(PAGE)).active == []

def test_fork(serve):
    app = serve()
    [session_id] = fill(app.service, 1)
    page = Page(app.post("/fork_session", {"session_id": session_id}, headers=HTMX))
    assert "Created “Copy of Session 000”" in page.text and len(page.rows) == 2 and app.cookie() == {}
    answer = app.post("/fork_session", {"session_id": session_id, "label": "Named"})
    assert answer.status_code == 303 and "Named" in app.browser.get(answer.headers["location"]).text

@pytest.mark.parametrize("session_id", ["plain-1", 'a"b; filename=evil.html', "a\\b", "日本語日本語日本語", "a b/c", "<b>"])
def test_export(session_id, serve):
    app = serve()
    app.service.store.create_session(FLOW, session_id, label="é", state={"a": [1, "\u202e"]}, current_step="pick")
    answer = app.get("/export_session", params={"session_id": session_id})
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("application/json") and answer.headers["cache-control"] == "no-store"
    header = Message()
    header["Content-Disposition"] = answer.headers["content-disposition"]
    assert header.get_content_disposition() == "attachment" and re.fullmatch(r"session-[^/\\]+\.json", header.get_filename())
    assert [k for k, _ in header.get_params(header="Content-Disposition")] == ["attachment", "filename"]
    imported = app.service.import_session(answer.json())
    assert app.service.get_state(imported) == {"a": [1, "\u202e"]}

def test_private_answers_stay_out_of_caches(serve):
    app = serve(get_owner=lambda request: "ann" if "x-ann" in request.headers else None)
    session_id = fill(app.service.for_owner("ann"), 2)[0]
    ann = {"X-Ann": "1"}
    for path in READS + WRITES:
        for headers in (ann | HTMX, ann, {}, ann | {"Accept": "application/json", "Sec-Fetch-Site": "cross-site"}):
            for fields in (fields_for(path, session_id), fields_for(path, "none")):
                answer = send(app.browser, path, fields, headers=headers)
                if answer.status_code != 303: assert answer.headers["cache-control"] == "no-store", (path, answer.status_code)   # no cache keeps a 303 (RFC 9110, 15.4.4)

def test_errors_come_in_the_form_that_was_asked_for(serve):
    app = serve()
    fill(app.service, 1)
    page, part, data = (app.get("/session_detail", params={"session_id": "none"}, headers=h) for h in ({}, HTMX, {"Accept": "application/json"}))
    assert "<html" in page.text and PAGE in Page(page).attributes("href") and "not found" in Page(page).text
    assert "<html" not in part.text and "beforeend" in Page(part).attributes("hx-swap-oob") and "not found" in Page(part).text
    assert "not found" in data.json()["error"] and {a.status_code for a in (page, part, data)} == {404}

def test_fragments_and_pages(serve):
    app = serve()
    fill(app.service, 2)
    for path in ("", "/session_detail", "/trash"):
        answer = send(app.browser, path, fields_for(path, app.service.latest_session()))
        assert answer.text.lstrip().startswith("<!doctype html>") and [tag for tag, _ in Page(answer).elements].count("main") == 1
    for path in MOVES: assert "<html" not in send(app.browser, path, fields_for(path, ""), headers=HTMX).text
    assert "<html" not in app.get("/list_sessions", headers=HTMX).text
    for answer in (app.get(), app.get("/list_sessions", headers=HTMX)): assert len(Page(answer).ids) == len(set(Page(answer).ids))


# -- the list ------------------------------------------------------------------------------------------------------------------

def test_moves_and_views_are_of_one_tab(serve):
    app = serve()
    ids = fill(app.service, 60)[::-1]
    tab = Page(app.get()).view
    def move(moves, before):
        page = Page(app.post("/vc/move", {"view": before, "moves": moves}, headers=HTMX))
        return page, page.view
    page, one = move("down*3", tab)
    assert page.cursor == 3 and set(page.rows) == {ids[0], ids[3]}   # the row that lost the cursor, the row that has it
    page, one = move("page_down", one)
    assert page.rows == ids[19:39] or page.rows == ids[20:40]
    page, two = move("last", tab)
    assert page.rows == ids[40:] and page.cursor == 59
    page, one = move("first", one)
    assert page.rows[0] == ids[0] and page.cursor == 0
    page, _ = move("up", two)
    assert page.cursor == 58
    assert move("focus*7", tab)[0].cursor == 7 and move("to*999 up*1", tab)[0].cursor == 58

def asked(statements): return len([s for s in statements if not s.startswith("PRAGMA")])   # a thread that is new sets its connection up

def test_a_move_reads_what_it_shows_and_no_more(statements, make, serve):
    calls = []
    app = serve(make(enricher=lambda state: calls.append(1) or {"n": state["n"]}), column_specs=[ColumnSpec("n", "N")])
    fill(app.service, 100)
    def cost(moves, **changes):
        calls.clear(); statements.clear()
        assert app.post("/vc/move", {"view": view(**changes), "moves": moves}, headers=HTMX).status_code == 200
        return len(calls), asked(statements)
    assert cost("down") == (2, 3)   # two rows; how many there are, which, their states
    assert cost("page_down") == cost("last") == cost("scroll*5") == (20, 3)
    for moves in ("to*99 scroll*-99", "last scroll*-9999", "first scroll*9999", "to*50 scroll*-100", "down*90 scroll*-300", "last first", "to*99 to*0"):
        for changes in ({}, {"start": 80, "cursor": 99}, {"rows": 5}): assert cost(moves, **changes)[0] <= 41, (moves, changes)   # at most a window, and the row that lost the cursor

def test_a_page_costs_the_same_number_of_statements_at_any_length(statements, make, serve):
    app = serve(make(enricher=lambda state: {"n": state.get("n")}, label_generator=lambda summary, state: f"x {state['n']}"), column_specs=[ColumnSpec("n", "N")], get_step_title=str)
    requests = [("", {}), ("", {"sort": "label"}), ("", {"sort": "n"}), ("", {"sort": "status"}), ("", {"q": "session"}), ("/vc/move", {"view": view(), "moves": "page_down"}), ("/vc/search", {"view": view(), "search": "1"}),
                ("/vc/sort", {"view": view(), "column": "size"}), ("/vc/refresh", {"view": view(sort="label", search="s")})]
    counted = []
    for n in (25, 100):
        fill(app.service, n)
        for path, fields in requests: send(app.browser, path, fields)   # the first brings up to date what lists sort and search by
        counts = []
        for path, fields in requests:
            statements.clear()
            assert len(Page(send(app.browser, path, fields, headers=HTMX)).rows) >= 10
            counts.append(asked(statements))
        counted.append(counts)
    assert counted[0] == counted[1], counted
    for (path, fields), count in zip(requests, counted[0]):
        searched = "q" in fields or "search" in fields or '"search": "s"' in fields.get("view", "")
        assert count <= (7 if searched else 5), (path, fields)   # count and rows of a search each look whether there is an index

def test_a_search_counts_what_it_shows(make, serve):
    "What the generator says may have changed since the last search."
    app = serve(make(label_generator=lambda summary, state: state["topic"]))
    ids = [app.service.create_session(state={"topic": "whales"}) for _ in range(3)]
    search = lambda text: Page(app.post("/vc/search", {"view": view(), "search": text}, headers=HTMX))
    assert len(search("whales").rows) == 3
    app.service.update_state(ids[0], {"topic": "bees"})
    page = search("bees")
    assert page.rows == [ids[0]] and "1 session found" in page.text
    app.service.update_state(ids[1], {"topic": "bees"})
    page = Page(app.get(params={"q": "whales"}))
    assert page.rows == [ids[2]] and "1 session found" in page.text
    page = Page(app.post("/vc/refresh", {"view": view(search="bees")}, headers=HTMX))
    assert set(page.rows) == set(ids[:2]) and "2 sessions found" in page.text

@pytest.mark.parametrize("title", [{"pick": "Choose"}.__getitem__, {"pick": "Choose"}.get, lambda step: 1 / 0, lambda step: ""], ids=["lookup error", "none", "fails", "empty"])
def test_a_step_title_that_fails_leaves_the_page(title, serve):
    app = serve(get_step_title=title)
    ids = fill(app.service, 6)
    assert sorted(Page(app.get()).rows) == sorted(Page(app.get("?sort=status&dir=asc")).rows) == sorted(ids)
    assert len(Page(app.post("/vc/sort", {"view": view(), "column": "status"}, headers=HTMX)).rows) == 6
    assert app.get("/session_detail", params={"session_id": ids[1]}).status_code == 200

def test_sort_and_place_come_with_the_address(serve):
    app = serve()
    ids = fill(app.service, 60)
    page = Page(app.get("?sort=label&dir=asc&q=session+0&at=30"))
    assert page.cursor == 30 and ids[30] in page.rows and "60 sessions found" in page.text
    assert [attrs["aria-sort"] for _, attrs in page.elements if "aria-sort" in attrs] == ["ascending"]
    [url] = page.attributes("data-url")
    assert Page(app.browser.get(url)).rows == page.rows
    page = Page(app.post("/rename_session", {"session_id": ids[30], "label": "Session 030b", "view": page.view}, headers=HTMX))
    assert page.cursor == 30 and ids[30] in page.rows

def test_an_answer_to_a_window_move_is_small(make, serve):
    app = serve(make(enricher=lambda state: {"files": f"{state['n']} files"}), column_specs=[ColumnSpec("files", "Files", "w-24")])
    fill(app.service, 100, "Transcripts of week {:02}")
    for changes in ({}, {"sort": "label", "search": "transcripts"}):
        answer = app.post("/vc/move", {"view": view(**changes), "moves": "page_down"}, headers=HTMX)
        assert len(Page(answer).rows) == 20 and len(answer.content) <= 20 * 1024
    assert len(app.post("/vc/move", {"view": view(), "moves": "down"}, headers=HTMX).content) <= 4 * 1024


# -- damage and faults -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("damage", ["'{broken'", "CAST(x'7b2261223a2022ff227d' AS TEXT)"], ids=["no JSON", "not UTF-8"])
def test_a_damaged_row_leaves_the_page(kind, make, damage, serve):
    app = serve(make(enricher=lambda state: {"n": state["n"]}), column_specs=[ColumnSpec("n", "N")])
    ids = fill(app.service, 3)
    kind.damage(app.service, ids[1], damage)
    page = Page(app.get())
    assert sorted(page.rows) == sorted(ids) and [title for title in page.attributes("aria-label") if "damaged" in title] and "Session 001" in page.text
    detail = Page(app.get("/session_detail", params={"session_id": ids[1]}))
    assert "damaged" in detail.text and "cannot be read" in detail.text
    for path in ("/export_session", "/fork_session"):
        answer = send(app.browser, path, {"session_id": ids[1]}, headers=HTMX)
        assert answer.status_code == 422 and "damaged" in answer.text
    assert app.post("/rename_session", {"session_id": ids[1], "label": "Bad"}, headers=HTMX).status_code == 200
    assert app.post("/resume_session", {"session_id": ids[1]}).status_code == 303
    assert app.post("/delete_session", {"session_id": ids[1]}, headers=HTMX).status_code == 200
    assert app.post("/restore_session", {"session_id": ids[1]}, headers=HTMX).status_code == 200

class Failing:
    "A store whose n-th call fails as a full disk does."
    def __init__(self, store, n): self.store, self.left = store, n

    def __getattr__(self, name):
        found = getattr(self.store, name)
        if not callable(found): return found
        def call(*args, **kwargs):
            self.left -= 1
            if self.left == 0: raise StoreUnavailable("sessions.db", "the disk is full: nothing was stored")
            return found(*args, **kwargs)
        return call

@pytest.mark.parametrize("path", READS + WRITES)
def test_a_store_that_fails_in_the_middle_is_said_so(path, serve):
    app = serve(get_step_title=str)
    store = app.service.store
    failed = 0
    for n in range(1, 30):
        ids = fill(app.service, 2)
        if path == "/restore_session": app.service.delete_session(ids[0])
        app.post("/resume_session", {"session_id": ids[0]})
        app.service.store = failing = Failing(store, n)
        try: answer = send(app.browser, path, fields_for(path, ids[0]) | ({"sort": "status"} if path in READS else {}), headers=HTMX if n % 2 else {})
        finally: app.service.store = store
        if failing.left > 0: break   # the action makes fewer calls than that
        failed += 1
        assert answer.status_code == 503 and "the disk is full" in answer.text and answer.headers["cache-control"] == "no-store"
        assert not any(word in answer.text for word in ("Traceback", "File ", ".py", "sqlite3"))
        assert any(attrs.get("role") == "alert" for _, attrs in Page(answer).elements)
    assert failed and n < 29
    assert app.get().status_code == 200

def test_a_failed_delete_leaves_the_pointer(monkeypatch, serve):
    app = serve()
    [session_id] = fill(app.service, 1)
    app.post("/resume_session", {"session_id": session_id})
    def fail(*args, **kwargs): raise StoreUnavailable("sessions.db", "locked")
    with monkeypatch.context() as m:
        m.setattr(app.service.store, "delete_session", fail)
        assert app.post("/delete_session", {"session_id": session_id}, headers=HTMX).status_code == 503
    assert app.cookie()["_workflow_session_id"] == session_id and app.service.session_exists(session_id)


# -- two managers in one app -------------------------------------------------------------------------------------------------------

@pytest.fixture
def two(make, serve):
    service, drafts = make(), make("drafts")
    return serve(service, (drafts, "/drafts/work", "/drafts/sessions")), service, drafts

def test_two_managers_do_not_mix(two):
    app, service, drafts = two
    ids, other = fill(service, 2), fill(drafts, 3, "Draft {}")
    first, second = Page(app.get()), Page(app.browser.get("/drafts/sessions"))
    assert sorted(first.rows) == sorted(ids) and sorted(second.rows) == sorted(other)
    own = lambda page: {i for i in page.ids if not re.match(r"wsm-(play|pencil|trash-2|arrow-up|arrow-down|chevrons-up-down|triangle-alert)$", i)}   # the same icons
    assert not own(first) & own(second) and own(first)
    assert not [v for name in ("action", "href", "data-moves", "data-url") for v in second.attributes(name) if v.startswith(PAGE) and "/assets/" not in v]
    app.post("/resume_session", {"session_id": ids[0]})
    answer = app.browser.post("/drafts/sessions/resume_session", data={"session_id": other[0]}, headers=HTMX)
    assert answer.headers["hx-redirect"] == "/drafts/work"
    assert app.cookie() | {"_workflow_session_id": None} == {"_workflow_session_id": None, f"_workflow_session_id:{FLOW}": ids[0], "_workflow_session_id:drafts": other[0]}
    assert Page(app.get()).active == [ids[0]] and Page(app.browser.get("/drafts/sessions")).active == [other[0]]
    app.browser.post("/drafts/sessions/delete_session", data={"session_id": other[0]}, headers=HTMX)
    assert Page(app.get()).active == [ids[0]] and app.cookie()["_workflow_session_id:drafts"] == other[2]
    for path in ("/session_detail", "/resume_session", "/delete_session"): assert send(app.browser, path, {"session_id": other[1]}).status_code == 404
    assert service.count() == 2 and drafts.count() == 2

def test_one_id_in_two_flows_is_active_in_one(two):
    app, service, drafts = two
    for s in (service, drafts): s.store.create_session(s.flow_id, "s1"); s.create_session()
    app.post("/resume_session", {"session_id": "s1"})
    assert Page(app.get()).active == ["s1"] and Page(app.browser.get("/drafts/sessions")).active == []
    app.browser.post("/drafts/sessions/delete_session", data={"session_id": "s1"}, headers=HTMX)
    assert app.cookie()[f"_workflow_session_id:{FLOW}"] == "s1" and "_workflow_session_id:drafts" not in app.cookie()

def test_views_of_two_managers_do_not_mix(two):
    app, service, drafts = two
    fill(service, 30); fill(drafts, 30)
    before = Page(app.browser.get("/drafts/sessions")).view
    for path in MOVES: send(app.browser, path, fields_for(path, "") | {"moves": "last"}, headers=HTMX)
    assert Page(app.browser.get("/drafts/sessions")).view == before

@pytest.mark.parametrize("one, other", [("/manage/sessions", "/manage"), ("/a", "/b"), ("/a", "/a/b"), ("/a/b", "/a-b"), ("/a_b", "/a/b"), ("/A", "/a"), ("/ä", "/ö")])
def test_different_prefixes_give_different_ids(one, other):
    ids = [{v for k, v in vars(ids_for(prefix)).items() if k.isupper()} for prefix in (one, other)]
    assert not ids[0] & ids[1]


# -- style and script ------------------------------------------------------------------------------------------------------------

def test_assets(serve):
    app = serve()
    for name, kind in (("sessions.css", "text/css"), ("sessions.js", "text/javascript"), ("manager.css", "text/css"), ("manager.js", "text/javascript")):
        answer = app.get(f"/assets/{name}")
        if answer.status_code == 404 and name.startswith("sessions"): continue   # not built
        assert answer.status_code == 200 and answer.headers["content-type"].startswith(kind) and answer.content
        assert "immutable" in answer.headers["cache-control"] and answer.headers["x-content-type-options"] == "nosniff"
        assert app.browser.head(f"{PAGE}/assets/{name}").status_code == 200
        assert app.post(f"/assets/{name}").status_code == 405

def test_only_the_pages_own_files_are_served(serve):
    app = serve()
    for name in ("nothing.js", "LICENSES.txt", "manager.js%00", "manager.js.map", "..%2fmodels.py", "%2e%2e%2fmodels.py", "..%5cmodels.py", "%2e%2e/%2e%2e/models.py", "....//models.py", "/etc/passwd", "%2fetc%2fpasswd", "Manager.js",
                 "%ff", "x" * 5000, "C:%5cwindows%5cwin.ini"):
        answer = app.browser.get(f"http://testserver{PAGE}/assets/{name}")
        assert answer.status_code == 404 and "dataclass" not in answer.text and "root:" not in answer.text, name

def tags(answer):
    page = Page(answer)
    return [u for u in page.attributes("href") + page.attributes("src") if "/assets/" in u]

def test_the_tags_are_there_once_whether_or_not_the_host_has_put_them(make):
    service = make()
    [session_id] = fill(service, 1)
    sessions = init_session_manager_routers(service, "/work")
    for hdrs in ((), sessions.hdrs):
        app = FastHTML(secret_key="test", hdrs=hdrs)
        for router in sessions.routers: router.to_app(app)
        client = TestClient(app)
        seen = [tags(client.get(PAGE + path, params={"session_id": session_id})) for path in ("", "/session_detail", "/trash")] + [tags(client.get(f"{PAGE}/session_detail?session_id=none")), tags(client.get(PAGE))]
        assert all(found == seen[0] for found in seen) and len(seen[0]) == 2 and len(set(seen[0])) == 2
        for url in seen[0]: assert client.get(url).status_code == 200

def test_each_manager_serves_its_own_tags(two):
    app, _, _ = two
    assert all(u.startswith((PAGE, "/drafts/sessions")) for u in tags(app.browser.get("/drafts/sessions")))
    for url in tags(app.browser.get("/drafts/sessions")): assert app.browser.get(url).status_code == 200
