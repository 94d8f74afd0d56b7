"""The index of titles on SQLite: what it finds is what LIKE finds, whatever happens while it is made."""

import logging
import random
import sqlite3
import time
from contextlib import closing

import pytest

from cjm_workflow_sessions.errors import StoreCorrupt, StoreError
from cjm_workflow_sessions.models import SessionSummary
from cjm_workflow_sessions.services.management import SessionManagementService
from cjm_workflow_sessions.stores import search
from cjm_workflow_sessions.stores.base import Order, Shown
from cjm_workflow_sessions.stores.sqlite import SQLiteSessionStore
from store_support import FLOW, SPAWN, check_file, outside, together
from test_million import FEW_STEPS, CountingStore, fill, sid
from test_store_contract import (   # the contract, on a store with the index
    second, test_any_text_may_be_an_id_a_label_an_owner_or_a_step, test_callbacks_may_give_any_text, test_lists_sort_and_search_by_what_the_callbacks_gave,
    test_random_pages_equal_slices_while_the_list_changes, test_search_for_what_no_label_can_hold_finds_nothing, test_search_is_literal_and_ignores_case,
    test_a_renamed_session_sorts_by_its_new_label_at_once, test_sessions_that_are_gone_are_skipped, test_what_was_made_of_an_older_state_is_not_kept)


class AskingStore(SQLiteSessionStore):
    "A store that asks its index however short the list, and counts how often it did."
    asked = 0

    def __init__(self, path): super().__init__(path, search_index_at=0)

    def rows(self, statement, args=()):
        self.asked += statement == search.PROPOSED
        return super().rows(statement, args)


@pytest.fixture(params=["file", "memory"])
def store(request, tmp_path):
    store = AskingStore(tmp_path / "sessions.db" if request.param == "file" else ":memory:")
    store.index_search()
    yield store
    store.close()


@pytest.fixture
def path(tmp_path):
    "A file that nobody holds open."
    path = tmp_path / "sessions.db"
    SQLiteSessionStore(path).close()
    return str(path)


def ids(page): return [s.session_id for s in page.rows]

def is_sound(path):
    "Compare the index with every title."
    check_file(path)
    with outside(path) as db: db.execute("INSERT INTO wfs_title(wfs_title, rank) VALUES('integrity-check', 1)")

