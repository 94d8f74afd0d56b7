"""The two apps that are compared, each over a file of its own with the same sessions in it."""

import json, os, sqlite3
from pathlib import Path
from typing import Any

from common import FLOW, state_of

PREFIX = "/manage/sessions"
STATES = 50 # Different ones; the sessions take turns with them
FIRST = 1_600_000_000 # Seconds since the epoch, UTC; the sessions are a minute apart
LABEL = "printf('%s %06d', CASE i % 4 WHEN 0 THEN 'Holiday' WHEN 1 THEN 'Invoices' WHEN 2 THEN 'Scans' ELSE 'Backup' END, i * 7919 % 1000003)"
STEP = "CASE i % 3 WHEN 0 THEN 'pick' WHEN 1 THEN 'process' ELSE 'review' END"
ID = "printf('%08x-0000-4000-8000-%012x', i, i)"
NUMBERS = "WITH RECURSIVE number(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM number WHERE i + 1 < ?)"

def session_id(i: int) -> str: return f"{i:08x}-0000-4000-8000-{i:012x}"

# What a host would show of a state, the same in both apps.
def count_files(state: dict[str, Any]) -> dict[str, str]: return {"files": str(sum(len(v.get("files", ())) for v in state.values()))}

# -- ours ---------------------------------------------------------------------------------------------------------------

def fill_ours(
    path: Path, # A file that is not there
    n: int, # Sessions
) -> Any: # The store over it
    "Write what the store would have written, in SQL: a million sessions one by one take minutes."
    from cjm_workflow_sessions.stores.sql import key_rows, row_bytes
    from cjm_workflow_sessions.stores.sqlite import SQLiteSessionStore
    SQLiteSessionStore(path).close()
    db = _bulk(path)
    db.execute("CREATE TEMP TABLE sample(k, n, bytes, key, value, PRIMARY KEY(k, n))")
    for k in range(STATES):
        db.executemany("INSERT INTO sample VALUES(?,?,?,?,?)", [(k, j, row_bytes(row), *row) for j, row in enumerate(key_rows(state_of(2, k)))])
    indexes = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL").fetchall()
    for name, _ in indexes: db.execute(f"DROP INDEX {name}")   # built at the end, in a third of the time
    db.execute(f"""{NUMBERS} INSERT INTO wfs_session(id, flow_id, session_id, owner, label, current_step, created_at, updated_at, size, title)
        SELECT i + 1, '{FLOW}', {ID}, '', {LABEL}, {STEP}, ({FIRST} + i * 60) * 1000000, ({FIRST} + i * 60) * 1000000,
            (SELECT sum(bytes) FROM sample WHERE k = i % {STATES}), lower({LABEL}) FROM number""", (n,))
    db.execute(f"""INSERT INTO wfs_value(id, bytes, key, value)
        SELECT s.id, v.bytes, v.key, v.value FROM wfs_session s CROSS JOIN sample v ON v.k = (s.id - 1) % {STATES} ORDER BY s.id, v.n""")
    db.execute("INSERT INTO wfs_tally(flow_id, owner, n) VALUES(?, '', ?)", (FLOW, n))
    for _, sql in indexes: db.execute(sql)
    _finish(db)
    store = SQLiteSessionStore(path)
    assert store.get_state(FLOW, session_id(n - 1)) == state_of(2, (n - 1) % STATES)
    return store

def our_service(store: Any) -> Any:
    from cjm_workflow_sessions import SessionManagementService
    return SessionManagementService(store, FLOW, enricher=count_files)

def our_app(store: Any) -> Any: # The page of the library, as a host mounts it
    from cjm_workflow_sessions import ColumnSpec, init_session_manager_routers
    from fasthtml.common import FastHTML
    sessions = init_session_manager_routers(our_service(store), "/work", column_specs=[ColumnSpec("files", "Files", "w-24")])
    app = FastHTML(secret_key="bench", default_hdrs=False, hdrs=sessions.hdrs, htmlkw={"data-theme": "light"})
    for router in sessions.routers: router.to_app(app)
    return app

# -- the reference --------------------------------------------------------------------------------------------------------

