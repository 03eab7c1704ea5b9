"""A method's name and options mean the same in Python, commands, benches, the page and recipes."""

import inspect
import re
import sys
from types import ModuleType

import pytest
from diffusers.configuration_utils import register_to_config
from typer.testing import CliRunner

from visual_ar import accel, method_options, provenance
from visual_ar.accel.exact_match import ExactMatchJacobiDecoding
from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.accel.sequential import SequentialDecoding
from visual_ar.app import methods, restore
from visual_ar.app.controls import shown_options
from visual_ar.cli.main import app
from visual_ar.method_options import build, options, parse_method
from visual_ar.pipeline import VisualARPipeline
from visual_ar.png import read_recipe

OTHERS = {
    "window": "4",
    "coupling": "gumbel",
    "init": "left",
    "rule": "typical",
    "tree": "2",
    "drafter": "left-law+above-law",
    "adapt": "length",
    "steps": "3",
    "clean": "3",
    "drafts": "ahead",
}
"""A value of every option that is no flag, other than its default."""


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def config_of(method):
    return {k: v for k, v in method.config.items() if not k.startswith("_")}


@pytest.fixture
def drawing(tiny_pipeline, folder, monkeypatch):
    """Runs `visual-ar generate` with some words on a pipeline; returns it and the result."""
    monkeypatch.setattr(VisualARPipeline, "from_pretrained", lambda *given, **asked: tiny_pipeline)

    def draw(*words):
        result = run("generate", "-c", "dog", "--seed", 3, *words)
        return tiny_pipeline, result

    return draw


@pytest.mark.parametrize("name", accel.METHODS)
def test_every_option_of_every_method_is_explained_in_a_sentence(name):
    found = options(name)
    assert list(found) == list(inspect.signature(accel.method(name)).parameters)
    for option in found.values():
        assert option.about.endswith(".") and len(option.about) > 20, option
        assert option.kinds and option.read(option.shown(option.default)) == option.default
    assert method_options.about(name).endswith(".")
    assert set(found) <= set(method_options.every_option())


def test_only_the_options_of_a_method_are_its_options():
    assert options("sequential") == {} == options("jacobi-published")
    assert "coupling" in options("jacobi") and "coupling" not in options("exact-match")
    assert options("jacobi")["window"].about.startswith("Ranks predicted by a pass")
    assert method_options.takers("coupling") == ["jacobi", "tree"]
    assert method_options.takers("measure_tv") == ["jacobi", "draft-head"]


def test_choices_are_those_that_a_method_takes():
    assert {"bitwise", "hamming-grouped", "omega"} <= set(options("jacobi")["rule"].choices)
    assert "block" not in options("tree")["rule"].choices
    for name in accel.METHODS:
        for option in options(name).values():
            for choice in option.choices:
                try:
                    build(name, {option.name: choice})
                except ValueError as error:  # fits some other option only
                    assert "coupling must be 'independent'" in str(error) or "tree" in str(error)


def test_options_are_no_other_entries_of_a_recipe():
    taken = {*provenance.BEFORE_METHOD, *provenance.AFTER_METHOD, "prompt", "tokens", "passes"}
    assert not taken & set(method_options.every_option())


@pytest.mark.parametrize("name", accel.METHODS)
@pytest.mark.parametrize("shipped", [SequentialDecoding(), SpeculativeJacobiDecoding(init="left")])
def test_a_name_is_the_same_method_everywhere(name, shipped, tiny_pipeline):
    own = accel.method(name)()
    if accel.method(name) is type(shipped):
        own = type(shipped).from_config(shipped.config)
    tiny_pipeline.scheduler = shipped
    for made in (
        build(name, {}, shipped),  # as generate and serve
        parse_method(name, shipped),  # as bench, evaluate and the page's races
        methods.make(name, shown_options(tiny_pipeline, name), shipped),  # as the page
        methods.make(name, {}, shipped),
    ):
        assert type(made) is type(own) and config_of(made) == config_of(own)


def test_settings_that_a_model_ships_with_stay_with_its_own_method():
    shipped = SpeculativeJacobiDecoding(window=8, init="above")
    assert build(None, {}, shipped).config.init == "above"
    assert build(None, {"window": "4"}, shipped).config.window == 4
    assert build("jacobi", {"window": "4"}, shipped).config.init == "above"
    assert build("exact-match", {}, shipped).config.init == "left"
    assert build("jacobi-published", {}, shipped).config.window == 16
    assert parse_method("jacobi").config.init == "uniform"
    with pytest.raises(ValueError, match=r"method must be one of sequential, .*, got none"):
        build(None, {})


def test_generate_runs_what_python_runs(drawing):
    pipe, result = drawing("--method", "exact-match", "--window", 4)
    assert result.exit_code == 0, result.output
    assert config_of(pipe.scheduler) == config_of(ExactMatchJacobiDecoding(window=4))