def in_time(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


# -- the same answers ----------------------------------------------------------------------------------------------------

ALPHABETS = ["ab", "aAbB", "ab \"'", "%_\\a", "ab*^:()-+{}", "😀😁a\u200d", "e\u0301\u0300é", "日本語a", "ßssſSıİiI\u0307", "\ufffd\ufffe\uffff\ufdd0a", "\n\t\r a", "\U0010ffff\U0001f468b",
             "\u0660\u0661ab", "ａａaΑα", "ANDORNOT ", "\x01\x7fa", "ΣσςΣ", "\u202e\u202da", "ﬁﬀf", "0123456789"]

def titles(rng):
    while True: yield "".join(rng.choices(rng.choice(ALPHABETS) + rng.choice(["", " ", "x"]), k=rng.choice([0, 1, 2, 3, 3, 4, 5, 6, 9, 14, 40])))

def terms(rng, known):
    "Parts of titles, most of three characters and more, some with an error in them."
    while True:
        whole = rng.choice(known)
        at, n = rng.randrange(len(whole) + 1), rng.choice([1, 2, 3, 3, 3, 4, 5, 6, 9, 40])
        term = whole[at:at + n] or "abc"
        yield rng.choice([term, term, term.upper(), term.casefold(), term + rng.choice(rng.choice(ALPHABETS)), rng.choice(known)[:n] + term])

def compare(indexed, plain, term, rng):
    scope = {"owner": rng.choice([None, None, "ann", "bob", "nobody"]), "search": term, "in_trash": rng.random() < 0.2}
    total = plain.count_sessions(FLOW, **scope)
    assert indexed.count_sessions(FLOW, **scope) == total, (term, scope)
    order, start, limit = Order(rng.choice(["updated_at", "title", "created_at", "field:n"]), rng.random() < 0.5), rng.randrange(total + 2), rng.randrange(1, 30)
    wanted = plain.page_sessions(FLOW, order=order, start=start, limit=limit, **scope)
    near = plain.page_sessions(FLOW, order=order, start=rng.randrange(total + 1), limit=1, **scope).anchor
    for known in ({}, {"total": total}, {"anchor": near}):
        assert indexed.page_sessions(FLOW, order=order, start=start, limit=limit, **known, **scope) == wanted, (term, scope, order, start, limit, known)

def write_something(store, rng, title, made):
    "Do one of all the things that touch titles."
    sid, owner = rng.choice(made or ["none"]), rng.choice(["ann", "bob", ""])
    match rng.randrange(10):
        case 0 | 1 | 2:
            made.append(store.create_session(rng.choice([FLOW, FLOW, "other"]), f"w{len(made)}", title, owner=owner))
        case 3 | 4: store.set_session_label(FLOW, sid, rng.choice([title, None]))
        case 5: store.delete_session(FLOW, sid)
        case 6: store.restore_session(FLOW, sid)
        case 7: rng.choice([lambda: store.clear_state(FLOW, sid), lambda: store.purge_trash(FLOW, 2**60)])()
        case 8:
            at = f"2024-01-{rng.randrange(10, 29)} 10:00:00"
            rows = [(SessionSummary(FLOW, f"w{len(made) + i}", title + str(i), None, at, at, 2, owner, rng.choice([None, at])), {}) for i in range(3)]
            store.insert_sessions(rows)
            made += [s.session_id for s, _ in rows]
        case 9: store.save_shown(FLOW, title, [(s, Shown(title + s.session_id, (("n", s.session_id),))) for s in store.outdated_shown(FLOW, title, limit=5)])

@pytest.mark.parametrize("seed", range(6))
def test_every_answer_is_that_of_like(tmp_path, seed):
    rng, made, path = random.Random(seed), [], tmp_path / "sessions.db"
    title = titles(rng)
    with closing(AskingStore(path)) as indexed, closing(SQLiteSessionStore(path, search_index_at=None)) as plain:
        for _ in range(100): write_something(plain, rng, next(title), made)   # titles that are there before the index
        indexed.index_search()
        for _ in range(25):
            for _ in range(20): write_something(rng.choice([plain, indexed]), rng, next(title), made)
            with outside(path) as db: known = [t for (t,) in db.execute("SELECT title FROM wfs_session") if t] or ["abc"]
            term = terms(rng, known)
            for _ in range(20): compare(indexed, plain, next(term), rng)
        assert indexed.asked > 500
    is_sound(path)

def test_an_import_and_a_copy_are_found(store):
    service = SessionManagementService(store, FLOW)
    made = service.create_session("Holiday")
    service.fork_session(made)
    service.import_session(service.export_session(made) | {"label": "Taken in"})
    assert (service.count("holi"), service.count("taken"), service.count("copy of holiday")) == (2, 1, 1) and store.asked == 3

@pytest.mark.parametrize("term", ["ab", "é", "日本", "İ", "\x00abc", ""])
def test_a_short_term_or_none_is_not_asked_for(store, term):
    store.create_session(FLOW, label="abc")
    store.count_sessions(FLOW, search=term)
    assert store.asked == (len(term.casefold()) >= 3 and "\x00" not in term)

def test_a_term_of_many_pieces_finds_its_title(store):
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 990)))
    store.create_session(FLOW, "s1", text)
    store.create_session(FLOW, "s2", text[:-1] + "!")
    assert ids(store.page_sessions(FLOW, search=text)) == ["s1"] and store.asked == 1


# -- when it is asked, and when made ---------------------------------------------------------------------------------------

def many(store, n, owner="ann", label="Holiday"):
    at, ((start,),) = "2024-01-10 10:00:00", store.rows("SELECT coalesce(max(CAST(substr(session_id, 2) AS INTEGER)) + 1, 0) FROM wfs_session")
    store.insert_sessions((SessionSummary(FLOW, f"s{start + i}", f"{label} {start + i}", None, at, at, 2, owner), {}) for i in range(n))

