"""Doors for small memories: precision, device maps, offloading, casting layer by layer, and quantisation.

There is no accelerator here, so offloading goes from the CPU to the CPU. To show that every weight is brought back
before it is used, what is offloaded is lost (`nan`, or the meta device) until a hook brings it back.
"""

import re
from collections import Counter

import accelerate
import pytest
import torch
from accelerate.hooks import CpuOffload
from diffusers import AutoencoderKL, PipelineQuantizationConfig
from diffusers import BitsAndBytesConfig as DiffusersBitsAndBytesConfig
from diffusers import TorchAoConfig as DiffusersTorchAoConfig
from diffusers.hooks.group_offloading import ModuleGroup
from tests.published_layout import CHANNELS, write_published_checkpoint
from transformers import BitsAndBytesConfig, QuantoConfig, TorchAoConfig

from blip3o_hf import (
    Blip3oDecoderPipeline,
    Blip3oForConditionalGeneration,
    Blip3oPipeline,
    EvaClipVisionModel,
    packaged_model_path,
)

CPU = torch.device("cpu")
LAYOUTS = ("published", "ours")
PRECISIONS = {torch.bfloat16: 0.1, torch.float16: 0.01}  # largest difference, of the largest value
SETTINGS = {"null_seed": 0, "default_num_inference_steps": 2}
ROUNDING = 1e-5  # the same sums in another order
EIGHT_BITS = 0.1
FOUR_BITS = 0.6
OFFLOADING = ("enable_model_cpu_offload", "enable_sequential_cpu_offload")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same weights in the published layout and in ours, with the published target encoder."""
    root = tmp_path_factory.mktemp("memory")
    write_published_checkpoint(root / "published", target_encoder=True, diffusion_decoder=True, shards=2, tied=False)
    Blip3oPipeline.from_pretrained(root / "published").save_pretrained(root / "ours")
    return {name: root / name for name in LAYOUTS}


@pytest.fixture(params=LAYOUTS)
def folder(request, folders):
    return folders[request.param]


@pytest.fixture(scope="module")
def ours(folders):
    return folders["ours"]


@pytest.fixture(scope="module")
def expected(folders):
    """What every door must draw: features and images of the pipeline in fp32, all on one device."""
    return draw(load(folders["published"]))


@pytest.fixture
def nothing_stays_offloaded(monkeypatch):
    """
    Make offloading from the CPU to the CPU lose weights until they are brought back.

    `enable_sequential_cpu_offload` asks for the device `cpu:0`, to which a copy of a parameter is no parameter: it
    gets the plain `cpu` here.
    """
    kept = {}

    def weights(module):
        named = (*module.named_parameters(), *module.named_buffers())
        return [(name, tensor) for name, tensor in named if tensor.is_floating_point()]

    init_hook, pre_forward, offload_group = CpuOffload.init_hook, CpuOffload.pre_forward, ModuleGroup.offload_
    cpu_offload = accelerate.cpu_offload

    def offload_module(hook, module):
        module = init_hook(hook, module)
        for name, tensor in weights(module):
            kept.setdefault((module, name), tensor.detach().clone())
            tensor.data.fill_(torch.nan)
        return module

    def bring_back(hook, module, *args, **kwargs):
        result = pre_forward(hook, module, *args, **kwargs)
        for name, tensor in weights(module):
            tensor.data.copy_(kept[module, name])
        return result

    def offload_group_and_lose(group):
        offload_group(group)
        for tensor in (*group.parameters, *(tensor for module in group.modules for _, tensor in weights(module))):
            tensor.data = torch.full_like(tensor, torch.nan)

    monkeypatch.setattr(CpuOffload, "init_hook", offload_module)
    monkeypatch.setattr(CpuOffload, "pre_forward", bring_back)
    monkeypatch.setattr(ModuleGroup, "offload_", offload_group_and_lose)
    monkeypatch.setattr(accelerate, "cpu_offload", lambda model, _, **kwargs: cpu_offload(model, CPU, **kwargs))


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load(folder, **settings):
    return quiet(Blip3oPipeline.from_pretrained(folder, **{**SETTINGS, **settings}))


def load_model(folder, **settings):
    subfolder = {"subfolder": "model"} if folder.name == "ours" else {}
    return Blip3oForConditionalGeneration.from_pretrained(folder, **subfolder, **settings)


def load_encoder(folder, **settings):
    return EvaClipVisionModel.from_pretrained(folder, num_attention_heads=2, **settings)


def load_decoder(folder, **settings):
    return quiet(Blip3oDecoderPipeline.from_pretrained(folder / "diffusion-decoder", **settings))


def draw(pipeline, prompt="the cat", seed=0, **settings):
    """Features and images in fp32, in two steps each."""
    if pipeline.unet is not None:
        settings = {"decoder_num_inference_steps": 2, **settings}
    output = pipeline(prompt, generator=seeded(seed), output_type="pt", **{"num_inference_steps": 2, **settings})
    return output.image_features.float(), output.images.float()


def decode(pipeline, **settings):
    features = torch.randn(2, CHANNELS, 8, 8, generator=seeded(1))
    null = torch.randn(1, CHANNELS, 8, 8, generator=seeded(2))
    settings = {"num_inference_steps": 2, "output_type": "pt", "generator": seeded(), **settings}
    return pipeline(features, null, **settings).images.float()


def encode(encoder):
    size = encoder.config.image_size
    with torch.no_grad():
        return encoder(torch.randn(1, 3, size, size, generator=seeded())).last_hidden_state.float()


def difference(actual, expected):
    """Largest difference, of the largest value."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def assert_draws(pipeline, expected, tolerance=0.0, **settings):
    for actual, reference in zip(draw(pipeline, **settings), expected, strict=True):
        assert difference(actual, reference) <= tolerance


