"""What every training loop keeps: progress, averages, optimisers, checkpoints and logs."""

from __future__ import annotations

import copy
import csv
import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from visual_ar.plain_numbers import shown
from visual_ar.regular_file import check_regular
from visual_ar.training.muon import Muon
from visual_ar.training.recipe import Optimiser, Recipe
from visual_ar.write_beside import naming, written_beside

CHECKPOINT = "checkpoint.safetensors"
# What a run may go on with otherwise: none of it changes what one step learns but by the schedule.
FREE = ("name", "steps", "minutes", "logging", "sampling")
M = TypeVar("M", bound=nn.Module)


class Clock:
    """Steps done and seconds spent, over all resumptions of a run."""

    def __init__(self, recipe: Recipe) -> None:
        self._steps = recipe.steps
        self._budget = math.inf if recipe.minutes is None else recipe.minutes * 60
        self._spent = 0.0
        self._since = time.monotonic()
        self.step = 0

    @property
    def seconds(self) -> float:
        """Wall time of the run so far."""
        return self._spent + time.monotonic() - self._since

    @property
    def progress(self) -> float:
        """How much of the run is over, 0..1: by steps or by the clock, whichever is ahead."""
        return min(1.0, max(self.step / self._steps, self.seconds / self._budget))

    def end_in(self, seconds: float) -> None:
        """Ends the run by then at the latest."""
        self._budget = min(self._budget, self.seconds + max(seconds, 0.0))

    def state(self) -> dict[str, Any]:
        """What `restore` needs."""
        return {"step": self.step, "seconds": self.seconds}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        self.step = state["step"]
        self._spent = state["seconds"]
        self._since = time.monotonic()


class Average(Generic[M]):
    """An exponential moving average of a model's parameters, with a quick start."""

    def __init__(self, model: M, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, model: M, step: int) -> None:
        """Moves the average towards the parameters that the model has after `step` steps."""
        weight = 1 - min(self._decay, (1 + step) / (10 + step))
        ours: list[Tensor] = list(self.model.parameters())
        theirs: list[Tensor] = list(model.parameters())
        torch._foreach_lerp_(ours, theirs, weight)
        for mine, current in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(current)


def build_optimisers(
    module: nn.Module,
    options: Optimiser,
    matrices: Sequence[nn.Parameter] = (),
    slow: nn.Module | None = None,
    slow_rate: float = 1.0,
) -> list[torch.optim.Optimizer]:
    """AdamW over what is trainable, or Muon over some matrices and AdamW over the rest.

    Args:
        module: what is trained.
        options: of the recipe; only matrices and kernels decay.
        matrices: of `module`, inside the network; they go to Muon if the recipe asks for it.
        slow: a part of `module`, without such matrices, that has been trained before.
        slow_rate: factor of the learning rate for it.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    matrices = list(matrices) if options.muon else []
    before = [] if slow is None else [p for p in slow.parameters() if p.requires_grad]
    taken = {id(p) for p in (*matrices, *before)}
    others = [p for p in parameters if id(p) not in taken]
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if before:
        groups.append({"params": before, "weight_decay": 0.0, "factor": slow_rate})
    # On a CPU it is no faster, and a tokenizer's resumed run would differ in the last bit.
    fused = all(p.is_cuda for p in parameters)
    adamw = torch.optim.AdamW(groups, lr=options.learning_rate, betas=options.betas, fused=fused)
    if not matrices:
        return [adamw]
    # Scaled so that its steps are as long as AdamW's and one learning rate serves both.
    return [adamw, Muon(matrices, options.learning_rate, options.weight_decay)]


def learning_rate(options: Optimiser, clock: Clock) -> float:
    """Warm-up by steps, cosine decay by progress."""
    cosine = 0.5 * (1 + math.cos(math.pi * clock.progress))
    decayed = options.final + (1 - options.final) * cosine
    return options.learning_rate * decayed * min(1.0, (clock.step + 1) / max(1, options.warmup))


def update(
    optimisers: list[torch.optim.Optimizer],
    parameters: list[nn.Parameter],
    rate: float,
    clip: float,
) -> Tensor:
    """One step along the clipped gradients, which it then forgets; returns their norm, a scalar."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, clip)
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return norm