def test_a_search_of_a_long_list_makes_it(path, caplog):
    caplog.set_level(logging.INFO)
    with closing(SQLiteSessionStore(path, search_index_at=100)) as store:
        many(store, 90)
        many(store, 60, "bob")
        assert store.search_state() == "none"
        assert store.count_sessions(FLOW, search="day 12", owner="bob") == 10   # among few
        assert store.count_sessions(FLOW, search="da") == 150                   # would not use it
        assert store.count_sessions(FLOW) == 150 and len(ids(store.page_sessions(FLOW))) == 50
        assert store.search_state() == "none" and store._indexer is None
        assert store.count_sessions(FLOW, search="day 12") == 11
        in_time(lambda: store.search_state() == "ready")
        assert store.count_sessions(FLOW, search="day 12") == 11
        in_time(lambda: "search index complete" in caplog.text)
    is_sound(path)

def test_it_is_not_made_where_that_is_not_wanted(path):
    with closing(SQLiteSessionStore(path, search_index_at=None)) as store:
        many(store, 300)
        assert store.count_sessions(FLOW, search="day 12") == 11
        assert store._indexer is None and store.search_state() == "none"
        store.index_search()
        store.index_search()
        assert store.search_state() == "ready" and store.count_sessions(FLOW, search="day 12") == 11

def test_a_frequent_word_is_found_without_it(store):
    many(store, search.ENOUGH + 1, label="word")
    many(store, 5, label="rare word")
    assert store.count_sessions(FLOW, search="word") == search.ENOUGH + 6
    assert store._ask("word", search.ENOUGH) is None and store._ask("rare", search.ENOUGH) is not None
    assert store.count_sessions(FLOW, search="rare w") == 5

def test_dropped_and_made_again(store):
    many(store, 20)
    store.drop_search_index()
    store.drop_search_index()
    assert store.search_state() == "none"
    store.search_index_at = None
    store.set_session_label(FLOW, "s1", "Without")
    store.index_search()
    store.search_index_at = 0
    assert ids(store.page_sessions(FLOW, search="WITHOUT")) == ["s1"] and store.asked == 1

def test_dropped_in_the_middle_of_a_search(store, caplog):
    many(store, 20)
    look = store.rows
    def drop_after_the_look(statement, args=()):
        found = look(statement, args)
        if "group_concat" in statement: store.drop_search_index()
        return found
    store.rows = drop_after_the_look
    assert store.count_sessions(FLOW, search="day 12") == 1
    assert "without the index" in caplog.text

def test_two_stores_on_one_file_see_the_same_state(path):
    with closing(AskingStore(path)) as one, closing(AskingStore(path)) as other:
        many(one, 20)
        one.index_search()
        assert other.search_state() == "ready" and other.count_sessions(FLOW, search="day 12") == 1 == other.asked
        other.drop_search_index()
        many(one, 20)
        one.search_index_at = None
        assert one.search_state() == "none" and one.count_sessions(FLOW, search="day 12") == 1


# -- while it is made --------------------------------------------------------------------------------------------------------

def steps(store, *sizes, builder="me"):
    "Begin, and take steps of so many rows."
    with store.transaction() as run: search.begin(run)
    for n in sizes:
        with store.transaction() as run: assert search.index_more(run, builder, n) is search.Progress.MORE

def abandon(store): store.rows("UPDATE wfs_search SET beat_at = 0")   # as if the builder had died long ago

def position(store): return store.rows("SELECT position FROM wfs_search")[0][0]

def test_rows_on_either_side_of_the_position_may_change(path):
    with closing(AskingStore(path)) as store:
        many(store, 40)
        steps(store, 10, 5)
        assert store.search_state() == "building" and position(store) == 25
        for i in (3, 24, 25, 39):   # two that are not indexed, two that are
            store.set_session_label(FLOW, f"s{i}", f"changed {i}")
            store.set_session_label(FLOW, f"s{i}", f"changed twice {i}")
        for i in (4, 20, 26, 38): store.clear_state(FLOW, f"s{i}")
        many(store, 5, label="new")
        store.delete_session(FLOW, "s5")
        assert store.count_sessions(FLOW, search="changed twice") == 4 and store.asked == 0
        steps(store, 10)
        store.set_session_label(FLOW, "s3", "changed again")
        abandon(store)
        store.index_search()
        assert store.count_sessions(FLOW, search="twice") == 3 and ids(store.page_sessions(FLOW, search="again")) == ["s3"]
        assert store.count_sessions(FLOW, search="new ") == 5 and store.asked == 3
    is_sound(path)

