"""What all families inherit: passes, several denoisers, embeddings that are cast or come as lists."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from semipermeable.hosts import EncodeResult, Host, together, viewed
from semipermeable.hosts.parts import RowText
from semipermeable.permeability import EncodedPrompt
from semipermeable.runtime import Role
from semipermeable.sites import find_sites


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q = nn.Linear(2, 2)


class Denoiser(nn.Module):
    """A denoiser whose calls are named as diffusers' pipelines name them."""

    dtype = torch.float32

    def __init__(self):
        super().__init__()
        self.block = Block()

    @contextmanager
    def cache_context(self, name):
        yield

    def forward(self, hidden_states, timestep=None, encoder_hidden_states=None):
        return hidden_states


class Pipe:
    """Two denoisers; prompts are encoded one call each, as lists of rows."""

    def __init__(self):
        self.transformer, self.transformer_2 = Denoiser(), Denoiser()

    def encode_prompt(self, prompt=None, prompt_embeds=None):
        if prompt_embeds is not None:
            return (prompt_embeds, "ids")
        rows = [torch.full((len(text), 2), float(index)) for index, text in enumerate(prompt)]
        for index in range(len(prompt)):
            prompt[index] = f"<user>{prompt[index]}"
        return rows, "ids"


def encoded(text, window):
    """A prompt of one-letter tokens; its states are the window."""
    ids = tuple(map(ord, text))
    return EncodedPrompt(text, ids, tuple(text), torch.full((len(text) + 2, 2), float(window)))


class PassesHost(Host):
    family = "passes"
    describes = "a test"
    site_classes = ("Block",)
    denoiser_names = ("transformer", "transformer_2", "transformer_3")
    encode_result = EncodeResult(0, None)
    layout = "passes"

    @classmethod
    def supports(cls, pipe):
        return True

    def encode_texts(self, texts, window):
        return [encoded(text, window) for text in texts]

    def condition(self, prompts):
        raise NotImplementedError

    def predict(self, latents, timesteps, condition):
        raise NotImplementedError

    def latent_shape(self):
        return (1, 1, 1)


@pytest.fixture
def host():
    return PassesHost(Pipe())


def test_several_denoisers_are_one_module_with_prefixed_sites(host):
    assert list(host.denoisers) == ["transformer", "transformer_2"]
    assert list(find_sites(host.denoiser, host.site_classes)) == ["transformer.block.to_q", "transformer_2.block.to_q"]
    alone = host.pipe.transformer
    host.pipe.transformer_2 = None
    assert host.denoiser is alone
    assert together(host.denoisers) is alone


def test_a_pass_is_known_by_the_name_that_the_pipeline_gives_it(host):
    seen, own = [], host.denoisers

    @contextmanager
    def gate(args, kwargs):
        seen.append(host.call_rows(args, kwargs))
        yield

    text = torch.zeros(2, 3, 4)
    with viewed(host, "test", gate):
        for name in ("cond", "uncond"):
            with host.pipe.transformer_2.cache_context(name):
                host.pipe.transformer_2(torch.zeros(2, 1), encoder_hidden_states=text)
        host.pipe.transformer(torch.zeros(2, 1), None, text)
    assert host.denoisers == own
    assert [(rows.conditional, rows.named) for rows in seen] == [
        ([True, True], True),
        ([False, False], True),
        ([True, True], False),
    ]
    assert all(rows.text is text for rows in seen)


def test_texts_are_read_before_the_pipeline_writes_its_template_into_them(host):
    prompts = ["a cat", "dog"]
    observed = host.observe(host.pipe.encode_prompt, (prompts,), {})
    assert prompts == ["<user>a cat", "<user>dog"]
    ((rows, texts, role),) = observed.known
    assert (texts, role, observed.passed) == (["a cat", "dog"], Role.PROMPT, [])
    assert rows is observed.result[0]


def test_embeddings_passed_through_are_reported_with_their_source(host):
    given = torch.zeros(1, 3, 4)
    observed = host.observe(host.pipe.encode_prompt, (), {"prompt_embeds": given})
    ((source, rows, role),) = observed.passed
    assert source is given is rows
    assert (role, observed.known) == (Role.PROMPT, [])


