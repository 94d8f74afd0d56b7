"""A list of 1,000,000 sessions: what is shown is right, and an answer costs as much as one of 1,000. Costs are counted, never timed."""

from array import array
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import pytest

from cjm_workflow_sessions.services.management import SessionManagementService
from cjm_workflow_sessions.stores.base import Order
from cjm_workflow_sessions.stores.sqlite import SQLiteSessionStore
from store_support import FLOW, outside
from tab_support import Tab, make_app

SIZES = (1_000, 1_000_000)
SHOWN = 20   # Rows of the window
FEW_STEPS = 20_000   # Instructions of SQLite's machine for a whole answer; to pass over 1,000,000 rows takes 2,000,000 or more
MADE_LATER = 1700000000000000   # What the generator makes is older


# -- the stores ----------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Statement:
    "One statement that a store has run."
    text: str # As SQLite got it
    args: tuple # Its arguments
    rows: int # Rows that it gave
    steps: int # Instructions of SQLite's machine, to the nearest 20


class CountingStore(SQLiteSessionStore):
    "The store as it is, with a note of every statement."
    def __init__(self, path):
        self.statements = []
        super().__init__(path, search_index_at=None)   # what the index of titles changes: test_search

    def rows(self, statement, args=()):
        with self._noted(statement, args) as rows: rows += super().rows(statement, args)
        return rows

    @contextmanager
    def transaction(self):
        with super().transaction() as run:
            def noted(statement, args=()):
                with self._noted(statement, args) as rows: rows += run(statement, args)
                return rows
            noted.many = lambda statement, each: [noted(statement, args) for args in each]
            yield noted

    @contextmanager
    def _noted(self, statement, args):
        db, rows, ticks = self._db.get(), [], [0]
        def tick(): ticks[0] += 1
        db.set_progress_handler(tick, 20)
        try: yield rows
        finally: db.set_progress_handler(None, 0)
        self.statements.append(Statement(statement, args, len(rows), ticks[0] * 20))


def fill(path, n):
    "Insert `n` sessions as the store would have written them, a minute apart and updated in another order."
    with outside(path) as db:
        db.execute("PRAGMA synchronous = OFF")
        db.execute("PRAGMA cache_size = -200000")
        db.execute("BEGIN")
        indexes = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL").fetchall()
        for name, _ in indexes: db.execute(f"DROP INDEX {name}")   # building them at the end takes a third of the time
        db.execute("""
            WITH RECURSIVE number(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM number WHERE i + 1 < ?),
            named AS (SELECT i, 1600000000000000 + i * 60000000 AS at, CASE WHEN i % 10 = 0 THEN NULL ELSE printf('%s %06d',
                CASE i % 4 WHEN 0 THEN 'Holiday' WHEN 1 THEN 'Invoices' WHEN 2 THEN 'Scans' ELSE 'Backup' END, i * 7919 % 1000003) END AS label FROM number)
            INSERT INTO wfs_session(flow_id, session_id, owner, label, current_step, created_at, updated_at, size, title)
            SELECT 'ingest', printf('%08x-0000-4000-8000-%012x', i, i), CASE WHEN i % 10 = 3 THEN printf('other-%d', i / 10 % 100) ELSE 'ann' END, label,
                CASE i % 3 WHEN 0 THEN 'pick' WHEN 1 THEN 'process' ELSE 'review' END, at, at + i * 31 % 1000 * 3600000000, 0,
                coalesce(lower(label), 'session ' || strftime('%Y-%m-%d %H:%M', at / 1000000, 'unixepoch')) FROM named""", (n,))
        db.execute("INSERT INTO wfs_tally(flow_id, owner, n) SELECT flow_id, owner, count(*) FROM wfs_session GROUP BY 1, 2")
        for _, sql in indexes: db.execute(sql)
        db.execute("COMMIT")


def sid(i): return f"{i:08x}-0000-4000-8000-{i:012x}"


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    "A store of each size."
    folder = tmp_path_factory.mktemp("million")
    stores = {n: CountingStore(folder / f"{n}.db") for n in SIZES}
    for n, store in stores.items(): fill(store.where, n)
    yield stores
    for store in stores.values():
        store.close()
        store.db_path.unlink()   # 300 MB that nobody needs to find later


