"""The page in a real browser: erase, equip, draw, look elsewhere, export; on a desk, on a phone, by keyboard."""

import json
import re
import shutil
import socket
import threading

import pytest
import uvicorn

from semipermeable.files import load
from semipermeable.studio.evaluating import REPORT

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium")
PATIENCE = 240_000
"""Milliseconds; continuous integration shares its two cores."""

sync_api = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium is installed; on Debian: apt-get install chromium")
    with sync_api.sync_playwright() as driver:
        # In a container there is nothing for the sandbox to stand on.
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def address(app):
    """The desk, served on a free port."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(60)
    listener.close()


def until_filled(page):
    """Wait until the page stands there with what the desk remembers."""
    page.locator("#status").get_by_text("Ready.").or_(page.locator("#status p")).first.wait_for()


@pytest.fixture
def open_page(browser, address):
    """Open the page in a window of its own; afterwards nothing may have gone wrong or gone elsewhere."""
    contexts, foreign, troubles = [], [], []

    def open_(**settings):
        context = browser.new_context(**settings)
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()

        def watch(request):
            if not request.url.startswith((address, "data:", "blob:")):
                foreign.append(request.url)

        page.on("request", watch)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda line: troubles.append(line.text) if "Content Security Policy" in line.text else None)
        page.goto(address)
        until_filled(page)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert foreign == []
    assert troubles == []


def erase(page, concept, steps):
    page.get_by_label("Concept to erase").fill(concept)
    page.get_by_label("Concept to erase").press("Enter")
    page.get_by_role("button", name="More settings").click()
    page.locator("#steps input").fill(str(steps))
    page.locator("#steps input").press("Tab")
    page.get_by_role("button", name="Erase", exact=True).click()


def go_to(page, tab):
    """Choose a tab; on a phone the last ones are behind a button."""
    if not page.get_by_role("tab", name=tab, exact=True).is_visible():
        page.get_by_role("button", name="More tabs").click()
        page.locator(".overflow-dropdown").get_by_role("button", name=tab).or_(
            page.locator(".overflow-dropdown").get_by_text(tab)
        ).first.click()
        return
    page.get_by_role("tab", name=tab, exact=True).click()


def draw(page, prompt):
    go_to(page, "Draw")
    page.locator("#draw-steps input[type=number]").fill("3")
    page.get_by_role("textbox", name="Prompt").fill(prompt)
    page.get_by_role("textbox", name="Prompt").press("Enter")


def fits(page, width):
    """Nothing on the page is wider than the window, and no picture of a gallery is cut off."""
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for picture in page.locator(".grid-container img").all():
        box = picture.bounding_box()
        assert box is None or box["x"] + box["width"] <= width


def tab_to(page, name):
    """Press the tab key until something of that name has the focus."""
    focused = "(e => e.ariaLabel || e.labels?.[0]?.innerText || e.innerText || '')(document.activeElement)"
    seen = []
    while len(seen) < 60:
        page.keyboard.press("Tab")
        seen.append(page.evaluate(focused).strip())
        if seen[-1].split("\n")[0].strip() == name:
            return
    pytest.fail(f"the tab key does not reach {name!r}: {seen}")


@pytest.mark.parametrize(("width", "height"), [(1200, 900), (390, 844)], ids=["desk", "phone"])
def test_erase_equip_draw_and_export(desk, open_page, tmp_path, width, height):
    page = open_page(viewport={"width": width, "height": height}, has_touch=width < 500)
    erase(page, "cat", 6)
    page.locator("#run").get_by_text("finished").wait_for()
    page.locator("#previews img").nth(3).wait_for()
    page.screenshot(path=tmp_path / "erase.png", full_page=True)
    fits(page, width)

    draw(page, "a neon icon of a cat")
    page.locator("#bars").get_by_text("γ = 1.00").wait_for()
    assert page.locator("#bars mark").inner_text() == "cat"
    page.locator("#slider img").nth(1).wait_for()
    page.screenshot(path=tmp_path / "draw.png", full_page=True)
    fits(page, width)
    switch = page.get_by_role("checkbox", name="cat", exact=True)
    assert switch.is_checked()
    switch.click()
    page.get_by_role("button", name="Draw before and after").click()
    page.locator("#bars").get_by_text("No membrane was switched on").wait_for()
    assert not desk.shelf.get("cat.safetensors").on

    go_to(page, "Elsewhere")
    page.get_by_role("button", name="Redraw neighbours").click()
    page.locator("#neighbours td").first.wait_for()
    page.locator("#changed img").nth(3).wait_for()
    page.screenshot(path=tmp_path / "elsewhere.png", full_page=True)
    fits(page, width)

    go_to(page, "Evaluate")
    page.get_by_role("button", name="Evaluate", exact=True).wait_for()
    fits(page, width)

    go_to(page, "Export")
    page.get_by_role("radio", name=re.compile("^kohya")).check()
    page.get_by_role("button", name="Make the file").click()
    page.locator("#download").get_by_text("cat-kohya.safetensors").wait_for()
    page.screenshot(path=tmp_path / "export.png", full_page=True)
    with page.expect_download() as download:
        page.locator("#download").click()
    download.value.save_as(tmp_path / "downloaded.safetensors")
    assert load(tmp_path / "downloaded.safetensors").name == "cat"
    fits(page, width)


def test_a_reload_loses_nothing_and_a_stopped_run_goes_on(desk, open_page):
    page = open_page(viewport={"width": 1200, "height": 900}, color_scheme="dark")
    erase(page, "cat", 2000)
    page.locator("#run").get_by_text(re.compile(r"step \d+ of 2000")).wait_for()
    page.reload()
    until_filled(page)
    page.locator("#run").get_by_text(re.compile(r"step \d+ of 2000")).wait_for()
    page.locator("#previews img").first.wait_for()
    page.get_by_role("button", name="Stop", exact=True).click()
    page.locator("#run").get_by_text("press Resume to go on").wait_for()
    reached = desk.run.step
    page.reload()
    until_filled(page)
    page.get_by_role("button", name="Resume").click()
    page.locator("#run").get_by_text("running").or_(page.locator("#run").get_by_text("of 2000. ")).first.wait_for()
    while desk.run.state != "running" or desk.run.step <= reached:
        assert desk.run.step < 2000, "the run ended before it could be stopped"
        page.wait_for_timeout(200)
    page.get_by_role("button", name="Stop", exact=True).click()
    page.locator("#run").get_by_text("press Resume to go on").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_as_light_or_dark_as_the_system(open_page, scheme):
    page = open_page(viewport={"width": 1200, "height": 900}, color_scheme=scheme)

    def brightness(selector, colour):
        text = page.evaluate(f"getComputedStyle(document.querySelector({selector!r})).{colour}")
        return sum(map(float, re.findall(r"[\d.]+", text)[:3])) / 3

    ground = brightness("body", "backgroundColor")
    assert (ground < 60) == (scheme == "dark")
    for selector in (".spm h1", "#status p", "#concept input"):
        assert abs(brightness(selector, "color") - ground) > 90, selector


def test_a_reload_keeps_what_was_entered(desk, open_page):
    page = open_page(viewport={"width": 1200, "height": 900})
    page.get_by_label("Concept to erase").fill("my dragon")
    page.get_by_label("Concept to erase").press("Enter")
    page.get_by_role("button", name="More settings").click()
    page.get_by_label("Also called").fill("wyrm, drake")
    page.locator("#steps input").fill("17")
    go_to(page, "Draw")
    page.get_by_role("textbox", name="Prompt").fill("a prompt that was not drawn")
    page.locator("#draw-steps input[type=number]").fill("7")
    page.locator("#draw-steps input[type=number]").press("Tab")
    page.get_by_label("Hold every gate open").check()
    while desk.setting("hold", False) is not True or desk.setting("steps", 0) != 7 or desk.setting("tab", "") != "Draw":
        page.wait_for_timeout(100)
    assert desk.setting("prompt", "") == "a prompt that was not drawn"
    page.reload()
    until_filled(page)
    drawing = page.get_by_role("tab", name="Draw", exact=True)
    sync_api.expect(drawing).to_have_attribute("aria-selected", "true", timeout=PATIENCE)
    prompt = page.get_by_role("textbox", name="Prompt")
    sync_api.expect(prompt).to_have_value("a prompt that was not drawn", timeout=PATIENCE)
    sync_api.expect(page.locator("#draw-steps input[type=number]")).to_have_value("7")
    sync_api.expect(page.get_by_label("Hold every gate open")).to_be_checked()
    go_to(page, "Erase")
    sync_api.expect(page.get_by_label("Concept to erase")).to_have_value("my dragon")
    page.get_by_role("button", name="More settings").click()
    sync_api.expect(page.get_by_label("Also called")).to_have_value("wyrm, drake")
    sync_api.expect(page.locator("#steps input")).to_have_value("17")


def test_a_model_is_chosen_a_shipped_membrane_taken_its_strength_set_and_a_report_opened(desk, open_page):
    results = desk.work.place("results", "one")
    for eraser, value in (("noop", 0.0), ("spm", 0.9)):
        (results / eraser).mkdir(parents=True)
        figures = {"ua": {"value": value, "interval": [0.0, 1.0]}}
        (results / eraser / "result.json").write_text(json.dumps({"eraser": eraser, "figures": figures}))
    (results / REPORT).write_text("<html><body>the report of a test</body></html>")
    desk.remember(results="one")
    page = open_page(viewport={"width": 1200, "height": 900})
    page.get_by_label("Model", exact=True).click()
    page.get_by_role("option", name="emoji").click()
    go_to(page, "Draw")
    page.locator("#shipped input").fill("horse")
    page.locator("#shipped input").press("Enter")
    page.get_by_role("checkbox", name="horse", exact=True).wait_for()
    assert desk.model == "emoji"
    strength = page.get_by_label("number input for strength of horse")
    strength.fill("1.5")
    strength.press("Tab")
    while desk.shelf.get("horse.safetensors").strength != 1.5:
        page.wait_for_timeout(100)
    go_to(page, "Evaluate")
    page.locator("#figures td").get_by_text("0.900").wait_for()
    with page.expect_popup() as report:
        page.get_by_role("link", name="Open the report").click()
    report.value.get_by_text("the report of a test").wait_for()


def test_a_mistake_is_told_as_a_sentence(open_page):
    page = open_page(viewport={"width": 390, "height": 844})
    page.get_by_role("button", name="Erase", exact=True).click()
    page.get_by_text("a concept needs a name").wait_for()
    draw(page, "")
    page.locator("#status").get_by_text("the prompt is empty").wait_for()


def test_a_concept_is_erased_drawn_and_exported_with_the_keyboard_alone(desk, open_page):
    page = open_page(viewport={"width": 1200, "height": 900})
    tab_to(page, "Concept to erase")
    page.keyboard.type("cat")
    page.keyboard.press("Enter")
    tab_to(page, "More settings")
    page.keyboard.press("Enter")
    tab_to(page, "Steps")
    page.keyboard.type("6")
    tab_to(page, "Erase")
    page.keyboard.press("Enter")
    page.locator("#run").get_by_text("finished").wait_for()
    # Gradio's tabs are stops of the tab key; arrow keys do not move between them.
    page.evaluate("document.activeElement.blur()")
    tab_to(page, "Draw")
    page.keyboard.press("Enter")
    tab_to(page, "cat")
    page.keyboard.press("Space")
    while desk.shelf.get("cat.safetensors").on:
        page.wait_for_timeout(100)
    page.keyboard.press("Space")
    while not desk.shelf.get("cat.safetensors").on:
        page.wait_for_timeout(100)
    tab_to(page, "Prompt")
    page.keyboard.type("a neon icon of a cat")
    page.keyboard.press("Enter")
    page.locator("#bars").get_by_text("γ = 1.00").wait_for()
    page.evaluate("document.activeElement.blur()")
    tab_to(page, "Export")
    page.keyboard.press("Enter")
    tab_to(page, "Make the file")
    page.keyboard.press("Enter")
    page.locator("#download").get_by_text("cat.safetensors").wait_for()
