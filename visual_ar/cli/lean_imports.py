"""Imports diffusers' pipeline without what no drawing needs; knows diffusers, nothing of ours.

`DiffusionPipeline` brings every UNet and transformer of diffusers for one `isinstance`, with them
scipy.stats and torchvision, and torch's compiler for decorators that matter under `torch.compile`
alone: four of the eight seconds of `import visual_ar.pipeline`. They still come when asked for.
Only a process of ours may do this: in one where others use diffusers, its `fuse_qkv_projections`
would not know its own autoencoder.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

_COMPILER = "torch._dynamo"


class _CompilerLater(ModuleType):
    """Stands where torch's compiler will be: it compiled nothing yet, and marks no function.

    Asked for anything else, it makes way for the compiler itself.
    """

    eval_frame = SimpleNamespace(OptimizedModule=type("OptimizedModule", (), {}))

    def allow_in_graph(self, function: Any) -> Any:
        return function

    def disable(
        self,
        function: Any = None,
        recursive: bool = True,
        *,
        reason: str | None = None,
        wrapping: bool = True,
    ) -> Any:
        return function if function is not None else lambda decorated: decorated

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what the import machinery asks of every module
            raise AttributeError(name)
        _withdraw(self)
        return getattr(import_module(_COMPILER), name)


def import_pipeline() -> None:
    """Imports `diffusers.DiffusionPipeline`; does nothing where it was imported before."""
    if "diffusers.pipelines.pipeline_utils" in sys.modules:
        return
    with without_compiler():
        import diffusers.models

        with _without(diffusers.models, "AutoencoderKL"):
            import_module("diffusers.pipelines.pipeline_utils")


@contextmanager
def without_compiler() -> Iterator[None]:
    """Meanwhile torch's compiler is not imported by what only marks functions for it."""
    if _COMPILER in sys.modules:
        yield
        return
    later = _CompilerLater(_COMPILER)
    sys.modules[_COMPILER] = later
    try:
        yield
    finally:
        _withdraw(later)


def _withdraw(later: ModuleType) -> None:
    if sys.modules.get(_COMPILER) is later:
        del sys.modules[_COMPILER]


@contextmanager
def _without(package: ModuleType, name: str) -> Iterator[None]:
    """Meanwhile a class of a package that imports on demand is one that nothing is made of."""
    if name in vars(package):
        yield
        return
    setattr(package, name, type(name, (), {}))
    try:
        yield
    finally:
        delattr(package, name)