def test_rows_are_remembered_as_the_denoiser_will_read_them(host, monkeypatch):
    monkeypatch.setattr(PassesHost, "casts_text", True)
    monkeypatch.setattr(Denoiser, "dtype", torch.float16)
    observed = host.observe(lambda prompt: (torch.ones(1, 3, 4), None), ("a cat",), {})
    assert observed.known[0][0].dtype == torch.float16
    assert observed.result[0].dtype == torch.float32


class Reading:
    """A pipeline with several texts and a window."""

    def __call__(self, prompt, max_sequence_length=4):
        """Never called: its signature tells the usual window."""

    def encode_prompt(
        self, prompt=None, prompt_2=None, prompt_3=None, negative_prompt=None, negative_prompt_2=None,
        do_classifier_free_guidance=False, max_sequence_length=6,
    ):  # fmt: skip
        rows = max(len(texts) if isinstance(texts, list) else 1 for texts in (prompt, prompt_2, prompt_3))
        return torch.zeros(rows, 1, 1), torch.zeros(rows, 1, 1)


class ReadingHost(PassesHost):
    encode_result = EncodeResult(0, 1)


@pytest.mark.parametrize(
    ("given", "rows"),
    [
        ({"prompt": "a"}, ["a"]),
        ({"prompt": ""}, [""]),
        ({"prompt": "a", "prompt_2": "a", "prompt_3": ""}, ["a"]),
        ({"prompt": "a", "prompt_2": "b", "prompt_3": "c"}, [("a", "b", "c")]),
        ({"prompt": ["a", "b"], "prompt_3": ["c", "b"]}, [("a", "c"), "b"]),
        ({"prompt": ["a", "b"], "prompt_2": "c"}, [("a", "c"), ("b", "c")]),
        ({"prompt": "a", "prompt_2": ["b", "c"]}, [("a", "b"), ("a", "c")]),
    ],
)
def test_a_row_is_all_texts_that_it_was_made_from(given, rows):
    host = ReadingHost(Reading())
    told = {"max_sequence_length": 4}
    ((_, texts, role),) = host.observe(host.pipe.encode_prompt, (), given | told).known
    assert [text.texts if isinstance(text, RowText) else text for text in texts] == rows
    assert role == Role.PROMPT
    negative = {f"negative_{name}": value for name, value in given.items() if name != "prompt_3"}
    observed = host.observe(
        host.pipe.encode_prompt, (), {"prompt": "a", "do_classifier_free_guidance": True} | negative | told
    )
    assert observed.known[1][2] == Role.NEGATIVE


def test_a_longer_window_is_remembered_and_a_shorter_one_is_not():
    host = ReadingHost(Reading())
    for told, expected in (({}, 6), ({"max_sequence_length": 9}, 9), ({"max_sequence_length": 4}, 0)):
        ((_, [text], _),) = host.observe(host.pipe.encode_prompt, ("a",), told).known
        assert str(text) == "a"
        assert (text.window if isinstance(text, RowText) else 0) == expected
        assert host.encode([text])[0].states[0, 0] == (expected or 4)


def test_a_decision_on_a_plain_text_is_none_on_a_row_of_several():
    row, plain = RowText(("a", "b")), "a | b"
    assert str(row) == plain
    assert type(str(row)) is str
    assert row != plain
    assert plain != row
    assert len({row, plain, RowText(("a", "b")), RowText(("a", "b"), 9), RowText(("a",), 9), "a"}) == 5


def test_rows_of_several_texts_and_windows_are_encoded_in_order():
    rows = [RowText(("ab", "c")), "d", RowText(("e",), 9), RowText(("f", "g"), 9), "h"]
    found = ReadingHost(Reading()).encode(rows)
    assert [one.text for one in found] == ["ab | c", "d", "e", "f | g", "h"]
    assert [[part.text for part in one.each()] for one in found] == [["ab", "c"], ["d"], ["e"], ["f", "g"], ["h"]]
    assert [float(one.states[0, 0]) for one in found] == [4, 4, 9, 9, 4]
    assert found[0].tokens == ("a", "b", "c")
    assert found[0].token_ids == tuple(map(ord, "abc"))
    # BOS, three tokens, EOS
    assert found[0].states.shape == (5, 2)
