"""The same things said as people write them: prompts, questions and edits in many wordings, with words of no use."""

import re
from collections.abc import Mapping
from functools import cache

import numpy as np

from .language import NUMBER_WORDS, ObjectGroup, Prompt, join_phrases, pick, plural, with_article
from .scene import BACKGROUNDS, COLORS, SHAPES, SIZES

SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
PLACE_WORDS = {
    "top": ("at the top", "at the upper edge", "in the upper part"),
    "bottom": ("at the bottom", "at the lower edge", "in the lower part"),
    "left": ("at the left", "on the left", "on the left side"),
    "right": ("at the right", "on the right", "on the right side"),
    "center": ("at the center", "in the center", "in the middle", "at the centre"),
    "top left": ("at the top left", "in the top left corner", "in the upper left", "in the upper left corner"),
    "top right": ("at the top right", "in the top right corner", "in the upper right", "in the upper right corner"),
    "bottom left": (
        "at the bottom left",
        "in the bottom left corner",
        "in the lower left",
        "in the lower left corner",
    ),
    "bottom right": (
        "at the bottom right",
        "in the bottom right corner",
        "in the lower right",
        "in the lower right corner",
    ),
}
RELATION_WORDS = {
    "left of": ("left of", "to the left of", "on the left of", "on the left side of"),
    "right of": ("right of", "to the right of", "on the right of", "on the right side of"),
    "above": ("above", "over", "on top of", "higher than"),
    "below": ("below", "under", "underneath", "beneath", "lower than"),
}
BESIDE_IT = {
    "left of": ("to its left", "on its left", "to the left of it", "on the left"),
    "right of": ("to its right", "on its right", "to the right of it", "on the right"),
    "above": ("above it", "over it", "on top of it"),
    "below": ("below it", "under it", "underneath it", "beneath it"),
}
"""The relations of what is said second to what is said first."""
BACKGROUND_WORDS = (
    "on a {background} background",
    "on a {background} background",
    "on {background}",
    "against a {background} background",
    "against {background}",
    "with a {background} background",
    "in front of a {background} background",
    ", {background} background",
    ", background {background}",
    ". the background is {background}",
    ". the background should be {background}",
    ". make the background {background}",
)
REQUEST_WORDS = (
    "draw {caption}",
    "draw me {caption}",
    "draw a picture of {caption}",
    "draw a picture with {caption}",
    "paint {caption}",
    "paint me {caption}",
    "paint a picture of {caption}",
    "make {caption}",
    "make me {caption}",
    "make a picture of {caption}",
    "make an image of {caption}",
    "show {caption}",
    "show me {caption}",
    "show me a picture of {caption}",
    "give me {caption}",
    "give me a picture of {caption}",
    "give me an image with {caption}",
    "create {caption}",
    "create an image of {caption}",
    "generate {caption}",
    "generate an image of {caption}",
    "generate a picture with {caption}",
    "sketch {caption}",
    "can you draw {caption}",
    "can you draw me {caption}",
    "can you paint {caption}",
    "can you make {caption}",
    "can you show me {caption}",
    "could you draw {caption}",
    "could you make a picture of {caption}",
    "could you paint {caption}",
    "would you draw {caption}",
    "will you draw {caption}",
    "i want {caption}",
    "i want to see {caption}",
    "i want a picture of {caption}",
    "i would like {caption}",
    "i would like to see {caption}",
    "i'd like {caption}",
    "i'd like to see {caption}",
    "i'd like a picture of {caption}",
    "i need {caption}",
    "i need a picture of {caption}",
    "let me see {caption}",
    "let's see {caption}",
    "let's draw {caption}",
    "what about {caption}",
    "how about {caption}",
    "now {caption}",
)
CAPTION_WORDS = (
    "{caption}",
    "{caption}",
    "{caption}",
    "{caption}",
    "a picture of {caption}",
    "a picture with {caption}",
    "a picture showing {caption}",
    "a picture that shows {caption}",
    "picture of {caption}",
    "an image of {caption}",
    "an image with {caption}",
    "an image that shows {caption}",
    "image of {caption}",
    "a drawing of {caption}",
    "a photo of {caption}",
    "a painting of {caption}",
    "a scene with {caption}",
    "there is {caption}",
    "just {caption}",
    "only {caption}",
)
POLITE_STARTS = ("please", "please", "hi,", "hello,", "hey,", "ok,", "okay,", "now", "now please", "and now", "so,")
POLITE_ENDS = (" please", ", please", " for me", " for me please", ", thanks", ", thank you", " now", " if you can")
JOINING_WORDS = ("with", "plus", "together with", "along with", "and also", "as well as", "&")
# Adjectives that change nothing.
PLAIN_ADJECTIVES = ("nice", "pretty", "beautiful", "simple", "plain", "lovely")

