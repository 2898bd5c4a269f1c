"""The plug-in for lmms-eval: order, groups, stops and rounds with a stand-in; and, marked slow, the real one."""

import json
import subprocess
import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blip3o_hf.cli import main
from blip3o_hf.evaluation.backbone_comparison import compare_results
from blip3o_hf.evaluation.chat_answers import ChatAnswerer
from blip3o_hf.evaluation.vlmevalkit import register_vlmevalkit
from blip3o_hf.shapes import render, sample_example, sample_question

ROOT = Path(__file__).resolve().parents[2]


class StubLmms:
    """What our classes use of `lmms_eval.api.model.lmms`."""

    def __init__(self):
        self._rank, self._world_size, self.task_dict, self.kept = 0, 1, {}, []
        self.cache_hook = types.SimpleNamespace(add_partial=lambda *given: self.kept.append(given))

    rank = property(lambda self: self._rank)
    world_size = property(lambda self: self._world_size)


class StubMessages:
    """What they use of `lmms_eval.protocol.ChatMessages`."""

    def __init__(self, messages):
        self.messages = messages

    def to_hf_messages(self):
        return [
            {
                "role": message["role"],
                "content": [
                    dict(item) if item["type"] == "text" else {"type": item["type"], item["type"]: item["url"]}
                    for item in message["content"]
                ],
            }
            for message in self.messages
        ]


@pytest.fixture
def models(monkeypatch):
    """The module of our classes, with a stand-in for lmms-eval where that is not installed."""
    for name, content in (
        ("lmms_eval", {}),
        ("lmms_eval.api", {}),
        ("lmms_eval.api.model", {"lmms": StubLmms}),
        ("lmms_eval.protocol", {"ChatMessages": StubMessages}),
        ("lmms_eval.models", {}),
        ("lmms_eval.models.registry_v2", {"ModelManifest": types.SimpleNamespace}),
    ):
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "blip3o_hf.evaluation.lmms_models", raising=False)
    import blip3o_hf.evaluation.lmms_models as module

    yield module
    sys.modules.pop("blip3o_hf.evaluation.lmms_models", None)


def said(text):
    return [{"role": "user", "content": [{"type": "text", "text": text}]}]


@pytest.fixture
def echo(models, monkeypatch):
    """A model of the plug-in whose answers are the last words of each conversation; `echo.batches` are its calls."""
    batches = []

    def answer(conversations, **settings):
        batches.append(([messages[-1]["content"][-1]["text"] for messages in conversations], settings))
        return batches[-1][0]

    monkeypatch.setattr(models.Blip3oLmms, "_load", lambda self, pretrained, dtype: answer)
    model = models.Blip3oLmms(batch_size="2", device="cpu", max_new_tokens=9)
    model.batches = batches
    model.task_dict = {"task": {"test": [f"document {number}" for number in range(10)]}}
    return model


def request(number, settings=None, to_messages=said):
    arguments = (f"context {number}", to_messages, settings or {}, number, "task", "test")
    return types.SimpleNamespace(args=arguments, request_type="generate_until")


# Requests and answers


def test_answers_have_the_order_of_the_requests_and_batches_have_equal_settings(echo):
    long, short = {"max_new_tokens": 50}, {"max_new_tokens": 5, "temperature": 0}
    answers = echo.generate_until([request(n, (long, short)[n % 2]) for n in (3, 1, 4, 0, 2, 6)])
    assert answers == [f"document {n}" for n in (3, 1, 4, 0, 2, 6)]
    texts = [(sorted(text[-1] for text in texts), settings["max_new_tokens"]) for texts, settings in echo.batches]
    assert texts == [(["1", "3"], 5), (["0", "4"], 50), (["2", "6"], 50)]
    assert [(kind, key[0], answer[-1]) for kind, key, answer in echo.kept] == [
        ("generate_until", f"context {n}", str(n)) for n in (3, 1, 4, 0, 2, 6)
    ]


