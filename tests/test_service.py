"""The rules of sessions, over cjm-workflow-state's own store and over ours: names, order, search, owners, files, damage, cost."""

import inspect
import json
import logging
import os
import sqlite3
import subprocess
import sys
import uuid

import pytest

from cjm_workflow_sessions.errors import CorruptState, InvalidInput, NotJSON, SessionError, SessionNotFound
from cjm_workflow_sessions.services import management
from cjm_workflow_sessions.services.management import SessionManagementService
from cjm_workflow_sessions.utils import default_label, sort_text
from service_support import FLOW, clock, fill, kind, make, nested, snapshot, statements   # noqa: F401

def ids(rows): return [r.summary.session_id for r in getattr(rows, "rows", rows)]
def labels(rows): return [r.resolved_label for r in getattr(rows, "rows", rows)]
def whole(service, **kwargs): return service.page(limit=10**6, **kwargs)

HOSTILE = ["<img src=x onerror=alert(1)>", "\\'); alert(1); //", "ends with \\", "two\nlines", "\u202eabc", "😀", "é", "%", "_", "';DROP TABLE wfs_session;--", "x" * 1000, "\x01\x7f", "日本"]


# -- names -----------------------------------------------------------------------------------------------------------------

def name_of(service, **kwargs): return service.get_session(service.create_session(**kwargs)).resolved_label

def test_a_stored_label_comes_first_then_the_generator_then_the_time(make):
    named, plain = make(label_generator=lambda summary, state: f"{state.get('n')} files"), make()
    assert [name_of(named, label="Mine", state={"n": 1}), name_of(named, state={"n": 1})] == ["Mine", "1 files"]
    session_id = plain.create_session()
    assert plain.get_session(session_id).resolved_label == default_label(plain.get_session(session_id).summary.created_at)

@pytest.mark.parametrize("label", ["", " ", "\t\n", "\u00a0", None])
def test_a_blank_label_is_none(make, label):
    service = make(label_generator=lambda summary, state: "generated")
    session_id = service.create_session(label)
    assert (service.get_session(session_id).resolved_label, service.get_session(session_id).summary.label) == ("generated", None)
    service.rename_session(session_id, "named")
    service.rename_session(session_id, label)
    assert (service.get_session(session_id).resolved_label, service.get_session(session_id).summary.label) == ("generated", None)

def test_a_blank_label_that_another_program_stored_is_none(make):
    service = make()
    service.store.create_session(FLOW, "s1", label="  ")
    assert service.get_session("s1").resolved_label.startswith("Session 20")

@pytest.mark.parametrize("given", [None, "", "   ", 7, ["x"], b"bytes"])
def test_a_generator_that_gives_no_name_is_passed_over(make, given):
    assert name_of(make(label_generator=lambda summary, state: given)).startswith("Session 20")

def test_a_failing_generator_is_logged_and_the_others_show_as_usual(make, caplog):
    service = make(label_generator=lambda summary, state: f"{1 / state['n']}")
    fill(service, 3, label="")
    with caplog.at_level(logging.ERROR): assert sorted(labels(service.list_sessions()))[:2] == ["0.5", "1.0"]
    assert "ZeroDivisionError" in caplog.text

def test_a_failing_enricher_is_logged_and_said_on_its_row(make, caplog):
    service = make(enricher=lambda state: {"share": 1 / state["n"]})
    fill(service, 3)
    with caplog.at_level(logging.ERROR): rows = service.list_sessions()
    assert [r.enriched_fields for r in rows] == [{"share": "0.5"}, {"share": "1.0"}, {}]
    assert [bool(r.problem) for r in rows] == [False, False, True] and "ZeroDivisionError" in caplog.text

@pytest.mark.parametrize("given", [None, "text", ["a"], 5])
def test_an_enricher_that_gives_no_dict_leaves_the_row(make, given):
    row = (service := make(enricher=lambda state: given)).get_session(service.create_session("x"))
    assert (row.resolved_label, row.enriched_fields) == ("x", {}) and row.problem

def test_callbacks_get_copies(make):
    def enrich(state):
        state["list"].append(1); state["extra"] = 1
        return {}
    seen = []
    service = make(enricher=enrich, label_generator=lambda summary, state: seen.append(state) or "x")
    session_id = service.create_session(state={"list": []})
    service.get_session(session_id)
    assert seen == [{"list": []}] and service.get_state(session_id) == {"list": []}

def test_labels_are_trimmed_and_bounded(make):
    service = make()
    assert name_of(service, label="  x y ") == "x y"
    assert name_of(service, label="x" * 1000) == "x" * 1000
    session_id = service.create_session("before")
    for bad in ("x" * 1001, "a\x00b", 5, b"x", ["x"]):
        with pytest.raises(InvalidInput): service.create_session(bad)
        with pytest.raises(InvalidInput): service.rename_session(session_id, bad)
    assert service.get_session(session_id).resolved_label == "before" and service.count() == 3

