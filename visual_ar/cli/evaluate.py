"""`visual-ar evaluate`: quality of a model's pictures; joins a pipeline, a dataset and features."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visual_ar.cli import evaluate_model, evaluate_sets
from visual_ar.cli.common import check_output_folder, set_threads
from visual_ar.cli.ending import command
from visual_ar.cli.option_groups import Json, Machine, Model, Spec, grouped
from visual_ar.cli.terminal import echo_json, progress
from visual_ar.method_options import parse_method

if TYPE_CHECKING:
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

Seed = Annotated[
    int, typer.Option(min=0, max=2**62, help="Of the choice of prompts and of the pictures.")
]
Batch = Annotated[int, typer.Option(min=1, max=4096, help="Pictures drawn at once.")]


@dataclass(frozen=True)
class Material:
    """What pictures are compared with, and where finished batches are kept."""

    data: Annotated[Path, typer.Option(help="Prepared dataset, a folder or a pack.")]
    resolution: Annotated[
        int,
        typer.Option(
            min=32,
            max=4096,
            help="Side to which the feature network sees pictures; results of different "
            "resolutions cannot be compared.",
        ),
    ] = 224
    keep: Annotated[
        Path | None,
        typer.Option(help="Folder for finished batches; the same command then goes on from there."),
    ] = None


@app.command(no_args_is_help=True)
@grouped
def retrieval(
    ctx: typer.Context,
    *,
    material: Material,
    model: Model = "emoji",
    method: Spec = None,
    prompts: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Number of training prompts.")
    ] = 200,
    seed: Seed = 0,
    batch: Batch = 20,
    machine: Machine,
    as_json: Json = False,
) -> None:
    """Ask for emoji and look whether the nearest pictures of the set carry the name.

    Also asks for the skin tones that were held out of training.

    [bold]Example[/bold]

    [cyan]visual-ar evaluate retrieval --data data/emoji[/cyan]
    """
    from visual_ar.cli.feature_network import feature_network, tracker
    from visual_ar.evaluation.quality import emoji_retrieval

    set_threads(machine.threads)
    dataset, pipe = _open(material, model, machine)
    source = _source(pipe, method)
    with progress(as_json) as bar:
        features = feature_network(pipe, material.resolution, batch, material.keep, tracker(bar))
        result = emoji_retrieval(source, dataset, features, prompts, seed)
    document = {"model": model, "method": method, "resolution": material.resolution, **result}
    _show(ctx, document, dataset, pipe, as_json)


@app.command(no_args_is_help=True)
@grouped
def frechet(
    ctx: typer.Context,
    *,
    material: Material,
    model: Model = "cifar10",
    methods: Annotated[
        str,
        typer.Option(
            metavar="NAME[:OPTION=VALUE,...] ...",
            help="Methods, separated by spaces; the first is tested against each of the others.",
        ),
    ] = "sequential jacobi",
    samples: Annotated[
        int, typer.Option(min=2, max=1_000_000, help="Pictures of every method.")
    ] = 10_000,
    permutations: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Relabellings of the test.")
    ] = 1000,
    seed: Seed = 0,
    batch: Batch = 100,
    machine: Machine,
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

    set_threads(machine.threads)
    dataset, pipe = _open(material, model, machine)
    sources = {name: _source(pipe, name) for name in dict.fromkeys(methods.split())}
    with progress(as_json) as bar:
        features = feature_network(pipe, material.resolution, batch, material.keep, tracker(bar))
        result = cifar_frechet(sources, dataset, features, samples, seed, permutations)
    _show(
        ctx, {"model": model, "resolution": material.resolution, **result}, dataset, pipe, as_json
    )


def _open(material: Material, model: str, machine: Machine) -> "tuple[Dataset, VisualARPipeline]":
    """Returns the dataset and the pipeline, once the folder to keep batches in can be written."""
    from visual_ar.cli.drawing import load
    from visual_ar.data import load as load_data

    if material.keep is not None:
        check_output_folder(material.keep)
    return load_data(material.data), load(model, machine.device, machine.dtype)


def _source(pipe: "VisualARPipeline", method: str | None) -> "Source":
    from visual_ar.evaluation.workload import source

    shipped = pipe.scheduler
    return source(pipe, shipped if method is None else parse_method(method, shipped))


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
