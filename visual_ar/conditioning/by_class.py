"""Conditions that are one of a few classes, by number or by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from visual_ar.conditioning.conditioner import Conditioner
from visual_ar.plain_numbers import shown
from visual_ar.request import Labels, Prompt, check_labels, describe_labels


@dataclass(frozen=True)
class ClassConditioner(Conditioner):
    """Classes of a class-conditional model, whose prefix is one token.

    Attributes:
        count: number of classes.
        names: one a class, if they have names.
        device: where labels are made.
    """

    argument: ClassVar[str] = "class_labels"
    key: ClassVar[str] = "class"
    count: int
    names: tuple[str, ...] | None
    device: torch.device

    @property
    def prefix_length(self) -> int:
        """See `Conditioner.prefix_length`."""
        return 1

    @property
    def what(self) -> str:
        """See `Conditioner.what`."""
        return f"the {self.count} classes {list(self.names) if self.names else ''}".rstrip()

    @property
    def anything(self) -> int:
        """See `Conditioner.anything`."""
        return 0

    @property
    def known(self) -> list[str]:
        """See `Conditioner.known`."""
        return list(self.names or map(str, range(self.count)))

    def check(self, prompt: Prompt, class_labels: Labels, repeats: int) -> list[int]:
        """See `Conditioner.check`."""
        if prompt is not None:
            raise ValueError(
                f"prompt must be left out for this class-conditional model, which takes "
                f"class_labels ({describe_labels(self.count, self.names)}), got {shown(prompt)}"
            )
        return self.repeated(check_labels(class_labels, self.count, self.names), repeats)

    def features(self, conditions: Sequence[Any]) -> tuple[Tensor, None]:
        """See `Conditioner.features`: int64 [B]."""
        return torch.tensor(conditions, device=self.device), None

    def same_as(self, other: Conditioner) -> bool:
        """See `Conditioner.same_as`."""
        return isinstance(other, ClassConditioner) and (self.count, self.names) == (
            other.count,
            other.names,
        )
