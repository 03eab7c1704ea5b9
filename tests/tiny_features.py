"""Six features of small pictures, in place of a network's, and sets of such pictures."""

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from visual_ar.evaluation.fid import fid
from visual_ar.evaluation.networks import Network
from visual_ar.evaluation.pictures import of_array

TINY = "tiny-features"
WEIGHT = torch.randn(6, 27, generator=torch.Generator().manual_seed(3))


def tiny(pictures):
    """Six features and six logits of pictures uint8 [B, 3, H, W]."""
    flat = torch.nn.functional.adaptive_avg_pool2d(pictures.float(), 3).flatten(1) / 64 - 2
    features = torch.tanh(flat @ WEIGHT.T / 3)
    return features, features * 2


class TinyExtractor(FeatureExtractorBase):
    """The same six features, as torch-fidelity wants them."""

    def __init__(self, name, features_list, **options):
        super().__init__(name, features_list)

    @staticmethod
    def get_provided_features_list():
        return "features", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "logits" if metric == "isc" else "features"

    def forward(self, pictures):
        found = dict(zip(("features", "logits"), tiny(pictures), strict=True))
        return tuple(found[name] for name in self.features_list)


class Set(Dataset):
    def __init__(self, pictures):
        self.pictures = pictures

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        return torch.from_numpy(self.pictures[index]).permute(2, 0, 1)


def network(official=True, name=TINY, extractor=tiny):
    return Network(name, "features", 6, "0" * 64, "none", extractor, official)


def pictures(count, seed=0, mean=120, size=8):
    generator = np.random.default_rng(seed)
    base = generator.normal(mean, 25, (count, 1, 1, 3)) + generator.normal(
        0, 40, (count, size, size, 3)
    )
    return np.clip(base, 0, 255).astype(np.uint8)


def measure(samples, reference, **options):
    asked = {"network": network(), "allow_small": True, "kid_subset": 50, **options}
    asked["network"] = asked.pop("network")
    return fid(of_array(samples, "samples"), of_array(reference, "reference"), **asked)


def against(samples, moments, features, figures=("fid",), reference=None):
    return fid(of_array(samples, ""), reference, features, figures, moments, allow_small=True)


def save_folder(path, some):
    path.mkdir()
    for index, picture in enumerate(some):
        Image.fromarray(picture).save(path / f"{index:03d}.png")
