"""The page in a real browser: what a visitor types, sees, drops, stops and is told.

The pictures are those of a tiny pipeline, held between passes so that there is something to watch.
That a prompt draws a picture is always tested; the other states of the page take long.
"""

import base64
import re
import shutil
import threading

import pytest

from visual_ar.accel.sequential import SequentialDecoding
from visual_ar.app.live_drawing import PREVIEW_SECONDS
from visual_ar.app.web_demo import application, build
from visual_ar.png import read_recipe

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium"),
    # A browser between two busy processes may lose an event; what is broken fails three times.
    pytest.mark.flaky(reruns=2, only_rerun=["TimeoutError"]),
]

WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}
PATIENCE = 90_000  # milliseconds; machines that run tests are busy
POLL = 200  # milliseconds; by the clock, since a browser without a screen may draw no frame
DROP = """([data, name]) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], name, { type: 'image/png' }));
  const options = { dataTransfer, bubbles: true, cancelable: true };
  document.body.dispatchEvent(new DragEvent('drop', options));
}"""
PICTURES = ".pictures .grid-wrap img"


class Pace:
    """Lets passes of the model through: all of them, or as many as a test allows."""

    def __init__(self):
        self._held, self._allowed = False, threading.Semaphore(0)

    def hold(self):
        self._held, self._allowed = True, threading.Semaphore(0)

    def allow(self, passes):
        self._allowed.release(passes)

    def free(self):
        self._held = False
        self._allowed.release(1_000)

    def wait(self):
        if self._held:
            self._allowed.acquire()


@pytest.fixture(scope="module")
def pace():
    return Pace()


@pytest.fixture(scope="module")
def address(make_tiny_pipeline, serving, pace, tmp_path_factory):
    """Where the page of a tiny text pipeline is served."""
    step = SequentialDecoding.step

    def paced(self, state):
        pace.wait()
        return step(self, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SequentialDecoding, "step", paced)
        patch.setattr("visual_ar.app.shelf.bundled", dict)
        patch.setenv("VISUAL_AR_CACHE", str(tmp_path_factory.mktemp("cache")))
        with serving(application(build(make_tiny_pipeline(text=True), "tiny"))) as url:
            yield url


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
            timeout=PATIENCE,
        )
        yield browser
        browser.close()


@pytest.fixture(params=["desktop", pytest.param("phone", marks=pytest.mark.long)])
def visitor(request, browser, address, pace):
    """The open page at the width of a desktop and of a phone."""
    pace.free()
    width, height = WIDTHS[request.param]
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    page.wait_for_selector(".subject input[list=known-subjects]")
    yield page
    context.close()


def says(page, text):
    """Waits for a text on the page."""
    page.wait_for_function("text => document.body.innerText.includes(text)", arg=text, polling=POLL)


def shows(page, count, width):
    """Waits for that many loaded pictures of a width; its failure says what there is instead."""
    try:
        page.wait_for_function(
            "([count, width]) => [...document.querySelectorAll('.pictures img')].filter("
            "(image) => image.offsetParent && image.naturalWidth === width).length >= count",
            arg=[count, width],
            polling=POLL,
        )
    except sync_api.TimeoutError as error:
        state = "(image) => [image.src, !!image.offsetParent, image.complete, image.naturalWidth]"
        there = page.evaluate(f"[...document.querySelectorAll('.pictures img')].map({state})")
        error.add_note(f"there were {there}")
        raise


def field(page, label):
    return page.get_by_label(label, exact=True).first


def press(page, name):
    page.get_by_role("button", name=name, exact=True).locator("visible=true").click()


def turn_to(page, tab):
    """Opens a tab, behind the menu of tabs that do not fit where it is."""
    button = page.get_by_role("tab", name=tab, exact=True).locator("visible=true")
    if button.count() == 0:
        page.locator(".overflow-menu button").first.click()
        button = page.locator(".overflow-dropdown button", has_text=tab)
    button.first.click()


def test_a_prompt_draws_a_picture(visitor):
    field(visitor, "Prompt").fill("green apple")
    field(visitor, "Prompt").press("Enter")
    says(visitor, "instead of 16")
    shows(visitor, 1, 8)


