"""Names are taken as they are where they exist; hidden files are left out; named files are found."""

import io
import json
import tarfile

import datasets
import pytest
from PIL import Image

from blip3o_hf.data.paths import expand_paths, find_file, is_hidden
from blip3o_hf.data.records import BadItem
from blip3o_hf.data.sources import guess_format, open_source
from blip3o_hf.data.tables import open_table


def write_image(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (shade,) * 3).save(path, "PNG")


def image_bytes(shade=0):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (shade,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path, *members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def prompts(source):
    return [source[i].prompt for i in range(len(source))]


# Names that look like patterns


@pytest.mark.parametrize("folder", ["my data [v2]", "a{b,c}", "a{00..01}/[x]", "what?", "ab*"])
def test_a_real_name_is_no_pattern(tmp_path, folder):
    for name in ("0.tar", "1.tar"):
        write_tar(tmp_path / folder / "s" / name, (f"{name[0]}.png", image_bytes()), (f"{name[0]}.txt", b"tar"))
    write_image(tmp_path / folder / "i" / "a.png")
    (tmp_path / folder / "i" / "a.txt").write_text("image")
    (tmp_path / folder / "a.jsonl").write_text('{"image": "i/a.png", "caption": "json"}\n')
    path = str(tmp_path / folder)
    for pattern in ("s", "s/*.tar", "s/{0..1}.tar", "s/{0,1}.tar", "*/?.tar", "{s,s}/{0..0}.tar"):
        assert prompts(open_source({"path": f"{path}/{pattern}"})) == ["tar", "tar"]
    assert prompts(open_source({"path": f"{path}/i"})) == ["image"]
    assert prompts(open_source({"path": f"{path}/a.jsonl"})) == ["json"]
    assert prompts(open_source({"path": [f"{path}/*.jsonl", f"{path}/a.jsonl"]})) == ["json", "json"]
    with pytest.raises(FileNotFoundError, match=r"There is none at .*none"):
        expand_paths(f"{path}/none*.tar")


def test_patterns_are_relative_to_the_working_folder_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a0", "a1", "[a0]"):
        (tmp_path / name).touch()
    assert [str(path) for path in expand_paths("a{0..1}")] == ["a0", "a1"]
    assert [str(path) for path in expand_paths("a?")] == ["a0", "a1"]
    assert [str(path) for path in expand_paths("[a0]")] == ["[a0]"]


@pytest.mark.parametrize("folder", ["my data [v2]", "a{b,c}"])
def test_a_real_name_is_no_pattern_for_parquet_either(tmp_path, folder, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    rows = {"image": [{"bytes": image_bytes()}], "caption": ["table"]}
    (tmp_path / folder).mkdir()
    datasets.Dataset.from_dict(rows).to_parquet(str(tmp_path / "a.parquet"))
    (tmp_path / "a.parquet").rename(tmp_path / folder / "a.parquet")
    for path in (folder, f"{folder}/a.parquet", f"{folder}/*.parquet"):
        assert prompts(open_source({"path": str(tmp_path / path)})) == ["table"]


# Hidden files


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (".DS_Store", True),
        ("a/._0.png", True),
        (".ipynb_checkpoints/1-checkpoint.png", True),
        ("__MACOSX/a/._0.png", True),
        ("__MACOSX", True),
        ("a\\.hidden\\0.png", True),
        ("./0.png", False),
        ("../a/0.png", False),
        ("a.b/0.c.png", False),
        ("__a/0.png", False),
    ],
)
def test_hidden_names(path, expected):
    assert is_hidden(path) is expected


