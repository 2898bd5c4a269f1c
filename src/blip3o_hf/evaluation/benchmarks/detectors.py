"""Detectors of objects and a classifier of colours for GenEval's rules, through transformers."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForUniversalSegmentation,
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
    CLIPModel,
    CLIPProcessor,
)

from ...checks import unknown_name
from ...hub.provenance import public_name
from .geneval_rules import COLORS, THRESHOLD, Detection

GREY = (0x99, 0x99, 0x99)
"""What GenEval paints over all that is not the object."""
TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
SAME_CLASSES = (
    ("airplane", "aeroplane"),
    ("computer keyboard", "keyboard"),
    ("computer mouse", "mouse"),
    ("couch", "sofa"),
    ("dining table", "diningtable"),
    ("motorcycle", "motorbike"),
    ("potted plant", "pottedplant"),
    ("tv", "tvmonitor"),
    ("tv remote", "remote"),
)
"""Names of classes of COCO that prompts and detectors write differently."""


class Detector(Protocol):
    """Finds objects of given classes in a picture."""

    name: str
    """Of the detector and its weights; it is in the name of every score."""

    def __call__(self, image: Image.Image, class_names: Sequence[str]) -> Mapping[str, list[Detection]]:
        """
        Args:
            image: RGB.
            class_names: what to look for.

        Returns:
            By each of the names, all objects with a score above 0.3, in any order; an empty list where there is none.
        """


class ColorClassifier(Protocol):
    """Names the colours of objects in a picture."""

    def __call__(self, image: Image.Image, detections: Sequence[Detection], class_name: str) -> list[str]:
        """One of `COLORS` for each detection."""


class SegmentationDetector:
    """
    Instance segmentation with fixed classes: Mask2Former or MaskFormer, such as
    `facebook/mask2former-swin-small-coco-instance`. transformers needs scipy for them.

    Args:
        model: in evaluation mode.
        processor: its image processor.
        name: of the detector and its weights.
    """

    def __init__(self, model: Any, processor: Any, name: str):
        self.model, self.processor, self.name = model, processor, name
        self._labels = {label: index for index, label in model.config.id2label.items()}

    @classmethod
    def from_pretrained(cls, name: str, device: str | torch.device = "cpu", **settings: Any) -> "SegmentationDetector":
        """
        Args:
            name: Hub id or folder.
            device: where it runs.
            settings: of the model's `from_pretrained`, such as `dtype`.
        """
        model = AutoModelForUniversalSegmentation.from_pretrained(name, **settings).to(device).eval()
        return cls(model, AutoImageProcessor.from_pretrained(name), public_name(name))

    def __call__(self, image, class_names):
        wanted = {name: self._label(name) for name in class_names}
        segments = self._segments(image)
        return {name: [detection for label, detection in segments if label == index] for name, index in wanted.items()}

    def _label(self, name: str) -> int:
        for same in ((name,), *(group for group in SAME_CLASSES if name in group)):
            for other in same:
                if other in self._labels:
                    return self._labels[other]
        raise ValueError(unknown_name("class of the detector", name, self._labels, self.name))

    def _segments(self, image: Image.Image) -> list[tuple[int, Detection]]:
        inputs = self.processor(images=[image], return_tensors="pt").to(self.model.device)
        with torch.no_grad():
            outputs = self.model(**inputs)
        (result,) = self.processor.post_process_instance_segmentation(
            outputs, threshold=THRESHOLD, target_sizes=[(image.height, image.width)], return_binary_maps=True
        )
        found = []
        for index, segment in enumerate(result["segments_info"]):
            mask = (result["segmentation"][index] > 0).cpu().numpy()
            if mask.any():
                found.append((segment["label_id"], Detection(box_of(mask), float(segment["score"]), mask)))
        return found


class ZeroShotDetector:
    """
    Detection of classes by their names: OWLv2 or Grounding DINO, such as `google/owlv2-base-patch16-ensemble`.
    transformers needs scipy for OWLv2.

    It gives boxes without masks, so colours are read from whole boxes. Each class is asked for alone, so that every
    box is one of it. Several boxes of one object count as several, since GenEval's rules do not merge boxes: measure
    the agreement with people ([`~agreement.agreement_with_people`]) before you believe its counts.

    Args:
        model: in evaluation mode.
        processor: its processor.
        name: of the detector and its weights.
    """

    def __init__(self, model: Any, processor: Any, name: str):
        self.model, self.processor, self.name = model, processor, name

    @classmethod
    def from_pretrained(cls, name: str, device: str | torch.device = "cpu", **settings: Any) -> "ZeroShotDetector":
        """
        Args:
            name, device, settings: as of [`SegmentationDetector.from_pretrained`].
        """
        model = AutoModelForZeroShotObjectDetection.from_pretrained(name, **settings).to(device).eval()
        return cls(model, AutoProcessor.from_pretrained(name), public_name(name))

    def __call__(self, image, class_names):
        return {name: self._find(image, name) for name in class_names}

    def _find(self, image: Image.Image, name: str) -> list[Detection]:
        # Grounding DINO finds each word of its text, also "photo".
        text = name if self.model.config.model_type.endswith("grounding-dino") else f"a photo of a {name}"
        inputs = self.processor(images=[image], text=[[text]], return_tensors="pt")
        inputs = inputs.to(self.model.device)
        with torch.no_grad():
            outputs = self.model(**inputs)
        (result,) = self.processor.post_process_grounded_object_detection(
            outputs, threshold=THRESHOLD, target_sizes=[(image.height, image.width)]
        )
        boxes, scores = result["boxes"].tolist(), result["scores"].tolist()
        return [
            Detection((left, top, right, bottom), score)
            for (left, top, right, bottom), score in zip(boxes, scores, strict=True)
        ]


class ClipColors:
    """
    GenEval's colour classifier: CLIP, zero-shot over ten colours. GenEval's own is OpenAI's ViT-L/14,
    `openai/clip-vit-large-patch14`.

    Args:
        model: in evaluation mode.
        processor: its processor.
    """

    def __init__(self, model: CLIPModel, processor: CLIPProcessor):
        self.model, self.processor = model, processor
        self._directions: dict[str, torch.Tensor] = {}

    @classmethod
    def from_pretrained(cls, name: str, device: str | torch.device = "cpu", **settings: Any) -> "ClipColors":
        """
        Args:
            name, device, settings: as of [`SegmentationDetector.from_pretrained`].
        """
        model = CLIPModel.from_pretrained(name, **settings)
        return cls(model.to(torch.device(device)).eval(), CLIPProcessor.from_pretrained(name))

    def __call__(self, image, detections, class_name):
        if not detections:
            return []
        crops = [crop_of(image, detection) for detection in detections]
        pixels = self.processor(images=crops, return_tensors="pt")["pixel_values"].to(self.model.device)
        with torch.no_grad():
            features = self.model.get_image_features(pixel_values=pixels).pooler_output
        best = (features @ self._of_class(class_name).T).argmax(dim=-1)
        return [COLORS[index] for index in best.tolist()]

    def _of_class(self, name: str) -> torch.Tensor:
        """`[10, D]`: for each colour, the direction of the mean over the templates."""
        if name not in self._directions:
            texts = [template.format(color=color, name=name) for color in COLORS for template in TEMPLATES]
            inputs = self.processor(text=texts, padding=True, truncation=True, return_tensors="pt")
            with torch.no_grad():
                features = self.model.get_text_features(**inputs.to(self.model.device)).pooler_output
            each = torch.nn.functional.normalize(features, dim=-1).unflatten(0, (len(COLORS), len(TEMPLATES)))
            self._directions[name] = torch.nn.functional.normalize(each.mean(dim=1), dim=-1)
        return self._directions[name]


def box_of(mask: np.ndarray) -> tuple[float, float, float, float]:
    """`(left, top, right, bottom)` of a bool mask `[height, width]` that is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def crop_of(image: Image.Image, detection: Detection) -> Image.Image:
    """A detection's box of a picture, all outside its mask painted grey; at least one pixel."""
    if detection.mask is not None:
        image = Image.composite(image, Image.new("RGB", image.size, GREY), Image.fromarray(detection.mask))
    left, top, right, bottom = (round(side) for side in detection.box)
    left, top = min(max(left, 0), image.width - 1), min(max(top, 0), image.height - 1)
    return image.crop((left, top, max(min(right, image.width), left + 1), max(min(bottom, image.height), top + 1)))


__all__ = [
    "ClipColors",
    "ColorClassifier",
    "Detector",
    "SegmentationDetector",
    "ZeroShotDetector",
    "box_of",
    "crop_of",
]
