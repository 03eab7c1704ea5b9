"""The comparison with LlamaGen's code: in turn, of the same law, against a copy of its names."""

import sys
from itertools import count

import pytest
import torch

from visual_ar.evaluation import official_speed
from visual_ar.evaluation.official_speed import FP32, INT8, OFFICIAL, compare, official_model
from visual_ar.models.llamagen import SIZES

GPT = """
import torch
from visual_ar.models.llamagen import LlamaGen

class Official(torch.nn.Module):
    def __init__(self, vocab_size, block_size):
        super().__init__()
        self.ours = LlamaGen(dim=32, n_layer=2, n_head=2, vocab_size=vocab_size, grid_size=4,
                             num_classes=1000)
        self.output, self.shift = self.ours.output, SHIFT

    def state_dict(self):
        return self.ours.state_dict()

    def setup_caches(self, max_batch_size, max_seq_length, dtype):
        pass

    def forward(self, idx, cond_idx, input_pos):
        condition = self.ours.condition(cond_idx, guided=False)
        logits = self.ours.logits(torch.zeros(1, 16, dtype=torch.int64), condition)[:, :1]
        return logits + self.shift, None

GPT_models = {"tiny": Official}
"""

GENERATE = """
drawn = []

def generate(model, cond, max_new_tokens, cfg_scale, cfg_interval, **sampling):
    drawn.append((cond.tolist(), max_new_tokens, cfg_scale, cfg_interval, sampling))
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Makes a copy of the repository's names, whose logits are off by as much as is asked."""

    def make(shift=0.0):
        folder = tmp_path / "autoregressive" / "models"
        folder.mkdir(parents=True)
        (folder / "gpt.py").write_text(GPT.replace("SHIFT", str(shift)))
        (folder / "generate.py").write_text(GENERATE)
        return tmp_path

    monkeypatch.setitem(SIZES, "tiny", (2, 2, 32))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield make
    for name in [name for name in sys.modules if name.split(".")[0] == "autoregressive"]:
        del sys.modules[name]


def test_all_contenders_draw_in_turn_with_the_same_options(checkout):
    model = official_model(checkout(), "tiny", 4)
    ticks = count()
    rows = compare(model, 4, rounds=2, passes=3, clock=lambda: float(next(ticks)))
    assert [(row.name, row.ratio) for row in rows] == [
        *((name, 1.0) for name in (OFFICIAL, FP32, INT8)),
        *((name, 1.0) for name in (FP32, INT8)),
    ]
    assert [row.milliseconds for row in rows] == [1000.0] * 3 + [1000 / 3] * 2
    drawn = sys.modules["autoregressive.models.generate"].drawn
    options = {"temperature": 1.0, "top_k": 2000, "top_p": 1.0, "sample_logits": True}
    assert drawn == [([207], 16, 2.0, -1, options)] * 3  # the first is not counted


def test_other_laws_are_refused(checkout):
    model = official_model(checkout(shift=0.01), "tiny", 4)
    with pytest.raises(ValueError, match=r"both models must have the same logits, got 0.01"):
        compare(model, 4, rounds=1)


def test_a_folder_that_is_no_checkout_and_unknown_sizes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="checkout must be a copy of LlamaGen's repository"):
        official_model(tmp_path, "GPT-B", 16)
    with pytest.raises(ValueError, match=r"size must be one of GPT-B, .*, got 'huge'"):
        official_model(tmp_path, "huge", 16)


def test_the_table_is_printed(checkout, capsys, monkeypatch):
    found = [official_speed.Timed(FP32, "a picture", 12.34, 2.5)]
    monkeypatch.setattr(official_speed, "compare", lambda model, grid, rounds: found)
    official_speed.main([str(checkout()), "--size", "tiny", "--grid", "4"])
    out = capsys.readouterr().out
    assert "tiny, batch 1" in out and "12.3" in out and "2.50" in out
    assert torch.is_grad_enabled()
