"""Detectors and the colour classifier run on tiny random models and give what the rules take."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BatchFeature,
    BertConfig,
    BertTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2Processor,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTProcessor,
    SwinConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil
from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil
from transformers.models.owlvit.image_processing_pil_owlvit import OwlViTImageProcessorPil

from blip3o_hf.evaluation.benchmarks.detectors import (
    ClipColors,
    SegmentationDetector,
    ZeroShotDetector,
    box_of,
    crop_of,
)
from blip3o_hf.evaluation.benchmarks.geneval_rules import COLORS, Detection

TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SWIN = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2],
    "window_size": 4,
}


OWLS = {
    "owlvit": (OwlViTConfig, OwlViTForObjectDetection, OwlViTImageProcessorPil, OwlViTProcessor),
    "owlv2": (Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessorPil, Owlv2Processor),
}


@pytest.fixture(scope="module")
def clip_tokenizer():
    letters = "abcdefghijklmnopqrstuvwxyz-"
    names = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={name: index for index, name in enumerate(names)}, merges=[])


def ids_of(tokenizer):
    names = ("bos", "eos", "pad")
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in names}


def check_types(found, class_names, image):
    assert list(found) == class_names
    for detections in found.values():
        for detection in detections:
            assert isinstance(detection, Detection)
            assert len(detection.box) == 4 and all(isinstance(side, float) for side in detection.box)
            assert 0.3 <= detection.score <= 1
            if detection.mask is not None:
                assert detection.mask.dtype == bool and detection.mask.shape == (image.height, image.width)
                assert box_of(detection.mask) == detection.box


class Segments:
    """A processor and a model that find what they are told to, as `(label, score, mask)`."""

    def __init__(self, *segments):
        self.segments = segments
        self.config = type("Config", (), {"id2label": {0: "person", 1: "mouse", 2: "sofa"}})
        self.device = torch.device("cpu")

    def __call__(self, **inputs):
        return BatchFeature() if "images" in inputs else self.segments

    def post_process_instance_segmentation(self, outputs, threshold, target_sizes, return_binary_maps):
        kept = [segment for segment in outputs if segment[1] >= threshold]
        info = [{"id": i, "label_id": label, "score": score} for i, (label, score, _) in enumerate(kept)]
        maps = (
            torch.stack([torch.tensor(mask).float() for *_, mask in kept])
            if kept
            else torch.zeros(target_sizes[0]) - 1
        )
        return [{"segmentation": maps, "segments_info": info}]


def test_boxes_of_segments_are_those_of_their_masks():
    mask = np.zeros((40, 48), bool)
    mask[10:20, 5:30] = True
    empty = np.zeros((40, 48), bool)
    model = Segments((1, 0.5, mask), (1, 0.2, mask), (2, 0.9, empty), (0, 0.95, mask))
    image = Image.new("RGB", (48, 40))
    found = SegmentationDetector(model, model, "told")(image, ["computer mouse", "couch", "person"])
    check_types(found, ["computer mouse", "couch", "person"], image)
    assert [detection.box for detection in found["computer mouse"]] == [(5.0, 10.0, 30.0, 20.0)]
    assert found["couch"] == [] and len(found["person"]) == 1
    nothing = Segments()
    assert SegmentationDetector(nothing, nothing, "told")(image, ["person"]) == {"person": []}
    with pytest.raises(ValueError, match=r"Unknown class of the detector 'persom'. Did you mean 'person'"):
        SegmentationDetector(model, model, "told")(image, ["persom"])


def test_mask2former_gives_masks_of_the_classes_asked_for(make_image):
    pytest.importorskip("scipy")  # which its loss needs
    labels = {0: "person", 1: "mouse", 2: "sofa"}
    config = Mask2FormerConfig(
        backbone_config=SwinConfig(**SWIN, out_features=["stage1", "stage2", "stage3", "stage4"]),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        dim_feedforward=32,
        num_attention_heads=2,
        num_queries=6,
        id2label=labels,
        label2id={name: index for index, name in labels.items()},
    )
    model = Mask2FormerForUniversalSegmentation(config).eval()
    with torch.no_grad():  # sure of one class, so that something is found
        model.class_predictor.bias.copy_(torch.tensor([0.0, 9.0, 0.0, 0.0]))
    size = {"height": 64, "width": 64}
    detector = SegmentationDetector(model, Mask2FormerImageProcessorPil(size=size, size_divisor=1), "tiny")
    image = make_image().resize((48, 40))
    found = detector(image, ["computer mouse", "person", "couch"])
    check_types(found, ["computer mouse", "person", "couch"], image)
    assert found["computer mouse"] and not found["person"] and not found["couch"]


@pytest.mark.parametrize("kind", ["owlvit", "owlv2"])
def test_owl_gives_boxes_of_the_classes_asked_for(kind, make_image, clip_tokenizer, tmp_path):
    if kind == "owlv2":
        pytest.importorskip("scipy")  # which its image processor needs
    config_class, model_class, images_class, processor_class = OWLS[kind]
    text = {**TEXT, "vocab_size": len(clip_tokenizer), "max_position_embeddings": 32, **ids_of(clip_tokenizer)}
    vision = {**TEXT, "image_size": 32, "patch_size": 8}
    model = model_class(config_class(text_config=text, vision_config=vision, projection_dim=16)).eval()
    with torch.no_grad():
        model.class_head.logit_shift.bias.fill_(9.0)
    size = {"height": 32, "width": 32}
    images = images_class(size=size, **({"crop_size": size} if kind == "owlvit" else {}))
    detector = ZeroShotDetector(model, processor_class(images, clip_tokenizer), "tiny")
    image = make_image()
    found = detector(image, ["cat", "dining table"])
    check_types(found, ["cat", "dining table"], image)
    assert found["cat"] and found["cat"][0].mask is None
    model.save_pretrained(tmp_path / "tiny-owl")
    detector.processor.save_pretrained(tmp_path / "tiny-owl")
    loaded = ZeroShotDetector.from_pretrained(str(tmp_path / "tiny-owl"))
    assert loaded.name == "tiny-owl"  # without the path, which tells about a machine
    assert loaded(image, ["cat"])["cat"] == found["cat"]


def test_grounding_dino_gives_boxes_of_the_classes_asked_for(make_image):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "cat", "dog", "dining", "table"]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    model = GroundingDinoForObjectDetection(
        GroundingDinoConfig(
            backbone_config=SwinConfig(**SWIN, out_indices=[2, 3, 4]),
            text_config=BertConfig(**TEXT, vocab_size=len(words), max_position_embeddings=64),
            num_queries=5,
            encoder_layers=1,
            encoder_ffn_dim=16,
            encoder_attention_heads=2,
            decoder_layers=2,
            decoder_ffn_dim=16,
            decoder_attention_heads=2,
            d_model=32,
            num_feature_levels=3,
            max_text_len=16,
        )
    ).eval()
    images = GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96})
    detector = ZeroShotDetector(model, GroundingDinoProcessor(images, tokenizer), "tiny")
    image = make_image()
    found = detector(image, ["cat", "dining table"])
    check_types(found, ["cat", "dining table"], image)


def test_clip_names_a_colour_for_each_detection(make_image, clip_tokenizer):
    text = {**TEXT, "vocab_size": len(clip_tokenizer), "max_position_embeddings": 40, **ids_of(clip_tokenizer)}
    vision = {**TEXT, "image_size": 32, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
    square = {"height": 32, "width": 32}
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square)
    colors = ClipColors(model, CLIPProcessor(images, clip_tokenizer))
    detections = [Detection((0, 0, 20, 20), 0.9), Detection((60.2, 60, 64.4, 70), 0.5), Detection((5, 5, 5, 5), 0.4)]
    named = colors(make_image(), detections, "cat")
    assert len(named) == 3 and set(named) <= set(COLORS)
    assert colors(make_image(), detections[:1], "cat") == named[:1]
    assert colors(make_image(), [], "cat") == []
    directions = colors._of_class("cat")
    assert directions.shape == (10, 16)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(10))


def test_outside_of_a_mask_is_grey():
    mask = np.zeros((8, 8), bool)
    mask[2:5, 3:6] = True
    mask[2, 3] = False
    crop = np.asarray(crop_of(Image.new("RGB", (8, 8), "red"), Detection(box_of(mask), 1.0, mask)))
    assert crop.shape == (3, 3, 3)
    assert crop[0, 0].tolist() == [0x99, 0x99, 0x99]
    assert crop[1, 1].tolist() == [255, 0, 0]


def test_a_box_alone_is_cut_out_as_it_is():
    crop = np.asarray(crop_of(Image.new("RGB", (8, 8), "red"), Detection((1, 1, 4, 3), 1.0)))
    assert crop.shape == (2, 3, 3) and (crop == [255, 0, 0]).all()
