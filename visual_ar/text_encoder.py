"""Prompts to caption features [B, T, C], left-padded as LlamaGen's caption projection expects them.

`TextEncoder` is small and learned together with a generator; `T5TextEncoder` gives the features
that the official text-conditional weights were trained on. Knows nothing about generators.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from visual_ar.eight_bit import EightBitModel
from visual_ar.text_blocks import Mlp, TextBlock

_WORD = re.compile(r"[^\W_]+")
_NGRAM_SIZES = (3, 4)
_LONGEST_WORD = 24  # characters of a word that its n-grams are taken from
_UNKNOWN = 0


def split_words(prompt: str) -> list[str]:
    """The words of a prompt in order: case, accents, control characters and punctuation removed.

    Pictographs count as the words of their Unicode name, so a strawberry reads as "strawberry".
    """
    named = "".join(
        f" {unicodedata.name(c, '')} " if unicodedata.category(c) == "So" else c for c in prompt
    )
    plain = "".join(
        c
        for c in unicodedata.normalize("NFKD", named)
        if c.isspace() or unicodedata.category(c) not in ("Mn", "Cc", "Cf")
    )
    return _WORD.findall(plain.casefold())


def vocabulary(prompts: Iterable[str]) -> list[str]:
    """Every word of some prompts once, sorted."""
    return sorted({word for prompt in prompts for word in split_words(prompt)})


class Words(NamedTuple):
    """Prompts as numbers, left-padded to L words, as many as the longest has.

    Attributes:
        words: int64 [B, L], position in the vocabulary from 1 on, 0 for unknown words and padding.
        ngrams: int64 [B, L, G], hashed n-grams of each word from 1 on, 0 for padding.
        mask: bool [B, L], False marks padding.
    """

    words: Tensor
    ngrams: Tensor
    mask: Tensor

    def rows(self, index: Tensor) -> Words:
        """Some of the prompts. index: int64 [b]."""
        return Words(*(tensor[index] for tensor in self))

    def to(self, device: torch.device | str) -> Words:
        """The same prompts on `device`."""
        return Words(*(tensor.to(device) for tensor in self))


class TextEncoder(EightBitModel, ConfigMixin):
    """A small transformer over words; a word is its own embedding plus those of its n-grams.

    Hashed character n-grams (Bojanowski et al. 2017) give unseen words and typing errors an
    embedding close to that of similar known words. All feature columns hold one summary of the
    prompt: LlamaGen's prefix keys score 0, so that its attention only ever averages the columns,
    and weighs a prompt by their number; the four of a typical name would be lost among 256 cells.

    Args:
        words: the vocabulary, see `vocabulary`.
        dim: width of the transformer.
        depth: number of blocks.
        heads: heads of a block.
        feature_dim: C, width of the features.
        length: T, feature columns, and most words a prompt may have.
        ngram_buckets: size of the n-gram table.
        word_dropout: probability of hiding a word, so that its n-grams learn to stand for it.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        words: Sequence[str] = (),
        dim: int = 128,
        depth: int = 2,
        heads: int = 4,
        feature_dim: int = 256,
        length: int = 16,
        ngram_buckets: int = 4096,
        word_dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self._ids = {word: number for number, word in enumerate(words, start=1)}
        self.word_embedding = nn.Embedding(len(words) + 1, dim)
        self.ngram_embedding = nn.Embedding(ngram_buckets + 1, dim, padding_idx=0)
        self.position_embedding = nn.Embedding(length, dim)
        self.blocks = nn.ModuleList(TextBlock(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.summary = Mlp(dim, 2 * dim, feature_dim)
        for table in (self.word_embedding, self.ngram_embedding, self.position_embedding):
            nn.init.normal_(table.weight, std=0.1)
        nn.init.zeros_(self.ngram_embedding.weight[0])

    def tokenize(self, prompts: Sequence[str]) -> Words:
        """Prompts as numbers, on the CPU. An empty prompt is all padding.

        Raises:
            ValueError: a prompt has more words than the model reads.
        """
        length = self.config.length
        split = [split_words(prompt) for prompt in prompts]
        for prompt, words in zip(prompts, split, strict=True):
            if len(words) > length:
                raise ValueError(
                    f"prompt must have at most {length} words for this model, "
                    f"got {len(words)}: {prompt!r}"
                )
        columns = max(1, *map(len, split))
        numbers = torch.full((len(prompts), columns), _UNKNOWN)
        mask = torch.zeros(len(prompts), columns, dtype=torch.bool)
        grams = {word: self._hash_ngrams(word) for words in split for word in words}
        longest = max(map(len, grams.values()), default=1)
        ngrams = torch.zeros(len(prompts), columns, longest, dtype=torch.int64)
        for row, words in enumerate(split):
            for column, word in enumerate(words, start=columns - len(words)):
                numbers[row, column] = self._ids.get(word, _UNKNOWN)
                ngrams[row, column, : len(grams[word])] = torch.tensor(grams[word])
                mask[row, column] = True
        return Words(numbers, ngrams, mask)

    def forward(self, prompts: Words) -> tuple[Tensor, Tensor]:
        """Caption features.

        Args:
            prompts: B tokenised prompts on the model's device.

        Returns:
            features [B, T, C], the same in every column, and their mask, bool [B, T]: False all
            along an empty prompt, whose features are zero.
        """
        words, ngrams, mask = prompts
        if self.training:
            hidden = torch.rand(words.shape, device=words.device) < self.config.word_dropout
            words = words.masked_fill(hidden, _UNKNOWN)
        # Over the root of their number, so that n-grams weigh as much as the word itself.
        scale = (ngrams > 0).sum(-1, keepdim=True).clamp(min=1).rsqrt()
        order = (mask.cumsum(1) - 1).clamp(min=0)
        embedded = self.word_embedding(words)
        x = embedded + self.ngram_embedding(ngrams).sum(-2) * scale.to(embedded.dtype)
        x = x + self.position_embedding(order)
        itself = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
        visible = (mask[:, None] | itself)[:, None]  # padding sees itself: no empty softmax
        for block in self.blocks:
            x = block(x, visible)
        x = self.norm(x) * mask[..., None]
        summary = self.summary(x.sum(1) / mask.sum(1, keepdim=True).clamp(min=1))
        told = mask.any(1, keepdim=True)
        length = self.config.length
        features = (summary * told)[:, None].expand(-1, length, -1)
        return features, told.expand(-1, length)

    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """`forward` of `tokenize`: features [B, T, C] and mask [B, T] of B prompts."""
        return self(self.tokenize(prompts).to(self.device))

    def _hash_ngrams(self, word: str) -> list[int]:
        marked = f"<{word[:_LONGEST_WORD]}>"
        return [
            1 + zlib.crc32(marked[start : start + size].encode()) % self.config.ngram_buckets
            for size in _NGRAM_SIZES
            for start in range(max(1, len(marked) - size + 1))
        ]


class T5TextEncoder(ModelMixin, ConfigMixin):
    """Features of a FLAN-T5 encoder, what LlamaGen's official text-conditional weights read.

    Needs the `transformers` extra. The weights are saved with the model; the vocabulary is read
    from `tokenizer` on first use.

    Args:
        t5: the T5 configuration.
        tokenizer: hub id or folder of the T5 tokenizer.
        length: T; longer prompts are cut, as in the training of the official weights.

    Raises:
        ImportError: transformers is not installed.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self, t5: dict[str, Any], tokenizer: str = "google/flan-t5-xl", length: int = 120
    ) -> None:
        super().__init__()
        transformers = _import_transformers()
        # The stack alone: the model around it holds its embeddings twice, which cannot be saved.
        self.encoder = transformers.T5EncoderModel(transformers.T5Config(**t5)).encoder
        self._tokenizer: Any = None

    @classmethod
    def from_t5(cls, source: str = "google/flan-t5-xl", length: int = 120) -> T5TextEncoder:
        """Wraps a published T5.

        Args:
            source: hub id or folder of the weights and the tokenizer.
            length: T.

        Raises:
            ImportError: transformers is not installed.
            OSError: `source` cannot be read.
        """
        encoder = _import_transformers().T5EncoderModel.from_pretrained(source)
        with torch.device("meta"):
            model = cls(t5=encoder.config.to_dict(), tokenizer=str(source), length=length)
        model.encoder = encoder.encoder
        return model.eval()

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Features [B, T, C], valid ones rolled to the end and the rest zero, and mask [B, T]."""
        if self._tokenizer is None:
            source = self.config.tokenizer
            self._tokenizer = _import_transformers().AutoTokenizer.from_pretrained(source)
        tokens = self._tokenizer(
            [prompt.strip().lower() for prompt in prompts],
            max_length=self.config.length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).to(self.device)
        mask = tokens["attention_mask"]
        features = self.encoder(tokens["input_ids"], attention_mask=mask).last_hidden_state
        return roll_to_end(features, mask.bool())


def roll_to_end(features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Turns padding at the end into padding at the start.

    Args:
        features: [B, T, C].
        mask: bool [B, T], True for the first entries of every row.

    Returns:
        features with the padding zeroed, and the mask, both rolled.
    """
    length = mask.shape[1]
    columns = torch.arange(length, device=mask.device)
    source = (columns + mask.sum(1, keepdim=True)) % length  # [B, T]
    rolled = mask.gather(1, source)
    features = features.gather(1, source[..., None].expand_as(features))
    return features * rolled[..., None], rolled


def _import_transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "T5 text features need transformers: pip install 'visual-ar[transformers]'"
        ) from error
    return transformers
