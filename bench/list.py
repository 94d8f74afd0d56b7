"""The page of the list, from 100 sessions to 1,000,000: what one answer costs when more are stored. Needs 3 GB of disk while it runs."""

from functools import partial
from pathlib import Path
from typing import Any

import apps
from common import Asgi, Budget, Result, Table, milli, run, take_turns

SIZES = (100, 1_000, 10_000, 100_000, 1_000_000)
SMALL, LARGE = 1_000, 1_000_000
OURS, THEIRS = "this library", "the reference" # In the plot
PATIENCE_S = 15 # The reference is asked at a size only if its page should take less

def measure(folder: Path) -> Result:
    "Ask for the first page of lists of different length, and for pages inside the longest."
    result = Result("The list, from 100 to 1,000,000 sessions")
    stores = {n: apps.fill_ours(folder / f"ours-{n}.db", n) for n in SIZES}
    pages = {n: Asgi(apps.our_app(store)) for n, store in stores.items()}
    answers = take_turns({f"{n}": partial(page.get, apps.PREFIX) for n, page in pages.items()}, 30)
    reads = take_turns(page_reads(stores), 60, 5)
    result.budgets += [Budget(f"page of the list at {LARGE:,} sessions", ratio, 1.3, how=f"time of {what}, of the same at {SMALL:,}") for what, ratio in (
        ("the first 20 rows read", reads.ratio(f"first {LARGE}", f"first {SMALL}")),
        ("the next 20 rows in the middle", reads.ratio(f"next {LARGE}", f"next {SMALL}")),
        ("the whole answer", answers.ratio(f"{LARGE}", f"{SMALL}")))]
    result.points[OURS] = [[n, answers.median(f"{n}") * 1e3] for n in SIZES]
    rows = {n: [f"{n:,}", milli(answers.median(f"{n}")), "", "", *(milli(reads.median(f"{where} {n}")) for where in ("first", "next", "jump"))] for n in SIZES}
    result.points[THEIRS] = []
    for n in SIZES:
        expected_s = result.points[THEIRS][-1][1] / 1e3 * 10 if n > SIZES[0] else 0.1
        if expected_s > PATIENCE_S:
            result.notes.append(f"The reference is not asked at {n:,} sessions, where one page should take {expected_s:.0f} s.")
            break
        theirs = Asgi(apps.their_app(apps.fill_theirs(folder / f"theirs-{n}.db", n)))
        theirs.get(f"{apps.PREFIX}/management_page")
        theirs.post(f"{apps.PREFIX}/vc/update_viewport", visible_rows=20)   # for every visitor, from here on
        both = {"ours": partial(pages[n].get, apps.PREFIX), "theirs": partial(theirs.get, f"{apps.PREFIX}/management_page")}
        times = take_turns(both, max(2, min(9, round(5 / expected_s))))
        result.points[THEIRS].append([n, times.median("theirs") * 1e3])
        rows[n][2:4] = [milli(times.median("theirs")), f"{times.ratio('theirs', 'ours'):,.0f}×"]
    head = ["Sessions", "our page", "reference", "ratio", "first 20 rows read", "next 20 in the middle", "jump to the middle"]
    result.tables.append(Table("Milliseconds for one answer with 20 rows, and for the reads in it", head, list(rows.values())))
    result.notes.append("Jumping to the middle (a drag of the scroll bar) walks the index to that position, so it is the one move that grows with the list.")
    return result

def page_reads(stores: dict[int, Any]) -> dict[str, Any]: # Name -> one run
    "Read pages without rendering them: the first, the next one from the middle, and the middle reached from nowhere."
    works = {}
    for n, store in stores.items():
        service, middle = apps.our_service(store), n // 2
        page = service.page(start=middle, limit=20)
        works |= {f"first {n}": partial(service.page, limit=20),
                  f"next {n}": partial(service.page, start=middle + 20, limit=20, anchor=page.anchor),
                  f"jump {n}": partial(service.page, start=middle, limit=20)}
    return works

if __name__ == "__main__": run(measure)
