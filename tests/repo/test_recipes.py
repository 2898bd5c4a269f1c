"""Every recipe parses, its keys are known down to the leaves, and the chain of stages is closed."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPVisionConfig, Qwen3Config, get_scheduler

from blip3o_hf.checks import find_class
from blip3o_hf.data.sources import SourceSettings
from blip3o_hf.models.decoder_patch import Blip3oPatchDecoder
from blip3o_hf.models.transformer_next_dit import Blip3oTransformer2DModel
from blip3o_hf.objectives import OBJECTIVES
from blip3o_hf.preference.recipe_data import TableData
from blip3o_hf.shapes.recipe_data import ShapesData
from blip3o_hf.training.chain import load_chain
from blip3o_hf.training.recipes import STAGES, load_recipe
from blip3o_hf.training.stages import GenerationStage

ROOT = Path(__file__).parents[2]
CHAIN = ROOT / "recipes" / "tiny" / "chain.yaml"
STUDIES = [ROOT / "recipes" / "study" / f"{name}.yaml" for name in ("smoke", "laptop", "tuning", "digits", "paper")]
RECIPES = sorted(
    path
    for path in (ROOT / "recipes").rglob("*.yaml")
    if path.parent.name not in ("accelerate", "serving") and path not in (CHAIN, *STUDIES)
)
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
GENERATION = ROOT / "recipes" / "tiny" / "generation.yaml"

every_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.name}")


def built(path, tmp_path, *overrides):
    """The recipe's stage on a CPU, with empty folders in the place of its inputs."""
    recipe = load_recipe(path, [f"output_dir={tmp_path}", "training.use_cpu=true", *overrides])
    for name in recipe.inputs:
        (tmp_path / name).mkdir(exist_ok=True)
        recipe.inputs[name] = str(tmp_path / name)
    return recipe.open_stage()


def stage_class(name):
    return find_class(name, STAGES, "a test")


def parameters(function):
    return set(inspect.signature(function).parameters)


def test_there_is_a_recipe_for_every_stage():
    assert {load_recipe(path).stage for path in RECIPES} == set(STAGES)


@every_recipe
def test_recipe_gives_a_stage(path, tmp_path):
    stage = built(path, tmp_path)
    assert stage.name == load_recipe(path).stage
    assert Path(stage.arguments.output_dir).parent == tmp_path
    if isinstance(stage.data, ShapesData):
        assert len(stage.data.scenes()) > 0
        return
    if isinstance(stage.data, TableData):
        assert stage.data.places()
        return
    data = stage.recipe.data
    for mixture in (data["pictures"], data["conversations"]) if stage.name == "joint" else (data,):
        assert mixture["sources"]
        for source in mixture["sources"]:
            SourceSettings(**{key: value for key, value in source.items() if key != "weight"})


@every_recipe
def test_nested_model_keys_are_known(path):
    recipe = load_recipe(path)
    if recipe.stage == "encoder":
        assert set(recipe.model["vision"]) <= parameters(CLIPVisionConfig)
        assert set(recipe.model["text"]) <= parameters(CLIPTextConfig)
    elif recipe.stage == "vae":
        assert set(recipe.model) - {"kl_weight"} <= parameters(AutoencoderKL)
    elif recipe.stage == "diffusion_decoder":
        assert set(recipe.model.get("unet", {})) <= parameters(UNet2DConditionModel)
    elif recipe.stage == "decoder":
        assert set(recipe.model) - {"feature_noise", "recolor_rate"} <= parameters(Blip3oPatchDecoder)
    elif recipe.stage == "understanding":
        assert ("text" in recipe.model) == ("encoder" in recipe.inputs)
        assert set(recipe.model.get("text", {})) <= parameters(Qwen3Config)
    elif "model" in recipe.inputs:
        assert not set(recipe.model) & set(stage_class(recipe.stage).size_keys)
    else:
        assert set(recipe.model.get("transformer", {})) <= parameters(Blip3oTransformer2DModel)
        assert recipe.model.get("objective", "feature_flow") in OBJECTIVES


@every_recipe
def test_inputs_are_what_other_recipes_leave(path):
    others = [load_recipe(other) for other in RECIPES if other.parent == path.parent]
    left = {other.output_dir for other in others}
    left |= {
        f"{other.output_dir}/pipeline" for other in others if issubclass(stage_class(other.stage), GenerationStage)
    }
    for name, value in load_recipe(path).inputs.items():
        assert value in left or (HUB_ID.fullmatch(value) and path.parent.name != "tiny"), name