@pytest.mark.parametrize("label", HOSTILE)
def test_any_text_is_a_name(make, label):
    service = make()
    session_id = service.create_session(label)
    assert service.get_session(session_id).resolved_label == label
    assert label in labels(service.list_sessions()) and ids(service.page(search=label)) == [session_id]
    assert label in service.get_session(service.fork_session(session_id)).resolved_label or len(label) == 1000

def test_half_a_surrogate_pair_becomes_a_character(make):
    service = make()
    session_id = service.create_session("a\ud800b")
    assert service.get_session(session_id).resolved_label == "a?b"

@pytest.mark.parametrize("name", ["a\udcffb.txt", "a\x00b"])
def test_what_a_generator_makes_of_an_odd_file_name(make, name):
    "File names that are not UTF-8 reach Python with half surrogate pairs (PEP 383), and JSON keeps them."
    service = make(enricher=lambda state: {"file": state["file"]}, label_generator=lambda summary, state: state["file"])
    session_id = service.create_session(state={"file": name})
    fill(service, 3)
    for order in ("updated", "label", "file"): assert session_id in ids(service.page(order_by=order))
    row = service.get_session(session_id)
    (row.resolved_label + row.enriched_fields["file"]).encode()   # a page is UTF-8
    assert ids(service.page(search=".txt" if ".txt" in name else "b")) == [session_id]
    assert service.get_state(service.fork_session(session_id)) == {"file": name}

def test_a_deep_state_is_no_fault_of_the_callbacks(make):
    service = make(enricher=lambda state: {"n": len(state)}, label_generator=lambda summary, state: "deep")
    row = service.get_session(service.create_session(state={"a": nested(500), "b": 1}))
    assert (row.enriched_fields, row.resolved_label, row.problem) == ({"n": "2"}, "deep", "")


# -- order -----------------------------------------------------------------------------------------------------------------

TITLES = {"pick": "10. Choose", "process": "9. Work", "review": "look"}

@pytest.fixture
def varied(make):
    "Sessions with ties in every column, in their order of creation."
    service = make(enricher=lambda state: {"files": f"{state['n'] % 4 * 7} files", "bytes": ("900 B", "1.5 KB", "2.0 MB")[state["n"] % 3]}, label_generator=lambda summary, state: f"made {'AbC'[state['n'] % 3]}")
    created = [service.create_session(None if i % 3 else f"Label {'xYz'[i % 2]}", state={"n": i, "pad": "x" * (i % 5)}, current_step=[*TITLES, "gone", None][i % 5]) for i in range(30)]
    for i in (3, 17, 9): service.update_state(created[i], {"pad": ""})
    return service, created

def shown(row, column):
    "What a row sorts by in a column: what it shows there, as a person reads it."
    if column == "label": return row.resolved_label.casefold()
    if column == "status": return sort_text(TITLES[row.summary.current_step]) if row.summary.current_step in TITLES else row.summary.current_step or ""
    if column == "updated": return row.summary.updated_at
    if column == "created_at": return row.summary.created_at
    if column == "size": return row.summary.state_size_bytes
    number, unit = row.enriched_fields[column].split()
    return float(number) * {"files": 1, "B": 1, "KB": 1024, "MB": 1024**2}[unit]

@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("column", ["label", "status", "updated", "size", "created_at", "files", "bytes"])
def test_every_column_sorts_by_what_it_shows_and_keeps_ties_in_order(varied, column, descending):
    service, created = varied
    rows = whole(service, order_by=column, descending=descending, step_title=lambda step: TITLES.get(step, step)).rows
    keys = [(shown(r, column), created.index(r.summary.session_id)) for r in rows]
    assert keys == sorted(keys, reverse=descending) and len(keys) == 30

@pytest.mark.parametrize("column", ["label", "status", "updated", "size", "files"])
def test_pages_join_to_the_whole_list(varied, column):
    service, _ = varied
    for descending in (False, True):
        wanted = ids(whole(service, order_by=column, descending=descending))
        found, anchor = [], None
        for start in range(0, 30, 7):
            page = service.page(start=start, limit=7, order_by=column, descending=descending, anchor=anchor)
            assert page.total == 30 and page.start == start
            found, anchor = found + ids(page), page.anchor
        assert found == wanted
        back = service.page(start=11, limit=5, order_by=column, descending=descending, anchor=anchor, total=30)
        assert ids(back) == wanted[11:16]

