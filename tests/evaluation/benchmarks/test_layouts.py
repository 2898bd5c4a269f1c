"""The folders of UniGenBench++, MJHQ-30K, ImgEdit-Bench and GEdit-Bench, and what is found wrong in them."""

import json

import pytest
from PIL import Image

from blip3o_hf.evaluation.benchmarks.editing import GEditBenchmark, ImgEditBenchmark
from blip3o_hf.evaluation.benchmarks.mjhq import MjhqBenchmark, by_category
from blip3o_hf.evaluation.benchmarks.unigenbench import UniGenBenchmark, UniGenChineseBenchmark
from blip3o_hf.hub.results import Figure

UNIGEN = 'index,prompt,sub_dims\n0,"a cat, and a dog","{""style"": [1]}"\n1,eine Katze,{}\n'
MJHQ = {
    "1f": {"category": "food", "prompt": "an apple"},
    "2a": {"category": "animals", "prompt": "a bear"},
    "3c": {"category": "food", "prompt": "a cake"},
}


def unigen(folder, kind=UniGenBenchmark, content=UNIGEN):
    path = folder / "prompts.csv"
    path.write_text(content)
    return kind(path)


def mjhq(folder, content=MJHQ):
    path = folder / "meta_data.json"
    path.write_text(json.dumps(content))
    return MjhqBenchmark(path)


def edits(folder, kind, **settings):
    Image.new("RGB", (20, 10)).save(folder / "input.png")
    rows = [
        {"key": key, "edit_task": "color_alter", "instruction": f"make it {key}", "image": "input.png", **settings}
        for key in ("red", "blue")
    ]
    path = folder / "edits.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return kind(path)


LAYOUTS = {
    "unigen": (unigen, [f"en/blip3o/{index}_{number}.png" for index in (0, 1) for number in range(4)]),
    "unigen-zh": (
        lambda folder: unigen(folder, UniGenChineseBenchmark),
        [f"zh/blip3o/{index}_{number}.png" for index in (0, 1) for number in range(4)],
    ),
    "mjhq": (mjhq, ["animals/2a.png", "food/1f.png", "food/3c.png"]),
    "imgedit": (lambda folder: edits(folder, ImgEditBenchmark), ["blue.png", "red.png"]),
    "gedit": (
        lambda folder: edits(folder, GEditBenchmark, language="cn"),
        ["blip3o/fullset/color_alter/cn/blue.png", "blip3o/fullset/color_alter/cn/red.png"],
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_round_trip_and_damage_is_named(name, tmp_path, laid_out, files):
    make, expected = LAYOUTS[name]
    benchmark = make(tmp_path)
    folder = laid_out(benchmark)
    assert files(folder) == expected
    last = folder / expected[-1]
    last.write_bytes(last.read_bytes()[:50])
    assert benchmark.problems(folder)[0].startswith(f"{expected[-1]} is damaged")
    last.rename(last.with_suffix(".webp"))
    assert benchmark.problems(folder) == [
        f"{expected[-1]} is missing.",
        f"{expected[-1][:-4]}.webp is a duplicate of {expected[-1]}.",
    ]
    assert benchmark.problems(tmp_path / "nothing") == [f"There is no folder {tmp_path / 'nothing'}."]


def test_generated_pictures_have_one_size_and_edits_may_have_others(tmp_path, laid_out):
    benchmark = mjhq(tmp_path)
    folder = laid_out(benchmark)
    Image.new("RGB", (4, 4)).save(folder / "food" / "3c.png")
    assert benchmark.problems(folder) == ["food/3c.png has 4 x 4 pixels, most have 16 x 16."]


def test_edits_may_have_any_size(tmp_path, laid_out):
    benchmark = edits(tmp_path, ImgEditBenchmark)
    folder = laid_out(benchmark)
    Image.new("RGB", (4, 4)).save(folder / "red.png")
    assert benchmark.problems(folder) == []
    assert benchmark.items[0].images == (tmp_path / "input.png",)


def test_unigen_rows_are_kept(tmp_path):
    item = unigen(tmp_path).items[0]
    assert (item.id, item.prompt, item.row["sub_dims"]) == ("0", "a cat, and a dog", {"style": [1]})


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("index,prompt\n0,a\n", "must have the columns index, prompt, sub_dims"),
        ("index,prompt,sub_dims\n0,a,{\n", "`sub_dims` must be JSON"),
        ("index,prompt,sub_dims\nx,a,{}\n", "must have a number and a text"),
        ("index,prompt,sub_dims\n0,,{}\n", "must have a number and a text"),
        ("index,prompt,sub_dims\n0,a\n", "`sub_dims` must be JSON"),
        ("index,prompt,sub_dims\n0,a,{}\n0,b,{}\n", "has '0' twice"),
    ],
)
def test_unigen_rows_that_are_none_are_refused(tmp_path, content, text):
    with pytest.raises(ValueError, match=text):
        unigen(tmp_path, content=content)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([], "are a mapping by id"),
        ({"a": "x"}, "must have a category and a prompt"),
        ({"a": {"category": "../up", "prompt": "x"}}, "A category names a folder"),
        ({"a/b": {"category": "food", "prompt": "x"}}, "has 'a/b'"),
    ],
)
def test_mjhq_rows_that_are_none_are_refused(tmp_path, content, text):
    with pytest.raises(ValueError, match=text):
        mjhq(tmp_path, content)


