"""What every session store keeps to. A new store is added to `KINDS`; nothing else here knows which store it tests.

A test that a store cannot pass says so by `cannot`, with the reason.
"""

import asyncio
import contextvars
import json
import random
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Callable

import pytest
from cjm_workflow_state.state_store import SQLiteWorkflowStateStore

from cjm_workflow_sessions.errors import CorruptState, InvalidInput, NotJSON, SessionExists, SessionNotFound, StoreError
from cjm_workflow_sessions.stores.base import ORDER_COLUMNS, Order, SessionStore, Shown
from cjm_workflow_sessions.stores.cjm import CjmStore
from cjm_workflow_sessions.stores.postgres import PostgresSessionStore
from cjm_workflow_sessions.stores.sqlite import SQLiteSessionStore
from cjm_workflow_sessions.utils import default_label, is_blank, now_us, parse_sqlite_timestamp
from store_support import in_threads

FLOW = "ingest"


# -- the stores ----------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Kind:
    "How to open one kind of store, and how to damage it from outside."
    open: Callable # (folder, or the server) -> an empty store
    damage: Callable # (store, session_id, key) -> None: makes the stored value of a key of FLOW unreadable
    second: Callable|None = None # (store) -> another store object on the same data, as another process would open it
    server: bool = False # Whether it lives on the test's PostgreSQL server

def _damage_rows(store, session_id, key):
    with store.transaction() as run:
        assert run("UPDATE wfs_value SET value = '{broken' WHERE key = ? AND id = (SELECT id FROM wfs_session WHERE flow_id = ? AND session_id = ?) RETURNING id",
                   (json.dumps(key), FLOW, session_id))

def _damage_cjm(store, session_id, key):
    with store.store._get_connection() as db:
        assert db.execute("UPDATE workflow_state SET state_json = '{broken' WHERE flow_session_key = ?", (f"{FLOW}:{session_id}",)).rowcount

KINDS = {
    "sqlite": Kind(lambda folder: SQLiteSessionStore(folder / "sessions.db"), _damage_rows, lambda store: SQLiteSessionStore(store.where)),
    "memory": Kind(lambda folder: SQLiteSessionStore(":memory:"), _damage_rows),
    "cjm": Kind(lambda folder: CjmStore(SQLiteWorkflowStateStore(folder / "state.db")), _damage_cjm, lambda store: CjmStore(SQLiteWorkflowStateStore(store.where))),
    "postgres": Kind(lambda server: PostgresSessionStore(server.fresh_url()), _damage_rows, lambda store: PostgresSessionStore(store._db.libpq), server=True),
}

@pytest.fixture(params=KINDS)
def kind(request): return KINDS[request.param]

@pytest.fixture
def store(kind, tmp_path, request):
    store = kind.open(request.getfixturevalue("postgres") if kind.server else tmp_path)
    yield store
    store.close()

@pytest.fixture
def second(kind, store):
    if kind.second is None: pytest.skip("this store is reached through one object only")
    second = kind.second(store)
    yield second
    second.close()

def cannot(store, store_class, reason):
    "Leave a test out for one store class, which cannot keep it for `reason`."
    if isinstance(store, store_class): pytest.skip(reason)


# -- helpers -------------------------------------------------------------------------------------------------------------

def ids(page): return [s.session_id for s in getattr(page, "rows", page)]

def whole(store, flow=FLOW, **scope): return store.page_sessions(flow, limit=10**6, **scope).rows

def title(summary): return (default_label(summary.created_at) if is_blank(summary.label) else summary.label).casefold()

def snapshot(store, *flows):
    "Everything that can be read, to show that nothing has changed."
    return store.list_flows(), [(whole(store, f), whole(store, f, in_trash=True), store.get_states(f, ids(whole(store, f)))) for f in (flows or (FLOW,))]

def edit(store, session_id, changes, owner=None, flow=FLOW):
    with store.edit_state(flow, session_id, owner=owner) as state: state.update(changes)

# Text that each place must take, or find nothing under, and never fail on.
HOSTILE = ["", " ", "'", '"', "';DROP TABLE wfs_session;--", "%", "_", "\\", "a\\%", "{}", "[", "a.b", "$.x", "a\nb\r\t", "\x7f\x01", "😀", "\u202eabc", "e\u0301", "é",
           "ß", "İ", "\ufeff", "\U0010ffff", "日本", "-1", "0", "NULL", "?", "%s", "{ID}", "x" * 1000]
NO_TEXT = ["\x00", "a\x00b", "\ud800", "a\udfff"]


# -- the store itself ----------------------------------------------------------------------------------------------------

def test_it_fills_the_port(store):
    assert isinstance(store, SessionStore)
    assert isinstance(store.where, str) and store.where

def test_check_leaves_nothing_behind(store):
    store.create_session(FLOW, "s1", state={"a": 1})
    before = snapshot(store)
    store.check()
    store.check()
    assert snapshot(store) == before

def test_a_closed_store_opens_again(store):
    store.create_session(FLOW, "s1", state={"a": 1})
    store.close()
    store.close()
    assert store.get_state(FLOW, "s1") == {"a": 1}
    store.update_state(FLOW, "s1", {"b": 2})
    assert store.get_state(FLOW, "s1") == {"a": 1, "b": 2}

def test_two_store_objects_see_each_other(store, second):
    store.create_session(FLOW, "s1", owner="ann")
    second.update_state(FLOW, "s1", {"a": 1}, owner="ann")
    second.create_session(FLOW, "s2")
    second.delete_session(FLOW, "s2")
    assert store.get_state(FLOW, "s1") == {"a": 1}
    assert (store.count_sessions(FLOW), store.count_sessions(FLOW, in_trash=True)) == (1, 1)


# -- creating and reading one session --------------------------------------------------------------------------------------

def test_create_with_nothing_makes_a_uuid4(store):
    first, second = store.create_session(FLOW), store.create_session(FLOW)
    assert uuid.UUID(first).version == 4 and str(uuid.UUID(first)) == first != second
    s = store.get_session_summary(FLOW, first)
    assert (s.flow_id, s.session_id, s.label, s.current_step, s.owner, s.state_size_bytes, s.deleted_at) == (FLOW, first, None, None, "", 2, None)
    assert s.created_at == s.updated_at
    assert store.get_state(FLOW, first) == {} and store.get_current_step(FLOW, first) is None

def test_create_with_everything(store):
    assert store.create_session(FLOW, "s1", "Holiday", owner="ann", state={"a": [1]}, current_step="pick") == "s1"
    s = store.get_session_summary(FLOW, "s1")
    assert (s.label, s.current_step, s.owner, s.state_size_bytes) == ("Holiday", "pick", "ann", len('{"a": [1]}'))
    assert store.get_state(FLOW, "s1") == {"a": [1]}
    assert store.get_current_step(FLOW, "s1") == "pick"
    assert store.session_exists(FLOW, "s1") and store.session_exists(FLOW, "s1", owner="ann")

def test_times_are_utc_with_microseconds(store):
    before = now_us()
    store.create_session(FLOW, "s1")
    s = store.get_session_summary(FLOW, "s1")
    assert len(s.created_at) == len("2026-04-08 19:11:50.000123") and s.created_at[10] == " "
    assert before <= parse_sqlite_timestamp(s.created_at).timestamp() * 1e6 + 1 <= now_us() + 2

@pytest.mark.parametrize("owner", ["ann", "bob", ""])
def test_create_under_a_taken_id_changes_nothing(store, owner):
    store.create_session(FLOW, "s1", "Holiday", owner="ann", state={"a": 1})
    before = snapshot(store)
    with pytest.raises(SessionExists) as e: store.create_session(FLOW, "s1", "Mine", owner=owner, state={"b": 2})
    assert e.value.session_id == "s1"
    assert snapshot(store) == before

def test_one_id_in_two_flows_is_two_sessions(store):
    store.create_session("a", "s1", state={"flow": "a"})
    store.create_session("b", "s1", state={"flow": "b"})
    store.delete_session("a", "s1")
    assert store.get_state("b", "s1") == {"flow": "b"} and not store.session_exists("a", "s1")

