"""Draws the pictures that an evaluation needs into a folder, and goes on where it was killed.

Knows pipelines and the slot engine; knows nothing about what is measured on the pictures. Picture i
shows subject i modulo their number with the first seed plus i, so a folder has no state besides its
plan and its pictures: what is missing or cut short is drawn, and the slots make it the same picture
as ever.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from visual_ar.accel.loop.contract import Decoding
from visual_ar.data.dataset import write_file
from visual_ar.engine import Engine
from visual_ar.evaluation import archive, machine
from visual_ar.evaluation.pictures import SUFFIXES, of_files
from visual_ar.evaluation.result import document, versions
from visual_ar.evaluation.workload import DEFAULTS, Options, fingerprint
from visual_ar.folder import is_hidden, list_files
from visual_ar.job import Job, Picture
from visual_ar.method_options import name_of
from visual_ar.picture_file import is_whole_png
from visual_ar.pipeline import VisualARPipeline
from visual_ar.plain_numbers import whole
from visual_ar.png import write_png
from visual_ar.request import Request
from visual_ar.write_beside import clear_parts

PLAN = "plan.json"
ARCHIVE = "samples.npz"
MOST = 1_000_000
_SHOWN = 200  # characters of a value in a message

Progress = Callable[[int, int], None]


def sample(
    pipe: VisualARPipeline,
    name: str,
    folder: Path,
    count: int,
    subjects: Sequence[str] | None = None,
    seed: int = 0,
    options: Options = DEFAULTS,
    slots: int = 8,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Draws pictures into a folder; the same call goes on after a kill, with no gap and none twice.

    The folder holds `PLAN`, one PNG a picture and, once all are there, `ARCHIVE` as ADM's evaluator
    reads it (``arr_0``, for classes also their numbers ``arr_1``). One process a folder at a time.
    In fp32 on one device the pictures are those of a run that was never interrupted.

    Args:
        pipe: draws, with its own method.
        name: of the model, for the result.
        folder: is made when it does not exist; otherwise empty, or of the same call.
        count: pictures N, in 1..`MOST`.
        subjects: prompts or classes, which pictures take in turn; None is every class, so that an N
            that is a multiple of their number is exactly balanced.
        seed: of the first picture; the next one has the next.
        options: of sampling.
        slots: pictures decoded at a time, at least 1.
        progress: called as progress(done, count) after every picture.

    Returns:
        a result, see `evaluation.result`.

    Raises:
        ValueError: an argument breaks a rule, or the folder holds something else.
        OSError: the folder cannot be written.
    """
    count = whole("count", count, least=1)
    if count > MOST:
        raise ValueError(
            f"count must be at most {MOST}, which file names have digits for, got {count}"
        )
    seed, slots = whole("seed", seed, least=0), whole("slots", slots, least=1)
    chosen = _subjects(pipe, subjects)
    request = _request(pipe, chosen, list(range(len(chosen))), options)  # refuses a bad subject
    sampling = options.filled(pipe)
    schedule = sampling.pop("guidance_schedule")
    asked = {
        "count": count,
        "seed": seed,
        "kind": pipe.conditioner.key,
        "subjects": chosen,
        "weights": fingerprint(pipe),
        "sampling": sampling,
        "guidance_schedule": schedule,
        "method": _name(pipe.scheduler),
        "options": _json_able({k: v for k, v in pipe.scheduler.config.items() if k[0] != "_"}),
        "slots": slots,
        "grid": list(request.layout.grid),
        **_arithmetic(pipe),
    }
    plan = _begun(folder, asked)
    if plan is None:
        settled = _settle(pipe, chosen[0], slots, None)
        plan = {**asked, "model": name, "window": settled.config.get("window")}
        plan = {**plan, "versions": versions(), "commit": machine.commit()}
        write_file(folder / PLAN, lambda file: file.write(_text(plan)))
    else:
        settled = _settle(pipe, chosen[0], slots, plan["window"])
    files = [_picture(folder, index) for index in range(count)]
    missing = [index for index, file in enumerate(files) if not is_whole_png(file)]
    with _method(pipe, settled):
        passes = _draw(pipe, folder, plan, missing, options, progress)
    classes = [number for number in request.conditions if isinstance(number, int)]
    described = archive.write(of_files(files, str(folder)), folder / ARCHIVE, classes or None)
    return _result(plan, described, len(missing), passes)


