"""A text encoder of words for tests that need no model: every word is one token with a fixed random state.

Only "cta" is not in its vocabulary and becomes two pieces, so that it can be a slip of the finger. `endings=True` gives
a small vocabulary, in which the s of every plural is a token of its own.
"""

import hashlib
import re

import torch

from semipermeable.concept import Concept
from semipermeable.permeability import EncodedPrompt, GatedConcept

DIM = 128
WINDOW = 16


def state_of(word):
    return torch.randn(DIM, generator=torch.Generator().manual_seed(id_of(word)))


def id_of(token):
    return int.from_bytes(hashlib.sha256(token.encode()).digest()[:4], "big")


def pieces(word, endings):
    if word == "cta":
        return ("c", "ta</w>")
    return (word[:-1], "s</w>") if endings and len(word) > 2 and word.endswith("s") else (f"{word}</w>",)


def encode_one(text, synonyms=None, *, endings=False):
    """Encode with one token a word; `synonyms` maps words to the word whose state they share."""
    words = re.findall(r"[\w]+|[^\w\s]", text.lower())
    tokens = [piece for word in words for piece in pieces(word, endings)]
    tokens = tuple(tokens[: WINDOW - 2])
    states = torch.zeros(WINDOW, DIM)
    states[0] = state_of("<bos>")
    for index, token in enumerate(tokens):
        word = token.removesuffix("</w>")
        states[index + 1] = state_of((synonyms or {}).get(word, word))
    states[len(tokens) + 1 :] = state_of("<eos>")
    return EncodedPrompt(text, tuple(id_of(t) for t in tokens), tokens, states, states[len(tokens) + 1])


def encoder(synonyms=None, *, endings=False):
    return lambda texts: [encode_one(text, synonyms, endings=endings) for text in texts]


def gated(concept, gate=None, encode=None):
    concept = Concept(concept) if isinstance(concept, str) else concept
    encode = encode or encoder()
    return GatedConcept(concept, tuple(encode(list(concept.names))), encode([""])[0], gate)
