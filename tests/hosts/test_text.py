"""What of a prompt a real tokenizer's window takes, in any script."""

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, T5TokenizerFast

from semipermeable.hosts.text import encoded_prompts
from semipermeable.permeability.transport import visible

SENTENCES = (
    "a photo of a cat beside the old house",
    "собака в саду, старый город у моря",
    "l'été à la campagne, une fenêtre fermée",
    "ein größeres Gebäude für die Straße",
    "고양이가 지붕 위에 앉아 있다",
)
ROOM = 24


def sentencepiece():
    """T5's kind; scripts that it was not trained on become <unk>."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(SENTENCES * 20, trainer)
    vocabulary = [tuple(entry) for entry in json.loads(tokenizer.to_str())["model"]["vocab"]]
    return T5TokenizerFast(vocab=vocabulary, extra_ids=0)


def byte_level():
    """Qwen's kind."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        SENTENCES * 20, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="module", params=[sentencepiece, byte_level])
def tokenizer(request):
    return request.param()


@pytest.mark.parametrize("sentence", [*SENTENCES, "黒猫の絵 と 犬", "смотри 🐶 рядом", "e\u0301te\u0301 a\u0300 la"])
def test_a_full_window_is_read_to_its_end_and_not_much_further(tokenizer, sentence):
    words = (sentence.split() * ROOM)[: 4 * ROOM]
    text = " ".join(words)
    [one] = encoded_prompts(
        tokenizer, [text], torch.zeros(1, ROOM + 1, 2), first=0, room=ROOM, keep_padding=False, space_before=True
    )
    assert len(one.token_ids) == ROOM
    read = len(visible(one).split())
    ids = [tuple(tokenizer(" " + " ".join(words[:n]), add_special_tokens=False).input_ids) for n in (read, read - 1)]
    assert ids[0][:ROOM] == one.token_ids
    assert len(ids[1]) < ROOM


def test_a_window_that_is_not_full_shows_all_of_the_text(tokenizer):
    states = torch.zeros(2, 400, 2)
    texts = ["кот", "a photo of a cat"]
    found = encoded_prompts(tokenizer, texts, states, first=0, room=399, keep_padding=False)
    assert [visible(one) for one in found] == texts


def test_offsets_that_do_not_give_the_same_tokens_are_not_trusted(tokenizer):
    class Lying:
        is_fast = True
        convert_ids_to_tokens = tokenizer.convert_ids_to_tokens

        def __call__(self, text, *, return_offsets_mapping=False, **arguments):
            found = tokenizer(text, return_offsets_mapping=return_offsets_mapping, **arguments)
            if return_offsets_mapping:
                found["offset_mapping"] = [(0, 1)] * len(found.input_ids)
            return found

    text = " ".join(["собака"] * 40)
    [one] = encoded_prompts(Lying(), [text], torch.zeros(1, 25, 2), first=0, room=24, keep_padding=False)
    assert visible(one) == text
