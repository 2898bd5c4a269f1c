"""The same things said as people write them: prompts, questions and edits in many wordings, with words of no use."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from .language import NUMBER_WORDS, ObjectGroup, Prompt, join_phrases, pick, plural, with_article
from .scene import BACKGROUNDS, COLORS, SHAPES, SIZES

FURTHER_RATE = 0.7
"""Share of wordings that are drawn from `further_wordings`, where it has any, and not from the lists below."""
_ADDED_RATE = 0.12
_TERSE_RATE = 0.08

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
QUESTION_STARTS = ("please tell me,", "tell me,", "hey,", "hi,", "and", "so,", "ok,", "now,")
QUESTION_ENDS = (" please", ", please")
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
AGAIN = ("again", "another one", "try again", "one more")
"""What asks for another picture of the same."""
NO_PICTURE = "there is no picture yet. show me one, or tell me what to draw."
"""The answer to a question about a picture where none was shown."""
NOT_KNOWN = "i only know colored shapes. tell me which ones to draw, or ask about a picture of them."
"""The answer to what is about something else."""

OFF_TOPIC_STARTS = ("what is", "who is", "where is", "how many", "draw", "show me a", "is", "why", "tell me", "")
_OBJECT_WORDS = ("shapes", "things", "figures", "items", "forms", "ones", "elements")
_ENDINGS = ("a", "e", "i", "o", "u", "an", "er", "ol", "ist", "um", "ea", "ing", "y", "ck", "sh")
_SYLLABLES = tuple(first + rest for first in "bcdfghjklmnprstvwz" for rest in _ENDINGS)


@cache
def further_wordings() -> dict[str, tuple[str, ...]]:
    """
    Many more wordings by what they are of, such as `question color`, `edit remove` or `request`, written as very
    different people put it. Their places to fill are those of the lists here.
    """
    path = Path(__file__).parent / "further_wordings.json"
    return {form: tuple(texts) for form, texts in json.loads(path.read_text(encoding="utf-8")).items()}


def any_wording(rng: np.random.Generator, form: str, few: Sequence[str]) -> str:
    """One of the further wordings of a form, or of the few that are given."""
    more = further_wordings().get(form)
    return pick(rng, more) if more and rng.random() < FURTHER_RATE else pick(rng, few)


def roughened(rng: np.random.Generator, text: str) -> str:
    """The text as somebody in a hurry writes it: now and then without articles, or with a word of no use."""
    chance = rng.random()
    if chance < _TERSE_RATE:
        return re.sub(r"\b(?:an?|the) ", "", text)
    if chance < _TERSE_RATE + _ADDED_RATE:
        words = text.split(" ")
        added = unknown_word(rng) if rng.random() < 0.5 else any_wording(rng, "filler", ("now", "please", "just"))
        words.insert(int(rng.random() * (len(words) + 1)), added)
        return " ".join(words)
    return text


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
    return any_wording(rng, "adjective", PLAIN_ADJECTIVES) if rng.random() < 0.6 else unknown_word(rng)


def natural_name(
    rng: np.random.Generator, shape: str, color: str | None = None, size: str | None = None, count: int = 1
) -> str:
    """What an object, or several, may be called, without an article: "red circle", "circle that is red"."""
    noun = shape if count == 1 else plural(shape)
    words = [any_wording(rng, f"size {size}", SIZE_WORDS[size])] if size else []
    if color is None:
        return " ".join([*words, noun])
    wording, verb = rng.random(), "is" if count == 1 else "are"
    if wording < 0.8:
        return " ".join([*words, color, noun])
    if wording < 0.88:
        return " ".join([*words, f"{noun} in {color}"])
    if wording < 0.94:
        return " ".join([*words, f"{noun} that {verb} {color}"])
    return " ".join([*words, any_wording(rng, "name", ("{color} colored {noun}",)).format(color=color, noun=noun)])


def _number(rng: np.random.Generator, count: int) -> str:
    wording = rng.random()
    if wording < 0.45:
        return NUMBER_WORDS[count]
    if wording < 0.75:
        return str(count)
    if wording < 0.9:
        return any_wording(rng, f"number {count}", (NUMBER_WORDS[count],))
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
        number = any_wording(rng, "number 1", ("one", "1"))
        phrase = name if rng.random() < 0.3 else f"{number} {name}"
    return phrase if group.place is None else f"{phrase} {natural_place(rng, group.place)}"


def natural_place(rng: np.random.Generator, zone: str) -> str:
    """Where something stands: "at the top left", "in the upper left corner"."""
    return any_wording(rng, f"place {zone}", PLACE_WORDS[zone])


def natural_relation(rng: np.random.Generator, relation: str) -> str:
    """How one thing stands to another: "left of", "to the left of"."""
    return any_wording(rng, f"relation {relation}", RELATION_WORDS[relation])


def renamed(rng: np.random.Generator, words: str) -> str:
    """A name such as "a red circle" or "red objects" in other words, its article kept; anything else as it is."""
    match = re.fullmatch(rf"(an? )?(?:({'|'.join(COLORS)}) )?(\w+)", words)
    if match is None or not (match[2] or match[3] == "objects"):
        return words
    article, color, noun = match.groups()
    if noun == "objects" and rng.random() < 0.5:
        noun = pick(rng, _OBJECT_WORDS if color else _OBJECT_WORDS[:-2])
    wording = rng.random()
    if color is None or wording < 0.7:
        name = f"{color} {noun}" if color else noun
    elif wording < 0.8:
        name = f"{noun} in {color}"
    elif wording < 0.87:
        name = f"{noun} that {'are' if noun.endswith('s') and noun != 'cross' else 'is'} {color}"
    else:
        name = any_wording(rng, "name", ("{color} colored {noun}",)).format(color=color, noun=noun)
    return with_article(name) if article else name


def natural_caption(rng: np.random.Generator, prompt: Prompt) -> str:
    """What a prompt asks for in other words, without a request around it."""
    phrases = [natural_group(rng, group) for group in prompt.objects]
    if prompt.relation is not None:
        first, second = phrases
        relation, wording = natural_relation(rng, prompt.relation), rng.random()
        if wording < 0.65:
            text = f"{first} {relation} {second}"
        elif wording < 0.75:
            text = f"{first} that is {relation} {second}"
        elif wording < 0.87:
            text = f"{relation} {second} {pick(rng, ('there is', 'is'))} {first}"
        else:
            beside = any_wording(rng, f"beside {prompt.relation}", BESIDE_IT[prompt.relation])
            text = f"{second} with {first} {beside}"
    elif len(phrases) == 2 and rng.random() < 0.3:
        text = f"{phrases[0]} {any_wording(rng, 'joining', JOINING_WORDS)} {phrases[1]}".replace(" ,", ",")
    elif len(phrases) > 1 and rng.random() < 0.2:
        text = ", ".join(phrases)
    else:
        text = join_phrases(phrases)
    if prompt.background is not None:
        words = any_wording(rng, "background", BACKGROUND_WORDS).format(background=prompt.background)
        text += words if words[0] in ",.;: " else f" {words}"
    return text


def natural_request(rng: np.random.Generator, caption: str) -> str:
    """A caption with a request around it, such as "can you draw ... for me, please"."""
    return _polite(rng, any_wording(rng, "request", REQUEST_WORDS).replace("{caption}", caption))


def natural_prompt(rng: np.random.Generator, prompt: Prompt) -> str:
    """A prompt as somebody may write it: bare, or as a request; with a final mark or without."""
    caption = natural_caption(rng, prompt)
    if rng.random() < 0.5:
        text = natural_request(rng, caption)
    elif rng.random() < 0.4:
        text = caption
    else:
        text = any_wording(rng, "caption", CAPTION_WORDS).replace("{caption}", caption)
    return punctuated(rng, roughened(rng, text))


def natural_question(rng: np.random.Generator, form: str, words: Mapping[str, str]) -> str:
    """A question of a form in any of its wordings; `words` are those that the form's first wording has places for."""
    words = {place: renamed(rng, text) for place, text in words.items()}
    text = any_wording(rng, f"question {form}", QUESTION_WORDS[form]).format(**words)
    return asked(rng, text)


