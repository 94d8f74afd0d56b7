"""What every measurement shares: turns taken in shuffled rounds, ratios within a round, and the budgets that a ratio is held to."""

import argparse, asyncio, json, random, statistics, tempfile, threading, time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "bench" # Beside the clone's own disk: a folder in memory would hide what a commit costs
FLOW = "ingest"
TOLERANCE = 1.2 # A budget missed by less is reported and forgiven: machines are noisy

# -- what a measurement gives ----------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Budget:
    "One figure and the limit that DESIGN sets for it."
    work: str # What was measured
    value: float # Figure measured
    limit: float # Figure allowed
    unit: str = "×" # "×" for a ratio
    at_least: bool = False # The limit is the lowest figure allowed, not the highest
    how: str = "" # What was compared, in a few words

    @property
    def excess(self) -> float: # 1 at the limit, more beyond it
        high, low = (self.limit, self.value) if self.at_least else (self.value, self.limit)
        return 1.0 if high == low else high / low if low else float("inf")

    @property
    def verdict(self) -> str:
        return "ok" if self.excess <= 1 else "within 20 %" if self.excess <= TOLERANCE else "MISSED"

@dataclass(frozen=True)
class Table:
    "Figures for information: what else was seen while the budgets were measured."
    title: str
    head: list[str]
    rows: list[list[str]] # Cells as they are shown
    left: int = 1 # Columns of words, which begin at the left; figures end at the right

@dataclass
class Result:
    "What one file of this folder found."
    title: str
    budgets: list[Budget] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list) # Whole sentences
    points: dict[str, list[list[float]]] = field(default_factory=dict) # For the plot: subject -> [sessions, milliseconds]

    @classmethod
    def from_json(cls, text: str) -> "Result":
        data = json.loads(text)
        return cls(data["title"], [Budget(**b) for b in data["budgets"]], [Table(**t) for t in data["tables"]], data["notes"], data["points"])

# -- taking turns ------------------------------------------------------------------------------------------------------

@dataclass
class Times:
    "Seconds for one run of each work, round by round; the same round of two works was taken within moments."
    wall: dict[str, list[float]]
    cpu: dict[str, list[float]] # Of this process, all its threads

    def median(self, name: str) -> float: return statistics.median(self.wall[name])
    def median_cpu(self, name: str) -> float: return statistics.median(self.cpu[name])
    def ratio(self, name: str, over: str) -> float: return _ratio(self.wall, name, over)
    def ratio_cpu(self, name: str, over: str) -> float: return _ratio(self.cpu, name, over)

def _ratio(times: dict[str, list[float]], name: str, over: str) -> float:
    return statistics.median(a / b for a, b in zip(times[name], times[over]))

def take_turns(
    works: dict[str, Callable[[], Any]], # One run of each subject
    rounds: int, # Times that each has its turn
    repeat: dict[str, int]|int = 1, # Runs in one turn, for all or for each
) -> Times: # Seconds for one run
    "Time each work in every round, in another order each time; a first turn of each is not counted."
    shuffle = random.Random(1).sample
    times = Times({name: [] for name in works}, {name: [] for name in works})
    for n in range(rounds + 1):
        for name in shuffle(list(works), len(works)):
            work, runs = works[name], repeat if isinstance(repeat, int) else repeat[name]
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(runs): work()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if n:
                times.wall[name].append(wall / runs)
                times.cpu[name].append(cpu / runs)
    return times

# -- what is measured ----------------------------------------------------------------------------------------------------

SMALL = 4 # Keys of a state that are replaced while the time runs, so that its size stays

def state_of(
    kilobytes: int, # About: 2 makes 10 keys, 100 makes 40
    seed: int = 0, # Another seed gives other texts
) -> dict[str, Any]: # Lists of files with what is known of each, as an ingest workflow keeps them
    "Make a state."
    rng, keys = random.Random(seed), 10 if kilobytes < 10 else 40
    def file() -> dict[str, Any]:
        return {"path": "".join(rng.choices("abcdefghij klmnopqrstuvwxyz/-_", k=24)), "size": rng.randrange(10**9), "chosen": rng.random() < 0.5}
    files = round((kilobytes * 1024 / (keys - SMALL) - 60) / 80) if kilobytes >= 10 else 2
    large = {f"_step_{i}": {"note": None, "files": [file() for _ in range(files)]} for i in range(keys - SMALL)}
    return large | {key: value for i in range(SMALL) for key, value in small_change(i).items()}

