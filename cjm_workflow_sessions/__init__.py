"""Resumable workflow sessions for FastHTML apps.

The names below are what a host may rely on. Each is loaded when it is first used, so that importing the package costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["ColumnSpec", "CookieTooLarge", "CorruptState", "EnrichedSessionSummary", "InvalidInput", "JobSessionManager", "LabelGenerator", "NotJSON", "SQLiteSessionStore", "SessionEnricher",
           "SessionError", "SessionManagementResult", "SessionManagementService", "SessionManagementUrls", "SessionNotFound", "SessionPage", "SessionSummary", "Settings", "StoreError",
           "WorkflowSession", "active_session", "check_origin", "format_bytes", "import_cjm", "init_session_manager_routers", "load_settings", "open_store", "status_of"]

_ROOMS = { # Module -> the names it gives to the public face
    "core.job_session": ("JobSessionManager",),
    "core.workflow_session": ("WorkflowSession",),
    "errors": ("CookieTooLarge", "CorruptState", "InvalidInput", "NotJSON", "SessionError", "SessionNotFound", "StoreError"),
    "models": ("ColumnSpec", "EnrichedSessionSummary", "LabelGenerator", "SessionEnricher", "SessionManagementResult", "SessionManagementUrls", "SessionPage", "SessionSummary"),
    "routes.guard": ("active_session", "check_origin", "status_of"),
    "routes.init": ("init_session_manager_routers",),
    "services.management": ("SessionManagementService",),
    "settings": ("Settings", "load_settings"),
    "stores.base": ("open_store",),
    "stores.cjm_import": ("import_cjm",),
    "stores.sqlite": ("SQLiteSessionStore",),
    "utils": ("format_bytes",),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

if TYPE_CHECKING:
    from .core.job_session import JobSessionManager
    from .core.workflow_session import WorkflowSession
    from .errors import CookieTooLarge, CorruptState, InvalidInput, NotJSON, SessionError, SessionNotFound, StoreError
    from .models import ColumnSpec, EnrichedSessionSummary, LabelGenerator, SessionEnricher, SessionManagementResult, SessionManagementUrls, SessionPage, SessionSummary
    from .routes.guard import active_session, check_origin, status_of
    from .routes.init import init_session_manager_routers
    from .services.management import SessionManagementService
    from .settings import Settings, load_settings
    from .stores.base import open_store
    from .stores.cjm_import import import_cjm
    from .stores.sqlite import SQLiteSessionStore
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
