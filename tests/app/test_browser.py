"""The app as its users meet it: the command, a real browser, every tab, and an error that does not end it.

`BLIP3O_APP_SCREENSHOT=docs/app.png python -m pytest -m slow tests/app` also takes the picture of the documentation.
"""

import io
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import blip3o_hf
from blip3o_hf import Blip3oChat, Blip3oPipeline, Blip3oReconstructionPipeline, packaged_model_path
from blip3o_hf.shapes import Scene, SceneObject, render

pytestmark = pytest.mark.slow
pytest.importorskip("gradio", minversion="6")
playwright = pytest.importorskip("playwright.sync_api")

TINY = packaged_model_path("blip3o-tiny")
START_SECONDS = 180
ANSWER_MS = 120_000
SCENE = Scene((SceneObject("circle", "red", "large", 1, 1), SceneObject("square", "blue", "large", 4, 4)), "white")


@pytest.fixture(scope="module")
def pipe():
    pipe = Blip3oPipeline.from_pretrained(TINY)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where the command serves the app."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("app")
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(blip3o_hf.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",  # as the tests, so that pixels are equal
        "GRADIO_TEMP_DIR": str(folder / "uploads"),
    }
    url = f"http://127.0.0.1:{port}"
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "blip3o_hf.cli", "app", "--port", str(port)],
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except (urllib.error.URLError, TimeoutError):
                is_late = process.poll() is not None or time.monotonic() > deadline
                assert not is_late, (folder / "log").read_text()
                time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def browser():
    installed = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    playwright.expect.set_options(timeout=ANSWER_MS)
    with playwright.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium: {error}")
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    """The app in a fresh browser session, which asks for nothing from anywhere else."""
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    page.set_default_timeout(ANSWER_MS)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.get_by_role("tab", name="Chat").wait_for()
    yield page
    page.close()
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


@pytest.fixture
def upload(tmp_path):
    path = tmp_path / "scene.png"
    Image.fromarray(render(SCENE)).save(path)
    return path


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def pixels(page, images):
    """The files behind the pictures on the page, as arrays."""
    sources = images.evaluate_all("images => images.map(image => image.src)")
    return [np.asarray(Image.open(io.BytesIO(page.request.get(source).body())).convert("RGB")) for source in sources]


def open_tab(page, name):
    page.get_by_role("tab", name=name).click()
    return page.get_by_role("tabpanel").filter(visible=True)


def say(page, kind, text, *files):
    """One turn of the conversation; waits for its answer."""
    turns = page.locator(".chat .bot.message")
    before = turns.count()
    page.get_by_label(kind, exact=True).check()
    if files:
        page.locator("input[data-testid=file-upload]").first.set_input_files(files)
        page.locator(".thumbnail-item").first.wait_for()
    box = page.get_by_placeholder("Say something")
    box.fill(text)
    box.press("Enter")
    turns.nth(before).wait_for()
    playwright.expect(box).to_have_value("")
    return turns.nth(before)


def test_generate_shows_the_pixels_of_the_pipeline(page, pipe):
    tab = open_tab(page, "Generate")
    tab.get_by_label("Prompt").fill("two red circles")
    tab.get_by_label("number input for Images").fill("2")
    tab.get_by_label("Seed").fill("5")
    tab.get_by_label("Write a plan first").check()
    tab.get_by_role("button", name="Draw", exact=True).click()
    pictures = tab.locator(".grid-wrap img")
    playwright.expect(pictures).to_have_count(2)
    expected = pipe("two red circles", num_images_per_prompt=2, generator=seeded(5, 6), plan=True)
    for shown, image in zip(pixels(page, pictures), expected.images, strict=True):
        np.testing.assert_array_equal(shown, image)
    plans = [f"Plan of seed {seed}: {plan}" for seed, plan in zip((5, 6), expected.plans, strict=True)]
    assert tab.get_by_label("Notes", exact=True).input_value().splitlines() == plans


