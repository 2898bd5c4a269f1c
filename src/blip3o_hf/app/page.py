"""The page of the app: tabs, buttons, and which of `actions` each one calls."""

import functools
import html
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from ..pipelines.reconstruction import Blip3oReconstructionPipeline
from ..serving.guard import HostGuard, hosts_of_machine
from ..shapes import IMAGE_SIZE, Scene, SceneObject, render
from .actions import Conversations, Messages, Model, Sampling, edit, generate, reconstruct, unknown_words
from .served import ServedPipeline

MAX_IMAGES = 8
MAX_UPLOAD = "20mb"
MAX_WAITING = 32
HEIGHT = 320
IMAGE_BUTTONS = ["download", "fullscreen"]
ONE_DAY = 24 * 60 * 60
TURN_LABELS = [
    ("let the model choose", "send"),
    ("answer", "ask"),
    ("draw", "draw"),
    ("edit the last picture", "edit"),
]
PROMPTS = [
    "two red circles",
    "a blue square left of a green triangle on a black background",
    "a yellow cross and a purple circle",
]
CHAT_EXAMPLES = [
    ["a red circle and a blue square", "draw"],
    ["what color is the circle?", "ask"],
    ["make the circle green", "edit"],
]
SCENES = [
    Scene((SceneObject("circle", "red", "large", 1, 1), SceneObject("square", "blue", "large", 4, 4)), "white"),
    Scene((SceneObject("triangle", "green", "large", 4, 1), SceneObject("square", "orange", "small", 1, 5)), "black"),
]
EDITS = ["make the circle blue", "remove the square"]
# Small pictures are enlarged without a blur. What gradio's buttons share would leave for a server of others; and its
# chosen option is white on white under the mouse.
STYLE = """
.small .pictures img { image-rendering: pixelated; }
.small .chat img { width: 160px; height: 160px; object-fit: contain !important; }
.small .after img { width: 100%; height: 100%; object-fit: contain !important; }
button[aria-label^="Share"] { display: none; }
input[type=radio]:checked:hover { background-color: var(--checkbox-background-color-selected) !important; }
"""


def build_page(
    pipe: Model,
    reconstruction: Blip3oReconstructionPipeline | None = None,
    name: str = "BLIP3-o",
    note: str = "",
) -> gr.Blocks:
    """
    The page, ready for `serve`.

    Args:
        pipe: what answers and draws.
        reconstruction: the same with its target encoder; without it there is no tab to reconstruct.
        name: of the model.
        note: a sentence under it.
    """
    with gr.Blocks(title=f"{name} - BLIP3-o", analytics_enabled=False, delete_cache=(ONE_DAY, ONE_DAY)) as page:
        gr.Markdown(f"# {name}\n\n{note}")
        with gr.Column(elem_classes="small" if _draws_small(pipe) else None):
            with gr.Tab("Chat"):
                _chat_tab(pipe)
            with gr.Tab("Generate"):
                _generate_tab(pipe)
            with gr.Tab("Edit"):
                _edit_tab(pipe)
            if reconstruction is not None:
                with gr.Tab("Reconstruct"):
                    _reconstruct_tab(reconstruction)
    return page


