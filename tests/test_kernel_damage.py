"""Wrong input of a verification: what has a defined result, and what is refused."""

import pytest
import torch
from host_kernel import RULES, by_bound_kernel, by_kernel, by_reference, damaged, same

from visual_ar.accel.kernels.inputs import random_window
from visual_ar.accel.kernels.reference import COUPLINGS, verify
from visual_ar.accel.kernels.specialise import bound_rule
from visual_ar.accel.rules.parse import parse_rule
from visual_ar.sampling import Sampling, Warps
from visual_ar.tokens.codes import CategoricalLaw


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("rule", ["exact", "typical", *RULES[3:]])
@pytest.mark.parametrize("run", [by_reference, by_kernel])
def test_bad_values_have_a_defined_result(run, rule, coupling):
    given, flags = damaged()
    verdict = run(given, rule, coupling)
    assert torch.equal(verdict.flags, flags)
    assert verdict.run.tolist()[:2] == [0, 0] and int(verdict.run[2]) == 0
    assert bool(((verdict.tokens >= 0) & (verdict.tokens < 30)).all())
    assert bool(verdict.laws.isfinite().all())
    torch.testing.assert_close(verdict.laws.sum(-1), torch.ones(4, 9))
    # Impossible codes are never drawn; a row without any is uniform.
    assert verdict.laws[0, 0, 3] == 0 and verdict.laws[0, 2, 5] == 0
    assert torch.equal(verdict.laws[0, 1], verdict.laws[0, 1, :1].expand(30))
    # The correction of a refused draft is a draw from p.
    law = CategoricalLaw(probabilities=verdict.laws[:, :1])
    drawn = law.draw(given["numbers"][1, :, :1])
    assert torch.equal(verdict.tokens[:3, 0], drawn[:3, 0])


def test_a_table_with_codes_outside_of_the_book_is_read_within_it():
    """Such codes count as absent: the result is that of the table with a code of no mass there."""
    given = random_window(15, 3, 5, 30, guided=False)
    given["conditional"][..., 7] = -torch.inf
    bad = torch.randint(0, 30, (30, 4), generator=torch.Generator().manual_seed(0))
    bad = bad.where(bad != 7, 8)
    good = bad.clone()
    bad[:, 1], good[:, 1] = torch.tensor([2**40, -1, 30]).repeat(10), 7
    found = []
    for table in (bad, good):
        rule = bound_rule("lantern/delta=0.5", table, 30, torch.device("cpu"))
        found.append(by_bound_kernel(given, rule))
    assert same(*found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coupling": "mutual"}, r"coupling must be one of .*, maximal, gumbel, got 'mutual'"),
        ({"q": None}, r"drafts and q must be given together, got only drafts"),
        ({"drafts": None}, r"drafts and q must be given together, got only q"),
        ({"conditional": torch.zeros(3, 40)}, r"conditional must be float32, float16 or bfloat16"),
        ({"conditional": torch.zeros(3, 5, 40).long()}, r"conditional must .* got int64"),
        ({"conditional": torch.zeros(3, 5, 2**18 + 1)}, r"V in \[1, 262144\]"),
        ({"conditional": torch.zeros(0, 5, 40)}, r"B and W of at least 1"),
        ({"unconditional": torch.zeros(3, 5, 41)}, r"unconditional must be float32 \[3, 5, 40\]"),
        ({"unconditional": torch.zeros(3, 5, 40).half()}, r"unconditional .* got float16"),
        (
            {"drafts": torch.zeros(3, 5).long()},
            r"drafts must be int64 \[3, 4\], got int64",
        ),
        ({"drafts": torch.zeros(3, 4)}, r"drafts must be int64 \[3, 4\], got float32"),
        ({"q": torch.zeros(3, 4, 40).double()}, r"q must be float32 \[3, 4, 40\], got float64"),
        ({"rank": torch.zeros(2).long()}, r"rank must be int64 \[3\], got int64 \[2\]"),
        ({"attempt": torch.zeros(3)}, r"attempt must be int64 \[3\], got float32"),
        ({"forced": torch.zeros(3, 4).long()}, r"forced must be int64 \[3, 5\]"),
        ({"numbers": torch.zeros(3, 3, 5)}, r"numbers must be float32 \[4, 3, 5\]"),
        ({"seed": torch.zeros(1).long()}, r"seed must be int64 \[3\], got int64 \[1\]"),
        ({"seed": torch.zeros(()).long()}, r"seed must be int64 \[3\], got int64 \[\]"),
        ({"guidance": torch.ones(3)}, r"guidance must be float32 \[3, 5\]"),
        ({"top_k": torch.zeros(3)}, r"top_k must be int64 \[3\], got float32"),
        ({"rank": torch.zeros(3, device="meta").long()}, r"rank must be on cpu .* got meta"),
    ],
)
def test_what_cannot_be_right_is_refused(change, message):
    given = random_window() | {"rule": parse_rule("exact"), "warps": Warps()}
    given["sampling"] = given["sampling"]._replace(
        **{name: value for name, value in change.items() if name in Sampling._fields}
    )
    given |= {name: value for name, value in change.items() if name not in Sampling._fields}
    with pytest.raises(ValueError, match=message):
        verify(**given)
