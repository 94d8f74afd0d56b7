"""What only a PostgreSQL server can do to a store: refuse it, go away, come back, and tell of changes."""

import contextlib
import http.client
import os
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from urllib.parse import quote, urlencode

import psycopg
import pytest
from playwright.sync_api import expect

from cjm_workflow_sessions.errors import InvalidInput, StoreError, StoreReadOnly, StoreTooNew, StoreUnavailable
from cjm_workflow_sessions.models import SessionSummary
from cjm_workflow_sessions.stores.base import Changed, Order, Shown, open_store
from cjm_workflow_sessions.stores.postgres import LOCK, PostgresSessionStore
from cjm_workflow_sessions.utils import now_us, us_to_text
from postgres_support import Cluster, find_programs
from store_support import FLOW, check, in_threads, together
from support import Server


@pytest.fixture
def url(postgres): return postgres.fresh_url()


@pytest.fixture
def store(url):
    with closing(PostgresSessionStore(url)) as store: yield store


@pytest.fixture
def own_server(postgres):
    "A server that a test may stop."
    cluster = Cluster(find_programs())
    yield cluster
    cluster.close()


def database(postgres, name, *statements, options=""):
    "Make a database of its own; gives its address for another role."
    with postgres.admin() as db:
        db.execute(f"DROP DATABASE IF EXISTS {name}")
        db.execute(f"CREATE DATABASE {name} {options}")
        for statement in statements: db.execute(statement)
    return f"postgresql://postgres@127.0.0.1:{postgres.port}/{name}"


# -- what is wrong, in words -----------------------------------------------------------------------------------------------

def test_an_address_says_what_is_wrong_with_it(postgres):
    port = postgres.port
    cases = {
        "postgresql://ann:hush@127.0.0.1:1/app": (StoreUnavailable, "does not answer"),
        f"postgresql://nobody-like-that:hush@127.0.0.1:{port}/postgres": (StoreUnavailable, "user or the password"),
        f"postgresql://postgres:hush@127.0.0.1:{port}/no-such": (StoreUnavailable, "no such database"),
        "postgresql://ann:hush%zz@db/app": (InvalidInput, "percent-encoded"),
        f"postgresql://postgres:hush@127.0.0.1:{port}/postgres?options=-csearch_path%3Dno_such": (StoreUnavailable, "schema"),
    }
    for address, (kind, words) in cases.items():
        began = time.monotonic()
        with pytest.raises(kind, match=words) as e: open_store(address)
        assert "hush" not in str(e.value) and "ann" not in str(e.value)
        assert time.monotonic() - began < 10
    with pytest.raises(InvalidInput) as e: open_store("mysql://ann:hush@db/app")
    assert "hush" not in str(e.value) and "postgresql://" in str(e.value)

