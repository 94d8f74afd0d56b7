"""The gate passes a clean copy of this clone, and names each fault planted in one."""

import json, os, shutil, subprocess, sys
from pathlib import Path

import pytest

import checks
from layers import PACKAGE

ROOT = Path(__file__).resolve().parents[1]

def git(
    folder: Path, # Where to run it
    *args: str, # As on the command line
) -> None:
    "Run git away from any repository that a hook's variables name, and from the user's own settings."
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")} | {"GIT_CONFIG_GLOBAL": os.devnull}
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@example.com", *args], cwd=folder, env=env, check=True, capture_output=True)

@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    "This clone as it would be committed now, in a repository of its own."
    copy = tmp_path_factory.mktemp("gate") / "clone"
    for name in checks.files(ROOT):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    git(copy.parent, "init", "-q", str(copy))
    git(copy, "add", "-A")
    git(copy, "commit", "-qm", "as it is")
    return copy

@pytest.fixture
def clone(clean, tmp_path):
    "A copy of `clean` to spoil."
    return Path(shutil.copytree(clean, tmp_path / "clone"))

def gate(
    folder: Path, # The clone to check
    *only: str, # Checks to run; none = all of them, as on CI
) -> tuple[int, str]: # Exit code and what it wrote
    "Run the gate as make does."
    done = subprocess.run([sys.executable, ROOT / "tools" / "checks.py", folder, *(("--only", *only) if only else ())],
                          env={**os.environ, "CI": "true"}, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr

def add_cell(
    notebook: Path, # Changed in place
    source: str, # Of the new code cell, the last one
) -> None:
    "Add a cell, as an editor would leave it."
    content = json.loads(notebook.read_text())
    content["cells"].append(dict(cell_type="code", execution_count=None, id="planted0", metadata={}, outputs=[], source=source.splitlines(True)))
    notebook.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")

def append(
    path: Path, # Made if it is not there
    text: str, # Its new end
) -> None:
    "Write at the end of a file."
    with path.open("a") as file: file.write(text)

def front_door(clone: Path) -> None:
    "Let some notebook be the front door."
    shutil.copy(clone / "nbs" / "errors.ipynb", clone / "nbs" / "index.ipynb")

# name -> (check, what spoils a clone, what the gate says)
FAULTS = {
    "module edited by hand": ("export", lambda c: append(c / PACKAGE / "utils.py", "\nEXTRA = 1\n"), f"{PACKAGE}/utils.py: not as"),
    "notebook not exported": ("export", lambda c: add_cell(c / "nbs" / "utils.ipynb", "#| export\nEXTRA = 1"), f"{PACKAGE}/utils.py: not as"),
    "notebook not clean": ("export", lambda c: (c / "nbs" / "utils.ipynb").write_text(
        (c / "nbs" / "utils.ipynb").read_text().replace('"metadata": {}', '"metadata": {"scrolled": true}', 1)), "nbs/utils.ipynb: not as"),
    "new module left out of the commit": ("export", lambda c: (c / PACKAGE / "html_ids.py").unlink(), f"{PACKAGE}/html_ids.py: not as"),
    "notebook that cannot be exported": ("export", lambda c: append(c / "nbs" / "utils.ipynb", "}"), "nbdev-export fails"),
    "notebook without module": ("pairs", lambda c: (c / PACKAGE / "utils.py").unlink(), f"nbs/utils.ipynb: its module {PACKAGE}/utils.py is missing"),
    "module of a renamed notebook": ("pairs", lambda c: (c / "nbs" / "utils.ipynb").unlink(), f"{PACKAGE}/utils.py: no notebook exports it"),
    "notebook of another name": ("pairs", lambda c: (c / "nbs" / "utils.ipynb").rename(c / "nbs" / "tools.ipynb"), "nbs/tools.ipynb: exports utils"),
    "module that does not import": ("imports", lambda c: append(c / PACKAGE / "utils.py", "\nmissing_name\n"), f"{PACKAGE}.utils: cannot be imported alone: NameError"),
    "import that points up": ("layers", lambda c: append(c / PACKAGE / "utils.py", "\nfrom .stores.base import Order\n"), "utils may not import"),
    "public face that loads the web": ("public", lambda c: append(c / PACKAGE / "__init__.py", "\nimport fasthtml.common\n"), "alone loads or raises: fasthtml"),
    "conflict in a module": ("conflicts", lambda c: append(c / PACKAGE / "utils.py", "\n" + "<" * 7 + " HEAD\n"), f"{PACKAGE}/utils.py:"),
    "conflict in a notebook cell": ("conflicts", lambda c: add_cell(c / "nbs" / "utils.ipynb", ">" * 7 + " branch\n"), "nbs/utils.ipynb:"),
    "README without its notebook": ("readme", lambda c: [(c / "nbs" / "index.ipynb").unlink(missing_ok=True), append(c / "README.md", "# Title\n")], "no nbs/index.ipynb"),
    "README edited by hand": ("readme", lambda c: [front_door(c), append(c / "README.md", "One more line.\n")], "README.md: not what"),
    "notebook without README": ("readme", lambda c: [front_door(c), (c / "README.md").unlink(missing_ok=True)], "README.md: not what"),
    "folder of one machine": ("addresses", lambda c: append(c / "NOTES.md", "see " + "/".join(("", "home", "ada", "notes")) + "\n"), "NOTES.md:1: /home"),
    "registry in a lock file": ("addresses", lambda c: append(c / "requirements.lock", "--extra-index" + "-url https://mirror.example/simple\n"), "requirements.lock:"),
    "address in the npm lock file": ("addresses", lambda c: append(c / "package-lock.json", '"resolved"' + ': "https://mirror.example/x.tgz"\n'), "package-lock.json:"),
    "change not committed": ("committed", lambda c: append(c / "LICENSE", "\n"), "M LICENSE"),
    "file not committed": ("committed", lambda c: append(c / "NOTES.md", "new\n"), "?? NOTES.md"),
}

@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_named(clone, name):
    check, spoil, said = FAULTS[name]
    spoil(clone)
    code, out = gate(clone, check)
    assert code == 1 and f"{check}: " in out and said in out

def test_every_check_has_a_planted_fault():
    assert {check for check, _, _ in FAULTS.values()} == set(checks.CHECKS)

def test_clean_clone_passes_every_check(clean):
    code, out = gate(clean)
    assert (code, out) == (0, f"gate: 0 faults, {len(checks.CHECKS)} checks\n")

def test_readme_is_text_and_code_without_directives_and_hidden_cells(clone):
    notebook = clone / "nbs" / "index.ipynb"
    cells = [("markdown", "# Title\n\n![page](../docs/page.png)"), ("code", "#| hide\nimport secret"), ("code", ""),
             ("code", "#| eval: false\nserve()"), ("markdown", "Text #| as it is.")]
    notebook.write_text(json.dumps(dict(nbformat=4, nbformat_minor=5, metadata={}, cells=[
        dict(cell_type=kind, id=f"cell{n}", metadata={}, source=source, **(dict(execution_count=None, outputs=[]) if kind == "code" else {}))
        for n, (kind, source) in enumerate(cells)])))
    subprocess.run([sys.executable, ROOT / "tools" / "readme.py", clone], check=True)
    assert (clone / "README.md").read_text() == "# Title\n\n![page](docs/page.png)\n\n```python\nserve()\n```\n\nText #| as it is.\n"
    assert gate(clone, "readme")[0] == 0
