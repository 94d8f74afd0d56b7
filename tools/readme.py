"""Make README.md from nbs/index.ipynb: its text and its code, without directives and hidden cells."""

import re, sys
from pathlib import Path

from fastcore.nbio import read_nb

ROOT = Path(__file__).resolve().parents[1]

def readme(
    notebook: Path, # The front door, nbs/index.ipynb
) -> str: # Markdown; links are as seen from the folder above the notebook
    "Turn a notebook into Markdown."
    parts = []
    for cell in read_nb(notebook).cells:
        directives, text = re.fullmatch(r"((?:#\|[^\n]*\n?)*)(.*)", cell.source.strip(), flags=re.DOTALL).groups()
        if not text or re.search(r"#\|\s*hide\b", directives): continue
        if cell.cell_type == "code": parts.append(f"```python\n{text.strip()}\n```")
        elif cell.cell_type == "markdown": parts.append(text.replace("](../", "]("))
    return "\n\n".join(parts) + "\n"

if __name__ == "__main__":
    root = Path(sys.argv[1]) if sys.argv[1:] else ROOT
    (root / "README.md").write_text(readme(root / "nbs" / "index.ipynb"))
