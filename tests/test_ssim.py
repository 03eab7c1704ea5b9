"""Structural similarity equals scikit-image's with the settings of the paper."""

import pytest
import torch

from visual_ar.evaluation.ssim import ssim


def test_equals_scikit_image():
    metrics = pytest.importorskip("skimage.metrics", reason="needs scikit-image")
    draw = torch.Generator().manual_seed(0)
    ours = torch.randint(0, 256, (2, 3, 20, 17), generator=draw, dtype=torch.uint8)
    noise = torch.randint(-40, 40, ours.shape, generator=draw)
    theirs = (ours.int() + noise).clamp(0, 255).to(torch.uint8)
    for a, b, found in zip(ours, theirs, ssim(ours, theirs), strict=True):
        expected = metrics.structural_similarity(
            a.permute(1, 2, 0).numpy(),
            b.permute(1, 2, 0).numpy(),
            channel_axis=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255,
        )
        assert float(found) == pytest.approx(expected, abs=1e-9)


def test_equal_pictures_have_similarity_one():
    picture = torch.arange(3 * 12 * 12).view(1, 3, 12, 12).to(torch.uint8)
    assert float(ssim(picture, picture)) == pytest.approx(1)


@pytest.mark.parametrize("shapes", [((1, 3, 12, 12), (1, 3, 12, 13)), ((1, 3, 8, 8), (1, 3, 8, 8))])
def test_what_cannot_be_compared_is_refused(shapes):
    with pytest.raises(ValueError, match="pictures must be"):
        ssim(*(torch.zeros(shape, dtype=torch.uint8) for shape in shapes))
