"""The manager page over 10,000 sessions: to open it, to move in it, to create, rename and delete, beside the reference."""

import html, re
from itertools import count
from pathlib import Path

import apps
from common import Asgi, Budget, Result, Table, milli, run, take_turns

N = 10_000
ROWS = 20 # Shown
PREFIX = apps.PREFIX

class Ours:
    "One tab of our page: it sends its view along and takes the one that comes back, as the page's script does."
    def __init__(self, folder: Path):
        self.app, self.numbers = Asgi(apps.our_app(apps.fill_ours(folder / "ours.db", N))), count()
        self.open()

    def open(self): return self._take(self.app.get(PREFIX))
    def move(self): return self._take(self.app.post(f"{PREFIX}/vc/move", moves="page_down", view=self.view))
    def create(self): return self._take(self.app.post(f"{PREFIX}/create_session", view=self.view))
    def rename(self): return self._take(self.app.post(f"{PREFIX}/rename_session", view=self.view, session_id=apps.session_id(N // 2 + next(self.numbers)), label="Renamed"))
    def delete(self): return self._take(self.app.post(f"{PREFIX}/delete_session", view=self.view, session_id=apps.session_id(next(self.numbers))))

    def _take(self, answer: str) -> str:
        self.view = html.unescape(re.search(r"value='([^']*)' name=\"view\"", answer)[1])
        return answer

class Theirs:
    "The reference keeps one view for all visitors, so nothing needs to be sent along."
    def __init__(self, folder: Path):
        self.app, self.numbers = Asgi(apps.their_app(apps.fill_theirs(folder / "theirs.db", N))), count()
        self.open()
        self.app.post(f"{PREFIX}/vc/update_viewport", visible_rows=ROWS)

    def open(self): return self.app.get(f"{PREFIX}/management_page")
    def move(self): return self.app.post(f"{PREFIX}/vc/nav_page_down")
    def create(self): return self.app.post(f"{PREFIX}/create_session")
    def rename(self): return self.app.post(f"{PREFIX}/rename_session", session_id=apps.session_id(N // 2 + next(self.numbers)), label="Renamed")
    def delete(self): return self.app.post(f"{PREFIX}/delete_session", session_id=apps.session_id(next(self.numbers)))

WORK = {"open": "manager page", "move": "window move (PageDown)", "create": "create a session", "rename": "rename a session", "delete": "delete a session"}
ROUNDS = {"open": 9, "move": 25, "create": 9, "rename": 9, "delete": 9}

def measure(folder: Path) -> Result:
    "Do the same in both pages."
    result, rows = Result(f"The manager page, {N:,} sessions, {ROWS} rows shown"), []
    ours, theirs = Ours(folder), Theirs(folder)
    for name, work in WORK.items():
        sizes = [len(getattr(side, name)().encode()) for side in (ours, theirs)]
        times = take_turns({"ours": getattr(ours, name), "theirs": getattr(theirs, name)}, ROUNDS[name], 10 if name == "move" else 1)
        ratio, ratio_cpu = times.ratio("ours", "theirs"), times.ratio_cpu("ours", "theirs")
        if name == "move":
            result.budgets += [Budget(work, ratio_cpu, 1 / 3, how="server CPU, of the reference"), Budget(work, sizes[0] / 1024, 20, "KB", how="answer")]
        else: result.budgets.append(Budget(f"{work} at {N:,}", ratio, 1 / 50, how="time, of the reference"))
        if name == "open": result.budgets.append(Budget(f"{work} at {N:,}", sizes[0] / sizes[1], 1 / 3, how="bytes, of the reference"))
        rows.append([work, *(milli(f(side)) for side in ("ours", "theirs") for f in (times.median, times.median_cpu)), *(f"{n:,}" for n in sizes)])
    head = ["", "ours, ms", "ours, CPU ms", "reference, ms", "reference, CPU ms", "ours, bytes", "reference, bytes"]
    result.tables.append(Table("One answer, before any compression", head, rows))
    return result

if __name__ == "__main__": run(measure)