READS = {
    "session_exists": (lambda s, sid, owner: s.session_exists(FLOW, sid, owner=owner), False),
    "get_session_summary": (lambda s, sid, owner: s.get_session_summary(FLOW, sid, owner=owner), None),
    "get_current_step": (lambda s, sid, owner: s.get_current_step(FLOW, sid, owner=owner), None),
    "get_state": (lambda s, sid, owner: s.get_state(FLOW, sid, owner=owner), {}),
    "get_step_state": (lambda s, sid, owner: s.get_step_state(FLOW, sid, "pick", owner=owner), {}),
    "get_states": (lambda s, sid, owner: s.get_states(FLOW, [sid], owner=owner), {}),
    "page_sessions": (lambda s, sid, owner: [x for x in ids(s.page_sessions(FLOW, owner=owner)) if x == sid], []),
    "page by title": (lambda s, sid, owner: [x for x in ids(s.page_sessions(FLOW, owner=owner, order=Order("title"), search="holi")) if x == sid], []),
    "list_sessions": (lambda s, sid, owner: [x for x in ids(s.list_sessions(FLOW, owner=owner)) if x == sid], []),
    "count_sessions": (lambda s, sid, owner: s.count_sessions(FLOW, owner=owner), 0),
    "count by search": (lambda s, sid, owner: s.count_sessions(FLOW, owner=owner, search="holi"), 0),
    "list_steps": (lambda s, sid, owner: s.list_steps(FLOW, owner=owner), []),
    "outdated_shown": (lambda s, sid, owner: [x for x in ids(s.outdated_shown(FLOW, "v1", owner=owner)) if x == sid], []),
}
REFUSED_WRITES = {
    "set_current_step": lambda s, sid, owner: s.set_current_step(FLOW, sid, "late", owner=owner),
    "update_state": lambda s, sid, owner: s.update_state(FLOW, sid, {"late": 1}, owner=owner),
    "update_state with nothing": lambda s, sid, owner: s.update_state(FLOW, sid, {}, owner=owner),
    "update_step_state": lambda s, sid, owner: s.update_step_state(FLOW, sid, "pick", {"late": 1}, owner=owner),
    "change_session": lambda s, sid, owner: s.change_session(FLOW, sid, owner=owner, updates={"late": 1}, remove=["folder"], columns={"label": "late"}),
    "edit_state": lambda s, sid, owner: edit(s, sid, {"late": 1}, owner),
}
IGNORED_WRITES = {
    "clear_step_state": (lambda s, sid, owner: s.clear_step_state(FLOW, sid, "pick", owner=owner), None),
    "set_session_label": (lambda s, sid, owner: s.set_session_label(FLOW, sid, "late", owner=owner), None),
    "delete_session": (lambda s, sid, owner: s.delete_session(FLOW, sid, owner=owner), None),
}
HERS = dict(label="Holiday", owner="ann", state={"folder": "photos", "_step_pick": {"n": 1}}, current_step="pick")

@pytest.fixture
def hers(store):
    "A session of ann."
    return store.create_session(FLOW, **HERS)

@pytest.mark.parametrize("name", READS)
def test_a_read_within_its_scope_finds_the_session(store, hers, name):
    read, missing = READS[name]
    assert read(store, hers, None) == read(store, hers, "ann") != missing

@pytest.mark.parametrize("owner", ["bob", "", "Ann", "an", "ann ", "%", "\x00", "\ud800"])
@pytest.mark.parametrize("name", READS)
def test_a_read_of_another_owner_finds_nothing(store, hers, name, owner):
    read, missing = READS[name]
    assert read(store, hers, owner) == missing

@pytest.mark.parametrize("owner", [None, "ann"])
@pytest.mark.parametrize("name", READS)
def test_a_read_of_an_unknown_session_finds_nothing(store, name, owner):
    read, missing = READS[name]
    assert read(store, "unknown", owner) == missing

@pytest.mark.parametrize("owner", [None, "ann"])
@pytest.mark.parametrize("name", READS)
def test_a_read_of_a_trashed_session_finds_nothing(store, hers, name, owner):
    store.delete_session(FLOW, hers)
    read, missing = READS[name]
    assert read(store, hers, owner) == missing

@pytest.mark.parametrize("owner", ["bob", "", "Ann", "%", "\ud800"])
@pytest.mark.parametrize("name", REFUSED_WRITES)
def test_a_write_of_another_owner_is_refused(store, hers, name, owner):
    before = snapshot(store)
    with pytest.raises(SessionNotFound): REFUSED_WRITES[name](store, hers, owner)
    assert snapshot(store) == before

@pytest.mark.parametrize("name", REFUSED_WRITES)
def test_a_scoped_write_creates_nothing(store, hers, name):
    before = snapshot(store)
    for owner in ("ann", "bob", ""):
        with pytest.raises(SessionNotFound) as e: REFUSED_WRITES[name](store, "unknown", owner)
        assert e.value.session_id == "unknown"
    assert snapshot(store) == before

@pytest.mark.parametrize("owner", [None, "ann", "bob", ""])
@pytest.mark.parametrize("name", REFUSED_WRITES)
def test_no_write_revives_a_trashed_session(store, hers, name, owner):
    store.delete_session(FLOW, hers)
    before = snapshot(store)
    with pytest.raises(SessionNotFound): REFUSED_WRITES[name](store, hers, owner)
    assert snapshot(store) == before and not store.session_exists(FLOW, hers)

@pytest.mark.parametrize("name", [*IGNORED_WRITES, "clear_state"])
def test_writes_that_do_nothing_for_another_owner(store, hers, name):
    write, answer = IGNORED_WRITES.get(name) or (lambda s, sid, owner: s.clear_state(FLOW, sid, owner=owner), None)
    before = snapshot(store)
    for sid, owner in ((hers, "bob"), (hers, ""), (hers, "\ud800"), ("unknown", None), ("unknown", "ann"), ("\ud800", None), ("\ud800", "ann")):
        assert write(store, sid, owner) == answer
        assert snapshot(store) == before
    store.delete_session(FLOW, hers)
    before = snapshot(store)
    for owner in ("bob", ""): assert write(store, hers, owner) == answer
    if name != "clear_state":
        for owner in (None, "ann"): assert write(store, hers, owner) == answer
    assert snapshot(store) == before

def test_an_owner_can_do_everything_to_her_own(store, hers):
    store.create_session(FLOW, "other", "Other", owner="bob", state={"x": 1})
    store.update_state(FLOW, hers, {"a": 1}, owner="ann")
    store.set_current_step(FLOW, hers, "check", owner="ann")
    store.update_step_state(FLOW, hers, "check", {"ok": True}, owner="ann")
    store.set_session_label(FLOW, hers, "Beach", owner="ann")
    store.change_session(FLOW, hers, owner="ann", updates={"b": 2}, remove=["a"])
    edit(store, hers, {"c": 3}, "ann")
    store.clear_step_state(FLOW, hers, "pick", owner="ann")
    s = store.get_session_summary(FLOW, hers, owner="ann")
    assert (s.label, s.current_step, s.owner) == ("Beach", "check", "ann")
    assert store.get_state(FLOW, hers, owner="ann") == {"folder": "photos", "_step_check": {"ok": True}, "b": 2, "c": 3}
    store.delete_session(FLOW, hers, owner="ann")
    assert store.restore_session(FLOW, hers, owner="ann") is True
    store.clear_state(FLOW, hers, owner="ann")
    assert ids(whole(store)) == ["other"] and store.get_state(FLOW, "other", owner="bob") == {"x": 1}

def test_the_empty_owner_is_a_scope_of_its_own(store, hers):
    shared = store.create_session(FLOW, "shared")
    assert ids(whole(store, owner="")) == [shared] and store.count_sessions(FLOW, owner="") == 1
    store.update_state(FLOW, shared, {"a": 1}, owner="")
    assert store.get_state(FLOW, shared, owner="ann") == {}
    assert set(ids(whole(store))) == {hers, shared}

def test_the_owner_of_a_session_stays(store, hers):
    store.update_state(FLOW, hers, {"a": 1})
    store.set_current_step(FLOW, hers, "check")
    store.set_session_label(FLOW, hers, None)
    store.delete_session(FLOW, hers)
    store.restore_session(FLOW, hers)
    assert store.get_session_summary(FLOW, hers).owner == "ann"


# -- flows ---------------------------------------------------------------------------------------------------------------

FLOWS = ["a_b", "axb", "A_B", "a", "a%", "a;", "a ", "", "ä", "b"]

def test_flows_are_kept_apart_exactly(store):
    for flow in FLOWS: store.create_session(flow, "s1", label=f"of {flow}", state={"flow": flow}, current_step=f"at {flow}", owner=f"owner {flow}")
    for flow in FLOWS:
        assert [s.flow_id for s in whole(store, flow)] == [flow] and store.count_sessions(flow) == 1
        assert [s.label for s in store.list_sessions(flow)] == [f"of {flow}"]
        assert store.count_sessions(flow, search="of") == 1
        assert store.get_states(flow, ["s1"]) == {"s1": {"flow": flow}}
        assert store.list_steps(flow) == [f"at {flow}"]
        assert store.get_session_summary(flow, "s1").owner == f"owner {flow}"
        assert ids(store.outdated_shown(flow, "v1")) == ["s1"]
    assert store.list_flows() == {flow: 1 for flow in FLOWS}

def test_trash_and_purge_keep_flows_apart(store):
    for flow in FLOWS:
        store.create_session(flow, "s1")
        store.delete_session(flow, "s1")
    assert store.purge_trash("a_b", now_us() + 1) == 1
    for flow in FLOWS: assert store.count_sessions(flow, in_trash=True) == (flow != "a_b")
    assert not store.restore_session("a_b", "s1") and store.restore_session("axb", "s1")

def test_a_colon_in_a_flow_id_is_part_of_it(store):
    store.create_session("a", "s1", state={"flow": "a"})
    store.create_session("a:b", "s1", state={"flow": "a:b"})
    store.create_session("a:b:", "s1", state={"flow": "a:b:"})
    assert [ids(whole(store, f)) for f in ("a", "a:b", "a:b:", ":", "a:")] == [["s1"], ["s1"], ["s1"], [], []]
    assert store.list_flows() == {"a": 1, "a:b": 1, "a:b:": 1}
    store.clear_state("a", "s1")
    assert store.get_state("a:b", "s1") == {"flow": "a:b"}
    assert store.get_state("a", "b:s1") == {} and store.get_states("a", ["b:s1"]) == {} and not store.session_exists("a", "b:s1")
    store.delete_session("a", "b:s1")
    store.clear_state("a", "b:s1")
    store.set_session_label("a", "b:s1", "x")
    with pytest.raises(SessionNotFound): store.change_session("a", "b:s1", updates={"x": 1})
    assert store.get_state("a:b", "s1") == {"flow": "a:b"} and whole(store, "a:b")[0].label is None