def test_the_newest_rows_deleted_and_their_numbers_used_again(path):
    with closing(AskingStore(path)) as store:
        many(store, 40)
        with store.transaction() as run: search.begin(run)
        for i in range(30, 40): store.clear_state(FLOW, f"s{i}")
        many(store, 15, label="again")   # the first ten get row ids that are not indexed yet
        steps(store, 12)
        for i in range(40, 44): store.clear_state(FLOW, f"s{i}")
        abandon(store)
        store.index_search()
        assert store.count_sessions(FLOW, search="again") == sum("again" in s.label for s in store.list_sessions(FLOW)) > 0
    is_sound(path)

@pytest.mark.parametrize("rows", [0, 1])
def test_a_short_list_can_have_one(path, rows):
    with closing(AskingStore(path)) as store:
        many(store, rows)
        store.index_search()
        many(store, 3)
        assert store.count_sessions(FLOW, search="holiday") == rows + 3 and store.asked == 1
    is_sound(path)

def test_one_builds_at_a_time_and_another_goes_on_when_it_is_dead(path):
    with closing(AskingStore(path)) as store:
        many(store, 50)
        steps(store, 10, builder="one")
        def step(builder):
            with store.transaction() as run: return search.index_more(run, builder, 10)
        assert step("other") is search.Progress.ELSEWHERE and position(store) == 40
        assert step("one") is search.Progress.MORE
        for at in (0, 2**60):   # long ago, and by a clock that was wrong
            store.rows("UPDATE wfs_search SET beat_at = ?", (at,))
            assert step("other") is search.Progress.MORE
            assert step("one") is search.Progress.ELSEWHERE
            store.rows("UPDATE wfs_search SET builder = 'one'")

def test_a_thread_leaves_it_to_the_one_who_builds(path):
    with closing(SQLiteSessionStore(path, search_index_at=10)) as store:
        many(store, 50)
        steps(store, 10, builder="another process")
        assert store.count_sessions(FLOW, search="day 12") == 1
        in_time(lambda: not store._indexer.is_alive())
        first = store._indexer
        assert position(store) == 40
        store.count_sessions(FLOW, search="day 12")
        assert store._indexer is first   # not again at once
        abandon(store)
        store._idle_until = 0.0
        store.count_sessions(FLOW, search="day 12")
        in_time(lambda: store.search_state() == "ready")
    is_sound(path)

def test_who_asks_for_it_waits_for_the_one_who_builds(path, monkeypatch):
    monkeypatch.setattr(search, "PATIENCE_S", 0.3)
    with closing(SQLiteSessionStore(path)) as store:
        many(store, 50)
        steps(store, 10, builder="a process that was killed")
        store.index_search()
        assert store.search_state() == "ready"
    is_sound(path)

def test_closing_ends_the_thread(path, monkeypatch):
    monkeypatch.setattr(search, "STEP_S", 1e-6)   # a hundred rows at a time
    store = SQLiteSessionStore(path, search_index_at=10)
    many(store, 20_000)
    store.count_sessions(FLOW, search="day 12")
    in_time(lambda: store.search_state() == "building")
    store.close()
    assert not store._indexer.is_alive()
    with closing(AskingStore(path)) as other:
        assert other.search_state() == "building"
        abandon(other)
        other.index_search()
    is_sound(path)

def build_in_process(path):
    "Make the index in many short steps, which others write between and in which they are killed."
    index_more = search.index_more
    def slowly(run, builder, rows):
        found = index_more(run, builder, 100)
        time.sleep(0.005)
        return found
    search.index_more = slowly
    with closing(SQLiteSessionStore(path)) as store:
        store.index_search()
        return store.search_state()