def test_hidden_files_of_a_folder_are_no_items(tmp_path):
    folder = tmp_path / ".data" / "photos"  # what stands before the folder does not matter
    write_image(folder / "0.png")
    for name in (".ipynb_checkpoints/0-checkpoint.png", "__MACOSX/1.png", "sub/.cache/2.png"):
        write_image(folder / name)
    (folder / "._0.png").write_bytes(b"Mac OS X")
    (folder / ".DS_Store").write_bytes(b"Bud1")
    (folder / "0.txt").write_text("a dog")
    (folder / "._0.txt").write_bytes(b"\0\5\x16\7")
    for name in ("._metadata.csv", ".ipynb_checkpoints/metadata.csv", ".trash/a.tar", "._a.parquet"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\0\5\x16\7")
    source = open_source({"path": str(folder)})
    assert prompts(source) == ["a dog"] and source[0].key == str(folder / "0.png")


def test_hidden_members_of_a_tar_are_no_items_and_part_none(tmp_path):
    write_tar(
        tmp_path / "a.tar",
        ("./._0.png", b"Mac OS X"),
        ("./0.png", image_bytes(1)),
        ("./._0.txt", b"Mac OS X"),
        ("./0.txt", b"first"),
        ("./.DS_Store", b"Bud1"),
        ("__MACOSX/1.png", image_bytes()),
        ("./.ipynb_checkpoints/1-checkpoint.png", image_bytes()),
        ("./1.png", image_bytes(2)),
        ("./1.txt", b"second"),
    )
    source = open_source({"path": str(tmp_path / "a.tar")})
    assert prompts(source) == ["first", "second"]
    assert [source[i].target.getpixel((0, 0))[0] for i in range(2)] == [1, 2]


def test_hidden_tars_of_a_folder_are_no_shards(tmp_path):
    write_tar(tmp_path / "x" / "a.tar", ("0.png", image_bytes()), ("0.txt", b"one"))
    (tmp_path / "x" / "._a.tar").write_bytes(b"Mac OS X")
    assert prompts(open_source({"path": str(tmp_path)})) == ["one"]


# Endings


def test_all_endings_of_images_are_read_in_any_case(tmp_path):
    endings = ("jpg", "JPG", "Jpeg", "jpe", "JFIF", "jfif", "png", "apng", "PNG", "WebP", "avif", "GIF", "bmp", "TIF")
    tars = []
    for number, name in enumerate(endings):
        image = Image.new("RGB", (8, 6))
        form = {"jfif": "JPEG", "jpe": "JPEG", "jpg": "JPEG", "apng": "PNG", "tif": "TIFF"}.get(
            name.lower(), name.upper()
        )
        image.save(tmp_path / f"{number:02}.{name}", form)
        (tmp_path / f"{number:02}.{'TXT' if number % 2 else 'txt'}").write_text(str(number))
        data = (tmp_path / f"{number:02}.{name}").read_bytes()
        tars += [(f"{number:02}.{name}", data), (f"{number:02}.TXT", str(number).encode())]
    expected = [str(number) for number in range(len(endings))]
    assert prompts(open_source({"path": str(tmp_path)})) == expected
    write_tar(tmp_path / "tars" / "A.TAR", *tars)
    assert prompts(open_source({"path": str(tmp_path / "tars")})) == expected


def test_files_of_data_are_known_in_any_case(tmp_path):
    write_image(tmp_path / "A.PNG")
    row = {"file_name": "A.PNG", "image": "A.PNG", "caption": "a dog"}
    (tmp_path / "A.JSON").write_text(json.dumps([row]))
    (tmp_path / "A.JSONL").write_text(json.dumps(row) + "\n")
    for name in ("A.JSON", "A.JSONL"):
        assert prompts(open_source({"path": str(tmp_path / name)})) == ["a dog"]
    (tmp_path / "METADATA.JSONL").write_text(json.dumps(row) + "\n")
    assert prompts(open_source({"path": str(tmp_path)})) == ["a dog"]
    assert guess_format(str(tmp_path)) == "imagefolder"


def test_images_of_a_kind_that_is_not_read_are_counted_and_told(tmp_path):
    write_image(tmp_path / "0.png")
    (tmp_path / "0.txt").write_text("a dog")
    for name in ("1.HEIC", "2.heic", "3.svg"):
        (tmp_path / name).write_bytes(b"x")
    source = open_source({"path": str(tmp_path)})
    assert source.notes == [f"not read: 2 .heic, 1 .svg, such as {tmp_path / '1.HEIC'}; convert them to JPEG or PNG"]
    write_tar(tmp_path / "a.tar", ("0.heic", b"x"), ("0.txt", b"a dog"), ("1.exr", b"x"), ("1.png", image_bytes()))
    source = open_source({"path": str(tmp_path / "a.tar")})
    with pytest.raises(BadItem, match=r"0: a .heic image is not read; convert it to JPEG or PNG"):
        source[0]
    with pytest.raises(BadItem, match="1: no text under 'caption'"):
        source[1]


# Images that rows name


def test_a_named_file_is_found_as_windows_and_macos_write_it(tmp_path):
    write_image(tmp_path / "sub" / "a.png")
    write_image(tmp_path / "sub" / "cafe\u0301.png")
    for name in ("sub/a.png", "sub\\a.png", ".\\sub\\a.png", "sub/../sub/a.png", str(tmp_path / "sub" / "a.png")):
        assert find_file(name, [tmp_path]).samefile(tmp_path / "sub" / "a.png")
    assert find_file("sub\\caf\u00e9.png", ["none", tmp_path]).is_file()
    assert find_file("none.png", [tmp_path, tmp_path / "sub"]) == tmp_path / "none.png"
    assert find_file("x" * 10_000, [tmp_path]).name == "x" * 10_000
    write_image(tmp_path / "sub\\b.png")
    assert find_file("sub\\b.png", [tmp_path]).name == "sub\\b.png"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder with `pics/a.png`."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write_image(tmp_path / "home" / "pics" / "a.png", 7)
    return tmp_path / "home"


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "table", "imagefolder", "root"])
def test_the_home_folder_may_begin_the_path_of_an_image(tmp_path, home, kind):
    row = {"image": "~/pics/a.png", "caption": "a dog"}
    data = tmp_path / "data"
    data.mkdir()
    if kind == "parquet":
        datasets.Dataset.from_list([row]).to_parquet(data / "a.parquet")
        source = open_source({"path": str(data / "a.parquet"), "allow_outside": True})
    elif kind == "table":
        source = open_table(datasets.Dataset.from_list([row]), "train_dataset")
    elif kind == "imagefolder":
        (data / "metadata.csv").write_text("file_name,caption\n~/pics/a.png,a dog\n")
        source = open_source({"path": str(data), "format": "imagefolder", "allow_outside": True})
    else:
        lines = json.dumps(row)
        (data / f"a.{kind}").write_text(f"[{lines}]" if kind == "json" else lines)
        root = {"image_root": str(home / "pics")} if kind == "root" else {"allow_outside": True}
        source = open_source({"path": str(data / f"a.{kind}"), "format": "json", **root})
    assert source[0].target.getpixel((0, 0))[0] == 7