def test_a_conversation_sees_draws_and_edits(page, pipe, upload):
    chat = Blip3oChat(pipe)
    picture = Image.open(upload)
    answer = say(page, "answer", "what color is the circle?", upload)
    playwright.expect(answer).to_contain_text(chat.ask("what color is the circle?", picture).text)
    say(page, "draw", "a green square")
    say(page, "edit the last picture", "make the square red")
    drawn = chat.draw("a green square", generator=seeded(0)[0]).image
    edited = chat.edit("make the square red", generator=seeded(0)[0]).image
    shown = pixels(page, page.locator(".chat .message img"))
    for own, expected in zip(shown, (picture, drawn, edited), strict=True):
        np.testing.assert_array_equal(own, expected)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save").click()
        page.locator(".file-preview a[download]").click()
    assert download.value.suggested_filename == "conversation.zip"
    page.get_by_role("button", name="New conversation").click()
    playwright.expect(page.locator(".chat .message")).to_have_count(0)


def test_the_chatbots_own_button_clears_what_the_model_knows_too(page):
    say(page, "draw", "a red circle")
    page.get_by_role("button", name="Clear").click()
    playwright.expect(page.locator(".chat .message")).to_have_count(0)
    page.get_by_label("edit the last picture", exact=True).check()
    page.get_by_placeholder("Say something").fill("make it blue")
    page.get_by_placeholder("Say something").press("Enter")
    page.get_by_text("This conversation has none").wait_for()


def test_edit_shows_what_the_pipeline_makes_of_the_upload(page, pipe, upload):
    tab = open_tab(page, "Edit")
    tab.locator("input[type=file]").first.set_input_files(upload)
    tab.locator(".grid-wrap img, .preview img").first.wait_for()
    tab.get_by_label("Instruction").fill("make the circle green")
    tab.get_by_role("button", name="Edit", exact=True).click()
    after = tab.locator(".after img")
    after.wait_for()
    expected = pipe("make the circle green", image=Image.open(upload), generator=seeded(0)).images[0]
    np.testing.assert_array_equal(pixels(page, after)[0], expected)


def test_reconstruct_shows_both_ways_and_how_near_they_come(page, pipe, upload):
    tab = open_tab(page, "Reconstruct")
    tab.locator("input[type=file]").first.set_input_files(upload)
    tab.get_by_role("button", name="Reconstruct", exact=True).click()
    captions = tab.locator(".caption-label")
    playwright.expect(captions).to_have_count(3)
    shown = pixels(page, tab.locator(".thumbnail-lg img").filter(visible=True))[-3:]
    reconstruct = Blip3oReconstructionPipeline.from_pipe(pipe)
    for index, mode in ((1, "autoencoder"), (2, "unified")):
        output = reconstruct(Image.open(upload), mode, generator=seeded(0))
        np.testing.assert_array_equal(shown[index], output.images[0])
        playwright.expect(captions.nth(index)).to_contain_text(f"{mode}: cosine {output.feature_cosine[0]:.3f}, PSNR")


def test_an_error_is_told_and_the_app_goes_on(page, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    tab = open_tab(page, "Edit")
    tab.locator("input[type=file]").first.set_input_files(bad)
    page.wait_for_timeout(1000)
    tab.get_by_label("Instruction").fill("make it <b>blue</b>")
    tab.get_by_role("button", name="Edit", exact=True).click()
    told = page.get_by_text("An image must be readable")
    told.wait_for()
    assert "bad.png: not a readable image" in told.inner_text()
    open_tab(page, "Chat")
    page.get_by_label("edit the last picture", exact=True).check()
    page.get_by_placeholder("Say something").fill("make it blue")
    page.get_by_placeholder("Say something").press("Enter")
    page.get_by_text("This conversation has none").wait_for()
    say(page, "draw", "a red circle")


def test_two_sessions_do_not_see_each_other(page, browser, address):
    say(page, "draw", "a red circle")
    with browser.new_context() as context:
        other = context.new_page()
        other.set_default_timeout(ANSWER_MS)
        other.goto(address)
        say(other, "answer", "what color is the circle?")
        assert other.locator(".chat .message img").count() == 0
    say(page, "answer", "what color is the circle?")
    assert page.locator(".chat .message img").count() == 1


@pytest.mark.skipif("BLIP3O_APP_SCREENSHOT" not in os.environ, reason="BLIP3O_APP_SCREENSHOT names no file")
def test_picture_of_the_documentation(page):
    say(page, "draw", "a red circle and a blue square")
    say(page, "answer", "what color is the circle?")
    page.mouse.move(0, 0)
    page.wait_for_timeout(1000)
    page.screenshot(path=os.environ["BLIP3O_APP_SCREENSHOT"], full_page=True)
