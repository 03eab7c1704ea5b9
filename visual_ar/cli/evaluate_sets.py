"""`visual-ar evaluate fid`, `fvd`, `reconstruction`, `alignment`, `report`: sets from files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from visual_ar.cli import ending as result
from visual_ar.cli.common import resolve_device, set_threads
from visual_ar.cli.option_groups import Computer, Dtype, Json, grouped
from visual_ar.cli.terminal import echo_json, progress, say

if TYPE_CHECKING:
    import torch

    from visual_ar.evaluation.networks import Network
    from visual_ar.tokenizers.visual_tokenizer import VisualTokenizer

Features = Annotated[
    Literal["inception", "efficientnet-lite0"],
    typer.Option(help="Network; the second works offline, and its distance is not FID."),
]
Weights = Annotated[
    Path | None,
    typer.Option(help="The official Inception-v3 of 2015-12-05, for inception."),
]
Resolution = Annotated[
    int, typer.Option(min=32, max=4096, help="Side at which efficientnet-lite0 sees pictures.")
]
Split = Annotated[str | None, typer.Option(help="Of a prepared dataset.", show_default=False)]
Batch = Annotated[int, typer.Option(min=1, max=4096, help="Pictures or clips at a time.")]


@grouped
def fid(
    ctx: typer.Context,
    *,
    samples: Annotated[Path, typer.Option(help="Folder or npz of pictures.")],
    reference: Annotated[
        Path, typer.Option(help="Folder, npz or dataset of pictures, or statistics (npz, pt).")
    ],
    features: Features = "inception",
    weights: Weights = None,
    figures: Annotated[
        str, typer.Option(metavar="NAME ...", help="Of fid, kid, is and pr.")
    ] = "fid",
    split: Split = None,
    resolution: Resolution = 224,
    kid_subset: Annotated[
        int, typer.Option(min=2, max=1_000_000, help="Pictures of a subset of kid.")
    ] = 1000,
    seed: Annotated[int, typer.Option(min=0, max=2**62, help="Of subsets and splits.")] = 2020,
    batch: Batch = 64,
    allow_small: result.AllowSmall = False,
    statistics: Annotated[
        Path | None, typer.Option(help="npz to write, with the samples' own statistics.")
    ] = None,
    output: result.Output = None,
    computer: Computer,
    as_json: Json = False,
) -> None:
    """Measure FID, KID, inception score, precision and recall.

    A set is a folder with all that lie in it, links followed; hidden files are
    passed over, and what else was passed over is said. Statistics are ADM's (mu
    and sigma), torch-fidelity's, or what [cyan]--statistics[/cyan] wrote; those
    of another network are refused.

    [bold]Examples[/bold]

    [cyan]visual-ar evaluate fid --samples runs/c2i --reference VIRTUAL_imagenet256_labeled.npz
    --weights weights-inception-2015-12-05-6726825d.pth --figures "fid is"[/cyan]

    [cyan]visual-ar evaluate fid --samples runs/cifar10 --reference data/cifar10 --split test
    --features efficientnet-lite0 --allow-small[/cyan]
    """
    from visual_ar.cli.common import check_output_file
    from visual_ar.evaluation.fid import fid as measure
    from visual_ar.evaluation.moments import holds_moments, read_moments
    from visual_ar.evaluation.pictures import holds_pictures, open_pictures
    from visual_ar.evaluation.sample import origin

    set_threads(computer.threads)
    result.check(output)
    if statistics is not None:
        check_output_file(statistics, ".npz")
    made = origin(samples)
    drawn = open_pictures(samples)
    given = holds_moments(reference)
    pictures = None if given and not holds_pictures(reference) else open_pictures(reference, split)
    network = _network(features, weights, resolution, resolve_device(computer.device))
    moments = read_moments(reference, network) if given else None
    with progress(as_json) as bar:
        document = measure(
            drawn,
            pictures,
            network,
            figures.split(),
            moments,
            allow_small,
            batch,
            kid_subset,
            seed,
            statistics,
            result.named(bar),
        )
    document["inputs"]["samples"]["plan"] = made
    result.finish(ctx, document, output, as_json)


@grouped
def fvd(
    ctx: typer.Context,
    *,
    samples: Annotated[Path, typer.Option(help="npz of videos, or folder of folders of frames.")],
    reference: Annotated[Path, typer.Option(help="Likewise, real ones.")],
    features: Annotated[
        Literal["i3d", "efficientnet-lite0"],
        typer.Option(help="Network; the second works offline, and its distance is not FVD."),
    ] = "i3d",
    weights: Annotated[Path | None, typer.Option(help="TorchScript file, for i3d.")] = None,
    convention: Annotated[
        Literal["stylegan-v", "videogpt"] | None,
        typer.Option(help="How i3d gets its clips; figures differ.", show_default=False),
    ] = None,
    clips: Annotated[int, typer.Option(min=2, max=1_000_000, help="Clips, one a video.")] = 2048,
    length: Annotated[int, typer.Option(min=2, max=65_536, help="Frames of a clip.")] = 16,
    stride: Annotated[
        int, typer.Option(min=1, max=65_536, help="Of a clip's frames in the video.")
    ] = 1,
    seed: Annotated[int, typer.Option(min=0, max=2**62, help="Of the choice of clips.")] = 0,
    resolution: Resolution = 224,
    batch: Batch = 8,
    allow_small: result.AllowSmall = False,
    output: result.Output = None,
    computer: Computer,
    as_json: Json = False,
) -> None:
    """Measure the Fréchet distance of videos.

    In a folder every folder is a video, and its pictures are the frames, in the
    order of the numbers in their names.

    [bold]Example[/bold]

    [cyan]visual-ar evaluate fvd --samples drawn.npz --reference real.npz
    --weights i3d_torchscript.pt --convention stylegan-v[/cyan]
    """
    from visual_ar.evaluation.clips import Choice, open_videos
    from visual_ar.evaluation.fvd import frames, i3d
    from visual_ar.evaluation.fvd import fvd as measure

    set_threads(computer.threads)
    result.check(output)
    choice = Choice(clips, length, stride, seed)
    drawn, real = open_videos(samples), open_videos(reference)
    place = resolve_device(computer.device)
    if features == "i3d":
        if weights is None or convention is None:
            raise ValueError(
                f"weights and convention must be given for i3d, got {weights} and {convention}"
            )
        network = i3d(weights, convention, place)
    elif weights is not None or convention is not None:
        raise ValueError(
            f"weights and convention must be left out for {features}, "
            f"got {weights} and {convention}"
        )
    else:
        network = frames(_network(features, None, resolution, place))
    with progress(as_json) as bar:
        document = measure(drawn, real, network, choice, allow_small, batch, result.named(bar))
    result.finish(ctx, document, output, as_json)


@grouped
def reconstruction(
    ctx: typer.Context,
    *,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Model or tokenizer: bundled name, folder, id.")
    ],
    pictures: Annotated[Path, typer.Option(help="Folder, npz or dataset of pictures.")],
    split: Split = None,
    crop: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65_536,
            help="Resize the short side to so many pixels and cut out the centre.",
            show_default=False,
        ),
    ] = None,
    resample: Annotated[Literal["bicubic", "lanczos"], typer.Option(help="Of --crop.")] = "bicubic",
    features: Annotated[
        Literal["inception", "efficientnet-lite0"] | None,
        typer.Option(help="Network for rFID; without it there is none.", show_default=False),
    ] = None,
    weights: Weights = None,
    resolution: Resolution = 224,
    lpips_vgg: Annotated[Path | None, typer.Option(help="vgg16-397923af.pth, for LPIPS.")] = None,
    lpips_linear: Annotated[
        Path | None, typer.Option(help="vgg.pth of LPIPS 0.1, for LPIPS.")
    ] = None,
    batch: Batch = 32,
    allow_small: result.AllowSmall = False,
    output: result.Output = None,
    computer: Computer,
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Measure what a tokenizer loses: rFID, PSNR, SSIM, LPIPS, and its use of codes.

    [bold]Example[/bold]

    [cyan]visual-ar evaluate reconstruction -m cifar10 --pictures data/cifar10 --split test[/cyan]
    """
    from visual_ar.cli.common import floating_dtype
    from visual_ar.evaluation.lpips import Lpips
    from visual_ar.evaluation.pictures import Crop, open_pictures
    from visual_ar.evaluation.reconstruction import reconstruction as measure

    set_threads(computer.threads)
    result.check(output)
    if (lpips_vgg is None) != (lpips_linear is None):
        raise ValueError(
            f"lpips_vgg must be given together with lpips_linear, got {lpips_vgg} "
            f"and {lpips_linear}"
        )
    place = resolve_device(computer.device)
    given = open_pictures(pictures, split, None if crop is None else Crop(crop, resample))
    network = None if features is None else _network(features, weights, resolution, place)
    lpips = None
    if lpips_vgg is not None and lpips_linear is not None:
        lpips = Lpips(lpips_vgg, lpips_linear).to(place)
    tokenizer = _tokenizer(model, floating_dtype(dtype, place)).to(place)
    with progress(as_json) as bar:
        report = result.named(bar)
        document = measure(
            tokenizer,
            model,
            given,
            network,
            lpips,
            allow_small,
            batch,
            lambda done, total: report("pictures", done, total),
        )
    result.finish(ctx, document, output, as_json)