def nbytes(module):
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def test_tolerances_tell_pictures_apart(folders, expected):
    """Another seed is further away than any tolerance here allows."""
    features, _ = draw(load(folders["published"]), seed=1)
    assert difference(features, expected[0]) > FOUR_BITS
    packaged = load(packaged_model_path("blip3o-tiny"))
    features = [draw(packaged, "two red circles", seed)[0] for seed in range(2)]
    assert difference(*features) > FOUR_BITS


# Precision


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_a_pipeline_in_half_precision_draws_nearly_the_same(folder, dtype, expected):
    pipeline = load(folder, dtype=dtype)
    for part in (pipeline.model, pipeline.unet, pipeline.vae):
        assert {parameter.dtype for parameter in part.parameters()} == {dtype}
    assert_draws(pipeline, expected, PRECISIONS[dtype])


@pytest.mark.parametrize("part", ["model", "unet", "vae"])
def test_parts_of_different_precision_work_together(ours, part, expected):
    for dtype in ({part: torch.bfloat16}, {"default": torch.bfloat16, part: torch.float32}):
        assert_draws(load(ours, dtype=dtype), expected, PRECISIONS[torch.bfloat16])


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_a_model_in_half_precision_reads_nearly_the_same(folder, dtype):
    model = load_model(folder, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    inputs = load(folder).processor.encode_prompts(["the cat"])
    with torch.no_grad():
        condition = load_model(folder).encode_condition(**inputs)
        assert difference(model.encode_condition(**inputs).float(), condition) < PRECISIONS[dtype]


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_a_decoder_in_half_precision_draws_nearly_the_same(folders, dtype):
    decoder = load_decoder(folders["published"], dtype=dtype)
    assert (decoder.unet.dtype, decoder.vae.dtype) == (dtype, dtype)
    assert difference(decode(decoder), decode(load_decoder(folders["published"]))) < PRECISIONS[dtype]


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_an_encoder_in_half_precision_reads_nearly_the_same(folders, dtype, tmp_path):
    encoder = load_encoder(folders["published"])
    encoder.save_pretrained(tmp_path)
    for source in (folders["published"], tmp_path):
        half = load_encoder(source, dtype=dtype)
        assert half.dtype == dtype
        assert difference(encode(half), encode(encoder)) < PRECISIONS[dtype]


def test_the_packaged_pipeline_draws_in_bfloat16():
    """Its pictures have sharp edges, and single pixels on them may flip."""
    folder, settings = packaged_model_path("blip3o-tiny"), {"num_inference_steps": 4}
    _, images = draw(load(folder), "two red circles", **settings)
    for dtype in (torch.bfloat16, {"model": torch.bfloat16}, {"decoder": torch.bfloat16}):
        _, actual = draw(load(folder, dtype=dtype), "two red circles", **settings)
        assert (actual - images).abs().mean() < 0.05  # another seed's picture differs by 0.8


# Device maps


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, "auto"])
def test_a_model_with_a_device_map_draws_the_same(folder, device_map, expected):
    model = load_model(folder, device_map=device_map)
    assert_draws(load(folder, model=model), expected)


