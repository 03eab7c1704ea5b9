"""Tests of the offline features and of the measures that stand on them."""

import importlib.util

import numpy as np
import pytest
import torch

from visual_ar.evaluation import features as features_module
from visual_ar.evaluation.features import EfficientNetLite0Features
from visual_ar.evaluation.frechet import frechet_distance, permutation_test, statistics
from visual_ar.evaluation.retrieval import retrieve

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(features_module.PACKAGE) is None,
    reason="needs the train extra",
)


@pytest.fixture(scope="module")
def network():
    return EfficientNetLite0Features()


@needs_weights
def test_features_equal_those_of_the_packages_own_network(network):
    package = pytest.importorskip("efficientnet_lite_pytorch")
    own = package.EfficientNet.from_name("efficientnet-lite0")
    own.load_state_dict(features_module._read_weights())
    own.eval()
    pixels = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected = own.extract_features(pixels).mean(dim=(2, 3))
        assert torch.allclose(network(pixels), expected, atol=1e-5)
        assert torch.allclose(network.network(pixels), own(pixels), atol=1e-4)
    assert expected.std() > 0.1


@needs_weights
def test_features_know_what_a_picture_shows(network):
    """A red disc and a shifted one are closer to each other than to stripes."""
    rows, columns = np.mgrid[:64, :64]
    pictures = []
    for centre in (28, 36):
        inside = (rows - centre) ** 2 + (columns - centre) ** 2 < 400
        pictures.append(np.where(inside[None], np.array([1.0, -1, -1])[:, None, None], 1.0))
    pictures.append(np.broadcast_to(np.where(rows % 8 < 4, 1.0, -1.0), (3, 64, 64)))
    with torch.no_grad():
        found = network(torch.tensor(np.stack(pictures), dtype=torch.float32))
    similar = torch.nn.functional.cosine_similarity(found[0], found[1:])
    assert similar[0] > 0.8 > similar[1] + 0.2


@needs_weights
def test_feature_maps_keep_the_pictures_own_size_and_pass_gradients(network):
    pixels = torch.zeros(1, 3, 64, 48, requires_grad=True)
    maps = network.feature_maps(pixels, stages=(0, 1, 2, 4))
    assert [list(one.shape) for one in maps] == [
        [1, 16, 32, 24],
        [1, 24, 16, 12],
        [1, 40, 8, 6],
        [1, 112, 4, 3],
    ]
    sum(one.square().mean() for one in maps).backward()
    assert pixels.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in network.parameters())


@needs_weights
def test_last_map_leads_to_the_pooled_features(network):
    pixels = torch.rand(1, 3, 224, 224) * 2 - 1
    with torch.no_grad():
        last = network.feature_maps(pixels, stages=[6])[0]
        head = network.network.bn2(network.network.conv_head(last))
        assert torch.allclose(head.mean(dim=(2, 3)), network(pixels), atol=1e-5)


@needs_weights
def test_features_stay_frozen_in_training_mode(network):
    before = network.network.bn1.running_mean.clone()
    network.train()
    network.feature_maps(torch.ones(2, 3, 32, 32), stages=[0])
    assert torch.equal(network.network.bn1.running_mean, before)
    assert not network.network.training


@needs_weights
@pytest.mark.parametrize("stages", [[], [7], [-1], [2, 1], [1, 1]])
def test_bad_stages(network, stages):
    with pytest.raises(ValueError, match=r"stages must be increasing numbers in 0\.\.6, got"):
        network.feature_maps(torch.zeros(1, 3, 32, 32), stages)


@needs_weights
def test_bad_pixels(network):
    with pytest.raises(ValueError, match=r"pixels must have shape .*got \[3, 32, 32\]"):
        network(torch.zeros(3, 32, 32))


def test_bad_resolution():
    with pytest.raises(ValueError, match="resolution must be at least 32, got 16"):
        EfficientNetLite0Features(resolution=16)


def test_missing_weights_name_the_extra(monkeypatch):
    monkeypatch.setattr(features_module, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"install visual-ar\[train\]"):
        EfficientNetLite0Features()


@needs_weights
def test_other_weights_are_refused(monkeypatch):
    monkeypatch.setattr(features_module, "SHA256", "0")
    with pytest.raises(ValueError, match="must have sha256 0, got 5793442"):
        EfficientNetLite0Features()


def gaussian(size, seed):
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return torch.randn(size, generator=generator, dtype=torch.float64), factor @ factor.T


def test_frechet_distance_of_commuting_gaussians():
    mu1, mu2 = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 2.0, 5.0])
    a, b = torch.tensor([1.0, 4.0, 0.0]), torch.tensor([9.0, 1.0, 2.0])
    turn = torch.linalg.qr(gaussian(3, 0)[1])[0]
    expected = 5 + (a.sqrt() - b.sqrt()).square().sum()
    found = frechet_distance(mu1, turn @ a.double().diag() @ turn.T, mu2,
                             turn @ b.double().diag() @ turn.T)  # fmt: skip
    assert found == pytest.approx(float(expected), abs=1e-6)


