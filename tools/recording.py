"""Make the recording in the README: a real browser in front of the real demo, which is refreshed, killed, and gone on with elsewhere."""

import io
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from playwright.sync_api import Browser, Page, sync_playwright

FILE = Path(__file__).resolve().parents[1] / "docs" / "recording.gif"
SIZE, CAPTION = (900, 520), 44 # Pixels: of the page, and of the strip below it
EVERY_S, SHOWN_MS = 0.25, 160 # Between two frames as they are taken, and as they are shown
COLORS = 64

class Demo:
    "A server of the demo that can be killed and started again."
    def __init__(self, folder: str):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.command = [str(Path(sys.executable).with_name("cjm-workflow-sessions")), "demo", "--data", folder, "--port", str(self.port)]
        self.address = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL)
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0: return
            if self.process.poll() is not None: sys.exit("the demo did not start")
            time.sleep(0.05)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

class Film:
    "Frames with a caption below."
    def __init__(self):
        self.frames: list[Image.Image] = []
        self.font = ImageFont.load_default(size=20)

    def take(self, page: Page, caption: str, seconds: float) -> None:
        "Film a page for some time."
        end = time.monotonic() + seconds
        while True:
            began = time.monotonic()
            picture = Image.open(io.BytesIO(page.screenshot()))
            frame = Image.new("RGB", (SIZE[0], SIZE[1] + CAPTION), "#1f2937")
            frame.paste(picture, (0, 0))
            ImageDraw.Draw(frame).text((16, SIZE[1] + 10), caption, fill="white", font=self.font)
            self.frames.append(frame)
            if began + EVERY_S >= end: return
            time.sleep(max(0.0, began + EVERY_S - time.monotonic()))

    def save(self, path: Path) -> None:
        "Write the frames with one palette, so that only what changes is stored."
        palette = self.frames[len(self.frames) // 2].quantize(COLORS)
        first, *others = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in self.frames)
        first.save(path, save_all=True, append_images=others, duration=SHOWN_MS, loop=0, optimize=True)

def play(film: Film, browser: Browser, demo: Demo) -> None:
    "Act the story."
    page = browser.new_page(viewport={"width": SIZE[0], "height": SIZE[1]})
    page.goto(demo.address)
    film.take(page, "A workflow of five steps, made with FastHTML", 1.5)
    page.locator("main").get_by_role("button", name="Start an ingest").click()
    film.take(page, "500 files are to be read", 1.5)
    page.get_by_role("button", name="Start", exact=True).click()
    page.locator('[data-following="on"]').wait_for()
    film.take(page, "A job reads them; the page follows", 2)
    page.reload()
    film.take(page, "Refresh: nothing is lost", 1.5)
    demo.kill()
    film.take(page, "kill -9 of the server: the page waits", 2)
    demo.start()
    film.take(page, "The server is back: the job goes on where it stopped", 4)
    page.context.close()
    other = browser.new_page(viewport={"width": SIZE[0], "height": SIZE[1]}, color_scheme="dark")
    other.goto(demo.address)
    film.take(other, "The tab is closed. Another browser finds the job", 2)
    other.get_by_role("button", name="Resume").first.click()
    other.get_by_role("heading", name="Review the result").wait_for(timeout=60_000)
    film.take(other, "Read: look the result over", 1.5)
    other.get_by_role("button", name="Continue").click()
    other.get_by_role("button", name="Commit", exact=True).click()
    other.get_by_role("heading", name="Committing").wait_for()
    film.take(other, "The commit is a job, too", 2.5)
    other.get_by_role("heading", name="Committed", exact=True).wait_for(timeout=60_000)
    film.take(other, "500 of 500 files, each exactly once", 3)

def main() -> None:
    path = shutil.which("chromium") or sys.exit("no chromium: run `make browser`")
    film = Film()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        demo = Demo(folder)
        demo.start()
        try: play(film, playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"]), demo)
        finally: demo.kill()
    film.save(FILE)
    print(f"recording: {FILE.name}, {len(film.frames)} frames, {FILE.stat().st_size:,} bytes")

if __name__ == "__main__": main()