class Counts:
    name = "number of pairs"

    def __call__(self, drawn, real):
        assert all(a.parent.name == b.stem for a, b in zip(drawn, real, strict=True))
        return Figure(float(len(drawn)))


def test_mjhq_distances_are_taken_by_category(tmp_path, draw):
    benchmark = mjhq(tmp_path)
    assert {name: [item.id for item in items] for name, items in by_category(benchmark.items).items()} == {
        "animals": ["2a"],
        "food": ["1f", "3c"],
    }
    pictures = draw(benchmark)
    assert benchmark.score(pictures) == []
    with pytest.raises(ValueError, match="Give `reference`, their folder"):
        benchmark.score(pictures, distance=Counts())
    for name, row in MJHQ.items():
        path = tmp_path / "real" / row["category"] / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    scores = benchmark.score(pictures, distance=Counts(), reference=tmp_path / "real")
    assert [(score.name, score.figure.value, score.total) for score in scores] == [
        ("MJHQ-30K pictures, number of pairs: overall", 3, 3),
        ("MJHQ-30K pictures, number of pairs: animals", 1, 1),
        ("MJHQ-30K pictures, number of pairs: food", 2, 2),
    ]
    (tmp_path / "real" / "food" / "3c.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"There is none at .*food/3c with .png, .jpg"):
        benchmark.score(pictures, distance=Counts(), reference=tmp_path / "real")


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"language": "de"}, ValueError, r"must have a language \(en, cn\)"),
        ({"language": "en", "edit_task": "../up"}, ValueError, "that can name files"),
        ({"language": "en", "image": "missing.png"}, FileNotFoundError, "must have its input image"),
        ({"language": "en", "key": "same"}, ValueError, "has 'en-same' twice"),
        ({"language": "en", "instruction": None}, ValueError, "must have `instruction`"),
    ],
)
def test_edits_that_are_none_are_refused(tmp_path, settings, error, text):
    with pytest.raises(error, match=text):
        edits(tmp_path, GEditBenchmark, **settings)


def test_a_comma_too_many_and_a_task_that_leads_out_are_named(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text("index,prompt,sub_dims\n1,a cat,{},more\n")
    with pytest.raises(
        ValueError, match=r"A comma in a prompt needs quotes\. .*prompts\.csv, line 2 has \['more'\] too"
    ):
        UniGenBenchmark(path)
    Image.new("RGB", (8, 8)).save(tmp_path / "in.png")
    row = {"key": "k", "edit_task": "..", "instruction": "make it red", "image": "in.png", "language": "en"}
    path = tmp_path / "edits.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(ValueError, match=r"a key and an edit_task that can name files\. .* 'k' and '\.\.'\."):
        GEditBenchmark(path)
