"""Bad arguments of the pipeline and its neighbours in Python; each is an expression with the names of `preloaded`."""

from pathlib import Path

import numpy as np

from .cases import EITHER, REFUSED, RIGHT, Case, Maker, pick

NUMBERS = ("-1", "float('nan')", "float('inf')", "'x'", "[]", "10**30", "-10**30", "1j", "object()", "b'1'")
TENSORS = ("'x'", "5", "[]", "torch.zeros(0)", "torch.zeros(1, 3)", "np.zeros((1, 64, 8, 8))", "object()", "{}")
PICTURES = ("5", "'none.png'", "'/dev/zero'", "np.zeros((8, 8, 7), np.uint8)", "np.zeros((0, 0, 3), np.uint8)")
PICTURES += ("torch.zeros(3, 8, 8)", "[]", "[[]]", "[picture, 5]", "b'x'", "np.full((8, 8, 3), np.nan)", "object()")
PICTURES += ("np.zeros((2, 8, 8, 3), np.uint8)", "np.array(5, np.uint8)", "{}", "''", "lambda: picture")
TEXTS = ("5", "[]", "[5]", "['a', None]", "''", "['']", "b'x'", "{}", "'x ' * 50000", "'<|image_pad|>' * 3", "[[]]")
TEXTS += ("'\\ud800'", "'[IMG]'", "'<|im_end|>' * 500", "object()", "['a'] * 0", "{'a'}", "('a', 5)", "'\\0'")
LOOSE_TEXTS = (
    "''",
    "['']",
    "'x ' * 50000",
    "'<|image_pad|>' * 3",
    "'\\ud800'",
    "'[IMG]'",
    "'<|im_end|>' * 500",
    "'\\0'",
)
"""Texts of which some may be read."""


def scaled(tensor: str) -> tuple[str, ...]:
    """A tensor whose numbers are not finite, or of a wrong shape."""
    return (
        f"{tensor} * float('nan')",
        f"{tensor} * float('inf')",
        f"{tensor}[0]",
        f"{tensor}[:, 1:]",
        f"{tensor}[:0]",
        f"{tensor}.to(torch.complex64)",
        f"torch.where({tensor} > 0.99, float('nan'), {tensor})",
    )


DRAWING: dict[str, tuple[str, ...]] = {
    "prompt": tuple(text for text in TEXTS if text not in LOOSE_TEXTS),
    "num_inference_steps": (*NUMBERS, "0", "True", "1.0", "10**9"),
    "guidance_scale": (*NUMBERS, "1e30", "1e300"),
    "guidance_interval": ("(1, 0)", "(0,)", "'x'", "5", "(float('nan'), 1)", "(-1, 2)", "(0, 1, 2)", "(None, None)"),
    "num_images_per_prompt": (*NUMBERS, "0", "True", "1.5", "10**9"),
    "generator": ("5", "'x'", "[5]", "[torch.Generator()] * 3", "[]", "np.random.default_rng()", "torch.Generator"),
    "latents": (*TENSORS, *scaled("features"), "torch.zeros(2, 64, 8, 8)", "torch.zeros(1, 64, 8, 9)"),
    "output_type": ("'x'", "5", "None", "[]"),
    "height": ("5", "-1", "'x'", "10**9"),
    "width": ("5", "'x'"),
    "null_features": ("features", "5"),
    "strength": ("0.5", "'x'"),
    "num_attempts": (*NUMBERS, "0", "True", "1.5"),
    "checker": ("5", "'x'"),
    "plan": ("'x'", "5", "[]"),
    "negative_prompt": ("5", "[5]", "['a', 'b']", "b'x'", "{}"),
    "attention_kwargs": (
        "{'x': 1}",
        "{'scale': 'x'}",
        "{'scale': float('nan')}",
        "{'scale': float('inf')}",
        "5",
        "'x'",
    ),
    "callback_on_step_end": ("5", "'x'"),
    "callback_on_step_end_tensor_inputs": ("['x']", "5", "[5]"),
    "image": PICTURES,
    "return_value": ("5",),
}


def call(name: str, value: str, text: str, expected: tuple[str, ...] = (REFUSED,), *names: str) -> Case:
    return Case(f"{name}={value}", expression=text, names=(name, *names), expected=expected)


def bad_drawing(rng: np.random.Generator, folder: Path) -> Case:
    name = pick(rng, list(DRAWING))
    value = pick(rng, DRAWING[name])
    if name == "prompt":
        return call(name, value, f"draw({value})")
    more = ", checker=lambda images, texts: [1.0], num_attempts=2" if name == "checker" else ""
    return call(name, value, f"draw('a red circle', **{{'{name}': {value}}}{more if name != 'checker' else ''})")