@pytest.mark.parametrize("start, expected", [(-5, 0), (0, 0), (9, 9), (10, 9), (10**9, 9)])
def test_a_start_outside_the_list_is_moved_into_it(make, start, expected):
    service = make()
    fill(service, 10)
    page = service.page(start=start, limit=3)
    assert page.start == expected and ids(page) == ids(service.list_sessions())[expected:expected + 3]

def test_an_empty_list(make):
    page = make().page(start=5)
    assert (page.rows, page.total, page.start) == ([], 0, 0)

def test_sorting_by_label_follows_what_the_generator_says_now(make):
    service = make(label_generator=lambda summary, state: state["name"])
    a, b = service.create_session(state={"name": "b"}), service.create_session(state={"name": "c"})
    assert ids(whole(service, order_by="label", descending=False)) == [a, b]
    service.update_state(b, {"name": "a"})
    assert ids(whole(service, order_by="label", descending=False)) == [b, a]
    service.rename_session(b, "z")
    assert ids(whole(service, order_by="label", descending=False)) == [a, b]
    service.rename_session(b, None)
    assert ids(whole(service, order_by="label", descending=False)) == [b, a]

def test_a_step_that_the_flow_has_lost_still_sorts(make):
    "A flow may be edited while somebody is inside it."
    service = make()
    fill(service, 5)
    gone = service.create_session(current_step="gone")
    for title in (TITLES.__getitem__, TITLES.get, lambda step: 1 / 0):
        assert gone in ids(whole(service, order_by="status", step_title=title))

@pytest.mark.parametrize("field", ["created_at", "updated_at"])
def test_a_column_of_the_host_with_the_name_of_one_of_ours_sorts_by_what_it_shows(make, field):
    service = make(enricher=lambda state: {field: f"{9 - state['n']} o'clock"})
    fill(service, 5)
    values = [r.enriched_fields[field] for r in whole(service, order_by=field, descending=False).rows]
    assert values == sorted(values)

@pytest.mark.parametrize("column", ["nothing", "", "a.b", '"', "x'); --", "$", "\x00", "日本", "x" * 1000])
def test_an_unknown_column_orders_by_creation(make, column):
    service = make()
    created = fill(service, 4)
    assert ids(whole(service, order_by=column, descending=False)) == created


# -- search ----------------------------------------------------------------------------------------------------------------

NAMES = ["Straße", "STRASSE 2", "İstanbul", "Ünïcode", "100%", "1000", "a_b", "aXb", "back\\slash", "backslash", "[x]", "x*y", "日本語", "😀 party", "it's", '"q"', "tab\there", "plain"]

@pytest.mark.parametrize("needle", ["strasse", "STRASSE", "straße", "ISTANBUL", "istanbul", "ünïCODE", "%", "0%", "_", "a_b", "\\", "k\\s", "[x]", "*", "日本", "😀", "'", '"', "tab\t", "plain", "PLAIN", " ", "none of them"])
def test_search_is_literal_and_ignores_case(make, needle):
    service = make()
    for label in NAMES: service.create_session(label)
    wanted = {n for n in NAMES if needle.casefold() in n.casefold()}
    page = whole(service, search=needle)
    assert set(labels(page)) == wanted and page.total == service.count(needle) == len(wanted)

def test_search_finds_the_label_that_is_shown(make):
    service = make(label_generator=lambda summary, state: f"Report on {state['topic']}")
    first, second = (service.create_session(state={"topic": t}) for t in ("whales", "bees"))
    assert ids(service.page(search="WHALES")) == [first]
    service.update_state(first, {"topic": "bees"})
    assert ids(service.page(search="whales")) == [] and set(ids(service.page(search="bees"))) == {first, second}
    with service.edit_state(second) as state: state["topic"] = "ants"
    assert ids(service.page(search="ants")) == [second]
    service.rename_session(second, "Mine")
    assert ids(service.page(search="ants")) == [] and ids(service.page(search="mine")) == [second]
    service.rename_session(second, "")
    assert ids(service.page(search="ants")) == [second]

def test_search_finds_default_labels(make):
    service = make()
    session_id = service.create_session()
    service.create_session("named")
    assert ids(service.page(search=service.get_session(session_id).resolved_label.upper())) == [session_id]

def test_search_sees_other_callbacks_of_a_new_release(make):
    old, new = make(label_generator=lambda summary, state: "old"), make(label_generator=lambda summary, state: "new")
    old.create_session()
    assert [(s.count(word), s.page(search=word).total) for s in (old, new) for word in ("old", "new")] == [(1, 1), (0, 0), (0, 0), (1, 1)]

def test_search_within_sorted_pages(make):
    service = make()
    fill(service, 30)
    page = service.page(start=5, limit=3, order_by="label", descending=True, search="session 01")
    assert labels(page) == ["Session 014", "Session 013", "Session 012"] and page.total == 10

