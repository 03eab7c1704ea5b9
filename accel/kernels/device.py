"""Compiles `verify.cu` for a GPU and a rule at first use, keeps it on disk, and launches it.

Knows CUDA's driver and its run-time compiler through cuda-bindings, which torch depends on; knows
nothing about who decides to use it. Nothing here is imported before a GPU asks for it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from visual_ar.accel.kernels.reference import COUPLINGS, Verdict
from visual_ar.accel.rules.rule import KernelForm
from visual_ar.sampling import Sampling
from visual_ar.store import store_folder
from visual_ar.write_beside import written_beside

SOURCE = Path(__file__).with_name("verify.cu")
HEADERS = tuple(
    SOURCE.with_name(f"{name}.cuh") for name in ("machine", "numbers", "select", "rules")
)
KERNELS = {
    torch.float32: "judge_float32",
    torch.float16: "judge_float16",
    torch.bfloat16: "judge_bfloat16",
}

_THREADS = 1024
_DRAWS = 3
_OPTIONS = ("--std=c++17", "--fmad=false")  # without fusing, results are those of the host build
_POINTERS = (
    *("conditional", "unconditional", "guidance", "temperature", "top_k", "top_p"),
    *("drafts", "q", "forced", "numbers", "seed", "rank", "attempt", "codes"),
    *("laws", "tokens", "run", "flags", "initial", "draws"),
)
_STRIDES = (
    *("conditional_picture", "conditional_rank"),
    *("unconditional_picture", "unconditional_rank"),
)


class Arguments(ctypes.Structure):
    """What a launch is given, field by field as in `rules.cuh`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_longlong) for name in _STRIDES),
        ("options", ctypes.c_float * 2),
        *((name, ctypes.c_int) for name in ("width", "size")),
        *((name, ctypes.c_int) for name in ("pictures", "window", "vocabulary")),
        *((name, ctypes.c_int) for name in ("coupling", "on_chip")),
    )


class Launch(NamedTuple):
    """A filled structure, the outputs it points to, and what else must outlive the launch."""

    arguments: Arguments
    verdict: Verdict
    alive: list[Tensor]


def pack(
    conditional: Tensor,
    unconditional: Tensor | None,
    sampling: Sampling,
    drafts: Tensor | None,
    q: Tensor | None,
    rank: Tensor,
    attempt: Tensor,
    rule: KernelForm,
    coupling: str,
    forced: Tensor | None,
    numbers: Tensor | None,
    on_chip: bool,
) -> Launch:
    """Allocates the outputs and fills the structure. Tensors as of `reference.verify`, checked.

    Args:
        rule: the acceptance rule.
        coupling: one of `reference.COUPLINGS`.
        on_chip: whether a row of V fp32 numbers fits into shared memory.
    """
    batch, window, vocabulary = conditional.shape

    def new(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=conditional.device)

    verdict = Verdict(
        run=new(torch.int64, batch),
        tokens=new(torch.int64, batch, window),
        laws=new(torch.float32, batch, window, vocabulary),
        flags=new(torch.int32, batch, window),
        initial=new(torch.float32, batch, window),
    )
    logits = {"conditional": conditional, "unconditional": unconditional}
    rest = {
        **sampling._asdict(),
        "drafts": drafts,
        "q": q,
        "forced": forced,
        "numbers": numbers,
        "rank": rank,
        "attempt": attempt,
        "codes": rule.codes,
        **verdict._asdict(),
        "draws": new(torch.int32, batch, window, _DRAWS),
    }
    tensors = {
        # A slice of a larger code book is read where it lies.
        **{k: t if t is None or t.stride(-1) == 1 else t.contiguous() for k, t in logits.items()},
        **{k: t if t is None else t.contiguous() for k, t in rest.items()},
    }
    arguments = Arguments(
        **{name: t.data_ptr() for name, t in tensors.items() if t is not None},
        options=rule.options,
        width=0 if rule.codes is None else rule.codes.shape[1],
        size=rule.size,
        pictures=batch,
        window=window,
        vocabulary=vocabulary,
        coupling=COUPLINGS.index(coupling),
        on_chip=on_chip,
    )
    for name in logits:
        tensor = tensors[name]
        if tensor is not None:
            setattr(arguments, f"{name}_picture", tensor.stride(0))
            setattr(arguments, f"{name}_rank", tensor.stride(1))
    return Launch(arguments, verdict, [t for t in tensors.values() if t is not None])


def verify(
    conditional: Tensor,
    unconditional: Tensor | None,
    sampling: Sampling,
    drafts: Tensor | None,
    q: Tensor | None,
    rank: Tensor,
    attempt: Tensor,
    rule: KernelForm,
    coupling: str,
    forced: Tensor | None,
    numbers: Tensor | None,
) -> Verdict:
    """`reference.verify` on the current stream of a GPU. Arguments as of `pack`."""
    batch, window, vocabulary = conditional.shape
    index = _index(conditional.device)
    module = load(index, rule.structure)
    row = vocabulary * ctypes.sizeof(ctypes.c_float)
    on_chip = row <= module.row_bytes
    options = (rule, coupling, forced, numbers, on_chip)
    launch = pack(conditional, unconditional, sampling, drafts, q, rank, attempt, *options)
    with torch.cuda.device(index):
        shared = row if on_chip else 0
        judge = module.functions[KERNELS[conditional.dtype]]
        _launch(judge, batch * window, shared, launch.arguments)
        _launch(module.functions["settle"], batch, 0, launch.arguments)
    return launch.verdict


