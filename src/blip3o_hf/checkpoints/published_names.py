"""Names of published checkpoints: their tensors both ways, as two small tables, and the folder of their decoder."""

import re

QUERIES = "model.latent_queries"
EMBEDDINGS = "model.embed_tokens.weight"
OUTPUT_LAYER = "lm_head.weight"
TRANSFORMER = "model.dit.model."
TARGET_ENCODER = "model.gen_vision_tower.vision_tower.model."
PUBLISHED_DECODER = "diffusion-decoder"

# A published name begins as on the left, ours as on the right (in the files of `save_pretrained`; in memory the
# backbone's names are those of its own class).
OUR_NAMES = (
    (r"^visual\.", "backbone.visual."),
    (r"^model\.(embed_tokens|layers|norm)\.", r"backbone.model.\1."),
    (r"^lm_head\.", "backbone.lm_head."),
    (r"^model\.dit\.model\.", "transformer."),
    (r"^model\.latent_queries", "queries.weight"),
)
PUBLISHED_NAMES = (
    (r"^backbone\.(model\.)?visual\.", "visual."),
    (r"^backbone\.model\.(language_model\.)?(?=(embed_tokens|layers|norm)\.)", "model."),
    (r"^backbone\.lm_head\.", "lm_head."),
    (r"^transformer\.", TRANSFORMER),
    (r"^queries\.weight$", QUERIES),
)
# The target encoder (EVA-CLIP) is a model of its own here, and the published down projector is the identity.
LEFT_OUT = r"^model\.(gen_vision_tower|down_projector)\."


def our_name(name: str) -> str | None:
    """
    Our name of a published tensor, as `save_pretrained` writes it; `None` for what is left out.

    Raises:
        ValueError: when no published checkpoint has a tensor of that name.
    """
    if re.match(LEFT_OUT, name):
        return None
    return _renamed(name, OUR_NAMES, "published")


def published_name(name: str) -> str:
    """
    The published name of a tensor of ours, in memory or in a saved file.

    Raises:
        ValueError: when no published checkpoint has such a tensor.
    """
    return _renamed(name, PUBLISHED_NAMES, "our")


def _renamed(name: str, table: tuple[tuple[str, str], ...], kind: str) -> str:
    for pattern, replacement in table:
        renamed, found = re.subn(pattern, replacement, name)
        if found:
            return renamed
    raise ValueError(
        f"A tensor must belong to the backbone, the queries or the transformer. Got the {kind} name {name!r}. "
        f"Known beginnings: {', '.join(pattern.removeprefix('^') for pattern, _ in table)}."
    )


__all__ = [
    "EMBEDDINGS",
    "LEFT_OUT",
    "OUR_NAMES",
    "OUTPUT_LAYER",
    "PUBLISHED_DECODER",
    "QUERIES",
    "TARGET_ENCODER",
    "TRANSFORMER",
    "our_name",
    "published_name",
]
