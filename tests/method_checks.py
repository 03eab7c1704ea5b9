"""What every method is held to, whichever it is: small options of each, toys of each kind of token.

`test_every_method` runs it over the registry, `test_from_outside` over a method of its own.
"""

from dataclasses import dataclass

import pytest
import torch
from exactness import ALARM

from visual_ar.cast import Cast
from visual_ar.method_options import parse_method
from visual_ar.sampling import Sampling
from visual_ar.testing import (
    ToyBitModel,
    ToyTokenModel,
    chi_square,
    decode_all,
    enumerate_law,
    random_draft_head,
    sequence_index,
)
from visual_ar.tokens.subcodes import Subcodes

PICTURES = 2_000
CODES, BITS, SUBCODES, GROUPS = "codes", "bits", "sub-codes", "codes in groups"


@dataclass(frozen=True)
class Small:
    """A method with options that fit the toys.

    Attributes:
        text: as a bench and a recipe write it.
        serves: the kinds of toy that it draws; it must refuse the others.
    """

    text: str
    serves: tuple[str, ...]


CHAINS = (CODES, BITS, SUBCODES)
SMALL = {
    "sequential": Small("sequential", CHAINS),
    "jacobi": Small("jacobi:window=2", CHAINS),
    "jacobi-published": Small("jacobi-published", CHAINS),
    "exact-match": Small("exact-match:window=2", CHAINS),
    "tree": Small("tree:window=3,tree=2x2", (CODES,)),
    "tree-spatial": Small("tree-spatial", (CODES,)),
    "tree-adaptive": Small("tree-adaptive", (CODES,)),
    "draft-head": Small("draft-head:window=3", (CODES,)),
    "denoising": Small("denoising:window=3,steps=2,clean=1", (CODES,)),
    "groups": Small("groups", (*CHAINS, GROUPS)),
    "hybrid": Small("hybrid:window=2", (CODES,)),
}


def small(name):
    """The row of a registered method."""
    if name not in SMALL:
        pytest.fail(f"method {name} needs a row in SMALL of tests/method_checks.py: small options")
    return SMALL[name]


class ToySubcodeModel(ToyBitModel):
    """The toy with tokens of two bits, the second drawn given the first."""

    def _build(self, outputs):
        super()._build(2 * outputs)

    @property
    def tokens(self):
        """Two sub-codes of one bit."""
        return Subcodes(2, 2, 4, self.of_part)

    def of_part(self, hidden, earlier):
        """Logits of the sub-code behind `earlier`."""
        part = earlier.shape[-1]
        logits = hidden[..., 2 * part : 2 * part + 2]
        if part:
            sign = earlier[..., :1] * 2 - 1
            logits = logits + torch.cat([-sign, sign], -1) * 0.7
        return logits

    def chances(self, warped, sequences, forced):
        """See `ToyTokenModel.chances`, at temperature 1."""
        codes, total = self.spelled(sequences).long(), 1.0
        for part in range(2):
            law = self.of_part(warped, codes[..., :part]).double().softmax(-1)
            total = total * law.gather(-1, codes[..., part, None])[..., 0]
        return total


def cast_of(kind):
    """A toy of a kind of token, with all who may take part beside it."""
    if kind == BITS:
        model = ToyBitModel(2, (3,), prefix_length=2, seed=4)
    elif kind == SUBCODES:
        model = ToySubcodeModel(2, (3,), prefix_length=2, seed=5)
    else:
        order = "neighbour" if kind == GROUPS else "raster"
        model = ToyTokenModel(2, (2, 3), 2, hidden_size=8, seed=3, order=order)
    cast = Cast(model, model.layout(model.config.grid))
    if kind != CODES:
        return cast
    drafter = ToyTokenModel(2, (2, 3), seed=103, order="neighbour")
    return Cast(model, cast.layout, draft_head=random_draft_head(model), draft_model=drafter)


def draw(method, cast, seeds, labels):
    """Tokens of pictures with guidance 2."""
    condition = cast.model.condition(labels, True)
    if cast.draft_model is not None:
        condition = condition._replace(draft=cast.draft_model.condition(labels, True))
    return decode_all(method, cast, condition, Sampling.create(seeds, guidance=2.0))[0]


def check_refusal(row, kind):
    """A toy that a method cannot serve is refused in one sentence, before anything is drawn."""
    method = parse_method(row.text)
    with pytest.raises(ValueError, match=r"need|must") as caught:
        method.check(cast_of(kind))
    assert "\n" not in str(caught.value)


def check_pictures(row, kind):
    """Tokens are legal, follow the seed, and do not depend on the neighbours."""
    method, cast = parse_method(row.text), cast_of(kind)
    method.check(cast)
    tokens, count = cast.model.tokens, cast.model.vocab_size
    seeds, labels = list(range(8)), [0, 1] * 4
    batch = draw(method, cast, seeds, labels)
    assert batch.shape == (8, cast.layout.length, *tokens.shape)
    assert batch.dtype == tokens.dtype
    assert int(batch.min()) >= 0 and int(batch.max()) < count
    assert torch.equal(draw(method, cast, seeds, labels), batch)
    assert not torch.equal(draw(method, cast, [seed + 8 for seed in seeds], labels), batch)
    for number in (0, 3):
        alone = draw(method, cast, [seeds[number]], [labels[number]])
        assert torch.equal(alone[0], batch[number])


def check_law(row, kind):
    """A method that says it is lossless has exactly the law that is enumerated."""
    method, cast = parse_method(row.text), cast_of(kind)
    if not method.lossless:
        return
    tokens = draw(method, cast, list(range(PICTURES)), [1] * PICTURES)
    law = enumerate_law(cast.model, 1, Sampling.create([0], guidance=2.0))
    assert float(law.sum()) == pytest.approx(1.0, abs=1e-5)
    assert chi_square(sequence_index(tokens, cast.model.vocab_size), law) > ALARM