def test_frechet_distance_agrees_with_torch_fidelity():
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    (mu1, sigma1), (mu2, sigma2) = gaussian(32, 1), gaussian(32, 2)
    as_numpy = [{"mu": mu.numpy(), "sigma": s.numpy()} for mu, s in ((mu1, sigma1), (mu2, sigma2))]
    expected = fid_statistics_to_metric(*as_numpy, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(mu1, sigma1, mu2, sigma2) == pytest.approx(expected, rel=1e-9)
    rounding = 1e-12 * 2 * float(sigma1.trace())  # of the traces that cancel
    assert frechet_distance(mu1, sigma1, mu1, sigma1) == pytest.approx(0, abs=rounding)


def test_frechet_distance_is_the_same_where_divide_and_conquer_fails(monkeypatch):
    given = (*gaussian(32, 1), *gaussian(32, 2))
    expected = frechet_distance(*given)

    def fails(matrix):
        raise torch.linalg.LinAlgError("failed to converge")

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    assert frechet_distance(*given) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_takes_singular_covariances():
    found = torch.randn(20, 64, generator=torch.Generator().manual_seed(3))
    mu, sigma = statistics(found)
    assert frechet_distance(mu, sigma, mu + 0.5, sigma) == pytest.approx(16, rel=1e-6)


def test_statistics_are_those_of_numpy():
    found = torch.randn(50, 4, generator=torch.Generator().manual_seed(4))
    mu, sigma = statistics(found)
    assert mu.dtype == sigma.dtype == torch.float64
    assert np.allclose(mu, found.numpy().astype(np.float64).mean(0))
    assert np.allclose(sigma, np.cov(found.numpy().astype(np.float64), rowvar=False))


def test_bad_frechet_inputs():
    mu, sigma = gaussian(3, 5)
    with pytest.raises(ValueError, match="means and covariances must be"):
        frechet_distance(mu, sigma, mu[:2], sigma)
    with pytest.raises(ValueError, match=r"features must have shape \[n >= 2, D\], got \[1, 3\]"):
        statistics(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="features must be finite"):
        statistics(torch.tensor([[1.0], [float("nan")]]))


@pytest.mark.parametrize("statistic", ["energy", "mmd"])
def test_permutation_test_tells_laws_apart_only_when_they_differ(statistic):
    generator = torch.Generator().manual_seed(6)
    a = torch.randn(120, 8, generator=generator)
    wider = 1.5 * torch.randn(100, 8, generator=generator)
    assert permutation_test(a, wider, statistic, permutations=199) == 1 / 200
    levels = [
        permutation_test(*torch.randn(60, 8, generator=generator).split([25, 35]), statistic, 99, n)
        for n in range(60)
    ]
    assert 0.3 < np.mean(levels) < 0.7
    assert np.mean(np.array(levels) <= 0.1) < 0.25


@pytest.mark.parametrize("statistic", ["energy", "mmd"])
def test_permutation_statistic_is_the_textbook_one(statistic):
    generator = torch.Generator().manual_seed(7)
    a, b = torch.randn(2000, 3, generator=generator).split([1200, 800])  # more than one block
    members = torch.zeros(2000, 1, dtype=torch.float64)
    members[:1200] = 1
    from visual_ar.evaluation.frechet import _statistics

    found = _statistics(torch.cat([a, b]), members, statistic)

    def mean(x, y, same):
        x, y = x.double(), y.double()
        pairs = torch.cdist(x, y) if statistic == "energy" else -((x @ y.T / 3 + 1) ** 3)
        return (pairs.sum() - pairs.trace()) / (len(x) * (len(x) - 1)) if same else pairs.mean()

    expected = 2 * mean(a, b, False) - mean(a, a, True) - mean(b, b, True)
    assert float(found[0]) == pytest.approx(float(expected), rel=1e-3)


def test_permutation_test_is_repeatable_and_exact_on_tiny_samples():
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[10.0], [11.0]])
    found = permutation_test(a, b, permutations=3000, seed=1)
    assert found == permutation_test(a, b, permutations=3000, seed=1)
    assert found == pytest.approx(2 / 6, abs=0.03)  # two of the six labellings separate them


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"statistic": "t"}, "statistic must be energy or mmd, got 't'"),
        ({"permutations": 0}, "permutations must be at least 1, got 0"),
        ({"features_b": torch.zeros(4, 2)}, r"must have one width, got \(3, 2\)"),
        ({"features_a": torch.zeros(1, 3)}, "features_a must have shape"),
    ],
)
def test_bad_permutation_tests(options, message):
    options = {"features_a": torch.zeros(4, 3), "features_b": torch.zeros(4, 3), **options}
    with pytest.raises(ValueError, match=message):
        permutation_test(**options)


REFERENCE = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.8, 0.3], [0.0, 1.0], [-1.0, 0.0]])
NAMES = ["a", "a", "b", "c", "d"]


def test_retrieval_counts_pictures_not_groups():
    asked = torch.tensor([[5.0, 0.0], [5.0, 0.0], [0.0, -2.0]])
    two = retrieve(asked, ["a", "b", "c"], REFERENCE, NAMES, k=2)
    assert two.neighbours[:2].tolist() == [[0, 1], [0, 1]]
    assert two.hits.tolist() == [True, False, False]
    assert two.hit_rate == pytest.approx(1 / 3)
    three = retrieve(asked, ["a", "b", "c"], REFERENCE, NAMES, k=3)
    assert three.hits.tolist() == [True, True, False]


def test_nearest_distance_is_the_mean_cosine_distance():
    asked = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    found = retrieve(asked, ["a", "b"], REFERENCE, NAMES, k=1)
    second = 1 - 1.1 / (2**0.5 * 0.73**0.5)
    assert found.nearest_distance == pytest.approx(second / 2, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, r"k must be in 1\.\.5, got 0"),
        ({"k": 6}, r"k must be in 1\.\.5, got 6"),
        ({"groups": ["a"]}, r"features must have a row for each .*got \[2, 2\] and 1 groups"),
        ({"groups": ["a", "z"]}, "groups must be among the reference groups, got 'z'"),
        ({"features": torch.zeros(2, 3)}, r"must have one width, got \(3, 2\)"),
    ],
)
def test_bad_retrievals(options, message):
    options = {"features": torch.ones(2, 2), "groups": ["a", "b"], **options}
    with pytest.raises(ValueError, match=message):
        retrieve(reference_features=REFERENCE, reference_groups=NAMES, **options)
