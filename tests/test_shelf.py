"""The shelf holds the first model, the bundled ones and what is loaded, and tells what they are."""

import re

import pytest

from visual_ar.app.device_thread import DeviceThread
from visual_ar.app.shelf import KEPT, Shelf, card, describe, known_subjects
from visual_ar.assets import bundled


@pytest.fixture
def shelf(tiny_pipeline):
    return Shelf(tiny_pipeline, "tiny", DeviceThread())


def save(pipe, folder):
    pipe.save_pretrained(folder)
    return str(folder)


def test_names_are_the_first_and_the_bundled(shelf, tiny_pipeline):
    assert shelf.names() == ["tiny", *bundled()]
    assert shelf.get("tiny") is tiny_pipeline


def test_a_folder_is_loaded_once_and_then_known(shelf, tiny_text_pipeline, tmp_path):
    name = save(tiny_text_pipeline, tmp_path / "texts")
    with pytest.raises(ValueError, match="be loaded on the tab Models first"):
        shelf.get(name)
    assert shelf.load(name) is shelf.load(name) is shelf.get(name)
    assert shelf.names()[-1] == name


def test_models_that_were_forgotten_come_back(shelf, tiny_pipeline, tmp_path):
    names = [save(tiny_pipeline, tmp_path / str(index)) for index in range(KEPT + 1)]
    loaded = [shelf.load(name) for name in names]
    assert shelf.get(names[-1]) is loaded[-1]
    assert shelf.get(names[0]) is not loaded[0]


def test_what_is_no_model_is_refused(shelf, tmp_path):
    with pytest.raises(FileNotFoundError, match="model must be bundled"):
        shelf.load(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match=r"must hold model_index\.json"):
        shelf.load(str(tmp_path))


def test_bundled_cards_and_prompts_are_found(tiny_pipeline, tiny_text_pipeline):
    assert card("emoji").startswith("# emoji") and "license:" not in card("emoji")
    assert card("tiny") == "No model card lies beside tiny."
    assert known_subjects(tiny_pipeline, "tiny") == ["cat", "dog", "frog"]
    known = known_subjects(tiny_text_pipeline, "emoji")
    assert "strawberry" in known and len(set(known)) == len(known) > 1000
    assert known_subjects(tiny_text_pipeline, "tiny") == []


def test_a_card_is_without_what_lies_beside_it(tmp_path):
    text = """---
license: mit
---
Draws as [the **other**](../other/README.md) does, see [below](#limits).
![Fifty emoji](sheet.png)
![Badge](https://example.com/badge.svg) [Paper](https://example.com/a "title")
[![Alt](sheet.png)](../other/README.md)[![Alt](sheet.png)](https://example.com)[![Alt](https://example.com/b.svg)](LICENSE)
`layers[0](x)` and [`code`](file.py)
```python
model[0](tokens)
```"""
    (tmp_path / "README.md").write_text(text)
    (tmp_path / "model_index.json").touch()
    assert card(str(tmp_path)).splitlines() == [
        "Draws as the **other** does, see below.",
        "",
        '![Badge](https://example.com/badge.svg) [Paper](https://example.com/a "title")',
        "![Alt](https://example.com/b.svg)",
        "`layers[0](x)` and `code`",
        "```python",
        "model[0](tokens)",
        "```",
    ]


@pytest.mark.parametrize("name", bundled())
def test_bundled_cards_lead_nowhere_on_this_page(name):
    assert not re.search(r"\]\((?!https?://)", card(name))


def test_a_description_names_the_parts(tiny_pipeline):
    found = describe(tiny_pipeline)
    assert found["model"].startswith("LlamaGen, ") and found["model"].endswith("parameters")
    assert found["scheduler"] == "SequentialDecoding {}"
    assert found["classes"] == 3 and found["height"] == 8 and found["device"] == "cpu"