@pytest.mark.parametrize("device_map", ["cpu", "balanced"])
def test_a_pipeline_with_a_device_map_draws_the_same(folder, device_map, expected):
    assert_draws(load(folder, device_map=device_map), expected)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_model_larger_than_memory_draws_from_disk(folder, share, expected, tmp_path):
    """Weights on disk are read where they lie in the file, so sums are rounded in another order."""
    memory = int(share * nbytes(load_model(folder)))
    model = load_model(folder, device_map="auto", max_memory={"cpu": memory}, offload_folder=tmp_path)
    assert "disk" in model.hf_device_map.values()
    assert sum(parameter.nbytes for parameter in model.parameters() if not parameter.is_meta) <= memory
    blocks = {name for name in model.hf_device_map if re.search(r"(transformer|language_model)\.layers\.\d+\.", name)}
    assert not blocks, "a block must not be split"
    assert_draws(load(folder, model=model), expected, ROUNDING)


def test_a_block_of_the_transformer_is_the_smallest_piece(ours, tmp_path):
    model = load_model(ours)
    memory = nbytes(model) - nbytes(model.transformer.layers[-1]) // 2
    model = load_model(ours, device_map="auto", max_memory={"cpu": memory}, offload_folder=tmp_path)
    places = {model.hf_device_map[name] for name in model.hf_device_map if name.startswith("transformer.layers.")}
    assert places == {"cpu", "disk"}


def test_an_encoder_larger_than_memory_reads_from_disk(folders, tmp_path):
    encoder = load_encoder(folders["published"])
    encoder.save_pretrained(tmp_path / "ours")
    for source in (folders["published"], tmp_path / "ours"):
        offloaded = load_encoder(
            source, device_map="auto", max_memory={"cpu": nbytes(encoder) // 2}, offload_folder=tmp_path / "disk"
        )
        assert any(parameter.is_meta for parameter in offloaded.parameters())
        assert difference(encode(offloaded), encode(encoder)) <= ROUNDING


# Offloading


@pytest.mark.parametrize("method", OFFLOADING)
def test_an_offloaded_pipeline_draws_the_same_again_and_again(folder, method, expected, nothing_stays_offloaded):
    pipeline = load(folder)
    getattr(pipeline, method)(device="cpu")
    parts = (pipeline.model, pipeline.unet, pipeline.vae)
    for _ in range(2):
        for part in parts:
            assert all(parameter.is_meta or parameter.isnan().all() for parameter in part.parameters())
        assert_draws(pipeline, expected)


@pytest.mark.parametrize("method", OFFLOADING)
def test_an_offloaded_decoder_pipeline_draws_the_same(folders, method, nothing_stays_offloaded):
    expected = decode(load_decoder(folders["published"]))
    pipeline = load_decoder(folders["published"])
    getattr(pipeline, method)(device="cpu")
    assert torch.equal(decode(pipeline), expected)
    assert torch.equal(decode(pipeline), expected)


@pytest.mark.parametrize("method", OFFLOADING)
def test_the_packaged_pipeline_offloads(method, nothing_stays_offloaded):
    folder = packaged_model_path("blip3o-tiny")
    expected = draw(load(folder))
    pipeline = load(folder)
    getattr(pipeline, method)(device="cpu")
    assert_draws(pipeline, expected)


@pytest.mark.parametrize("method", OFFLOADING)
def test_every_public_stage_brings_its_part_back(ours, method, nothing_stays_offloaded):
    plain, offloaded = load(ours), load(ours)
    getattr(offloaded, method)(device="cpu")

    def stages(pipeline):
        condition = pipeline.encode_prompt(["the cat"])
        yield condition
        pipeline.maybe_free_model_hooks()
        latents = pipeline.prepare_latents(1, seeded())
        features = pipeline.denoise(latents, condition, 2, 3.0)
        yield features
        pipeline.maybe_free_model_hooks()
        yield pipeline.decode_features(features, num_inference_steps=2, generator=seeded())

    for actual, expected in zip(stages(offloaded), stages(plain), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("method", OFFLOADING)
def test_a_condition_is_enough_for_an_offloaded_pipeline(make_pipeline, method, nothing_stays_offloaded):
    pipeline = make_pipeline()
    condition = pipeline.encode_prompt(["two red circles"])
    expected = draw(pipeline, None, condition=condition)
    getattr(pipeline, method)(device="cpu")
    assert_draws(pipeline, expected, prompt=None, condition=condition)


@pytest.mark.parametrize(
    "method",
    [
        *OFFLOADING,
    ],
)
def test_an_offloaded_model_regresses_features_of_a_condition(make_pipeline, method, nothing_stays_offloaded):
    pipeline = make_pipeline(objective="feature_regression", num_queries=16)
    condition = pipeline.encode_prompt(["two red circles"])
    expected = draw(pipeline, None, condition=condition)
    getattr(pipeline, method)(device="cpu")
    assert_draws(pipeline, expected, prompt=None, condition=condition)


@pytest.mark.parametrize("part", ["pipeline", "transformer", "unet", "vae"])
def test_groups_of_leaves_are_offloaded(ours, part, expected, tmp_path, nothing_stays_offloaded):
    pipeline = load(ours)
    owner = pipeline if part == "pipeline" else getattr(pipeline, part)
    owner.enable_group_offload(onload_device=CPU, offload_type="leaf_level", offload_to_disk_path=str(tmp_path))
    modules = (pipeline.model, pipeline.unet, pipeline.vae) if part == "pipeline" else (owner,)
    assert all(parameter.isnan().all() for module in modules for parameter in module.parameters())
    assert_draws(pipeline, expected)
    assert any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "part",
    [
        "transformer",
        "unet",
        "vae",
    ],
)
def test_groups_of_blocks_are_offloaded(ours, part, expected, tmp_path, nothing_stays_offloaded):
    pipeline = load(ours)
    getattr(pipeline, part).enable_group_offload(
        onload_device=CPU, offload_type="block_level", num_blocks_per_group=1, offload_to_disk_path=str(tmp_path)
    )
    assert_draws(pipeline, expected, ROUNDING)


# Small activations


def test_a_vae_decodes_image_by_image_and_tile_by_tile(ours):
    pipeline = load(ours)
    settings = {"prompt": ["the cat", "a"], "height": 128, "width": 128}
    (_, whole), pieces = draw(pipeline, **settings), []
    decode = pipeline.vae.decoder.forward
    pipeline.vae.decoder.forward = lambda latents, *args: pieces.append(tuple(latents.shape)) or decode(latents, *args)
    pipeline.vae.enable_slicing()
    assert difference(draw(pipeline, **settings)[1], whole) <= ROUNDING
    assert set(pieces) == {(1, 4, 16, 16)}
    pieces.clear()
    pipeline.vae.enable_tiling()
    _, tiled = draw(pipeline, **settings)
    assert max(max(shape) for shape in pieces) == 8 and tiled.shape == whole.shape
    assert (tiled - whole).abs().mean() < 0.1


def test_attention_slicing_draws_the_same(ours, expected):
    pipeline = load(ours)
    pipeline.enable_attention_slicing()
    names = {type(processor).__name__ for processor in pipeline.unet.attn_processors.values()}
    assert names == {"SlicedAttnProcessor"}
    assert_draws(pipeline, expected, ROUNDING)


# Casting layer by layer


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
def test_transformer_and_unet_are_kept_in_eight_bits(ours, compute_dtype, expected):
    pipeline = load(ours, dtype=compute_dtype)
    for part in (pipeline.transformer, pipeline.unet):
        before = nbytes(part)
        part.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=compute_dtype)
        assert nbytes(part) < before * 0.9
        assert part.dtype == compute_dtype
    stored = {name: parameter.dtype for name, parameter in pipeline.transformer.named_parameters()}
    for name in ("attn1.to_q", "attn2.to_out.0", "feed_forward.linear_1"):
        assert stored[f"layers.0.{name}.weight"] == torch.float8_e4m3fn
    for name, dtype in stored.items():
        if re.search(r"gate$|norm|time_caption_embed|patch_embedder", name):
            assert dtype == compute_dtype, name
    for actual, reference in zip(draw(pipeline), expected, strict=True):
        assert (actual - reference).norm() < 0.25 * reference.norm()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16])
