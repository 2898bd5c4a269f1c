"""Both pages as raters meet them, in a real browser: keyboard, undo, going on, and the file that is saved.

`BLIP3O_STUDY_SCREENSHOT=docs/human_study.png python -m pytest -m slow tests/evaluation/human_study` also takes the
picture of the documentation.
"""

import os
import shutil

import pytest
from PIL import Image
from tests.evaluation.human_study.conftest import SYSTEMS
from tests.evaluation.human_study.test_serving import Running

from blip3o_hf.evaluation.human_study.answers import answers_of
from blip3o_hf.evaluation.human_study.making import make_study
from blip3o_hf.evaluation.human_study.order import questions_of, sides_of
from blip3o_hf.evaluation.human_study.page import write_page
from blip3o_hf.shapes import Scene, SceneObject, render

pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def browser():
    installed = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with playwright.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium: {error}")
        yield browser
        browser.close()


@pytest.fixture
def shapes(tmp_path):
    """A study of drawn shapes with ties."""
    words = [("red", "circle", "blue", "square"), ("green", "triangle", "red", "cross")]
    words += [("yellow", "circle", "blue", "cross")]
    prompts = []
    for number, (one, first, two, second) in enumerate(words):
        for system, (x, y) in zip(SYSTEMS, ((4, 1), (1, 4)), strict=True):
            objects = (SceneObject(first, one, "large", 1, 1), SceneObject(second, two, "large", x, y))
            (tmp_path / system).mkdir(exist_ok=True)
            Image.fromarray(render(Scene(objects, "white"))).save(tmp_path / system / f"{number:05d}.png")
        prompts.append(f"a {one} {first} to the left of a {two} {second}")
    (tmp_path / "prompts.txt").write_text("\n".join(prompts) + "\n")
    folders = {system: tmp_path / system for system in SYSTEMS}
    study, _, _ = make_study(tmp_path / "study", folders, tmp_path / "prompts.txt", seed=4, control=2, ties=True)
    return study


def begin(page, name):
    page.get_by_label("Your name").fill(name)
    page.get_by_role("button", name="Begin, or go on").click()
    shown(page)


def shown(page):
    """The names or addresses of both pictures, once they are there."""
    images = page.locator(".choice img")
    playwright.expect(images.first).to_be_visible()
    return images.evaluate_all("images => images.map(image => image.getAttribute('src'))")


def counted(page, number):
    playwright.expect(page.locator("#count")).to_have_text(f"{number} of 20 answered")
    shown(page)


def expected_sides(study, rater, number):
    question = questions_of(study, rater)[number]
    return [f"images/{name}" for name in sides_of(study, rater, question)], question


def test_the_served_page(browser, shapes):
    running = Running(shapes)
    page = browser.new_page(viewport={"width": 1100, "height": 860})
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(error))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    address = f"http://127.0.0.1:{running.server.server_port}/"
    try:
        page.goto(address)
        begin(page, "ann")
        for number, key in enumerate(("1", "2", "0", "1")):
            sides, question = expected_sides(shapes, "ann", number)
            assert shown(page) == sides, "the script has the order of order.py"
            assert page.locator("#prompt").inner_text() == shapes.by_id[question.pair].prompt
            if number == 1 and "BLIP3O_STUDY_SCREENSHOT" in os.environ:
                page.mouse.move(0, 0)
                page.screenshot(path=os.environ["BLIP3O_STUDY_SCREENSHOT"])
            page.keyboard.press(key)
            counted(page, number + 1)
        page.keyboard.press("u")
        counted(page, 3)
        assert shown(page) == expected_sides(shapes, "ann", 3)[0]
        page.get_by_role("button", name="right").click()
        counted(page, 4)
        page.reload()
        begin(page, "ann")
        counted(page, 4)
        playwright.expect(page.locator(".save").first).to_be_hidden()
        for number in range(4, 20):
            page.keyboard.press("1")
            if number < 19:
                counted(page, number + 1)
        page.get_by_text("That was the last question").wait_for()
        assert page.locator(".save:visible").count() == 0
        choices = {answer.question: answer.choice for answer in answers_of(shapes, [])[0]}
        given = [choices[question] for question in questions_of(shapes, "ann")]
        assert given == ["left", "right", "tie", "right"] + ["left"] * 16
        assert errors == [] and all(url.startswith((address, "data:")) for url in asked)
    finally:
        page.close()
        running.close()


def test_a_server_that_is_gone_loses_no_answer(browser, shapes):
    running = Running(shapes)
    page = browser.new_page()
    try:
        page.goto(f"http://127.0.0.1:{running.server.server_port}/")
        page.get_by_label("Your name").fill("Not a name")
        page.get_by_role("button", name="Begin, or go on").click()
        assert page.locator("#start").is_visible()
        begin(page, "ann")
    finally:
        running.close()
    page.keyboard.press("1")
    page.get_by_text("This answer was not kept. The server does not answer. Try again.").wait_for()
    playwright.expect(page.locator("#count")).to_have_text("0 of 20 answered")
    page.close()


def test_the_page_in_one_file(browser, shapes, tmp_path):
    path = write_page(shapes, tmp_path / "study.html")
    context = browser.new_context(accept_downloads=True)
    page = context.new_page()
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(error))
    page.goto(path.as_uri())
    begin(page, "bob")
    for number, key in enumerate("1201"):
        page.keyboard.press(key)
        counted(page, number + 1)
    page.keyboard.press("u")
    counted(page, 3)
    page.reload()
    begin(page, "bob")
    counted(page, 3)
    page.keyboard.press("2")
    counted(page, 4)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save my answers").first.click()
    assert download.value.suggested_filename == "bob.jsonl"
    download.value.save_as(tmp_path / "bob.jsonl")
    answers, notes = answers_of(shapes, [tmp_path / "bob.jsonl"])
    choices = {answer.question: answer.choice for answer in answers}
    assert [choices[question] for question in questions_of(shapes, "bob")[:4]] == ["left", "right", "tie", "right"]
    assert notes == [] and errors == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked)
    context.close()