QUESTION_WORDS: dict[str, tuple[str, ...]] = {
    "existence": (
        "is there {a}",
        "is there {a} in the picture",
        "is there {a} in the image",
        "is there any {name}",
        "do you see {a}",
        "can you see {a}",
        "can you see any {names}",
        "are there any {names}",
        "does the picture show {a}",
        "does the image show {a}",
        "does the picture contain {a}",
        "does the image have {a}",
        "is {a} in the picture",
        "isn't there {a}",
    ),
    "color": (
        "what color is the {name}",
        "what color does the {name} have",
        "what's the color of the {name}",
        "what is the color of the {name}",
        "what is the {name}'s color",
        "which color is the {name}",
        "which color does the {name} have",
        "what colour is the {name}",
        "what's the colour of the {name}",
        "tell me the color of the {name}",
        "the {name} is what color",
    ),
    "shape": (
        "what shape is the {color} object",
        "what's the shape of the {color} object",
        "what is the shape of the {color} one",
        "what shape is {color}",
        "which shape is {color}",
        "which shape is the {color} object",
        "what shape does the {color} object have",
        "what is the {color} object",
        "what is the {color} thing",
        "what's the {color} thing",
        "what {color} shape is there",
        "tell me the shape of the {color} object",
    ),
    "count": (
        "how many {names} are there",
        "how many {names} are in the picture",
        "how many {names} are in the image",
        "how many {names} do you see",
        "how many {names} can you see",
        "how many {names} does the picture show",
        "what's the number of {names}",
        "what is the number of {names}",
        "count the {names}",
        "number of {names}",
        "tell me how many {names} there are",
        "how many {names}",
    ),
    "position": (
        "is the {first} {relation} the {second}",
        "is the {first} {relation} the {second} in the picture",
        "does the {first} stand {relation} the {second}",
        "would you say the {first} is {relation} the {second}",
        "the {first} is {relation} the {second}, right",
        "isn't the {first} {relation} the {second}",
    ),
    "background": (
        "what color is the background",
        "what color does the background have",
        "what's the color of the background",
        "what is the color of the background",
        "what's the background color",
        "what is the background color",
        "which color is the background",
        "what colour is the background",
        "what's the background",
        "tell me the background color",
    ),
    "size": (
        "what size is the {name}",
        "what's the size of the {name}",
        "what is the size of the {name}",
        "how big is the {name}",
        "how large is the {name}",
        "which size is the {name}",
        "which size does the {name} have",
        "is the {name} small or large",
        "is the {name} large or small",
        "is the {name} big or small",
    ),
    "larger": (
        "is the {first} larger than the {second}",
        "is the {first} bigger than the {second}",
    ),
    "smaller": ("is the {first} smaller than the {second}",),
    "row": (
        "in which row is the {name}",
        "which row is the {name} in",
        "what row is the {name} in",
        "what is the row of the {name}",
        "what's the row of the {name}",
    ),
    "column": (
        "in which column is the {name}",
        "which column is the {name} in",
        "what column is the {name} in",
        "what is the column of the {name}",
        "what's the column of the {name}",
    ),
    "cell": (
        "in which cell is the {name}",
        "which cell is the {name} in",
        "what are the row and the column of the {name}",
        "in which row and column is the {name}",
    ),
    "zone": (
        "where is the {name}",
        "where's the {name}",
        "where do you see the {name}",
        "where in the picture is the {name}",
        "tell me where the {name} is",
    ),
    "more": (
        "which image has {more} objects",
        "which picture has {more} objects",
        "which of the two has {more} objects",
        "which one has {more} objects",
    ),
    "shows": (
        "which image shows {a}",
        "which picture shows {a}",
        "which image has {a}",
        "which one has {a}",
        "which of the two shows {a}",
        "in which image is there {a}",
        "in which picture do you see {a}",
    ),
    "backgrounds": (
        "do both images have the same background",
        "do both pictures have the same background",
        "is the background the same in both images",
        "is the background the same",
        "do they have the same background",
    ),
}
"""For each form of question, its wordings; the first one is the plain one."""