def test_the_chain_runs_stages_after_those_they_read(tmp_path):
    chain, done = load_chain(CHAIN), set()
    for is_short in (False, True):
        for link in chain.links:
            recipe = chain.load(link, str(tmp_path), is_short)
            assert set(recipe.inputs.values()) <= done
            assert Path(recipe.output_dir).parent == tmp_path
            done.add(recipe.output_dir)
        assert recipe.stage == "generation"  # and with it the pipeline
        done.clear()


@every_recipe
def test_the_readme_lists_the_recipe(path):
    assert str(path.relative_to(ROOT / "recipes")) in (ROOT / "recipes" / "README.md").read_text()


@pytest.mark.parametrize("path", [path for path in RECIPES if path.parent.name != "tiny"], ids=lambda path: path.stem)
def test_a_full_size_recipe_states_its_global_batch(path):
    training = load_recipe(path).training
    micro = training["per_device_train_batch_size"] * training.get("gradient_accumulation_steps", 1)
    processes, rest = divmod(training["global_batch_size"], micro)
    assert rest == 0
    readme = (path.parent / "README.md").read_text()
    assert re.search(
        rf"\| \[{path.name}\]\({path.name}\) \|.*\| {processes} x .*\| {training['global_batch_size']} ", readme
    )


@pytest.mark.parametrize(("name", "last"), [("pretrain", 1e-5), ("sft", 0.0)])
def test_the_learning_rate_falls_as_in_the_reference(name, last, tmp_path):
    arguments = built(ROOT / "recipes" / "blip3o-8b" / f"{name}.yaml", tmp_path).arguments
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=arguments.learning_rate)
    steps = arguments.max_steps
    schedule = get_scheduler(
        arguments.lr_scheduler_type,
        optimizer,
        arguments.get_warmup_steps(steps),
        steps,
        scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
    )
    rates = [1e-4 * schedule.lr_lambdas[0](step) for step in (0, round(0.003 * steps), steps)]
    assert rates == pytest.approx([0.0, 1e-4, last], abs=1e-12)


def test_overrides_replace_values(tmp_path):
    stage = built(GENERATION, tmp_path, "training.max_steps=2", "data.family_weights.colors=9", "data.seed=7")
    assert stage.arguments.max_steps == 2
    assert stage.recipe.data["family_weights"]["colors"] == 9
    assert stage.data.scenes().seed == 7


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stag=decoder", f"Unknown key 'stag' in {GENERATION}. Did you mean 'stage'? Available: data, evaluation,"),
        (
            "training.max_step=2",
            f"Unknown key 'max_step' in section 'training' of {GENERATION}. Did you mean 'max_steps'? Available: ",
        ),
        (
            "model.num_query=8",
            f"Unknown key 'num_query' in section 'model' of {GENERATION}. Did you mean 'num_queries'? Available: ",
        ),
        ("data.sed=1", f"Unknown key 'sed' in section 'data' of {GENERATION}. Did you mean 'seed'? Available: "),
        (
            "inputs.encodr=here",
            f"Unknown key 'encodr' in section 'inputs' of {GENERATION}. Did you mean 'encoder'? Available: ",
        ),
        (
            "stage=generatoin",
            f"Unknown key 'generatoin' in key 'stage' of {GENERATION}. Did you mean 'generation'? Available: ",
        ),
    ],
)
def test_unknown_keys_name_the_nearest_one(override, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        built(GENERATION, tmp_path, override)


def test_a_far_key_gets_no_guess(tmp_path):
    with pytest.raises(ValueError, match=r"Unknown key 'zzz' in section 'data' of \S+\. Available: "):
        built(GENERATION, tmp_path, "data.zzz=1")


def test_an_override_needs_an_equals_sign():
    with pytest.raises(
        ValueError, match=r"must be written key=value\. Got 'data\.seed'\. Example: training\.seed=1\."
    ):
        load_recipe(GENERATION, ["data.seed"])


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is none at .*nothing\.yaml"):
        load_recipe(tmp_path / "nothing.yaml")


def test_a_recipe_is_a_mapping(tmp_path):
    path = tmp_path / "list.yaml"
    path.write_text("- stage\n")
    with pytest.raises(ValueError, match="must be a mapping of keys"):
        load_recipe(path)


@pytest.mark.parametrize("key", ["stage", "output_dir"])
def test_required_keys(key, tmp_path):
    path = tmp_path / "short.yaml"
    path.write_text("\n".join(line for line in ("stage: encoder", "output_dir: out") if not line.startswith(key)))
    with pytest.raises(ValueError, match=f"must have the key '{key}'"):
        load_recipe(path)


def test_a_missing_input_says_what_to_run(tmp_path):
    recipe = load_recipe(GENERATION, [f"inputs.model={tmp_path / 'none'}"])
    with pytest.raises(FileNotFoundError, match=r"starts from 'model' in .*Run the stage that writes it first"):
        recipe.open_stage()