def read_plan(folder: Path) -> dict[str, Any]:
    """The plan of a folder that `sample` wrote, and every picture of it.

    Raises:
        FileNotFoundError: it is no such folder.
        ValueError: the plan is damaged, or pictures are missing.
    """
    if not (folder / PLAN).is_file():
        raise FileNotFoundError(f"samples must hold {PLAN} of evaluate sample, got {folder}")
    plan = _parse(folder)
    gaps = [index for index in range(plan["count"]) if not _picture(folder, index).is_file()]
    if gaps:
        raise ValueError(
            f"samples must be complete, got {plan['count'] - len(gaps)} of {plan['count']} "
            f"pictures in {folder}; run evaluate sample again"
        )
    return plan


def origin(folder: Path) -> dict[str, Any] | None:
    """How `sample` made the pictures of a folder, all but the subjects; None if it did not.

    Raises:
        ValueError: as `read_plan`.
    """
    if not (folder / PLAN).is_file():
        return None
    return {key: value for key, value in read_plan(folder).items() if key != "subjects"}


def read_prompts(folder: Path) -> list[str]:
    """What every picture of such a folder was to show, in order; raises as `read_plan`."""
    plan = read_plan(folder)
    subjects = plan["subjects"]
    return [subjects[index % len(subjects)] for index in range(plan["count"])]


def _subjects(pipe: VisualARPipeline, subjects: Sequence[str] | None) -> list[str]:
    if subjects is not None:
        if not subjects:
            raise ValueError("subjects must name at least one picture, got none")
        return list(subjects)
    known = pipe.conditioner.known
    if not known:
        raise ValueError("subjects must be given for this text-conditional model, got None")
    return known


def _request(
    pipe: VisualARPipeline, subjects: list[str], seeds: list[int], options: Options
) -> Request:
    call: dict[str, Any] = pipe.conditioner.asks(subjects)
    return pipe.check_inputs(**call, seeds=seeds, **options._asdict())


def _arithmetic(pipe: VisualARPipeline) -> dict[str, Any]:
    """What decides how sums round, and with it a picture here and there."""
    device = pipe.model.device
    return {
        "device": machine.describe(device, pipe.dtype)["device_name"],
        "dtype": str(pipe.number_format).removeprefix("torch."),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "torch": torch.__version__,
    }


