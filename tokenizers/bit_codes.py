"""Bit vectors as integers and back, and the entropies of bit laws; knows no network and no pixels.

Bits are canonical everywhere else: an integer needs a bit order, and published code uses both.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BitOrder = Literal["lsb", "msb"]  # the first bit counts 1, or 2^(d - 1)

WIDEST_CODE = 63  # bits of a non-negative int64
_WORD = 32


def bits_to_codes(bits: Tensor, order: BitOrder) -> Tensor:
    """Bit vectors as int64 codes.

    Args:
        bits: bool [..., d], d at most 63.
        order: "lsb" as in Open-MAGVIT2 and BitDance, "msb" as in BSQ-ViT and Infinity.

    Returns:
        int64 [...] in 0..2^d - 1.

    Raises:
        ValueError: not bool, an unknown order, or more bits than an int64 holds.
    """
    _check_bits(bits, order)
    if bits.shape[-1] > WIDEST_CODE:
        raise ValueError(
            f"an int64 code holds at most {WIDEST_CODE} bits, got {bits.shape[-1]}; "
            "use bits_to_integers, or keep the bits"
        )
    return (bits.long() << _places(bits.shape[-1], order, bits.device)).sum(-1)


def codes_to_bits(codes: Tensor, bits: int, order: BitOrder) -> Tensor:
    """The inverse of `bits_to_codes`.

    Args:
        codes: int64 [...] in 0..2^d - 1.
        bits: d, in 1..63.
        order: see `bits_to_codes`.

    Returns:
        bool [..., d].

    Raises:
        ValueError: not int64, a code beyond the range, or an unknown order.
    """
    _check_order(order)
    if codes.dtype != torch.int64:
        raise ValueError(f"codes must be int64, got {codes.dtype}")
    if not 1 <= bits <= WIDEST_CODE:
        raise ValueError(f"bits must be in 1..{WIDEST_CODE} for int64 codes, got {bits}")
    outside = (codes >> bits) != 0  # of negative codes too
    if bool(outside.any()):
        raise ValueError(
            f"codes of {bits} bits must be in 0..{2**bits - 1}, got {int(codes[outside][0])}"
        )
    return ((codes[..., None] >> _places(bits, order, codes.device)) & 1).bool()


def bits_to_integers(bits: Tensor, order: BitOrder) -> np.ndarray:
    """Bit vectors of any length as exact Python integers.

    Python integers rather than arrays of words: they compare, print and hash as one number, and
    nothing computes with such codes; what computes keeps the bits.

    Args:
        bits: bool [..., d].
        order: see `bits_to_codes`.

    Returns:
        object array [...] of int.

    Raises:
        ValueError: not bool, or an unknown order.
    """
    _check_bits(bits, order)
    low_first = bits if order == "lsb" else bits.flip(-1)
    padded = F.pad(low_first, (0, -bits.shape[-1] % _WORD)).unflatten(-1, (-1, _WORD))
    words = bits_to_codes(padded, "lsb").cpu().numpy().astype(object)
    total = sum(words[..., i] << _WORD * i for i in range(words.shape[-1]))
    return np.asarray(total, dtype=object)


def bit_entropy(log_odds: Tensor) -> Tensor:
    """Entropy of Bernoulli laws in nats, without cancellation at any size of the log-odds.

    With a = |l| it is softplus(-a) + a sigmoid(-a); its gradient is finite and 0 at both ends.

    Args:
        log_odds: float [...], log P(1) / P(0).

    Returns:
        float [...].
    """
    size = log_odds.abs()
    return F.softplus(-size) + size * torch.sigmoid(-size)


def group_log_laws(log_odds: Tensor, groups: int) -> Tensor:
    """Log-probabilities of every value of every group of neighbouring bits.

    Args:
        log_odds: float [M, d], log P(1) / P(0) of independent bits.
        groups: number of groups g, dividing d.

    Returns:
        [M, g, 2^(d / g)], values in "lsb" order.
    """
    width = log_odds.shape[-1] // groups
    values = torch.arange(2**width, device=log_odds.device)
    signs = codes_to_bits(values, width, "lsb").to(log_odds.dtype) * 2 - 1
    # P(c) is proportional to exp(sum_i c_i l_i / 2) over signs c.
    return (log_odds.unflatten(-1, (groups, width)) @ signs.T / 2).log_softmax(-1)


def mean_law_entropy(log_laws: Tensor) -> Tensor:
    """Entropy, in nats, of the average of M laws.

    The average is taken of logarithms: probabilities that underflow would have no finite gradient.

    Args:
        log_laws: [M, ..., V] log-probabilities.

    Returns:
        [...].
    """
    mean = log_laws.logsumexp(0) - float(np.log(len(log_laws)))
    return -(mean.exp() * mean).sum(-1)


def _places(bits: int, order: BitOrder, device: torch.device) -> Tensor:
    """How far to the left each bit stands in the integer: int64 [d]."""
    places = torch.arange(bits, device=device)
    return places if order == "lsb" else places.flip(0)


def _check_bits(bits: Tensor, order: BitOrder) -> None:
    _check_order(order)
    if bits.dtype != torch.bool or bits.ndim < 1 or bits.shape[-1] < 1:
        raise ValueError(f"bits must be bool [..., d], got {bits.dtype} {list(bits.shape)}")


def _check_order(order: BitOrder) -> None:
    if order not in get_args(BitOrder):
        raise ValueError(f'bit order must be "lsb" or "msb", got {order!r}')