def test_the_home_folder_may_begin_a_target_and_images(tmp_path, home):
    row = {"file_name": "own.png", "target": "~/pics/a.png", "images": ["~/pics/a.png"], "caption": "brighter"}
    write_image(tmp_path / "data" / "own.png", 1)
    (tmp_path / "data" / "metadata.jsonl").write_text(json.dumps(row))
    record = open_source({"path": str(tmp_path / "data"), "allow_outside": True})[0]
    assert [image.getpixel((0, 0))[0] for image in (*record.images, record.target)] == [7, 7]


def test_a_name_that_only_looks_like_the_home_folder_is_taken_as_it_is(tmp_path, home):
    write_image(tmp_path / "data" / "~" / "pics" / "a.png")
    write_image(tmp_path / "data" / "~a.png")
    assert find_file("~/pics/a.png", [tmp_path / "data"]) == tmp_path / "data" / "~" / "pics" / "a.png"
    assert find_file("~a.png", [tmp_path / "data"]) == tmp_path / "data" / "~a.png"
    assert find_file("~\\pics\\a.png", [tmp_path]) == home / "pics" / "a.png"
    assert find_file("~/none.png", [tmp_path]) == home / "none.png"


def test_an_archive_reads_no_file_of_the_home_folder(tmp_path, home):
    write_tar(tmp_path / "a.tar", ("b.json", b'{"image": "~/pics/a.png", "caption": "a"}'))
    with pytest.raises(BadItem, match=r"image path '~/pics/a.png' without `image_root`"):
        open_source({"path": str(tmp_path / "a.tar")})[0]


def test_each_file_of_json_has_its_own_folder(tmp_path):
    for number, name in enumerate("ab"):
        write_image(tmp_path / name / "sub" / "x.png", number)
        (tmp_path / name / "x.jsonl").write_text('{"image": "sub\\\\x.png", "caption": "a dog"}\n')
        (tmp_path / name / "x.json").write_text('[{"image": "sub/x.png", "caption": "a dog"}]\n')
    for ending in ("jsonl", "json"):
        source = open_source({"path": str(tmp_path / "*" / f"x.{ending}")})
        assert [source[i].target.getpixel((0, 0))[0] for i in range(2)] == [0, 1]


def test_an_image_that_is_no_path_at_all_is_a_bad_item_with_a_short_reason(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"image": "x" * 100_000, "caption": "a dog"}) + "\n")
    with pytest.raises(BadItem, match=r"a.jsonl:1: no image file at ") as caught:
        open_source({"path": str(tmp_path / "a.jsonl")})[0]
    assert len(caught.value.reason) < 300
