"""A converted checkpoint is what a loaded and saved one is; interrupted work goes on; damage leaves nothing behind."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from tests.published_layout import write_published_checkpoint, write_weights

from blip3o_hf import Blip3oForConditionalGeneration, Blip3oPipeline, Blip3oProcessor, EvaClipVisionModel
from blip3o_hf.conversion import published, shards
from blip3o_hf.conversion.published import convert_published
from blip3o_hf.models.target_encoder import load_target_encoder

VARIANTS = {
    "4b": {"tied": True},
    "8b": {"tied": False, "shards": 4, "diffusion_decoder": True},
    "training_class": {"model_type": "blip3o_qwen", "target_encoder": True, "shards": 3},
    "bfloat16": {"dtype": torch.bfloat16, "shards": 2, "num_key_value_heads": 2},
    "no_tokenizer": {"tokenizer": None, "image_processor": False},
}


@pytest.fixture
def source(tmp_path):
    return tmp_path / "source"


@pytest.fixture
def target(tmp_path):
    return tmp_path / "target"


def written(folder):
    """Every file of a folder by its relative name: JSON as values, tensors by name over all files of a model."""
    contents = {}
    for path in sorted(Path(folder).rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            contents.setdefault(f"{path.parent.relative_to(folder)} tensors", {}).update(load_file(path))
        elif path.suffix == ".json" and "index" not in name:
            contents[name] = json.loads(path.read_text())
            contents[name].pop("_name_or_path", None)  # where a model was loaded from
        elif path.is_file() and "index" not in name and path.name != "README.md":
            contents[name] = path.read_text()
    return contents


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        if name.endswith(" tensors"):
            assert actual[name].keys() == value.keys()
            for key in value:
                assert actual[name][key].dtype == value[key].dtype, key
                assert torch.equal(actual[name][key], value[key]), key
        else:
            assert actual[name] == value, name


@pytest.mark.parametrize("max_shard_size", [5 * 10**9, 50_000])
@pytest.mark.parametrize("variant", VARIANTS)
def test_converting_equals_loading_and_saving(source, target, tmp_path, variant, max_shard_size):
    write_published_checkpoint(source, **VARIANTS[variant])
    convert_published(source, target, max_shard_size=max_shard_size)
    Blip3oPipeline.from_pretrained(source).save_pretrained(tmp_path / "saved")
    assert_same(written(target), written(tmp_path / "saved"))
    index = json.loads((target / "model_index.json").read_text())
    assert index == json.loads((tmp_path / "saved" / "model_index.json").read_text())


@pytest.mark.parametrize("max_shard_size", [5 * 10**9, 50_000])
def test_every_door_draws_and_answers_the_same(source, target, max_shard_size):
    write_published_checkpoint(source, diffusion_decoder=True, shards=2)
    convert_published(source, target, max_shard_size=max_shard_size)

    def draw(pipeline):
        pipeline.set_progress_bar_config(disable=True)
        steps = {"num_inference_steps": 2, "decoder_num_inference_steps": 2}
        return pipeline("the cat", generator=torch.Generator().manual_seed(0), output_type="pt", **steps).images

    images = draw(Blip3oPipeline.from_pretrained(source))
    for pipeline_class in (Blip3oPipeline, DiffusionPipeline):
        assert torch.equal(draw(pipeline_class.from_pretrained(target)), images)
    inputs = Blip3oProcessor.from_pretrained(target).encode_prompts(["the cat"])
    expected = Blip3oForConditionalGeneration.from_pretrained(source)(**inputs).logits
    assert torch.equal(Blip3oForConditionalGeneration.from_pretrained(target)(**inputs).logits, expected)


def test_files_are_as_large_as_asked_and_hold_what_the_index_says(source, target):
    write_published_checkpoint(source, tied=False)
    convert_published(source, target, max_shard_size=50_000)
    index = json.loads((target / "model/model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (target / "model").glob("*.safetensors"))
    assert len(files) > 3 and set(index["weight_map"].values()) == set(files)
    total = 0
    for name in files:
        tensors = load_file(target / "model" / name)
        assert {key for key, file in index["weight_map"].items() if file == name} == tensors.keys()
        size = sum(tensor.nbytes for tensor in tensors.values())
        assert size <= 50_000 or len(tensors) == 1
        total += size
    assert index["metadata"]["total_size"] == total


def test_the_target_encoder_comes_on_request(source, target):
    write_published_checkpoint(source, target_encoder=True, shards=2)
    convert_published(source, target, with_target_encoder=True, target_encoder_heads=3)
    encoder, image_processor = load_target_encoder(str(target / "target_encoder"))
    expected = EvaClipVisionModel.from_pretrained(source, num_attention_heads=3)
    assert encoder.config.num_attention_heads == 3
    for name, tensor in expected.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], tensor)
    assert image_processor.crop_size["height"] == encoder.config.image_size


# The report


def test_every_tensor_of_the_source_is_in_the_report(source, target):
    tensors = write_published_checkpoint(source, target_encoder=True, tied=True)
    write_weights(source, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    report = convert_published(source, target)
    assert report.moved.total() == len(tensors) + 1
    patterns = {pattern for pattern, _ in report.moved}
    assert {re.sub(r"\.\d+\.", ".{i}.", name) for name in tensors} | {"lm_head.weight"} == patterns
    assert report.moved["model.latent_queries", "model/ queries.weight"] == 1
    assert report.moved["lm_head.weight", "left out: the same as the input embeddings"] == 1
    gate = "model.dit.model.layers.{i}.gate"
    assert report.moved[gate, "model/ transformer.layers.{i}.gate"] == 3
    tower = "model.gen_vision_tower.vision_tower.model.cls_token"
    assert report.moved[tower, "left out: target encoder"] == 1
    text = str(report)
    assert re.search(rf"{re.escape(gate)} +3  model/ transformer\.layers\.\{{i\}}\.gate\n", text)
    assert re.search(rf"all +{len(tensors) + 1}\n", text)
    assert text.endswith("no decoder: the source holds no diffusion-decoder/")


def test_the_report_counts_the_decoder_and_names_what_is_missing(source, target, tmp_path):
    write_published_checkpoint(source, diffusion_decoder=True, tokenizer=None)
    report = convert_published(source, target)
    unet = load_file(source / "diffusion-decoder/unet/diffusion_pytorch_model.safetensors")
    assert report.moved["diffusion-decoder/unet/*", "unet/ the same names"] == len(unet)
    assert report.notes == ["no processor: the source holds no tokenizer"]


def test_the_card_says_where_it_comes_from(source, target):
    write_published_checkpoint(source, diffusion_decoder=True)
    report = convert_published(source, target)
    card = (target / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: blip3o_hf\npipeline_tag: text-to-image\n")
    assert "from the folder `source`" in " ".join(card.split()) and 'Blip3oPipeline.from_pretrained("target")' in card
    assert report.summary() in card and "unet/" in report.summary()


# Interruption


def interrupt_after(monkeypatch, number):
    """The disk's plug is pulled once so many files are written."""
    plain, count = shards.write_shard, iter(range(number))

    def write(*args):
        if next(count, None) is None:
            raise KeyboardInterrupt
        plain(*args)

    monkeypatch.setattr(published, "write_shard", write)