class Module(NamedTuple):
    """The kernels for one rule on one device.

    Attributes:
        functions: by name.
        row_bytes: shared memory that is free for a row.
    """

    functions: dict[str, Any]
    row_bytes: int


@functools.cache
def load(index: int, structure: str = "Exact") -> Module:
    """The kernels for a rule on a device, compiled unless they are on disk.

    Args:
        index: of the device.
        structure: of `rules.cuh`.

    Raises:
        ImportError: cuda-bindings is missing.
        RuntimeError: the compiler or the driver refuses.
    """
    from cuda.bindings import driver

    with torch.cuda.device(index):
        torch.cuda.current_stream().synchronize()  # makes the device's context the current one
        properties: Any = torch.cuda.get_device_properties(index)
        binary = binary_for(f"sm_{properties.major}{properties.minor}", structure)
        (module,) = _checked(driver.cuModuleLoadData(binary))
        functions = {}
        row_bytes = properties.shared_memory_per_block_optin
        attributes = driver.CUfunction_attribute
        for name in KERNELS.values():
            (function,) = _checked(driver.cuModuleGetFunction(module, name.encode()))
            static = attributes.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES
            (used,) = _checked(driver.cuFuncGetAttribute(static, function))
            row_bytes = min(row_bytes, properties.shared_memory_per_block_optin - used)
            functions[name] = function
        dynamic = attributes.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        for function in functions.values():
            _checked(driver.cuFuncSetAttribute(function, dynamic, row_bytes))
        (functions["settle"],) = _checked(driver.cuModuleGetFunction(module, b"settle"))
    return Module(functions, row_bytes)


def binary_for(architecture: str, structure: str = "Exact") -> bytes:
    """The compiled kernels, from disk if these sources were compiled by this compiler before.

    Args:
        architecture: such as "sm_90".
        structure: of `rules.cuh`, the rule they are compiled for.
    """
    from cuda.bindings import nvrtc

    version = _checked(nvrtc.nvrtcVersion())
    source = SOURCE.read_bytes()
    headers = b"".join(header.read_bytes() for header in HEADERS)
    key = repr((architecture, structure, version, _OPTIONS)).encode() + headers + source
    path = folder() / f"verify-{architecture}-{hashlib.sha256(key).hexdigest()[:16]}.cubin"
    try:
        return path.read_bytes()
    except OSError:
        binary = compile_for(source, architecture, structure)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_beside(path) as part:
            part.write_bytes(binary)
    except OSError:
        pass  # a folder that cannot be written costs a compilation a process, no more
    return binary


def folder() -> Path:
    """Where compiled kernels are kept."""
    return store_folder() / "kernels"


def compile_for(source: bytes, architecture: str, structure: str = "Exact") -> bytes:
    """Compiles with NVRTC, which needs no GPU and is handed the headers by name.

    Raises:
        RuntimeError: the compiler refuses; its log is the message.
    """
    from cuda.bindings import nvrtc

    texts = [header.read_bytes() for header in HEADERS]
    names = [header.name.encode() for header in HEADERS]
    (program,) = _checked(
        nvrtc.nvrtcCreateProgram(source, SOURCE.name.encode(), len(texts), texts, names)
    )
    words = (f"--gpu-architecture={architecture}", f"--define-macro=RULE={structure}", *_OPTIONS)
    options = [word.encode() for word in words]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if status.value:
        (size,) = _checked(nvrtc.nvrtcGetProgramLogSize(program))
        log = b" " * size
        _checked(nvrtc.nvrtcGetProgramLog(program, log))
        raise RuntimeError(f"{SOURCE.name} does not compile for {architecture}: {log.decode()}")
    (size,) = _checked(nvrtc.nvrtcGetCUBINSize(program))
    binary = b" " * size
    _checked(nvrtc.nvrtcGetCUBIN(program, binary))
    _checked(nvrtc.nvrtcDestroyProgram(program))
    return binary


def _launch(function: Any, blocks: int, shared: int, arguments: Arguments) -> None:
    from cuda.bindings import driver

    parameters = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
    stream = driver.CUstream(torch.cuda.current_stream().cuda_stream)
    grid, block = (blocks, 1, 1), (_THREADS, 1, 1)
    where = ctypes.addressof(parameters)
    _checked(driver.cuLaunchKernel(function, *grid, *block, shared, stream, where, 0))


def _checked(result: tuple[Any, ...]) -> tuple[Any, ...]:
    status, *values = result
    if status.value:
        raise RuntimeError(f"CUDA refuses with {status.name}")
    return tuple(values)


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index
