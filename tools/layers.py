"""The import table of the package: which layer may import which, read from the source without running it."""

import ast, sys
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "cjm_workflow_sessions"
GROUND = ("models", "errors", "utils", "html_ids", "settings", "logs", "hub")
WEB = ("fasthtml", "starlette", "cjm_fasthtml") # FastHTML, what it stands on, and the families of libraries made for it

@dataclass(frozen=True)
class Layer:
    "What the modules of one layer may import. A name covers what lies below it too; `=name` only that one module."
    ours: tuple[str, ...] # Dotted names below the package; "=" is the package itself
    others: tuple[str, ...]|None = None # Top-level names besides the standard library, or families like cjm_fasthtml_…; None = any
    never: tuple[str, ...] = () # Refused, although `others` is open

LAYERS = { # The longest name that covers a module decides
    "=": Layer(GROUND + ("core", "stores", "services", "jobs", "warm", "components", "routes")), # Lazily: see the check of the public face
    **{name: Layer(GROUND, others=("fastcore",)) for name in GROUND},
    "core": Layer(GROUND + ("core", "stores.base")),
    "stores": Layer(GROUND + ("stores",), never=WEB),
    "=stores": Layer(GROUND + ("stores.base",), never=WEB), # Runs before stores.base does, so it names no concrete store either
    "stores.base": Layer(GROUND, never=WEB),
    "stores.job_port": Layer(GROUND, never=WEB),
    "stores.warm_port": Layer(GROUND, never=WEB),
    "services": Layer(GROUND + ("services", "stores.base", "=jobs", "=warm"), never=WEB),
    "jobs": Layer(GROUND + ("jobs", "stores.base", "stores.job_port", "=services", "=warm"), never=WEB),
    "jobs.procrastinate_engine": Layer(GROUND + ("jobs", "stores.base", "stores.job_queue"), never=WEB), # It is made for one kind of store
    "warm": Layer(GROUND + ("warm", "stores.base", "stores.warm_port", "=services", "=jobs"), never=WEB),
    "components": Layer(GROUND + ("components",), others=("fastcore", "fasthtml", "cjm_fasthtml")),
    "routes": Layer(GROUND + ("core", "stores.base", "services", "jobs", "warm", "components", "routes")),
    "demo": Layer(("=", "demo")),
    "cli": Layer(("=", "cli", "demo")),
}
DOORS = {("stores.base", "open_store"), ("stores.base", "as_store")} # Functions that import a concrete store when they are called

@dataclass(frozen=True)
class Import:
    "One imported name."
    line: int # In its file, from 1
    target: str # Absolute dotted name: a module, or something taken from one
    function: str # Outermost function around it; "" at module level

def modules(
    root: Path, # Folder that holds the package
) -> dict[str, Path]: # Dotted name below the package ("" for the package itself) -> file
    "List every module of the package."
    package = root / PACKAGE
    parts = {path: path.relative_to(package).with_suffix("").parts for path in sorted(package.rglob("*.py"))}
    return {".".join(p[:-1] if p[-1] == "__init__" else p): path for path, p in parts.items()}

def imports(
    name: str, # Dotted name below the package
    path: Path, # Its file
) -> list[Import]: # In the order of the source
    "Read what a module imports, whether at the top, inside a function or for the type checker. Raises `SyntaxError`."
    here = [PACKAGE, *name.split(".")] if name else [PACKAGE]
    if path.name != "__init__.py": here.pop()
    def walk(node, function):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import): base = []
            elif isinstance(child, ast.ImportFrom):
                base = here[:len(here) - child.level + 1] if child.level else []
                if child.module: base = base + [child.module]
            else:
                is_outermost = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) and not function
                yield from walk(child, child.name if is_outermost else function)
                continue
            for alias in child.names: yield Import(child.lineno, ".".join(base + [alias.name]), function)
    return list(walk(ast.parse(path.read_text(), filename=str(path)), ""))

def covers(
    rule: str, # As in `Layer.ours`
    module: str, # Dotted name below the package
) -> bool: # Whether the rule speaks of the module
    "Match a module against one name of the table."
    if rule.startswith("="): return module == rule[1:]
    return module == rule or module.startswith(rule + ".")

def is_allowed(
    module: str, # Dotted name below the package
    layer: Layer, # Its layer
    found: Import, # One of its imports
    known: dict[str, Path], # From `modules`
) -> bool: # Whether the import may stand there
    "Hold one import against the table."
    top, _, name = found.target.partition(".")
    if top == PACKAGE:
        target = name if name in known else name.rpartition(".")[0]
        if (module, found.function) in DOORS and covers("stores", target): return True
        return any(covers(rule, target) for rule in layer.ours)
    if top in sys.stdlib_module_names: return True
    is_of = lambda family: any(top == member or top.startswith(member + "_") for member in family)
    return not is_of(layer.never) and (layer.others is None or is_of(layer.others))

def faults(
    root: Path, # Folder that holds the package
) -> list[str]: # One line for each import that the table refuses
    "Walk the imports of every module."
    known, found = modules(root), []
    for module, path in known.items():
        if path.name == "_modidx.py": continue
        where = path.relative_to(root)
        name = max((layer for layer in LAYERS if covers(layer, module)), key=len, default=None)
        if name is None: found.append(f"{where}: the import table has no layer for it")
        else: found += [f"{where}:{one.line}: {name.strip('=') or 'the public face'} may not import {one.target}"
                        for one in imports(module, path) if not is_allowed(module, LAYERS[name], one, known)]
    return found
