"""A record's kind follows from its parts, and parts that make no kind are refused."""

import pickle

import pytest
from PIL import Image

from blip3o_hf.data.records import BadItem, Record

IMAGE = Image.new("RGB", (4, 4))


@pytest.mark.parametrize(
    ("parts", "kind"),
    [
        ({"target": IMAGE, "prompt": "a dog"}, "generation"),
        ({"target": IMAGE, "prompt": "make it red", "images": (IMAGE.copy(),)}, "editing"),
        ({"target": IMAGE, "images": (IMAGE,)}, "reconstruction"),
        ({"target": IMAGE, "prompt": "make it red", "history": ({"role": "user", "content": "hello"},)}, "generation"),
        ({"turns": (("hello", "hi"),)}, "understanding"),
        ({"turns": (("what is this?", "a dog"),), "images": (IMAGE,)}, "understanding"),
        ({"turns": (("and now?", "a cat"),), "history": ({"role": "user", "content": "hello"},)}, "understanding"),
        ({"turns": (("a", "b"),), "images": (IMAGE,), "image_words": (("dog", "grass"),)}, "understanding"),
    ],
)
def test_kinds_follow_from_the_parts(parts, kind):
    record = Record("a:1", **parts)
    assert record.kind == kind
    again = pickle.loads(pickle.dumps(record))  # as on its way from a worker
    assert (again.kind, again.history, again.image_words) == (kind, record.history, record.image_words)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({}, "must have a target image or turns. It has neither"),
        ({"images": (IMAGE,)}, "must have a target image or turns"),
        ({"target": IMAGE, "prompt": "a", "turns": (("a", "b"),)}, "must not have both a target image and turns"),
        ({"target": IMAGE, "prompt": "  "}, "A prompt must say something. Got '  '"),
        ({"target": IMAGE}, "A target image must come with a prompt"),
        ({"target": IMAGE, "images": (IMAGE.copy(),)}, "A target image must come with a prompt"),
        ({"turns": (("a", "b"),), "prompt": "c"}, "A prompt must come with a target image"),
        (
            {"target": IMAGE, "images": (IMAGE,), "history": ({"role": "user", "content": "c"},)},
            "After a history there must be a prompt or turns. There are none. Add them.",
        ),
        ({"turns": (("a",),)}, r"a user's text and its answer. Got \('a',\)"),
        ({"turns": (("a", " "),)}, "a user's text and its answer"),
        ({"turns": (("a", None),)}, "a user's text and its answer"),
    ],
)
def test_parts_that_make_no_kind_are_refused(parts, text):
    with pytest.raises(ValueError, match=text):
        Record("a:1", **parts)


def test_a_bad_item_names_its_address_also_after_pickling():
    item = pickle.loads(pickle.dumps(BadItem("a.tar:7", "no image")))
    assert (item.key, item.reason, str(item)) == ("a.tar:7", "no image", "a.tar:7: no image")