def test_a_decoder_in_one_pass_is_kept_in_fewer_bits(make_pipeline, dtype):
    pipeline = make_pipeline()
    expected = draw(pipeline)
    pipeline.decoder.enable_layerwise_casting(storage_dtype=dtype, compute_dtype=torch.float32)
    assert dtype in {parameter.dtype for parameter in pipeline.decoder.parameters()}
    assert_draws(pipeline, expected, 0.1)


def test_a_vae_that_decodes_latents_is_kept_in_eight_bits(make_pipeline):
    torch.manual_seed(0)
    vae = AutoencoderKL(latent_channels=16, block_out_channels=(8,), norm_num_groups=4).eval()
    pipeline = make_pipeline(decoder=vae, objective="latent_flow")
    expected = draw(pipeline)
    vae.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert_draws(pipeline, expected, 0.2)


# Quantisation


def torchao():
    """Weights of linear layers in 8 bits, for transformers and for diffusers."""
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig()), DiffusersTorchAoConfig(Int8WeightOnlyConfig())


def bitsandbytes():
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(load_in_8bit=True), DiffusersBitsAndBytesConfig(load_in_8bit=True)


def quanto():
    pytest.importorskip("optimum.quanto")
    return QuantoConfig(weights="int8"), None


def quantisers(*functions):
    return pytest.mark.parametrize("quantiser", functions, ids=[function.__name__ for function in functions])


