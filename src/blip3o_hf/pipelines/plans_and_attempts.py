"""What `Blip3oPipeline` does around a drawing: the backbone plans it before, and a checker looks at it after."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from .checking import BackboneChecker, Checker, check_num_attempts
from .planning import PLAN_TOKENS, spawn, write_plans

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Base
else:
    Base = object


class Blip3oPlansAndAttemptsMixin(Base):
    """The plans that `Blip3oPipeline` draws, and what looks at its pictures."""

    @torch.no_grad()
    def write_plans(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = PLAN_TOKENS,
        images: Sequence[Sequence[Image.Image]] | None = None,
        generators: Sequence[torch.Generator] | None = None,
    ) -> list[str]:
        """
        What the backbone writes when asked, by the processor's `plan_instruction`, what to draw for each prompt, given
        its images. Greedy, or sampled with a generator on the CPU for each prompt.
        """
        self._load_offloaded_model()
        top_p = self.config.plan_top_p
        return write_plans(
            self.model, self.processor, prompts, images, self._execution_device, generators, top_p, max_new_tokens
        )

    def _sample_plans(
        self,
        prompts: Sequence[str],
        images: Sequence[Sequence[Image.Image]] | None,
        generator: torch.Generator | Sequence[torch.Generator] | None,
    ) -> list[str]:
        """A plan for each image: sampled, or greedy, then written once for equal prompts."""
        if self.config.plan_top_p is not None:
            return self.write_plans(prompts, images=images, generators=spawn(generator, len(prompts)))
        if images is not None:
            return self.write_plans(prompts, images=images)
        distinct = list(dict.fromkeys(prompts))
        plans = dict(zip(distinct, self.write_plans(distinct), strict=True))
        return [plans[prompt] for prompt in prompts]

    def _wants_plan(self, given: bool | None, prompts: Sequence[str] | None) -> bool:
        """Whether the backbone plans: the caller's choice `given`, or the pipeline's default."""
        if given is not None and not isinstance(given, bool):
            raise TypeError(f"`plan` must be True or False. Got {given!r:.60}. Leave it out for the model's default.")
        if prompts is None:
            if given:
                raise ValueError("`plan=True` is for prompts in words. Got no prompt. Leave it out.")
            return False
        plan = self.config.default_plan if given is None else given
        if plan:
            self.processor.encode_prompts(prompts)  # checks them
        return plan

    def _num_attempts(self, given: int | None) -> int:
        return self.config.default_num_attempts if given is None else given

    def _picture_check(
        self,
        num_attempts: int | None,
        checker: Checker | None,
        prompts: Sequence[str] | None,
        num_images_per_prompt: int,
        **asked: Any,
    ) -> Callable[[torch.Tensor, list[int], list[str] | None], Sequence[float]] | None:
        """
        What looks at pictures: pixels, numbers of images and plans to scores; `None` where nothing does. `asked` is
        what `_reason_not_to_look` needs, too.

        Raises:
            TypeError: when the checker is no function.
            ValueError: when the caller asks for more than one attempt, and nothing can look at the pictures.
        """
        number = self._num_attempts(num_attempts)
        check_num_attempts(number)
        if checker is not None and not callable(checker):
            raise TypeError(
                f"`checker` must be a function of pictures and texts. Got {type(checker).__name__}. Leave it out to "
                f"let the model look."
            )
        reason = self._reason_not_to_look(checker, prompts, **asked)
        if reason is not None and num_attempts is not None and number > 1:
            raise ValueError(
                f"A picture is looked at before it is drawn again. Got num_attempts={number}, but {reason}."
            )
        if reason is not None or (number == 1 and checker is None):
            return None
        look = checker
        if look is None:
            look = BackboneChecker(self.model, self.processor, self._execution_device)

        def check(pixels: torch.Tensor, numbers: list[int], plans: list[str] | None) -> Sequence[float]:
            assert prompts is not None  # or there is a reason not to look
            texts = plans if plans is not None else [prompts[number // num_images_per_prompt] for number in numbers]
            return look(self.image_processor.postprocess(pixels, output_type="pil"), texts)

        return check

    def _reason_not_to_look(
        self,
        checker: Checker | None,
        prompts: Sequence[str] | None,
        plan: bool,
        has_images: bool,
        output_type: str,
        is_variation: bool,
    ) -> str | None:
        """Why the pictures that a call makes cannot be compared with a text; `None` where they can."""
        if output_type in ("features", "latent"):
            return f"only pictures can be looked at, and output_type is {output_type!r}"
        if prompts is None:
            return "there is no prompt to compare them with"
        if has_images and not plan:
            return "an instruction does not say what the picture is to show; a plan does (plan=True)"
        if is_variation:
            return "pictures that start from features are variations, and are not judged"
        if checker is None and not self.model.config.has_vision:
            return "this backbone reads text only; pass a `checker`"
        return None


__all__ = ["Blip3oPlansAndAttemptsMixin"]
