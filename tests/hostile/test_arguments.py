"""Arguments that are no numbers, no text or far too large are refused by their name, before anything is computed."""

import io
import warnings

import pytest
import torch
from PIL import Image

from blip3o_hf import Blip3oChat, interpolate
from blip3o_hf.cli import main, one_line
from blip3o_hf.cli.files import open_picture
from blip3o_hf.data.images import as_input_image, decode_image
from blip3o_hf.data.records import BadItem
from blip3o_hf.evaluation.answers import answer
from blip3o_hf.hub.card_check import card_file_problems


@pytest.fixture(scope="module")
def pipe(make_pipeline):
    return make_pipeline()


def tensors(pipe, value):
    config = pipe.model.config
    condition = torch.zeros(1, config.num_queries, config.hidden_size)
    features = torch.zeros(1, *pipe.feature_shape)
    for tensor in (condition, features):
        tensor.view(-1)[-1] = value
    return {
        "latents": {"prompt": "a circle", "latents": features},
        "condition": {"condition": condition},
        "image_features": {"image_features": features},
        "image_features to start from": {"prompt": "a circle", "image_features": features, "strength": 0.5},
    }


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("name", ["latents", "condition", "image_features", "image_features to start from"])
def test_tensors_hold_finite_numbers(pipe, name, value):
    message = rf"`{name.split()[0]}` must hold finite numbers\. Got {value} in it\. "
    with pytest.raises(ValueError, match=message):
        pipe(**tensors(pipe, float(value))[name], output_type="features")
    assert pipe(**tensors(pipe, 0.5)[name], num_inference_steps=1, output_type="features")


@pytest.mark.parametrize("name", ["latents", "condition", "image_features"])
def test_tensors_hold_real_numbers(pipe, name):
    arguments = tensors(pipe, 0.0)[name]
    arguments[name] = arguments[name].to(torch.complex64)
    with pytest.raises(ValueError, match=rf"`{name}` must hold floating-point numbers\. Got torch\.complex64\."):
        pipe(**arguments, output_type="features")


def test_features_to_decode_are_a_tensor(pipe):
    features = torch.zeros(1, *pipe.feature_shape).numpy()
    with pytest.raises(TypeError, match=r"`image_features` must be a tensor \[N, 16, 4, 4\]\. Got ndarray\."):
        pipe(image_features=features)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("guidance_scale", 1e30, r"`guidance_scale` must be at most 1,000\. Got 1e\+30\."),
        ("num_inference_steps", 10**9, r"`num_inference_steps` must be at most 10,000\. Got 1000000000\."),
        ("num_images_per_prompt", 10**9, r"`num_images_per_prompt` must be at most 10,000\. Got 1000000000\."),
        ("callback_on_step_end", 5, r"`callback_on_step_end` must be a function\. Got 5\."),
        ("plan", "no", r"`plan` must be True or False\. Got 'no'\."),
        ("negative_prompt", "a \ud800", r"`negative_prompt` must be Unicode text\. Got 'a \\ud800', with half a char"),
        ("prompt", "a \ud800", r"`prompt` must be Unicode text\. Got 'a \\ud800', with half a character\."),
        ("prompt", "a <|image_pad|>", r"A prompt must hold no '<.image_pad.>', which stands for an image\. Got 'a <"),
        ("negative_prompt", "<|image_pad|>", r"A prompt must hold no '<.image_pad.>', which stands for an image\."),
        ("num_attempts", 10**9, r"`num_attempts` must be an integer from 1 to 1,000\. Got 1000000000\."),
    ],
)
def test_arguments_are_of_their_kind_and_within_limits(pipe, name, value, message):
    with pytest.raises((TypeError, ValueError), match=message):
        pipe(**{"prompt": "a circle", "output_type": "features", name: value})


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (5, r"Prompts must be a string or a list of strings\. Got int\."),
        (object(), r"Prompts must be a string or a list of strings\. Got object\."),
        (["a \ud800"], r"A prompt must be Unicode text\. Got 'a \\ud800', with half a character\."),
        (["a", 5], r"A prompt must be a string\. Got int\."),
    ],
)
def test_the_first_stage_alone_checks_its_prompts(pipe, prompt, message):
    with pytest.raises((TypeError, ValueError), match=message):
        pipe.encode_prompt(prompt)


@pytest.mark.parametrize("value", [5, None, "x"])
def test_a_conversation_is_a_list_of_messages(pipe, value):
    with pytest.raises(TypeError, match=r"`messages` must be a list of chat messages\. Got "):
        Blip3oChat(pipe, value)


@pytest.mark.parametrize("value", [b"1", 0, -1, 1.5, [], None, True])
def test_answers_have_a_length(pipe, value):
    with pytest.raises(ValueError, match=r"`max_new_tokens` must be an integer of at least 1\. Got "):
        Blip3oChat(pipe).ask("what is it?", max_new_tokens=value)


def test_a_turn_is_unicode(pipe):
    for say in (Blip3oChat(pipe).ask, Blip3oChat(pipe).draw, Blip3oChat(pipe).send):
        with pytest.raises(ValueError, match=r"A turn must be Unicode text\. Got 'a \\ud800', with half a character"):
            say("a \ud800")


