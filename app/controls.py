"""The controls of a drawing, and what each shows for a model, a method or a restored picture.

Knows gradio and what pipelines and methods take; knows nothing about drawing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from visual_ar import accel, method_options
from visual_ar.app import methods
from visual_ar.app.page import main_button, name_list
from visual_ar.app.settings import LONGEST_PROMPT, MOST_PICTURES, PICTURES
from visual_ar.app.shelf import known_subjects
from visual_ar.pipeline import VisualARPipeline

EXAMPLES = (
    "strawberry",
    "red heart",
    "cat face",
    "waving hand",
    "crescent moon",
    "rocket",
    "pizza",
    "four leaf clover",
)
CHIPS = 10
SCHEDULES = ("constant", "linear", "interval:0:0.5", "interval:0.5:1")


@dataclass(frozen=True)
class Subject:
    """How the page asks for what is drawn.

    Attributes:
        label: of the field.
        value: at first.
        known: what it completes.
        examples: chips below it.
    """

    label: str
    value: str
    known: list[str]
    examples: list[str]


def subject_of(pipe: VisualARPipeline, name: str) -> Subject:
    """What to ask of a model."""
    known = known_subjects(pipe, name)
    if not pipe.conditioner.known:
        chips = [text for text in EXAMPLES if not known or text in known] or known[:CHIPS]
        return Subject("Prompt", chips[0], known, chips)
    numbers = pipe.conditioner.known
    count, chips = len(numbers), (known or numbers)[:CHIPS]
    return Subject("Class" if known else f"Class, 0 to {count - 1}", chips[0], known, chips)


@dataclass(frozen=True)
class Controls:
    """What a visitor sets, in the order in which handlers take it.

    Attributes:
        model: shared by all tabs.
        names: the list that prompts complete from, shared likewise.
        examples: chips below the prompt.
        about: a sentence on the method.
    """

    model: gr.Dropdown
    names: gr.HTML
    examples: gr.Dataset
    subject: gr.Textbox
    pictures: gr.Slider
    seed: gr.Textbox
    lock: gr.Checkbox
    method: gr.Dropdown
    guidance: gr.Slider
    guidance_schedule: gr.Dropdown
    temperature: gr.Slider
    top_k: gr.Number
    top_p: gr.Slider
    options: dict[str, Any]
    about: gr.Markdown

    @property
    def sampling(self) -> list[Any]:
        """Guidance, its schedule, temperature, top-k, top-p."""
        return [
            self.guidance,
            self.guidance_schedule,
            self.temperature,
            self.top_k,
            self.top_p,
        ]

    @property
    def inputs(self) -> list[Any]:
        """Arguments of the handler that draws."""
        first = [self.model, self.subject, self.pictures, self.seed, self.lock, self.method]
        return [*first, *self.sampling, *self.options.values()]

    @property
    def of_model(self) -> list[Any]:
        """What follows the model."""
        return [self.subject, self.names, self.examples, *self.sampling, self.method]

    @property
    def of_method(self) -> list[Any]:
        """What follows the method."""
        return [self.about, *self.options.values()]


ARGUMENTS = (
    "model",
    "subject",
    "pictures",
    "seed",
    "lock_seed",
    "method",
    "guidance",
    "guidance_schedule",
    "temperature",
    "top_k",
    "top_p",
)


def model_updates(pipe: VisualARPipeline, name: str) -> list[Any]:
    """What `Controls.of_model` has to show for a model."""
    asked, config = subject_of(pipe, name), pipe.config
    return [
        gr.update(label=asked.label, value=asked.value),
        name_list(asked.known),
        gr.update(samples=[[text] for text in asked.examples]),
        config.guidance_scale,
        config.guidance_schedule,
        config.temperature,
        config.top_k,
        config.top_p,
        shipped_method(pipe),
    ]


def shipped_method(pipe: VisualARPipeline) -> str:
    """The command-line name of a model's own method; the first of all when it has none."""
    return method_options.name_of(pipe.scheduler) or next(iter(accel.METHODS))


def shown_options(pipe: VisualARPipeline, method: str) -> dict[str, Any]:
    """What the controls of a method hold at first: the model's own settings, then the method's."""
    own = pipe.scheduler.config if shipped_method(pipe) == method else {}
    taken = method_options.options(method)
    return {name: one.shown(own.get(name, one.default)) for name, one in taken.items()}


def option_updates(method: str, values: dict[str, Any]) -> list[Any]:
    """Shows the options that a method has and hides the others.

    Args:
        method: command-line name.
        values: of the options it has.

    Returns:
        an update for each of `method_options.every_option()`.
    """
    taken = method_options.options(method)
    return [
        _shown_option(taken[name], bool(one.choices), values[name])
        if name in taken
        else gr.update(visible=False)
        for name, one in method_options.every_option().items()
    ]


