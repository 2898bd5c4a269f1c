"""Bad training data, given to `data check`, and now and then to `finetune`."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from .cases import (
    BAD,
    EITHER,
    OUTSIDE,
    REFUSED,
    SECRET,
    Case,
    Maker,
    command,
    damaged,
    hostile_value,
    pick,
    put_no_file,
)
from .image_cases import encoded

CAPTIONS = ("a red circle", "two blue squares", "a green cross above a yellow triangle")


def checked(what: str, path: str, *more: str, names: tuple[str, ...] = (), expected: tuple[str, ...] = EITHER) -> Case:
    """`data check`; an error names the path that was given, or a file in it."""
    stem = Path(path).name.partition(".")[0] or path
    return command("data check", path, *more, what=what, names=(path, stem, *names), expected=expected)


def pictures(rng: np.random.Generator, folder: Path, number: int = 3) -> list[str]:
    """Whole images in a folder, and their names."""
    folder.mkdir(exist_ok=True)
    names = [f"{index}.png" for index in range(number)]
    for name in names:
        (folder / name).write_bytes(encoded(rng, "PNG"))
    return names


def rows(names: list[str]) -> list[dict]:
    """Rows of captioned images, and a conversation."""
    captioned = [{"image": name, "caption": caption} for name, caption in zip(names, CAPTIONS, strict=False)]
    talk = [{"from": "human", "value": "<image>what is it?"}, {"from": "gpt", "value": "a circle"}]
    return [*captioned, {"image": names[0], "conversations": talk}]


def lines(content: list) -> bytes:
    """JSON, an item a line."""
    return b"".join(json.dumps(item).encode() + b"\n" for item in content)


def with_bad_value(rng: np.random.Generator, names: list[str]) -> tuple[list, str]:
    """Rows of which one holds a bad value, and what it is."""
    content: list = rows(names)
    index, value = int(rng.integers(len(content))), hostile_value(rng)
    keys = ("image", "caption", "conversations", "messages", "turns", "images", "target", "text", "folder", "extra")
    key = pick(rng, keys)
    kind = pick(rng, ("value", "value", "row", "message"))
    if kind == "row":
        content[index] = value
        return content, f"the row {value!r:.60}"
    if kind == "message":
        message = pick(rng, (value, {"from": value, "value": "x"}, {"from": "human", "value": value}))
        content[index] = {"image": names[0], "conversations": [message, {"from": "gpt", "value": "x"}]}
        return content, f"the message {message!r:.60}"
    content[index][key] = value
    return content, f"{key}: {value!r:.60}"


def bad_rows(rng: np.random.Generator, folder: Path) -> Case:
    names = pictures(rng, folder)
    content, what = with_bad_value(rng, names)
    form = pick(rng, ("jsonl", "json"))
    data = lines(content) if form == "jsonl" else json.dumps(content).encode()
    (folder / f"rows.{form}").write_bytes(data)
    return checked(f"{form} with {what}", f"rows.{form}")


def damaged_rows(rng: np.random.Generator, folder: Path) -> Case:
    names = pictures(rng, folder)
    form = pick(rng, ("jsonl", "json"))
    data = lines(rows(names)) if form == "jsonl" else json.dumps(rows(names)).encode()
    content, what = damaged(rng, data)
    (folder / f"rows.{form}").write_bytes(content)
    return checked(f"{form} {what}", f"rows.{form}")


def strange_json(rng: np.random.Generator, folder: Path) -> Case:
    """JSON that is hard to read."""
    kinds = {
        "deep brackets": b"[" * 100_000,
        "deep brackets that close": b"[" * 50_000 + b"]" * 50_000,
        "deep mappings": b'{"a":' * 50_000,
        "a long number": b'{"image": "0.png", "caption": ' + b"9" * 50_000 + b"}\n",
        "an exponent": b'{"image": 1e999999, "caption": "x"}\n',
        "NaN": b'{"image": NaN, "caption": Infinity}\n',
        "one key twice": b'{"image": "0.png", "image": 5, "caption": "x"}\n',
        "half a character": b'{"image": "0.png", "caption": "\\ud800"}\n',
        "a zero": b'{"image": "0.png\\u0000", "caption": "x"}\n',
        "latin-1": '{"image": "0.png", "caption": "grün"}\n'.encode("latin-1"),
        "UTF-16": '{"image": "0.png", "caption": "x"}\n'.encode("utf-16"),
        "UTF-32 cut off": '{"image": "0.png", "caption": "x"}\n'.encode("utf-32")[:-3],
        "a number": b"5",
        "a mapping": b'{"conversations": 5}',
        "nothing": b"\n\n \n",
        "zeros": bytes(1000),
        "gzip": gzip.compress(b"{}"),
        "one long line": b'{"image": "0.png", "caption": "' + b"x" * 3_000_000 + b'"}\n',
        "a million lines": b"[]\n" * 20_000,
    }
    what = pick(rng, list(kinds))
    names = pictures(rng, folder)
    form = pick(rng, ("jsonl", "json"))
    good = lines(rows(names)) if form == "jsonl" and rng.random() < 0.5 else b""
    (folder / f"rows.{form}").write_bytes(good + kinds[what])
    return checked(f"{form} with {what}", f"rows.{form}")


def leaving_paths(rng: np.random.Generator, folder: Path) -> Case:
    """Rows whose images lie outside of the folder."""
    names = pictures(rng, folder)
    outside = folder.parent / OUTSIDE / f"{SECRET}.png"
    (folder / "link.png").symlink_to(outside)
    (folder / "away").symlink_to(outside.parent)
    path = pick(
        rng,
        (
            f"../{OUTSIDE}/{SECRET}.png",
            str(outside),
            "link.png",
            f"away/{SECRET}.png",
            f"./x/../../{OUTSIDE}/{SECRET}.png",
            f"..\\{OUTSIDE}\\{SECRET}.png",
            f"file://{outside}",
            "http://localhost/x.png",
        ),
    )
    form = pick(rng, ("jsonl", "json", "csv", "metadata", "parquet", "tar"))
    what = f"an image at {path} in {form}"
    item = {"image": path, "file_name": path, "caption": "x"}
    if form == "csv":
        (folder / "metadata.csv").write_text(f"file_name,caption\n{names[0]},x\n{path},y\n")
        return checked(what, ".", names=(path, "metadata.csv"), expected=BAD)
    if form == "metadata":
        item = {"file_name": names[0], "caption": "x", pick(rng, ("images", "target")): [path]}
        item = pick(rng, (item, {"file_name": path, "caption": "x"}))
        (folder / "metadata.jsonl").write_bytes(lines([{"file_name": names[1], "caption": "y"}, item]))
        return checked(what, ".", names=(path, "metadata.jsonl"), expected=BAD)
    if form == "parquet":
        parquet.write_table(pa.table({"image": [path, names[0]], "caption": ["x", "y"]}), folder / "rows.parquet")
        return checked(what, "rows.parquet", expected=BAD)
    if form == "tar":
        with tarfile.open(folder / "rows.tar", "w") as tar:
            add(tar, "0.json", json.dumps(item).encode())
        return checked(what, "rows.tar", expected=BAD)
    (folder / f"rows.{form}").write_bytes(lines([item]) if form == "jsonl" else json.dumps([item]).encode())
    return checked(what, f"rows.{form}", expected=BAD)


def add(tar: tarfile.TarFile, called: str, content: bytes, **settings) -> None:
    """A member of a tar."""
    member = tarfile.TarInfo(called)
    member.size = len(content)
    for key, value in settings.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(content))


def tar_of(rng: np.random.Generator, path: Path) -> None:
    """A whole tar of two items."""
    with tarfile.open(path, "w") as tar:
        for index in range(2):
            add(tar, f"{index}.png", encoded(rng, "PNG"))
            add(tar, f"{index}.txt", CAPTIONS[index].encode())


def damaged_tar(rng: np.random.Generator, folder: Path) -> Case:
    tar_of(rng, folder / "rows.tar")
    content, what = damaged(rng, (folder / "rows.tar").read_bytes())
    (folder / "rows.tar").write_bytes(content)
    return checked(f"a tar {what}", "rows.tar")


def strange_tar(rng: np.random.Generator, folder: Path) -> Case:
    """Members that are no files, lead elsewhere, or claim a size."""
    kinds = {
        "a link": {"type": tarfile.SYMTYPE, "linkname": f"../{OUTSIDE}/{SECRET}.png"},
        "a hard link": {"type": tarfile.LNKTYPE, "linkname": f"/etc/passwd{rng.integers(9)}"},
        "a device": {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5},
        "a pipe": {"type": tarfile.FIFOTYPE},
        "a sparse file": {"type": tarfile.GNUTYPE_SPARSE},
        "a large size": {"size": 2**40},
        "a name that leaves": {"name": f"../{OUTSIDE}/x.png"},
        "an absolute name": {"name": "/tmp/x.png"},
        "a long name": {"name": "x" * 5000 + ".png"},
        "no name": {"name": ""},
        "a name of no letters": {"name": "\udcff\n.png"},
        "headers of a large size": {"pax_headers": {"size": "9" * 300}},
        "headers of a negative size": {"pax_headers": {"size": "-512"}},
        "a long header": {"pax_headers": {"comment": "x" * 1_000_000}},
        "headers that name another file": {"pax_headers": {"path": f"../../{OUTSIDE}/{SECRET}.png"}},
        "a sparse map": {"pax_headers": {"GNU.sparse.map": "0,1," * 1000, "GNU.sparse.size": "9" * 20}},
    }
    what = pick(rng, list(kinds))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        add(tar, "0.png", encoded(rng, "PNG"))
        add(tar, "0.txt", b"a circle")
        add(tar, "1.png", encoded(rng, "PNG"), **{key: kinds[what][key] for key in kinds[what] if key != "size"})
        if "size" in kinds[what]:
            member = tarfile.TarInfo("2.png")
            member.size = 2**36
            buffer.write(member.tobuf(tarfile.GNU_FORMAT))
        add(tar, "1.txt", b"a square")
    content = buffer.getvalue()
    if rng.random() < 0.1:
        content, what = gzip.compress(content), "gzip"
    (folder / "rows.tar").write_bytes(content)
    return checked(f"a tar with {what}", "rows.tar")


def damaged_parquet(rng: np.random.Generator, folder: Path) -> Case:
    images = [{"bytes": encoded(rng, "PNG"), "path": "0.png"}, {"bytes": None, "path": "1.png"}]
    parquet.write_table(pa.table({"image": images, "caption": CAPTIONS[:2]}), folder / "rows.parquet")
    content, what = damaged(rng, (folder / "rows.parquet").read_bytes())
    (folder / "rows.parquet").write_bytes(content)
    return checked(f"parquet {what}", "rows.parquet")


def strange_parquet(rng: np.random.Generator, folder: Path) -> Case:
    """Columns of types that are none of images and texts."""
    columns = {
        "numbers": [1, 2],
        "lists": [[1], []],
        "mappings": [{"bytes": b"x", "path": None}, {"bytes": None, "path": "../x"}],
        "other mappings": [{"a": 1}, {"a": None}],
        "bytes": [b"\xff\xfe", rng.bytes(100)],
        "nothing": [None, None],
        "times": pa.array([10**15, None], pa.timestamp("ns")),
        "intervals": pa.array([(1, 2, 3), None], pa.month_day_nano_interval()),
        "decimals": pa.array([None, None], pa.decimal256(70, 3)),
        "dates": pa.array([2**40, -(2**40)], pa.timestamp("s")),
        "texts": ["x" * 100_000, "\0"],
        "words": pa.array(["a", "b"]).dictionary_encode(),
    }
    columns.pop("intervals")  # parquet knows none
    image, caption = (pick(rng, list(columns)) for _ in range(2))
    table = {"image": columns[image], pick(rng, ("caption", "text", "conversations", "turns")): columns[caption]}
    parquet.write_table(pa.table(table), folder / "rows.parquet")
    return checked(f"parquet with {image} and {caption} ({list(table)[1]})", "rows.parquet")


def metadata(rng: np.random.Generator, folder: Path) -> Case:
    """A table beside images, damaged or of strange content."""
    names = pictures(rng, folder)
    form = pick(rng, ("jsonl", "csv", "parquet"))
    content = [{"file_name": name, "caption": caption} for name, caption in zip(names, CAPTIONS, strict=True)]
    if form == "jsonl":
        data = lines(content)
    elif form == "csv":
        data = "\n".join(["file_name,caption", *(f"{row['file_name']},{row['caption']}" for row in content)]).encode()
    else:
        buffer = io.BytesIO()
        parquet.write_table(pa.Table.from_pylist(content), buffer)
        data = buffer.getvalue()
    if form == "parquet" or rng.random() < 0.5:
        data, what = damaged(rng, data)
    else:
        index, value = int(rng.integers(len(content))), hostile_value(rng)
        content[index][pick(rng, ("file_name", "caption", "images", "target"))] = value
        what = f"with {content[index]!r:.100}"
        if form == "jsonl":
            data = lines(content)
        else:
            text = f"file_name,caption\n{content[index]['file_name']},{content[index].get('caption')}\n"
            data = text.encode("utf-8", "surrogatepass")
    (folder / f"metadata.{form}").write_bytes(data)
    return checked(f"metadata.{form} {what}", str(folder.name and "."), names=("metadata", "png"))


def not_files(rng: np.random.Generator, folder: Path) -> Case:
    """Pipes, devices, folders and links in the place of files."""
    names = pictures(rng, folder)
    name = pick(rng, ("rows.jsonl", "rows.json", "rows.tar", "rows.parquet", "metadata.jsonl", "x.png", "0.txt"))
    path = folder / name
    kind = pick(rng, ("pipe", "folder", "device", "loop", "broken link", "empty"))
    if kind in ("pipe", "folder", "device", "loop"):
        put_no_file(path, kind)
    elif kind == "broken link":
        path.symlink_to("none")
    else:
        path.touch()
    is_inside = name.startswith(("metadata", "x", "0"))
    if rng.random() < 0.3 and not is_inside:
        (folder / "list.jsonl").write_bytes(
            lines([{"image": name, "caption": "x"}, {"image": names[0], "caption": "y"}])
        )
        return checked(f"an image that is a {kind}", "list.jsonl", expected=BAD)
    return checked(f"{name} is a {kind}", "." if is_inside else name, names=(name, *names))


def patterns(rng: np.random.Generator, folder: Path) -> Case:
    """Paths that stand for too much, or for nothing."""
    pictures(rng, folder)
    path = pick(
        rng,
        (
            "{0..999999999}.tar",
            "{0..99999}{0..99999}.tar",
            "{a,b}" * 30 + ".jsonl",
            "{9..0}.tar",
            "{0..1}{" * 100,
            "{" * 10_000,
            "[" * 3000 + ".jsonl",
            "*" * 100 + ".jsonl",
            "**/" * 30 + "*.tar",
            "../*/../*.jsonl",
            "{00000000000000000000..99999999999999999999}.tar",
            "~nobody/x.jsonl",
            "x" * 5000 + ".jsonl",
            "a\nb.jsonl",
            "",
            " ",
            "{x}.jsonl",
            "someone/data",
            "/dev/zero",
            "/proc/self",
            "https://example.org/x.jsonl",
        ),
    )
    return checked(f"the path {path[:80]!r}", path, names=(path[:20], "path"), expected=(REFUSED,))


def overrides(rng: np.random.Generator, folder: Path) -> Case:
    """Settings of a source that have bad values."""
    (folder / "rows.jsonl").write_bytes(lines(rows(pictures(rng, folder))))
    bad = {
        "max_pixels": ("0", "-1", "x", "nan", "[]", "1e99"),
        "min_size": ("x", "-1", "[]", "inf"),
        "short_caption_rate": ("2", "-1", "nan", "x", "[]"),
        "prompt_template": ("{x}", "{caption.__class__}", "{0}", "{", "x", "{caption:>9999999999}", "{caption!x}"),
        "format": ("x", "os:system", "os.path:join", "blip3o_hf.cli:main", ":", "json:JSONDecoder"),
        "reconstruct": ("perhaps", "2", "[]"),
        "seed": ("x", "-1", "nan", "[]", "99999999999999999999999"),
        "split": ("x", "5", ""),
        "x": ("1",),
        "__class__": ("1",),
        "": ("1",),
    }
    key = pick(rng, list(bad))
    value = pick(rng, bad[key])
    return checked(
        f"{key}={value}", "rows.jsonl", f"{key}={value}", names=(key or "Unknown key", value), expected=(REFUSED,)
    )


def saved_dataset(rng: np.random.Generator, folder: Path) -> Case:
    """A folder that looks like one of `save_to_disk`, or a card that names files."""
    kind = pick(rng, ("state", "splits", "card"))
    outside = f"../../{OUTSIDE}/{SECRET}.jsonl"
    data = folder / "saved"
    data.mkdir()
    if kind == "card":
        parquet.write_table(pa.table({"image": ["x"], "caption": ["y"]}), data / "a.parquet")
        entry = pick(rng, (outside, "/etc/passwd", "https://example.org/x.parquet", "*" * 50, "{0..999999999}"))
        front = f"configs:\n- config_name: default\n  data_files: '{entry}'\n"
        front = pick(rng, (front, "configs: 5\n", "configs: [[[[\n", "configs:\n- " + "[" * 2000 + "\n"))
        (data / "README.md").write_text(f"---\n{front}---\n")
        return checked(f"a card that says {front[:80]!r}", "saved", names=("a.parquet",), expected=EITHER)
    files = pick(rng, ([{"filename": outside}], [{"filename": "none.arrow"}], 5, [{"filename": "/dev/zero"}], [{}]))
    state = {
        "_data_files": files,
        "_fingerprint": "x",
        "_format_type": None,
        "_split": "train",
        "_format_columns": None,
    }
    (data / "dataset_info.json").write_text(json.dumps({"features": {}}))
    if kind == "splits":
        (data / "dataset_dict.json").write_text(json.dumps(pick(rng, ({"splits": ["../x"]}, {"splits": 5}, [], {}))))
        return checked("a dict of datasets with bad splits", "saved", expected=(REFUSED,))
    text = json.dumps(state)
    text = text if rng.random() < 0.6 else damaged(rng, text.encode())[0].decode("latin-1")
    (data / "state.json").write_text(text)
    return checked(f"a saved dataset of {text[:80]}", "saved", expected=(REFUSED,))


def fine_tuning(rng: np.random.Generator, folder: Path) -> Case:
    """A run that cannot start leaves nothing."""
    bad = pick(rng, ("none", "empty", "rows.jsonl"))
    if bad == "empty":
        (folder / bad).mkdir()
    elif bad == "rows.jsonl":
        (folder / bad).write_bytes(b'{"image": "none.png", "caption": 5}\n')
    words = f"finetune --data {bad} --output out --steps 1 --decoder-steps 1 --batch-size 1"
    return command(words, what=f"fine-tuning on {bad}", names=(bad,), expected=(REFUSED,))


MAKERS: tuple[Maker, ...] = (
    bad_rows,
    damaged_rows,
    strange_json,
    leaving_paths,
    damaged_tar,
    strange_tar,
    damaged_parquet,
    strange_parquet,
    metadata,
    not_files,
    patterns,
    overrides,
    leaving_paths,
    saved_dataset,
    metadata,
    bad_rows,
    not_files,
    fine_tuning,
)