@pytest.mark.parametrize("needle", ["\x00", "a\x00", "\ud800", "ﬃ" * 400])
def test_search_for_what_no_label_holds(make, needle):
    service = make()
    service.create_session("a")
    try: assert service.page(search=needle).total == 0
    except InvalidInput: pass

DIGEST = """
from cjm_workflow_sessions.services.management import callbacks_version
def enrich(state): return {"kind": "picture" if state["type"] in {"png", "jpg", "gif", "webp"} else "other"}
print(callbacks_version(enrich))
"""

def test_two_processes_give_the_same_callbacks_the_same_version():
    "Else each of two workers makes anew what the other has just made."
    run = lambda seed: subprocess.run([sys.executable, "-c", DIGEST], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True).stdout
    assert run("1") == run("2") and len(run("1").strip()) == 16


# -- flows -----------------------------------------------------------------------------------------------------------------

FLOWS = ["a_b", "axb", "A_B", "a:b", "a", "a%", "a%b", "a_", "", "ä", "a b", "a\\b", "a'b"]

def test_flows_are_exact(make):
    services = {flow: make(flow) for flow in FLOWS}
    created = {flow: service.create_session(f"of {flow}") for flow, service in services.items()}
    for flow, service in services.items():
        assert (service.count(), service.page().total, ids(service.list_sessions()), ids(service.page(search="of"))) == (1, 1, [created[flow]], [created[flow]])
        for other in FLOWS:
            assert service.session_exists(created[other]) == (other == flow)
            if other != flow: service.delete_session(created[other])
    assert all(service.count() == 1 for service in services.values())
    services["a_b"].delete_session(created["a_b"])
    assert [flow for flow, service in services.items() if service.trash()] == ["a_b"]
    assert services["a_b"].cleanup(idle_s=0).trashed == [] and services["a:b"].count() == 1


# -- owners ----------------------------------------------------------------------------------------------------------------

ARGUMENTS = {"label": "x", "updates": {"x": 1}, "step_id": "pick"}
WITH_ID = [name for name, f in inspect.getmembers(SessionManagementService, inspect.isfunction) if not name.startswith("_") and "session_id" in inspect.signature(f).parameters]

def call(service, name, session_id):
    "What a method does with an id: its result, or the error it raises, without the id."
    extra = {p.name: ARGUMENTS[p.name] for p in list(inspect.signature(getattr(service, name)).parameters.values())[1:] if p.default is p.empty}
    try:
        result = getattr(service, name)(session_id, **extra)
        if hasattr(result, "__enter__"):
            with result as state: state["x"] = 1
            result = None
    except SessionError as e: result = e
    return type(result).__name__, str(result).replace(session_id, "ID") if session_id else str(result)

@pytest.mark.parametrize("trashed", [False, True])
@pytest.mark.parametrize("name", WITH_ID)
def test_another_owners_id_is_like_an_unknown_one(make, name, trashed):
    ann, bob = make().for_owner("ann"), make().for_owner("bob")
    hers, his = ann.create_session("Ann's", state={"secret": 1}, current_step="pick"), bob.create_session("Bob's")
    if trashed: ann.delete_session(hers)
    before = snapshot(ann), snapshot(bob)
    foreign, unknown = call(bob, name, hers), call(bob, name, str(uuid.uuid4()))
    assert foreign == unknown
    assert foreign[1] in ("False", "None", "[]", "{}") or foreign[0] == "SessionNotFound"
    assert (snapshot(ann), snapshot(bob)) == before
    if not trashed: assert call(bob, name, his) != unknown or name in ("rename_session", "delete_session", "trashed_session")

def test_the_walk_knows_every_method():
    assert {"get_session", "require_session", "rename_session", "delete_session", "restore_session", "fork_session", "export_session", "get_state", "update_state", "edit_state", "trashed_session"} <= set(WITH_ID)

def test_lists_hold_ones_own_only(make):
    everyone = make(label_generator=lambda summary, state: f"generated {summary.owner}")
    services = {owner: everyone.for_owner(owner) for owner in ("ann", "bob", "Ann", "ann ", "a%", "a_n", "😀")}
    own = {owner: [s.create_session() for _ in range(3)] for owner, s in services.items()}
    shared = everyone.create_session()
    for owner, service in services.items():
        mine = set(own[owner])
        service.delete_session(own[owner][0])
        live = mine - {own[owner][0]}
        assert set(ids(service.list_sessions())) == set(ids(service.page(search="generated"))) == set(ids(service.page(order_by="label"))) == live
        assert service.count() == service.count("generated") == 2 and service.latest_session() in live
        assert set(ids(service.trash())) == {own[owner][0]} and set(service.idle_sessions(0)) <= live
        assert all(r.summary.owner == owner for r in service.list_sessions())
    assert everyone.count() == 2 * len(services) + 1 and shared in ids(everyone.list_sessions())

