"""The LlamaGen transformer against the official implementation, its cache, and its checkpoints."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from visual_ar.layers import Linear
from visual_ar.models import llamagen
from visual_ar.models.llamagen import SIZES, LlamaGen, convert_official

FIXTURE = Path(__file__).parent / "fixtures" / "llamagen.safetensors"
SMALL = {"dim": 32, "n_layer": 2, "n_head": 4, "vocab_size": 32, "grid_size": 4, "ffn_dim": 96}


@pytest.fixture(scope="module")
def official():
    return load_file(FIXTURE)


def load(official, name, **options):
    start = f"{name}.state."
    state = {key.removeprefix(start): t for key, t in official.items() if key.startswith(start)}
    model = LlamaGen(**SMALL, **options).eval()
    model.load_state_dict(state)
    return model


@pytest.fixture
def by_class(official):
    return load(official, "c2i", num_classes=5)


@pytest.fixture
def by_text(official):
    return load(official, "t2i", caption_dim=12, caption_length=6)


@pytest.fixture(params=["class", "text"])
def case(request, official):
    """A model, its guided condition of two pictures, and their tokens in every row."""
    tokens = official["tokens"]
    if request.param == "class":
        model = load(official, "c2i", num_classes=5)
        condition = model.condition(torch.tensor([3, 1]))
    else:
        model = load(official, "t2i", caption_dim=12, caption_length=6)
        condition = model.condition(official["features"], official["valid"])
    return model, condition, tokens.repeat(2, 1)


def close(ours, theirs, tolerance=1e-5):
    return torch.allclose(ours, theirs, atol=tolerance, rtol=tolerance)


@torch.no_grad()
def test_class_conditional_logits_are_the_official_ones(official, by_class):
    condition = by_class.condition(official["labels"], guided=False)
    assert close(by_class.logits(official["tokens"], condition), official["c2i.logits"])


@torch.no_grad()
def test_text_conditional_logits_are_the_official_ones(official, by_text):
    condition = by_text.condition(official["features"], official["valid"])
    logits = by_text.logits(official["tokens"].repeat(2, 1), condition)
    assert close(logits[:2], official["t2i.logits"])
    assert close(logits[2:], official["t2i.null_logits"])


def prefill(model, condition, scratch):
    cache = model.new_cache(
        len(condition.prefix), model.prefix_length + 16 + scratch, model.prefix_length
    )
    cache.prefix_mask = condition.mask
    length = model.prefix_length
    if length > 1:
        ranks = torch.arange(-length, -1).expand(len(condition.prefix), -1)
        model(condition.prefix[:, :-1], ranks, cache)
    return cache


def feed(model, condition, tokens, ranks):
    """Inputs at some ranks: rank -1 is the last prefix token, ranks past the end are scratch."""
    taken = tokens.gather(1, ranks.clamp(0, tokens.shape[1] - 1))
    x = model.embed(taken, ranks)
    return torch.where((ranks < 0)[..., None], condition.prefix[:, -1:], x)


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_cached_passes_give_the_logits_of_a_full_pass(case, chunk):
    model, condition, tokens = case
    full = model.logits(tokens, condition)
    cache = prefill(model, condition, scratch=chunk)
    for start in range(-1, 15, chunk):
        ranks = torch.arange(start, start + chunk).expand(len(tokens), -1)
        hidden = model(feed(model, condition, tokens, ranks), ranks, cache)
        logits = model.predict(hidden, ranks + 1)
        inside = min(chunk, 15 - start)
        assert close(logits[:, :inside], full[:, start + 1 :][:, :inside])


@torch.no_grad()
def test_rows_advance_raggedly_and_stale_slots_are_overwritten(case):
    model, condition, tokens = case
    full = model.logits(tokens, condition)
    cache = prefill(model, condition, scratch=6)
    generator = torch.Generator().manual_seed(1)
    wrong = torch.randint(32, tokens.shape, generator=generator)
    known = torch.full((len(tokens), 1), -1)  # last rank whose token is committed
    speeds = torch.tensor([[1], [3], [2], [4]])
    while bool((known < 14).any()):
        ranks = known + torch.arange(6)
        committed = ranks < known + speeds
        drafts = torch.where(
            committed[..., None],
            feed(model, condition, tokens, ranks),
            feed(model, condition, wrong, ranks),
        )
        logits = model.predict(model(drafts, ranks, cache), ranks + 1)
        for row in range(len(tokens)):
            for column in range(int(speeds[row])):
                rank = int(ranks[row, column]) + 1
                if rank < 16:
                    assert close(logits[row, column], full[row, rank])
        known = (known + speeds).clamp(max=15)


@torch.no_grad()
def test_a_short_extent_changes_nothing(case):
    model, condition, tokens = case
    cache = prefill(model, condition, scratch=4)
    ranks = torch.arange(-1, 4).expand(len(tokens), -1)
    x = feed(model, condition, tokens, ranks)
    whole = model(x, ranks, cache)
    cache.extent = model.prefix_length + 5
    assert close(model(x, ranks, cache), whole)


@torch.no_grad()
def test_visible_replaces_the_causal_rule(by_class):
    condition = by_class.condition(torch.tensor([2]), guided=False)
    ranks = torch.tensor([[-1, 0, 0]])  # two candidates for rank 0, as leaves of a tree
    tokens = torch.tensor([[0, 7, 9]])
    x = feed(by_class, condition, tokens, torch.tensor([[-1, 1, 2]]))
    visible = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    visible[0, 0] = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]], dtype=torch.bool)
    tree = by_class(x, ranks, None, visible)
    for leaf in (1, 2):
        chain = by_class(x[:, [0, leaf]], ranks[:, [0, leaf]])
        assert close(tree[:, [0, leaf]], chain)


@torch.no_grad()
def test_guided_rows_are_the_rows_alone(case):
    model, condition, tokens = case
    together = model.logits(tokens, condition)
    for row in range(len(tokens)):
        alone = model.logits(tokens[[row]], condition.rows(torch.tensor([row])))
        assert close(together[[row]], alone)


@torch.no_grad()
def test_bfloat16_stays_close_and_gives_fp32_logits(case):
    model, condition, tokens = case
    full = model.logits(tokens, condition)
    narrow = model.to(torch.bfloat16)
    condition = condition._replace(prefix=condition.prefix.bfloat16())
    cache = prefill(narrow, condition, scratch=1)
    ranks = torch.arange(-1, 15).expand(len(tokens), -1)
    hidden = narrow(feed(narrow, condition, tokens, ranks), ranks, cache)
    logits = narrow.predict(hidden, ranks + 1)
    assert hidden.dtype == torch.bfloat16 and logits.dtype == torch.float32
    assert (logits - full).abs().max() < 0.1 * full.abs().max()


def test_dropped_conditions_are_the_null_ones(official, by_class, by_text):
    drop = torch.tensor([True, False])
    labels = torch.tensor([1, 2])
    dropped = by_class.condition(labels, guided=False, drop=drop).prefix
    guided = by_class.condition(labels).prefix
    assert torch.equal(dropped, torch.stack([guided[2], guided[1]]))
    dropped = by_text.condition(official["features"], official["valid"], False, drop).prefix
    guided = by_text.condition(official["features"], official["valid"]).prefix
    assert close(dropped, torch.stack([guided[2], guided[1]]))


def test_training_lowers_the_loss():
    torch.manual_seed(0)
    model = LlamaGen(**SMALL, num_classes=2, dropout=0.1).train()
    tokens, labels = torch.randint(32, (4, 16)), torch.tensor([0, 1, 0, 1])
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        logits = model.logits(tokens, model.condition(labels, guided=False))
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert abs(losses[0] - torch.tensor(32.0).log().item()) < 1e-5  # the head starts at zero
    assert losses[-1] < 0.7 * losses[0]


def test_training_goes_on_after_sampling():
    model = LlamaGen(**SMALL, num_classes=2)
    tokens, labels = torch.randint(32, (1, 16)), torch.tensor([1])
    with torch.inference_mode():
        model.logits(tokens, model.condition(labels, guided=False))
    model.logits(tokens, model.condition(labels, guided=False)).sum().backward()
    assert model.output.weight.grad.any()


def test_initial_weights_follow_the_paper():
    model = LlamaGen(**SMALL, num_classes=5)
    assert not model.output.weight.any()
    assert abs(model.tok_embeddings.weight.std().item() - 0.02) < 0.002
    assert abs(model.layers[1].feed_forward.w2.weight.std().item() - 0.02) < 0.002


def test_saving_and_loading_keeps_every_number(tmp_path, by_text):
    by_text.save_pretrained(tmp_path)
    again = LlamaGen.from_pretrained(tmp_path)
    assert again.config.caption_length == 6
    for key, tensor in by_text.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor)


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 2, 5, 64, 65])
def test_linear_is_linear_for_any_number_of_rows(rows):
    layer = Linear(24, 40)
    x = torch.randn(rows, 1, 24)
    assert close(layer(x), torch.nn.functional.linear(x, layer.weight))
    assert layer(x).is_contiguous()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "num_classes=None, caption_dim=None"),
        ({"num_classes": 3, "caption_dim": 8}, "num_classes=3, caption_dim=8"),
        ({"num_classes": 3, "dim": 24, "n_head": 4}, "multiple of 4 n_head = 16, got 24"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LlamaGen(**(SMALL | options))


def test_conditions_and_grids_that_do_not_fit_are_refused(by_class, by_text, official):
    with pytest.raises(ValueError, match=r"grid must be \(4, 4\) for this model, got \(8, 8\)"):
        by_class.layout((8, 8))
    with pytest.raises(ValueError, match=r"in \[0, 5\], got \[6\]"):
        by_class.condition(torch.tensor([6]))
    with pytest.raises(ValueError, match="integer tensor"):
        by_class.condition(torch.randn(2, 6, 12))
    with pytest.raises(ValueError, match=r"\[B, 6, 12\], got \[2, 5, 12\]"):
        by_text.condition(official["features"][:, 1:])
    with pytest.raises(ValueError, match=r"mask must have shape \[2, 6\], got \[2, 5\]"):
        by_text.condition(official["features"], official["valid"][:, 1:])


PARAMETERS = {  # millions, of the class-conditional models with blocks of 256 tokens
    "GPT-B": 110.89,
    "GPT-L": 342.91,
    "GPT-XL": 774.70,
    "GPT-XXL": 1410.97,
    "GPT-3B": 3096.66,
}


@pytest.mark.parametrize("size", PARAMETERS)
def test_published_sizes_have_the_published_parameters(size):
    n_layer, n_head, dim = SIZES[size]
    with torch.device("meta"):
        model = LlamaGen(dim=dim, n_layer=n_layer, n_head=n_head, num_classes=1000)
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    ffn = {"GPT-B": 2048, "GPT-L": 2816, "GPT-XL": 3584, "GPT-XXL": 4096, "GPT-3B": 8704}[size]
    expected = {
        "cls_embedding.embedding_table.weight": (1001, dim),
        "tok_embeddings.weight": (16384, dim),
        "norm.weight": (dim,),
        "output.weight": (16384, dim),
    }
    for i in range(n_layer):
        expected |= {
            f"layers.{i}.attention.wqkv.weight": (3 * dim, dim),
            f"layers.{i}.attention.wo.weight": (dim, dim),
            f"layers.{i}.feed_forward.w1.weight": (ffn, dim),
            f"layers.{i}.feed_forward.w3.weight": (ffn, dim),
            f"layers.{i}.feed_forward.w2.weight": (dim, ffn),
            f"layers.{i}.attention_norm.weight": (dim,),
            f"layers.{i}.ffn_norm.weight": (dim,),
        }
    assert shapes == expected
    total = sum(parameter.numel() for parameter in model.parameters())
    assert round(total / 1e6, 2) == PARAMETERS[size]


@pytest.mark.parametrize(
    ("size", "name", "options", "side"),
    [
        ("GPT-B", "c2i_B_256.pt", {"num_classes": 1000}, 16),
        ("GPT-L", "c2i_L_384.pt", {"num_classes": 1000}, 24),
        ("GPT-3B", "c2i_3B_384.pt", {"num_classes": 1000}, 24),
        ("GPT-7B", "t2i_7B_256.pt", {"caption_dim": 2048}, 16),
        ("GPT-XL", "t2i_XL_stage2_512.pt", {"caption_dim": 2048}, 32),
    ],
)
def test_the_configuration_of_a_checkpoint_follows_from_its_shapes(size, name, options, side):
    n_layer, n_head, dim = SIZES[size]
    with torch.device("meta"):
        model = LlamaGen(dim=dim, n_layer=n_layer, n_head=n_head, grid_size=side, **options)
        state = dict(model.state_dict())
        state["freqs_cis"] = torch.empty(side * side + 1, 32, 2)
        state["layers.0.attention.kv_cache.k_cache"] = torch.empty(2, 4, 8, 8)
        config, mapped = convert_official(state, name)
        again = LlamaGen(**config)
    assert set(mapped) == set(model.state_dict())
    assert {key: again.config[key] for key in ("n_head", "grid_size", "caption_dim")} == {
        key: model.config[key] for key in ("n_head", "grid_size", "caption_dim")
    }
    assert {k: t.shape for k, t in again.state_dict().items()} == {
        k: t.shape for k, t in model.state_dict().items()
    }


def test_a_converted_checkpoint_gives_the_official_logits(official, monkeypatch):
    monkeypatch.setitem(llamagen.SIZES, "tiny", (2, 4, 32))
    for name in ("c2i", "t2i"):
        start = f"{name}.state."
        state = {k.removeprefix(start): t for k, t in official.items() if k.startswith(start)}
        config, mapped = convert_official(state, grid=4)
        model = LlamaGen(**config).eval()
        model.load_state_dict(mapped)
        if name == "c2i":
            condition = model.condition(official["labels"], guided=False)
        else:
            condition = model.condition(official["features"], official["valid"], guided=False)
        with torch.no_grad():
            logits = model.logits(official["tokens"], condition)
        assert close(logits, official[f"{name}.logits"])


def test_checkpoints_that_cannot_be_understood_are_refused(by_class):
    state = by_class.state_dict()
    with pytest.raises(ValueError, match=r"published size .* got 2 layers of width 32"):
        convert_official(state, grid=4)
    with pytest.raises(ValueError, match=r"lacks the parameter tok_embeddings\.weight"):
        convert_official({}, grid=4)
    with torch.device("meta"):
        state = LlamaGen(num_classes=1000).state_dict()
    with pytest.raises(ValueError, match=r"from the file name 'last\.pt'; give it with --grid"):
        convert_official(state, "last.pt")
    assert convert_official(state, "last.pt", grid=16)[0]["grid_size"] == 16


def test_equal_prefix_columns_may_be_computed_once(by_text):
    """Zero rotations make their keys score 0, so n of them count as one with log n added."""
    features = torch.randn(2, 1, 12, generator=torch.Generator().manual_seed(0)).expand(-1, 6, -1)
    condition = by_text.condition(features, guided=False)
    tokens = torch.randint(32, (2, 16), generator=torch.Generator().manual_seed(1))
    whole = by_text.logits(tokens, condition)
    assert torch.allclose(by_text.logits(tokens, condition, same_columns=True), whole, atol=1e-4)
    different = torch.randn(2, 6, 12, generator=torch.Generator().manual_seed(2))
    condition = by_text.condition(different, guided=False)
    whole = by_text.logits(tokens, condition)
    assert (by_text.logits(tokens, condition, same_columns=True) - whole).abs().max() > 1e-2