def test_a_colon_in_a_session_id_is_part_of_it(store):
    cannot(store, CjmStore, "its key is flow:session, cut at the last colon; such an id is refused (see test_cjm)")
    store.create_session("a", "b:c", state={"x": 1})
    store.create_session("a:b", "c", state={"x": 2})
    assert (store.get_state("a", "b:c"), store.get_state("a:b", "c")) == ({"x": 1}, {"x": 2})

def test_list_flows_counts_live_sessions(store):
    assert store.list_flows() == {}
    for i in range(3): store.create_session("b", f"s{i}", owner=f"o{i}")
    store.create_session("a", "s0")
    store.update_state("c", "s0", {})
    assert list(store.list_flows().items()) == [("a", 1), ("b", 3), ("c", 1)]
    store.delete_session("b", "s0")
    store.delete_session("b", "s0")
    store.clear_state("b", "s1")
    store.delete_session("a", "s0")
    assert store.list_flows() == {"b": 1, "c": 1}
    store.restore_session("b", "s0")
    assert store.list_flows() == {"b": 2, "c": 1}
    store.delete_session("b", "s0")
    store.purge_trash("b", now_us() + 1)
    assert store.list_flows() == {"b": 1, "c": 1}


# -- state ---------------------------------------------------------------------------------------------------------------

def test_update_replaces_top_level_keys_and_keeps_the_others(store):
    store.create_session(FLOW, "s1", state={"a": {"x": 1, "y": 2}, "b": 1})
    store.update_state(FLOW, "s1", {"a": {"x": 3}, "c": None})
    assert store.get_state(FLOW, "s1") == {"a": {"x": 3}, "b": 1, "c": None}
    store.update_state(FLOW, "s1", {})
    assert store.get_state(FLOW, "s1") == {"a": {"x": 3}, "b": 1, "c": None}

def test_keys_keep_their_order_as_in_a_dict(store):
    expected = {"z": 1, "a": 2, "m": 3}
    store.create_session(FLOW, "s1", state=expected)
    for updates in ({"a": 9, "b": 1}, {"z": 0}, {"c": 1, "a": 7}):
        expected.update(updates)
        store.update_state(FLOW, "s1", updates)
        assert list(store.get_state(FLOW, "s1").items()) == list(expected.items())
    del expected["a"]
    store.change_session(FLOW, "s1", remove=["a"])
    expected["a"] = 1
    store.update_state(FLOW, "s1", {"a": 1})
    assert list(store.get_state(FLOW, "s1").items()) == list(expected.items())
    assert list(store.get_states(FLOW, ["s1"])["s1"]) == list(expected)

@pytest.mark.parametrize("value", [None, True, False, 0, -0.0, 1.5, 1e300, 5e-324, 2**70, -2**70, "", "text", [], {}, [[], {}], {"": {"": []}}, "\x00", "\ud800",
                                   "\u2028", {"\ud800\x00": "é"}, "x" * 100_000, list(range(1000)), "2026-04-08 19:11:50", '{"a": 1}', "null"])
def test_values_come_back_as_they_went_in(store, value):
    store.create_session(FLOW, "s1", state={"first": value})
    store.update_state(FLOW, "s1", {"second": value})
    store.update_step_state(FLOW, "s1", "pick", {"third": value})
    state = {"first": value, "second": value, "_step_pick": {"third": value}}
    assert store.get_state(FLOW, "s1") == state and json.dumps(store.get_state(FLOW, "s1")) == json.dumps(state)
    assert store.get_states(FLOW, ["s1"]) == {"s1": state}
    with store.edit_state(FLOW, "s1") as edited: assert edited == state

@pytest.mark.parametrize("key", [*HOSTILE, *NO_TEXT, "k" * 100_000, "\ud800" * 100])
def test_any_string_is_a_key(store, key):
    store.create_session(FLOW, "s1", state={key: 1, "other": 0})
    store.update_state(FLOW, "s1", {key: 2})
    assert store.get_state(FLOW, "s1") == {key: 2, "other": 0}
    edit(store, "s1", {key: 3})
    assert store.get_state(FLOW, "s1")[key] == 3
    store.change_session(FLOW, "s1", remove=[key])
    assert store.get_state(FLOW, "s1") == {"other": 0}

@pytest.mark.parametrize("step", [*HOSTILE, *NO_TEXT, "k" * 100_000])
def test_any_string_names_a_step_state(store, step):
    store.create_session(FLOW, "s1")
    store.update_step_state(FLOW, "s1", step, {"a": 1})
    store.update_step_state(FLOW, "s1", step, {"b": 2})
    assert store.get_step_state(FLOW, "s1", step) == {"a": 1, "b": 2}
    assert store.get_state(FLOW, "s1") == {f"_step_{step}": {"a": 1, "b": 2}}
    store.clear_step_state(FLOW, "s1", step)
    assert store.get_state(FLOW, "s1") == {}

def test_other_keys_and_values_become_what_json_makes_of_them(store):
    given = {1: "a", None: (1, (2,)), 2.5: {3: True}}
    store.create_session(FLOW, "s1", state=given)
    assert store.get_state(FLOW, "s1") == json.loads(json.dumps(given))
    store.update_state(FLOW, "s1", {1: "b"})
    assert store.get_state(FLOW, "s1")["1"] == "b"
    assert store.get_session_summary(FLOW, "s1").state_size_bytes == len(json.dumps(store.get_state(FLOW, "s1")))

def test_two_spellings_of_one_key_are_one_key(store):
    store.create_session(FLOW, "s1", state={"1": "old"})
    store.update_state(FLOW, "s1", {1: "first", "1": "last"})
    assert store.get_state(FLOW, "s1") == {"1": "last"}
    assert store.get_session_summary(FLOW, "s1").state_size_bytes == len('{"1": "last"}')

LOOP: list = []
LOOP.append(LOOP)
DEEP: list = []
for _ in range(100_000): DEEP = [DEEP]
BAD_STATES = {"bytes": {"a": 1, "bad": b"raw"}, "set": {"bad": {1}, "b": 2}, "object": {"bad": object()}, "nan": {"a": 1, "bad": float("nan")}, "inf": {"bad": [float("inf")]},
              "nested": {"a": 1, "bad": {"x": [b"raw"]}}, "loop": {"bad": LOOP}, "deep": {"a": 1, "bad": DEEP}, "nested key": {"bad": {(1, 2): 3}}}

@pytest.mark.parametrize("bad", BAD_STATES)
def test_what_is_no_json_is_refused_before_anything_is_stored(store, hers, bad):
    state, before = BAD_STATES[bad], snapshot(store)
    for write in (lambda: store.create_session(FLOW, "new", state=state),
                  lambda: store.update_state(FLOW, hers, state),
                  lambda: store.update_state(FLOW, "new", state),
                  lambda: store.update_state(FLOW, hers, state, owner="ann"),
                  lambda: store.change_session(FLOW, hers, updates=state, remove=["folder"], columns={"label": "x"}),
                  lambda: edit(store, hers, state)):
        with pytest.raises(NotJSON) as e: write()
        assert e.value.key == "bad"
        assert snapshot(store) == before
    for sid in (hers, "new"):
        with pytest.raises(NotJSON): store.update_step_state(FLOW, sid, "pick", state)
        assert snapshot(store) == before

def test_a_key_that_is_no_json_is_refused(store, hers):
    before = snapshot(store)
    for write in (lambda s: store.create_session(FLOW, "new", state=s), lambda s: store.update_state(FLOW, hers, s), lambda s: store.change_session(FLOW, hers, updates=s), lambda s: edit(store, hers, s)):
        with pytest.raises(NotJSON): write({"a": 1, (1, 2): 3})
        assert snapshot(store) == before

def test_states_handed_out_and_taken_in_are_copies(store):
    given = {"a": {"list": [1]}}
    store.create_session(FLOW, "s1", state=given)
    store.update_state(FLOW, "s1", updates := {"b": {"list": [1]}})
    store.update_step_state(FLOW, "s1", "pick", step := {"list": [1]})
    with store.edit_state(FLOW, "s1") as edited: edited["c"] = kept = {"list": [1]}
    before = store.get_state(FLOW, "s1")
    for value in (given["a"], updates["b"], step, edited["a"], kept, store.get_state(FLOW, "s1")["a"], store.get_states(FLOW, ["s1"])["s1"]["a"], store.get_step_state(FLOW, "s1", "pick")):
        value["list"].append("changed")
        value["more"] = "changed"
    edited["d"] = 1
    assert store.get_state(FLOW, "s1") == before == {"a": {"list": [1]}, "b": {"list": [1]}, "_step_pick": {"list": [1]}, "c": {"list": [1]}}

def test_any_mapping_is_taken(store):
    store.create_session(FLOW, "s1", state=MappingProxyType({"a": 1}))
    store.update_state(FLOW, "s1", MappingProxyType({"b": 2}))
    store.update_step_state(FLOW, "s1", "pick", MappingProxyType({"c": 3}))
    store.change_session(FLOW, "s1", updates=MappingProxyType({"d": 4}), remove=(k for k in ["a"]), columns=MappingProxyType({"label": "x"}))
    assert store.get_state(FLOW, "s1") == {"b": 2, "_step_pick": {"c": 3}, "d": 4}