def fill_theirs(
    path: Path, # A file that is not there
    n: int, # Sessions
) -> Any: # The store over it
    "Write what cjm-workflow-state would have written."
    from cjm_workflow_state.state_store import SQLiteWorkflowStateStore
    store, db = SQLiteWorkflowStateStore(path), _bulk(path)
    db.execute("CREATE TEMP TABLE sample(k PRIMARY KEY, state)")
    db.executemany("INSERT INTO sample VALUES(?,?)", [(k, json.dumps(state_of(2, k))) for k in range(STATES)])
    db.execute(f"""{NUMBERS} INSERT INTO workflow_state(flow_session_key, current_step, state_json, created_at, updated_at, label)
        SELECT '{FLOW}:' || {ID}, {STEP}, (SELECT state FROM sample WHERE k = i % {STATES}),
            datetime({FIRST} + i * 60, 'unixepoch'), datetime({FIRST} + i * 60, 'unixepoch'), {LABEL} FROM number""", (n,))
    _finish(db)
    assert store.get_state(FLOW, session_id(n - 1)) == state_of(2, (n - 1) % STATES)
    return store

def their_service(store: Any) -> Any:
    from cjm_fasthtml_workflow_session_management.services.management import SessionManagementService
    return SessionManagementService(store, FLOW, enricher=count_files)

def their_app(store: Any) -> Any: # With the headers that its host app has: FastHTML's own and those of the style libraries
    from cjm_fasthtml_daisyui.core.resources import get_daisyui_headers
    from cjm_fasthtml_workflow_session_management.models import ColumnSpec
    from cjm_fasthtml_workflow_session_management.routes.init import init_session_manager_routers
    from fasthtml.common import FastHTML
    sessions = init_session_manager_routers(their_service(store), "/work", prefix=PREFIX, column_specs=[ColumnSpec("files", "Files", "w-24")])
    app = FastHTML(secret_key="bench", hdrs=get_daisyui_headers(), htmlkw={"data-theme": "light"})
    for router in sessions.routers: router.to_app(app)
    return app

# -- both -------------------------------------------------------------------------------------------------------------------

def serve_ours() -> Any: return our_app(fill_ours(Path(os.environ["FILE"]), int(os.environ["N"]))) # For uvicorn
def serve_theirs() -> Any: return from_disk(their_app(fill_theirs(Path(os.environ["FILE"]), int(os.environ["N"]))))

CDN = "https://cdn.jsdelivr.net/"
ON_DISK = { # What the reference's head asks the CDN for -> where npm put it
    "npm/htmx.org@2.0.7/dist/htmx.js": "htmx.org/dist/htmx.js",
    "npm/daisyui@5": "daisyui/daisyui.css",
    "npm/daisyui@5/themes.css": "daisyui/themes.css",
    "npm/daisyui@5/colors/properties.css": "daisyui/colors/properties.css",
    "npm/daisyui@5/colors/properties-extended.css": "daisyui/colors/properties-extended.css",
    "npm/@tailwindcss/browser@4": "@tailwindcss/browser/dist/index.global.js",
}

def from_disk(
    app: Any, # With headers that name the CDN
) -> Any: # The same app, with headers that name itself
    "Serve the files of the CDN beside the page."
    from fasthtml.common import flat_xt, to_xml
    from starlette.staticfiles import StaticFiles
    def local(tag: Any) -> bool: # Whether it stays; one that names a file on disk names it here
        for name in ("src", "href"):
            asked = tag.attrs.get(name, "").removeprefix(CDN)
            if asked in ON_DISK: tag.attrs[name] = f"/cdn/{ON_DISK[asked]}"
        return CDN not in to_xml(tag)
    app.hdrs = [tag for tag in flat_xt(app.hdrs) if local(tag)]
    app.mount("/cdn", StaticFiles(directory=Path(__file__).parent / "node_modules"))
    return app

def _bulk(path: Path) -> sqlite3.Connection: # In one transaction, which `_finish` ends
    db = sqlite3.connect(path, isolation_level=None)
    for pragma in ("synchronous = OFF", "cache_size = -200000", "temp_store = MEMORY"): db.execute(f"PRAGMA {pragma}")
    db.execute("BEGIN")
    return db

def _finish(db: sqlite3.Connection) -> None:
    db.execute("COMMIT")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