@grouped
def alignment(
    ctx: typer.Context,
    *,
    samples: Annotated[
        Path, typer.Option(help="Folder of evaluate sample; with --prompts, any pictures.")
    ],
    prompts: Annotated[
        Path | None,
        typer.Option(help="Text file, the prompt of every picture a line.", show_default=False),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(
            help="Architecture of open_clip, such as ViT-B-32. OpenAI's own weights need a name "
            "that ends in -quickgelu (ViT-B-32-quickgelu): their activation is not in the file.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Its checkpoint.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Prepared emoji: look prompts up in it, offline.", show_default=False),
    ] = None,
    resolution: Resolution = 224,
    batch: Batch = 32,
    output: result.Output = None,
    computer: Computer,
    as_json: Json = False,
) -> None:
    """Measure whether pictures show what was asked for: CLIP score, or retrieval of names.

    [bold]Examples[/bold]

    [cyan]visual-ar evaluate alignment --samples runs/t2i --clip ViT-B-32
    --weights open_clip_pytorch_model.bin[/cyan]

    [cyan]visual-ar evaluate alignment --samples runs/emoji --data data/emoji[/cyan]
    """
    from visual_ar.cli.evaluate_model import read_prompts
    from visual_ar.evaluation.alignment import clip_score, open_clip, prompt_retrieval
    from visual_ar.evaluation.pictures import open_pictures
    from visual_ar.evaluation.sample import origin
    from visual_ar.evaluation.sample import read_prompts as planned

    set_threads(computer.threads)
    result.check(output)
    if (clip is None) == (data is None):
        raise ValueError(f"one of clip and data must be given, got {clip} and {data}")
    if (clip is None) != (weights is None):
        raise ValueError(f"weights must be given with clip alone, got {weights} and clip {clip}")
    made = origin(samples)
    pictures = open_pictures(samples)
    asked = planned(samples) if prompts is None else read_prompts(prompts)
    place = resolve_device(computer.device)
    with progress(as_json) as bar:
        report = result.named(bar)
        if data is not None:
            from visual_ar.data import load as load_data

            network = _network("efficientnet-lite0", None, resolution, place)
            dataset = load_data(data)
            document = prompt_retrieval(pictures, asked, dataset, network, batch, report)
        else:
            assert clip is not None and weights is not None  # as checked above
            document = clip_score(pictures, asked, open_clip(clip, weights, place), batch, report)
    document["inputs"]["pictures"]["plan"] = made
    result.finish(ctx, document, output, as_json)