@pytest.mark.parametrize("write", [lambda s: s.set_current_step(FLOW, "new", "pick"), lambda s: s.update_state(FLOW, "new", {"a": 1}), lambda s: s.update_step_state(FLOW, "new", "pick", {"a": 1})],
                         ids=["set_current_step", "update_state", "update_step_state"])
def test_unscoped_writes_create_an_unknown_session(store, write):
    write(store)
    s = store.get_session_summary(FLOW, "new")
    assert (s.label, s.owner, s.current_step) == (None, "", s.current_step and "pick")
    assert store.count_sessions(FLOW) == 1 and (s.current_step or store.get_state(FLOW, "new"))
    assert s.state_size_bytes == len(json.dumps(store.get_state(FLOW, "new")))

def test_step_states(store, hers):
    assert store.get_step_state(FLOW, hers, "pick") == {"n": 1}
    store.update_step_state(FLOW, hers, "pick", {"m": {"x": 1}})
    store.update_step_state(FLOW, hers, "pick", {"m": {"y": 2}})
    store.update_step_state(FLOW, hers, "check", {"ok": 1})
    assert store.get_step_state(FLOW, hers, "pick") == {"n": 1, "m": {"y": 2}}
    assert store.get_state(FLOW, hers) == {"folder": "photos", "_step_pick": {"n": 1, "m": {"y": 2}}, "_step_check": {"ok": 1}}
    store.clear_step_state(FLOW, hers, "pick")
    assert store.get_step_state(FLOW, hers, "pick") == {} and store.get_step_state(FLOW, hers, "check") == {"ok": 1}
    before = snapshot(store)
    store.clear_step_state(FLOW, hers, "pick")
    store.clear_step_state(FLOW, hers, "never")
    assert snapshot(store) == before

def test_change_session_does_all_at_once(store, hers):
    store.change_session(FLOW, hers, updates={"a": 1, "b": 2}, remove=["folder", "b", "never"], columns={"label": "Beach", "current_step": "check"})
    s = store.get_session_summary(FLOW, hers)
    assert (s.label, s.current_step) == ("Beach", "check")
    assert store.get_state(FLOW, hers) == {"_step_pick": {"n": 1}, "a": 1, "b": 2}   # a key both removed and given is given
    store.change_session(FLOW, hers, columns={"label": None, "current_step": None})
    s = store.get_session_summary(FLOW, hers)
    assert (s.label, s.current_step) == (None, None)

def test_change_session_sets_no_other_column(store, hers):
    before = snapshot(store)
    for column in ("owner", "session_id", "updated_at", "state_json", "label = 'x', owner", ""):
        with pytest.raises(InvalidInput): store.change_session(FLOW, hers, updates={"a": 1}, columns={column: "x"})
        assert snapshot(store) == before

def test_edit_state_stores_what_changed(store, hers):
    with store.edit_state(FLOW, hers, owner="ann") as state:
        state["folder"] = "music"
        state["_step_pick"]["n"] += 1
        state["new"] = [1]
    assert store.get_state(FLOW, hers) == {"folder": "music", "_step_pick": {"n": 2}, "new": [1]}
    with store.edit_state(FLOW, hers) as state: state.clear()
    assert store.get_state(FLOW, hers) == {}

def test_edit_state_without_a_change_is_no_write(store, hers):
    before = snapshot(store)
    with store.edit_state(FLOW, hers) as state: state["folder"] = "photos"
    assert snapshot(store) == before

@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, GeneratorExit])
def test_an_exception_while_editing_stores_nothing(store, hers, error):
    before = snapshot(store)
    with pytest.raises(error):
        with store.edit_state(FLOW, hers) as state:
            state["a"] = 1
            del state["folder"]
            raise error
    assert snapshot(store) == before
    store.update_state(FLOW, hers, {"b": 1})   # the lock is free again
    assert store.get_state(FLOW, hers)["b"] == 1

def test_clear_state_deletes_for_good(store, hers):
    store.clear_state(FLOW, hers)
    store.clear_state(FLOW, hers)
    assert not store.session_exists(FLOW, hers) and store.count_sessions(FLOW, in_trash=True) == 0
    assert store.restore_session(FLOW, hers) is False
    store.create_session(FLOW, hers)
    assert store.get_state(FLOW, hers) == {} and store.get_session_summary(FLOW, hers).owner == ""


# -- size and times --------------------------------------------------------------------------------------------------------

def test_size_is_the_length_of_the_state_as_json(store):
    rng = random.Random(1)
    store.create_session(FLOW, "s1", state={"é": "日本", "n": 1})
    keys = ["a", "b", "é", 'q"', "\x00", "_step_pick"]
    for i in range(60):
        key, value = rng.choice(keys), rng.choice([None, "x" * rng.randrange(50), {"é": [1, "😀"]}, {"n": i}])
        rng.choice([lambda: store.update_state(FLOW, "s1", {key: value, "n": i}),
                    lambda: store.change_session(FLOW, "s1", remove=[key, "never"], updates={"n": value}),
                    lambda: edit(store, "s1", {key: value}),
                    lambda: store.update_step_state(FLOW, "s1", "check", {key: value}),
                    lambda: store.clear_step_state(FLOW, "s1", "check")])()
        size = len(json.dumps(store.get_state(FLOW, "s1")))
        assert store.get_session_summary(FLOW, "s1").state_size_bytes == size == whole(store)[0].state_size_bytes == store.list_sessions(FLOW)[0].state_size_bytes
    store.change_session(FLOW, "s1", remove=list(store.get_state(FLOW, "s1")))
    assert store.get_session_summary(FLOW, "s1").state_size_bytes == 2

WRITES = {
    "update_state": lambda s, sid: s.update_state(FLOW, sid, {"a": 1}),
    "the same again": lambda s, sid: s.update_state(FLOW, sid, {"a": 1}),
    "set_current_step": lambda s, sid: s.set_current_step(FLOW, sid, "pick"),
    "update_step_state": lambda s, sid: s.update_step_state(FLOW, sid, "pick", {"n": 1}),
    "set_session_label": lambda s, sid: s.set_session_label(FLOW, sid, "Holiday"),
    "clear_step_state": lambda s, sid: s.clear_step_state(FLOW, sid, "pick"),
    "change_session": lambda s, sid: s.change_session(FLOW, sid, columns={"label": None}),
    "edit_state": lambda s, sid: edit(s, sid, {"a": 2}),
}

def test_every_write_moves_updated_at_and_none_created_at(store):
    sid = store.create_session(FLOW, "s1")
    created = last = store.get_session_summary(FLOW, sid).created_at
    for _ in range(5):
        for name, write in WRITES.items():
            write(store, sid)
            s = store.get_session_summary(FLOW, sid)
            assert s.updated_at > last, name
            assert s.created_at == created, name
            last = s.updated_at

def test_updated_at_rises_though_the_clock_steps_back(store, monkeypatch):
    store.create_session(FLOW, "s1")
    before = store.get_session_summary(FLOW, "s1").updated_at
    monkeypatch.setattr("time.time_ns", lambda: 1_000_000_000 * 1000)
    for name, write in WRITES.items():
        write(store, "s1")
        after = store.get_session_summary(FLOW, "s1").updated_at
        assert after > before, name
        before = after

def test_a_burst_of_writes_is_listed_in_its_order(store):
    rng, sids = random.Random(2), [f"s{i:02}" for i in range(40)]
    for sid in sids: store.create_session(FLOW, sid)
    assert ids(whole(store)) == sids[::-1] and ids(whole(store, order=Order("created_at", False))) == sids
    rng.shuffle(sids)
    for sid in sids: rng.choice(list(WRITES.values()))(store, sid) if rng.random() < 0.5 else store.update_state(FLOW, sid, {"x": 1})
    touched = sorted(sids, key=lambda sid: store.get_session_summary(FLOW, sid).updated_at, reverse=True)
    assert ids(whole(store)) == ids(store.list_sessions(FLOW)) == touched

def test_the_last_one_written_is_listed_first(store):
    rng, sids = random.Random(3), [f"s{i:02}" for i in range(15)]
    for sid in sids: store.create_session(FLOW, sid)
    for _ in range(60):
        sid = rng.choice(sids)
        store.update_state(FLOW, sid, {"x": 1})
        assert ids(store.page_sessions(FLOW, limit=1)) == [sid]


# -- trash ---------------------------------------------------------------------------------------------------------------

def test_restore_brings_everything_back(store, hers):
    store.update_step_state(FLOW, hers, "check", {"deep": [{"x": 1}]})
    before = snapshot(store)
    store.delete_session(FLOW, hers)
    store.delete_session(FLOW, hers)
    assert whole(store) == [] and store.list_flows() == {}
    [trashed] = whole(store, in_trash=True)
    assert parse_sqlite_timestamp(trashed.deleted_at) is not None
    assert replace(trashed, deleted_at=None) == before[1][0][0][0]
    assert store.restore_session(FLOW, hers) is True
    assert store.restore_session(FLOW, hers) is False
    assert snapshot(store) == before