def _shown_option(option: method_options.Option, listed: bool, value: Any) -> dict[str, Any]:
    """Shows an option as one method has it. listed: whether its control is a list."""
    picked = {"choices": list(option.choices)} if listed else {}
    return gr.update(visible=True, value=value, info=option.about, **picked)


def make_prompt(
    pipe: VisualARPipeline, name: str
) -> tuple[gr.Textbox, gr.Dataset, gr.Button, gr.Button]:
    """The prompt, its examples, and the buttons that start and stop the drawing."""
    asked = subject_of(pipe, name)
    subject = gr.Textbox(
        asked.value,
        label=asked.label,
        lines=1,
        max_lines=1,
        max_length=LONGEST_PROMPT,
        elem_classes="subject",
        autofocus=True,
    )
    examples = gr.Dataset(
        components=["textbox"],
        samples=[[text] for text in asked.examples],
        show_label=False,
        container=False,
    )
    with gr.Row():
        start, stop = main_button("Generate"), gr.Button("Stop", min_width=100)
    return subject, examples, start, stop


def make_controls(
    pipe: VisualARPipeline,
    model: gr.Dropdown,
    names: gr.HTML,
    subject: gr.Textbox,
    examples: gr.Dataset,
) -> tuple[Controls, gr.Button, gr.UploadButton]:
    """All other controls, and the buttons to roll a seed and to restore a picture."""
    pictures = gr.Slider(1, MOST_PICTURES, PICTURES, step=1, label="Pictures")
    with gr.Row(equal_height=True):
        seed = gr.Textbox("0", label="Seed", min_width=120, max_lines=1)
        dice = gr.Button("Randomise", size="sm", min_width=100)
        lock = gr.Checkbox(False, label="Lock seed", info="Keep it for the next drawing.")
    own = shipped_method(pipe)
    method = gr.Dropdown(list(accel.METHODS), value=own, label="Decoding method")
    about = gr.Markdown(about_method(pipe, own, shown_options(pipe, own)))
    options = _option_controls(own, shown_options(pipe, own))
    with gr.Accordion("Sampling", open=False):
        sampling = _sampling_controls(pipe)
    recipe_file = gr.UploadButton(
        "Restore from a picture (or drop it here)",
        file_types=[".png"],
        type="filepath",
        size="sm",
        elem_classes="recipe-file",
    )
    controls = Controls(
        model=model,
        names=names,
        examples=examples,
        subject=subject,
        pictures=pictures,
        seed=seed,
        lock=lock,
        method=method,
        **sampling,
        options=options,
        about=about,
    )
    return controls, dice, recipe_file


def _sampling_controls(pipe: VisualARPipeline) -> dict[str, Any]:
    """Controls of the sampling by their names in `Controls`, at the model's own settings."""
    config = pipe.config
    return {
        "guidance": gr.Slider(
            0,
            30,
            config.guidance_scale,
            step=0.01,
            label="Guidance",
            info="1 is off; more follows the prompt more closely and costs twice the work.",
        ),
        "guidance_schedule": gr.Dropdown(
            list(SCHEDULES),
            value=config.guidance_schedule,
            label="Guidance schedule",
            allow_custom_value=True,
            info="Where guidance acts: everywhere, growing, or between two shares of the tokens.",
        ),
        "temperature": gr.Slider(
            0.01,
            5,
            config.temperature,
            step=0.01,
            label="Temperature",
            info="1 is the model's law; less is safer and duller.",
        ),
        "top_k": gr.Number(
            config.top_k,
            precision=0,
            minimum=0,
            label="Top-k",
            info="Draw among the k likeliest tokens; 0 is all.",
        ),
        "top_p": gr.Slider(
            0.01,
            1,
            config.top_p,
            step=0.01,
            label="Top-p",
            info="Draw among the likeliest tokens that sum to p; 1 is all.",
        ),
    }


def _option_controls(method: str, values: dict[str, Any]) -> dict[str, Any]:
    """A control for every option of any method; those of other methods are hidden."""
    taken, controls = method_options.options(method), {}
    for name, option in method_options.every_option().items():
        told = taken.get(name, option)
        shared = {
            "label": name.replace("_", " ").capitalize(),
            "info": told.about,
            "visible": name in taken,
            "value": values.get(name, option.shown(option.default)),
        }
        if option.is_flag:
            controls[name] = gr.Checkbox(**shared)
        elif option.choices:
            choices = list(told.choices)
            controls[name] = gr.Dropdown(choices, allow_custom_value=True, **shared)
        else:
            controls[name] = gr.Textbox(**shared)
    return controls


def about_method(pipe: VisualARPipeline, method: str, values: dict[str, Any]) -> str:
    """A sentence on the method, and whether it can serve the model and keeps its law like this."""
    try:
        law = methods.verdict(methods.make(method, values, pipe.scheduler), pipe)
    except ValueError as error:
        law = f"This does not fit: {error}"
    return f"{method_options.about(method)} **{law}**"
