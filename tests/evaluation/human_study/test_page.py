"""The page is one file: nothing on it comes from elsewhere, and no prompt can break out of it."""

import base64
import json
import re

import pytest

from blip3o_hf.evaluation.human_study import page
from blip3o_hf.evaluation.human_study.page import page_of, write_page


def study_in(text):
    return json.loads(re.search(r"^const study = (.*);$", text, re.MULTILINE)[1])


@pytest.mark.parametrize("mode", ["server", "file"])
def test_the_page_asks_for_nothing_from_elsewhere(study, mode):
    text = page_of(study, mode)
    shown = re.sub(r"base64,[^\"]*|^//", "", text, flags=re.MULTILINE)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script[^>]+src|<iframe", shown)
    assert re.findall(r'\b(?:href|src)="([^"]*)"', text) == ["data:,"]
    assert "default-src 'none'" in text


def test_a_prompt_stays_a_text(study):
    text = page_of(study, "server")
    assert text.count("</script>") == 1 and "<b>" not in text
    assert study_in(text)["pairs"][0]["prompt"] == study.pairs[0].prompt


def test_the_page_in_one_file_has_every_picture(study, tmp_path):
    text = write_page(study, tmp_path / "study.html").read_text(encoding="utf-8")
    pictures = study_in(text)["pictures"]
    assert set(pictures) == study.images
    for name, address in pictures.items():
        kind, _, content = address.partition(",")
        assert kind == "data:image/png;base64" and base64.b64decode(content) == study.image_path(name).read_bytes()
    assert study_in(page_of(study, "server"))["pictures"] == {}


def test_a_page_too_large_for_browsers_is_refused(study, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MAX_PAGE_BYTES", 1000)
    with pytest.raises(ValueError, match=r"may have 1,000 bytes.*smaller --size or fewer prompts"):
        write_page(study, tmp_path / "study.html")
    assert not list(tmp_path.glob("*.html"))
