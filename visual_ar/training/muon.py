"""Muon (Jordan et al. 2024): momentum whose matrix steps are made orthogonal; knows no model.

torch.optim.Muon iterates in bfloat16, which a CPU without units for it emulates: 30 s a step for
the thirty matrices of the small generator, where this takes a tenth of a training step.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # quintic Newton-Schulz of the Muon report
_ITERATIONS = 5
_RMS_OF_ADAMW = 0.2  # Liu et al. (2025), arXiv 2502.16982: steps as long as AdamW's


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised by Newton-Schulz, for matrices inside a network.

    Args:
        matrices: two-dimensional parameters.
        lr: learning rate; the scale is AdamW's.
        weight_decay: decoupled.
        momentum: of the gradients.

    Raises:
        ValueError: a parameter is not a matrix.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ) -> None:
        matrices = list(matrices)
        for parameter in matrices:
            if parameter.ndim != 2:
                raise ValueError(f"Muon takes matrices, got shape {list(parameter.shape)}")
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # takes no closure
        """Moves every matrix that has a gradient. closure: not used."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                ahead = parameter.grad.lerp(state["momentum"], group["momentum"])
                scale = _RMS_OF_ADAMW * max(parameter.shape) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(orthogonal(ahead), alpha=-group["lr"] * scale)


def orthogonal(matrix: Tensor) -> Tensor:
    """A matrix with the same singular vectors whose singular values are near 1.

    Args:
        matrix: [m, n].

    Returns:
        [m, n].
    """
    a, b, c = _COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(_ITERATIONS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if tall else x