def asked(rng: np.random.Generator, text: str) -> str:
    """A question with what people say before and after it, and with its mark or without."""
    if rng.random() < 0.12:
        text = f"{any_wording(rng, 'question start', QUESTION_STARTS)} {text}"
    if rng.random() < 0.06:
        text += any_wording(rng, "question end", QUESTION_ENDS)
    return f"{roughened(rng, text)}{pick(rng, ('?', '?', '?', '', '', ' ?', '.'))}"


def natural_edit(rng: np.random.Generator, kind: str, words: Mapping[str, str]) -> str:
    """An edit of a kind in any of its wordings."""
    called = renamed(rng, words["old"])
    text = any_wording(rng, f"edit {kind}", EDIT_WORDS[kind]).format(**{**words, "old": called})
    return punctuated(rng, roughened(rng, _polite(rng, text)))


def punctuated(rng: np.random.Generator, text: str) -> str:
    """The text with a final mark, or as it is."""
    return f"{text}{pick(rng, ('', '', '', '.', '.', '!', '?'))}"


def _polite(rng: np.random.Generator, text: str) -> str:
    if rng.random() < 0.25:
        text = f"{any_wording(rng, 'polite start', POLITE_STARTS)} {text}"
    if rng.random() < 0.2:
        text += any_wording(rng, "polite end", POLITE_ENDS)
    return text


def small_talk(rng: np.random.Generator) -> tuple[str, str]:
    """Something that asks for nothing, and what the model answers."""
    place = int(rng.random() * len(SMALL_TALK))
    texts, answer = SMALL_TALK[place]
    text = any_wording(rng, f"talk {('greeting', 'thanks', 'about', 'farewell')[place]}", texts)
    return punctuated(rng, text), answer


def off_topic(rng: np.random.Generator) -> str:
    """Something about no shape at all: about the world, a job, a drawing of something else, or about nothing."""
    chance = rng.random()
    if chance < 0.3:
        words = [unknown_word(rng) for _ in range(1 + int(rng.random() * 6))]
        return punctuated(rng, " ".join([pick(rng, OFF_TOPIC_STARTS), *words]).strip())
    if chance < 0.45:
        thing = any_wording(rng, "unrelated drawing", ("a house", "a cat", "a person"))
        return punctuated(rng, natural_request(rng, thing))
    return punctuated(rng, any_wording(rng, "unrelated", ("what time is it", "tell me a story", "who made the moon")))


def known_texts() -> list[str]:
    """Texts that hold every word of the world, so that a tokenizer can have each of them whole."""
    words = {"caption": "", "background": "", "a": "", "name": "", "names": "", "color": "", "first": "", "second": ""}
    words |= dict.fromkeys(("noun", "relation", "more", "old", "new", "place", "to_place", "size", "comparative"), "")
    templates: tuple[tuple[str, ...], ...] = (
        BACKGROUND_WORDS,
        REQUEST_WORDS,
        CAPTION_WORDS,
        POLITE_STARTS,
        POLITE_ENDS,
        PLAIN_ADJECTIVES,
        JOINING_WORDS,
        OFF_TOPIC_STARTS,
        QUESTION_STARTS,
        QUESTION_ENDS,
        AGAIN,
        _OBJECT_WORDS,
        *(texts for form, texts in further_wordings().items() if not form.startswith("unrelated")),
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
