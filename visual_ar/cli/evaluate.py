"""`visual-ar evaluate`: quality of a model's pictures; joins a pipeline, a dataset and features."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visual_ar.cli import evaluate_model, evaluate_sets
from visual_ar.cli.common import (
    Device,
    Dtype,
    Json,
    Threads,
    check_output_folder,
    echo_json,
    set_threads,
)
from visual_ar.cli.ending import command

if TYPE_CHECKING:
    from rich.progress import Progress

    from visual_ar.data import Dataset
    from visual_ar.evaluation.quality import Source
    from visual_ar.pipeline import VisualARPipeline

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Measure how good a model's pictures are, and how fast it draws them.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("sample", no_args_is_help=True)(evaluate_model.sample)
app.command("fid", no_args_is_help=True)(evaluate_sets.fid)
app.command("fvd", no_args_is_help=True)(evaluate_sets.fvd)
app.command("reconstruction", no_args_is_help=True)(evaluate_sets.reconstruction)
app.command("alignment", no_args_is_help=True)(evaluate_sets.alignment)
app.command("speed")(evaluate_model.speed)
app.command("report", no_args_is_help=True)(evaluate_sets.report)

Data = Annotated[Path, typer.Option(help="Prepared dataset, a folder or a pack.")]
Keep = Annotated[
    Path | None,
    typer.Option(help="Folder for finished batches; the same command then goes on from there."),
]
Seed = Annotated[int, typer.Option(min=0, help="Of the choice of prompts and of the pictures.")]
Batch = Annotated[int, typer.Option(min=1, help="Pictures drawn at once.")]
Resolution = Annotated[
    int,
    typer.Option(
        min=32, help="Side to which the feature network sees pictures; results of different "
        "resolutions cannot be compared."
    ),
]  # fmt: skip


@app.command(no_args_is_help=True)
def retrieval(
    ctx: typer.Context,
    data: Data,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Bundled name, model folder or Hugging Face id.")
    ] = "emoji",
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:OPTION=VALUE,...]",
            help="How to decode. [dim]Default: the model's own method.[/dim]",
        ),
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Number of training prompts.")] = 200,
    seed: Seed = 0,
    batch: Batch = 20,
    resolution: Resolution = 224,
    keep: Keep = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Ask for emoji and look whether the nearest pictures of the set carry the name.

    Also asks for the skin tones that were held out of training.

    [bold]Example[/bold]

    [cyan]visual-ar evaluate retrieval --data data/emoji[/cyan]
    """
    from visual_ar.cli.feature_network import feature_network, tracker
    from visual_ar.evaluation.quality import emoji_retrieval

    set_threads(threads)
    dataset, pipe = _open(data, keep, model, device, dtype)
    source = _source(pipe, method)
    with _progress(as_json) as bar:
        features = feature_network(pipe, resolution, batch, keep, tracker(bar))
        result = emoji_retrieval(source, dataset, features, prompts, seed)
    document = {"model": model, "method": method, "resolution": resolution, **result}
    _show(ctx, document, dataset, pipe, as_json)


@app.command(no_args_is_help=True)
def frechet(
    ctx: typer.Context,
    data: Data,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Bundled name, model folder or Hugging Face id.")
    ] = "cifar10",
    methods: Annotated[
        str,
        typer.Option(
            metavar="NAME[:OPTION=VALUE,...] ...",
            help="Methods, separated by spaces; the first is tested against each of the others.",
        ),
    ] = "sequential jacobi",
    samples: Annotated[int, typer.Option(min=2, help="Pictures of every method.")] = 10_000,
    permutations: Annotated[int, typer.Option(min=1, help="Relabellings of the test.")] = 1000,
    seed: Seed = 0,
    batch: Batch = 100,
    resolution: Resolution = 224,
    keep: Keep = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure the Fréchet distance of CIFAR-10 samples, and whether methods can be told apart.

    The distance is in EfficientNet-Lite0 features; it is not FID. A permutation
    test compares the features that two methods give: a small p says that they differ.

    [bold]Example[/bold]

    [cyan]visual-ar evaluate frechet --data data/cifar10 --keep runs/frechet[/cyan]
    """
    from visual_ar.cli.feature_network import feature_network, tracker
    from visual_ar.evaluation.quality import cifar_frechet

    set_threads(threads)
    dataset, pipe = _open(data, keep, model, device, dtype)
    sources = {name: _source(pipe, name) for name in dict.fromkeys(methods.split())}
    with _progress(as_json) as bar:
        features = feature_network(pipe, resolution, batch, keep, tracker(bar))
        result = cifar_frechet(sources, dataset, features, samples, seed, permutations)
    _show(ctx, {"model": model, "resolution": resolution, **result}, dataset, pipe, as_json)


def _open(
    data: Path, keep: Path | None, model: str, device: str, dtype: str
) -> "tuple[Dataset, VisualARPipeline]":
    """Returns the dataset and the pipeline, once the folder to keep batches in can be written."""
    from visual_ar.cli.drawing import load
    from visual_ar.data import load as load_data

    if keep is not None:
        check_output_folder(keep)
    return load_data(data), load(model, device, dtype)


def _source(pipe: "VisualARPipeline", method: str | None) -> "Source":
    from visual_ar.evaluation.speed import parse_method
    from visual_ar.evaluation.workload import source

    return source(pipe, pipe.scheduler if method is None else parse_method(method))


def _progress(quiet: bool) -> "Progress":
    from rich.console import Console
    from rich.progress import Progress

    return Progress(console=Console(stderr=True), disable=quiet)


def _show(
    ctx: typer.Context,
    document: dict[str, Any],
    dataset: "Dataset",
    pipe: "VisualARPipeline",
    as_json: bool,
) -> None:
    """Prints the result for a program, with all that made it, or for a person."""
    if as_json:
        from visual_ar.data.dataset import digest
        from visual_ar.evaluation.result import versions
        from visual_ar.evaluation.workload import fingerprint

        data = {"pictures": len(dataset), "sha256": digest(dataset.pictures)}
        made = {"command": command(ctx), "versions": versions(), "weights": fingerprint(pipe)}
        echo_json({**document, **made, "data": {"name": dataset.name, **data}})
        return
    from visual_ar.cli.info import show

    show(document)