EDIT_WORDS: dict[str, tuple[str, ...]] = {
    "color": (
        "make the {old} {color}",
        "change the {old} to {color}",
        "paint the {old} {color}",
        "turn the {old} {color}",
        "color the {old} {color}",
        "recolor the {old} to {color}",
        "change the color of the {old} to {color}",
        "give the {old} the color {color}",
        "the {old} should be {color}",
        "i want the {old} to be {color}",
        "can you make the {old} {color}",
        "could you paint the {old} {color}",
    ),
    "shape": (
        "turn the {old} into {new}",
        "replace the {old} with {new}",
        "replace the {old} by {new}",
        "change the {old} into {new}",
        "change the {old} to {new}",
        "make the {old} {new}",
        "make {new} out of the {old}",
        "swap the {old} for {new}",
        "the {old} should be {new}",
        "i want {new} instead of the {old}",
        "can you turn the {old} into {new}",
    ),
    "add": (
        "add {new} {place}",
        "put {new} {place}",
        "place {new} {place}",
        "draw {new} {place}, too",
        "also draw {new} {place}",
        "insert {new} {place}",
        "i want another object: {new} {place}",
        "there should also be {new} {place}",
        "can you add {new} {place}",
        "could you put {new} {place}",
    ),
    "remove": (
        "remove the {old}",
        "take the {old} away",
        "take away the {old}",
        "delete the {old}",
        "erase the {old}",
        "get rid of the {old}",
        "drop the {old}",
        "i don't want the {old}",
        "the {old} should go",
        "can you remove the {old}",
        "could you take the {old} away",
    ),
    "move": (
        "move the {old} {to_place}",
        "put the {old} {place}",
        "place the {old} {place}",
        "shift the {old} {to_place}",
        "bring the {old} {to_place}",
        "the {old} should be {place}",
        "i want the {old} {place}",
        "can you move the {old} {to_place}",
        "could you put the {old} {place}",
    ),
    "size": (
        "make the {old} {size}",
        "make the {old} {comparative}",
        "the {old} should be {size}",
        "the {old} should be {comparative}",
        "change the {old} to {size}",
        "i want the {old} {comparative}",
        "can you make the {old} {comparative}",
        "draw the {old} {comparative}",
    ),
    "background": (
        "make the background {background}",
        "change the background to {background}",
        "paint the background {background}",
        "turn the background {background}",
        "the background should be {background}",
        "put it on a {background} background",
        "i want a {background} background",
        "use a {background} background",
        "can you make the background {background}",
    ),
}
"""For each kind of edit, its wordings."""
COMPARATIVES = {"small": ("smaller",), "large": ("larger", "bigger")}

SMALL_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("hi", "hello", "hey", "hi there", "hello there", "good morning", "good evening", "hey there", "how are you"),
        "hello. tell me what to draw, or show me a picture and ask about it.",
    ),
    (
        ("thanks", "thank you", "thank you very much", "thanks a lot", "great", "nice", "very nice", "well done"),
        "you are welcome.",
    ),
    (
        (
            "who are you",
            "what are you",
            "what can you do",
            "what do you do",
            "help",
            "help me",
            "what's your name",
            "what is your name",
            "what do you know",
            "how does this work",
        ),
        "i draw small pictures of colored shapes, answer questions about them, and change them.",
    ),
    (("bye", "goodbye", "good bye", "see you", "good night"), "goodbye."),
)
"""What people say that asks for nothing, and what the model answers."""
NO_PICTURE = "there is no picture yet. show me one, or tell me what to draw."
"""The answer to a question about a picture where none was shown."""
NOT_KNOWN = "i only know colored shapes. tell me which ones to draw, or ask about a picture of them."
"""The answer to what is about something else."""

