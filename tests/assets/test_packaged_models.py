"""Names and folders of models, and what is said when there is none."""

from pathlib import Path

import pytest

from blip3o_hf.assets import packaged_model_path, packaged_models, resolve_model


def test_the_embedded_default_is_packaged():
    assert packaged_models() == ["blip3o-tiny"]
    assert Path(packaged_model_path(), "model_index.json").is_file()


def test_an_unknown_packaged_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"Got 'blip3o-4b'. Available: blip3o-tiny\."):
        packaged_model_path("blip3o-4b")


def test_a_model_is_a_packaged_name_a_folder_or_a_hub_id(tmp_path, monkeypatch):
    assert resolve_model("blip3o-tiny") == packaged_model_path("blip3o-tiny")
    assert resolve_model(str(tmp_path)) == str(tmp_path)
    assert resolve_model("owner/name") == "owner/name"
    monkeypatch.chdir(tmp_path)
    Path("owner/name").mkdir(parents=True)
    assert resolve_model("owner/name") == str(Path("owner/name"))


@pytest.mark.parametrize("name", ["blip3o-tinny", "./missing", "/missing/model", "a/b/c"])
def test_anything_else_is_answered_with_what_was_looked_for(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        resolve_model(name)
    assert repr(name) in str(caught.value)
    assert "packaged checkpoint (blip3o-tiny)" in str(caught.value)
    assert "a folder" in str(caught.value)
