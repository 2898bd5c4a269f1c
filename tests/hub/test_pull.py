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


def test_push_to_hub_of_a_pipeline_wants_a_licence_and_sends_nothing_without(results):
    found = results["classes"]
    for message in found["refused"][:2]:
        assert message.startswith("A pushed model needs a card that says under which licence others may use it.")
        assert "None is stated for tester/unlicensed. Pass it (`license='apache-2.0'`)" in message
    assert found["refused"][2].startswith("A licence is stated in a card that this package writes")
    assert found["of refused"] is False


def test_push_to_hub_of_a_pipeline_sends_our_card_and_keeps_that_of_a_repository(results, hub):
    found = results["classes"]
    assert found["url"].startswith(f"{hub.endpoint}/tester/pipe/commit/")
    assert "\nlicense: apache-2.0\n" in found["card"] and "\n# pipe\n" in found["card"]
    assert 'Blip3oPipeline.from_pretrained("tester/pipe")' in found["card"]
    kept = found["card of the repository"]
    assert "A person wrote this." in kept and "A person wrote this." not in found["card"]
    assert hub.repos["model", "tester/pipe"].titles[-1] == "Again"
    of_repository, of_folder = found["card of the folder"]
    assert of_repository == of_folder and "\nlicense: mit\n" in of_folder


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