OFF_TOPIC_STARTS = ("what is", "who is", "where is", "how many", "draw", "show me a", "is", "why", "tell me", "")
_ENDINGS = ("a", "e", "i", "o", "u", "an", "er", "ol", "ist", "um", "ea", "ing", "y", "ck", "sh")
_SYLLABLES = tuple(first + rest for first in "bcdfghjklmnprstvwz" for rest in _ENDINGS)


def unknown_word(rng: np.random.Generator) -> str:
    """A word that means nothing, so that words never read come to be passed over."""
    while True:
        word = "".join(pick(rng, _SYLLABLES) for _ in range(1 + int(rng.random() * 3)))
        if word not in _known_words():
            return word


@cache
def _known_words() -> frozenset[str]:
    return frozenset(re.findall("[a-z]+", " ".join(known_texts())))


def _adjective(rng: np.random.Generator) -> str:
    return pick(rng, PLAIN_ADJECTIVES) if rng.random() < 0.5 else unknown_word(rng)


def natural_name(
    rng: np.random.Generator, shape: str, color: str | None = None, size: str | None = None, count: int = 1
) -> str:
    """What an object, or several, may be called, without an article: "red circle", "circle that is red"."""
    noun = shape if count == 1 else plural(shape)
    words = [pick(rng, SIZE_WORDS[size])] if size else []
    if color is None:
        return " ".join([*words, noun])
    wording, verb = rng.random(), "is" if count == 1 else "are"
    if wording < 0.8:
        return " ".join([*words, color, noun])
    if wording < 0.88:
        return " ".join([*words, f"{noun} in {color}"])
    if wording < 0.94:
        return " ".join([*words, f"{noun} that {verb} {color}"])
    return " ".join([*words, f"{color} colored {noun}"])


def _number(rng: np.random.Generator, count: int) -> str:
    wording = rng.random()
    if wording < 0.5:
        return NUMBER_WORDS[count]
    if wording < 0.85:
        return str(count)
    if count == 2:
        return pick(rng, ("a pair of", "a couple of"))
    return f"exactly {NUMBER_WORDS[count]}"


def natural_group(rng: np.random.Generator, group: ObjectGroup) -> str:
    """The objects of a group, with an article or a number, and their place where they have one."""
    name = natural_name(rng, group.shape, group.color, group.size, group.count)
    if rng.random() < 0.06:
        name = f"{_adjective(rng)} {name}"
    if group.count > 1:
        phrase = f"{_number(rng, group.count)} {name}"
    elif rng.random() < 0.75:
        phrase = with_article(name)
    else:
        phrase = pick(rng, (f"one {name}", f"1 {name}", name))
    return phrase if group.place is None else f"{phrase} {pick(rng, PLACE_WORDS[group.place])}"


def natural_caption(rng: np.random.Generator, prompt: Prompt) -> str:
    """What a prompt asks for in other words, without a request around it."""
    phrases = [natural_group(rng, group) for group in prompt.objects]
    if prompt.relation is not None:
        first, second = phrases
        relation, wording = pick(rng, RELATION_WORDS[prompt.relation]), rng.random()
        if wording < 0.65:
            text = f"{first} {relation} {second}"
        elif wording < 0.75:
            text = f"{first} that is {relation} {second}"
        elif wording < 0.87:
            text = f"{relation} {second} {pick(rng, ('there is', 'is'))} {first}"
        else:
            text = f"{second} with {first} {pick(rng, BESIDE_IT[prompt.relation])}"
    elif len(phrases) == 2 and rng.random() < 0.3:
        text = f"{phrases[0]} {pick(rng, JOINING_WORDS)} {phrases[1]}"
    elif len(phrases) > 1 and rng.random() < 0.2:
        text = ", ".join(phrases)
    else:
        text = join_phrases(phrases)
    if prompt.background is not None:
        words = pick(rng, BACKGROUND_WORDS).format(background=prompt.background)
        text += words if words[0] in ",." else f" {words}"
    return text