def test_the_generator_writes_what_the_store_writes(stores):
    row = "SELECT typeof(flow_id), owner, typeof(label), current_step, typeof(created_at), typeof(updated_at), size, title, sort_fields, shown_by, deleted_at FROM wfs_session WHERE session_id = ?"
    store = SQLiteSessionStore(":memory:")
    for i in (0, 7):
        store.insert_sessions([(stores[1000].get_session_summary(FLOW, sid(i)), {})])
        assert store.rows(row, (sid(i),)) == stores[1000].rows(row, (sid(i),))


# -- the cost of an answer -------------------------------------------------------------------------------------------------

def tab_on(store, owner=None):
    return Tab(make_app(SessionManagementService(store, FLOW), get_owner=owner and (lambda request: owner)))

# What a person does in one tab, each thing where the one before has left it. `n` is the length of the list.
ACTIONS = {
    "open": lambda tab, n: tab.open(),
    "fit": lambda tab, n: tab.post("vc/update_viewport", visible_rows=SHOWN),
    "arrow": lambda tab, n: tab.move("down"),
    "page down": lambda tab, n: tab.move("page_down"),
    "five pages down": lambda tab, n: tab.move("page_down*5"),
    "page up": lambda tab, n: tab.move("page_up"),
    "end": lambda tab, n: tab.move("last"),
    "page up from the end": lambda tab, n: tab.move("page_up"),
    "wheel near the end": lambda tab, n: tab.move("scroll*-3"),
    "jump to the middle": lambda tab, n: tab.move(f"to*{n // 2}"),
    "page down in the middle": lambda tab, n: tab.move("page_down"),
    "page up in the middle": lambda tab, n: tab.move("page_up"),
    "wheel in the middle": lambda tab, n: tab.move("scroll*3"),
    "arrows in the middle": lambda tab, n: tab.move("down*2"),
    "refresh in the middle": lambda tab, n: tab.post("vc/refresh"),
    "home": lambda tab, n: tab.move("first"),
    "oldest first": lambda tab, n: tab.sort("updated"),
    "page down, oldest first": lambda tab, n: tab.move("page_down"),
    "end, oldest first": lambda tab, n: tab.move("last"),
    "newest first": lambda tab, n: tab.sort("updated"),
    "by label": lambda tab, n: tab.sort("label"),
    "page down, by label": lambda tab, n: tab.move("page_down"),
    "page up, by label": lambda tab, n: tab.move("page_up"),
    "end, by label": lambda tab, n: tab.move("last"),
    "by label backwards": lambda tab, n: tab.sort("label"),
    "page down, by label backwards": lambda tab, n: tab.move("page_down"),
    "newest first again": lambda tab, n: tab.sort("updated"),
    "create": lambda tab, n: tab.post("create_session", label="Brand new"),
    "rename": lambda tab, n: tab.post("rename_session", session_id=tab.rows[0], label="Renamed"),
    "delete the active one": lambda tab, n: tab.post("delete_session", session_id=tab.rows[0]),
    "copy": lambda tab, n: tab.post("fork_session", session_id=tab.rows[0]),
    "delete the copy": lambda tab, n: tab.post("delete_session", session_id=tab.rows[0]),
    "detail": lambda tab, n: tab.client.get(f"/manage/sessions/session_detail?session_id={tab.rows[0]}"),
    "trash": lambda tab, n: tab.client.get("/manage/sessions/trash"),
    "resume": lambda tab, n: tab.post("resume_session", session_id=tab.rows[0], status=204),
}
FROM_AN_END = {"jump to the middle", "refresh in the middle"}   # without a row nearby whose place is known, the rows before it are counted

@pytest.fixture(scope="module", params=[None, "ann", "other-42"], ids=["everybody", "owner of most", "owner of few"])
def costs(request, stores):
    "Do it all on each store; gives the statements of each action."
    return {n: _costs(store, request.param) for n, store in stores.items() if n > 1000 or request.param != "other-42"}   # who has a single session of the 1,000

def _costs(store, owner):
    tab, found = tab_on(store, owner), {}
    for name, action in ACTIONS.items():
        n, store.statements = store.count_sessions(FLOW, owner=owner), []
        action(tab, n)
        found[name] = store.statements
    store.statements = []
    for (made,) in store.rows("SELECT session_id FROM wfs_session WHERE created_at > ?", (MADE_LATER,)): store.clear_state(FLOW, made)
    return found

