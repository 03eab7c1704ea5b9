"""`visual-ar convert`: published checkpoints to model folders; knows no checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from visual_ar.cli.common import check_output_folder
from visual_ar.cli.option_groups import Json
from visual_ar.cli.terminal import echo_json, say


def convert(
    source: Annotated[
        Path,
        typer.Argument(help="A .pt, .pth, .bin, .ckpt or .safetensors file.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; new or empty.")],
    grid: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=4096,
            help="Rows and columns of tokens of a generator, when its file name does not tell: "
            "16 for 256 pixels, 24 for 384.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn a published checkpoint into a model folder.

    Reads LlamaGen generators (c2i and t2i, B to 3B), NAR generators (images and
    video, B to XXL), LlamaGen's VQ tokenizers,
    and the binary tokenizers of Open-MAGVIT2, BitDance and BSQ-ViT; sizes come from
    the weights, the grid from the file name. Pickled files are read as tensors only,
    so they cannot run code. What lies beside the weights, as optimizers do, is left;
    the report says what was taken.

    [bold]Examples[/bold]

    [cyan]visual-ar convert c2i_B_256.pt --output llamagen-b[/cyan]
    A generator, for LlamaGen.from_pretrained("llamagen-b").

    [cyan]visual-ar convert vq_ds16_c2i.pt --output llamagen-vq16[/cyan]
    A tokenizer, for VQTokenizer.from_pretrained("llamagen-vq16").

    [cyan]visual-ar convert ae_d16c32.safetensors --output bitdance-d32[/cyan]
    A tokenizer of bits, for BinaryTokenizer.from_pretrained("bitdance-d32").
    """
    check_output_folder(output)
    from visual_ar.conversion import convert as write

    report = write(source, output, grid)
    if as_json:
        echo_json({"source": str(source), "output": str(output), "report": report})
    else:
        say(report)