def derived_seed(seed: int, *stream: int) -> int:
    """A seed that depends on nothing but another seed and the numbers of a stream."""
    state = seed
    for number in stream:
        # The multiplier and increment of Knuth's MMIX generator.
        state = (state * 6364136223846793005 + number + 1442695040888963407) % 2**63
    return state


def random_numbers(seed: int, *stream: int) -> torch.Generator:
    """Random numbers that depend on nothing but the seed and the numbers of the stream."""
    return torch.Generator().manual_seed(derived_seed(seed, *stream))


def save_checkpoint(directory: Path, state: dict[str, Any]) -> None:
    """Writes nested dicts and lists of tensors and numbers as one file, beside and then moved."""
    tensors: dict[str, Tensor] = {}
    skeleton = _split(state, "", tensors)
    with written_beside(directory / CHECKPOINT) as part:
        save_file(tensors, part, metadata={"state": json.dumps(skeleton)})


def has_checkpoint(directory: Path) -> bool:
    """Whether a run in this folder has something to go on from."""
    return (directory / CHECKPOINT).exists()


def load_checkpoint(directory: Path) -> dict[str, Any] | None:
    """What `save_checkpoint` wrote, or None where there is nothing yet."""
    if not has_checkpoint(directory):
        return None
    with _opened(directory / CHECKPOINT) as (skeleton, file):
        return dict(_join(skeleton, file))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The skeleton of a checkpoint and its open file, from which only entries may be read here.

    Raises:
        ValueError: it is damaged, or no checkpoint of a run.
    """
    check_regular(path, str(path))
    try:
        with safe_open(path, "pt") as file:
            yield json.loads(file.metadata()["state"]), file
    except (SafetensorError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} must be a whole checkpoint, got {type(error).__name__}; "
            "move it away to begin anew"
        ) from error


def check_resumed(directory: Path, recipe: Recipe, sources: Mapping[str, str]) -> None:
    """Makes sure that the checkpoint in a folder, if there is one, is of this very run.

    Only the entries that it compares are read, so that a wrong folder is refused before any work.

    Args:
        directory: folder of the run.
        recipe: of the run; what is in `FREE` may differ.
        sources: fingerprints of the weights that the run reads beside its data, by the option that
            names them; what an older checkpoint does not tell of them is not compared.

    Raises:
        ValueError: the checkpoint is of another recipe, or of other weights.
    """
    stored = _read_entries(directory, ("recipe", *sources))
    if stored is None:
        return
    if not isinstance(stored.get("recipe"), dict):
        raise ValueError(f"{directory / CHECKPOINT} must tell the recipe of its run, got none")
    rule = f"{directory} must be a new folder: its checkpoint was trained with"
    for key, before, now in _changes(stored["recipe"], recipe):
        if key.partition(".")[0] not in FREE:
            raise ValueError(f"{rule} {key} {before!r}, got {now!r}")
    for key, now in sources.items():
        before = stored.get(key, now)
        if before != now:
            raise ValueError(
                f"{rule} other weights of the {key}, of fingerprint {before[:12]}, got {now[:12]}"
            )


def _read_entries(directory: Path, names: Sequence[str]) -> dict[str, Any] | None:
    """Some entries of a checkpoint, those that it has; None where there is no checkpoint."""
    if not has_checkpoint(directory):
        return None
    with _opened(directory / CHECKPOINT) as (skeleton, file):
        entries = dict(skeleton["dict"])
        return {name: _join(entries[name], file) for name in names if name in entries}


def _changes(
    stored: dict[str, Any], options: Any, where: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Where a dataclass differs from what a checkpoint tells of it: key, stored and given value.

    An option that an older checkpoint does not tell had its default.
    """
    for field in dataclasses.fields(options):
        key, now = where + field.name, getattr(options, field.name)
        before = stored.get(field.name, _default(field, now))
        if dataclasses.is_dataclass(now) and isinstance(before, dict):
            yield from _changes(before, now, f"{key}.")
        elif _plain(before) != _plain(now):
            yield key, before, now


