"""Windows that were measured on this machine: what each is for, why it was chosen, where they lie.

A window that is kept is used again for ever, since another window draws another picture of a seed.
So it is kept for exactly what it was measured with: processor and threads, weights, method, options
of the method and of sampling. Knows nothing about how windows are measured or how methods draft.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import ConfigMixin
from torch import Tensor, nn

from visual_ar.accel.loop.contract import Decoding
from visual_ar.cast import Cast
from visual_ar.conditioning.condition import Condition
from visual_ar.processor import processor_name
from visual_ar.sampling import Sampling
from visual_ar.store import store_folder
from visual_ar.write_beside import written_beside

_SAMPLE = 16  # values of every parameter that tell weights apart; all of them would cost a pass
_LONGEST = 4_000_000  # bytes of the store, some ten thousand windows


class Trial(NamedTuple):
    """What a window did when it was tried.

    Attributes:
        tokens: that a pass committed, over all pictures.
        seconds: of a pass.
    """

    tokens: float
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


class Measured(NamedTuple):
    """A window and why.

    Attributes:
        window: ranks that a pass predicts.
        trials: of the windows that were tried.
    """

    window: int
    trials: dict[int, Trial]


def store_path() -> Path:
    """Where measured windows are kept."""
    return store_folder() / "windows.json"


def circumstances(
    method: Decoding, cast: Cast, condition: Condition, sampling: Sampling
) -> dict[str, Any]:
    """All that a window is measured for, as JSON holds it."""
    options = {k: v for k, v in method.config.items() if not k.startswith("_") and k != "window"}
    device = cast.model.device
    cuda = device.type == "cuda"
    partners = {"draft_model": cast.draft_model, "draft_head": cast.draft_head}
    found = {
        "device": torch.cuda.get_device_name(device) if cuda else processor_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "method": type(method).__name__,
        "options": options,
        "weights": weights_digest(cast.model),
        **{name: weights_digest(one) for name, one in partners.items() if one is not None},
        "dtype": str(cast.model.dtype).removeprefix("torch."),
        "grid": list(cast.layout.grid),
        "rows": len(condition.prefix),
        "sampling": _described(sampling),
    }
    return json.loads(json.dumps(found, default=str))


def find(wanted: Mapping[str, Any], candidates: Sequence[int]) -> int | None:
    """The window that was measured in these circumstances, if one of the candidates was."""
    window = read_windows().get(_key(wanted), {}).get("window")
    return window if window in candidates else None


def keep(wanted: Mapping[str, Any], candidates: Sequence[int], measured: Measured) -> int:
    """Keeps a window, and returns it, or the one that another program kept meanwhile.

    A store that cannot be written costs a measurement, no more.
    """
    other = find(wanted, candidates)
    if other is not None:
        return other
    tried = {
        str(window): {"tokens": round(one.tokens, 3), "milliseconds": round(one.seconds * 1e3, 6)}
        for window, one in measured.trials.items()
    }
    entry = {**wanted, "window": measured.window, "tried": tried}
    _write(read_windows() | {_key(wanted): entry})
    return measured.window


def forget_windows(model: nn.Module) -> int:
    """Forgets the windows of a model, so that they are measured again. Returns how many."""
    known, digest = read_windows(), weights_digest(model)
    left = {key: entry for key, entry in known.items() if entry.get("weights") != digest}
    if len(left) < len(known):
        _write(left)
    return len(known) - len(left)


def read_windows() -> dict[str, dict[str, Any]]:
    """All that is kept, by the key of what it is for; damaged entries are left out."""
    try:
        if store_path().stat().st_size > _LONGEST:
            return {}
        stored = json.loads(store_path().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(stored, dict):
        return {}
    return {key: entry for key, entry in stored.items() if _is_whole(key, entry)}


def weights_digest(model: nn.Module) -> str:
    """Tells the weights of a model from others by some values of every parameter."""
    digest = hashlib.sha256()
    options = model.config if isinstance(model, ConfigMixin) else {}
    public = {key: value for key, value in options.items() if not key.startswith("_")}
    digest.update(json.dumps(public, sort_keys=True, default=str).encode())
    parameters = list(model.parameters())
    for shape in (list(parameter.shape) for parameter in parameters):
        digest.update(str(shape).encode())
    if parameters:
        sample = torch.cat([_some(parameter) for parameter in parameters])
        digest.update(sample.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _some(parameter: Tensor) -> Tensor:
    return parameter.detach().flatten()[:_SAMPLE].float()


def _described(sampling: Sampling) -> dict[str, list[Any]]:
    """The options that occur, each once. Seeds are none: a window is for all of them."""
    options = sampling._asdict()
    del options["seed"]
    found = {name: value.cpu().unique(dim=0).tolist() for name, value in options.items()}
    # The same at every rank, as nearly always, is told once.
    scales = [
        row[0] if isinstance(row, list) and len(set(row)) == 1 else row for row in found["guidance"]
    ]
    return {**found, "guidance": scales}


def _key(wanted: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:16]


def _is_whole(key: str, entry: Any) -> bool:
    """Whether an entry is what `keep` wrote: its circumstances then give its key."""
    if not isinstance(entry, dict) or not isinstance(entry.get("tried"), dict):
        return False
    if _key({k: v for k, v in entry.items() if k not in ("window", "tried")}) != key:
        return False
    numbers = [one.get("milliseconds") for one in entry["tried"].values() if isinstance(one, dict)]
    whole = len(numbers) == len(entry["tried"]) and all(isinstance(n, float) for n in numbers)
    return whole and str(entry.get("window")) in entry["tried"]


def _write(windows: Mapping[str, Any]) -> None:
    path = store_path()
    with suppress(OSError):  # it is then measured again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_beside(path) as part:
            part.write_text(json.dumps(windows, indent=1, sort_keys=True), encoding="utf-8")
