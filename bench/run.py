"""All measurements, one after the other, each in a fresh Python: a table of budgets, bench/RESULTS.md and the plot. `make bench` runs it.

    run.py              everything; exit code 1 if a budget is missed by more than 20 %
    run.py store page   only these, shown and not written
"""

import os, platform, sqlite3, statistics, subprocess, sys, tempfile, time
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from common import BUILD, TOLERANCE, Budget, Result, budget_table, markdown
from plot import plot

HERE = Path(__file__).parent
SUBJECTS = ("store", "list", "page", "together", "imports", "paint", "jobs", "warm") # Files of this folder; a new one joins by its name here
PACKAGES = ("cjm-workflow-sessions", "cjm-fasthtml-workflow-session-management", "cjm-workflow-state", "cjm-fasthtml-virtual-collection", "python-fasthtml",
            "starlette", "Django", "langgraph-checkpoint-sqlite")

def result_of(
    subject: str, # One of `SUBJECTS`
) -> Result: # Raises `CalledProcessError`
    "Run one file."
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        subprocess.run([sys.executable, HERE / f"{subject}.py", "--json", out], check=True)
        return Result.from_json(out.read_text())

def fsync_us() -> float: # Median of 200
    "Time what every durable commit waits for."
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=BUILD) as file:
        def once() -> float:
            file.write(os.urandom(4096))
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            return (time.perf_counter() - began) * 1e6
        return statistics.median(once() for _ in range(200))

def machine() -> list[str]: # Lines of a list
    "Say on what the figures were taken."
    try: cpu = next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    except (OSError, StopIteration): cpu = platform.processor() or platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return [f"- {cpu}, {os.cpu_count()} cores, {memory:.0f} GiB; {platform.system()} {platform.release().split('-')[0]}; fsync of a 4 KB write {fsync_us():,.0f} µs",
            f"- Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}; " + ", ".join(f"{name} {version(name)}" for name in PACKAGES)]

def report(
    results: list[Result],
    head: list[str], # Machine and conditions
) -> str: # Markdown
    "Write bench/RESULTS.md."
    budgets = [b for r in results for b in r.budgets]
    missed = sum(b.verdict != "ok" for b in budgets)
    parts = ["# Results of `make bench`", "\n".join(head),
             "Each figure is a median of interleaved rounds: all subjects take their turn in every round, in another order each time, and a ratio is the median of the ratios within "
             f"a round. Files lie on the disk, not in memory. {len(budgets) - missed} of {len(budgets)} budgets are met. The tests hold two more: no foreign row, no 5xx on bad input.",
             "## Budgets", markdown(budget_table(budgets)), "![Time of one page of the list against the number of sessions](list-page.svg)"]
    for r in results:
        parts += [f"## {r.title}", *(f"{t.title}:\n\n{markdown(t)}" for t in r.tables), *r.notes]
    return "\n\n".join(parts) + "\n"

def main() -> int: # Exit code
    began, load, chosen, results, failed = time.monotonic(), os.getloadavg()[0], sys.argv[1:] or SUBJECTS, [], []
    for subject in chosen:
        print(f"bench: {subject}", flush=True)
        try: results.append(result_of(subject))
        except subprocess.CalledProcessError: failed.append(subject)
    budgets: list[Budget] = [b for r in results for b in r.budgets]
    minutes = (time.monotonic() - began) / 60
    for table in [budget_table(budgets)] + ([t for r in results for t in r.tables] if sys.argv[1:] else []): print(f"\n{table.title}\n\n{markdown(table)}")
    if chosen is SUBJECTS and not failed:
        head = [*machine(), f"- {datetime.now(timezone.utc):%Y-%m-%d}, {minutes:.0f} minutes; load of the machine {load:.1f} before and {os.getloadavg()[0]:.1f} after"]
        (HERE / "RESULTS.md").write_text(report(results, head))
        (HERE / "list-page.svg").write_text(plot(next(r.points for r in results if r.points)))
        print("\nbench: wrote bench/RESULTS.md and bench/list-page.svg")
    missed = [b for b in budgets if b.excess > TOLERANCE]
    for subject in failed: print(f"bench: {subject} failed; what it said is above")
    for b in missed: print(f"bench: missed by more than 20 %: {b.work} ({b.how})")
    print(f"bench: {minutes:.1f} minutes, {len(budgets)} budgets, {len(missed)} missed")
    return 1 if missed or failed else 0

if __name__ == "__main__": sys.exit(main())
