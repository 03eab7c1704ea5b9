"""Text encoders: how prompts are read, padding, unseen words, saving, and the T5 adapter."""

import sys

import pytest
import torch

from visual_ar.text_encoder import (
    T5TextEncoder,
    TextEncoder,
    roll_to_end,
    split_words,
    vocabulary,
)

PROMPTS = ["red heart", "strawberry", "waving hand, medium skin tone", "Côte d\u2019Ivoire"]


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return TextEncoder(
        words=vocabulary(PROMPTS), dim=32, depth=2, heads=2, feature_dim=24, length=8
    )


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("Waving hand: medium-light skin tone", "waving hand medium light skin tone"),
        ("  CÔTE  d\u2019ivoire\x00\u200b", "cote d ivoire"),
        ("\N{STRAWBERRY}", "strawberry"),
        ("\ufb01sh \uff21", "fish a"),  # ligature and full-width letter
        ("piñata_1", "pinata 1"),
        ("!?", ""),
        ("", ""),
    ],
)
def test_words_of_a_prompt(prompt, words):
    assert split_words(prompt) == words.split()


@torch.no_grad()
def test_every_column_holds_the_summary_of_the_prompt(encoder):
    encoder.eval()
    features, mask = encoder.encode(["red heart", "waving hand, medium skin tone", ""])
    assert features.shape == (3, 8, 24)
    assert mask.tolist() == [[True] * 8, [True] * 8, [False] * 8]
    assert torch.equal(features, features[:, :1].expand(-1, 8, -1))
    assert not features[2].any() and torch.isfinite(features).all()
    assert (features[0] - features[1]).abs().max() > 1e-3


@torch.no_grad()
def test_a_prompt_does_not_depend_on_the_others_nor_on_the_room_for_longer_ones(encoder):
    encoder.eval()
    together, _ = encoder.encode(["red heart", "waving hand, medium skin tone"])
    alone, _ = encoder.encode(["red heart"])
    assert torch.allclose(alone[0], together[0], atol=1e-6)
    longer = TextEncoder.from_config(encoder.config, length=11)
    state = encoder.state_dict()
    state["position_embedding.weight"] = torch.cat(
        [state["position_embedding.weight"], torch.randn(3, 32)]
    )
    longer.load_state_dict(state)
    again, _ = longer.eval().encode(["red heart"])
    assert torch.allclose(again[0, :8], alone[0], atol=1e-6)


@torch.no_grad()
def test_order_and_case(encoder):
    encoder.eval()
    features, _ = encoder.encode(["red heart", "heart red", "RED  Heart!"])
    assert (features[0] - features[1]).abs().max() > 1e-3
    assert torch.allclose(features[0], features[2], atol=1e-6)


def test_a_typing_error_is_read_as_the_word_it_resembles():
    torch.manual_seed(0)
    words = ["strawberry", "trombone", "mountain", "elephant"]
    encoder = TextEncoder(words=words, dim=32, depth=1, heads=2, feature_dim=16, length=4)
    prompts, targets = encoder.tokenize(words), torch.randn(4, 16)
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=1e-2)
    for _ in range(60):
        loss = (encoder.train()(prompts)[0][:, -1] - targets).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        features, _ = encoder.eval().encode(["strawbery", "trombones", "montain", "elefant"])
    assert torch.cdist(features[:, -1], targets).argmin(1).tolist() == [0, 1, 2, 3]


def test_words_are_hidden_in_training_only(encoder):
    prompts = encoder.tokenize(["red heart"] * 64)
    features, _ = encoder.train()(prompts)
    assert len({tuple(row) for row in features[:, -1].tolist()}) > 1
    features, _ = encoder.eval()(prompts)
    assert len({tuple(row) for row in features[:, -1].tolist()}) == 1


def test_every_parameter_learns(encoder):
    features, _ = encoder.train().encode(PROMPTS * 8)
    features.square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


@torch.no_grad()
def test_saving_and_loading(encoder, tmp_path):
    encoder.eval().save_pretrained(tmp_path)
    again = TextEncoder.from_pretrained(tmp_path)
    prompts = [*PROMPTS, "unseen words"]
    assert torch.equal(again.encode(prompts)[0], encoder.encode(prompts)[0])


def test_rows_of_tokenised_prompts(encoder):
    some = encoder.tokenize(PROMPTS).rows(torch.tensor([2, 0]))
    assert torch.equal(some.words, encoder.tokenize([PROMPTS[2], PROMPTS[0]]).words)


def test_a_prompt_that_is_too_long_is_refused(encoder):
    with pytest.raises(ValueError, match="at most 8 words for this model, got 9: 'a b"):
        encoder.encode(["red heart", "a b c d e f g h i"])


def test_valid_features_roll_to_the_end():
    features = torch.arange(1.0, 9.0).view(2, 4, 1)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    rolled, valid = roll_to_end(features, mask)
    assert rolled[..., 0].tolist() == [[0, 0, 1, 2], [5, 6, 7, 8]]
    assert valid.tolist() == [[False, False, True, True], [True] * 4]


def test_t5_without_transformers_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'visual-ar\[transformers\]'"):
        T5TextEncoder({"d_model": 8})


@pytest.fixture
def tiny_t5(tmp_path):
    """A folder with a random T5 encoder and a word-level tokenizer of a few words."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = ["<pad>", "</s>", "<unk>", "a", "red", "heart"]
    core = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, **special)
    tokenizer.save_pretrained(tmp_path)
    config = transformers.T5Config(
        vocab_size=6, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4
    )
    torch.manual_seed(0)
    transformers.T5EncoderModel(config).save_pretrained(tmp_path)
    return tmp_path


@torch.no_grad()
def test_t5_features_are_left_padded(tiny_t5, tmp_path):
    encoder = T5TextEncoder.from_t5(str(tiny_t5), length=6)
    features, mask = encoder.encode([" A red HEART ", "heart"])
    assert mask.tolist() == [[False] * 2 + [True] * 4, [False] * 4 + [True] * 2]
    assert features.shape == (2, 6, 16) and not features[~mask].any()
    direct = encoder.encoder(torch.tensor([[3, 4, 5, 1]])).last_hidden_state
    assert torch.allclose(features[0, 2:], direct[0], atol=1e-5)
    encoder.save_pretrained(tmp_path / "saved")
    again = T5TextEncoder.from_pretrained(tmp_path / "saved")
    assert torch.allclose(again.encode(["heart"])[0], features[1:], atol=1e-6)