def test_a_builder_killed_again_and_again_while_others_write(path):
    rng, made = random.Random(3), []
    title = titles(rng)
    with closing(AskingStore(path)) as indexed, closing(SQLiteSessionStore(path, search_index_at=None)) as plain:
        many(plain, 20_000)
        positions = []
        for _ in range(6):
            builder = SPAWN.Process(target=build_in_process, args=(path,), daemon=True)
            builder.start()
            in_time(lambda: plain.search_state() == "building")
            before = position(plain)
            abandon(plain)
            in_time(lambda: position(plain) < before)
            until = time.monotonic() + rng.random() * 0.1
            while time.monotonic() < until: write_something(plain, rng, next(title), made)
            for i in rng.choices(range(20_000), k=20):
                rng.choice([plain.clear_state, lambda flow, s: plain.set_session_label(flow, s, next(title))])(FLOW, f"s{i}")
            builder.kill()
            builder.join(60)
            positions.append(position(plain))
            assert plain.search_state() == "building"
        assert positions == sorted(positions, reverse=True) and positions[-1] > 0
        abandon(plain)
        indexed.index_search()
        is_sound(path)
        with outside(path) as db: known = [t for (t,) in db.execute("SELECT title FROM wfs_session ORDER BY random() LIMIT 2000") if t]
        term = terms(rng, known)
        for _ in range(100): compare(indexed, plain, next(term), rng)

def test_processes_that_build_at_once_make_one_index(path):
    with closing(SQLiteSessionStore(path)) as store: many(store, 3000)
    assert together((build_in_process, path), (build_in_process, path), (rename_in_process, path)) == ["ready", "ready", 300]
    with closing(AskingStore(path)) as store: assert store.count_sessions(FLOW, search="renamed") == 300
    is_sound(path)

def rename_in_process(path):
    with closing(SQLiteSessionStore(path)) as store:
        for i in range(300): store.set_session_label(FLOW, f"s{i * 10}", f"Renamed {i}")
    return 300


# -- the file, in other hands --------------------------------------------------------------------------------------------

def test_another_program_keeps_it_right(path):
    with closing(AskingStore(path)) as store:
        many(store, 20)
        store.index_search()
        with outside(path) as db:
            db.execute("UPDATE wfs_session SET title = 'by hand', label = 'by hand' WHERE id = 3")
            db.execute("DELETE FROM wfs_session WHERE id = 4")
            db.execute("UPDATE wfs_tally SET n = n - 1")
            db.execute("UPDATE wfs_session SET id = 1000 WHERE id = 5")
            db.execute("VACUUM")
            with closing(sqlite3.connect(path + ".copy")) as copy: db.backup(copy)
        assert ids(store.page_sessions(FLOW, search="by hand")) == ["s2"]
        assert ids(store.page_sessions(FLOW, search="day 4")) == ["s4"] and store.count_sessions(FLOW, search="day 3") == 0
    is_sound(path)
    is_sound(path + ".copy")
    with closing(AskingStore(path + ".copy")) as store: assert ids(store.page_sessions(FLOW, search="by hand")) == ["s2"] and store.asked == 1

def test_a_damaged_index_hides_nothing(path, caplog):
    with closing(AskingStore(path)) as store:
        many(store, 2000)
        store.index_search()
        with outside(path) as db: db.execute("UPDATE wfs_title_data SET block = x'00' WHERE id > 10")
        store.close()
        assert store.count_sessions(FLOW, search="day 123") == 11
        assert "damaged" in caplog.text
        store.drop_search_index()
        store.index_search()
        assert store.count_sessions(FLOW, search="day 123") == 11
    is_sound(path)

def test_without_a_trigger_it_is_not_trusted(path):
    with closing(AskingStore(path)) as store:
        many(store, 20)
        store.index_search()
        with outside(path) as db:
            db.execute("DROP TRIGGER wfs_title_update")
            db.execute("UPDATE wfs_session SET title = 'unseen' WHERE id = 3")
        assert store.search_state() == "none"
        assert ids(store.page_sessions(FLOW, search="unseen")) == ["s2"]
        in_time(lambda: store.search_state() == "ready")
        assert ids(store.page_sessions(FLOW, search="unseen")) == ["s2"]
        in_time(lambda: not store._indexer.is_alive())
    is_sound(path)

def test_an_sqlite_without_fts5_searches_by_like(path, monkeypatch):
    monkeypatch.setattr(search, "has_trigrams", lambda: False)
    with closing(SQLiteSessionStore(path, search_index_at=0)) as store:
        many(store, 20)
        assert store.count_sessions(FLOW, search="day 12") == 1 and store.search_state() == "none" and store._indexer is None
        with pytest.raises(StoreError, match="FTS5"): store.index_search()