def test_get_trashed_reads_the_trash_only(store, hers):
    for sid in (hers, "unknown", "\ud800", "\x00"): assert store.get_trashed(FLOW, sid) is None
    store.delete_session(FLOW, hers)
    assert store.get_trashed(FLOW, hers) == store.get_trashed(FLOW, hers, owner="ann") == whole(store, in_trash=True)[0]
    for owner in ("bob", "", "Ann", "\ud800"): assert store.get_trashed(FLOW, hers, owner=owner) is None
    assert store.get_trashed("other", hers) is None
    store.restore_session(FLOW, hers)
    assert store.get_trashed(FLOW, hers) is None

def test_restore_stays_within_its_scope(store, hers):
    store.delete_session(FLOW, hers, owner="ann")
    for owner in ("bob", "", "Ann", "\ud800"): assert store.restore_session(FLOW, hers, owner=owner) is False
    for sid in ("unknown", "\ud800", "\x00"): assert store.restore_session(FLOW, sid) is False
    assert store.restore_session("other", hers) is False
    assert store.restore_session(FLOW, hers, owner="ann") is True

def test_an_id_in_the_trash_is_taken_until_it_is_purged(store, hers):
    store.delete_session(FLOW, hers)
    before = snapshot(store)
    with pytest.raises(SessionExists): store.create_session(FLOW, hers)
    assert snapshot(store) == before
    for owner in ("bob", ""):
        store.clear_state(FLOW, hers, owner=owner)
        assert snapshot(store) == before
    store.clear_state(FLOW, hers)
    assert store.count_sessions(FLOW, in_trash=True) == 0 and store.restore_session(FLOW, hers) is False
    assert (store.count_sessions(FLOW), store.list_flows()) == (0, {})
    store.create_session(FLOW, hers)
    assert store.get_state(FLOW, hers) == {} and store.count_sessions(FLOW) == 1

def test_the_trash_is_listed_like_the_rest(store):
    for i, label in enumerate(["pear", "Apple", "fig"]): store.create_session(FLOW, f"s{i}", label=label, owner="ann" if i else "bob", state={"x": "x" * i})
    store.create_session(FLOW, "live", label="fig")
    for sid in ("s1", "s0", "s2"): store.delete_session(FLOW, sid)
    trash = dict(in_trash=True)
    assert ids(whole(store, **trash, order=Order("title", False))) == ["s1", "s2", "s0"]
    assert ids(whole(store, **trash)) == ["s2", "s1", "s0"] and ids(whole(store, **trash, order=Order("state_size_bytes"))) == ["s2", "s1", "s0"]
    assert ids(store.page_sessions(FLOW, **trash, start=1, limit=1)) == ["s1"]
    assert ids(whole(store, **trash, search="FI")) == ["s2"] and store.count_sessions(FLOW, **trash, search="FI") == 1
    assert store.count_sessions(FLOW, **trash) == 3 and store.count_sessions(FLOW, **trash, owner="ann") == 2
    assert ids(whole(store, **trash, owner="bob")) == ["s0"]
    assert ids(whole(store)) == ["live"] and all(s.deleted_at is None for s in whole(store))

def test_purge_takes_what_is_older(store):
    for i in range(3): store.create_session(FLOW, f"s{i}", owner="ann" if i else "bob")
    start = now_us()
    store.delete_session(FLOW, "s0")
    store.delete_session(FLOW, "s1")
    assert store.purge_trash(FLOW, start) == 0 and store.count_sessions(FLOW, in_trash=True) == 2
    assert store.purge_trash(FLOW, now_us() + 1, owner="ann") == 1
    assert ids(whole(store, in_trash=True)) == ["s0"]
    assert store.purge_trash(FLOW, now_us() + 1, owner="\ud800") == 0
    assert store.purge_trash(FLOW, now_us() + 1) == 1 and store.purge_trash(FLOW, now_us() + 1) == 0
    assert store.restore_session(FLOW, "s0") is False and ids(whole(store)) == ["s2"]

def test_a_restored_session_keeps_its_place_in_the_order_of_creation(store):
    for sid in "abc": store.create_session(FLOW, sid, label="same")
    store.delete_session(FLOW, "c")
    store.create_session(FLOW, "d", label="same")
    store.restore_session(FLOW, "c")
    for order in (Order("title", False), Order("created_at", False)): assert ids(whole(store, order=order)) == list("abcd")


# -- order and pages -------------------------------------------------------------------------------------------------------

STEPS = (("pick", "2 choose"), ("check", "1 look"), ("'; --", "3 odd"))
LABELS = ["pear", "Apple", "apple", "", None, "  ", "Ärger", "zebra", "Zebra", "日本", "10", "9", "😀", "_", "same", "same", "SAME"]

