"""A reward of a chat model behind an OpenAI-compatible endpoint, such as vLLM: how likely yes is, in its own words."""

import functools
import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

from PIL import Image

from ..checks import check_sizes
from ..collection.checks import picture_message
from ..collection.endpoint import Endpoint, Refused
from ..collection.teachers import Answer
from ..evaluation.benchmarks.judges import MIN_MASS
from ..rewards.questions import QUESTION, QuestionReward

logger = logging.getLogger(__name__)

PATH = "/chat/completions"
VARIABLES = ("BLIP3O_JUDGE_URL", "BLIP3O_JUDGE_MODEL", "BLIP3O_JUDGE_KEY")
"""Environment variables that [`endpoint_judge`] reads: address, model and, if it is set, key."""


class EndpointJudge(QuestionReward):
    r"""
    \(P(\text{yes}) / (P(\text{yes}) + P(\text{no}))\) in [0, 1] of the first token of an answer, where the endpoint
    tells log-probabilities; else 1 for yes and 0 for no, the first word of the answer; `None` for any other answer,
    and where the endpoint refuses to judge a picture.

    Args:
        base_url: such as `http://localhost:8000/v1`.
        model: its name there.
        key (*optional*): sent to this address alone; never in an error or a log.
        question: asked of each picture; `{prompt}` in it becomes the prompt.
        name: in logs.
        licence: of the weights.
        at_once: requests that wait for an answer at the same time.
        options: further keys of each request; those that are `None` are left out. An endpoint that does not know
            `logprobs` may need `{"logprobs": None, "top_logprobs": None}`.
        settings: `num_attempts` and `timeout` in seconds, as of [`~collection.endpoint.Endpoint`].

    Raises:
        ValueError: when the address or the key cannot be one, or the question has no place for the prompt.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        key: str | None = None,
        *,
        question: str = QUESTION,
        name: str = "endpoint_judge",
        licence: str = "not known here: see the terms of the endpoint and its model",
        at_once: int = 8,
        options: Mapping[str, Any] | None = None,
        **settings: Any,
    ):
        super().__init__(question, name, licence)
        check_sizes(at_once=at_once)
        self.endpoint = Endpoint(base_url, key, **settings)
        self.model, self.at_once = model, at_once
        sent = {"max_tokens": 5, "temperature": 0, "logprobs": True, "top_logprobs": 20, **(options or {})}
        self.options = {name: value for name, value in sent.items() if value is not None}

    def answers(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[float | None]:
        stop = Event()
        with ThreadPoolExecutor(self.at_once) as pool:
            asked = [pool.submit(self._ask, *each, stop) for each in zip(images, texts, strict=True)]
            try:
                answers = [each.result() for each in asked]
            finally:
                stop.set()  # an interruption, too, ends what waits
        refused = [answer for answer in answers if isinstance(answer, Refused)]
        if refused:
            logger.warning(
                "%s refused to judge %d of %d pictures: %s", self.name, len(refused), len(images), refused[0]
            )
        return [None if isinstance(answer, Refused) else answer for answer in answers]

    def _ask(self, image: Image.Image, text: str, stop: Event) -> float | Refused | None:
        if stop.is_set():
            return None  # another request failed, whose error is raised
        message = picture_message(Answer.of_image(image).data, text)
        try:
            answer = self.endpoint.post(PATH, {"model": self.model, "messages": [message], **self.options}, stop)
            return self._read(answer)
        except Refused as refused:
            return refused
        except OSError:
            stop.set()
            raise

    def _read(self, answer: Mapping[str, Any]) -> float | Refused | None:
        """
        Raises:
            OSError: when it is no answer of a chat model.
        """
        try:
            choice = answer["choices"][0]
            message, logprobs = choice["message"], choice.get("logprobs") or {}
            refusal, content = message.get("refusal"), message.get("content")
            first = (logprobs.get("content") or [{}])[0].get("top_logprobs") or []
            likely = [(str(each["token"]), _logprob(each["logprob"])) for each in first]
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise OSError(
                f"A chat model must answer with choices, a message and tokens. {self.endpoint.base_url} did not. "
                f"Check the address, which often ends with /v1."
            ) from error
        if refusal:
            return Refused(self.endpoint.without_key(str(refusal))[:300])
        return share_of_yes(likely) if likely else {"yes": 1.0, "no": 0.0}.get(_first_word(str(content or "")))


def share_of_yes(likely: Sequence[tuple[str, float]]) -> float | None:
    r"""
    \(P(yes) / (P(yes) + P(no))\) over all spellings, or `None` where both together are less likely than `MIN_MASS`.

    Args:
        likely: tokens with the natural logarithms of their probabilities.

    Example:
        >>> share_of_yes([("Yes", -0.5), (" no", -0.5)])
        0.5
    """
    yes, no = (
        sum(math.exp(min(0.0, logprob)) for token, logprob in likely if _first_word(token) == word)
        for word in ("yes", "no")
    )
    return yes / (yes + no) if yes + no >= MIN_MASS else None


def _logprob(value: Any) -> float:
    if math.isnan(value):
        raise ValueError("NaN is no probability")
    return float(value)


def _first_word(text: str) -> str:
    """In small letters; of an answer such as `**Yes**, it does.` it is `yes`."""
    found = re.search(r"[^\W\d_]+", text.casefold())
    return found[0] if found else ""


def endpoint_judge(prompts: Sequence[str], completions: Sequence[Image.Image], **columns: Any) -> list[float | None]:
    """
    The [`EndpointJudge`] that environment variables name, [`VARIABLES`]: for recipes,
    `blip3o_hf.preference.judge_endpoint:endpoint_judge`.

    Args:
        prompts, completions, columns: as of [`EndpointJudge`].

    Raises:
        ValueError: when address or model is not set.
        OSError: as of [`EndpointJudge`].
    """
    return _from_environment(*(os.environ.get(name, "").strip() for name in VARIABLES))(
        prompts, completions, **columns
    )


@functools.lru_cache(maxsize=1)
def _from_environment(base_url: str, model: str, key: str) -> EndpointJudge:
    if not base_url or not model:
        raise ValueError(
            f"The reward endpoint_judge needs an address and a model. {VARIABLES[0]} or {VARIABLES[1]} is not set. "
            f"Set both with `export`, and {VARIABLES[2]} where the endpoint asks for a key."
        )
    return EndpointJudge(base_url, model, key or None)


__all__ = ["VARIABLES", "EndpointJudge", "endpoint_judge", "share_of_yes"]