def test_an_answer_ends_before_the_words_of_the_task(echo):
    said_by = lambda text: lambda document: said(text)  # noqa: E731
    requests = [
        request(0, {"until": ["\n\n", "Q:"]}, said_by("red Q: more\n\nand")),
        request(1, {"until": "."}, said_by("a. b")),
        request(2, {"until": []}, said_by("a\n\nb")),
        request(3, {}, said_by("a\n\nb")),
    ]
    assert echo.generate_until(requests) == ["red", "a", "a\n\nb", "a\n\nb"]
    assert all("until" not in settings for _, settings in echo.batches)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"max_new_tokens": 9, "do_sample": False}),
        ({"temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": True},
         {"max_new_tokens": 9, "num_beams": 1, "do_sample": False}),
        ({"temperature": 0.7, "top_p": None}, {"max_new_tokens": 9, "temperature": 0.7, "do_sample": True}),
        ({"temperature": 0.7, "do_sample": False}, {"max_new_tokens": 9, "do_sample": False}),
        ({"max_new_tokens": 3, "until": ["x"]}, {"max_new_tokens": 3, "do_sample": False}),
    ],
)  # fmt: skip
def test_settings_of_tasks_become_those_of_generate(models, given, expected):
    assert models.generate_settings(given, 9) == expected


def test_unknown_settings_are_left_out_with_one_warning(models, caplog):
    for _ in range(2):
        assert models.generate_settings({"image_aspect_ratio": "pad"}, 9) == {"max_new_tokens": 9, "do_sample": False}
    assert caplog.text.count("'image_aspect_ratio', which is no setting") == 1


def test_rounds_go_on_until_the_task_has_enough(echo):
    def rounds(document, round_idx=None, previous_output=None, previous_round_info=None):
        if round_idx is None:
            return said(f"{document}, first")
        if round_idx == int(document[-1]):
            return None, True, [*previous_output, "end"], None
        info = (previous_round_info or 0) + 1
        return said(f"{document}, info {info}, after {len(previous_output)}"), False, previous_output, info

    answers = echo.generate_until_multi_round([request(n, {}, rounds) for n in (3, 1)])
    first = ["document 3, first", "document 3, info 1, after 1", "document 3, info 2, after 2", "end"]
    assert answers == [first, ["document 1, first", "end"]]
    assert [len(texts) for texts, _ in echo.batches] == [2, 1, 1]
    assert [(kind, answer) for kind, _, answer in echo.kept] == [
        ("generate_until_multi_round", answer) for answer in answers
    ]


def test_a_task_that_does_not_end_is_stopped(echo, models, monkeypatch):
    monkeypatch.setattr(models, "MAX_ROUNDS", 3)

    def endless(document, round_idx=None, previous_output=None, previous_round_info=None):
        return said("more") if round_idx is None else (said("more"), False, previous_output, None)

    with pytest.raises(ValueError, match=r"must end within 3 rounds. task, document 4 does not"):
        echo.generate_until_multi_round([request(4, {}, endless)])


def test_what_it_cannot_do_is_refused(echo, models, tmp_path):
    with pytest.raises(ValueError, match=r"generate_until. 1 requests want likelihoods"):
        echo.loglikelihood([request(0)])
    simple = types.SimpleNamespace(
        args=("context", {}, said, 0, "task", "test"), request_type="generate_until_agentic"
    )
    with pytest.raises(ValueError, match=r"A request to a chat model has .* Got 6 arguments \(generate_until_agentic"):
        echo.generate_until([simple])
    for kind, url, text in (
        ("video", "a.mp4", "task, document 1 shows video"),
        ("image", str(tmp_path / "none.png"), "task, document 1: An image must be readable"),
    ):
        shown = [{"role": "user", "content": [{"type": kind, "url": url}]}]
        with pytest.raises(ValueError, match=text):
            echo.generate_until([request(1, {}, lambda document, shown=shown: shown)])
    with pytest.raises(ValueError, match=r"`batch_size` must be a whole number of at least 1. Got 'auto'"):
        models.Blip3oLmms(batch_size="auto")


def test_processes_know_their_rank(models, monkeypatch):
    monkeypatch.setattr(models.Blip3oLmms, "_load", lambda *given: None)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    model = models.Blip3oLmms()
    assert (model.rank, model.world_size) == (2, 4)


