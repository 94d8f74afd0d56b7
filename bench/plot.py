"""The picture of the list: time of one page against the number of sessions, both axes logarithmic. Plain SVG, for light and dark pages."""

from math import log10

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 84, 56, 94, 62 # Margins
SESSIONS, MS = (2, 6), (0, 5) # Powers of ten on the axes
STYLE = """
    text { font: 14px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: #59636e }
    .card { fill: #ffffff; stroke: #d1d9e0 } .grid { stroke: #e7ebef } .title { font-size: 17px; font-weight: 600; fill: #1f2328 }
    .strong { font-weight: 600 } .end { text-anchor: end } .middle { text-anchor: middle } path { fill: none; stroke-width: 2.5; stroke-linejoin: round }
    .a path { stroke: #0969da } .a circle, .a text { fill: #0969da } .b path { stroke: #bc4c00 } .b circle, .b text { fill: #bc4c00 }
    @media (prefers-color-scheme: dark) {
        text { fill: #9198a1 } .card { fill: #0d1117; stroke: #3d444d } .grid { stroke: #242b34 } .title { fill: #f0f6fc }
        .a path { stroke: #58a6ff } .a circle, .a text { fill: #58a6ff } .b path { stroke: #f0883e } .b circle, .b text { fill: #f0883e }
    }"""

def x(sessions: float) -> float: return round(LEFT + (log10(sessions) - SESSIONS[0]) / (SESSIONS[1] - SESSIONS[0]) * (WIDTH - LEFT - RIGHT), 1)
def y(ms: float) -> float: return round(HEIGHT - BOTTOM - (log10(ms) - MS[0]) / (MS[1] - MS[0]) * (HEIGHT - TOP - BOTTOM), 1)
def span(ms: float) -> str: return f"{ms / 1000:.2g} s" if ms >= 995 else f"{ms:.2g} ms" if ms < 99.5 else f"{round(ms, -1):.0f} ms"
def text(at_x: float, at_y: float, words: str, cls: str = "") -> str: return f'<text x="{at_x}" y="{at_y}" class="{cls}">{words}</text>'

def axes() -> list[str]:
    "Draw grid and numbers."
    parts = []
    for power in range(MS[0], MS[1] + 1):
        at, words = y(10**power), f"{10**power} ms" if power < 3 else f"{10**(power - 3)} s"
        parts += [f'<path class="grid" style="stroke-width:1" d="M{LEFT} {at}H{WIDTH - RIGHT}"/>', text(LEFT - 10, at + 5, words, "end")]
    for power in range(SESSIONS[0], SESSIONS[1] + 1):
        parts += [text(x(10**power), HEIGHT - BOTTOM + 24, f"{10**power:,}", "middle")]
    return parts + [text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, "sessions stored", "middle")]

def series(
    cls: str, # "a" or "b"
    name: str, # Written over the line
    points: list[list[float]], # [sessions, milliseconds], in order
    at: int, # Point that carries the name
    lift: int, # Pixels from that point up to the name
) -> str:
    "Draw one line, with the figures of its first and last point."
    line = "M" + "L".join(f"{x(n)} {y(ms)}" for n, ms in points)
    dots = "".join(f'<circle cx="{x(n)}" cy="{y(ms)}" r="4.5"/>' for n, ms in points)
    (n0, first), (n1, last) = points[0], points[-1]
    figures = text(x(n0) + 2, y(first) - 12, span(first)) + text(x(n1) - (2 if n1 == 10**SESSIONS[1] else 12), y(last) - 12, span(last), "end")
    return f'<g class="{cls}"><path d="{line}"/>{dots}{figures}{text(x(points[at][0]), y(points[at][1]) - lift, name, "middle strong")}</g>'

def plot(
    points: dict[str, list[list[float]]], # Two subjects: this library's, then the reference's
) -> str: # SVG
    "Draw both lines."
    (ours, mine), (theirs, other) = points.items()
    words = f"One page of the list, 20 rows: {theirs} from {span(other[0][1])} to {span(other[-1][1])} at {other[-1][0]:,.0f} sessions, {ours} {span(mine[-1][1])} at {mine[-1][0]:,.0f}"
    stop = "not asked further" if other[-1][0] < mine[-1][0] else ""
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{words}">',
        f"<style>{STYLE}</style>", f'<rect class="card" x=".5" y=".5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="8"/>',
        text(24, 36, "Time for one page of the list, 20 rows", "title"),
        text(24, 58, f"both axes logarithmic; {theirs} is cjm-fasthtml-workflow-session-management 0.0.15"), *axes(),
        series("b", theirs, other, 1, 34), series("a", ours, mine, 2, -28),
        f'<g class="b">{text(x(other[-1][0]) + 12, y(other[-1][1]) + 5, stop)}</g>' if stop else "", "</svg>", ""])
