"""Shoot docs/images/studio-erase.png and studio-draw.png: erase the cat in the studio's page, then draw it.

    python scripts/shoot_studio.py docs/images

Needs the extra "studio", playwright and a Chromium on the path. The settings are the page's own; about a minute on two
cores.
"""

import shutil
import sys
import tempfile
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from semipermeable.studio.desk import Desk
from semipermeable.studio.running import run_studio
from semipermeable.studio.workfolder import WorkFolder

CONCEPT, PROMPT = "cat", "a neon icon of a kitty"
PATIENCE = 240_000
"""Milliseconds for each thing that is waited for."""
SETTLED = 2_000
"""Milliseconds after which plots and pictures stand still."""


def erase(page: Page, target: Path) -> None:
    """Erase as somebody would who came for the first time."""
    page.locator("#status").get_by_text("Ready.").wait_for()
    page.get_by_label("Concept to erase").fill(CONCEPT)
    page.get_by_label("Concept to erase").press("Enter")
    page.get_by_role("button", name="Erase", exact=True).click()
    page.locator("#run").get_by_text("finished").wait_for()
    page.locator("#previews img").nth(3).wait_for()
    shoot(page, target / "studio-erase.png")


def draw(page: Page, target: Path) -> None:
    """Draw what was erased."""
    page.get_by_role("tab", name="Draw", exact=True).click()
    page.get_by_role("textbox", name="Prompt").fill(PROMPT)
    page.get_by_role("textbox", name="Prompt").press("Enter")
    page.locator("#bars").get_by_text("γ = 1.00").wait_for()
    page.locator("#slider img").nth(1).wait_for()
    shoot(page, target / "studio-draw.png")


def shoot(page: Page, target: Path) -> None:
    """Write the whole page as a picture of 256 colours, a third of the bytes."""
    page.wait_for_timeout(SETTLED)
    page.screenshot(path=target, full_page=True)
    Image.open(target).convert("RGB").quantize(256).save(target, optimize=True)


def main(target: Path) -> None:
    """Serve a studio in a folder of its own, and shoot it."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("no Chromium on the path; on Debian: apt-get install chromium")
    target.mkdir(parents=True, exist_ok=True)
    told: SimpleQueue[str] = SimpleQueue()
    with tempfile.TemporaryDirectory() as work:
        desk = Desk(WorkFolder(Path(work)), [], device="cpu")
        Thread(target=run_studio, args=(desk, "127.0.0.1", 0, told.put), daemon=True).start()
        address = next(word for word in told.get(timeout=PATIENCE / 1000).split() if word.startswith("http"))
        with sync_playwright() as driver:
            # In a container there is nothing for the sandbox to stand on.
            started = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
            page = started.new_page(viewport={"width": 1040, "height": 900})
            page.set_default_timeout(PATIENCE)
            page.goto(address)
            erase(page, target)
            draw(page, target)
            started.close()
        desk.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
