"""Captions come out as they were written, in whatever encoding says its name; what cannot be decoded is a bad item."""

import io
import json
import tarfile

import pytest
from PIL import Image

from blip3o_hf.data.records import BadItem
from blip3o_hf.data.sources import open_source
from blip3o_hf.data.texts import clean, decode_text, text_problem

CAPTION = "a café in Zürich, 東京 🙂"
MARKED = ("utf-8-sig", "utf-16", "utf-32")
BYTES = r"not UTF-8 text \(byte 0xe9"


def encoded_image():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path, **members):
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name.replace("_", "."))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def folder_with(tmp_path, name, data):
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    (tmp_path / name).write_bytes(data)
    return open_source({"path": str(tmp_path)})


def mark_of_the_other_end(text):
    return b"\xfe\xff" + text.encode("utf-16-be")


@pytest.mark.parametrize("encoding", ["utf-8", *MARKED])
def test_a_sidecar_is_read_in_any_encoding_with_a_mark(tmp_path, encoding):
    assert folder_with(tmp_path, "a.txt", (CAPTION + "\r\n").encode(encoding))[0].prompt == CAPTION
    (tmp_path / "a.txt").write_bytes(mark_of_the_other_end(CAPTION))
    assert open_source({"path": str(tmp_path)})[0].prompt == CAPTION


@pytest.mark.parametrize("encoding", ["utf-8", *MARKED])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_of_excel_is_read(tmp_path, encoding, delimiter):
    text = f'file_name{delimiter}caption\r\na.png{delimiter}"{CAPTION}"\r\n'
    assert folder_with(tmp_path, "metadata.csv", text.encode(encoding))[0].prompt == CAPTION


@pytest.mark.parametrize("encoding", ["utf-8", *MARKED])
@pytest.mark.parametrize("is_escaped", [True, False])
def test_lines_and_lists_of_json_are_read(tmp_path, encoding, is_escaped):
    row = json.dumps({"file_name": "a.png", "image": "a.png", "caption": CAPTION}, ensure_ascii=is_escaped)
    lines = f"{row}\n\n{row}\n".encode(encoding)
    assert folder_with(tmp_path, "metadata.jsonl", lines)[0].prompt == CAPTION
    (tmp_path / "b.jsonl").write_bytes(lines)
    source = open_source({"path": str(tmp_path / "b.jsonl")})
    assert [source[i].prompt for i in range(len(source))] == [CAPTION] * 2
    assert source[1].key.endswith("b.jsonl:3")
    (tmp_path / "b.json").write_bytes(f"[{row}]".encode(encoding))
    assert open_source({"path": str(tmp_path / "b.json")})[0].prompt == CAPTION


def test_files_put_together_may_hold_marks_within(tmp_path):
    line = json.dumps({"turns": [["a", "b"]]}).encode("utf-8-sig") + b"\n"
    (tmp_path / "a.jsonl").write_bytes(line * 2)
    source = open_source({"path": str(tmp_path / "a.jsonl")})
    assert [source[i].turns for i in range(2)] == [(("a", "b"),)] * 2


@pytest.mark.parametrize("encoding", ["utf-8", *MARKED])
def test_members_of_a_tar_are_read(tmp_path, encoding):
    row = json.dumps({"caption": CAPTION}, ensure_ascii=False).encode(encoding)
    write_tar(
        tmp_path / "a.tar", a_png=encoded_image(), a_txt=CAPTION.encode(encoding), b_png=encoded_image(), b_json=row
    )
    source = open_source({"path": str(tmp_path / "a.tar")})
    assert [source[i].prompt for i in range(2)] == [CAPTION] * 2


