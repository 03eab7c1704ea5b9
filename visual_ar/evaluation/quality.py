"""Says how good drawn pictures are: retrieval of emoji, Fréchet distance of CIFAR-10 samples.

Knows datasets and features; a source of pictures is any function from subjects and seeds to
pixels. Distances are in the features of the network that the result names, and are not FID.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visual_ar.data.dataset import Dataset, write_file
from visual_ar.evaluation.frechet import frechet_distance, permutation_test, statistics
from visual_ar.evaluation.retrieval import retrieve

TOP = 5
NETWORK = "EfficientNet-Lite0 features"
DISTANCE = f"Fréchet distance ({NETWORK})"

Progress = Callable[[str, int, int], None]


class Source(NamedTuple):
    """Something that draws.

    Attributes:
        draw: (subjects, seeds), prompts or class names and one seed each, to float
            [B, 3, H, W] in [-1, 1].
        identity: changes whenever the same subjects and seeds would be drawn otherwise.
    """

    draw: Callable[[list[str], list[int]], Tensor]
    identity: str


class Features:
    """Extracts features batch by batch, and keeps them in a folder if there is one.

    Args:
        extract: float [B, 3, H, W] in [-1, 1] to [B, D].
        identity: of `extract`; features of different identities are never mixed.
        batch: pictures at a time, at least 1.
        folder: where finished batches are kept, so that an interrupted evaluation goes on from
            the last one; None keeps nothing.
        progress: called as progress(what, done, total) after every batch.

    Raises:
        ValueError: batch is below 1.
    """

    def __init__(
        self,
        extract: Callable[[Tensor], Tensor],
        identity: str,
        batch: int = 32,
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        self._extract = extract
        self._identity = identity
        self._batch = batch
        self._folder = folder
        self._progress = progress

    def of_pictures(self, pictures: NDArray[np.uint8]) -> Tensor:
        """Features of given pictures. pictures: uint8 [N, H, W, 3]; returns fp32 [N, D]."""
        return self._collect(
            "reference pictures",
            len(pictures),
            lambda part: to_pixels(pictures[part]),
            lambda part: hashlib.sha256(pictures[part].tobytes()).hexdigest(),
        )

    def of_source(self, source: Source, subjects: Sequence[str], seed: int, what: str) -> Tensor:
        """Features of drawn pictures.

        Args:
            source: what draws.
            subjects: of the N pictures.
            seed: of the first picture; the others follow.
            what: name of this set, for the progress.

        Returns:
            fp32 [N, D].
        """

        def asked(part: slice) -> tuple[list[str], list[int]]:
            names = list(subjects[part])
            return names, list(range(seed + part.start, seed + part.start + len(names)))

        return self._collect(
            what,
            len(subjects),
            lambda part: source.draw(*asked(part)),
            lambda part: [source.identity, *asked(part)],
        )

    def _collect(
        self,
        what: str,
        total: int,
        pixels: Callable[[slice], Tensor],
        key: Callable[[slice], Any],
    ) -> Tensor:
        """Features of all batches. `key` says what a batch shows, in JSON-able values."""
        parts = []
        for start in range(0, total, self._batch):
            part = slice(start, min(start + self._batch, total))
            parts.append(self._kept(key(part), partial(pixels, part)))
            if self._progress is not None:
                self._progress(what, part.stop, total)
        return torch.cat(parts)

    def _kept(self, key: Any, pixels: Callable[[], Tensor]) -> Tensor:
        """The features of one batch, from the folder if they are there."""
        if self._folder is None:
            return self._compute(pixels)
        text = json.dumps([self._identity, key])
        path = self._folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npy"
        if path.is_file():
            return torch.from_numpy(np.load(path))
        features = self._compute(pixels)
        write_file(path, lambda file: np.save(file, features.numpy()))
        return features

    @torch.inference_mode()
    def _compute(self, pixels: Callable[[], Tensor]) -> Tensor:
        return self._extract(pixels()).float().cpu()


def to_pixels(pictures: NDArray[np.uint8]) -> Tensor:
    """uint8 [N, H, W, 3] to float [N, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def emoji_retrieval(
    source: Source, dataset: Dataset, features: Features, prompts: int = 200, seed: int = 0
) -> dict[str, Any]:
    """Whether drawn emoji look like what was asked for.

    A picture is a hit when one of its `TOP` nearest pictures of the whole set, by the cosine of
    their features, carries the prompted name; skin tones of one emoji count as one name. Prompts
    are drawn uniformly among those of the training split. The skin tone and person pairs of the
    split "tone-test", which no training sees, are asked for as well, all of them.

    Args:
        source: what draws.
        dataset: the emoji set.
        features: how pictures are compared.
        prompts: number of training prompts, at least 1.
        seed: of the choice of prompts and of the first picture.

    Returns:
        JSON-able: for "train" and "tone_test" the hit rate, the mean cosine distance to the
        nearest training picture, the Fréchet distance to the training pictures (None of a single
        one), and the prompts that missed.

    Raises:
        ValueError: the set has no names or not that many training prompts.
    """
    if not dataset.items:
        raise ValueError(f"dataset must be the emoji set, got {dataset.name}")
    training = dataset.indices("train")
    chosen = choose([dataset.prompts[index] for index in training], prompts, seed)
    reference = features.of_pictures(dataset.pictures)
    data = statistics(reference[training])
    groups = dict(zip(dataset.prompts, dataset.groups, strict=True))

    def ask(asked: list[str], first_seed: int, what: str) -> dict[str, Any]:
        drawn = features.of_source(source, asked, first_seed, what)
        wanted = [groups[prompt] for prompt in asked]
        found = retrieve(drawn, wanted, reference, dataset.groups, TOP)
        trained = [dataset.groups[index] for index in training]
        nearest = retrieve(drawn, wanted, reference[training], trained, 1)
        return {
            "prompts": len(asked),
            f"hit_rate_top_{TOP}": found.hit_rate,
            "nearest_training_distance": nearest.nearest_distance,
            "distance_to_data": (
                frechet_distance(*statistics(drawn), *data) if len(asked) > 1 else None
            ),
            "misses": [
                name for name, hit in zip(asked, found.hits.tolist(), strict=True) if not hit
            ],
        }

    tones = [dataset.prompts[index] for index in dataset.indices("tone-test")]
    return {
        "features": NETWORK,
        "seed": seed,
        "train": ask(chosen, seed, "training prompts"),
        "tone_test": ask(tones, seed + prompts, "held-out tones"),
    }


def choose(prompts: Sequence[str], count: int, seed: int) -> list[str]:
    """Different prompts drawn uniformly.

    Raises:
        ValueError: there are not that many, or count is below 1.
    """
    different = list(dict.fromkeys(prompts))
    if not 1 <= count <= len(different):
        raise ValueError(f"prompts must be in 1..{len(different)}, got {count}")
    order = torch.randperm(len(different), generator=torch.Generator().manual_seed(seed))
    return [different[index] for index in order[:count].tolist()]


def check_count(dataset: Dataset, count: int) -> None:
    """Makes sure that so many pictures can be asked for, before anything long.

    Args:
        dataset: with names, as for `emoji_retrieval`, or with classes, as for `cifar_frechet`.
        count: of training prompts, or of pictures.

    Raises:
        ValueError: the dataset has not that many training prompts, or the count is too small.
    """
    if dataset.items:
        choose([dataset.prompts[index] for index in dataset.indices("train")], count, 0)
    elif count < 2:
        raise ValueError(f"samples must be at least 2, got {count}")


def cifar_frechet(
    sources: Mapping[str, Source],
    dataset: Dataset,
    features: Features,
    samples: int = 10_000,
    seed: int = 0,
    permutations: int = 1000,
) -> dict[str, Any]:
    """How far samples are from CIFAR-10's test pictures, and whether methods can be told apart.

    Every method draws the classes in turn with seeds of its own, so that the sets are independent;
    the first method's set is compared with each of the others by a permutation test of the energy
    distance on the pooled features.

    Args:
        sources: what draws, by name of the method, at least one.
        dataset: CIFAR-10.
        features: how pictures are compared.
        samples: pictures of every method, at least 2.
        seed: of the first picture of the first method, and of the test.
        permutations: relabellings of the test, at least 1.

    Returns:
        JSON-able: the distance of every method to the test pictures, and p values.

    Raises:
        ValueError: the set has no classes, no source, or fewer than 2 samples.
    """
    if dataset.labels is None:
        raise ValueError(f"dataset must be the cifar10 set, got {dataset.name}")
    check_count(dataset, samples)
    if not sources:
        raise ValueError("methods must name at least one method, got none")
    reference = statistics(features.of_pictures(dataset.pictures[dataset.indices("test")]))
    subjects = [dataset.classes[index % len(dataset.classes)] for index in range(samples)]
    drawn = {
        name: features.of_source(source, subjects, seed + number * samples, name)
        for number, (name, source) in enumerate(sources.items())
    }
    first, *others = drawn
    return {
        "distance": DISTANCE,
        "reference": "test split",
        "samples": samples,
        "seed": seed,
        "methods": {
            name: frechet_distance(*statistics(some), *reference) for name, some in drawn.items()
        },
        "permutation_test": {
            "against": first,
            "statistic": "energy distance",
            "permutations": permutations,
            "p": {
                name: permutation_test(drawn[first], drawn[name], "energy", permutations, seed)
                for name in others
            },
        },
    }
