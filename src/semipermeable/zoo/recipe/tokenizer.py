"""The vocabulary: byte-pair merges learned from the captions, in CLIP's layout.

Tokens are the 256 bytes, the same with the end-of-word mark, the merges in order, and CLIP's two special tokens. A
word that is in no caption falls into bytes: it is spelled, never unknown.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from semipermeable.zoo.recipe.text import LENGTH

__all__ = ["clean_copy", "train_tokenizer"]

WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""What CLIP takes for a word before merging."""
END_OF_WORD = "</w>"
MERGES = 1720
"""Merges at most; few enough that rare words are spelled."""


def train_tokenizer(texts: list[str]) -> CLIPTokenizer:
    """Return a tokenizer whose merges were learned from these texts; the same texts give the same tokenizer."""
    splits: Any = [
        pre_tokenizers.Split(Regex(WORDS), "removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    learner: Any = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix=END_OF_WORD))
    learner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    learner.pre_tokenizer = pre_tokenizers.Sequence(splits)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner.train_from_iterator(
        sorted(texts),
        trainers.BpeTrainer(
            vocab_size=2 * len(letters) + MERGES,
            initial_alphabet=letters,
            end_of_word_suffix=END_OF_WORD,
            continuing_subword_prefix="",
            min_frequency=2,
            show_progress=False,
        ),
    )
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    tokens = [*letters, *(letter + END_OF_WORD for letter in letters), *dict.fromkeys(a + b for a, b in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    maker: Any = CLIPTokenizer  # transformers types its merges as lines of text
    return maker(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=merges,
        model_max_length=LENGTH,
        bos_token="<|startoftext|>",  # noqa: S106 - a token of text, not a secret
        eos_token="<|endoftext|>",  # noqa: S106
        unk_token="<|endoftext|>",  # noqa: S106
        pad_token="<|endoftext|>",  # noqa: S106
    )


def clean_copy(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Save a tokenizer without the padding and truncation that its last call left in it."""
    backend: Any = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    tokenizer.save_pretrained(folder)
