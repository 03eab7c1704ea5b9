"""What a tokenizer loses: rFID, PSNR, SSIM, LPIPS, and how it uses its codes; knows no generator.

Reconstructions are compared with the very pictures, resized and cropped, that were encoded, after
rounding to uint8 as files are; PSNR and SSIM are means of the pictures' own values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visual_ar.evaluation.code_counts import CodeCounts, bits
from visual_ar.evaluation.distortion import WINDOW, psnr, ssim
from visual_ar.evaluation.fid import ENOUGH, check_count, frechet
from visual_ar.evaluation.lpips import Lpips
from visual_ar.evaluation.moments import Moments
from visual_ar.evaluation.networks import Network
from visual_ar.evaluation.pictures import Fingerprint, Pictures
from visual_ar.evaluation.result import document
from visual_ar.evaluation.workload import fingerprint_parts
from visual_ar.size import Size
from visual_ar.tokenizers.visual_tokenizer import VisualTokenizer

Progress = Callable[[int, int], None]


def reconstruction(
    tokenizer: VisualTokenizer,
    name: str,
    pictures: Pictures,
    network: Network | None = None,
    lpips: Lpips | None = None,
    allow_small: bool = False,
    batch: int = 32,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Encodes and decodes pictures, and says what changed.

    Args:
        tokenizer: on its device.
        name: of it, for the result.
        pictures: the originals N, cropped to a size that fits the tokenizer.
        network: for rFID; None leaves it out.
        lpips: for LPIPS; None leaves it out.
        allow_small: accept fewer than 50,000 pictures for rFID; the count then is in its name.
        batch: pictures at a time.
        progress: called as progress(done, total) after every batch.

    Returns:
        a result, see `evaluation.result`.

    Raises:
        ValueError: too few pictures, or a size that does not fit the tokenizer.
    """
    if network is not None:
        check_count(pictures.count, ENOUGH, allow_small, "pictures")
        if pictures.count < 2:
            raise ValueError(f"pictures must be at least 2 for rFID, got {pictures.count}")
    measured = _Measured(tokenizer, network, lpips)
    done = 0
    for rows in pictures.batches(batch):
        measured.add(rows)
        done += len(rows)
        if progress is not None:
            progress(done, pictures.count)
    protocol = {
        "pictures": pictures.count,
        "pictures_sha256": measured.originals.describe(pictures)["sha256"],
        "crop": pictures.preprocessing(),
        "pixels": "rounded to uint8",
        "psnr": "mean over pictures, equal ones left out and counted",
        "ssim": f"uniform window of {WINDOW}, data range 255, mean over channels",
        "features": None if network is None else network.describe(),
        "lpips": None if lpips is None else lpips.source,
    }
    weights = fingerprint_parts({"image_tokenizer": tokenizer})
    described = {"name": name, "class": type(tokenizer).__name__, "weights": weights}
    inputs = {"tokenizer": described, "pictures": measured.originals.describe(pictures)}
    return document("reconstruction", protocol, inputs, measured.results())


class _Measured:
    """What is remembered of the pictures that went by."""

    def __init__(
        self, tokenizer: VisualTokenizer, network: Network | None, lpips: Lpips | None
    ) -> None:
        self._tokenizer, self._network, self._lpips = tokenizer, network, lpips
        self.originals = Fingerprint()
        self._codes = CodeCounts(tokenizer.codebook_size)
        self._bits = 0.0
        self._tokens = 0
        self._values: dict[str, list[Tensor]] = {"PSNR": [], "SSIM": [], "LPIPS": []}
        self._features: dict[str, list[Tensor]] = {"originals": [], "reconstructions": []}

    @torch.inference_mode()
    def add(self, rows: np.ndarray) -> None:
        """Measures a batch of originals, uint8 [B, H, W, 3]."""
        if min(rows.shape[1:3]) < WINDOW:
            height, width = rows.shape[1:3]
            raise ValueError(f"pictures must be at least {WINDOW} pixels, got {width}x{height}")
        self.originals.add(rows)
        tokenizer = self._tokenizer
        given = torch.from_numpy(rows).permute(0, 3, 1, 2)
        pixels = (given.to(tokenizer.device).float() / 127.5 - 1).to(tokenizer.dtype)
        grid = tokenizer.grid(Size(*rows.shape[1:3]))
        tokens = tokenizer.encode(pixels)
        made = rounded(tokenizer.decode(tokens, grid)).cpu()
        self._codes.add(tokens)
        self._bits, self._tokens = bits(tokens, tokenizer.codebook_size), tokens.shape[1]
        self._values["PSNR"].append(psnr(made, given))
        self._values["SSIM"].append(ssim(made, given))
        if self._lpips is not None:
            self._values["LPIPS"].append(self._lpips(made, given).double().cpu())
        if self._network is not None:
            for kind, some in (("originals", given), ("reconstructions", made)):
                self._features[kind].append(self._network.extract(some)[0].float())

    def results(self) -> dict[str, float | int | None]:
        """All figures."""
        values = {kind: torch.cat(parts) for kind, parts in self._values.items() if parts}
        ratio = values["PSNR"]
        different = ratio[ratio.isfinite()]
        results: dict[str, float | int | None] = {
            "PSNR": float(different.mean()) if len(different) else None,
            "pictures without any loss": len(ratio) - len(different),
            "SSIM": float(values["SSIM"].mean()),
        }
        if "LPIPS" in values:
            results["LPIPS"] = float(values["LPIPS"].mean())
        if self._network is not None:
            first, second = (
                Moments.of_features(torch.cat(parts), {}) for parts in self._features.values()
            )
            few = len(ratio) if len(ratio) < ENOUGH else None
            name = self._network.figure("rFID", "Fréchet distance of reconstructions", few)
            results[name] = frechet(first, second)
        return results | {
            "codes used": self._codes.used(),
            "codebook usage": self._codes.usage(),
            "codebook perplexity": self._codes.perplexity(),
            "tokens of a picture": self._tokens,
            "bits of a picture": self._bits,
        }


def rounded(pixels: Tensor) -> Tensor:
    """Pixels in [-1, 1], float [B, 3, H, W], as a file holds them: uint8, rounded to nearest."""
    return ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
