"""Only the split that is asked for is read, as `datasets.load_dataset` would; one that is not there is an error."""

import io
import json
import tarfile

import datasets
import pytest
from PIL import Image

from blip3o_hf.data.paths import split_of
from blip3o_hf.data.sources import open_source
from blip3o_hf.data.tables import open_table

SPLITS = {"train": 3, "test": 2, "validation": 1}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


def table(split, count):
    rows = {"image": [Image.new("RGB", (8, 6))] * count, "caption": [f"{split} {n}" for n in range(count)]}
    return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())


def write_parquet(path, split, count):
    path.parent.mkdir(parents=True, exist_ok=True)
    table(split, count).to_parquet(str(path))


def prompts(path, **settings):
    source = open_source({"path": path if isinstance(path, list) else str(path), **settings})
    return sorted(source[i].prompt for i in range(len(source)))


def expected(split):
    return [f"{split} {n}" for n in range(SPLITS[split])]


@pytest.mark.parametrize(
    "pattern", ["data/{}-00000-of-00001.parquet", "{}.parquet", "{}/0.parquet", "my_{}_file.parquet"]
)
def test_a_folder_of_parquet_has_the_splits_of_load_dataset(tmp_path, pattern):
    for split, count in SPLITS.items():
        write_parquet(tmp_path / "x" / pattern.format(split), split, count)
    (tmp_path / "x" / "README.md").write_text("# Data\n")
    Image.new("RGB", (8, 6)).save(tmp_path / "x" / "preview.png")
    for split in SPLITS:
        library = datasets.load_dataset(str(tmp_path / "x"), split=split)
        assert prompts(tmp_path / "x", split=split) == sorted(library["caption"]) == expected(split)
    assert prompts(tmp_path / "x") == expected("train")
    assert prompts(tmp_path / "x", split="train+test") == sorted([*expected("train"), *expected("test")])
    assert prompts(tmp_path / "x", split="train[:1]") == ["train 0"]
    with pytest.raises(ValueError, match=r"Unknown split 'nope'. Available: train, validation, test \(key `split` of"):
        prompts(tmp_path / "x", split="nope")


def test_custom_splits_and_the_configs_of_a_card_are_read(tmp_path):
    for split in ("train", "hard"):
        write_parquet(tmp_path / "a" / "data" / f"{split}-00000-of-00001.parquet", split, 1)
        write_parquet(tmp_path / "b" / "files" / f"{split}-part.parquet", split, 1)
    assert prompts(tmp_path / "a", split="hard") == ["hard 0"]
    files = "".join(
        f"  - split: {s}\n    path: files/{p}-part.parquet\n" for s, p in (("train", "hard"), ("dev", "train"))
    )
    (tmp_path / "b" / "README.md").write_text(f"---\nconfigs:\n- config_name: c\n  data_files:\n{files}---\n")
    assert prompts(tmp_path / "b") == ["hard 0"] and prompts(tmp_path / "b", split="dev", name="c") == ["train 0"]


def test_files_that_are_named_one_by_one_are_train(tmp_path):
    for split, count in SPLITS.items():
        write_parquet(tmp_path / f"{split}.parquet", split, count)
    assert prompts(tmp_path / "test.parquet") == expected("test")
    assert len(prompts([str(tmp_path / "t*.parquet"), str(tmp_path / "validation.parquet")])) == 6
    with pytest.raises(ValueError, match=r"Unknown split 'test'. Available: train"):
        prompts(tmp_path / "test.parquet", split="test")
    write_parquet(tmp_path / "only" / "test.parquet", "test", 2)
    with pytest.raises(ValueError, match=r"Unknown split 'train'. Available: test"):
        prompts(tmp_path / "only")


def test_of_a_saved_dataset_dict_the_split_is_taken(tmp_path):
    saved = datasets.DatasetDict({split: table(split, count) for split, count in SPLITS.items()})
    saved.save_to_disk(tmp_path / "saved")
    for split in SPLITS:
        assert prompts(tmp_path / "saved", split=split) == expected(split)
    assert prompts(tmp_path / "saved") == expected("train")
    assert prompts(tmp_path / "saved" / "test") == expected("test")
    with pytest.raises(
        ValueError, match=r"Unknown split 'tset'. Did you mean 'test'. Available: train, test, validation"
    ):
        prompts(tmp_path / "saved", split="tset")
    with pytest.raises(ValueError, match=r"Unknown split 'nope'"):
        prompts(tmp_path / "saved" / "test", split="nope")