def test_copies_and_imports_belong_to_the_one_who_makes_them(make):
    ann, bob = make().for_owner("ann"), make().for_owner("bob")
    session_id = ann.create_session("x", state={"a": 1})
    copied, imported = ann.fork_session(session_id), bob.import_session(ann.export_session(session_id))
    assert ann.get_session(copied).summary.owner == "ann" and not ann.session_exists(imported)
    assert bob.get_session(imported).summary.owner == "bob" and bob.count() == 1

def test_cleaning_up_stays_with_the_owner(make, clock):
    ann, bob = make().for_owner("ann"), make().for_owner("bob")
    for s in (ann, bob): s.delete_session(s.create_session()); s.create_session()
    clock.ahead_s = 10**6
    report = bob.cleanup(idle_s=60)
    assert (len(report.trashed), report.purged, bob.count(), len(bob.trash())) == (1, 1, 0, 1)
    assert (ann.count(), ann.store.count_sessions(FLOW, owner="ann", in_trash=True)) == (1, 1)
    assert ann.trash() == []   # it has been there too long to be restored, and waits for a clean-up of its own owner

@pytest.mark.parametrize("owner", ["", None, 5, b"ann", ["ann"]])
def test_nobody_is_no_owner(make, owner):
    with pytest.raises(InvalidInput): make().for_owner(owner)

def test_binding_leaves_the_service_as_it_is(make):
    service = make()
    bound = service.for_owner("ann")
    assert (service.owner, bound.owner, bound.for_owner("bob").owner, bound.flow_id) == (None, "ann", "bob", FLOW)

@pytest.mark.parametrize("session_id", ["", " ", "none", "\x00", "\ud800", "a:b", "%", "x" * 100_000, "'; --"])
def test_an_odd_id_is_an_unknown_id(make, session_id):
    service = make()
    fill(service, 2)
    before = snapshot(service)
    for name in WITH_ID:
        kind, text = call(service, name, session_id)
        assert kind == "SessionNotFound" or text in ("False", "None", "[]"), (name, kind, text)
    assert snapshot(service) == before


# -- trash, copies, files ----------------------------------------------------------------------------------------------------

def test_delete_and_restore(make):
    service = make()
    first, second = service.create_session("One", state={"a": 1}, current_step="pick"), service.create_session("Two")
    before = snapshot(service)
    service.delete_session(first)
    assert ids(service.list_sessions()) == [second] and service.count() == 1 and service.count("one") == 0 and ids(service.trash()) == [first]
    row = service.trashed_session(first)
    assert row.resolved_label == "One" and row.summary.deleted_at and service.trashed_session(second) is None
    for name in ("update_state", "set_current_step", "rename_session", "edit_state"): call(service, name, first)
    service.restore_session(first)
    assert snapshot(service) == before
    service.restore_session(first)   # a second click is fine
    with pytest.raises(SessionNotFound): service.restore_session("none")

def test_fork(make):
    service = make(label_generator=lambda summary, state: f"{state['n']} files")
    session_id = service.create_session(state={"n": 3, "deep": {"list": [1]}}, current_step="review")
    copied = service.fork_session(session_id)
    row = service.get_session(copied)
    assert copied != session_id and (row.resolved_label, row.summary.current_step) == ("Copy of 3 files", "review")
    assert service.get_state(copied) == service.get_state(session_id)
    service.update_state(copied, {"n": 4})
    assert service.get_state(session_id)["n"] == 3
    assert service.get_session(service.fork_session(session_id, "Named")).resolved_label == "Named"
    long = service.create_session("x" * 1000, state={"n": 1})
    assert len(service.get_session(service.fork_session(long)).resolved_label) == 1000
    with pytest.raises(InvalidInput): service.fork_session(session_id, "x" * 1001)
    with pytest.raises(SessionNotFound): service.fork_session("none")

def test_export_and_import(make):
    service, other = make(), make("other")
    state = {"a": [1, 2.5, None, True, "\u202e😀"], "": {"b": "\ud800"}, "big": 10**40}
    session_id = service.create_session("Name", state=state, current_step="pick")
    data = service.export_session(session_id)
    assert {k: data[k] for k in ("format", "version", "flow_id", "session_id", "label", "current_step", "state")} == {
        "format": "cjm-workflow-session", "version": 1, "flow_id": FLOW, "session_id": session_id, "label": "Name", "current_step": "pick", "state": state}
    imported = service.import_session(json.loads(json.dumps(data)))
    assert imported != session_id and service.get_state(imported) == state
    row = service.get_session(imported)
    assert (row.resolved_label, row.summary.current_step) == ("Name", "pick")
    with pytest.raises(InvalidInput, match="ingest"): other.import_session(data)
    assert (service.count(), other.count()) == (2, 0)

