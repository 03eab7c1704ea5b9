"""Drawing a picture imports what drawing needs: the rest costs seconds before every picture."""

import subprocess
import sys

import pytest
import torch

from visual_ar.text_blocks import TextBlock

UNNEEDED = (
    *("diffusers.models.unets", "diffusers.models.autoencoders", "diffusers.loaders.peft"),
    *("diffusers.models.transformers.transformer_2d", "scipy", "sympy", "timm", "torch._dynamo"),
    *("torch._inductor", "torchvision", "transformers", "gradio", "fastapi", "pandas"),
)

DRAWING = f"""
import sys
from visual_ar.cli.main import app
sys.argv = ["visual-ar", "generate", "red heart", "--output", "heart.png", "--seed", "1",
            "--method", "exact-match", "--window", "16"]
try:
    app()
except SystemExit as end:
    assert not end.code, end.code
loaded = set(sys.modules)
print([name for name in {UNNEEDED} if name in loaded])
"""

COMPILER = """
import sys
from visual_ar.cli.lean_imports import import_pipeline, without_compiler
import_pipeline()
assert "torch._dynamo" not in sys.modules
with without_compiler():
    import torch
    assert not isinstance(torch.nn.Linear(1, 1), torch._dynamo.eval_frame.OptimizedModule)
    assert callable(torch._dynamo.optimize)  # not of the stand-in, which makes way
    assert type(sys.modules["torch._dynamo"]).__name__ == "module"
assert sys.modules["torch._dynamo"].__file__
import torch._dynamo.eval_frame
compiled = torch.compile(torch.nn.Linear(1, 1), backend="eager")
assert isinstance(compiled, torch._dynamo.eval_frame.OptimizedModule)
assert compiled(torch.ones(1)).shape == (1,)
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.models import AutoencoderKL as same
assert AutoencoderKL is same and AutoencoderKL.__module__.startswith("diffusers.models.autoenc")
import_pipeline()
print("done")
"""


def run(code, folder):
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_drawing_imports_nothing_that_it_does_not_need(tmp_path):
    assert run(DRAWING, tmp_path).splitlines()[-1] == "[]"
    assert (tmp_path / "heart.png").exists()


def test_what_was_left_out_comes_when_it_is_asked_for(tmp_path):
    assert run(COMPILER, tmp_path).strip() == "done"


def test_blocks_of_words_have_the_numbers_and_names_of_timm():
    transformer = pytest.importorskip("timm.models.vision_transformer")
    torch.manual_seed(0)
    theirs = transformer.Block(24, 4, qkv_bias=True)
    torch.manual_seed(0)
    ours = TextBlock(24, 4)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x, visible = torch.randn(3, 5, 24), torch.rand(3, 1, 5, 5) < 0.5
    visible |= torch.eye(5, dtype=torch.bool)
    assert torch.equal(ours(x, visible), theirs(x, attn_mask=visible))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="dim must be a multiple of heads = 5, got 24"):
        TextBlock(24, 5)
