"""What has a cost has a bound: options of commands, of methods and of calls, refused at once."""

import os
import re

import pytest
import typer
from typer.testing import CliRunner

from visual_ar import VisualARPipeline
from visual_ar.accel import method as constructor
from visual_ar.cli.main import app
from visual_ar.cli.option_groups import MOST_THREADS
from visual_ar.conditioning.conditioner import MOST_PICTURES

HUGE = 10**9


def whole_numbers(command, path=()):
    """(command, option) of every option that is a whole number, below a command."""
    for option in command.params:
        about = getattr(option, "type_descriptor", None)
        number = about is not None and re.search(r"\bint\b", str(about.annotation))
        if number and not option.is_flag:
            yield " ".join(path), option
    for name, inner in getattr(command, "commands", {}).items():
        yield from whole_numbers(inner, (*path, name))


def test_every_whole_number_of_a_command_has_a_bound():
    found = list(whole_numbers(typer.main.get_command(app)))
    assert len(found) > 50
    assert [(where, option.opts) for where, option in found if option.max is None] == []


@pytest.mark.parametrize(
    "line",
    [
        f"generate cat --count {HUGE}",
        f"generate cat --batch {HUGE}",
        f"generate cat --threads {HUGE}",
        f"bench --pictures {HUGE}",
        f"bench kernels --window {HUGE}",
        f"evaluate sample --output out --count {HUGE}",
    ],
)
def test_more_than_the_bound_is_refused_before_any_work(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(VisualARPipeline, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    result = CliRunner().invoke(app, line.split())
    assert result.exit_code != 0
    assert "loaded" not in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_threads_are_as_many_as_a_machine_may_have(monkeypatch):
    monkeypatch.setattr(VisualARPipeline, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    assert max(64, os.cpu_count() or 1) == MOST_THREADS
    result = CliRunner().invoke(app, ["generate", "cat", "--threads", str(MOST_THREADS + 1)])
    assert result.exit_code == 2 and "loaded" not in str(result.exception)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("denoising", {"steps": HUGE}),
        ("denoising", {"clean": HUGE}),
        ("tree", {"tree": f"{HUGE}x2"}),
        ("tree", {"tree": "2x" * 99 + "2"}),
        ("tree", {"window": 60_000}),
        ("tree-adaptive", {"window": HUGE}),
    ],
)
def test_methods_refuse_options_whose_cost_has_no_end(name, options):
    method = constructor(name)
    method = getattr(method, "__self__", method)  # a preset is a method of its class
    with pytest.raises(ValueError, match="must"):
        method(**options)


def test_a_call_asks_for_so_many_pictures_at_most():
    pipe = VisualARPipeline.from_pretrained("cifar10")
    with pytest.raises(ValueError, match="num_images_per_prompt must be a whole number from 1 to"):
        pipe.check_inputs(class_labels="ship", num_images_per_prompt=HUGE)
    with pytest.raises(ValueError, match=f"from 1 to {MOST_PICTURES // 2}, got {MOST_PICTURES}"):
        pipe.check_inputs(class_labels=["ship", "dog"], num_images_per_prompt=MOST_PICTURES)