GOOD = {"format": "cjm-workflow-session", "version": 1, "flow_id": FLOW, "label": None, "current_step": None, "state": {}}
DEEP = nested(100_000)
BAD = {
    "nothing": None, "text": "x", "number": 5, "list": [GOOD], "empty": {}, "no format": {k: v for k, v in GOOD.items() if k != "format"},
    "other format": GOOD | {"format": "x"}, "no version": {k: v for k, v in GOOD.items() if k != "version"}, "newer": GOOD | {"version": 2}, "older": GOOD | {"version": 0},
    "version as text": GOOD | {"version": "1"}, "no state": {k: v for k, v in GOOD.items() if k != "state"}, "state list": GOOD | {"state": [1]},
    "state null": GOOD | {"state": None}, "state text": GOOD | {"state": "{}"}, "label number": GOOD | {"label": 5}, "label list": GOOD | {"label": ["x"]}, "label too long": GOOD | {"label": "x" * 1001},
    "label NUL": GOOD | {"label": "a\x00"}, "step number": GOOD | {"current_step": 5}, "step NUL": GOOD | {"current_step": "a\x00"}, "step half pair": GOOD | {"current_step": "\ud800"},
    "other flow": GOOD | {"flow_id": "other"}, "no flow": {k: v for k, v in GOOD.items() if k != "flow_id"}, "flow number": GOOD | {"flow_id": 5},
    "NaN": GOOD | {"state": {"a": float("nan")}}, "infinity": GOOD | {"state": {"a": [float("inf")]}}, "deep state": GOOD | {"state": {"a": DEEP}},
    "deep version": GOOD | {"version": DEEP}, "deep flow": GOOD | {"flow_id": DEEP}, "deep format": GOOD | {"format": DEEP}, "deep label": GOOD | {"label": DEEP}, "large version": GOOD | {"version": "x" * 10**6},
}

@pytest.mark.parametrize("name", BAD)
def test_what_is_no_export_is_refused(make, name):
    service = make()
    with pytest.raises((InvalidInput, NotJSON)) as e: service.import_session(BAD[name])
    assert service.count() == 0 and len(str(e.value)) < 2000

@pytest.mark.parametrize("key", ["a", "", "\x00", "\ud800", "__proto__", "_step_pick", "x" * 10_000])
def test_any_key_comes_back(make, key):
    service = make()
    session_id = service.import_session(GOOD | {"state": {key: {key: 1}}})
    assert service.get_state(session_id) == {key: {key: 1}}

def test_whatever_goes_in_can_be_listed_read_copied_and_exported(make):
    service = make()
    other = service.create_session("other")
    def takes(depth):
        try: return service.create_session("deep", state={"a": nested(depth)})
        except NotJSON: return None
    low, high = 1, 20_000
    while high - low > 1:
        middle = (low + high) // 2
        session_id = takes(middle)
        if session_id: service.store.clear_state(FLOW, session_id)
        low, high = (middle, high) if session_id else (low, middle)
    for depth in {max(1, low - 2), max(1, low - 1), low}:
        session_id = takes(depth)
        assert service.get_state(session_id) == {"a": nested(depth)}
        assert {session_id, other} <= set(ids(service.list_sessions())) and not service.get_session(session_id).problem
        service.import_session(service.export_session(session_id))
        service.fork_session(session_id)

def test_cleanup(make, clock):
    service = make()
    old = fill(service, 5)
    deleted = service.create_session()
    service.delete_session(deleted)
    clock.ahead_s = 30 * 3600
    fresh = service.create_session("fresh")
    before = snapshot(service)
    assert service.cleanup_preview() == management.CleanupReport([], 1)
    assert service.cleanup_preview(idle_s=29 * 3600) == management.CleanupReport(old, 1)   # the longest idle first
    assert service.cleanup_preview(idle_s=31 * 3600) == management.CleanupReport([], 1)
    assert snapshot(service) == before
    assert service.cleanup(idle_s=29 * 3600) == management.CleanupReport(old, 1)
    assert ids(service.list_sessions()) == [fresh] and set(ids(service.trash())) == set(old)
    with pytest.raises(SessionNotFound): service.restore_session(deleted)
    service.restore_session(old[0])
    assert service.cleanup() == service.cleanup_preview() == management.CleanupReport([], 0)