def report(
    results: Annotated[list[Path], typer.Argument(help="Results, two or more JSON files.")],
    as_json: Json = False,
) -> None:
    """Put results side by side; refuses what is not comparable.

    [bold]Example[/bold]

    [cyan]visual-ar evaluate report sequential.json jacobi.json[/cyan]
    """
    from visual_ar.evaluation.report import compare, render
    from visual_ar.evaluation.result import read_result

    compared = compare({str(path): read_result(path) for path in results})
    if as_json:
        rows = {name: list(values) for name, values in compared.rows}
        echo_json({**compared._asdict(), "names": list(compared.names), "rows": rows})
    else:
        say(f"{compared.evaluation}\n\n{render(compared)}")


def _network(
    features: str, weights: Path | None, resolution: int, device: "torch.device"
) -> "Network":
    from visual_ar.evaluation.networks import efficientnet_lite0, inception

    if features == "inception":
        if weights is None:
            raise ValueError(
                "weights must be given for inception; --features efficientnet-lite0 works offline"
            )
        return inception(weights, device)
    if weights is not None:
        raise ValueError(f"weights must be left out for {features}, got {weights}")
    return efficientnet_lite0(resolution, device)


def _tokenizer(model: str, dtype: "torch.dtype") -> "VisualTokenizer":
    """The image tokenizer of a model, or one that stands alone.

    Raises:
        OSError: no such model, or the hub cannot be reached.
        ValueError: the folder holds no image tokenizer.
    """
    from visual_ar import loading, tokenizers
    from visual_ar.component_files import read_json

    folder = loading.find(model)
    if (folder / "image_tokenizer").is_dir():
        folder = folder / "image_tokenizer"
    config = folder / "config.json"
    name = read_json(config, "").get("_class_name") if config.exists() else None
    if name not in tokenizers.CLASSES:
        raise ValueError(f"model must have an image tokenizer, got {model!r} without one")
    kind = getattr(tokenizers, name)
    # Without accelerate, diffusers would warn of what it does anyway.
    return kind.from_pretrained(folder, torch_dtype=dtype, low_cpu_mem_usage=False).eval()