def test_a_dataset_dict_in_memory_is_refused_by_what_it_is():
    for kind in (datasets.DatasetDict, datasets.IterableDatasetDict):
        with pytest.raises(ValueError, match=r"must be one split. train_dataset holds 'train', 'test'. Pass d"):
            open_table(kind({"train": table("train", 1), "test": table("test", 1)}), "train_dataset")


def write_images(folder, split, count):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (8, 6)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"{split} {number}")


def test_folders_of_images_named_by_splits_are_told_apart(tmp_path):
    for split, count in SPLITS.items():
        write_images(tmp_path / split / "cats", split, count)
    for split in SPLITS:
        assert prompts(tmp_path, split=split) == expected(split)
    source = open_source({"path": str(tmp_path)})
    assert len(source) == 3 and source.notes == ["split=train: 3 of 6 images, by the names of folders"]
    with pytest.raises(ValueError, match=r"Unknown split 'nope'. Available: train, validation, test \(key `split` of"):
        prompts(tmp_path, split="nope")


def test_rows_at_the_top_belong_to_the_split_of_their_image(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (8, 6)).save(tmp_path / split / "0.png")
    rows = [{"file_name": f"{split}/0.png", "caption": split} for split in ("train", "val")]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert prompts(tmp_path) == ["train"] and prompts(tmp_path, split="validation") == ["val"]


def test_what_is_beside_a_test_folder_is_train(tmp_path):
    write_images(tmp_path, "train", 3)
    write_images(tmp_path / "test", "test", 2)
    assert prompts(tmp_path) == expected("train") and prompts(tmp_path, split="test") == expected("test")


def test_folders_that_name_no_splits_are_read_whole(tmp_path):
    for name in ("cats", "train"):
        write_images(tmp_path / name, name, 1)
    write_images(tmp_path / "one" / "test", "test", 2)
    assert prompts(tmp_path / "one") == expected("test")
    (tmp_path / "one").rename(tmp_path.parent / f"{tmp_path.name}-one")
    assert prompts(tmp_path) == ["cats 0", "train 0"]
    for settings in ({"split": "test"}, {"split": "nope"}):
        with pytest.raises(ValueError, match=r"Unknown split"):
            prompts(tmp_path / "cats", **settings)


def test_tars_of_a_folder_are_told_apart_by_their_names(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6)).save(buffer, "PNG")
    for split in SPLITS:
        (tmp_path / "deep").mkdir(exist_ok=True)
        with tarfile.open(tmp_path / "deep" / f"photos-{split}-000.tar", "w") as tar:
            for number in range(SPLITS[split]):
                for name, data in (
                    (f"{number}.png", buffer.getvalue()),
                    (f"{number}.txt", f"{split} {number}".encode()),
                ):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    for split in SPLITS:
        assert prompts(tmp_path, split=split) == expected(split)
    assert prompts(tmp_path / "deep" / "photos-test-000.tar") == expected("test")
    assert len(prompts(tmp_path / "deep" / "*.tar")) == 6
    with pytest.raises(ValueError, match=r"Unknown split 'nope'"):
        prompts(tmp_path, split="nope")
    with pytest.raises(ValueError, match=r"Unknown split 'test'"):
        prompts(tmp_path / "deep" / "*.tar", split="test")


def test_json_has_no_splits_and_says_so(tmp_path):
    (tmp_path / "test.jsonl").write_text('{"turns": [["a", "b"]]}\n')
    with pytest.raises(ValueError, match=r"Unknown split 'test'. Available: train \(key `split` of .*test.jsonl\)"):
        open_source({"path": str(tmp_path / "test.jsonl"), "split": "test"})


def test_words_for_splits_stand_alone_in_a_name(tmp_path):
    for path, is_in_name, expected in [
        ("train/a.png", False, "train"),
        ("a/Val/b/a.png", False, "validation"),
        ("testing.png", False, None),
        ("testing.tar", True, "test"),
        ("a-dev_000.tar", True, "validation"),
        ("contest/trains.tar", True, None),
    ]:
        assert split_of(tmp_path.joinpath(path).relative_to(tmp_path), is_in_name) == expected
