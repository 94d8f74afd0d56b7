"""Imports point down, every module stands alone, and the public face is light."""

from pathlib import Path

import pytest

import checks, layers

ROOT = Path(__file__).resolve().parents[1]

def test_imports_point_down():
    assert layers.faults(ROOT) == []

def test_every_module_imports_alone():
    assert checks.check_imports(ROOT) == []

def test_public_face_loads_no_web_framework():
    assert checks.check_public(ROOT) == []

REFUSED = [
    ("models", "import httpx2"),
    ("settings", "from cjm_workflow_sessions.stores.base import open_store"),
    ("core.workflow_session", "from ..stores.sqlite import SQLiteSessionStore"),
    ("core.job_session", "from ..routes import guard"),
    ("stores.sqlite", "from fasthtml.common import Div"),
    ("stores.sqlite", "from ..services.management import SessionManagementService"),
    ("stores.base", "from .sqlite import SQLiteSessionStore"),
    ("stores.base", "def check():\n    from .sqlite import SQLiteSessionStore"),
    ("stores.__init__", "from .sqlite import SQLiteSessionStore"),
    ("services.management", "from ..stores.sqlite import SQLiteSessionStore"),
    ("services.management", "def later():\n    import cjm_workflow_sessions.stores.cjm"),
    ("services.management", "from ..stores import sqlite"),
    ("services.management", "from starlette.requests import Request"),
    ("services.management", "from ..jobs.service import JobService"),
    ("services.management", "from ..components.helpers import render_row"),
    ("jobs.service", "import fasthtml.common"),
    ("jobs.service", "from ..warm.client import Client"),
    ("warm.host", "from cjm_fasthtml_daisyui.core import themes"),
    ("warm.host", "from ..stores.sqlite import SQLiteSessionStore"),
    ("warm.calling", "from ..jobs.service import Jobs"),
    ("stores.warm_port", "from ..warm.errors import WarmError"),
    ("components.helpers", "from ..services.management import SessionManagementService"),
    ("components.helpers", "from ..stores.base import SessionStore"),
    ("components.helpers", "import starlette.requests"),
    ("routes.sessions", "from ..stores import cjm"),
    ("routes.sessions", "from ..cli import main"),
    ("demo.app", "from ..services.management import SessionManagementService"),
    ("demo.app", "from cjm_workflow_sessions.stores.base import open_store"),
    ("cli", "if True:\n    from cjm_workflow_sessions import stores"),
    ("attic.old", "import json"),
]
ALLOWED = [
    ("models", "import json, fastcore.basics\nfrom .errors import InvalidInput"),
    ("core.workflow_session", "from ..errors import InvalidInput\nfrom ..stores.base import SessionStore"),
    ("stores.base", "def open_store(url):\n    from cjm_workflow_sessions.stores.sqlite import SQLiteSessionStore"),
    ("stores.base", "def as_store(store):\n    from .cjm import CjmStore"),
    ("stores.cjm", "from cjm_workflow_state.state_store import SQLiteWorkflowStateStore\nfrom . import base"),
    ("services.management", "from ..stores.base import SessionStore\nfrom ..models import Page"),
    ("warm.calling", "from ..stores.warm_port import WarmRow\nfrom .errors import WarmError"),
    ("components.helpers", "from fasthtml.common import Div\nfrom cjm_fasthtml_daisyui.components.data_display.badge import badge\nfrom ..html_ids import row_id"),
    ("routes.sessions", "from ..services.management import SessionManagementService\nfrom ..components import helpers\nimport starlette"),
    ("demo.app", "from fasthtml.common import fast_app\nfrom cjm_workflow_sessions import open_store\nfrom .files import scan"),
    ("cli", "from cjm_workflow_sessions import open_store\nfrom cjm_workflow_sessions.demo.app import main"),
]
STORES = ("stores.__init__", "stores.base", "stores.sqlite", "stores.cjm")

def tree(
    root: Path, # Empty folder
    module: str, # Dotted name below the package
    source: str, # Its text
) -> None:
    "Make a package of empty modules with one that has something in it."
    rooms = ("core", "stores", "services", "jobs", "warm", "components", "routes", "demo")
    for name in (*(f"{room}.__init__" for room in rooms), "__init__", "cli", *STORES, module):
        path = root.joinpath(layers.PACKAGE, *name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source if name == module else "")

@pytest.mark.parametrize("module, source", REFUSED)
def test_the_table_refuses(tmp_path, module, source):
    tree(tmp_path, module, source)
    faults = layers.faults(tmp_path)
    assert len(faults) == 1 and faults[0].startswith(f"{layers.PACKAGE}/{module.replace('.', '/')}.py")

@pytest.mark.parametrize("module, source", ALLOWED)
def test_the_table_allows(tmp_path, module, source):
    tree(tmp_path, module, source)
    assert layers.faults(tmp_path) == []

def test_a_module_that_leans_on_another_import_is_named(tmp_path):
    tree(tmp_path, "utils", "from fastcore.basics import no_such_name")
    [fault] = checks.check_imports(tmp_path)
    assert fault.startswith("cjm_workflow_sessions.utils: ") and "no_such_name" in fault

def test_a_heavy_public_face_is_named(tmp_path):
    tree(tmp_path, "__init__", "from starlette.requests import Request")
    [fault] = checks.check_public(tmp_path)
    assert "starlette" in fault
