"""Warm workers: one live process per session, which keeps what was slow to load from call to call.

The names below are what a host may rely on. Each is loaded when it is first used, as those of the package are.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["AppError", "AppMismatchError", "AppNotFoundError", "AsyncWarmClient", "AsyncWarmSession", "BadTaskError", "Resilient", "SessionBusyError", "SessionEndedError",
           "SessionError", "SessionExpiredError", "SessionHandle", "SessionLimitError", "SessionNotFoundError", "SessionTimeoutValueError", "VersionMismatchError", "WarmClient",
           "WarmError", "WarmRow", "WarmSession", "WorkerLostError", "WorkerStartError", "app", "async_client", "client"]

_ROOMS = { # Module below the package -> the names it gives
    "stores.warm_port": {"WarmRow": "WarmRow"},
    "warm.apps": {"app": "app"},
    "warm.awaiting": {"AsyncWarmClient": "AsyncWarmClient", "AsyncWarmSession": "AsyncWarmSession", "async_client": "async_client"}, # No room may have the name of a public name:
    "warm.calling": {"WarmClient": "WarmClient", "WarmSession": "WarmSession", "client": "client"}, # its module would take the place of what is meant
    "warm.errors": {"SessionError": "WarmSessionError"} | {name: name for name in __all__ if name.endswith("Error") and name != "SessionError"},
    "warm.resilient": {"Resilient": "Resilient"},
    "warm.serving": {"SessionHandle": "SessionHandle"},
}
_FOUND_AT = {name: (room, theirs) for room, names in _ROOMS.items() for name, theirs in names.items()}

if TYPE_CHECKING:
    from ..stores.warm_port import WarmRow
    from .apps import app
    from .awaiting import AsyncWarmClient, AsyncWarmSession, async_client
    from .calling import WarmClient, WarmSession, client
    from .errors import (AppError, AppMismatchError, AppNotFoundError, BadTaskError, SessionBusyError, SessionEndedError, SessionExpiredError, SessionLimitError,
                         SessionNotFoundError, SessionTimeoutValueError, VersionMismatchError, WarmError, WarmSessionError as SessionError, WorkerLostError, WorkerStartError)
    from .resilient import Resilient
    from .serving import SessionHandle

def __getattr__(
    name: str, # Asked for, and not here yet
) -> Any:
    "Load a public name from its module (PEP 562). Raises `AttributeError`."
    if name not in _FOUND_AT: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room, theirs = _FOUND_AT[name]
    found = globals()[name] = getattr(import_module(f"{__package__.rpartition('.')[0]}.{room}"), theirs)
    return found

def __dir__() -> list[str]:
    "List the public names, loaded or not."
    return sorted({*globals(), *__all__})
