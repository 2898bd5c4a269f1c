"""
The plug-in for lmms-eval: its entry point, which says where the classes of our models are.

Installing this package beside lmms-eval is all that `lmms-eval eval --model blip3o` needs. This module imports
lmms-eval only when that asks for the models.
"""

MODULE = "blip3o_hf.evaluation.lmms_models"


def manifests() -> list:
    """
    What the entry point `lmms_eval.models` gives: `blip3o`, and `blip3o_backbone`, the bare backbone of one.

    Both take `pretrained=`, a packaged name, a folder or a Hub id, and the arguments of
    [`~evaluation.lmms_models.Blip3oLmms`].

    Example:
        lmms-eval eval --model blip3o --model_args pretrained=blip3o-tiny --tasks mme
    """
    from lmms_eval.models.registry_v2 import ModelManifest

    return [
        ModelManifest(model_id="blip3o", chat_class_path=f"{MODULE}.Blip3oLmms"),
        ModelManifest(model_id="blip3o_backbone", chat_class_path=f"{MODULE}.Blip3oBackboneLmms"),
    ]