def natural_request(rng: np.random.Generator, caption: str) -> str:
    """A caption with a request around it, such as "can you draw ... for me, please"."""
    return _polite(rng, pick(rng, REQUEST_WORDS).replace("{caption}", caption))


def natural_prompt(rng: np.random.Generator, prompt: Prompt) -> str:
    """A prompt as somebody may write it: bare, or as a request; with a final mark or without."""
    caption = natural_caption(rng, prompt)
    if rng.random() < 0.5:
        return punctuated(rng, natural_request(rng, caption))
    return punctuated(rng, pick(rng, CAPTION_WORDS).replace("{caption}", caption))


def natural_question(rng: np.random.Generator, form: str, words: Mapping[str, str]) -> str:
    """A question of a form in any of its wordings; `words` are those that the form's first wording has places for."""
    text = pick(rng, QUESTION_WORDS[form]).format(**words)
    if rng.random() < 0.1:
        text = f"{pick(rng, ('please tell me,', 'tell me,', 'hey,', 'hi,', 'and', 'so,', 'ok,', 'now,'))} {text}"
    return f"{text}{pick(rng, ('?', '?', '?', '', ' ?'))}"


def natural_edit(rng: np.random.Generator, kind: str, words: Mapping[str, str]) -> str:
    """An edit of a kind in any of its wordings."""
    return punctuated(rng, _polite(rng, pick(rng, EDIT_WORDS[kind]).format(**words)))


def punctuated(rng: np.random.Generator, text: str) -> str:
    """The text with a final mark, or as it is."""
    return f"{text}{pick(rng, ('', '', '', '.', '.', '!', '?'))}"


def _polite(rng: np.random.Generator, text: str) -> str:
    if rng.random() < 0.25:
        text = f"{pick(rng, POLITE_STARTS)} {text}"
    if rng.random() < 0.2:
        text += pick(rng, POLITE_ENDS)
    if rng.random() < 0.05:
        text = f"{unknown_word(rng)} {text}" if rng.random() < 0.5 else f"{text} {unknown_word(rng)}"
    return text


def off_topic(rng: np.random.Generator) -> str:
    """Something about no shape at all."""
    words = [unknown_word(rng) for _ in range(1 + int(rng.random() * 6))]
    return punctuated(rng, " ".join([pick(rng, OFF_TOPIC_STARTS), *words]).strip())


def known_texts() -> list[str]:
    """Texts that hold every word of the world, so that a tokenizer can have each of them whole."""
    words = {"caption": "", "background": "", "a": "", "name": "", "names": "", "color": "", "first": "", "second": ""}
    words |= dict.fromkeys(("relation", "more", "old", "new", "place", "to_place", "size", "comparative"), "")
    templates: tuple[tuple[str, ...], ...] = (
        BACKGROUND_WORDS,
        REQUEST_WORDS,
        CAPTION_WORDS,
        POLITE_STARTS,
        POLITE_ENDS,
        PLAIN_ADJECTIVES,
        JOINING_WORDS,
        OFF_TOPIC_STARTS,
        *QUESTION_WORDS.values(),
        *EDIT_WORDS.values(),
        *COMPARATIVES.values(),
        *SIZE_WORDS.values(),
        *PLACE_WORDS.values(),
        *RELATION_WORDS.values(),
        *BESIDE_IT.values(),
        *(texts for texts, _ in SMALL_TALK),
        tuple(answer for _, answer in SMALL_TALK),
        (NO_PICTURE, NOT_KNOWN),
        ("a pair of", "a couple of", "exactly", "in that is there are it", "colored", "into the", "fewer", "more"),
        ("describe in detail everything full reconstruct the given caption following please generate",),
        tuple(f"{shape} {plural(shape)}" for shape in SHAPES),
        (" ".join((*COLORS, *BACKGROUNDS, *NUMBER_WORDS, *SIZES)),),
        ("does the image show exactly this: answer yes or no. row column objects first second at image picture",),
        ("0 1 2 3 4 5 6 7 8 9", "a b c d e f g h", "an and the there's where's"),
    )
    return [text.format(**words) for group in templates for text in group]