def test_what_is_no_utf_8_is_a_bad_item_and_its_neighbours_are_read(tmp_path):
    def check(source, key):
        assert [source[i].prompt for i in (0, 2)] == ["first", "third"]
        with pytest.raises(BadItem, match=rf"{key}: .*{BYTES}"):
            source[1]

    captions = ("first", "café", "third")
    for number, caption in enumerate(captions):
        Image.new("RGB", (8, 6)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_bytes(caption.encode("cp1252"))
    check(open_source({"path": str(tmp_path)}), "1.png")
    rows = [{"file_name": f"{n}.png", "image": f"{n}.png", "caption": caption} for n, caption in enumerate(captions)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("cp1252")
    (tmp_path / "b.jsonl").write_bytes(lines)
    check(open_source({"path": str(tmp_path / "b.jsonl")}), "b.jsonl:2")
    (tmp_path / "b.json").write_bytes(json.dumps(rows, ensure_ascii=False).encode("cp1252"))
    check(open_source({"path": str(tmp_path / "b.json")}), r"b.json\[1\]")
    (tmp_path / "metadata.jsonl").write_bytes(lines)
    check(open_source({"path": str(tmp_path)}), "1.png")
    (tmp_path / "metadata.jsonl").unlink()
    table = "file_name,caption\r\n" + "".join(f"{row['file_name']},{row['caption']}\r\n" for row in rows)
    (tmp_path / "metadata.csv").write_bytes(table.encode("cp1252"))
    check(open_source({"path": str(tmp_path)}), "1.png")
    members = {}
    for number, caption in enumerate(captions):
        members |= {f"{number}_png": encoded_image(), f"{number}_txt": caption.encode("cp1252")}
    write_tar(tmp_path / "a.tar", **members)
    check(open_source({"path": str(tmp_path / "a.tar")}), "1")


def test_utf_16_without_its_mark_is_refused_and_not_read_as_other_letters(tmp_path):
    with pytest.raises(BadItem, match=r"a.png: a.txt is not UTF-8 text \(it holds zero bytes"):
        folder_with(tmp_path, "a.txt", "a dog".encode("utf-16-le"))[0]
    with pytest.raises(BadItem, match=r"not UTF-16-LE text \(byte"):
        folder_with(tmp_path, "a.txt", "a dog".encode("utf-16")[:-1])[0]
    with pytest.raises(ValueError, match=r"A table must be CSV in UTF-8. .*metadata.csv is not: not UTF-8 text"):
        folder_with(tmp_path, "metadata.csv", "file_name,caption\n".encode("utf-16-le"))
    (tmp_path / "metadata.csv").unlink()
    with pytest.raises(ValueError, match=r"must hold one JSON mapping a line. It is not UTF-8 text"):
        folder_with(tmp_path, "metadata.jsonl", "{}\n".encode("utf-16-le"))


def test_a_very_long_field_of_a_table_is_an_error_with_the_file(tmp_path):
    with pytest.raises(ValueError, match=r"A table must be CSV in UTF-8. .*metadata.csv is not: field larger"):
        folder_with(tmp_path, "metadata.csv", b'file_name,caption\na.png,"' + b"x" * 200_000 + b'"\n')


def test_marks_and_white_space_at_the_ends_are_left_out(tmp_path):
    assert clean("\ufeff \ufeffa\ufeff dog \n\ufeff") == "a\ufeff dog"
    assert folder_with(tmp_path, "a.txt", "\ufeff\ufeff a dog\ufeff".encode())[0].prompt == "a dog"
    with pytest.raises(BadItem, match="no text under 'caption'"):
        folder_with(tmp_path, "a.txt", "\ufeff \n".encode("utf-8-sig"))[0]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a \udce9", "not UTF-8 text (byte 0xe9); save it as UTF-8"),
        ("a \ud83d dog", "not Unicode text (half a character, U+D83D); save it as UTF-8"),
        ("two <|image_pad|> dogs", "the text holds the special token <|image_pad|>; take it out"),
        ("a dog<|im_end|>", "the text holds the special token <|im_end|>; take it out"),
        ("[IMG]", "the text holds the special token [IMG]; take it out"),
        ("a dog | in an [img] <image> im_end", None),
    ],
)
def test_texts_that_cannot_be_learned_from_are_told(tmp_path, text, problem):
    assert text_problem(text) == problem
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    rows = [{"image": "a.png", "caption": text}, {"turns": [["a", "b"], ["a", text.replace("<image>", "")]]}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = open_source({"path": str(tmp_path / "a.jsonl")})
    for index in range(2):
        if problem is None:
            assert source[index].key.endswith(f"a.jsonl:{index + 1}")
        else:
            with pytest.raises(BadItem) as caught:
                source[index]
            assert str(caught.value) == f"{tmp_path / 'a.jsonl'}:{index + 1}: {problem}"


def test_bytes_that_are_no_utf_8_can_be_kept_for_the_item_they_are_in():
    text = decode_text(b"a caf\xe9", keep_bad_bytes=True)
    assert text == "a caf\udce9" and text_problem(text).startswith("not UTF-8 text (byte 0xe9)")
