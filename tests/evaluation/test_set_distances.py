"""Folders of pictures and their distances: every picture counts, features are kept, and all is written down."""

import shutil

import numpy as np
import pytest
from PIL import Image

from blip3o_hf.cli import main
from blip3o_hf.evaluation import cached_features
from blip3o_hf.evaluation.cached_features import features_of
from blip3o_hf.evaluation.extractors import Extractor
from blip3o_hf.evaluation.folders import PictureFolder, Preparation
from blip3o_hf.evaluation.set_distances import SetComparison
from blip3o_hf.hub.results import Evaluation
from blip3o_hf.shapes import render, sample_example


def thumbnails(images):
    """Twelve features of a picture: its colours in four quarters."""
    return np.stack([np.asarray(image.resize((2, 2), Image.Resampling.BOX), np.float32).ravel() for image in images])


THUMBNAILS = Extractor("thumbnails", "colours of four quarters", thumbnails)


@pytest.fixture
def write(tmp_path):
    """`write(folder, count, seed=0, change=None, ending="png")`: pictures of the tiny world, as files."""

    def write_pictures(folder, count, seed=0, change=None, ending="png"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            scene = sample_example(np.random.default_rng((seed, number)), split="train").scene
            image = Image.fromarray(render(scene))
            image = image if change is None else change(image)
            image.save(tmp_path / folder / f"{number:03d}.{ending}")
        return tmp_path / folder

    return write_pictures


@pytest.fixture
def two(write):
    return write("drawn", 12), write("reference", 12, seed=1)


def compare(first, second, size=32, **settings):
    return SetComparison(PictureFolder(first), PictureFolder(second), THUMBNAILS, Preparation(size), **settings)


def fails(capsys, arguments, *texts):
    assert main(["distance", *map(str, arguments)]) == 2
    error = capsys.readouterr().err.rpartition("blip3o-hf distance: ")[2]
    assert error.count("\n") == 1
    for text in texts:
        assert text in error


# What the numbers say


def test_a_changed_set_is_farther_than_another_one_of_the_same_kind(write):
    reference, same = write("reference", 60), write("same", 60, seed=1)
    darker = write("darker", 60, seed=1, change=lambda image: image.point(lambda value: value // 2))
    near, far, none = (compare(folder, reference).measure()[0][0] for folder in (same, darker, reference))
    assert 0 < near.frechet < far.frechet and none.frechet == pytest.approx(0, abs=1e-6)
    assert near.kernel.mean < far.kernel.mean
    assert none.cmmd == pytest.approx(0, abs=1e-9) and near.cmmd > 0


def test_categories_are_compared_by_their_names(write, tmp_path):
    for folder in ("drawn", "reference"):
        write(f"{folder}/animals", 6, seed=1)
        write(f"{folder}/food", 8, seed=2 if folder == "drawn" else 3)
    distances, _ = compare(tmp_path / "drawn", tmp_path / "reference", by_folder=True).measure()
    assert [(each.name, each.count) for each in distances] == [("animals", 6), ("food", 8), ("overall", 14)]
    assert distances[0].frechet == pytest.approx(0, abs=1e-6) and distances[1].frechet > 1
    alone = compare(tmp_path / "drawn/food", tmp_path / "reference/food").measure()[0][0]
    assert alone.frechet == pytest.approx(distances[1].frechet, rel=1e-9)


def test_notes_say_what_spoils_a_comparison(write):
    drawn, reference = write("drawn", 6), write("reference", 20, ending="jpg")
    shutil.copy(drawn / "000.png", reference)
    Image.open(drawn / "001.png").resize((80, 80)).save(drawn / "001.png")
    notes = " ".join(compare(drawn, reference).notes(12))
    for text in (
        "6 pictures (overall) are no more than the 12 dimensions",
        "the folder has 6 pictures and the reference 21",
        "holds PNG and the reference JPEG and PNG",
        "the same file 1 times",
    ):
        assert text in notes
    assert "with 21 pictures the Frechet distance has a bias" in compare(reference, reference).notes(12)[0]


# Every picture counts


def test_damaged_pictures_are_all_named(two):
    drawn, reference = two
    (drawn / "001.png").write_text("no picture")
    (drawn / "002.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"counts every picture.*2 of .*001.png: not a readable.*002.png.*Replace"):
        PictureFolder(drawn)
    for name in ("001.png", "002.png"):
        shutil.copy(drawn / "000.png", drawn / name)
    for name in ("003.png", "007.png"):
        (drawn / name).write_bytes((drawn / name).read_bytes()[:-60])  # the header is whole
    with pytest.raises(ValueError, match=r"2 of .*003.png: not a readable.*007.png"):
        compare(drawn, reference).measure()


def test_pictures_of_unread_kinds_and_empty_folders_are_refused(two, tmp_path):
    (two[0] / "photo.HEIC").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"photo.HEIC \(.heic\)"):
        PictureFolder(two[0])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"needs at least one"):
        PictureFolder(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"There is none at"):
        PictureFolder(tmp_path / "none")


def test_hidden_and_other_files_are_left_out(two):
    count = len(PictureFolder(two[0]).files)
    (two[0] / "._000.png").write_text("of a system")
    (two[0] / "captions.txt").write_text("a circle")
    assert len(PictureFolder(two[0]).files) == count == 12


def test_categories_that_do_not_match_are_refused(write, tmp_path):
    for name in ("drawn/animals", "drawn/food", "reference/animals"):
        write(name, 2)
    with pytest.raises(ValueError, match=r"the same subfolders. Only one of .* has food"):
        compare(tmp_path / "drawn", tmp_path / "reference", by_folder=True)
    write("reference/food", 1)
    with pytest.raises(ValueError, match=r"at least 2 pictures in each set. Got 2 and 1 \(food\)"):
        compare(tmp_path / "drawn", tmp_path / "reference", by_folder=True)
    write("drawn", 1)
    with pytest.raises(ValueError, match=r"must be in a subfolder.*000.png is in none"):
        compare(tmp_path / "drawn", tmp_path / "reference", by_folder=True)


def test_sizes_are_stated_or_equal(two):
    compare(*two, size=None)
    Image.new("RGB", (32, 48)).save(two[1] / "011.png")
    with pytest.raises(ValueError, match=r"must have the same. Got 64 x 64, 32 x 48. State the size"):
        compare(*two, size=None)
    with pytest.raises(ValueError, match=r"Unknown resize filter 'bicubi'. Did you mean 'bicubic'"):
        Preparation(32, "bicubi")
    with pytest.raises(ValueError, match=r"`size` must be a whole number of at least 1. Got 0"):
        Preparation(0)


def test_preparation_resizes_the_whole_picture_with_the_filter(make_image):
    image = make_image().resize((64, 32))
    for name, resampling in (("lanczos", Image.Resampling.LANCZOS), ("nearest", Image.Resampling.NEAREST)):
        assert Preparation(16, name)(image).tobytes() == image.resize((16, 16), resampling).tobytes()
    assert Preparation(None)(image) is image


# Kept features


def test_kept_features_are_used_for_the_same_pictures_only(two, tmp_path, monkeypatch):
    monkeypatch.setattr(cached_features, "PART_SIZE", 5)
    seen = []

    def counted(images):
        seen.extend(images)
        return thumbnails(images)

    def run(name="counted", size=32):
        seen.clear()
        extractor = Extractor(name, "", counted)
        return features_of(PictureFolder(two[0]), extractor, Preparation(size), tmp_path / "kept", batch_size=2)

    first = run()
    assert len(seen) == 12
    np.testing.assert_array_equal(run(), first)
    assert not seen
    Image.new("RGB", (64, 64)).save(two[0] / "006.png")
    changed = run()
    assert len(seen) == 5 and (changed[6] == 0).all()
    np.testing.assert_array_equal(np.delete(changed, 6, 0), np.delete(first, 6, 0))
    run(size=16)
    assert len(seen) == 12
    run(name="another")
    assert len(seen) == 12


def test_a_run_that_stopped_goes_on(two, tmp_path, monkeypatch):
    monkeypatch.setattr(cached_features, "PART_SIZE", 4)
    seen = []

    def stops(images):
        seen.extend(images)
        if len(seen) == 8:
            raise KeyboardInterrupt
        return thumbnails(images)

    def run():
        extractor = Extractor("stops", "", stops)
        return features_of(PictureFolder(two[0]), extractor, Preparation(32), tmp_path / "kept", batch_size=2)

    with pytest.raises(KeyboardInterrupt):
        run()
    whole = run()
    assert len(seen) == 8 + 8  # the first four were kept
    expected = features_of(PictureFolder(two[0]), THUMBNAILS, Preparation(32))
    np.testing.assert_array_equal(whole, expected)


def test_damaged_kept_features_are_named(two, tmp_path):
    def run():
        return features_of(PictureFolder(two[0]), THUMBNAILS, Preparation(32), tmp_path / "kept")

    run()
    (file,) = (tmp_path / "kept").iterdir()
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match=f"{file.name} is damaged.*Delete it"):
        run()
    file.unlink()
    assert len(run()) == 12


# The command


def test_the_command_prints_distances_and_writes_how_they_were_measured(two, tmp_path, capsys):
    target = tmp_path / "distance.json"
    call = ["distance", *map(str, two), "--size", "64", "--subsets", "5", "--output", str(target)]
    assert main(call) == 0
    printed = capsys.readouterr()
    assert "overall" in printed.out and "128 dimensions; pictures bicubic to 64 x 64" in printed.out
    assert "note: 12 pictures (overall) are no more than the 128 dimensions" in printed.err
    evaluation = Evaluation.read(target)
    settings = evaluation.settings
    assert settings["resolution"] == 64 and settings["resize"] == "bicubic"
    assert settings["extractor"]["name"] == "target_encoder" and len(settings["extractor"]["weights"]) == 64
    assert settings["pictures"]["formats"] == {"PNG": 12} and settings["pictures"]["sizes"] == ["64 x 64"]
    assert settings["reference"]["sha256"] == PictureFolder(two[1]).sha256
    assert settings["subset size"] == {"overall": 6}
    assert [score.metric for score in evaluation.scores] == ["frechet_distance", "kernel_distance", "cmmd"]
    assert all(score.total == 12 for score in evaluation.scores) and str(tmp_path) not in target.read_text()
    assert len(list((tmp_path / "distance.json.features").iterdir())) == 2
    assert main(call) == 0
    assert Evaluation.read(target).scores == evaluation.scores


def test_the_command_refuses_bad_input_before_it_works(two, tmp_path, capsys):
    drawn, reference = two
    fails(capsys, [drawn, tmp_path / "none"], "Pictures are read from a folder. There is none at")
    fails(capsys, [drawn, reference, "--resize", "cubic"], "Unknown resize filter 'cubic'")
    fails(capsys, [drawn, reference, "--extractor", "clip", "--model", "x"], "--model is for the extractor")
    fails(capsys, [drawn, reference, "--subset-size", "13"], "Got 13 of 12 pictures")
    fails(capsys, [drawn, reference, "--subsets", "0"], "`subsets` must be a whole number of at least 1. Got 0")
    fails(capsys, [drawn, reference, "--output", tmp_path / "no" / "a.json"], "folder must exist")
    fails(capsys, [drawn, reference, "--batch-size", "0"], "`batch_size` must be a whole number")


def test_notes_are_of_every_group_and_none_is_called_as_all(write, tmp_path):
    for name in ("first", "second"):
        write(f"{name}/few", 3)
        write(f"{name}/many", 20, seed=2)
    notes = compare(tmp_path / "first", tmp_path / "second", by_folder=True).notes(12)
    assert notes[0].startswith("3 pictures (few) are no more than the 12 dimensions of a feature")
    assert notes[1].startswith("with 23 pictures the Frechet distance has a bias upwards")
    with pytest.raises(ValueError, match=r"`seed` must be a whole number of at least 0\. Got -1"):
        compare(tmp_path / "first", tmp_path / "second", seed=-1)
    for name in ("first", "second"):
        (tmp_path / name / "few").rename(tmp_path / name / "overall")
    with pytest.raises(ValueError, match=r"The row of all pictures is called 'overall'\. .*first has a subfolder of"):
        compare(tmp_path / "first", tmp_path / "second", by_folder=True)