def test_the_entry_point_names_classes_that_are_there(models):
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11

    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["lmms_eval.models"]
    manifests = EntryPoint("blip3o", points["blip3o"], "lmms_eval.models").load()()
    classes = [getattr(models, manifest.chat_class_path.rpartition(".")[2]) for manifest in manifests]
    assert [manifest.model_id for manifest in manifests] == ["blip3o", "blip3o_backbone"]
    assert all(issubclass(each, StubLmms) and each.is_simple is False for each in classes)


def test_our_package_does_not_import_lmms_eval():
    code = "import sys, blip3o_hf.evaluation.lmms, blip3o_hf.evaluation.backbone_comparison; "
    code += "sys.exit(any(name.partition('.')[0] in ('lmms_eval', 'vlmeval') for name in sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(ROOT / "src"), "PATH": ""})


# Answers of the model and of its backbone


def asked(text, image=None):
    shown = [] if image is None else [{"type": "image", "image": image}]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]


@pytest.fixture(scope="module")
def packaged():
    return ChatAnswerer.load("blip3o-tiny")


def test_a_batch_answers_as_its_singles_and_the_backbone_as_the_model(packaged):
    conversations, answers = [], []
    for number in range(3):
        rng = np.random.default_rng((11, number))
        scene = sample_example(rng, split="test").scene
        question = sample_question(scene, rng, kind=("background", "count", "existence")[number])
        conversations.append(asked(question.text, Image.fromarray(render(scene))))
        answers.append(question.answer)
    first = {"role": "assistant", "content": answers[0]}
    conversations.append([*conversations[0], first, *asked("what color is the background?")])
    together = packaged(conversations)
    assert together == [packaged([each])[0] for each in conversations]
    assert together[:3] == answers and len(set(together)) > 1
    assert ChatAnswerer.load_backbone("blip3o-tiny")(conversations) == together


def test_a_picture_is_not_started(packaged):
    wish = [asked("draw a red circle")]
    inputs = packaged._inputs(wish)
    started = packaged.model.generate(**inputs, max_new_tokens=1, do_sample=False)[0, -1]
    assert started == packaged.image_start  # what the model would rather do
    (text,) = packaged(wish)
    assert packaged.processor.image_start_token not in text


def test_images_for_a_text_model_and_long_conversations_are_refused(make_model, make_processor, make_image):
    model, processor = make_model(backbone="llama"), make_processor()
    for each in (model, model.backbone):
        answer = ChatAnswerer(each, processor)
        with pytest.raises(ValueError, match=r"LlamaForCausalLM reads text only, and a conversation shows an image"):
            answer([asked("red", make_image())])
        with pytest.raises(ValueError, match=r"must fit the backbone's context, 512 tokens. The longest of these has"):
            answer([asked("red circles " * 500)])


# The comparison


def results(answers, score=1.0, **more):
    samples = [
        {"doc_id": number, "resps": [[text]], "target": "red", "doc_hash": str(number), **more}
        for number, text in answers
    ]
    scores = {"alias": "task", "exact_match,none": score, "exact_match_stderr,none": 0.1}
    return {"samples": {"task": samples}, "results": {"task": scores}}


def test_samples_that_differ_are_named(tmp_path):
    model = results([(2, "red"), (0, "red"), (1, "blue")], 0.5)
    (comparison,) = compare_results(model, results([(0, "red"), (1, "red"), (2, "red")]))
    assert comparison.samples == 3 and [each.doc_id for each in comparison.differences] == [1]
    assert (comparison.differences[0].model, comparison.differences[0].backbone) == ('[["blue"]]', '[["red"]]')
    assert comparison.model == {"exact_match": 0.5} and comparison.backbone == {"exact_match": 1.0}
    (equal,) = compare_results(model, model)
    assert equal.differences == ()


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (results([(0, "red")]), r"the same samples of task. Only one answered 1"),
        (results([(0, "red"), (0, "red")]), r"each sample once. Those of task have one twice"),
        (results([]), r"each sample once. Those of task have none"),
        (results([(0, "red"), (1, "red")], doc_hash="changed"), r"must not change between the runs. 0 did"),
        ({"samples": {"tusk": []}, "results": {}}, r"the same tasks. Got task and tusk"),
    ],
)
def test_results_of_other_samples_are_refused(other, text):
    with pytest.raises(ValueError, match=text):
        compare_results(results([(0, "red"), (1, "red")]), other)