def test_an_answer_takes_as_many_statements_as_on_a_short_list(costs):
    counts = [{name: len(statements) for name, statements in found.items()} for found in costs.values()]
    assert counts[0] == counts[-1]
    assert max(counts[-1].values()) <= 12

def test_an_answer_takes_in_only_the_rows_it_shows(costs):
    assert {name: s.rows for name, statements in costs[1_000_000].items() for s in statements if s.rows > SHOWN} == {}

def test_an_answer_passes_over_no_rows_that_it_does_not_show(costs):
    steps = {name: sum(s.steps for s in statements) for name, statements in costs[1_000_000].items()}
    assert {name: n for name, n in steps.items() if n > FEW_STEPS and name not in FROM_AN_END} == {}

def test_a_jump_passes_once_over_the_rows_before_it(costs):
    for name in FROM_AN_END:
        dear = [s for s in costs[1_000_000][name] if s.steps > FEW_STEPS]
        assert len(dear) <= 1 and all("OFFSET" in s.text and s.steps < 4 * 500_000 + FEW_STEPS for s in dear), dear


# -- what is shown ---------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def in_order(stores):
    "Give the whole list in order, as the numbers of the generator."
    @cache
    def read(owner, column):
        with outside(stores[1_000_000].where) as db:
            return array("l", (i for (i,) in db.execute(f"SELECT id - 1 FROM wfs_session WHERE ? IN (owner, '') ORDER BY {column}, id", (owner or "",))))
    return read

@pytest.mark.parametrize("owner", [None, "other-42"])
@pytest.mark.parametrize(("column", "kept_in"), [("updated", "updated_at"), ("label", "title")])
@pytest.mark.parametrize("way", ["asc", "desc"])
def test_every_move_shows_the_rows_that_belong_there(stores, in_order, owner, column, kept_in, way):
    whole, tab = in_order(owner, kept_in), tab_on(stores[1_000_000], owner)
    total = len(whole)
    def shows(start):
        wanted = (whole[start + i] if way == "asc" else whole[-1 - start - i] for i in range(SHOWN))
        assert tab.rows == {start + i: sid(number) for i, number in enumerate(wanted)} and tab.place["start"] == start
    tab.open(f"?sort={column}&dir={way}")
    shows(0)
    for moves in ("page_down", "page_down*3", "page_up"):
        tab.move(moves)
        shows(tab.place["start"])
    tab.move("last")
    shows(total - SHOWN)
    for moves in ("page_up*2", f"to*{total // 2}", "page_up", "page_down*40 page_up*39", "scroll*7", "scroll*-30", f"to*{total // 5}"):
        tab.move(moves)
        shows(tab.place["start"])
    tab.move("first")
    shows(0)


# -- search ----------------------------------------------------------------------------------------------------------------

def test_a_search_finds_the_one(stores):
    store = stores[1_000_000]
    label = store.get_session_summary(FLOW, sid(765_432)).label
    tab, service = tab_on(store), SessionManagementService(store, FLOW)
    tab.open()
    store.statements = []
    answer = tab.search(label.upper())
    assert tab.rows == {0: sid(765_432)} and label in answer.text and "1 session found" in answer.text
    searching = [s for s in store.statements if "LIKE" in s.text]
    assert [s.rows for s in searching] == [1, 1]   # one counts, one reads the page
    assert sum(s.steps for s in store.statements if "LIKE" not in s.text) <= FEW_STEPS
    tab.search("holiday")
    assert len(tab.rows) == SHOWN and f"{service.count('holiday'):,} sessions found" in tab.post("vc/refresh").text
    tab.move("page_down")
    assert len(tab.rows) == SHOWN
    assert "No session" in tab.search("nowhere to be found").text or tab.rows == {}
    tab.search("")
    assert len(tab.rows) == SHOWN


def test_a_search_takes_as_many_statements_as_on_a_short_list(stores):
    counts = []
    for store in stores.values():
        tab = tab_on(store)
        tab.open()
        store.statements = []
        tab.search("holiday 00")
        counts.append(len(store.statements))
    assert counts[0] == counts[1] <= 6


