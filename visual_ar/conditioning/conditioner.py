"""The contract of what conditions a model: how it is asked for, checked, and turned to features.

Whoever has a pipeline asks its conditioner; nobody else knows whether words or classes are drawn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from visual_ar.models.token_model import TokenModel
from visual_ar.plain_numbers import whole
from visual_ar.request import Labels, Prompt

MOST_PICTURES = 65_536
"""Of one call; their options are held at once, before any is drawn."""


class Conditioner(ABC):
    """One kind of condition. A plain object that a pipeline makes of its components.

    Attributes:
        argument: of a pipeline's call that asks for it.
        key: under which a recipe tells it.
        components: of the pipeline that `features` runs, which may lie elsewhere when offloaded.
    """

    argument: ClassVar[str]
    key: ClassVar[str]
    components: ClassVar[tuple[str, ...]] = ()

    @property
    @abstractmethod
    def prefix_length(self) -> int:
        """Prefix slots P that conditions take; 0 where only the model knows."""

    @property
    @abstractmethod
    def what(self) -> str:
        """For people, such as "prompts" or "the 10 classes"."""

    @property
    @abstractmethod
    def anything(self) -> str | int:
        """Some condition that is never refused, to try a model with."""

    @property
    def known(self) -> list[str]:
        """All that can be asked for, as text; nothing where words are free."""
        return []

    @abstractmethod
    def check(self, prompt: Prompt, class_labels: Labels, repeats: int) -> list[Any]:
        """What the pictures show, each of what is given `repeats` times.

        Args:
            prompt: as given to a pipeline's call, or None.
            class_labels: likewise.
            repeats: pictures of every prompt or class, at least 1.

        Raises:
            ValueError: the model takes the other kind, or an entry is empty or unknown.
        """

    @staticmethod
    def repeated(conditions: Sequence[Any], repeats: object) -> list[Any]:
        """Each condition as often as pictures of it are asked for.

        Raises:
            ValueError: the number is none, or the call asks for more pictures than one may.
        """
        most = max(MOST_PICTURES // max(len(conditions), 1), 1)
        count = whole("num_images_per_prompt", repeats, 1, most)
        return [condition for condition in conditions for _ in range(count)]

    @abstractmethod
    def features(self, conditions: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
        """What `condition` of the model takes, for B checked conditions: values [B, ...] and mask
        bool [B, P] of prefix columns, or None.
        """

    @abstractmethod
    def same_as(self, other: Conditioner) -> bool:
        """Whether another one takes the same conditions."""

    def check_model(self, model: TokenModel) -> None:  # noqa: B027  (most fit any)
        """Raises ValueError unless the model reads such conditions."""

    def asks(self, subjects: Any) -> dict[str, Any]:
        """Arguments of a pipeline's call that ask for one or several subjects."""
        return {self.argument: subjects}