def test_features_that_are_no_numbers_are_no_picture(pipe):
    """As of a model in a precision of too small a range."""
    condition = torch.full((1, pipe.model.config.num_queries, pipe.model.config.hidden_size), 1e38)
    with pytest.raises(ValueError, match=r"Features must be finite numbers\. In torch.float32, the model made NaN or"):
        pipe(condition=condition, num_inference_steps=1)


def test_turns_by_a_pipe_are_text(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"/\xff\n"), encoding="utf-8"))
    assert main(["chat"]) == 2
    assert "A turn must be text in utf-8. Got b'/\\xff\\n'. Write it in that." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["generate", "x", "-n", "1000000000"], "-n must be at most 10,000. Got 1000000000."),
        (["generate", "a \udcff"], "The prompt must be text in UTF-8. Got 'a \\udcff'."),
        (["describe", "a\nb\x1b[31m.png"], "a b\\x1b[31m.png"),
        (["evaluate", "--per-family", "1", "--encoder", "none/at/all"], "none/at/all"),
        (["evaluate", "--output", ""], "The output must be a file."),
    ],
)
def test_bad_input_ends_a_command_with_one_line(capsys, words, said):
    """Whatever is in it: a terminal obeys no sign of it."""
    assert main(words) == 2
    printed = capsys.readouterr()
    assert said in printed.err and printed.err.count("\n") == 1 and printed.err.isascii()
    assert not printed.out


def test_a_line_is_made_of_many():
    assert one_line("no YAML:\n  in line 1\r\n    ^\u2028") == "no YAML: in line 1 ^"
    assert one_line("a\u202eb \u00e9") == "a\\u202eb \u00e9"


def test_damage_of_an_image_is_said_once(tmp_path):
    """By the error, and not by warnings of the library beside it."""
    path = tmp_path / "a.tif"
    Image.new("RGB", (8, 8)).save(path)
    content = bytearray(path.read_bytes())
    start = int.from_bytes(content[4:8], "little")
    content[start + 2 + 4 : start + 2 + 8] = b"\xff\xff\xff\x7f"  # so many values of the first entry
    path.write_bytes(content)
    with warnings.catch_warnings(), pytest.raises(BadItem):
        warnings.simplefilter("error")
        decode_image(path, "a.tif")


def test_results_of_a_card_may_have_any_name(tmp_path):
    card = tmp_path / "card.md"
    result = "{task: {type: x}, dataset: {name: x, type: x}, metrics: [{type: x, value: 1, name: .nan}]}"
    card.write_text(f"---\nlicense: mit\nmodel-index: [{{name: x, results: [{result}]}}]\n---\n# A\n")
    assert "Result 'nan' of x in `model-index` must be marked." in " ".join(card_file_problems(card))


@pytest.mark.parametrize("size", [(1, 30_000), (30_000, 1)])
def test_strips_that_would_become_gigabytes_are_refused(tmp_path, size):
    """Scaled to the shorter side that a model sees."""
    path = tmp_path / "strip.png"
    Image.new("RGB", size).save(path)
    with pytest.raises(OSError, match=r"strip\.png.* pixels, one side more than 200 times the other"):
        open_picture(path)
    with pytest.raises(ValueError, match=r"strip\.png.* pixels, one side more than 200 times the other"):
        as_input_image(path)


def test_questions_fit_the_context(pipe, make_image):
    with pytest.raises(ValueError, match=r"must fit the backbone's context, 512 tokens\. It has \d+\. Ask less\."):
        answer(pipe.model, pipe.processor, [make_image()], ["red circle " * 500])


@pytest.mark.parametrize(("second", "steps"), [("x", 2), (torch.zeros(1, 3), "x"), (torch.zeros(1, 3), 2.5)])
def test_interpolation_is_of_tensors(second, steps):
    with pytest.raises(TypeError, match="Interpolation needs two tensors of the same shape"):
        interpolate(torch.zeros(1, 3), second, steps)


@pytest.mark.parametrize("given", ["x", 5, [("scale", 1)]])
def test_attention_kwargs_are_a_mapping(pipe, given):
    with pytest.raises(ValueError, match="`attention_kwargs` takes only the key 'scale'"):
        pipe("a circle", attention_kwargs=given, output_type="features")


@pytest.mark.parametrize("names", [5, "latents", None])
def test_names_of_tensors_are_a_list(pipe, names):
    with pytest.raises(ValueError, match="`callback_on_step_end_tensor_inputs` must be among"):
        pipe("a circle", callback_on_step_end_tensor_inputs=names, output_type="features")


def test_there_is_something_to_decode(pipe):
    with pytest.raises(ValueError, match=r"`image_features` must be those of one image at least\. Got \[0, 16"):
        pipe(image_features=torch.zeros(0, 16, 4, 4))


def test_an_image_keeps_no_exif_that_may_be_damaged(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 1
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif.tobytes())
    assert "exif" not in decode_image(tmp_path / "a.jpg", "a.jpg").info
