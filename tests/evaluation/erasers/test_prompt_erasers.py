"""Erasers that change what is asked for, not the model."""

import pytest
import torch

from semipermeable.concept import Concept
from semipermeable.evaluation.erasers import eraser
from semipermeable.evaluation.erasers.prompt_substitution import substituted


def prepared(name, pipe, *concepts):
    return eraser(name).prepare(pipe, list(concepts), seed=0)


def test_noop_draws_the_base_models_pictures(pipe, concept, prompts, drawn):
    bare = drawn(pipe, prompts)
    with prepared("noop", pipe, concept).applied(pipe) as erased:
        assert torch.equal(drawn(erased, prompts), bare)


def test_negative_prompt_is_diffusers_own_bit_for_bit(pipe, concept, style, prompts, drawn):
    text = ", ".join((*concept.names, *style.names))
    with prepared("negative-prompt", pipe, concept, style).applied(pipe) as erased:
        changed = drawn(erased, prompts)
        both = drawn(erased, prompts, negative_prompt="dark")
    assert torch.equal(changed, drawn(pipe, prompts, negative_prompt=[text] * 2))
    assert torch.equal(both, drawn(pipe, prompts, negative_prompt=[f"dark, {text}"] * 2))
    assert not torch.equal(changed, drawn(pipe, prompts))


def test_gated_negative_prompt_leaves_other_rows_alone(pipe, concept, prompts, drawn):
    with prepared("gated-negative-prompt", pipe, concept).applied(pipe) as erased:
        changed = drawn(erased, prompts)
    assert torch.equal(changed, drawn(pipe, prompts, negative_prompt=[", ".join(concept.names), ""]))
    assert torch.equal(changed[1], drawn(pipe, prompts)[1])
    assert not torch.equal(changed[0], drawn(pipe, prompts)[0])


def test_substitution_equals_drawing_the_substituted_prompt(pipe, spec, concept, prompts, drawn):
    assert concept.surrogate
    instead = [spec.caption(concept.surrogate, spec.styles[0]), prompts[1]]
    with prepared("prompt-substitution", pipe, concept).applied(pipe) as erased:
        assert torch.equal(drawn(erased, prompts), drawn(pipe, instead))


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("a neon icon of a cat", "a neon icon of an animal"),
        ("Cats, sleeping", "animals, sleeping"),
        ("A kitty's bowl beside a cat face", "An animal's bowl beside a cat face"),
        ("the CAT and a Kitty", "the animal and an animal"),
        ("a purring pet", "animal"),
    ],
)
def test_words_are_replaced_where_they_stand(prompt, wanted):
    cat = Concept("cat", aliases=("kitty",), surrogate="animal", keep=("cat face",))
    assert substituted(prompt, cat) == wanted


def test_without_a_surrogate_the_name_is_dropped():
    assert substituted("a neon icon of a cat", Concept("cat")) == "a neon icon of"
    assert substituted("a neon style icon of a dog", Concept("neon style")) == "icon of a dog"
