"""What an import costs: CPU in a fresh Python that has already imported what it cannot do without."""

import os, subprocess, sys
from pathlib import Path
from statistics import median

from common import Budget, Result, Table, run

ROUNDS = 12
HANDLERS = "import cjm_fasthtml_virtual_collection.routes.handlers"
IMPORTS = { # Name -> what is imported, and what has been before
    "public face": ("import cjm_workflow_sessions", "pass"),
    "service and store": ("from cjm_workflow_sessions import SessionManagementService, SQLiteSessionStore", "pass"),
    "FastHTML": ("import fasthtml.common", "pass"),
    "virtual collection": (HANDLERS, "import fasthtml.common"),
    "routes": ("import cjm_workflow_sessions.routes.init", HANDLERS),
    "reference's routes": ("import cjm_fasthtml_workflow_session_management.routes.init", HANDLERS),
}

def cpu_ms(
    code: str, # Timed
    before: str, # Not timed
    folder: Path, # To run in
) -> float:
    "Run code in a fresh Python."
    script = f"{before}\nfrom time import process_time as now\nbegan = now()\n{code}\nprint((now() - began) * 1e3)"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {"PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
    return float(subprocess.run([sys.executable, "-c", script], cwd=folder, env=env, check=True, capture_output=True, text=True).stdout)

def measure(folder: Path) -> Result:
    "Start Python over and over, each time importing something else."
    found: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for n in range(ROUNDS + 1):
        for name in list(IMPORTS)[::1 if n % 2 else -1]:
            ms = cpu_ms(*IMPORTS[name], folder)
            if n: found[name].append(ms)   # the first round writes the bytecode
    def budget(work: str, name: str, limit: float, base: str) -> Budget: return Budget(work, median(found[name]), limit, "ms", how=f"CPU over {base}")
    result = Result("Imports", [
        budget("import of the public face", "public face", 60, "bare Python"),
        budget("import of the service and the SQLite store", "service and store", 60, "bare Python"),
        budget("import of the routes", "routes", 40, "the virtual collection's handlers")])
    rows = [[name, f"`{code}`", f"`{before}`", f"{median(found[name]):.0f}"] for name, (code, before) in IMPORTS.items()]
    result.tables.append(Table("CPU of an import, ms", ["", "Import", "After", "CPU"], rows, left=3))
    result.notes.append("Milliseconds cannot be carried from machine to machine, and a busy one takes more of them: compare with the virtual collection's, which were 385 where the budgets were set.")
    return result

if __name__ == "__main__": run(measure)