# -- a change is seen at once ------------------------------------------------------------------------------------------------

def test_sessions_come_and_go_at_the_top_of_the_list(stores):
    store = stores[1_000_000]
    tab = tab_on(store, "ann")
    tab.open()
    total, first = store.count_sessions(FLOW, owner="ann"), tab.rows[0]
    assert f"{total + 1:,} sessions" in tab.post("create_session", label="Brand new").text and tab.rows[1] == first
    new = tab.rows[0]
    tab.post("rename_session", session_id=tab.rows[5], label="zzz renamed")
    renamed = tab.rows[0]
    assert tab.rows[1] == new and store.get_session_summary(FLOW, renamed).label == "zzz renamed"
    tab.sort("label")
    tab.sort("label")
    assert tab.rows[0] == renamed
    assert f"{total:,} sessions" in tab.post("delete_session", session_id=new).text
    assert f"{total + 1:,} sessions" in tab.post("restore_session", session_id=new).text
    store.clear_state(FLOW, new)
    assert f"{total:,} sessions" in tab.post("vc/refresh").text


# -- callbacks -----------------------------------------------------------------------------------------------------------

def test_what_is_kept_of_the_callbacks_is_found_without_passing_over_the_rest(stores):
    "Titles are recomputed for the owner who asks; the sessions of all others stay as they are, however many."
    store = stores[1_000_000]
    service = SessionManagementService(store, FLOW, label_generator=lambda summary, state: f"Made {summary.created_at}")
    tab = Tab(make_app(service, get_owner=lambda request: "other-42"))
    tab.open()
    tab.sort("label")   # recomputes a thousand
    for action in (lambda: tab.move("page_down"), lambda: tab.sort("label")):
        store.statements = []
        action()
        assert [s for s in store.statements if s.steps > FEW_STEPS] == [] and sum(s.steps for s in store.statements) <= FEW_STEPS
    store.rows("UPDATE wfs_session SET shown_by = '' WHERE owner = 'other-42'")


# -- plans -----------------------------------------------------------------------------------------------------------------

def sorted_or_scanned(db, statement):
    "Say what SQLite would do for each row of the list: pass over all of them, or sort them. Sorting the rows of one page is fine."
    plan = db.execute(f"EXPLAIN QUERY PLAN {statement.text}", statement.args).fetchall()
    reads = {parent for _, parent, _, what in plan if what.startswith(("SEARCH s ", "SCAN s "))}
    return [what for _, parent, _, what in plan if what.startswith("SCAN s") or ("TEMP B-TREE" in what and parent in reads)]

def page_statements(store, owner, order):
    "The statement of the first page, of pages reached from a row, and of the last one."
    total = store.count_sessions(FLOW, owner=owner)
    page = lambda start, **known: store.page_sessions(FLOW, owner=owner, order=order, start=start, limit=SHOWN, **known)
    anchor = page(total // 2, total=total).anchor
    found = {}
    for name, read in {"first": lambda: page(0), "last": lambda: page(total - SHOWN, total=total), "down": lambda: page(anchor.position + SHOWN, anchor=anchor),
                       "up": lambda: page(anchor.position - SHOWN, anchor=anchor), "half a page up": lambda: page(anchor.position - SHOWN // 2, anchor=anchor)}.items():
        store.statements = []
        read()
        (found[name],) = store.statements
    return found

@pytest.mark.parametrize("analyzed", [False, True], ids=["as it is", "after ANALYZE"])
def test_no_page_is_found_by_scanning_or_sorting(stores, analyzed):
    store, wrong = stores[1_000_000], {}
    with outside(store.where) as db:
        db.execute("BEGIN")   # ended by closing: nothing of it is kept
        if analyzed: db.execute("ANALYZE")   # another program may do it, and SQLite then chooses by what it has learnt
        for owner in (None, "ann", "other-42"):
            for by in ("updated_at", "title"):
                for descending in (True, False):
                    for name, statement in page_statements(store, owner, Order(by, descending)).items():
                        found = sorted_or_scanned(db, statement) or ([f"{statement.steps} steps"] if statement.steps > FEW_STEPS else [])
                        if found: wrong[owner, by, descending, name] = found
    assert wrong == {}