def test_an_interrupted_conversion_goes_on_where_it_stopped(source, target, tmp_path, monkeypatch):
    write_published_checkpoint(source, tied=False, shards=3, diffusion_decoder=True)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            convert_published(source, target, max_shard_size=50_000)
    assert not target.exists()
    partial = tmp_path / "target.partial"
    finished = {path: path.stat().st_mtime_ns for path in partial.rglob("*.safetensors")}
    assert len(finished) == 3
    (partial / "model" / ".unfinished.safetensors").write_bytes(b"half")

    convert_published(source, target, max_shard_size=50_000)
    assert not partial.exists()
    kept = {target / path.relative_to(partial): time for path, time in finished.items()}
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    convert_published(source, tmp_path / "whole", max_shard_size=50_000)
    actual, expected = written(target), written(tmp_path / "whole")
    assert_same(actual, expected)


@pytest.mark.parametrize("left", [(), (".abcd1234.json",), (".lock", ".abcd1234.json")])
def test_work_that_was_killed_as_it_began_is_begun_anew(source, target, tmp_path, left):
    write_published_checkpoint(source)
    (tmp_path / "target.partial").mkdir()
    for name in left:
        (tmp_path / "target.partial" / name).write_text("{")
    convert_published(source, target)
    assert not list(target.rglob(".*")) and not (target / published.STATE).exists()


