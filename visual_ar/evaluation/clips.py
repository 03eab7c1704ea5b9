"""Reads sets of videos and chooses clips from them by a seed; measures nothing.

A set is an npz whose ``arr_0`` is uint8 [N, T, H, W, 3], or a folder with a folder of frames for
every video. Videos and frames are in the order of the numbers in their names.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from visual_ar.evaluation.pictures import KEY, SUFFIXES, check_array, open_npz
from visual_ar.folder import list_files, list_folders
from visual_ar.picture_file import read_picture
from visual_ar.plain_numbers import whole


@dataclass(frozen=True)
class Videos:
    """A set of videos in a fixed order.

    Attributes:
        name: where it comes from, as it was given.
        lengths: frames of every video.
        read: (video, frame numbers) to uint8 [T, H, W, 3].
        passed_over: what else lies in a folder -> how often; None where nothing was looked through.
    """

    name: str
    lengths: list[int]
    read: Callable[[int, range], NDArray[np.uint8]]
    passed_over: dict[str, int] | None = None

    def describe(self) -> dict[str, Any]:
        """What a result says about the set."""
        looked = {} if self.passed_over is None else {"passed_over": self.passed_over}
        return {"path": self.name, "videos": len(self.lengths), **looked}


@dataclass(frozen=True)
class Choice:
    """Which clips are taken: one of each of `count` videos, drawn without replacement.

    Attributes:
        count: clips, at least 2.
        length: frames of a clip, at least 2.
        stride: of the frames in the video, at least 1.
        seed: of the videos and of where in them the clips start.

    Raises:
        ValueError: a value outside its range.
    """

    count: int = 2048
    length: int = 16
    stride: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for field, name, least in (
            ("count", "clips", 2),
            ("length", "length", 2),
            ("stride", "stride", 1),
            ("seed", "seed", 0),
        ):
            # Plain numbers take the places of NumPy's, which no result could be written with.
            object.__setattr__(self, field, whole(name, getattr(self, field), least))

    def of(self, videos: Videos) -> list[tuple[int, range]]:
        """The video and the frames of every clip, in the order of the videos.

        Raises:
            ValueError: there are too few videos, or one is too short.
        """
        span = (self.length - 1) * self.stride + 1
        if len(videos.lengths) < self.count:
            raise ValueError(
                f"clips must be at most one a video, {len(videos.lengths)} in {videos.name}, "
                f"got {self.count}"
            )
        if min(videos.lengths) < span:
            raise ValueError(
                f"videos of {videos.name} must have at least {span} frames for {self.length} at "
                f"stride {self.stride}, got one of {min(videos.lengths)}"
            )
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(videos.lengths), generator=generator)[: self.count]
        clips = []
        for video in sorted(order.tolist()):
            room = videos.lengths[video] - span + 1
            start = int(torch.randint(room, (1,), generator=generator))
            clips.append((video, range(start, start + span, self.stride)))
        return clips

    def describe(self) -> dict[str, Any]:
        """What results must agree in."""
        return {"clips": self.count, "length": self.length, "stride": self.stride}


def open_videos(path: Path) -> Videos:
    """Opens a set of videos.

    Raises:
        FileNotFoundError: nothing is there.
        OSError: a folder cannot be read.
        ValueError: no videos, a link leads nowhere, or an npz of something else.
    """
    if not path.exists():
        raise FileNotFoundError(f"videos must be a folder or an npz, found nothing at {path}")
    return _of_folders(path) if path.is_dir() else _of_npz(path)


def of_array(videos: NDArray[np.uint8], name: str) -> Videos:
    """Videos in memory. videos: uint8 [N, T, H, W, 3]; name: for the result."""
    lengths = [videos.shape[1]] * videos.shape[0]
    return Videos(
        name, lengths, lambda video, frames: videos[video, frames.start : frames.stop : frames.step]
    )


def batches(
    videos: Videos, choice: Choice, size: int, digest: Any = None
) -> Iterator[NDArray[np.uint8]]:
    """Yields the chosen clips, uint8 [B, T, H, W, 3] with B = `size` but for the last.

    Args:
        videos: the set.
        choice: which clips.
        size: clips at a time, at least 1.
        digest: a hash that takes every pixel, or None.

    Raises:
        ValueError: what `Choice.of` refuses, or clips of different sizes.
    """
    size = whole("batch", size, least=1)
    chosen, shape = choice.of(videos), None
    for start in range(0, len(chosen), size):
        clips = [videos.read(*clip) for clip in chosen[start : start + size]]
        for clip in clips:
            shape = shape or clip.shape
            if clip.shape != shape:
                raise ValueError(
                    f"videos of {videos.name} must have one size, {shape[2]}x{shape[1]}, "
                    f"got one of {clip.shape[2]}x{clip.shape[1]}"
                )
        batch = np.stack(clips)
        if digest is not None:
            digest.update(np.ascontiguousarray(batch).data)
        yield batch


def new_digest() -> Any:
    """A hash for `batches`."""
    return hashlib.sha256()


def _of_folders(path: Path) -> Videos:
    found = list_folders(path)
    passed = Counter(found.passed_over)
    frames = []
    for folder in found.files:
        inside = list_files(folder, SUFFIXES, below=False)
        if not inside.files:
            raise ValueError(f"{folder} must hold the frames of a video, found none")
        frames.append(inside.files)
        passed.update(inside.passed_over)
    if not frames:
        raise ValueError(f"{path} must hold a folder of frames for every video, found none")

    def read(video: int, numbers: range) -> NDArray[np.uint8]:
        pictures = [
            np.asarray(read_picture(frames[video][number], ground=None)) for number in numbers
        ]
        if len({picture.shape for picture in pictures}) > 1:
            raise ValueError(f"frames of {frames[video][0].parent} must have one size")
        return np.stack(pictures)

    return Videos(str(path), [len(files) for files in frames], read, dict(passed))


def _of_npz(path: Path) -> Videos:
    with open_npz(path) as archive:
        if f"{KEY}.npy" not in archive.namelist():
            raise ValueError(f"{path} must hold videos as {KEY}, got {archive.namelist()}")
        with archive.open(f"{KEY}.npy") as file:
            shape, kind = check_array(file, f"{KEY} of {path}")
            if kind != np.uint8 or len(shape) != 5 or shape[4] != 3 or not all(shape):
                raise ValueError(
                    f"{KEY} of {path} must be uint8 [N, T, H, W, 3], got {kind} {list(shape)}"
                )
            values = file.read()
    if len(values) != int(np.prod(shape)):
        raise ValueError(f"{path} must hold {shape[0]} videos, got fewer")
    return of_array(np.frombuffer(values, np.uint8).reshape(shape), str(path))
