"""`visual-ar bench kernels` and `bench loop`: what a pass costs; know options, measure nothing."""

from typing import Annotated

import typer

from visual_ar.cli.common import floating_dtype, resolve_device, set_threads
from visual_ar.cli.option_groups import Json, Machine, grouped
from visual_ar.cli.terminal import echo_json, show_table


@grouped
def kernels(
    *,
    pictures: Annotated[
        list[int] | None,
        typer.Option(
            "--pictures",
            "-b",
            max=4096,
            help="B, repeatable. [dim]Default: 1, 8 and 64.[/dim]",
        ),
    ] = None,
    window: Annotated[
        list[int] | None,
        typer.Option(
            "--window", "-w", min=1, max=1024, help="W, repeatable. [dim]Default: 16 and 32.[/dim]"
        ),
    ] = None,
    vocabulary: Annotated[
        list[int] | None,
        typer.Option(
            "--vocabulary", min=1, max=1_048_576, help="V, repeatable. [dim]Default: 16384.[/dim]"
        ),
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option("--rule", help="Acceptance rule, repeatable. [dim]Default: exact.[/dim]"),
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(
            "--by", help="kernel, torch, torch.compile or flashinfer. [dim]Default: all.[/dim]"
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(max=2**31, help="0 is all tokens.")] = 2000,
    coupling: Annotated[str, typer.Option(help="Of the tail of the window.")] = "maximal",
    copied: Annotated[
        int, typer.Option(min=1, max=65_536, help="MiB of the copy whose bandwidth is the floor's.")
    ] = 256,
    machine: Machine,
    as_json: Json = False,
) -> None:
    """Time the verification of drafts: the kernel, torch, torch.compile and FlashInfer.

    Every time stands beside the floor: the bytes at the bandwidth of a copy, and one launch.

    [bold]Examples[/bold]

    [cyan]visual-ar bench kernels[/cyan]
    Everyone who can verify on this device.

    [cyan]visual-ar bench kernels --by torch -b 1 -w 8 --vocabulary 4096[/cyan]
    One small window, by plain torch.
    """
    set_threads(machine.threads)

    from visual_ar.evaluation.kernel_speed import CONTENDERS, Grid, bench_kernels
    from visual_ar.evaluation.kernel_table import render_kernels

    where = resolve_device(machine.device)
    usual = Grid()
    grid = Grid(
        tuple(pictures or usual.pictures),
        tuple(window or usual.windows),
        tuple(vocabulary or usual.vocabularies),
        tuple(rule or usual.rules),
        floating_dtype(machine.dtype, where),
        top_k,
        coupling,
    )
    document = bench_kernels(grid, where, by or tuple(CONTENDERS), copied=copied * 2**20)
    if as_json:
        echo_json(document)
    else:
        show_table(render_kernels(document))


@grouped
def loop(
    *,
    size: Annotated[
        str, typer.Option(help="LlamaGen size, with random weights: GPT-B, GPT-L, GPT-XL, ...")
    ] = "GPT-L",
    grid: Annotated[int, typer.Option(min=2, max=256, help="Rows and columns of the grid.")] = 24,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--methods",
            metavar="NAME[:OPTION=VALUE,...]",
            help="Methods to time. [dim]Default: sequential and jacobi:window=32.[/dim]",
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Pictures at a time.")] = 1,
    passes: Annotated[int, typer.Option(min=1, max=10_000, help="Timed passes, at most.")] = 32,
    copied: Annotated[
        int,
        typer.Option(min=1, max=65_536, help="MiB of the copy whose bandwidth the limit takes."),
    ] = 256,
    machine: Machine,
    as_json: Json = False,
) -> None:
    """Split a pass of the decoding loop into forward, verification and the rest.

    Tokens a second stand beside the limit of reading all weights once a token.

    [bold]Examples[/bold]

    [cyan]visual-ar bench loop --size GPT-XL --methods sequential[/cyan]
    How far sequential decoding is from the limit of the memory.
    """
    set_threads(machine.threads)

    from visual_ar.evaluation.kernel_table import render_loop
    from visual_ar.evaluation.loop_speed import bench_loop, random_model

    where = resolve_device(machine.device)
    chosen = [spec for given in methods or () for spec in given.split()]
    document = bench_loop(
        random_model(size, where, floating_dtype(machine.dtype, where), grid),
        size,
        chosen or ["sequential", "jacobi:window=32"],
        batch,
        passes,
        copied=copied * 2**20,
    )
    if as_json:
        echo_json(document)
    else:
        show_table(render_loop(document))