def loose_text(rng: np.random.Generator, folder: Path) -> Case:
    """Texts that may be read, or refused; and pictures of any kind."""
    value = pick(rng, LOOSE_TEXTS)
    name = pick(rng, ("prompt", "negative_prompt", "plan"))
    if name == "prompt":
        return call(name, value, f"draw({value})", EITHER, "text", "token", "surrogate")
    if name == "plan":
        return call("prompt", value, f"draw({value}, plan=True)", EITHER, "text", "token", "surrogate")
    return call(name, value, f"draw('a circle', negative_prompt={value})", EITHER, "prompt", "surrogate")


def bad_condition(rng: np.random.Generator, folder: Path) -> Case:
    value = pick(rng, (*TENSORS, *scaled("condition"), "condition * 1e30", "condition[:, :, :5]"))
    expected = EITHER if "1e30" in value else (REFUSED,)
    return call("condition", value, f"draw(condition={value})", expected)


def bad_features(rng: np.random.Generator, folder: Path) -> Case:
    value = pick(rng, (*TENSORS, *scaled("features"), "features * 1e30", "torch.zeros(1, 64, 9, 8)"))
    expected = EITHER if "1e30" in value else (REFUSED,)
    kind = pick(rng, ("decode", "start"))
    if kind == "start":
        strength = pick(rng, ("0.5", "0.5", "float('nan')", "-1", "2", "'x'", "True", "0"))
        if strength != "0.5":
            text = f"draw('a circle', image_features=features, strength={strength})"
            return call("strength", strength, text, EITHER if strength == "True" else (REFUSED,))
        return call("image_features", value, f"draw('a circle', image_features={value}, strength=0.5)", expected)
    return call("image_features", value, f"draw(image_features={value})", expected, "reads features")


def bad_stage(rng: np.random.Generator, folder: Path) -> Case:
    """Prompts given to the first stage alone; the later ones take what the stages before them made."""
    text = pick(rng, TEXTS)
    return call("prompt", text, f"pipe.encode_prompt({text})", EITHER, "text", "string", "token")


def bad_reading(rng: np.random.Generator, folder: Path) -> Case:
    """Other readers of texts and images."""
    picture, text, number = pick(rng, PICTURES), pick(rng, TEXTS), pick(rng, (*NUMBERS, "0"))
    kinds = {
        "reconstruct": (f"reconstruct({picture}, 'autoencoder')", "image"),
        "encode": (f"reconstruct.encode_images({picture})", "image"),
        "mode": (f"reconstruct(picture, {text})", "mode"),
        "interpolate": (f"interpolate(features, {pick(rng, TENSORS)}, 3)", "features"),
        "number": (f"interpolate(features, features, {number})", "num"),
        "chat": (f"Blip3oChat(pipe).ask('what is it?', {picture}, max_new_tokens=1).text", "image"),
        "talk": (f"Blip3oChat(pipe).ask({text}, max_new_tokens=1).text", "turn"),
        "length": (f"Blip3oChat(pipe).ask('x', max_new_tokens={number}).text", "max_new_tokens"),
        "drawn": (f"Blip3oChat(pipe).draw({text}, **FAST)", "turn"),
        "messages": (f"Blip3oChat(pipe, {pick(rng, ('5', '[5]', '[{}]', 'None', repr([{'role': 'x'}])))})", "message"),
        "forget": (f"Blip3oChat(pipe).forget({number})", "num_turns"),
        "variation": (f"reconstruct.vary({picture})", "image"),
    }
    kind = pick(rng, [kind for kind in kinds if kind != "variation"])
    text, name = kinds[kind]
    names = (name, "text", "conversation", "token", "picture", "prompt", "An image", "Interpolation")
    return Case(f"{kind}", expression=text, names=names, expected=EITHER)


def good_call(rng: np.random.Generator, folder: Path) -> Case:
    """Large and small numbers that are in range."""
    text = pick(
        rng,
        (
            "draw('a red circle', guidance_scale=1000)",
            "draw('a red circle', latents=features * 1e4)",
            "draw('a red circle', guidance_scale=0)",
            "draw(condition=condition * 1e3)",
            "draw(image_features=features * 1e4)",
            "draw('a red circle', image=np.zeros((1, 1, 3), np.uint8))",
            "draw(['a red circle'] * 20, num_images_per_prompt=2)",
            "draw('a red circle', guidance_interval=(0.5, 0.5))",
            "draw('a red circle', num_inference_steps=np.int64(1))",
            "draw('\\u202ea \\U0001f534', generator=torch.Generator().manual_seed(2**63 - 1))",
        ),
    )
    return Case("a call in range", expression=text, expected=(RIGHT,))


MAKERS: tuple[Maker, ...] = (
    bad_drawing,
    bad_drawing,
    bad_features,
    bad_drawing,
    bad_reading,
    bad_condition,
    bad_drawing,
    loose_text,
    bad_stage,
    bad_drawing,
    bad_reading,
    good_call,
)