@pytest.mark.parametrize("name", ["jacobi", "tree", "draft-head", "denoising", "hybrid"])
def test_values_survive_benches_and_recipes(name):
    given = {key: OTHERS[key] for key, one in options(name).items() if not one.is_flag}
    made = build(name, {**given, **{k: "true" for k, o in options(name).items() if o.is_flag}})
    told = method_options.entries(made)
    assert method_options.from_entries(told) == (name, config_of(made))
    text = ",".join(f"{key}={str(v).lower()}" for key, v in told.items() if key != "method")
    assert config_of(parse_method(f"{name}:{text}")) == config_of(made)
    words = provenance.command(told)
    for key, value in given.items():
        assert f" {provenance.flag(key)} {value}" in words
    if "measure_tv" in told:
        assert " --measure-tv" in words and "True" not in words


@pytest.mark.parametrize("value", ["maybe", "1", "True", ""])
def test_what_is_neither_yes_nor_no_is_refused_everywhere(value, tiny_pipeline):
    message = f"measure_tv must be true or false, got '{value}'"
    shipped = SequentialDecoding()
    with pytest.raises(ValueError, match=message):
        parse_method(f"jacobi:measure_tv={value}")
    with pytest.raises(ValueError, match=message):
        build("jacobi", {"measure_tv": value}, shipped)
    if value:  # an empty control says nothing
        with pytest.raises(ValueError, match=message):
            methods.make("jacobi", {"measure_tv": value}, shipped)
    with pytest.raises(ValueError, match=f"the recipe's {message}"):
        recipe = {"model": "tiny", "class": "dog", "seed": 1, "method": "jacobi"}
        restore.restore({**recipe, "measure_tv": value}, ["tiny"])


def test_the_command_line_takes_no_value_for_a_flag(drawing):
    pipe, result = drawing("--method", "jacobi", "--window", 4, "--measure-tv")
    assert result.exit_code == 0, result.output
    assert pipe.scheduler.config.measure_tv is True
    assert read_recipe("picture.png")["measure_tv"] is True
    assert drawing("--method", "jacobi", "--measure-tv=maybe")[1].exit_code == 2


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("guess", {}, "method must be one of sequential, .*, got 'guess'"),
        ("jacobi", {"speed": "3"}, "speed must be left out with method jacobi, got 3"),
        ("jacobi", {"window": 0}, "window must be 'auto' or a whole number from 1 to 65536, got 0"),
        ("jacobi", {"window": 1.5}, "window must be a whole number or text, got 1.5"),
        ("jacobi", {"window": True}, "window must be a whole number or text, got True"),
        ("denoising", {"steps": "many"}, "steps must be a whole number, got 'many'"),
        ("denoising", {"steps": "1.5"}, "steps must be a whole number, got '1.5'"),
        ("tree", {"tree": 2}, "tree must be text, got 2"),
    ],
)
def test_bad_values_are_one_sentence(name, given, message):
    with pytest.raises(ValueError, match=message):
        build(name, given)


@pytest.fixture
def stranger(monkeypatch):
    """A method that nobody but the registry knows: sequential decoding with options."""

    class Stranger(SequentialDecoding):
        """Draws token after token and remembers what it was told.

        Args:
            mood: how it feels while it draws.
            patience: seconds that it could wait, at least in principle.
            aloud: whether it tells anybody about its mood.
        """

        choices = {"mood": ("calm", "cross")}  # noqa: RUF012

        @register_to_config
        def __init__(self, mood: str = "calm", patience: float = 1.5, aloud: bool = False):
            pass

    module = ModuleType("visual_ar.accel.stranger")
    module.Stranger = Stranger
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(accel.METHODS, "stranger", "stranger:Stranger")
    return Stranger


def test_a_method_appears_everywhere_by_being_registered(stranger, drawing):
    shown = " ".join(run("generate", "--help").stdout.replace("│", " ").split())
    assert "--mood" in shown and "How it feels while it draws (stranger)" in shown
    assert "--no-aloud" in shown and "Such as calm, cross" in shown
    pipe, result = drawing("--method", "stranger", "--mood", "cross", "--patience", 2, "--aloud")
    assert result.exit_code == 0, result.output
    assert config_of(pipe.scheduler) == {"mood": "cross", "patience": 2.0, "aloud": True}
    recipe = read_recipe("picture.png")
    assert re.search(
        "--method stranger --mood cross --patience 2.0 --aloud ", provenance.command(recipe)
    )
    text = "stranger:mood=cross,patience=2,aloud=true"
    assert config_of(parse_method(text)) == config_of(pipe.scheduler)
    found = restore.restore({**recipe, "model": "tiny"}, ["tiny"])
    assert found.values == {"mood": "cross", "patience": "2.0", "aloud": True}
    made = methods.make("stranger", found.values, SequentialDecoding())
    assert isinstance(made, stranger) and config_of(made) == config_of(pipe.scheduler)
    assert method_options.every_option()["mood"].choices == ("calm", "cross")
    with pytest.raises(ValueError, match="patience must be a number, got 'none'"):
        parse_method("stranger:patience=none")