def _begun(folder: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """The plan of the run that began in a folder, or None when nothing did.

    Raises:
        ValueError: another run began there, or the folder holds something else.
    """
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise NotADirectoryError(f"output must be a folder, got {folder}")
    clear_parts(folder)
    if not (folder / PLAN).is_file():
        if any(not is_hidden(path.name) for path in folder.iterdir()):
            raise ValueError(f"output must be empty or hold {PLAN}, got {folder}")
        return None
    plan = _parse(folder)
    for key, value in asked.items():
        if plan.get(key) != value:
            raise ValueError(
                f"{key} must be that of the run that began in {folder}, "
                f"{_short(plan.get(key))}, got {_short(value)}"
            )
    known = {_picture(folder, index) for index in range(asked["count"])}
    for file in list_files(folder, SUFFIXES).files:
        if file not in known:
            raise ValueError(f"output must hold no other pictures, got {file}")
    return plan


def _parse(folder: Path) -> dict[str, Any]:
    try:
        plan = json.loads((folder / PLAN).read_bytes())
    except ValueError as error:
        raise ValueError(f"{folder / PLAN} must be JSON, got {error}") from None
    if not isinstance(plan, dict) or not isinstance(plan.get("count"), int):
        raise ValueError(f"{folder / PLAN} must be written by evaluate sample, got something else")
    return plan


def _name(method: Decoding) -> str:
    """The command line's name of a method; of one that it does not know, the class's."""
    return name_of(method) or type(method).__name__


@torch.inference_mode()
def _settle(pipe: VisualARPipeline, subject: str, slots: int, window: int | None) -> Decoding:
    """The method with its window as a number: a run that goes on must not choose another one."""
    method = pipe.scheduler
    if method.config.get("window") != "auto":
        return method
    if window is None:
        request = _request(pipe, [subject] * slots, list(range(slots)), DEFAULTS)
        condition = pipe.encode_condition(request, guided=True)
        window = method.choose_window(pipe.cast(request.layout), condition, request.sampling)
    return type(method).from_config(method.config, window=window)


@contextmanager
def _method(pipe: VisualARPipeline, method: Decoding) -> Iterator[None]:
    """The pipeline with another method, for a while."""
    own = pipe.scheduler
    pipe.scheduler = method
    try:
        yield
    finally:
        pipe.scheduler = own


def _draw(
    pipe: VisualARPipeline,
    folder: Path,
    plan: dict[str, Any],
    missing: list[int],
    options: Options,
    progress: Progress | None,
) -> int:
    """Draws the pictures of these numbers, as many in flight as the engine holds; passes made."""
    if not missing:
        return 0
    count, subjects = plan["count"], plan["subjects"]
    done = count - len(missing)
    ended: SimpleQueue[tuple[int, Picture | BaseException]] = SimpleQueue()
    waiting = deque(missing)
    jobs: dict[int, Job] = {}

    def end(index: int, event: Picture | BaseException) -> None:
        ended.put((index, event))

    with Engine(pipe, plan["slots"], queue=plan["slots"]) as engine:
        try:
            while waiting or jobs:
                room = min(len(waiting), engine.capacity - len(jobs))
                if room:  # at once, so that no slot passes by while the next is being checked
                    new = [waiting.popleft() for _ in range(room)]
                    chosen = [subjects[index % len(subjects)] for index in new]
                    seeds = [plan["seed"] + index for index in new]
                    made = engine.submit(_request(pipe, chosen, seeds, options))
                    for index, job in zip(new, made, strict=True):
                        jobs[index] = job
                        job.listen(partial(end, index))
                index, event = ended.get()
                del jobs[index]
                if isinstance(event, BaseException):
                    raise event
                write_png(event.image(), _picture(folder, index), _recipe(plan, index))
                done += 1
                if progress is not None:
                    progress(done, count)
        finally:
            for job in jobs.values():
                job.cancel()
        return engine.stats.passes


def _picture(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.png"


def _recipe(plan: dict[str, Any], index: int) -> dict[str, Any]:
    """What a picture says about how it was made, in the words of `visual-ar generate`."""
    sampling = plan["sampling"]
    options = {k: v for k, v in plan["options"].items() if k != "window"}
    window = {} if plan["window"] is None else {"window": plan["window"]}
    return {
        "model": plan["model"],
        plan["kind"]: plan["subjects"][index % len(plan["subjects"])],
        "seed": plan["seed"] + index,
        "guidance": sampling["guidance_scale"],
        "guidance_schedule": plan["guidance_schedule"],
        **{key: sampling[key] for key in ("temperature", "top_k", "top_p")},
        "method": plan["method"],
        **options,
        **window,
        "slots": plan["slots"],
        "dtype": plan["dtype"],
    }


def _result(
    plan: dict[str, Any], described: dict[str, Any], drawn: int, passes: int
) -> dict[str, Any]:
    names, count = len(plan["subjects"]), plan["count"]
    each = {"fewest": count // names, "most": -(-count // names)}
    return document(
        "sample",
        protocol={"pictures": count, "kind": plan["kind"], "of_each_subject": each},
        inputs={"plan": plan, "pictures": described},
        results={"drawn_now": drawn, "passes_now": passes},
        seeds={"first": plan["seed"], "last": plan["seed"] + count - 1},
    )


def _json_able(value: dict[str, Any]) -> dict[str, Any]:
    """The value as it comes back from a file, for comparing."""
    return json.loads(json.dumps(value, default=str))


def _text(plan: dict[str, Any]) -> bytes:
    return json.dumps(plan, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