def fill(store, n=60, seed=4):
    "Sessions with ties in every column."
    rng = random.Random(seed)
    for i in range(n):
        store.create_session(FLOW, f"s{i:03}", label=rng.choice(LABELS), owner=rng.choice(["ann", "bob", ""]), current_step=rng.choice([None, "pick", "check", "'; --", "other"]),
                             state={"x": "x" * rng.choice([0, 5, 5, 900])})
    for i in rng.sample(range(n), n // 2): store.update_state(FLOW, f"s{i:03}", {"y": 1})
    for i in rng.sample(range(n), n // 8): store.delete_session(FLOW, f"s{i:03}")

KEYS = {
    Order("updated_at"): lambda s: s.updated_at,
    Order("created_at"): lambda s: s.created_at,
    Order("title"): title,
    Order("current_step"): lambda s: s.current_step or "",
    Order("current_step", step_titles=STEPS): lambda s: dict(STEPS).get(s.current_step, s.current_step or ""),
    Order("state_size_bytes"): lambda s: s.state_size_bytes,
}

def expected(rows, order, descending, key):
    "Sorted as the port says: ties by creation, in the same direction. Ids are given in the order of creation."
    return [s.session_id for s in sorted(rows, key=lambda s: (key(s), s.session_id), reverse=descending)]

@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("order", KEYS, ids=lambda o: o.by + ("+titles" if o.step_titles else ""))
def test_order_by_every_column_both_ways(store, order, descending):
    fill(store)
    for scope in ({}, {"owner": "ann"}, {"owner": ""}, {"in_trash": True}, {"search": "e"}):
        rows = whole(store, **scope)
        assert rows and ids(whole(store, **scope, order=replace(order, descending=descending))) == expected(rows, order, descending, KEYS[order])

def test_every_column_has_a_test():
    assert {o.by for o in KEYS} == set(ORDER_COLUMNS)

@pytest.mark.parametrize("by", ["state", "label", "", "title; DROP TABLE wfs_session", "updated_at DESC", "\x00", "\ud800", "field"])
def test_an_unknown_order_is_refused(store, by):
    store.create_session(FLOW)
    with pytest.raises(InvalidInput): store.page_sessions(FLOW, order=Order(by))
    assert store.count_sessions(FLOW) == 1

@pytest.mark.parametrize("by", [f"field:{f}" for f in [*HOSTILE, *NO_TEXT]])
def test_a_column_that_no_callback_gave_leaves_the_order_of_creation(store, by):
    for sid in "abc": store.create_session(FLOW, sid)
    assert ids(whole(store, order=Order(by, False))) == list("abc") and ids(whole(store, order=Order(by))) == list("cba")

@pytest.mark.parametrize("step", HOSTILE)
def test_hostile_steps_sort_and_list(store, step):
    for sid, at in (("a", step), ("b", "pick"), ("c", step)): store.create_session(FLOW, sid, current_step=at)
    titles = ((step, "zz"), ("pick", "mm"))
    assert ids(whole(store, order=Order("current_step", False, titles))) == ["b", "a", "c"]
    assert store.list_steps(FLOW) == sorted({step, "pick"})

def test_list_steps(store):
    for i, (step, owner) in enumerate([("pick", "ann"), ("check", "ann"), ("pick", "bob"), (None, "bob"), ("gone", "bob")]):
        store.create_session(FLOW, f"s{i}", current_step=step, owner=owner)
    store.delete_session(FLOW, "s4")
    assert store.list_steps(FLOW) == ["check", "pick"] and store.list_steps(FLOW, owner="bob") == ["pick"]
    assert store.list_steps("other") == []

def test_list_sessions_as_in_the_older_library(store):
    fill(store)
    rows = whole(store)
    assert store.list_sessions(FLOW) == rows == store.list_sessions(FLOW, "updated_at", True)
    assert ids(store.list_sessions(FLOW, "created_at", False)) == sorted(ids(rows))
    assert ids(store.list_sessions(FLOW, descending=False)) == ids(rows)[::-1]
    assert ids(store.list_sessions(FLOW, "label", descending=False, owner="ann")) == ids(whole(store, order=Order("title", False), owner="ann"))
    for column in ("size", "title", "state_json", "updated_at; --", "", "current_step"):
        with pytest.raises(ValueError): store.list_sessions(FLOW, column)

def test_a_page_is_a_slice_of_the_list(store):
    fill(store, 30)
    everything = ids(whole(store))
    for start, limit in ((0, 0), (5, 0), (0, 1), (0, 10**6), (len(everything), 5), (10**6, 5), (len(everything) - 1, 5), (7, 11)):
        assert ids(store.page_sessions(FLOW, start=start, limit=limit)) == everything[start:start + limit]
    assert store.page_sessions("other").rows == [] and store.page_sessions("other").anchor is None

def test_random_pages_equal_slices_while_the_list_changes(store):
    rng, made = random.Random(5), 40
    fill(store, made)
    orders = [replace(o, descending=d) for o in KEYS for d in (True, False)]
    for _ in range(150):
        sid = f"s{rng.randrange(made):03}"
        if rng.random() < 0.3: store.create_session(FLOW, f"s{made:03}", label=rng.choice(LABELS), owner=rng.choice(["ann", "bob", ""])); made += 1
        elif rng.random() < 0.3: store.delete_session(FLOW, sid)
        elif rng.random() < 0.3: store.restore_session(FLOW, sid)
        elif store.session_exists(FLOW, sid): store.change_session(FLOW, sid, columns={"label": rng.choice(LABELS)}, updates={"x": "x" * rng.randrange(5)})
        order, scope = rng.choice(orders), rng.choice([{}, {"owner": "ann"}, {"search": "a"}, {"in_trash": True}])
        everything = whole(store, order=order, **scope)
        total = store.count_sessions(FLOW, **scope)
        assert total == len(everything)
        near = store.page_sessions(FLOW, order=order, **scope, start=rng.randrange(total + 1), limit=rng.randrange(1, 9)).anchor
        start, limit = rng.randrange(total + 3), rng.randrange(1, 30)
        for known in ({}, {"total": total}, {"anchor": near}, {"anchor": near, "total": total}):
            page = store.page_sessions(FLOW, order=order, **scope, start=start, limit=limit, **known)
            assert page.rows == everything[start:start + limit], (order, scope, start, limit, known)

@pytest.mark.parametrize("order", [Order(), Order("title", False), Order("created_at", False), Order("state_size_bytes")])
def test_an_anchor_or_total_that_is_out_of_date_still_gives_a_run_of_the_list(store, order):
    rng, made = random.Random(6), 60
    fill(store, made)
    for _ in range(80):
        page = store.page_sessions(FLOW, order=order, start=rng.randrange(40), limit=5)
        known = rng.choice([{"anchor": page.anchor}, {"total": store.count_sessions(FLOW)}, {"anchor": page.anchor, "total": store.count_sessions(FLOW)}])
        for _ in range(rng.randrange(8)):
            if rng.random() < 0.4: store.create_session(FLOW, f"s{made:03}", label=rng.choice(LABELS)); made += 1
            else: rng.choice([store.delete_session, store.restore_session])(FLOW, f"s{rng.randrange(made):03}")
        everything = ids(whole(store, order=order))
        start, limit = rng.randrange(len(everything)), rng.randrange(1, 12)
        found = ids(store.page_sessions(FLOW, order=order, start=start, limit=limit, **known))
        assert found, (start, limit, known)
        at = everything.index(found[0])
        assert found == everything[at:at + len(found)]
        assert len(found) == limit or found[-1] == everything[-1]

def test_a_page_beyond_a_total_that_has_grown(store):
    for i in range(20): store.create_session(FLOW, f"s{i:02}")
    assert ids(store.page_sessions(FLOW, order=Order("created_at", False), start=12, limit=3, total=10)) == ["s12", "s13", "s14"]


# -- search --------------------------------------------------------------------------------------------------------------

FOUND = ["100% done", "100 done", "under_score", "underXscore", "back\\slash", "Straße", "ÉTÉ à Paris", "İstanbul", "日本語", "O'Brien \"x\"", "a--b;", "😀 smile", "\u202eabc", "Σίσυφος",
         "x" * 5000 + "needle", "line\nbreak", "[a-z]*?", "e\u0301", None, "  "]
NEEDLES = ["%", "_", "\\", "100%", "r_s", "k\\s", "été", "ÉTÉ", "STRASSE", "straße", "i̇stanbul", "İ", "本", "'", "\"X\"", "--", "😀", "\u202eA", "σίσυφοσ", "NEEDLE", "\n", "[A-Z]", "*", "?", " ", "session 20",
           "untitled", "e", "nothing like this", "%%", "\\%", "\\\\", "x" * 1000]

@pytest.mark.parametrize("needle", NEEDLES)
def test_search_is_literal_and_ignores_case(store, needle):
    for i, label in enumerate(FOUND): store.create_session(FLOW, f"s{i:02}", label=label, owner="ann" if i % 2 else "")
    rows = [s for s in whole(store, order=Order("created_at", False)) if needle.casefold() in title(s)]
    assert whole(store, order=Order("created_at", False), search=needle) == rows
    assert store.count_sessions(FLOW, search=needle) == len(rows)
    assert store.count_sessions(FLOW, search=needle, owner="ann") == sum(s.owner == "ann" for s in rows)
    assert store.page_sessions(FLOW, order=Order("created_at", False), search=needle, start=1, limit=2).rows == rows[1:3]

@pytest.mark.parametrize("needle", NO_TEXT)
def test_search_for_what_no_label_can_hold_finds_nothing(store, needle):
    for label in ("plain", "a", "ab"): store.create_session(FLOW, label=label)
    assert whole(store, search=needle) == [] and store.count_sessions(FLOW, search=needle) == 0


# -- text in columns -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text", [t for t in HOSTILE if ":" not in t])
def test_any_text_may_be_an_id_a_label_an_owner_or_a_step(store, text):
    store.create_session(text, text, text, owner=text, current_step=text, state={"x": 1})
    store.create_session("other", "other")
    s = store.get_session_summary(text, text, owner=text)
    assert (s.flow_id, s.session_id, s.label, s.owner, s.current_step) == (text, text, text, text, text)
    assert whole(store, text, owner=text) == [s] == whole(store, text, search=text, owner=text) or is_blank(text)
    assert store.get_states(text, [text, "other"], owner=text) == {text: {"x": 1}}
    store.set_session_label(text, text, text + text)
    store.set_current_step(text, text, text + text)
    assert (store.get_session_summary(text, text).label, store.get_current_step(text, text)) == (text + text, text + text)
    store.delete_session(text, text, owner=text)
    assert store.restore_session(text, text, owner=text) and store.get_state(text, text) == {"x": 1}
    assert store.list_flows() == {text: 1, "other": 1}

def test_a_label_of_a_megabyte_is_kept(store):
    label = "ab é" * 250_000
    store.create_session(FLOW, "s1", label=label)
    assert store.get_session_summary(FLOW, "s1").label == label == whole(store, order=Order("title"))[0].label

@pytest.mark.parametrize("text", NO_TEXT)
def test_what_is_no_text_is_refused_by_name(store, hers, text):
    before = snapshot(store)
    for field, write in {"flow_id": lambda: store.create_session(text), "session_id": lambda: store.create_session(FLOW, text), "label": lambda: store.create_session(FLOW, "new", text),
                         "owner": lambda: store.create_session(FLOW, "new", owner=text), "current_step": lambda: store.create_session(FLOW, "new", current_step=text)}.items():
        with pytest.raises(InvalidInput) as e: write()
        assert e.value.field == field
    for write in (lambda: store.set_session_label(FLOW, hers, text), lambda: store.set_current_step(FLOW, hers, text), lambda: store.set_current_step(FLOW, "new", text),
                  lambda: store.change_session(FLOW, hers, updates={"a": 1}, columns={"label": text}), lambda: store.update_state(FLOW, text, {"a": 1}),
                  lambda: store.update_state(text, "new", {"a": 1}), lambda: store.set_current_step(FLOW, text, "pick"), lambda: store.update_step_state(FLOW, text, "pick", {"a": 1})):
        with pytest.raises(InvalidInput): write()
    assert snapshot(store) == before

@pytest.mark.parametrize("text", NO_TEXT)
def test_an_id_that_is_no_text_is_missing_like_any_other(store, hers, text):
    before = snapshot(store)
    for name, (read, missing) in READS.items():
        if name not in ("count_sessions", "count by search", "list_steps"): assert read(store, text, None) == missing, name
    for name, write in REFUSED_WRITES.items():
        with pytest.raises((SessionNotFound, InvalidInput)): write(store, text, "ann")
    for write, answer in IGNORED_WRITES.values(): assert write(store, text, None) == answer
    store.clear_state(FLOW, text)
    assert store.get_states(FLOW, [text, hers]) == {hers: HERS["state"]}
    assert whole(store, text) == [] and store.count_sessions(text) == 0 and store.list_steps(text) == [] and store.list_sessions(text) == []
    assert store.outdated_shown(text, "v1") == [] and store.purge_trash(text, now_us()) == 0
    assert snapshot(store) == before


# -- several states --------------------------------------------------------------------------------------------------------

def test_get_states(store):
    for i in range(5): store.create_session(FLOW, f"s{i}", owner="ann" if i % 2 else "bob", state={"i": i} if i else {})
    store.delete_session(FLOW, "s4")
    assert store.get_states(FLOW, ["s0", "s1", "s1", "s4", "unknown", "s3"]) == {"s0": {}, "s1": {"i": 1}, "s3": {"i": 3}}
    assert store.get_states(FLOW, ["s0", "s1", "s2"], owner="bob") == {"s0": {}, "s2": {"i": 2}}
    assert store.get_states(FLOW, ()) == {} and store.get_states("other", ["s1"]) == {}

def test_get_states_of_a_long_page(store):
    sids = [store.create_session(FLOW, f"s{i}", state={"i": i}) for i in range(300)]
    assert store.get_states(FLOW, tuple(sids)) == {f"s{i}": {"i": i} for i in range(300)}

@pytest.fixture
def damaged(kind, store):
    "A session whose value of `bad` cannot be read, between two good ones."
    for sid in ("s0", "s1", "s2"): store.create_session(FLOW, sid, f"Label {sid}", owner="ann", state={"good": sid, "bad": 1, "_step_pick": {"n": 1}})
    kind.damage(store, "s1", "bad")
    return "s1"

def test_a_damaged_state_is_an_error_of_that_session_only(store, damaged):
    with pytest.raises(CorruptState) as e: store.get_state(FLOW, damaged)
    assert e.value.session_id == damaged
    states = store.get_states(FLOW, ["s0", "s1", "s2"])
    assert isinstance(states.pop(damaged), CorruptState)
    assert {k: v["good"] for k, v in states.items()} == {"s0": "s0", "s2": "s2"}
    assert ids(whole(store)) == ["s2", "s1", "s0"] and store.count_sessions(FLOW) == 3
    assert ids(whole(store, order=Order("title", False), search="label")) == ["s0", "s1", "s2"]
    assert len(whole(store, order=Order("state_size_bytes"))) == 3 and len(store.list_sessions(FLOW)) == 3
    with pytest.raises(CorruptState):
        with store.edit_state(FLOW, damaged): pass
    assert store.get_session_summary(FLOW, damaged).label == "Label s1"

def test_a_session_with_a_damaged_state_can_be_renamed_moved_and_deleted(store, damaged):
    store.set_session_label(FLOW, damaged, "Broken", owner="ann")
    store.set_current_step(FLOW, damaged, "check")
    s = store.get_session_summary(FLOW, damaged)
    assert (s.label, s.current_step) == ("Broken", "check")
    store.delete_session(FLOW, damaged)
    assert store.restore_session(FLOW, damaged)
    store.clear_state(FLOW, damaged)
    assert ids(whole(store)) == ["s2", "s0"]

def test_a_damaged_value_is_mended_by_writing_it_again(store, damaged):
    cannot(store, CjmStore, "the whole state is one text, so what is left of it is unknown and a merge must not replace it")
    assert store.get_step_state(FLOW, damaged, "pick") == {"n": 1}
    store.update_state(FLOW, damaged, {"bad": 2})
    assert store.get_state(FLOW, damaged) == {"good": "s1", "bad": 2, "_step_pick": {"n": 1}}
    assert store.get_session_summary(FLOW, damaged).state_size_bytes == len(json.dumps(store.get_state(FLOW, damaged)))

def test_a_merge_never_throws_a_damaged_state_away(kind, store, damaged):
    try: store.update_state(FLOW, damaged, {"new": 1})
    except CorruptState as e: assert e.session_id == damaged
    with pytest.raises(CorruptState): store.get_state(FLOW, damaged)


# -- what the callbacks gave -----------------------------------------------------------------------------------------------

def show(store, version, make, owner=None):
    "Do what a service does: refresh what is outdated."
    rows = store.outdated_shown(FLOW, version, owner=owner)
    store.save_shown(FLOW, version, [(s, make(s)) for s in rows])
    return sorted(ids(rows))

def reversed_title(s): return Shown(f"Title {9 - int(s.session_id[1:])}", (("files", f"{int(s.session_id[1:]) * 7 % 4}"),))

def test_without_callbacks_nothing_is_outdated(store):
    for i in range(3): store.create_session(FLOW, f"s{i}", label="x" if i else None)
    for write in WRITES.values(): write(store, "s1")
    assert store.outdated_shown(FLOW, "") == []

def test_lists_sort_and_search_by_what_the_callbacks_gave(store):
    for i in range(6): store.create_session(FLOW, f"s{i}", label="stored")
    assert show(store, "v1", reversed_title) == [f"s{i}" for i in range(6)]
    assert show(store, "v1", reversed_title) == []
    assert ids(whole(store, order=Order("title", False))) == ["s5", "s4", "s3", "s2", "s1", "s0"]
    assert ids(store.list_sessions(FLOW, "label")) == ["s0", "s1", "s2", "s3", "s4", "s5"]
    assert ids(whole(store, order=Order("field:files", False))) == ["s0", "s4", "s3", "s2", "s1", "s5"]
    assert ids(whole(store, order=Order("field:files"))) == ["s5", "s1", "s2", "s3", "s4", "s0"]
    assert ids(whole(store, search="TITLE 7")) == ["s2"] and store.count_sessions(FLOW, search="stored") == 0
    assert [s.label for s in whole(store)] == ["stored"] * 6   # what is shown is not what is stored

@pytest.mark.parametrize("name", WRITES)
def test_every_write_makes_it_outdated(store, name):
    for i in range(3): store.create_session(FLOW, f"s{i}", label="stored", state={"_step_pick": {"n": 1}})
    show(store, "v1", reversed_title)
    WRITES[name](store, "s1")
    assert ids(store.outdated_shown(FLOW, "v1")) == ["s1"]
    assert show(store, "v1", lambda s: Shown("fresh")) == ["s1"] and store.outdated_shown(FLOW, "v1") == []
    assert ids(whole(store, search="fresh")) == ["s1"]

def test_other_callbacks_make_all_of_it_outdated(store):
    for i in range(3): store.create_session(FLOW, f"s{i}", label="stored")
    show(store, "v1", reversed_title)
    assert len(store.outdated_shown(FLOW, "v2")) == 3
    assert show(store, "v2", lambda s: Shown(f"Other {s.session_id}")) == ["s0", "s1", "s2"]
    assert store.count_sessions(FLOW, search="title") == 0 and store.count_sessions(FLOW, search="other") == 3

def test_what_was_made_of_an_older_state_is_not_kept(store):
    for i in range(2): store.create_session(FLOW, f"s{i}", label="stored")
    read = store.outdated_shown(FLOW, "v1")
    store.update_state(FLOW, "s0", {"a": 1})
    store.save_shown(FLOW, "v1", [(s, Shown("made too late")) for s in read])
    assert ids(store.outdated_shown(FLOW, "v1")) == ["s0"]
    assert ids(whole(store, search="too late")) == ["s1"]

def test_sessions_that_are_gone_are_skipped(store):
    for i in range(3): store.create_session(FLOW, f"s{i}")
    read = store.outdated_shown(FLOW, "v1")
    store.delete_session(FLOW, "s0")
    store.clear_state(FLOW, "s1")
    store.save_shown(FLOW, "v1", [(s, Shown("made")) for s in read])
    store.save_shown("other", "v1", [(s, Shown("made elsewhere")) for s in read])
    store.save_shown(FLOW, "v1", [])
    assert ids(whole(store, search="made")) == ["s2"] and store.outdated_shown(FLOW, "v1") == [] and store.list_flows() == {FLOW: 1}

def test_new_and_restored_sessions_are_outdated_as_they_should(store):
    store.create_session(FLOW, "s0")
    show(store, "v1", reversed_title)
    store.create_session(FLOW, "s1")
    assert show(store, "v1", reversed_title) == ["s1"]
    store.delete_session(FLOW, "s0")
    assert store.outdated_shown(FLOW, "v1") == []
    store.restore_session(FLOW, "s0")
    show(store, "v1", reversed_title)   # a store may keep it over the trash or have it made again
    assert ids(whole(store, order=Order("title", False))) == ["s1", "s0"]

def test_outdated_is_scoped_and_limited(store):
    for i in range(6): store.create_session(FLOW, f"s{i}", owner="ann" if i % 2 else "bob")
    assert sorted(ids(store.outdated_shown(FLOW, "v1", owner="ann"))) == ["s1", "s3", "s5"]
    assert len(store.outdated_shown(FLOW, "v1", limit=2)) == 2
    assert show(store, "v1", reversed_title, owner="ann") == ["s1", "s3", "s5"]
    assert sorted(ids(store.outdated_shown(FLOW, "v1"))) == ["s0", "s2", "s4"]

def test_outdated_a_page_at_a_time_comes_to_an_end(store):
    for i in range(25): store.create_session(FLOW, f"s{i}")
    rounds = 0
    while rows := store.outdated_shown(FLOW, "v1", limit=10):
        store.save_shown(FLOW, "v1", [(s, Shown("x")) for s in rows])
        rounds += 1
        assert rounds <= 3

def test_a_renamed_session_sorts_by_its_new_label_at_once(store):
    for sid in "abc": store.create_session(FLOW, sid, label=sid)
    store.set_session_label(FLOW, "a", "z")
    assert ids(whole(store, order=Order("title", False))) == ["b", "c", "a"]
    store.change_session(FLOW, "b", columns={"label": None})
    assert ids(whole(store, search="session 20")) == ["b"]
    store.set_session_label(FLOW, "c", " ")
    assert sorted(ids(whole(store, search="session 20"))) == ["b", "c"]

@pytest.mark.parametrize("text", [*HOSTILE, *NO_TEXT, "x" * 100_000])
def test_callbacks_may_give_any_text(store, text):
    for i in range(3): store.create_session(FLOW, f"s{i}")
    assert len(show(store, "v1", lambda s: Shown(text, ((text, text), ("files", text))))) == 3
    assert store.outdated_shown(FLOW, "v1") == []
    assert len(whole(store, order=Order("title"))) == len(whole(store, order=Order(f"field:{text}"))) == len(whole(store, order=Order("field:files"))) == 3
    assert store.count_sessions(FLOW, search="x") in (0, 3)

@pytest.mark.parametrize("field", HOSTILE)
def test_any_text_names_a_column_of_the_host(store, field):
    for i in range(4): store.create_session(FLOW, f"s{i}")
    show(store, "v1", lambda s: Shown("t", ((field, str(5 - int(s.session_id[1:]))), ("other", "1"))))
    assert ids(whole(store, order=Order(f"field:{field}", False))) == ["s3", "s2", "s1", "s0"]

@pytest.mark.parametrize("version", [*HOSTILE, "x" * 10_000])
def test_a_version_is_only_compared(store, version):
    store.create_session(FLOW, "s0")
    show(store, version, lambda s: Shown("made"))
    assert store.outdated_shown(FLOW, version) == []


# -- many at once ----------------------------------------------------------------------------------------------------------

def merges(store, name, n, session_id="s1"):
    def run():
        for i in range(n): store.update_state(FLOW, session_id, {f"{name}_{i}": i})
    return run

def test_merges_of_different_keys_are_all_there(store):
    store.create_session(FLOW, "s1")
    in_threads(*[merges(store, t, 50) for t in range(8)])
    state = store.get_state(FLOW, "s1")
    assert state == {f"{t}_{i}": i for t in range(8) for i in range(50)}
    assert store.get_session_summary(FLOW, "s1").state_size_bytes == len(json.dumps(state))

def test_merges_through_two_store_objects_are_all_there(store, second):
    store.create_session(FLOW, "s1")
    in_threads(*[merges(s, f"{n}{t}", 40) for n, s in enumerate((store, second)) for t in range(2)])
    assert len(store.get_state(FLOW, "s1")) == 160

def test_merges_that_create_the_session_are_all_there(store):
    in_threads(*[merges(store, t, 5, "new") for t in range(8)])
    assert len(store.get_state(FLOW, "new")) == 40 and store.list_flows() == {FLOW: 1}

@pytest.mark.parametrize("known", [True, False])
def test_merges_into_one_step_are_all_there(store, known):
    together = threading.Barrier(4, timeout=60)
    def job(t):
        def run():
            for i in range(30):
                together.wait()
                store.update_step_state(FLOW, f"s{i}", "pick", {f"k{t}": t})
        return run
    if known:
        for i in range(30): store.create_session(FLOW, f"s{i}")
    in_threads(*map(job, range(4)))
    for i in range(30): assert store.get_step_state(FLOW, f"s{i}", "pick") == {f"k{t}": t for t in range(4)}

def test_increments_under_the_lock_are_not_lost(store):
    store.create_session(FLOW, "s1", state={"n": 0, "log": []})
    def job(t):
        def run():
            for i in range(30):
                with store.edit_state(FLOW, "s1") as state:
                    state["n"] += 1
                    state["log"].append([t, i])
        return run
    in_threads(*map(job, range(4)))
    state = store.get_state(FLOW, "s1")
    assert state["n"] == 120 == len(state["log"]) and [e for e in state["log"] if e[0] == 2] == [[2, i] for i in range(30)]

def test_edits_and_merges_of_one_session_do_not_lose_each_other(store):
    store.create_session(FLOW, "s1", state={"n": 0})
    def edits():
        for _ in range(40):
            with store.edit_state(FLOW, "s1") as state: state["n"] += 1
    def steps():
        for i in range(40): store.update_step_state(FLOW, "s1", "pick", {f"k{i}": i})
    in_threads(edits, edits, steps, merges(store, "m", 40))
    state = store.get_state(FLOW, "s1")
    assert state["n"] == 80 and len(state["_step_pick"]) == 40 and len(state) == 42

def test_only_one_of_many_creates_an_id(store):
    made, refused = [], []
    def job(t):
        def run():
            try: made.append((store.create_session(FLOW, "s1", state={"t": t}), t))
            except SessionExists: refused.append(t)
        return run
    in_threads(*map(job, range(8)))
    assert len(made) == 1 and len(refused) == 7
    assert store.get_state(FLOW, "s1") == {"t": made[0][1]} and store.count_sessions(FLOW) == 1

def test_readers_see_whole_writes_only(store):
    store.create_session(FLOW, "s1", state={"a": 0, "b": 0})
    done = threading.Event()
    def write():
        for i in range(1, 100): store.update_state(FLOW, "s1", {"a": i, "b": i})
        done.set()
    def read():
        while not done.is_set():
            state = store.get_state(FLOW, "s1")
            assert state["a"] == state["b"]
            assert store.get_states(FLOW, ["s1"])["s1"]["a"] >= state["a"]
            assert store.count_sessions(FLOW) == len(whole(store)) == 1
    in_threads(write, read, read)

def test_creating_and_deleting_in_threads_keeps_the_counts(store):
    def job(t):
        def run():
            for i in range(12):
                sid = store.create_session(FLOW, f"s{t}_{i}", owner=f"o{t % 2}")
                if i % 2: store.delete_session(FLOW, sid)
                if i % 4 == 3: store.restore_session(FLOW, sid)
                if i % 6 == 0: store.clear_state(FLOW, sid)
        return run
    in_threads(*map(job, range(6)))
    for scope in ({}, {"owner": "o0"}, {"owner": "o1"}, {"in_trash": True}): assert store.count_sessions(FLOW, **scope) == len(whole(store, **scope))
    assert store.count_sessions(FLOW) == 6 * 7 and store.list_flows() == {FLOW: 42}


# -- a write within a larger one -----------------------------------------------------------------------------------------------

def test_a_part_that_fails_is_taken_back_and_the_rest_is_kept(store):
    cannot(store, CjmStore, "its library commits each call by itself")
    for sid in ("s1", "taken"): store.create_session(FLOW, sid, state={"n": 0})
    new = [replace(store.get_session_summary(FLOW, "s1"), session_id=sid) for sid in ("n1", "n2", "taken")]
    with store.edit_state(FLOW, "s1") as state:
        with pytest.raises(SessionExists): store.insert_sessions((s, {"a": 1}) for s in new)
        store.create_session(FLOW, "inner")
        state["n"] = 1
    assert sorted(ids(whole(store))) == ["inner", "s1", "taken"] and store.count_sessions(FLOW) == 3
    assert store.get_state(FLOW, "s1") == {"n": 1}

def test_coroutines_that_take_turns_do_not_share_a_transaction(store):
    cannot(store, CjmStore, "its library has no transaction around an edit")
    for sid in ("s1", "s2"): store.create_session(FLOW, sid, state={"n": 0})
    told = {}
    async def edit_one(sid, fails):
        try:
            with store.edit_state(FLOW, sid) as state:
                state["n"] = 1
                await asyncio.sleep(0.01)
                if fails: raise RuntimeError
        except (RuntimeError, StoreError) as e: told[sid] = e
        else: told[sid] = None
    async def both(): await asyncio.gather(edit_one("s1", True), edit_one("s2", False))
    with ThreadPoolExecutor(1) as pool: pool.submit(asyncio.run, both()).result()
    assert store.get_state(FLOW, "s1") == {"n": 0}
    assert store.get_state(FLOW, "s2") == {"n": 0 if told["s2"] else 1}   # refused, or kept: never acknowledged and lost
    with store.edit_state(FLOW, "s2") as state: state["n"] = 5
    assert store.get_state(FLOW, "s2") == {"n": 5}

def test_a_generator_that_is_resumed_elsewhere_harms_nobody(store):
    "A streamed answer takes its parts in whichever thread is free, between the requests that the thread serves."
    cannot(store, CjmStore, "its library has no transaction around an edit")
    for sid in ("s1", "s2"): store.create_session(FLOW, sid, state={"n": 0})
    def stream():
        with store.edit_state(FLOW, "s1") as state:
            state["n"] += 1
            yield
    streams = stream()
    def in_thread(job):
        with ThreadPoolExecutor(1) as pool: return pool.submit(contextvars.copy_context().run, job).result()
    if isinstance(store, SQLiteSessionStore) and store.where == ":memory:": pytest.skip("memory is locked by thread")
    in_thread(lambda: next(streams))
    in_thread(lambda: next(streams, None))
    def count(n):
        for _ in range(n):
            with store.edit_state(FLOW, "s2") as state: state["n"] += 1
    in_threads(*[lambda: count(20)] * 3)
    assert (store.get_state(FLOW, "s1"), store.get_state(FLOW, "s2")) == ({"n": 1}, {"n": 60})


# -- one key, two spellings ------------------------------------------------------------------------------------------------------

def test_a_key_that_is_no_text_is_the_key_that_json_makes_of_it(store):
    store.create_session(FLOW, "s1")
    store.change_session(FLOW, "s1", updates={1: "aaaaaaaa"}, remove=["1", "2"])
    assert store.get_state(FLOW, "s1") == {"1": "aaaaaaaa"}
    store.update_step_state(FLOW, "s1", "pick", {"1": "x", "2": "y"})
    store.update_step_state(FLOW, "s1", "pick", {1: "z"})
    assert store.get_step_state(FLOW, "s1", "pick") == {"1": "z", "2": "y"}
    assert store.get_session_summary(FLOW, "s1").state_size_bytes == len(json.dumps(store.get_state(FLOW, "s1")))
