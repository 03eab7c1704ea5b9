"""Measures what storing weights in 8 bits changes: next-token laws, and reconstructions.

Both pipelines are fed the same tokens, those of real pictures, so that their laws can be compared
token by token: by total variation, and by whether the likeliest token is the same. Knows pipelines
and pictures; knows nothing about how weights are stored.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visual_ar.accel.groups import GroupDecoding
from visual_ar.data import dataset
from visual_ar.evaluation.pictures import of_array
from visual_ar.evaluation.reconstruction import reconstruction
from visual_ar.evaluation.result import document
from visual_ar.evaluation.workload import DEFAULTS, Options, fingerprint, from_pipeline
from visual_ar.pipeline import VisualARPipeline
from visual_ar.tokens.kind import TABLE

PLAIN = Options(guidance_scale=1.0, temperature=1.0, top_k=0, top_p=1.0)
DRAWS = 8  # of a law without a table, by which total variation is estimated
BATCH = 4


def rounding(
    whole: VisualARPipeline,
    rounded: VisualARPipeline,
    pictures: NDArray[np.uint8],
    subjects: Sequence[str],
) -> dict[str, Any]:
    """Compares a pipeline with one whose weights were stored anew.

    Args:
        whole: whose tokenizer encodes the pictures.
        rounded: the same pipeline with other weights.
        pictures: uint8 [N, H, W, 3].
        subjects: prompts or class names, one a picture.

    Returns:
        a result, see `evaluation.result`. Total variation is the mean over ranks and pictures; of
        laws over a code book exact, of others an estimate from draws.

    Raises:
        ValueError: not one subject a picture, or laws without a ratio of densities.
    """
    if len(subjects) != len(pictures):
        raise ValueError(f"subjects must be {len(pictures)}, one a picture, got {len(subjects)}")
    tokens, same = _encode(whole, rounded, pictures)
    results: dict[str, Any] = {"tokens encoded alike": float(same.double().mean())}
    for name, options in (("defaults", DEFAULTS), ("unguided, temperature 1", PLAIN)):
        apart, agree = law_changes(whole, rounded, tokens, subjects, options)
        results[f"total variation, {name}"] = float(apart.double().mean())
        results[f"top-1 agreement, {name}"] = float(agree.double().mean())
    before, after = (
        reconstruction(pipe.image_tokenizer, "image_tokenizer", of_array(pictures, "pictures"))
        for pipe in (whole, rounded)
    )
    for figure in ("PSNR", "SSIM"):
        results[f"{figure} before"] = before["results"][figure]
        results[f"{figure} after"] = after["results"][figure]
    protocol = {"pictures": len(pictures), "tokens": tokens.shape[1], "draws of a law": DRAWS}
    inputs = {"whole": fingerprint(whole), "rounded": fingerprint(rounded)}
    return document("rounding", protocol, inputs, results)


@torch.inference_mode()
def law_changes(
    whole: VisualARPipeline,
    rounded: VisualARPipeline,
    tokens: Tensor,
    subjects: Sequence[str],
    options: Options = DEFAULTS,
) -> tuple[Tensor, Tensor]:
    """Compares the law of every token, given the tokens before it.

    Args:
        whole: one pipeline.
        rounded: the other one, of the same kind.
        tokens: [B, N, *] of the B pictures, cell by cell.
        subjects: of the B pictures.
        options: of sampling.

    Returns:
        fp32 [B, N], total variation in decode order, and bool [B, N], whether the likeliest token
        is the same.
    """
    apart, agree = [], []
    for start in range(0, len(tokens), BATCH):
        part = slice(start, start + BATCH)
        p, q = (forced_laws(of, tokens[part], subjects[part], options) for of in (whole, rounded))
        apart.append(_distance(whole, p, q, tokens[part].shape[:2]))
        likeliest = [law.draw_frozen(torch.zeros(())) for law in (p, q)]
        agree.append(whole.model.tokens.same(*likeliest))
    return torch.cat(apart).cpu(), torch.cat(agree).cpu()


def forced_laws(
    pipe: VisualARPipeline, tokens: Tensor, subjects: Sequence[str], options: Options
) -> Any:
    """The guided, warped laws [B, N] of all ranks in one pass over given tokens.

    Args:
        pipe: its method is not asked.
        tokens: [B, N, *] cell by cell.
        subjects: of the B pictures.
        options: of sampling.
    """
    work = from_pipeline(pipe, subjects, options)
    layout, batch = work.cast.layout, len(tokens)
    condition = work.condition(range(batch))
    method = GroupDecoding()
    state = method.init(work.cast, batch, len(condition.prefix) == 2 * batch)
    slots = torch.arange(batch, device=pipe.model.device)
    method.admit(state, slots, condition, work.sampling(list(range(batch))))
    given = tokens.to(pipe.model.device)[:, layout.cell.clamp(min=0)]
    ranks = torch.arange(layout.length, device=pipe.model.device).expand(batch, -1)
    # Rank -1 is fed the prefix, not a token.
    hidden = state.forward_alone(given.roll(1, dims=1), ranks - 1)
    state.method.keep(hidden, state.twice(ranks - 1))
    return state.law(state.method.of_sources(state.twice(ranks)), ranks)


def _distance(pipe: VisualARPipeline, p: Any, q: Any, shape: torch.Size) -> Tensor:
    """Total variation of laws of shape [B, N]."""
    if TABLE in pipe.model.tokens.offers:
        return p.distance(q)
    ranks = torch.arange(shape[1], device=pipe.model.device).expand(shape)
    seed = torch.arange(shape[0], device=ranks.device)[:, None]
    kept = torch.zeros(shape, device=ranks.device)
    for draw in range(DRAWS):
        u = pipe.model.tokens.uniforms(seed, ranks, torch.full_like(ranks, draw))
        kept += p.ratio(q, q.draw(u[0]))
    return 1 - kept / DRAWS


@torch.inference_mode()
def _encode(
    whole: VisualARPipeline, rounded: VisualARPipeline, pictures: NDArray[np.uint8]
) -> tuple[Tensor, Tensor]:
    """Tokens [B, N, *] cell by cell, and bool [B, N], whether both tokenizers give the same."""
    given = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    found = []
    for pipe in (whole, rounded):
        tokenizer = pipe.image_tokenizer
        pixels = given.to(tokenizer.device, tokenizer.dtype)
        found.append(torch.cat([tokenizer.encode(part) for part in pixels.split(BATCH)]))
    return found[0], whole.model.tokens.same(*found)


def main(arguments: list[str] | None = None) -> None:
    """Prints the result for two saved pipelines and some pictures of a prepared dataset."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("whole", help="folder of the pipeline before")
    parser.add_argument("rounded", help="folder of the pipeline after")
    parser.add_argument("--data", required=True, help="folder of visual-ar data")
    parser.add_argument("--split", required=True, help="part of the dataset")
    parser.add_argument("--pictures", type=int, default=100, help="at most, evenly spread")
    given = parser.parse_args(arguments)
    data = dataset.load(given.data)
    found = data.indices(given.split)
    chosen = found[:: max(1, len(found) // given.pictures)][: given.pictures]
    whole, rounded = map(VisualARPipeline.from_pretrained, (given.whole, given.rounded))
    subjects = [data.prompts[index] for index in chosen]
    result = rounding(whole, rounded, data.pictures[chosen], subjects)
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
