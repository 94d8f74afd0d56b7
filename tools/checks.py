"""The checks of the gate. Each takes the folder of a clone and returns one line for each fault, so that tests can plant them."""

import argparse, os, re, shutil, subprocess, sys, tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import layers
from layers import PACKAGE
from readme import readme

ROOT = Path(__file__).resolve().parents[1]
NOT_FROM_NOTEBOOKS = ("__init__.py", "_modidx.py") # Names of modules written by hand, or by nbdev on its own account

def files(
    root: Path, # A git working tree
) -> list[Path]: # Relative to `root`: what git holds or would take, so nothing that it ignores
    "List the files of a clone."
    out = subprocess.run(["git", "ls-files", "-coz", "--exclude-standard"], cwd=root, check=True, capture_output=True, text=True).stdout
    return [Path(name) for name in sorted(set(out.split("\0"))) if name and (root / name).is_file()]

def matches(
    root: Path, # A git working tree
    pattern: str, # What must not be there
) -> list[str]: # "file:line: text" for each line that holds it
    "Search every text file of a clone."
    found = []
    for name in files(root):
        try: lines = (root / name).read_text().splitlines()
        except UnicodeDecodeError: continue # a picture
        found += [f"{name}:{n}: {m[0].strip()}" for n, line in enumerate(lines, 1) if (m := re.search(pattern, line))]
    return found

def python(
    root: Path, # Working folder, so its package is found before an installed one
    code: str, # Run in a fresh interpreter
) -> str: # "" if it ran without error, else the last line it wrote about it
    "Run code beside the package."
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=env, capture_output=True, text=True, timeout=120)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]

def check_export(root: Path) -> list[str]:
    "Notebooks are clean and modules are what their notebooks export."
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder).resolve()
        for name in files(root):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, copy / name)
        for command in ("nbdev-clean", "nbdev-export"):
            done = subprocess.run([Path(sys.executable).with_name(command)], cwd=copy, capture_output=True, text=True)
            if done.returncode: return [f"{command} fails: {done.stderr.strip()[-300:]}"]
        made = [path.relative_to(copy) for top in ("nbs", PACKAGE) for path in sorted((copy / top).rglob("*"))
                if path.is_file() and "__pycache__" not in path.parts]
        return [f"{name}: not as nbdev-clean and nbdev-export leave it; run both" for name in made
                if not (root / name).is_file() or (root / name).read_bytes() != (copy / name).read_bytes()]

def check_pairs(root: Path) -> list[str]:
    "Each notebook has its module and each module its notebook, of the same name in the same folder."
    found, exported = [], set()
    for notebook in sorted((root / "nbs").rglob("*.ipynb")):
        if notebook.name.startswith("_") or ".ipynb_checkpoints" in notebook.parts: continue
        default = re.search(r'"#\| *default_exp +([\w.]+)', notebook.read_text())
        if not default: continue
        name, module = notebook.relative_to(root), Path(PACKAGE, *default[1].split(".")).with_suffix(".py")
        exported.add(module)
        if notebook.relative_to(root / "nbs").with_suffix("").parts != tuple(default[1].split(".")):
            found.append(f"{name}: exports {default[1]}, which is not its own name")
        if not (root / module).is_file(): found.append(f"{name}: its module {module} is missing; run nbdev-export")
    for path in layers.modules(root).values():
        module = path.relative_to(root)
        if path.name not in NOT_FROM_NOTEBOOKS and module not in exported: found.append(f"{module}: no notebook exports it")
    return found

def check_imports(root: Path) -> list[str]:
    "Each module can be imported alone."
    names = [".".join(filter(None, (PACKAGE, name))) for name in layers.modules(root)]
    with ThreadPoolExecutor(os.cpu_count()) as pool: errors = pool.map(lambda name: python(root, f"import {name}"), names)
    return [f"{name}: cannot be imported alone: {error}" for name, error in zip(names, errors) if error]

def check_layers(root: Path) -> list[str]:
    "Imports point down only."
    return layers.faults(root)

def check_public(root: Path) -> list[str]:
    "The public face loads no web framework."
    error = python(root, f"import sys, {PACKAGE}; sys.exit(' '.join(sorted(set(m.split('.')[0] for m in sys.modules) & {set(layers.WEB)})) or 0)")
    return [f"import {PACKAGE} alone loads or raises: {error}"] if error else []

def check_conflicts(root: Path) -> list[str]:
    "No half of a merge is left."
    return matches(root, r'(?:^|^\s*")(?:<{7}|>{7}|\|{7})(?=\s|\\n|"|$).*')

def check_readme(root: Path) -> list[str]:
    "README.md is made from nbs/index.ipynb."
    page, notebook = root / "README.md", root / "nbs" / "index.ipynb"
    if not notebook.is_file(): return ["README.md: there is no nbs/index.ipynb to make it from"] if page.is_file() else []
    same = page.is_file() and page.read_text() == readme(notebook)
    return [] if same else ["README.md: not what nbs/index.ipynb says; run 'make readme'"]

def check_addresses(root: Path) -> list[str]:
    "No file names a folder of one machine, or the place that packages were fetched from."
    return matches(root, r"(?<![\w.])/(?:root|home/\w+|Users/\w+|work|tmp)/\S*") + matches(root,
        r"registry\.npmjs\S*|pythonhosted\.org\S*|pypi\.org/simple\S*|deb\.debian\.org\S*"
        r'|(?:index-url|find-links|registry)[ =]+\S+:/\S*|"resolved":\s*"\S*| @ (?:https?|file|git\+\w+)://\S*')

def check_committed(root: Path) -> list[str]:
    "Nothing waits to be committed."
    out = subprocess.run(["git", "status", "--porcelain"], cwd=root, check=True, capture_output=True, text=True).stdout
    return [f"not committed: {line}" for line in out.splitlines()]

CHECKS = dict(export=check_export, pairs=check_pairs, imports=check_imports, layers=check_layers, public=check_public,
              conflicts=check_conflicts, readme=check_readme, addresses=check_addresses, committed=check_committed)

def main() -> int: # Exit code
    parser = argparse.ArgumentParser(prog="gate", description="Check what tests of behaviour do not see; exits with 1 if there is a fault.")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT, help="a git working tree; this clone if none is named")
    parser.add_argument("--only", choices=CHECKS, nargs="+", metavar="CHECK", help=f"some of: {', '.join(CHECKS)} (committed runs where CI=true)")
    args = parser.parse_args()
    chosen = args.only or [name for name in CHECKS if name != "committed" or os.environ.get("CI") == "true"]
    faults = [f"{name}: {fault}" for name in chosen for fault in CHECKS[name](args.folder.resolve())]
    print(*faults, f"gate: {len(faults)} faults, {len(chosen)} checks", sep="\n")
    return 1 if faults else 0

if __name__ == "__main__": sys.exit(main())
