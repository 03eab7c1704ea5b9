"""What several commands do: devices, checks of where they write; knows no command."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")


def resolve_device(device: str) -> "torch.device":
    """Returns the device to compute on.

    Raises:
        ValueError: the name is not a device, or this machine has no such device.
    """
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps, got {device!r}") from None
    present = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }
    if (wanted.index or 0) >= present.get(wanted.type, 0):
        raise ValueError(f"device must be present on this machine, got {device!r}")
    return wanted


def resolve_dtype(dtype: str, device: "torch.device") -> "torch.dtype":
    """Returns the number format; bfloat16 only by choice on a CPU, where it is seldom faster.

    Raises:
        ValueError: the device does not compute in it.
    """
    import torch

    if dtype == "auto":
        dtype = "bfloat16" if device.type == "cuda" else "float32"
    if dtype == "int8" and device.type != "cpu":
        raise ValueError(f"dtype int8 must be used with device cpu, got {device}")
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}[dtype]


def floating_dtype(dtype: str, device: "torch.device") -> "torch.dtype":
    """The same for what has no form in 8 bits.

    Raises:
        ValueError: 8 bits are asked for.
    """
    if dtype == "int8":
        raise ValueError("dtype must be float32 or bfloat16 here, got int8")
    return resolve_dtype(dtype, device)


def set_threads(threads: int | None) -> None:
    """Limits the CPU threads of this process when a number is given."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def aside(work: Callable[[], Result]) -> Result:
    """Runs work in a thread that ends with it, and returns its result or raises its error.

    What has computed in the main thread keeps OpenMP workers there, which slow down those of a
    thread that draws later: see `app/device_thread.py`.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def check_output_file(path: Path, suffix: str) -> None:
    """Makes sure, before any work, that a file can be written.

    Raises:
        ValueError: the name does not end in `suffix`, or is too long for the file system.
        OSError: the folder does not exist or cannot be written, or the path is a folder.
    """
    if path.suffix.lower() != suffix:
        raise ValueError(f"output must end in {suffix}, got {str(path)!r}")
    _check_length(path)
    if path.is_dir():
        raise IsADirectoryError(f"output must be a file, got the folder {str(path)!r}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"output must lie in an existing folder, got {str(path)!r}")
    _check_writable(path.parent, path)


def _check_length(path: Path) -> None:
    if not path.parent.is_dir() or not hasattr(os, "pathconf"):  # which Windows lacks
        return
    most, length = os.pathconf(path.parent, "PC_NAME_MAX"), len(os.fsencode(path.name))
    if 0 <= most < length:  # below 0 there is no limit
        raise ValueError(
            f"output must have a name of at most {most} bytes, got {length} in {str(path)!r}"
        )


def check_output_folder(path: Path) -> None:
    """Makes sure, before any work, that a folder exists or can be made, and can be written.

    Raises:
        OSError: it cannot, or something that is no folder has that name.
    """
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise NotADirectoryError(f"output must be a folder, got {str(path)!r}")
    _check_writable(existing, path)


def _check_writable(folder: Path, output: Path) -> None:
    try:
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(f"output {str(output)!r} cannot be written: {reason}") from None
