"""Build the css and the js that the wheel carries, from the locked npm packages. The same sources give the same bytes.

Pages given as arguments are scanned for classes beside those that tools/render_states.py writes.
"""

import gzip, os, shutil, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STATES = ROOT / "build" / "states" # Pages in every state, scanned for classes
ASSETS = ROOT / "cjm_workflow_sessions" / "assets"
STATIC = ROOT / "cjm_workflow_sessions" / "static"

def run(
    *command: str|Path, # Program and arguments
) -> None:
    "Run a program in the clone, with the node of its environment if that has one. Raises `CalledProcessError`."
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    subprocess.run([str(part) for part in command], cwd=ROOT, env={**os.environ, "PATH": path}, check=True)

def npm(
    name: str, # Program of a package in package.json
) -> Path: # Where npm put it
    "Name a program of the locked npm packages."
    return ROOT / "node_modules" / ".bin" / name

def gather_states(
    pages: list[Path], # HTML files to scan as well
) -> None:
    "Fill the folder of rendered pages anew."
    shutil.rmtree(STATES, ignore_errors=True)
    STATES.mkdir(parents=True)
    script = ROOT / "tools" / "render_states.py"
    if script.is_file(): run(sys.executable, script, STATES)
    else: print("assets: no tools/render_states.py, so classes come from the sources alone")
    for n, page in enumerate(pages): shutil.copyfile(page, STATES / f"given-{n}.html")

def build_css(
    out: Path, # Written anew
) -> None:
    "Collect the classes in use with Tailwind and daisyUI."
    run(npm("tailwindcss"), "--input", ROOT / "tools" / "sessions.css", "--output", out, "--minify")

def build_js(
    out: Path, # Written anew
) -> None:
    "Bundle assets/main.js and all that it imports into one classic script."
    run(npm("esbuild"), ASSETS / "main.js", f"--outfile={out}", "--bundle", "--format=iife", "--minify",
        "--target=es2020", "--legal-comments=inline", "--log-level=warning")

def copy_licenses(
    out: Path, # Written anew
) -> None:
    "Put the licenses of what went into the css and the js beside them, as they ask for."
    names = ("tailwindcss", "daisyui", "htmx.org")
    out.write_text("\n\n".join(f"{name}\n\n{(ROOT / 'node_modules' / name / 'LICENSE').read_text()}" for name in names))

def main() -> None:
    gather_states([Path(name).resolve() for name in sys.argv[1:]])
    STATIC.mkdir(exist_ok=True)
    build_css(STATIC / "sessions.css")
    if (ASSETS / "main.js").is_file(): build_js(STATIC / "sessions.js")
    else: print("assets: no assets/main.js, so no script is built")
    copy_licenses(STATIC / "LICENSES.txt")
    for path in sorted(STATIC.iterdir()):
        data = path.read_bytes()
        print(f"assets: {path.name} {len(data):,} bytes, {len(gzip.compress(data, mtime=0)):,} compressed")

if __name__ == "__main__": main()