def serve(page: gr.Blocks, host: str, port: int, share: bool = False, allowed_hosts: Sequence[str] = ()) -> None:
    """
    Show a page of `build_page` to browsers until the process is interrupted. Nothing on it comes from elsewhere.

    Args:
        page: one of `build_page`.
        host, port: where it listens.
        share: also give it a public address, by a tunnel of gradio's makers.
        allowed_hosts: names beside those of this machine under which browsers may ask for it, as behind a proxy; one
            that begins with a dot stands for every name below it.
    """
    guard = Middleware(HostGuard, hosts=hosts_of_machine(host, *allowed_hosts, share=share))
    system_fonts = {"font": ("system-ui", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}
    page.queue(max_size=MAX_WAITING)
    page.launch(
        server_name=host,
        server_port=port,
        share=share,
        theme=gr.themes.Default(**system_fonts),
        css=STYLE,
        footer_links=[],
        max_file_size=MAX_UPLOAD,
        show_error=True,
        ssr_mode=False,
        app_kwargs={"middleware": [guard]},
    )


def _chat_tab(pipe: Model) -> None:
    conversations = Conversations(pipe)

    def turn(messages: Messages, said: dict, kind: str, *settings):
        messages = conversations.turn(messages, kind, said["text"], said["files"], Sampling(*settings))
        if (note := unknown_words(pipe, said["text"])) is not None:
            gr.Info(note)
        return messages, shown(messages), None

    def shown(messages: Messages) -> list[dict[str, Any]]:
        pictures = functools.partial(gr.Image, format="png", show_label=False, buttons=IMAGE_BUTTONS)
        return [
            {"role": said.role, "content": [*map(pictures, said.images), *([said.text] if said.text else [])]}
            for said in conversations.transcript(messages)
        ]

    def forget(messages: Messages, num_turns: int | None):
        messages = conversations.forget(messages, num_turns)
        return messages, shown(messages), gr.File(visible=False)

    messages = gr.State(())
    chatbot = gr.Chatbot(
        label="Conversation",
        height=540,
        elem_classes=["pictures", "chat"],
        placeholder="Draw something, ask about it, change it.",
        buttons=["copy", "copy_all"],
    )
    kind = gr.Radio(TURN_LABELS, value="send", label="What the model does")
    said = gr.MultimodalTextbox(
        label="Your turn", placeholder="Say something", file_types=["image"], file_count="multiple", max_lines=4
    )
    settings = _settings(pipe)
    with gr.Row():
        new = gr.Button("New conversation")
        oldest = gr.Button("Forget the oldest turn")
        save = gr.Button("Save")
    saved = gr.File(label="The conversation, with its pictures", visible=False)
    gr.Examples([[{"text": text, "files": []}, kind] for text, kind in CHAT_EXAMPLES], [said, kind])
    _on(said.submit, turn, [messages, said, kind, *settings], [messages, chatbot, said], chatbot)
    for event in (new.click, chatbot.clear):
        _on(event, lambda messages: forget(messages, None), [messages], [messages, chatbot, saved])
    _on(oldest.click, lambda messages: forget(messages, 1), [messages], [messages, chatbot, saved])
    _on(save.click, lambda messages: gr.File(conversations.save(messages), visible=True), [messages], [saved])


def _generate_tab(pipe: Model) -> None:
    def draw(prompt: str, num_images: int, *settings):
        images, written = generate(pipe, prompt, num_images, Sampling(*settings))
        return images, gr.Textbox(written, visible=written is not None)

    prompt = gr.Textbox(label="Prompt", placeholder="What to draw")
    num_images = gr.Slider(1, MAX_IMAGES, value=4, step=1, label="Images")
    settings = _settings(pipe)
    button = gr.Button("Draw", variant="primary")
    written = gr.Textbox(label="Notes", visible=False)
    pictures = _pictures("Pictures", columns=4)
    gr.Examples([[text] for text in PROMPTS], [prompt])
    for event in (button.click, prompt.submit):
        _on(event, draw, [prompt, num_images, *settings], [pictures, written], pictures)


def _edit_tab(pipe: Model) -> None:
    def change(instruction: str, uploads, *settings):
        return edit(pipe, instruction, _paths(uploads), Sampling(*settings))

    with gr.Row():
        before = _uploads("Before")
        after = gr.Image(
            label="After",
            format="png",
            interactive=False,
            height=HEIGHT,
            buttons=IMAGE_BUTTONS,
            elem_classes=["pictures", "after"],
        )
    instruction = gr.Textbox(label="Instruction", placeholder="What to change")
    settings = _settings(pipe)
    button = gr.Button("Edit", variant="primary")
    gr.Examples([[[render(scene)], text] for scene, text in zip(SCENES, EDITS, strict=True)], [before, instruction])
    for event in (button.click, instruction.submit):
        _on(event, change, [instruction, before, *settings], [after])


def _reconstruct_tab(pipe: Blip3oReconstructionPipeline) -> None:
    def draw_again(uploads, *settings):
        return reconstruct(pipe, _paths(uploads), Sampling(*settings))

    uploads = _uploads("Pictures")
    settings = _settings(pipe.pipe)
    button = gr.Button("Reconstruct", variant="primary")
    drawn = _pictures("Original, through encoder and decoder, through the whole model", columns=3)
    gr.Examples([[[render(scene)]] for scene in SCENES], [uploads])
    _on(button.click, draw_again, [uploads, *settings], [drawn])


def _settings(pipe: Model) -> list[gr.components.Component]:
    """Inputs for a `Sampling`, in the order of its fields."""
    config = pipe.config
    steps, scale = config.default_num_inference_steps, config.default_guidance_scale
    attempts = config.default_num_attempts
    with gr.Row():
        seed = gr.Number(0, precision=0, label="Seed")
        num_steps = gr.Slider(1, max(100, steps), value=steps, step=1, label="Steps")
        guidance = gr.Slider(0, max(10, scale), value=scale, step=0.1, label="Guidance")
        num_attempts = gr.Slider(1, max(8, attempts), value=attempts, step=1, label="Attempts until it looks right")
        plan = gr.Checkbox(config.default_plan, label="Write a plan first")
    return [seed, num_steps, guidance, num_attempts, plan]


def _uploads(label: str) -> gr.Gallery:
    """
    An input for pictures of the user; as files, so that the code that reads them reports what is wrong with them.
    """
    return gr.Gallery(
        label=label,
        type="filepath",
        format="png",
        file_types=["image"],
        sources=["upload", "clipboard"],
        interactive=True,
        height=HEIGHT,
        object_fit="contain",
        fit_columns=False,
        elem_classes="pictures",
    )


def _pictures(label: str, columns: int) -> gr.Gallery:
    return gr.Gallery(
        label=label, format="png", columns=columns, object_fit="contain", interactive=False, elem_classes="pictures"
    )


def _paths(uploads: Sequence[tuple[str, str | None]] | None) -> list[str]:
    return [path for path, _ in uploads or ()]


def _on(event: Callable, action: Callable, inputs: list, outputs: list, busy: gr.components.Component | None = None):
    """Call `action` when something happens on the page: one at a time of all users, its errors shown to the user."""

    @functools.wraps(action)
    def told(*values):
        try:
            return action(*values)
        except (TypeError, ValueError, OSError) as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from error

    event(
        told,
        inputs,
        outputs,
        concurrency_limit=1,
        concurrency_id="model",
        show_progress_on=busy,
        api_visibility="private",
    )


def _draws_small(pipe: Model) -> bool:
    if isinstance(pipe, ServedPipeline):
        return max(pipe.picture_size) <= 2 * IMAGE_SIZE
    config = getattr(pipe.decoder, "config", None)
    size = getattr(config, "sample_size", 0) * getattr(config, "patch_size", 0)
    return 0 < size <= 2 * IMAGE_SIZE