def test_cleanup_takes_the_whole_of_a_long_list(make, clock, monkeypatch):
    service = make()
    old, read = fill(service, 12), service.store.page_sessions
    monkeypatch.setattr(service.store, "page_sessions", lambda *args, **kwargs: read(*args, **kwargs | {"limit": min(5, kwargs.get("limit", 5))}))
    clock.ahead_s = 100
    service.rename_session(old[0], "used")
    assert service.cleanup(idle_s=50).trashed == old[1:]

def test_trash_is_kept_for_its_time(make, clock):
    service = make(trash_s=60)
    service.delete_session(service.create_session())
    for clock.ahead_s, purged in ((50, 0), (70, 1), (80, 0)): assert service.cleanup_preview().purged == service.cleanup().purged == purged


# -- the state ---------------------------------------------------------------------------------------------------------------

def test_state_and_step(make):
    service = make()
    session_id = service.create_session(state={"a": 1})
    service.update_state(session_id, {"b": [1]})
    service.set_current_step(session_id, "review", {"c": 2})
    service.update_step_state(session_id, "review", {"x": 1})
    service.update_step_state(session_id, "review", {"y": 2})
    with service.edit_state(session_id) as state: state["b"].append(2)
    assert service.get_state(session_id) == {"a": 1, "b": [1, 2], "c": 2, "_step_review": {"x": 1, "y": 2}}
    assert (service.get_current_step(session_id), service.get_step_state(session_id, "review"), service.get_step_state(session_id, "none")) == ("review", {"x": 1, "y": 2}, {})
    empty = service.create_session()
    assert (service.get_state(empty), service.get_current_step(empty)) == ({}, None)

@pytest.mark.parametrize("value", [object(), {1, 2}, b"x", float("nan"), 1j, DEEP, {("a",): 1}], ids=lambda value: type(value).__name__)
def test_what_json_cannot_hold_is_named_and_not_stored(make, value):
    service = make()
    session_id = service.create_session(state={"a": 1})
    before = snapshot(service)
    for write in (lambda: service.update_state(session_id, {"ok": 1, "bad": value}), lambda: service.set_current_step(session_id, "x", {"bad": value}), lambda: service.create_session(state={"bad": value})):
        with pytest.raises(NotJSON, match="bad"): write()
    assert snapshot(service) == before


CIRCLE = """
import resource
from cjm_workflow_sessions.errors import NotJSON
from cjm_workflow_sessions.services.management import SessionManagementService
from cjm_workflow_sessions.stores.sqlite import SQLiteSessionStore
service = SessionManagementService(SQLiteSessionStore(":memory:"), "ingest")
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
circle = []
circle += [circle, {"again": circle}]
try: service.create_session(state={"circle": circle})
except NotJSON as e: print(e)
"""

def test_a_value_that_holds_itself_is_refused_at_once():
    done = subprocess.run([sys.executable, "-c", CIRCLE], capture_output=True, text=True, timeout=10)
    assert done.returncode == 0 and "circle" in done.stdout, done.stderr[-300:]


# -- damage ------------------------------------------------------------------------------------------------------------------

DAMAGE = {"cut off": "'{\"a\": [1, '", "no JSON": "'{broken'", "empty": "' '", "bytes": "x'00ff'", "not UTF-8": "CAST(x'7b2261223a2022ff227d' AS TEXT)", "too deep": f"'{'[' * 50_000}{']' * 50_000}'",
          "NUL": "'{\"a\":' || char(0) || '1}'"}

@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_a_warning_on_its_row_and_nothing_else(kind, make, damage):
    plain, named = make(), make(enricher=lambda state: {"n": state.get("n")}, label_generator=lambda summary, state: f"generated {state['n']}")
    created = [plain.create_session(label, state={"n": i}) for i, label in enumerate((None, "Bad", None))]
    if kind.server and damage == "NUL": pytest.skip("PostgreSQL holds no such text")
    kind.damage(plain, created[1], DAMAGE[damage])
    for service in (plain, named):
        for rows in (service.list_sessions(), service.page().rows, whole(service, order_by="label", descending=True).rows[::-1], whole(service, order_by="size").rows):
            found = {r.summary.session_id: r for r in rows}
            assert set(found) == set(created) and [bool(found[i].problem) for i in created] == [False, True, False]
            assert found[created[1]].resolved_label == "Bad"
        assert service.count() == 3 and ids(service.page(search="bad")) == [created[1]]
        assert service.get_session(created[1]).problem and service.session_exists(created[1])
        for read in (service.get_state, service.export_session, service.fork_session):
            with pytest.raises(CorruptState) as e: read(created[1])
            assert e.value.session_id == created[1]
    assert [named.get_session(i).resolved_label for i in created] == ["generated 0", "Bad", "generated 2"]
    assert [named.get_session(i).enriched_fields for i in created] == [{"n": "0"}, {}, {"n": "2"}]
    named.rename_session(created[1], None)
    assert named.get_session(created[1]).resolved_label.startswith("Session 20")
    assert named.get_state(created[0]) == {"n": 0} and named.count() == 3
    named.delete_session(created[1])
    assert len(named.trash()) == 1 and [r.problem for r in named.list_sessions()] == ["", ""]
    named.restore_session(created[1])
    assert named.count() == 3


