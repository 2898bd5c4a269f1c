"""Saved datasets and rows from elsewhere: what cannot be read is named, and nothing outside their folder is read."""

import io
import json
import tarfile

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from blip3o_hf.data.records import BadItem
from blip3o_hf.data.sources import open_source


@pytest.fixture
def saved(tmp_path):
    datasets.Dataset.from_dict({"image": ["x"], "caption": ["a"]}).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("name", ["../other.arrow", "/etc/passwd", "none.arrow", 5, None, ".."])
def test_a_saved_dataset_names_files_beside_it(saved, name):
    state = json.loads((saved / "state.json").read_text())
    state["_data_files"] = [{"filename": name}]
    (saved / "state.json").write_text(json.dumps(state))
    (saved.parent / "other.arrow").write_bytes((saved / "data-00000-of-00001.arrow").read_bytes())
    with pytest.raises(ValueError, match=r"names files beside it\. .*state\.json names "):
        open_source({"path": str(saved)})


def test_a_saved_dataset_that_is_damaged_is_named(saved):
    (saved / "data-00000-of-00001.arrow").write_bytes(b"x")
    with pytest.raises(ValueError, match=rf"must be what `save_to_disk` wrote\. {saved} is not: Arrow"):
        open_source({"path": str(saved)})
    (saved / "state.json").unlink()
    (saved / "dataset_dict.json").write_text('{"splits": 5}')
    with pytest.raises(ValueError, match=rf"must be what `save_to_disk` wrote\. {saved} is not: TypeError"):
        open_source({"path": str(saved)})


def test_a_row_of_parquet_that_python_cannot_hold_is_a_bad_item(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"image": pa.array([2**40], pa.timestamp("s")), "caption": ["a"]}), path)
    source = open_source({"path": str(path)})
    with pytest.raises(BadItem, match=r"a\.parquet\[0\]: not a readable row \("):
        source[0]


@pytest.mark.parametrize("length", [0, 3, 100])
def test_truncated_parquet_is_named(tmp_path, length):
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"image": ["x"], "caption": ["a"]}), path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=rf"A table must be parquet\. {path} is not: .* Save or download it again\."):
        open_source({"path": str(path)})


def test_parquet_with_damaged_rows_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"image": ["x" * 1000], "caption": ["a"]}), path, compression="gzip")
    content = bytearray(path.read_bytes())
    content[4:60] = bytes(56)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"A table must be whole\. The library `datasets` cannot read {path}: "):
        open_source({"path": str(path)})


@pytest.mark.parametrize(
    ("configs", "reason"),
    [
        ("configs: 5", "holds no list of mappings there"),
        ("configs: [[[[", "is no YAML"),
        ("configs: " + "[" * 2000, "YAML is read up to 64 levels"),
        ("configs: [{config_name: default, data_files: /etc/passwd}]", "names '/etc/passwd'"),
        ("configs: [{config_name: default, data_files: [{path: ../x.parquet}]}]", "names '../x.parquet'"),
        ("configs: [{config_name: default, data_files: 'https://example.org/x.parquet'}]", "names 'https://exam"),
    ],
)
def test_a_card_names_parquet_in_its_folder(tmp_path, configs, reason):
    parquet.write_table(pa.table({"image": ["x"], "caption": ["a"]}), tmp_path / "a.parquet")
    (tmp_path / "README.md").write_text(f"---\n{configs}\n---\n")
    with pytest.raises(ValueError) as error:
        open_source({"path": str(tmp_path)})
    assert reason in str(error.value) and str(tmp_path / "README.md") in str(error.value)
    (tmp_path / "README.md").write_text("---\nconfigs: [{config_name: default, data_files: '*.parquet'}]\n---\n")
    assert len(open_source({"path": str(tmp_path)})) == 1


def test_a_tar_whose_member_claims_a_size_of_no_file(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, headers in (("0.txt", {}), ("1.txt", {"size": "9" * 300})):
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = 1, headers
            tar.addfile(member, io.BytesIO(b"x"))
    source = open_source({"path": str(path)})
    assert len(source) == 2
    for index in range(2):
        with pytest.raises(BadItem, match=f"a.tar:{index}"):
            source[index]