def kinds(module):
    """Number of parameters that are quantised, and that are not."""
    counts = Counter(type(parameter) is torch.nn.Parameter for parameter in module.parameters())
    return counts[False], counts[True]


@quantisers(torchao, bitsandbytes, quanto)
def test_a_quantised_model_draws_nearly_the_same(folder, quantiser, expected):
    model = load_model(folder, quantization_config=quantiser()[0], device_map="cpu", dtype=torch.float32)
    assert {name for name, parameter in model.named_parameters() if type(parameter) is not torch.nn.Parameter} == {
        f"{name}.weight"
        for name, module in load_model(folder).named_modules()
        if isinstance(module, torch.nn.Linear) and name != "backbone.lm_head"
    }
    assert model.transformer.dtype == torch.float32
    assert_draws(load(folder, model=model), expected, EIGHT_BITS)


@quantisers(torchao, bitsandbytes, quanto)
def test_a_quantised_encoder_reads_nearly_the_same(folders, quantiser, tmp_path):
    encoder = load_encoder(folders["published"])
    encoder.save_pretrained(tmp_path)
    for source in (folders["published"], tmp_path):
        quantised = load_encoder(source, quantization_config=quantiser()[0], device_map="cpu")
        assert kinds(quantised)[0] == 4 * encoder.config.num_hidden_layers
        assert difference(encode(quantised), encode(encoder)) < EIGHT_BITS


@quantisers(torchao, bitsandbytes)
def test_a_quantised_model_is_saved_and_loaded(folder, quantiser, tmp_path):
    config = PipelineQuantizationConfig(quant_mapping={"model": quantiser()[0]})
    pipeline = load(folder, quantization_config=config)
    assert kinds(pipeline.model)[0] and not kinds(pipeline.unet)[0]
    expected = draw(pipeline)
    pipeline.save_pretrained(tmp_path)
    saved = load(tmp_path)
    assert kinds(saved.model) == kinds(pipeline.model)
    assert_draws(saved, expected)
    assert_draws(load(tmp_path, model=Blip3oForConditionalGeneration.from_pretrained(tmp_path)), expected)


@pytest.mark.parametrize("parts", [("model",), ("unet",), ("model", "unet", "vae")], ids="+".join)
def test_parts_of_a_pipeline_are_quantised(folder, parts, expected, tmp_path):
    for_model, for_others = torchao()
    mapping = {part: for_model if part == "model" else for_others for part in parts}
    for dtype in (torch.float32, torch.bfloat16):
        pipeline = load(folder, quantization_config=PipelineQuantizationConfig(quant_mapping=mapping), dtype=dtype)
        for part in ("model", "unet", "vae"):
            assert (kinds(getattr(pipeline, part))[0] > 0) == (part in parts)
        assert_draws(pipeline, expected, EIGHT_BITS + PRECISIONS[torch.bfloat16])
    images = draw(pipeline)
    pipeline.save_pretrained(tmp_path)
    assert_draws(load(tmp_path, dtype=dtype), images)


def test_one_backend_quantises_the_parts_that_are_named(folder, expected):
    bitsandbytes()
    config = PipelineQuantizationConfig(
        quant_backend="bitsandbytes_8bit", quant_kwargs={"load_in_8bit": True}, components_to_quantize=["model"]
    )
    pipeline = load(folder, quantization_config=config)
    assert kinds(pipeline.model)[0] and not kinds(pipeline.unet)[0]
    assert_draws(pipeline, expected, EIGHT_BITS)


def test_a_quantised_pipeline_offloads(ours):
    for_model, for_unet = torchao()
    config = PipelineQuantizationConfig(quant_mapping={"model": for_model, "unet": for_unet})
    expected = draw(load(ours, quantization_config=config))
    pipeline = load(ours, quantization_config=config)
    pipeline.enable_model_cpu_offload(device="cpu")
    assert_draws(pipeline, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_packaged_model_draws_in_four_bits(dtype):
    pytest.importorskip("bitsandbytes")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    folder = packaged_model_path("blip3o-tiny")
    model = Blip3oForConditionalGeneration.from_pretrained(
        folder, subfolder="model", quantization_config=config, device_map="cpu", dtype=dtype
    )
    pipeline = load(folder)
    assert nbytes(model) < nbytes(pipeline.model) / 5
    _, images = draw(pipeline, "two red circles", num_inference_steps=4)
    _, actual = draw(load(folder, model=model), "two red circles", num_inference_steps=4)
    assert (actual - images).abs().mean() < 0.1
