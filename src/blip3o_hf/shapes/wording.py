"""The same things said as people write them: prompts, questions and edits in many wordings, with words of no use."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from .language import NUMBER_WORDS, ObjectGroup, Prompt, join_phrases, pick, plural, with_article
from .scene import BACKGROUNDS, COLORS, INVERSE_RELATION, SHAPES, SIZES
from .wording_lists import (
    AGAIN,
    BACKGROUND_WORDS,
    BESIDE_IT,
    CAPTION_WORDS,
    COMPARATIVES,
    EDIT_WORDS,
    JOINING_WORDS,
    NO_PICTURE,
    NOT_KNOWN,
    PLACE_WORDS,
    PLAIN_ADJECTIVES,
    POLITE_ENDS,
    POLITE_STARTS,
    QUESTION_ENDS,
    QUESTION_STARTS,
    QUESTION_WORDS,
    RELATED_WORDS,
    RELATION_WORDS,
    REQUEST_WORDS,
    SIZE_WORDS,
    SMALL_TALK,
)

FURTHER_RATE = 0.7
"""Share of wordings that are drawn from `further_wordings`, where it has any, and not from `wording_lists`."""
_ADDED_RATE = 0.2
_TERSE_RATE = 0.08

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
        for _ in range(1 + int(rng.random() * 2)):
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
    if size and rng.random() < 0.15:
        few = [f"{word} {{name}}" for word in SIZE_WORDS[size]]
        return any_wording(rng, f"sized {size}", few).format(name=natural_name(rng, shape, color, None, count))
    noun = shape if count == 1 else plural(shape)
    words = [any_wording(rng, f"size {size}", SIZE_WORDS[size])] if size else []
    if color is None:
        return " ".join([*words, noun])
    wording, verb = rng.random(), "is" if count == 1 else "are"
    if wording < 0.75:
        return " ".join([*words, color, noun])
    if wording < 0.85:
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
        numbered = f"{_number(rng, group.count)} {name}"
        is_after = rng.random() < 0.15
        phrase = any_wording(rng, f"counted {group.count}", (numbered,)).format(names=name) if is_after else numbered
    elif rng.random() < 0.75:
        phrase = with_article(name)
    else:
        number = any_wording(rng, "number 1", ("one", "1"))
        phrase = name if rng.random() < 0.3 else f"{number} {name}"
    if group.place is None:
        return phrase
    placed = any_wording(rng, "placed", ("{thing} {place}",))
    return placed.format(thing=phrase, place=natural_place(rng, group.place))


def natural_place(rng: np.random.Generator, zone: str) -> str:
    """Where something stands: "at the top left", "in the upper left corner"."""
    return any_wording(rng, f"place {zone}", PLACE_WORDS[zone])


def natural_relation(rng: np.random.Generator, relation: str) -> str:
    """How one thing stands to another: "left of", "to the left of"."""
    return any_wording(rng, f"relation {relation}", RELATION_WORDS[relation])


def natural_beside(rng: np.random.Generator, relation: str) -> str:
    """How what is said second stands to what is said first: "to its left", "on the left of it"."""
    return any_wording(rng, f"beside {relation}", BESIDE_IT[relation])


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
        text = any_wording(rng, "related", RELATED_WORDS).format(
            first=first,
            second=second,
            relation=natural_relation(rng, prompt.relation),
            inverse=natural_relation(rng, INVERSE_RELATION[prompt.relation]),
            beside=natural_beside(rng, prompt.relation),
            across=natural_beside(rng, INVERSE_RELATION[prompt.relation]),
        )
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
    if rng.random() < 0.05:
        text += any_wording(rng, "alone", ("",))
    return punctuated(rng, roughened(rng, text))


def natural_question(rng: np.random.Generator, form: str, words: Mapping[str, str]) -> str:
    """A question of a form in any of its wordings; `words` are those that the form's first wording has places for."""
    words = {slot: renamed(rng, text) for slot, text in words.items()}
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
    index = int(rng.random() * len(SMALL_TALK))
    texts, answer = SMALL_TALK[index]
    text = any_wording(rng, f"talk {('greeting', 'thanks', 'about', 'farewell')[index]}", texts)
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
    slots = "caption background a name names color first second relation inverse beside across noun thing more old new"
    words = dict.fromkeys((*slots.split(), "place", "to_place", "size", "comparative"), "")
    templates: tuple[tuple[str, ...], ...] = (
        BACKGROUND_WORDS,
        REQUEST_WORDS,
        CAPTION_WORDS,
        POLITE_STARTS,
        POLITE_ENDS,
        PLAIN_ADJECTIVES,
        JOINING_WORDS,
        RELATED_WORDS,
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