def test_a_finished_file_that_lost_its_end_is_written_again(source, target, tmp_path, monkeypatch):
    """As a power cut may leave it."""
    write_published_checkpoint(source)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            convert_published(source, target, max_shard_size=50_000)
    file = min((tmp_path / "target.partial" / "model").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:100])
    convert_published(source, target, max_shard_size=50_000)
    convert_published(source, tmp_path / "whole", max_shard_size=50_000)
    assert_same(written(target), written(tmp_path / "whole"))


def test_one_process_at_a_time_writes_a_target(source, target, tmp_path, monkeypatch):
    write_published_checkpoint(source)
    messages = []

    def write(*args):
        with pytest.raises(ValueError) as error:
            convert_published(source, target)
        messages.append(str(error.value))
        shards.write_shard(*args)

    monkeypatch.setattr(published, "write_shard", write)
    convert_published(source, target)
    message = f"Only one process may write a target at a time. Another one is writing {tmp_path}/target.partial. Wait"
    assert messages and all(text.startswith(message) for text in messages)
    assert Blip3oForConditionalGeneration.from_pretrained(target)


@pytest.mark.parametrize("change", ["source", "size", "file"])
def test_the_work_of_another_conversion_is_not_continued(source, target, tmp_path, monkeypatch, change):
    tensors = write_published_checkpoint(source, shards=2)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            convert_published(source, target, max_shard_size=50_000)
    settings = {"max_shard_size": 50_000}
    if change == "source":
        source = shutil.copytree(source, tmp_path / "other")
    elif change == "size":
        settings = {"max_shard_size": 60_000}
    else:
        write_weights(source, tensors, shards=2)
    partial = tmp_path / "target.partial"
    before = sorted(partial.rglob("*"))
    with pytest.raises(ValueError, match=re.escape(f"{partial} belongs to another conversion: another source")):
        convert_published(source, target, **settings)
    assert sorted(partial.rglob("*")) == before


# Bad input: nothing is written


def assert_refused(source, target, message, error=ValueError, **settings):
    with pytest.raises(error, match=message):
        convert_published(source, target, **settings)
    assert [path.name for path in target.parent.iterdir() if path.name.startswith("target")] == []


def test_a_source_that_is_no_published_checkpoint_is_refused(make_model, source, target):
    make_model().save_pretrained(source)
    message = f"{source} is not one: its model_type is 'blip3o'. Our own layout needs no conversion."
    assert_refused(source, target, re.escape(message))
    assert_refused(source / "nowhere", target, "The source must be a published BLIP3-o checkpoint")


def test_a_target_that_exists_is_left_alone(source, target):
    write_published_checkpoint(source)
    target.mkdir()
    with pytest.raises(FileExistsError, match=re.escape(f"The target must not exist yet. {target} does.")):
        convert_published(source, target)
    assert list(target.iterdir()) == []
    target.rmdir()
    target.symlink_to("nowhere")
    with pytest.raises(FileExistsError, match=re.escape(f"The target must not exist yet. {target} does.")):
        convert_published(source, target)
    assert list(target.parent.glob("target.*")) == []


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_no_numbers_are_refused_by_file_and_tensor(source, target, dtype, value):
    name = "model.layers.1.mlp.down_proj.weight"
    tensors = write_published_checkpoint(source, shards=2, dtype=dtype)
    tensors[name][-1, -1] = value
    write_weights(source, tensors, shards=2)
    file = f"model-{1 + sorted(tensors).index(name) % 2:05d}-of-00002.safetensors"
    message = f"Weights must be finite numbers. {name} (in {file}) holds NaN or infinity."
    assert_refused(source, target, re.escape(message))