def test_a_database_in_another_encoding_is_refused(postgres):
    url = database(postgres, "latin", options="ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    with pytest.raises(StoreError, match="UTF8"): PostgresSessionStore(url)

def test_newer_tables_are_refused(store, url):
    with store.transaction() as run: run("INSERT INTO wfs_migration(number, name, applied_at) VALUES(99, 'later', 0)")
    with pytest.raises(StoreTooNew): PostgresSessionStore(url)

def test_a_store_that_takes_no_writes_can_be_read(store, url):
    store.create_session(FLOW, "s1", state={"a": 1})
    with closing(PostgresSessionStore(url + quote(" -cdefault_transaction_read_only=on"))) as reader:
        assert reader.get_state(FLOW, "s1") == {"a": 1}
        for write in (lambda: reader.update_state(FLOW, "s1", {"a": 2}), lambda: reader.create_session(FLOW), reader.check):
            with pytest.raises(StoreReadOnly, match="takes no writes"): write()

def test_a_role_without_rights_is_told_so(postgres, store, url):
    store.create_session(FLOW, "s1")
    schema = url.rpartition("%3D")[2].partition("%2C")[0]
    with postgres.admin() as db:
        db.execute("DROP ROLE IF EXISTS guest")
        db.execute("CREATE ROLE guest LOGIN")
        db.execute(f"GRANT USAGE ON SCHEMA {schema} TO guest")
        db.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO guest")
    with closing(PostgresSessionStore(postgres.in_schema(schema, user="guest"))) as guest:
        assert guest.session_exists(FLOW, "s1")
        with pytest.raises(StoreReadOnly, match="GRANT"): guest.create_session(FLOW)
    with postgres.admin() as db:
        db.execute(f"REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM guest")
        db.execute(f"REVOKE ALL ON SCHEMA {schema} FROM guest")
        db.execute("DROP ROLE guest")


# -- limits of the database ------------------------------------------------------------------------------------------------

def test_long_titles_of_any_character_are_sorted_and_found(store):
    chance = random.Random(1)
    labels = ["".join(chr(chance.randrange(0x1F300, 0x1FAFF)) for _ in range(1000)) for _ in range(8)]
    for label in labels: store.create_session(FLOW, label=label)
    for descending in (False, True):
        assert [s.label for s in store.page_sessions(FLOW, order=Order("title", descending)).rows] == sorted(labels, reverse=descending)
    assert [s.label for s in store.page_sessions(FLOW, search=labels[3][900:910]).rows] == [labels[3]]

def test_names_that_no_index_holds_are_refused(store):
    chance = random.Random(2)
    name = "".join(chr(chance.randrange(0x4E00, 0x9FFF)) for _ in range(5000))
    for write in (lambda: store.create_session(name, "s1"), lambda: store.create_session(FLOW, name), lambda: store.create_session(FLOW, owner=name)):
        with pytest.raises(InvalidInput, match="too long"): write()
    assert store.list_flows() == {} and store.count_sessions(FLOW) == 0

def test_a_search_uses_the_index(store):
    with store.transaction() as run:
        run("""INSERT INTO wfs_session(flow_id, session_id, created_at, updated_at, title)
            SELECT 'ingest', n::text, n, n, 'session number ' || n FROM generate_series(1, 20000) n""")
    store.rows("VACUUM ANALYZE wfs_session")   # as the server does by itself in a while
    def plan(term): return str(store.rows("EXPLAIN SELECT 1 FROM wfs_session s WHERE s.flow_id = ? AND s.deleted_at IS NULL AND s.title LIKE ?", (FLOW, term)))
    assert "wfs_session_search" in plan("%19876%")
    assert [s.session_id for s in store.page_sessions(FLOW, search="19876").rows] == ["19876"] and store.count_sessions(FLOW, search="r 1999") == 11

def test_without_the_extension_a_search_reads_the_titles(postgres):
    url = database(postgres, "plain", "DROP ROLE IF EXISTS plain", "CREATE ROLE plain LOGIN")
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("CREATE SCHEMA app AUTHORIZATION plain")
        db.execute("ALTER ROLE plain SET search_path = app")
    with closing(PostgresSessionStore(url.replace("postgres@", "plain@"))) as store:
        assert store.rows("SELECT 1 FROM pg_extension WHERE extname = 'pg_trgm'") == []
        store.create_session(FLOW, "s1", "Holiday")
        assert [s.session_id for s in store.page_sessions(FLOW, search="lida").rows] == ["s1"]


# -- connections and transactions ----------------------------------------------------------------------------------------------

def test_calls_within_a_transaction_use_its_connection(url):
    with closing(PostgresSessionStore(url, max_connections=1, patience_s=1)) as store:
        store.create_session(FLOW, "s1", state={"n": 0})
        with store.edit_state(FLOW, "s1") as state:
            store.update_state(FLOW, "s1", {"other": 1})
            assert store.get_state(FLOW, "s1") == {"n": 0, "other": 1} and store.count_sessions(FLOW) == 1
            state["n"] = 1
        assert store.get_state(FLOW, "s1") == {"n": 1, "other": 1}
    check(url)

def test_an_exception_takes_back_all_that_joined(store, url):
    store.create_session(FLOW, "s1", state={"n": 0})
    with pytest.raises(RuntimeError):
        with store.edit_state(FLOW, "s1"):
            store.update_state(FLOW, "s1", {"other": 1})
            store.create_session(FLOW, "s2")
            raise RuntimeError
    assert store.get_state(FLOW, "s1") == {"n": 0} and not store.session_exists(FLOW, "s2")
    check(url)

def test_a_statement_that_failed_is_not_forgotten_at_the_end(store):
    store.create_session(FLOW, "s1", state={"n": 0})
    with pytest.raises(Exception, match="failed"):
        with store.transaction() as run:
            run("UPDATE wfs_session SET label = 'never stored'")
            try: run("SELECT 1 / 0")
            except psycopg.Error: pass   # as a host's own code might
    assert store.get_session_summary(FLOW, "s1").label is None

def test_who_waits_too_long_is_told_for_what(url):
    with closing(PostgresSessionStore(url, max_connections=2, patience_s=0.5)) as store:
        store.create_session(FLOW, "s1")
        inside, leave, found = threading.Event(), threading.Event(), []
        def hold():
            with store.edit_state(FLOW, "s1"):
                inside.set()
                leave.wait(30)
        def wait():
            inside.wait(30)
            try: store.update_state(FLOW, "s1", {"a": 1})
            except StoreUnavailable as e: found.append(str(e))
            with store.transaction():   # the second connection, so that there is none for a third
                errors = []
                def third():
                    try: store.count_sessions(FLOW)
                    except StoreUnavailable as e: errors.append(str(e))
                in_threads(third)
                found.extend(errors)
            leave.set()
        in_threads(hold, wait)
    assert "holds the lock" in found[0] and "all 2 connections" in found[1]

def test_threads_that_delete_and_restore_one_another_never_wait_for_ever(url):
    with closing(PostgresSessionStore(url, max_connections=6)) as store:
        for i in range(20): store.create_session(FLOW, f"s{i}", owner=f"o{i % 3}")
        def churn(seed):
            chance = random.Random(seed)
            for i in range(60):
                sid = f"s{chance.randrange(20)}"
                match chance.randrange(5):
                    case 0: store.delete_session(FLOW, sid)
                    case 1: store.restore_session(FLOW, sid)
                    case 2: store.purge_trash(FLOW, now_us() - 50_000)
                    case 3: store.insert_sessions([(SessionSummary(f, f"n{seed}-{i}", None, None, us_to_text(1), us_to_text(1), 2, o), {"a": 1}) for f, o in ((FLOW, "o1"), ("other", "o0"))])
                    case 4: store.save_shown(FLOW, "v", [(s, Shown("t")) for s in store.page_sessions(FLOW, order=Order("title", bool(seed % 2))).rows])
        in_threads(*(lambda seed=seed: churn(seed) for seed in range(5)))
    check(url)


def test_a_lost_connection_is_not_taken_for_a_commit(postgres, store):
    store.create_session(FLOW, "s1", state={"n": 0})
    with pytest.raises(StoreUnavailable):
        with store.edit_state(FLOW, "s1") as state:
            state["n"] = 1
            ((pid,),) = store.rows("SELECT pg_backend_pid()")
            with postgres.admin() as db: db.execute("SELECT pg_terminate_backend(%s)", (pid,))
            with contextlib.suppress(StoreError): store.count_sessions(FLOW)   # as a host's own code might
    assert store.get_state(FLOW, "s1") == {"n": 0}

def test_closing_in_another_thread_leaves_a_transaction_whole(store):
    store.create_session(FLOW, "s1", state={"n": 0})
    with pytest.raises(RuntimeError):
        with store.edit_state(FLOW, "s1"):
            in_threads(store.close, lambda: store.get_state(FLOW, "s1"))
            store.update_state(FLOW, "s1", {"inner": 1})
            store.create_session(FLOW, "s9")
            raise RuntimeError
    assert store.get_state(FLOW, "s1") == {"n": 0} and not store.session_exists(FLOW, "s9")

def leave_in_a_fork(url):
    store = PostgresSessionStore(url)
    answers = []
    with store.edit_state(FLOW, "s1") as state:
        state["from parent"] = 1
        ours, theirs = os.pipe()
        if (pid := os.fork()) == 0:
            said = b"acknowledged"
            try:
                with contextlib.suppress(GeneratorExit):
                    store.update_state(FLOW, "s1", {"from child": 1})
            except StoreError: said = b"refused"
            finally:
                os.write(theirs, said)
                os._exit(0)
        os.waitpid(pid, 0)
        answers.append(os.read(ours, 100))
    return answers[0]

def test_a_fork_within_a_write_does_not_speak_for_its_parent(store, url):
    store.create_session(FLOW, "s1")
    assert together((leave_in_a_fork, url)) == [b"refused"]
    assert store.get_state(FLOW, "s1") == {"from parent": 1}

def test_who_comes_first_is_served_first(url):
    "With two connections and forty callers nobody is turned away while all are served within their patience."
    with closing(PostgresSessionStore(url, max_connections=2, patience_s=20)) as store:
        served = []
        def call():
            for _ in range(5):
                store.rows("SELECT pg_sleep(0.005)")
                served.append(threading.get_ident())
        in_threads(*[call] * 40)
    assert len(served) == 200
    last = {thread: i for i, thread in enumerate(served)}
    assert min(last.values()) > 100   # nobody had all its turns before the others

def test_a_change_may_have_more_keys_than_a_statement_has_room_for(store, url):
    many = {f"k{i}": i for i in range(70_000)}
    store.create_session(FLOW, "s1")
    store.update_state(FLOW, "s1", many)
    store.change_session(FLOW, "s1", updates={"k0": "changed"}, remove=list(many)[1:])
    assert store.get_state(FLOW, "s1") == {"k0": "changed"}
    assert store.get_states(FLOW, [f"s{i}" for i in range(70_000)]).keys() == {"s1"}
    check(url)

def insert_many(url, ids, barrier):
    with closing(PostgresSessionStore(url)) as store:
        barrier.wait(60)
        return store.insert_sessions(((SessionSummary(FLOW, i, None, None, us_to_text(1), us_to_text(1), 2), {"a": 1}) for i in ids), skip_existing=True)

def test_bulk_inserts_of_the_same_ids_do_not_wait_for_each_other_in_a_circle(store, url):
    ids = [f"s{i}" for i in range(2000)]
    made = []
    barrier = threading.Barrier(2)
    in_threads(lambda: made.append(insert_many(url, ids, barrier)), lambda: made.append(insert_many(url, ids[::-1], barrier)))
    assert sum(made) == 2000
    check(url)

def test_arguments_that_make_no_sense_are_named():
    for bad in (dict(patience_s=0), dict(patience_s=-1), dict(patience_s=float("inf")), dict(patience_s="5"), dict(max_connections=0), dict(max_connections="3")):
        with pytest.raises(InvalidInput, match=next(iter(bad))): PostgresSessionStore("postgresql://db/app", **bad)


# -- schemas -------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["ä" * 31, "日" * 21, 'Quoted "Name"', "a" * 63, "UPPER"])
def test_a_schema_may_have_any_name(postgres, name):
    quoted = '"' + name.replace('"', '""') + '"'
    with postgres.admin() as db: db.execute(f"CREATE SCHEMA {quoted}")
    url = f"postgresql://postgres@127.0.0.1:{postgres.port}/postgres?options=" + quote("-csearch_path=" + quoted.replace(" ", "\\ ") + ",public")
    with closing(PostgresSessionStore(url)) as store, closing(store.open_feed()) as feed:
        feed.poll([FLOW])
        store.create_session(FLOW, "s1")
        assert [c.session_id for c in arrived(feed, [FLOW], 1)] == ["s1"]

def test_stores_in_two_schemas_hear_nothing_of_each_other(postgres):
    with closing(PostgresSessionStore(postgres.fresh_url())) as one, closing(PostgresSessionStore(postgres.fresh_url())) as other, closing(one.open_feed()) as feed:
        feed.poll([FLOW])
        other.create_session(FLOW, "theirs")
        one.create_session(FLOW, "ours")
        assert [c.session_id for c in arrived(feed, [FLOW], 1)] == ["ours"]

def test_tables_of_a_schema_further_on_are_not_taken(postgres, store, url):
    with postgres.admin() as db: db.execute("CREATE SCHEMA IF NOT EXISTS comes_first")
    theirs = url.rpartition("%3D")[2].partition("%2C")[0]
    with pytest.raises(StoreError, match="search_path"): PostgresSessionStore(postgres.in_schema(f"comes_first,{theirs}"))

def test_a_session_may_be_deleted_by_hand_from_elsewhere(postgres, store, url):
    store.create_session(FLOW, "s1")
    schema = url.rpartition("%3D")[2].partition("%2C")[0]
    with postgres.admin() as db: assert db.execute(f"DELETE FROM {schema}.wfs_session").rowcount == 1

def test_the_index_of_titles_can_be_made_later(store):
    assert store.search_state() == "ready"
    store.rows("DROP INDEX wfs_session_search")
    assert store.search_state() == "none"
    store.index_search()
    assert store.search_state() == "ready"

@pytest.mark.parametrize("option", ["-cclient_encoding=SQL_ASCII", "-cclient_encoding=LATIN1", "-cstandard_conforming_strings=off", "-cdefault_transaction_isolation=serializable"])
def test_settings_of_the_role_do_not_matter(postgres, url, option):
    with closing(PostgresSessionStore(url + quote(f" {option}"))) as store:
        store.create_session(FLOW, "s1", "日本 \\ 50%_")
        store.update_state(FLOW, "s1", {"é\\": "日"})
        assert [s.label for s in store.page_sessions(FLOW, search="本 \\ 50%_").rows] == ["日本 \\ 50%_"] and store.get_state(FLOW, "s1") == {"é\\": "日"}

def test_a_transaction_that_stands_still_too_long_is_named(url):
    with closing(PostgresSessionStore(url + quote(" -cidle_in_transaction_session_timeout=100"))) as store:
        store.create_session(FLOW, "s1", state={"n": 0})
        with pytest.raises(StoreUnavailable):
            with store.edit_state(FLOW, "s1") as state:
                state["n"] = 1
                time.sleep(0.5)
        assert store.get_state(FLOW, "s1") == {"n": 0}

def test_a_start_waits_for_a_migration_that_takes_long(postgres):
    url = postgres.fresh_url()
    with postgres.admin() as db:
        db.execute("SELECT pg_advisory_lock(%s)", (LOCK,))
        opened = []
        starter = threading.Thread(target=lambda: opened.append(PostgresSessionStore(url, patience_s=0.2)))
        starter.start()
        time.sleep(0.6)
        assert not opened
        db.execute("SELECT pg_advisory_unlock(%s)", (LOCK,))
        starter.join(30)
    opened[0].create_session(FLOW)
    opened[0].close()


# -- changes ------------------------------------------------------------------------------------------------------------------

def arrived(feed, flows, n):
    found, deadline = [], time.monotonic() + 10
    while len(found) < n and time.monotonic() < deadline:
        found += feed.poll(flows)
        time.sleep(0.02)
    return found

def test_every_change_is_told_once_it_is_committed(store):
    with closing(store.open_feed()) as feed:
        assert feed.poll([FLOW]) == []
        with store.transaction():
            store.create_session(FLOW, "s1", owner="ann")
            time.sleep(0.1)
            assert feed.poll([FLOW]) == []
        (created,) = arrived(feed, [FLOW], 1)
        assert (created.flow_id, created.session_id, created.owner) == (FLOW, "s1", "ann") and us_to_text(created.at) == store.get_session_summary(FLOW, "s1").updated_at
        for change in (lambda: store.update_state(FLOW, "s1", {"a": 1}), lambda: store.set_session_label(FLOW, "s1", "Label"), lambda: store.delete_session(FLOW, "s1"),
                       lambda: store.restore_session(FLOW, "s1")):
            change()
            assert [c.session_id for c in arrived(feed, [FLOW], 1)] == ["s1"]
        store.clear_state(FLOW, "s1")
        assert arrived(feed, [FLOW], 1) == [Changed(FLOW, "s1", "ann", None)]

def test_what_nobody_did_is_not_told(store):
    store.create_session(FLOW, "s1")
    with closing(store.open_feed()) as feed:
        feed.poll([FLOW])
        store.save_shown(FLOW, "v", [(store.get_session_summary(FLOW, "s1"), Shown("Title"))])
        store.create_session("other", "s2")
        store.set_session_label(FLOW, "no-such", "x")
        store.create_session(FLOW, "last")
        assert [c.session_id for c in arrived(feed, [FLOW], 1)] == ["last"]

def test_what_others_send_on_the_channel_hurts_nothing(postgres, store, url):
    with closing(store.open_feed()) as feed, postgres.admin() as db:
        feed.poll([FLOW])
        (channel,) = feed.connection.execute("SELECT * FROM pg_listening_channels()").fetchone()
        for payload in ("hello", "7", "[1,2,3,4,5,6]"): db.execute("SELECT pg_notify(%s, %s)", (channel, payload))
        assert arrived(feed, [FLOW], 1) == [Changed()]

def test_a_change_whose_names_are_too_long_is_told_without_them(store):
    with closing(store.open_feed()) as feed:
        feed.poll([FLOW])
        store.create_session(FLOW, "x" * 9000)   # compresses, so the index takes it
        assert arrived(feed, [FLOW], 1) == [Changed()]


# -- the server goes away ---------------------------------------------------------------------------------------------------

def test_a_store_lives_through_a_restart(own_server):
    with closing(PostgresSessionStore(own_server.fresh_url(), max_connections=4)) as store:
        store.create_session(FLOW, "s1", state={"n": 0})
        in_threads(*[lambda: store.get_state(FLOW, "s1")] * 4)
        feed = store.open_feed()
        for mode in ("fast", "immediate"):
            leave, inside = threading.Event(), threading.Event()
            def hold():   # a connection in use must not make the others believe in a queue
                with contextlib.suppress(StoreError), store.edit_state(FLOW, "s1"):
                    inside.set()
                    leave.wait(30)
            holder = threading.Thread(target=hold)
            holder.start()
            inside.wait(30)
            own_server.stop(mode)
            with pytest.raises(StoreUnavailable): feed.poll([FLOW])
            for call in (lambda: store.get_state(FLOW, "s1"), lambda: store.update_state(FLOW, "s1", {"lost": 1}), store.check, store.open_feed):
                began = time.monotonic()
                with pytest.raises(StoreUnavailable, match="does not answer"): call()
                assert time.monotonic() - began < 4   # not the patience for a busy server
            leave.set()
            holder.join(30)
            own_server.start()
            in_threads(*[lambda: store.get_state(FLOW, "s1")] * 8)
            with store.edit_state(FLOW, "s1") as state: state["n"] += 1
            feed = store.open_feed()
        assert store.get_state(FLOW, "s1") == {"n": 2}


class Load:
    "Requests at a steady rate, each creating a session; what was answered to each."
    def __init__(self, server, rate):
        self.server, self.rate, self.answers = server, rate, []   # (started, ended, label, status, text)

    def send(self, label):
        began = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        try:
            connection.request("POST", "/manage/sessions/create_session", urlencode({"label": label}), {"Content-Type": "application/x-www-form-urlencoded"})
            answer = connection.getresponse()
            self.answers.append((began, time.monotonic(), label, answer.status, answer.read().decode()))
        finally: connection.close()

    def run(self, seconds, meanwhile):
        with ThreadPoolExecutor(40) as pool:
            done = [pool.submit(meanwhile)]
            began = time.monotonic()
            for i in range(int(seconds * self.rate)):
                time.sleep(max(0, began + i / self.rate - time.monotonic()))
                done.append(pool.submit(self.send, f"load {i}"))
            for future in done: future.result()

def test_a_restart_under_load_loses_nothing_that_was_acknowledged(own_server):
    url, outages = own_server.fresh_url(), []
    def restart_twice():
        for mode in ("fast", "immediate"):
            time.sleep(1.5)
            began = time.monotonic()
            own_server.stop(mode)
            time.sleep(1)
            own_server.start()
            outages.append((began, time.monotonic()))
    with Server(STORE=url) as server:
        load = Load(server, rate=50)
        load.run(8, restart_twice)
    answers = load.answers
    assert len(answers) == 400 and {status for *_, status, _ in answers} == {303, 503}
    for began, ended, label, status, text in answers:
        if status == 503: assert "does not answer" in text or "stopping or starting" in text, text
        touched = any(began < end + 1 and ended > start - 0.1 for start, end in outages)   # a second after the return for what was under way
        assert status == 303 or touched, (label, status)
    with closing(PostgresSessionStore(url)) as store: stored = {s.label for s in store.list_sessions(FLOW)}
    acknowledged = {label for *_, label, status, _ in answers if status == 303}
    assert acknowledged <= stored and len(acknowledged) > 100
    check(url)


def test_the_page_says_that_the_server_is_away_and_goes_on_when_it_is_back(own_server, visitor):
    with Server(STORE=own_server.fresh_url()) as server:
        page = visitor().new_page()
        page.goto(f"{server.url}/manage/sessions")
        new, said = page.get_by_role("button", name="New session").first, page.locator("#wsm-alert-area .alert").last
        new.click()
        expect(said).to_contain_text("Created")
        own_server.stop()
        new.click()
        expect(said).to_contain_text("does not answer")
        answer = page.context.new_page().goto(f"{server.url}/manage/sessions")
        assert answer.status == 503 and "does not answer" in answer.text()
        own_server.start()
        new.click()
        expect(said).to_contain_text("Created")
        expect(page.locator("[data-session]")).to_have_count(2)


# -- without the extra -------------------------------------------------------------------------------------------------------

WITHOUT = """
import sys
class Lacking:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("psycopg"): raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Lacking())
import cjm_workflow_sessions as package
for use in (lambda: package.open_store("postgresql://db/app"), lambda: package.PostgresSessionStore("postgresql://db/app")):
    try: use()
    except Exception as e: print(e)
package.open_store("memory:").check()
"""

def test_without_psycopg_the_message_says_what_to_install():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.count("pip install 'cjm-workflow-sessions[postgres]'") == 2, done.stdout + done.stderr