# -- cost --------------------------------------------------------------------------------------------------------------------

PAGES = [dict(), dict(order_by="size"), dict(order_by="created_at"), dict(order_by="status", step_title=lambda step: f"Step {step}"), dict(order_by="label"), dict(order_by="files"), dict(search="session 0"),
         dict(search="session 0", order_by="label"), dict(start=7), dict(start=10, order_by="label", descending=False)]

@pytest.mark.parametrize("callbacks", [False, True])
def test_a_page_costs_the_same_number_of_statements_at_any_length(statements, make, callbacks):
    service = make(**(dict(enricher=lambda state: {"files": state.get("n")}, label_generator=lambda summary, state: f"x {state['n']}") if callbacks else {}))
    counted = []
    for _ in range(2):
        fill(service, 30 if not counted else 270)
        for page in PAGES: service.page(limit=20, **page)   # the first brings up to date what lists sort and search by
        counts = []
        for page in PAGES:
            statements.clear()
            rows = service.page(limit=20, **page).rows
            counts.append(len(statements))
            assert rows
        counted.append(counts)
    assert counted[0] == counted[1] and counted[0][0] == 3, counted   # count, rows, their states
    for page, count in zip(PAGES, counted[0]): assert count <= (7 if "search" in page else 5), page   # count and rows of a search each look whether there is an index

def test_only_the_rows_shown_are_enriched(make):
    calls = {"enricher": 0, "generator": 0}
    def enrich(state): calls["enricher"] += 1; return {"n": state["n"]}
    def name(summary, state): calls["generator"] += 1; return f"number {state['n']:04}"
    service = make(enricher=enrich, label_generator=name)
    fill(service, 300, label="")
    def cost(read):
        calls.update(enricher=0, generator=0)
        read()
        return calls["enricher"], calls["generator"]
    assert cost(lambda: service.page(limit=20)) == (20, 20)
    assert cost(lambda: service.page(start=200, limit=5, order_by="size")) == (5, 5)
    assert cost(service.count) == cost(service.latest_session) == (0, 0)
    service.page(order_by="label", limit=1)   # brings up to date what lists sort and search by
    for page in (dict(order_by="label"), dict(order_by="n"), dict(search="number 00"), dict(order_by="label", search="01", descending=False)):
        assert cost(lambda: service.page(limit=20, **page)) == (20, 20), page
    service.update_state(service.latest_session(), {"n": 7})
    assert cost(lambda: service.page(order_by="label", limit=20)) == (21, 21)
    assert cost(lambda: service.get_session(service.latest_session())) == (1, 1)

def test_states_of_other_rows_are_not_read(statements, make):
    service = make()
    for i in range(40): service.create_session(f"s{i}", state={"mark": f"state-{i:02}", "pad": "x" * 5000})
    reads = []
    states = service.store.get_states
    service.store.get_states = lambda flow, session_ids, **kwargs: reads.append(list(session_ids)) or states(flow, session_ids, **kwargs)
    rows = service.page(start=10, limit=5).rows
    assert reads == [ids(rows)]

def test_a_large_state_is_read_only_for_the_callbacks(make):
    for service, expected in ((make(), 0), (make(enricher=lambda state: {"n": len(state["pad"])}), 1)):
        service.create_session(state={"pad": "x" * 400_000})
        reads, states = [], service.store.get_states
        service.store.get_states = lambda flow, session_ids, states=states, **kwargs: reads.extend(session_ids) or states(flow, session_ids, **kwargs)
        service.page(limit=1)
        service.store.get_states = states
        assert len(reads) == expected

def test_lists_longer_than_a_statement_takes_arguments(monkeypatch, make):
    "SQLite takes 32,766 arguments unless it was built otherwise; a list of every session is longer some day."
    connect = sqlite3.connect
    def limited(*args, **kwargs):
        connection = connect(*args, **kwargs)
        connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 300)
        return connection
    monkeypatch.setattr(sqlite3, "connect", limited)
    service = make(enricher=lambda state: {"n": state["n"]})
    created = fill(service, 400)
    assert ids(service.list_sessions()) == created[::-1]
    assert len(ids(whole(service, order_by="n"))) == 400