def small_change(
    n: int, # Another number gives other bytes: SQLite does not write what is there already
) -> dict[str, Any]: # One key, about 150 bytes
    "Make a new value for one of the small keys."
    return {f"small_{n % SMALL}": {"path": f"folder/{n:012d}/" + "x" * 60, "count": n, "done": True, "options": {"quality": 0.5}}}

class Asgi:
    "Ask an app without a server or a socket between, and keep its cookies."
    def __init__(self, app: Any):
        self.app, self.cookies, self.loop = app, {}, asyncio.new_event_loop()
        # One task that stays, as a server has: worker threads, and their connections, end with the task that the loop was begun for.
        threading.Thread(target=self.loop.run_until_complete, args=(asyncio.Event().wait(),), daemon=True).start()

    def get(self, path: str) -> str: return self._ask("GET", path, b"")
    def post(self, path: str, **form: Any) -> str: return self._ask("POST", path, urlencode(form).encode())

    def _ask(self, method: str, path: str, body: bytes) -> str: # The body of the answer. Raises `AssertionError` for an error
        headers = [(b"host", b"bench"), (b"hx-request", b"true"), (b"content-type", b"application/x-www-form-urlencoded"),
                   (b"content-length", str(len(body)).encode()), (b"cookie", "; ".join(f"{k}={v}" for k, v in self.cookies.items()).encode())]
        route, _, query = path.partition("?")
        scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http", "path": route, "raw_path": route.encode(),
                 "query_string": query.encode(), "root_path": "", "headers": headers, "client": ("127.0.0.1", 1), "server": ("bench", 80)}
        return asyncio.run_coroutine_threadsafe(self._call(scope, body), self.loop).result()

    async def _call(self, scope: dict[str, Any], body: bytes) -> str:
        sent: list[dict[str, Any]] = []
        async def receive() -> dict[str, Any]: return {"type": "http.request", "body": body, "more_body": False}
        async def send(message: dict[str, Any]) -> None: sent.append(message)
        await self.app(scope, receive, send)
        text = b"".join(m.get("body", b"") for m in sent[1:]).decode()
        assert sent[0]["status"] < 400, f"{scope['path']}: {sent[0]['status']} {text[:500]}"
        for name, value in sent[0]["headers"]:
            if name == b"set-cookie": self.cookies.update([value.decode().split(";")[0].split("=", 1)])
        return text

# -- running one file alone ---------------------------------------------------------------------------------------------

@contextmanager
def data_folder() -> Iterator[Path]: # Deleted at the end
    "Give a folder on the clone's disk."
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="data-", dir=BUILD) as folder: yield Path(folder)

def markdown(
    table: Table,
) -> str:
    "Write a table."
    lines = [table.head, ["---" if n < table.left else "---:" for n in range(len(table.head))], *table.rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)

def budget_table(
    budgets: list[Budget],
) -> Table:
    "Write figures beside their limits."
    def row(b: Budget) -> list[str]:
        figure = f"{_figure(b.value)} {b.unit}" if b.unit == "×" or b.value >= 0.1 else f"{b.value:.2f} {b.unit}"
        return [b.work, b.how, figure, f"{'≥' if b.at_least else '≤'} {_limit(b)}", b.verdict]
    return Table("Budgets", ["Work", "Compared", "Measured", "Budget", ""], [row(b) for b in budgets], left=2)

def _figure(value: float) -> str: # Three digits that mean something
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"1/{1 / value:.0f}"

def _limit(b: Budget) -> str: return f"{_figure(b.limit)} {b.unit}" if b.limit >= 0.1 or not b.limit else f"1/{1 / b.limit:.0f}"

def micro(seconds: float) -> str: return f"{seconds * 1e6:,.0f}"
def milli(seconds: float) -> str: return f"{seconds * 1e3:,.2f}" if seconds < 0.1 else f"{seconds * 1e3:,.0f}"

def run(
    measure: Callable[[Path], Result], # Takes a folder for its files
) -> None:
    "Measure, and show the result or write it where `--json` says."
    parser = argparse.ArgumentParser(description=measure.__doc__)
    parser.add_argument("--json", type=Path, help="write the result there instead of showing it")
    args = parser.parse_args()
    with data_folder() as folder: result = measure(folder)
    if args.json:
        args.json.write_text(json.dumps(asdict(result)))
        return
    for table in [budget_table(result.budgets), *result.tables]: print(f"\n{table.title}\n{markdown(table)}")
    print(*result.notes, sep="\n")
