"""Resumable workflow sessions for FastHTML apps.

The names below are what a host may rely on. Each is loaded when it is first used, so that importing the package costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["ColumnSpec", "CookieTooLarge", "CorruptState", "DONE", "EnrichedSessionSummary", "Finding", "GiveUp", "InvalidInput", "Job", "JobConflict", "JobFailure", "JobKinds",
           "JobNotFound", "JobPage", "JobRouter", "JobSessionManager", "Jobs", "LabelGenerator", "NotJSON", "PostgresSessionStore", "SQLiteSessionStore", "SessionEnded",
           "SessionEnricher", "SessionError", "SessionManagementResult", "SessionManagementService", "SessionManagementUrls", "SessionNotFound", "SessionPage", "SessionSummary",
           "Settings", "StoreError", "StoredSession", "WorkflowSession", "active_session", "backup_store", "check_origin", "clear_expired", "examine_store", "format_bytes",
           "import_cjm", "init_health_router", "init_job_router", "init_session_manager_routers", "init_warm_router", "load_settings", "open_store", "restore_view", "session_of",
           "setup_logs", "status_of", "stored_sessions", "transfer_sessions"]

_ROOMS = { # Module -> the names it gives to the public face
    "core.http_session": ("clear_expired", "session_of", "stored_sessions"),
    "core.job_session": ("JobSessionManager",),
    "core.stored_session": ("StoredSession",),
    "core.workflow_session": ("WorkflowSession",),
    "errors": ("CookieTooLarge", "CorruptState", "InvalidInput", "JobConflict", "JobNotFound", "NotJSON", "SessionEnded", "SessionError", "SessionNotFound", "StoreError"),
    "jobs.forms": ("DONE", "GiveUp"),
    "jobs.kinds": ("JobKinds",),
    "jobs.service": ("Jobs",),
    "logs": ("setup_logs",),
    "models": ("ColumnSpec", "EnrichedSessionSummary", "Job", "JobFailure", "JobPage", "LabelGenerator", "SessionEnricher", "SessionManagementResult", "SessionManagementUrls", "SessionPage", "SessionSummary"),
    "routes.guard": ("active_session", "check_origin", "status_of"),
    "routes.health": ("init_health_router",),
    "routes.init": ("init_session_manager_routers",),
    "routes.job_restore": ("restore_view",),
    "routes.job_router": ("JobRouter",),
    "routes.jobs": ("init_job_router",),
    "routes.warm": ("init_warm_router",),
    "services.management": ("SessionManagementService",),
    "settings": ("Settings", "load_settings"),
    "stores.backup": ("backup_store",),
    "stores.base": ("open_store",),
    "stores.cjm_import": ("import_cjm",),
    "stores.examine": ("Finding", "examine_store"),
    "stores.postgres": ("PostgresSessionStore",),
    "stores.sqlite": ("SQLiteSessionStore",),
    "stores.transfer": ("transfer_sessions",),
    "utils": ("format_bytes",),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

if TYPE_CHECKING:
    from .core.http_session import clear_expired, session_of, stored_sessions
    from .core.job_session import JobSessionManager
    from .core.stored_session import StoredSession
    from .core.workflow_session import WorkflowSession
    from .errors import CookieTooLarge, CorruptState, InvalidInput, JobConflict, JobNotFound, NotJSON, SessionEnded, SessionError, SessionNotFound, StoreError
    from .jobs.forms import DONE, GiveUp
    from .jobs.kinds import JobKinds
    from .jobs.service import Jobs
    from .logs import setup_logs
    from .models import ColumnSpec, EnrichedSessionSummary, Job, JobFailure, JobPage, LabelGenerator, SessionEnricher, SessionManagementResult, SessionManagementUrls, SessionPage, SessionSummary
    from .routes.guard import active_session, check_origin, status_of
    from .routes.health import init_health_router
    from .routes.init import init_session_manager_routers
    from .routes.job_restore import restore_view
    from .routes.job_router import JobRouter
    from .routes.jobs import init_job_router
    from .routes.warm import init_warm_router
    from .services.management import SessionManagementService
    from .settings import Settings, load_settings
    from .stores.backup import backup_store
    from .stores.base import open_store
    from .stores.cjm_import import import_cjm
    from .stores.examine import Finding, examine_store
    from .stores.postgres import PostgresSessionStore
    from .stores.sqlite import SQLiteSessionStore
    from .stores.transfer import transfer_sessions
    from .utils import format_bytes

def __getattr__(
    name: str, # Asked for, and not here yet
) -> Any:
    "Load a public name from its module (PEP 562). Raises `AttributeError`."
    if name not in _ROOM_OF: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{_ROOM_OF[name]}"), name)
    return found

def __dir__() -> list[str]:
    "List the public names, loaded or not."
    return sorted({*globals(), *__all__})
