"""A code book starts among its vectors, follows them, and places the codes of a generator."""

import torch

from visual_ar.models.llamagen import LlamaGen
from visual_ar.tokenizers.quantizers import VectorQuantizer
from visual_ar.training.codebook import CodebookUpkeep
from visual_ar.training.head_kinds import place_codes
from visual_ar.training.recipe import Codebook


def test_k_means_finds_the_clusters_and_dead_codes_are_revived() -> None:
    draw = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(
        torch.eye(4).repeat(2, 1) * torch.tensor([[1.0], [-1]]).repeat_interleave(4, 0)
    )
    vectors = centres.repeat(40, 1) + 0.02 * torch.randn(320, 4, generator=draw)
    vectors = torch.nn.functional.normalize(vectors)
    quantizer = VectorQuantizer(8, 4)
    upkeep = CodebookUpkeep(quantizer, Codebook(start=0.0, decay=0.5, dead=0.03))
    upkeep.start(vectors, draw)
    distances = torch.cdist(vectors, quantizer.codebook()).min(dim=1).values
    assert distances.median() < 0.1

    only = vectors[:1].expand(16, 4)  # every vector chooses one code: the others die and come back
    for _ in range(10):
        upkeep.update(only, quantizer.nearest(only))
    assert upkeep.revive(vectors, draw) == 7
    assert upkeep.revive(vectors, draw) == 0
    fresh = quantizer.codebook()
    assert torch.cdist(fresh, vectors).min(dim=1).values.max() < 1e-3


def test_codes_move_to_the_mean_of_their_vectors() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(4, 3)
    upkeep = CodebookUpkeep(quantizer, Codebook(start=0.0, decay=0.9))
    vectors = torch.nn.functional.normalize(torch.randn(200, 3))
    before = (1 - (vectors @ quantizer.codebook().T).max(dim=1).values).mean()
    for _ in range(50):
        upkeep.update(vectors, quantizer.nearest(vectors))
    after = (1 - (vectors @ quantizer.codebook().T).max(dim=1).values).mean()
    assert after < 0.8 * before


def test_similar_codes_start_with_similar_embeddings_and_logits() -> None:
    torch.manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(64, 4), dim=-1)
    model = LlamaGen(dim=32, n_layer=1, n_head=2, vocab_size=64, grid_size=2, num_classes=2)
    place_codes(model, vectors)
    for weight in (model.tok_embeddings.weight, model.output.weight):
        ours = torch.nn.functional.normalize(weight.detach(), dim=-1)
        assert (
            torch.corrcoef(
                torch.stack([(ours @ ours.T).flatten(), (vectors @ vectors.T).flatten()])
            )[0, 1]
            > 0.8
        )