@pytest.mark.long
def test_a_picture_is_typed_watched_kept_and_restored(visitor, pace, tmp_path):
    pace.hold()
    field(visitor, "Prompt").fill("green apple")
    field(visitor, "Prompt").press("Enter")
    pace.allow(4)
    picture = visitor.locator(PICTURES).first
    before = picture.get_attribute("src")
    visitor.wait_for_timeout(3000 * PREVIEW_SECONDS)  # no sooner is another preview due
    pace.allow(4)
    sync_api.expect(picture).not_to_have_attribute("src", before, timeout=PATIENCE)
    pace.free()
    says(visitor, "instead of 16")
    sync_api.expect(picture).to_have_attribute("src", re.compile("green-apple"), timeout=PATIENCE)
    visitor.wait_for_function(
        "query => document.querySelector(query)?.naturalWidth === 8", arg=PICTURES, polling=POLL
    )

    kept = tmp_path / "kept.png"
    kept.write_bytes(visitor.request.get(picture.get_attribute("src")).body())
    recipe = read_recipe(kept)
    assert recipe["prompt"] == "green apple" and recipe["model"] == "tiny"

    field(visitor, "Prompt").fill("tree")
    field(visitor, "Seed").fill("1")
    visitor.evaluate(DROP, [base64.b64encode(kept.read_bytes()).decode(), "kept.png"])
    sync_api.expect(field(visitor, "Prompt")).to_have_value("green apple", timeout=PATIENCE)
    sync_api.expect(field(visitor, "Seed")).to_have_value(str(recipe["seed"]), timeout=PATIENCE)
    assert field(visitor, "Lock seed").is_checked()


@pytest.mark.long
def test_two_methods_race(visitor):
    turn_to(visitor, "Compare")
    second = field(visitor, "Second method")
    second.fill("exact-match:window=4")
    second.press("Enter")
    press(visitor, "Compare")
    says(visitor, "Identical: both give every token the noise")
    says(visitor, "times as fast as")
    says(visitor, "lossless")
    shows(visitor, 6, 384)


@pytest.mark.long
def test_stop_ends_a_drawing_and_the_next_one_starts(visitor, pace):
    pace.hold()
    press(visitor, "Generate")
    pace.allow(4)
    says(visitor, "sequential decoding needs")
    press(visitor, "Stop")
    says(visitor, "Stopped.")
    pace.free()
    visitor.wait_for_timeout(3000)
    assert "Stopped." in visitor.inner_text("body")
    press(visitor, "Generate")
    says(visitor, "instead of 16")


@pytest.mark.long
def test_what_goes_wrong_is_a_sentence(visitor, tmp_path):
    field(visitor, "Prompt").fill(" ")
    field(visitor, "Prompt").press("Control+Enter")
    says(visitor, "prompt must be text that is not empty, got ''")
    text = base64.b64encode(b"no picture").decode()
    visitor.evaluate(DROP, [text, "text.png"])
    says(visitor, "the upload must be a picture")
    assert field(visitor, "Seed").is_visible()
    covers = visitor.locator(".subject .error")
    assert covers.count() == 0, "an error covers controls"


@pytest.mark.long
def test_a_cell_is_clicked_and_its_code_swapped(visitor, tmp_path):
    from PIL import Image

    Image.linear_gradient("L").convert("RGB").save(tmp_path / "ramp.png")
    turn_to(visitor, "Tokens")
    visitor.locator(".upload-zone input[type=file]").set_input_files(tmp_path / "ramp.png")
    says(visitor, "ramp")
    press(visitor, "Look")
    says(visitor, "4 x 4 = 16")
    image = visitor.locator(".edited img")
    box = image.bounding_box()
    image.click(position={"x": box["width"] * 0.6, "y": box["height"] * 0.3})
    says(visitor, "Row 1, column 2: code")


@pytest.mark.long
def test_every_tab_fits_its_width_in_light_and_dark(visitor, address):
    for theme in ("light", "dark"):
        visitor.goto(f"{address}?__theme={theme}")
        visitor.wait_for_selector(".subject input[list=known-subjects]")
        assert visitor.evaluate("document.body.classList.contains('dark')") == (theme == "dark")
        for tab in ("Generate", "Compare", "Tokens", "Benchmark", "Models"):
            turn_to(visitor, tab)
            visitor.wait_for_timeout(500)
            excess = "document.documentElement.scrollWidth - window.innerWidth"
            assert visitor.evaluate(excess) <= 0, f"{tab} is too wide"