def test_the_command_names_the_extra(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "lmms_eval.evaluator", None)
    assert main(["compare-backbone", "--tasks", "mme"]) == 2
    assert "pip install 'blip3o-hf[lmms]'" in capsys.readouterr().err
    assert main(["compare-backbone", "--tasks", "mme", "--limit", "0"]) == 2
    assert "--limit must be at least 1. Got 0" in capsys.readouterr().err
    assert main(["compare-backbone", "--tasks", "mme", "--output", str(tmp_path / "no" / "a.json")]) == 2


# VLMEvalKit, against a stand-in


def test_vlmevalkit_gets_a_model_that_answers(monkeypatch, tmp_path, make_image):
    known = {}
    for name, content in (
        ("vlmeval", {}),
        ("vlmeval.config", {"supported_VLM": known}),
        ("vlmeval.vlm", {}),
        ("vlmeval.vlm.base", {"BaseModel": type("BaseModel", (), {})}),
    ):
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    shown = []
    load = lambda pretrained, **settings: lambda messages: shown.append((pretrained, settings, messages)) or ["red"]  # noqa: E731
    monkeypatch.setattr(ChatAnswerer, "load", load)
    register_vlmevalkit("mine", "blip3o-tiny", dtype="float32")
    make_image().save(tmp_path / "a.png")
    model = known["mine"]()
    question = [{"type": "image", "value": str(tmp_path / "a.png")}, {"type": "text", "value": "what color?"}]
    assert model.generate_inner(question, dataset="MME") == "red"
    pretrained, settings, ((message,),) = shown[0]
    assert (pretrained, settings, message["role"]) == ("blip3o-tiny", {"dtype": "float32"}, "user")
    assert message["content"][0]["image"].size == (64, 64) and message["content"][1]["text"] == "what color?"
    with pytest.raises(ValueError, match=r"Unknown kind of content 'video'"):
        model.generate_inner([{"type": "video", "value": "a.mp4"}])


def test_vlmevalkit_that_is_missing_is_named():
    with pytest.raises(ImportError, match=r"This call needs VLMEvalKit"):
        register_vlmevalkit()


# The real one


@pytest.mark.slow
def test_lmms_eval_runs_the_packaged_model_and_its_backbone(shapes_task, tmp_path, capsys):
    pytest.importorskip("lmms_eval")
    target = tmp_path / "comparison.json"
    call = ["compare-backbone", "--tasks", "shapes_questions", "--include-path", str(shapes_task), "--batch-size", "8"]
    assert main([*call, "--output", str(target)]) == 0
    assert "shapes_questions: 0 of 24 samples differ" in capsys.readouterr().out
    (task,) = json.loads(target.read_text())["tasks"]
    assert task["samples"] == 24 and task["differences"] == []
    assert task["model"]["exact_match"] == task["backbone"]["exact_match"] > 0.8


@pytest.mark.slow
def test_lmms_eval_finds_the_plug_in_by_its_entry_point():
    registry = pytest.importorskip("lmms_eval.models.registry_v2").ModelRegistryV2()
    registry.load_entrypoint_manifests(overwrite=True)
    for name in ("blip3o", "blip3o_backbone"):
        assert registry.get_model_class(name).is_simple is False


def test_a_backbone_from_elsewhere_is_whole_and_answers_with_the_settings_of_the_model(tmp_path):
    from safetensors.torch import load_file, save_file

    whole = ChatAnswerer.load("blip3o-tiny")
    whole.backbone.generation_config.repetition_penalty = 1.3
    whole.backbone.save_pretrained(tmp_path)
    alone = ChatAnswerer.load_backbone("blip3o-tiny", str(tmp_path))
    assert alone.model.generation_config.repetition_penalty in (None, 1.0)
    assert alone.model.generation_config.eos_token_id == whole.model.generation_config.eos_token_id
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    del tensors[min(tensors)]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"must hold every tensor of the model\. {tmp_path} lacks [12]: "):
        ChatAnswerer.load_backbone("blip3o-tiny", str(tmp_path))
