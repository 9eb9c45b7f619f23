"""What is remembered of decisions."""

import torch

from semipermeable.concept import Concept
from semipermeable.equip import gating
from semipermeable.equip.gating import RowGate
from semipermeable.membrane import Membrane
from semipermeable.permeability import Constant, EncodedPrompt, Trace
from semipermeable.runtime import Role
from semipermeable.runtime.prompt_book import Entry


class Encoder:
    """As much of a host as a gate asks."""

    def encode(self, prompts):
        return [EncodedPrompt(prompt, (1,), ("a",), torch.zeros(3, 2)) for prompt in prompts]

    def text_encoder_hash(self):
        return ""


def test_the_oldest_decisions_are_forgotten_first_but_none_that_is_being_asked_for(monkeypatch):
    monkeypatch.setattr(gating, "_MAX_CACHED", 8)
    membrane = Membrane({"site": (torch.ones(2, 1), torch.ones(1, 2))}, Concept("cat"))
    gate = RowGate(Encoder(), [membrane], Constant(0.5), [1.0], "open", Trace())

    def ask(*texts):
        return gate.strengths([Entry(text, Role.PROMPT) for text in texts], [True] * len(texts))

    for number in range(12):
        ask(f"p{number}")
    assert torch.equal(ask("p4", "new", "p0", "newer"), torch.full((4, 1), 0.5))
    assert torch.equal(ask(*(f"q{number}" for number in range(12)), "q0"), torch.full((13, 1), 0.5))
    assert len(gate._decided) == 8
