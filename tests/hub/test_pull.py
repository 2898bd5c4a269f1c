"""What was pushed opens by every door of the libraries, and draws what it drew in its folder."""

import pytest
from tests.doors.doors import DRAWING, READING
from tests.hub.standin import TOKENS

SCRIPT = "pull_runs.py"


@pytest.mark.parametrize("door", [*DRAWING, "snapshot"])
def test_a_pushed_pipeline_draws_the_same_by_every_door(results, door):
    assert results["doors"][door] == results["doors"]["drawn from the folder"]
    assert results["doors"]["command"] == 0


@pytest.mark.parametrize("door", READING)
def test_a_pushed_model_answers_the_same_by_every_door(results, door):
    assert results["doors"][door] == results["doors"]["answered from the folder"] != ""


def test_a_revision_has_its_own_model_and_its_own_decoder(results):
    found = results["revisions"]
    assert found["first"] != found["second"]
    assert set(found["of_first"].values()) == {found["first"]}, found["of_first"]


@pytest.mark.parametrize("name", ["pipe", "saved"])
def test_push_to_hub_of_a_pipeline_stores_weights_once_and_opens_by_every_door(results, name):
    found = results["classes"]
    assert found[name]["drawn"] == found[name]["by_task"] == found["local"]
    weights = found[name]["weights"]
    assert set(weights) == {"model/model.safetensors", "decoder/diffusion_pytorch_model.safetensors"}
    assert sum(weights.values()) < 1.01 * sum(found["bytes"].values())
    root = {"model_index.json", "config.json", "model.safetensors.index.json", "processor_config.json", "README.md"}
    assert root <= set(found[name]["files"])


def test_push_to_hub_keeps_private_what_should_be(results):
    assert results["classes"]["private"] is True


def test_push_to_hub_of_model_and_processor_make_one_repository(results):
    found = results["classes"]
    assert found["same_features"]
    assert list(found["weights_of_model"]) == ["model.safetensors"]
    assert found["weights_of_model"]["model.safetensors"] < 1.01 * found["bytes"]["model"]


def test_a_pushed_lora_changes_the_picture_as_its_folder_does(results):
    found = results["adapters"]
    assert found["kind of lora"] == found["kind of peft"] == "LoRA"
    drawn = {found[f"{name} from {place}"] for name in ("lora", "peft") for place in ("folder", "hub")}
    assert len(drawn) == 1 and found["plain"] not in drawn


def test_pushed_features_are_read_from_the_downloaded_dataset(results):
    assert results["features"] == {"kind": "features", "rows": [[0.0], [1.0], [2.0]]}


def test_no_token_is_printed_or_stored(runs, hub):
    results, printed = runs
    assert hub.leaks == [] and hub.unknown == []
    assert not any(token in printed or token in str(results) for token in TOKENS)