def test_a_decoder_of_no_numbers_is_refused(source, target):
    write_published_checkpoint(source, diffusion_decoder=True)
    file = source / "diffusion-decoder/vae/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["decoder.conv_in.bias"][0] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})
    message = f"Weights must be finite numbers. decoder.conv_in.bias (in {file.name}) holds NaN or infinity."
    assert_refused(source, target, re.escape(message))


def test_a_truncated_shard_is_refused_by_file_and_tensor(source, target):
    write_published_checkpoint(source, shards=3)
    file = source / "model-00002-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    assert_refused(source, target, rf"{re.escape(str(file))} is cut short: it has \d+ bytes, and \S+ ends at byte")


def test_a_missing_shard_is_refused_by_name(source, target):
    write_published_checkpoint(source, shards=3)
    (source / "model-00002-of-00003.safetensors").unlink()
    assert_refused(source, target, r"in model-00002-of-00003\.safetensors, which is missing\. Download it\.")


def test_a_config_that_lies_is_refused(source, target):
    write_published_checkpoint(source)
    file = source / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"intermediate_size": 64}))
    assert_refused(source, target, "config.json must describe the tensors beside it")


@pytest.mark.parametrize("lie", [{"dtype": "F64"}, {"data_offsets": [0, 96]}])
def test_a_header_that_lies_is_refused(source, target, lie):
    write_published_checkpoint(source)
    file = source / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["model.norm.weight"].update(lie)
    table = json.dumps(header).encode()
    file.write_bytes(len(table).to_bytes(8, "little") + table + data[8 + length :])
    assert_refused(source, target, re.escape(f"That of {file} does not ("))


@pytest.mark.parametrize("part", ["unet", "scheduler"])
def test_a_decoder_that_lacks_a_part_is_refused(source, target, part):
    write_published_checkpoint(source, diffusion_decoder=True)
    shutil.rmtree(source / "diffusion-decoder" / part)
    assert_refused(source, target, rf"diffusion-decoder lacks {part}/\w+\.json\.")


def test_a_damaged_tokenizer_is_refused(source, target):
    write_published_checkpoint(source)
    (source / "tokenizer.json").write_text("{")
    assert_refused(source, target, re.escape(f"{source}/tokenizer.json does not. Save or download it again."))


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_a_decoder_that_is_not_its_config_s_is_refused(source, target, part):
    write_published_checkpoint(source, diffusion_decoder=True)
    file = source / "diffusion-decoder" / part / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["extra"] = weights.pop("conv_in.bias" if part == "unet" else "quant_conv.bias")
    save_file(weights, file, metadata={"format": "pt"})
    assert_refused(source, target, rf"{part} lacks 1: \S+, and has 1 too many: extra \(in {file.name}\)")


def test_a_target_encoder_that_is_not_there_is_refused(source, target):
    write_published_checkpoint(source)
    assert_refused(source, target, "holds none. Leave it out.", with_target_encoder=True)


def test_a_target_encoder_of_unknown_heads_is_refused(source, target):
    write_published_checkpoint(source, target_encoder=True)
    assert_refused(source, target, "The number of attention heads must be known", with_target_encoder=True)


def test_a_disk_that_is_too_small_is_refused(source, target, monkeypatch):
    write_published_checkpoint(source)
    monkeypatch.setattr(published.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    message = rf"{re.escape(str(target.parent))} has 0\.0 GB left, and 0\.\d GB are to be written\. Free some"
    assert_refused(source, target, message, error=OSError)


def test_a_file_that_shrinks_while_it_is_read_is_refused(source, target, monkeypatch):
    write_published_checkpoint(source)
    plain = published.read_header

    def cut(path):
        header = plain(path)
        path.write_bytes(path.read_bytes()[:-4])
        return header

    monkeypatch.setattr(published, "read_header", cut)
    assert_refused(source, target, r"A file must not change while it is read\. \S+ ends within \S+\.")