def test_an_sqlite_without_fts5_is_told_how_to_write_again(path, monkeypatch):
    with closing(SQLiteSessionStore(path)) as store:
        many(store, 20)
        store.index_search()
    def pretend(old, new):
        with outside(path) as db:
            db.execute("PRAGMA writable_schema = ON")
            db.execute("UPDATE sqlite_master SET sql = replace(sql, ?, ?) WHERE name = 'wfs_title'", (old, new))
    pretend("USING fts5", "USING missing")
    monkeypatch.setattr(search, "has_trigrams", lambda: False)
    with closing(SQLiteSessionStore(path, search_index_at=0)) as store:
        assert store.count_sessions(FLOW, search="day 12") == 1
        with pytest.raises(StoreError, match=r"drop_search_index\(\)"): store.create_session(FLOW, "new")
        store.drop_search_index()
        store.create_session(FLOW, "new", "Renewed")
        assert store.count_sessions(FLOW, search="renewed") == 1
    pretend("USING missing", "USING fts5")
    monkeypatch.undo()
    with closing(AskingStore(path)) as store:
        assert store.search_state() == "none"
        store.index_search()
        assert store.count_sessions(FLOW, search="renewed") == 1 == store.asked
    is_sound(path)

def test_a_thread_that_cannot_write_says_so_and_the_search_goes_on(path, monkeypatch, caplog):
    monkeypatch.setattr(search, "begin", lambda run: run("INSERT INTO nowhere VALUES(1)"))
    with closing(SQLiteSessionStore(path, search_index_at=0)) as store:
        many(store, 20)
        assert store.count_sessions(FLOW, search="day 12") == 1
        in_time(lambda: "no search index for now" in caplog.text)
        assert store.count_sessions(FLOW, search="day 12") == 1
        with pytest.raises(StoreCorrupt): store.index_search()


# -- a long list: costs are counted, never timed -----------------------------------------------------------------------------

LONG = 200_000

@pytest.fixture(scope="module")
def long(tmp_path_factory):
    "Two stores on one file with a long list: one asks the index, one does not."
    path = tmp_path_factory.mktemp("long") / "sessions.db"
    indexed, plain = CountingStore(path), CountingStore(path)
    fill(path, LONG)
    indexed.index_search()
    plain.list_condition = super(search.TrigramSearch, plain).list_condition
    yield indexed, plain
    indexed.close()
    plain.close()
    path.unlink()

def cost(store, term, **scope):
    "Steps of counting and of a first page, and what they gave."
    store.statements = []
    total = store.count_sessions(FLOW, search=term, **scope)
    page = store.page_sessions(FLOW, search=term, total=total, limit=20, **scope)
    return sum(s.steps for s in store.statements), (total, page)

@pytest.mark.parametrize("owner", [None, "ann"])
@pytest.mark.parametrize(("term", "ratio"), [("holiday 031676", 0.01), ("nowhere to be found", 0.01), ("0123", 0.1), ("2020-11-11", 0.1), ("holiday", 1.1), ("session", 1.1), ("ay", 1.01)])
@pytest.mark.parametrize("analyzed", [False, True], ids=["as it is", "after ANALYZE"])
def test_what_a_search_costs(long, owner, term, ratio, analyzed):
    indexed, plain = long
    if analyzed: indexed.rows("ANALYZE")
    steps, found = cost(indexed, term, owner=owner)
    without, same = cost(plain, term, owner=owner)
    assert found == same and steps <= ratio * without + 2000

def test_a_word_of_others_does_not_cost_an_owner_of_few(long):
    indexed, _ = long
    steps, (total, _) = cost(indexed, "backup", owner="other-42")
    assert total == indexed.count_sessions(FLOW, owner="other-42", search="ba") and steps < FEW_STEPS

def test_pages_of_a_long_answer(long):
    indexed, plain = long
    total = plain.count_sessions(FLOW, search="2020-11-1")
    assert 1000 < total <= LONG // 50
    for by in ("updated_at", "title"):
        for start in (0, 500, total - 20, total // 2):
            pages = [store.page_sessions(FLOW, search="2020-11-1", order=Order(by), start=start, limit=20, total=total) for store in long]
            assert pages[0] == pages[1] and len(pages[0].rows) == 20

def test_a_new_name_is_found_in_a_long_list(long):
    indexed, _ = long
    indexed.set_session_label(FLOW, sid(123_456), "Quite unusual")
    assert ids(indexed.page_sessions(FLOW, search="UNUSUAL")) == [sid(123_456)]
