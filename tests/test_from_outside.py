"""A method, a rule and a tokenizer are each one file and one registry line: three from outside."""

import sys
from importlib import import_module

import pytest
from method_checks import CODES, GROUPS, Small, check_law, check_pictures, check_refusal
from rule_checks import check_drawing, check_text
from tokenizer_checks import check_tokenizer

from visual_ar import accel, tokenizers
from visual_ar.accel.rules.parse import RULES

METHOD = '''
"""Next-token sampling with one uniform number a token."""

import torch
from diffusers import SchedulerMixin  # diffusers looks for this name in a component's module
from diffusers.configuration_utils import register_to_config

from visual_ar.accel.decoding import Decoding
from visual_ar.tokens.kind import TABLE


class InverseCdfDecoding(Decoding):
    """Draws every token by the inverse of its cumulative law."""

    lossless = True
    needs = frozenset({TABLE})

    @register_to_config
    def __init__(self) -> None:
        pass

    def step(self, state):
        ranks = state.length[:, None]
        law = state.law(state.forward(state.take((ranks - 1).clamp(min=0)), ranks - 1), ranks)
        u = state.kind.uniforms(state.seed[:, None], ranks, state.passes[:, None] + 1)[0]
        return state.report(state.commit(law.draw(u), 1), head_evaluations=1)
'''

RULE = '''
"""Keeps a draft with a share of the chance that the exact test gives it. Lossy."""

from dataclasses import dataclass
from typing import ClassVar

from visual_ar.accel.rules.rule import TableRule, require


@dataclass(frozen=True)
class Shy(TableRule):
    """A share of min(1, p / q)."""

    name: ClassVar[str] = "shy"
    share: float = 0.5

    def __post_init__(self) -> None:
        require(self, "share", 0 < self.share <= 1, "in (0, 1]")

    def chance(self, p, q, tokens, depth=None):
        return self.share * (p.probs(tokens) / q.probs(tokens).clamp(min=1e-30)).clamp(max=1.0)
'''

TOKENIZER = '''
"""The grey level of a cell of two by two pixels, one of four."""

import torch
from diffusers import ModelMixin  # diffusers looks for this name in a component's module
from diffusers.configuration_utils import register_to_config
from torch import nn

from visual_ar.tokenizers.visual_tokenizer import VisualTokenizer


class GreyTokenizer(VisualTokenizer):
    """Levels of grey, evenly spaced."""

    @register_to_config
    def __init__(self, levels: int = 4) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.linspace(-1, 1, levels))

    codebook_size = property(lambda self: self.config.levels)
    downsample = property(lambda self: 2)

    def encode(self, pixels, length=None):
        self.check_pixels(pixels, length)
        grey = nn.functional.avg_pool2d(pixels.mean(1, keepdim=True), 2).flatten(1)
        return (grey[..., None] - self.level).abs().argmin(-1)

    def lookup(self, tokens, grid):
        return self.level[tokens].unflatten(1, grid)[:, None]

    def decode(self, tokens, grid, known=None, seeds=None):
        codes = self.lookup(tokens, grid)
        if known is not None:
            codes = torch.where(known.unflatten(1, grid)[:, None], codes, self.level.mean())
        return self.reconstruct(codes)

    def reconstruct(self, latents, grid=None):
        return latents.repeat_interleave(2, 2).repeat_interleave(2, 3).expand(-1, 3, -1, -1)

    def neighbours(self, k):
        return (self.level[:, None] - self.level).abs().topk(k + 1, largest=False).indices[:, 1:]
'''


@pytest.fixture
def add(tmp_path, monkeypatch):
    """Puts a file beside those of a package, for one test: add(package, name, text)."""
    names = []

    def put(package, name, text):
        folder = tmp_path / package.__name__
        folder.mkdir()
        (folder / f"{name}.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        names.append(f"{package.__name__}.{name}")
        return names[-1]

    yield put
    for name in names:
        sys.modules.pop(name, None)


def test_a_method_is_one_file_and_one_line(add, monkeypatch):
    add(accel, "inverse_cdf", METHOD)
    monkeypatch.setitem(accel.METHODS, "inverse-cdf", "inverse_cdf:InverseCdfDecoding")
    row = Small("inverse-cdf", (CODES,))
    check_pictures(row, CODES)
    check_law(row, CODES)
    check_refusal(row, GROUPS)
    assert accel.InverseCdfDecoding is accel.method("inverse-cdf")


def test_a_rule_is_one_file_and_one_line(add, monkeypatch):
    module = import_module(add(import_module("visual_ar.accel.rules"), "shy", RULE))
    monkeypatch.setitem(RULES, "shy", module.Shy)
    check_text("shy")
    check_drawing("shy")
    with pytest.raises(ValueError, match=r"share of rule shy must be in \(0, 1\], got 2"):
        RULES["shy"](share=2)


def test_a_tokenizer_is_one_file_and_one_line(add, monkeypatch, tmp_path):
    add(tokenizers, "grey", TOKENIZER)
    monkeypatch.setitem(tokenizers.CLASSES, "GreyTokenizer", "grey")
    check_tokenizer(tokenizers.GreyTokenizer, {"levels": 4}, tmp_path / "saved")