def _default(field: dataclasses.Field[Any], otherwise: Any) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return otherwise


def _plain(value: Any) -> Any:
    """A value as a checkpoint gives it back, which has lists for tuples."""
    return json.loads(json.dumps(value, default=dataclasses.asdict))


def _split(value: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    """Replaces every tensor by its key, and lists and dicts by tagged ones that JSON keeps."""
    if isinstance(value, Tensor):
        tensors[key] = value.detach().cpu().contiguous().clone()
        return {"tensor": key}
    if isinstance(value, dict):
        return {"dict": [[k, _split(v, f"{key}/{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_split(v, f"{key}/{i}", tensors) for i, v in enumerate(value)]}
    return {"value": value}


def _join(skeleton: dict[str, Any], file: Any) -> Any:
    ((tag, content),) = skeleton.items()
    if tag == "tensor":
        return file.get_tensor(content)
    if tag == "dict":
        return {k: _join(v, file) for k, v in content}
    if tag == "list":
        return [_join(v, file) for v in content]
    return content


def progress_state(
    recipe: Recipe, clock: Clock, average: Average[Any], optimisers: list[torch.optim.Optimizer]
) -> dict[str, Any]:
    """What every checkpoint holds beside the weights that learn."""
    return {
        "recipe": dataclasses.asdict(recipe),
        "clock": clock.state(),
        "average": average.model.state_dict(),
        "optimisers": [optimiser.state_dict() for optimiser in optimisers],
    }


def restore_progress(
    state: dict[str, Any],
    clock: Clock,
    average: Average[Any],
    optimisers: list[torch.optim.Optimizer],
) -> None:
    """Goes on from what `progress_state` gave."""
    clock.restore(state["clock"])
    average.model.load_state_dict(state["average"])
    for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
        optimiser.load_state_dict(saved)


class Log:
    """A CSV file of one row per logged step; rows after the resumed step are dropped."""

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        rows = _read_rows(path)
        self._rows = [row for row in rows if int(row["step"]) <= step]
        if len(self._rows) < len(rows):
            self._rewrite(list(rows[0]))

    def write(self, row: dict[str, Any]) -> None:
        """Appends a row; a new column makes the file be written again."""
        text = {k: f"{v:.6g}" if isinstance(v, float) else str(v) for k, v in row.items()}
        columns = list(self._rows[0]) if self._rows else []
        self._rows.append(text)
        if set(text) - set(columns):
            columns += [k for k in text if k not in columns]
            self._rows[0] = {k: self._rows[0].get(k, "") for k in columns}
            self._rewrite(columns)
        else:
            self._append(columns, text)

    def _append(self, columns: list[str], text: dict[str, str]) -> None:
        whole = self._path.stat().st_size
        with naming(self._path):
            try:
                with self._path.open("a", newline="") as file:
                    csv.DictWriter(file, columns, restval="").writerow(text)
            except OSError:
                os.truncate(self._path, whole)  # half a row would end the resumed run
                raise

    def _rewrite(self, columns: list[str]) -> None:
        with written_beside(self._path) as part, part.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(self._rows)


def _read_rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    check_regular(path, str(path))
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be a table with a column step: {error}") from None
    for row in rows:
        if None in row or not str(row.get("step")).isdecimal():
            raise ValueError(f"{path} must tell the step in every row, got {shown(row)}")
    return rows


def write_json(path: Path, value: Any) -> None:
    """Writes JSON beside its place and moves it there."""
    with written_beside(path) as part:
        part.write_text(json.dumps(value, indent=2) + "\n")
