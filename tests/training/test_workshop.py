from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from semipermeable import TrainConfig, erase
from semipermeable.errors import ConfigError
from semipermeable.hosts import UNetHost
from semipermeable.training import Workshop, train
from semipermeable.training.closed_form import pair_states, second_moment

from training_helpers import CAPTIONS, CONCEPT, make_tiny_pipe, quick


class _Counting(UNetHost):
    """Remembers every text that is encoded."""

    def __init__(self, pipe):
        super().__init__(pipe)
        self.texts = []

    def encode(self, prompts):
        self.texts += prompts
        return super().encode(prompts)


def _finish(steps):
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def test_every_text_is_encoded_once(tiny_pipe):
    workshop = Workshop(_Counting(tiny_pipe))
    first = workshop.encode(["a cat", "a dog", "a cat"])
    second = workshop.encode(["a dog", "a cow"])
    words = workshop.encode_words(["a dog", "a pig"])
    assert workshop.host.texts == ["a cat", "a dog", "a cow", "a pig"]
    assert [prompt.text for prompt in (*first, *second, *words)] == [
        "a cat",
        "a dog",
        "a cat",
        "a dog",
        "a cow",
        "a dog",
        "a pig",
    ]
    whole, short = second[0], words[0]
    assert short.states.shape[0] == short.first + len(short.token_ids) + 1 < whole.states.shape[0]
    assert torch.equal(short.states, whole.states[: short.states.shape[0]])


def test_the_moment_of_another_keep_set_is_what_it_would_be_alone(host):
    workshop = Workshop(host)
    texts = [f"a {name}" for name in ("cat", "dog", "cow", "pig", "owl", "car", "bus")]
    for kept in (texts[:6], texts[1:], texts[:5], [*texts, "a tree", texts[0]], ["a rose"]):
        states = torch.cat([prompt.states for prompt in host.encode(list(dict.fromkeys(kept)))])
        assert_close(workshop.keep_moment(kept), second_moment(states), atol=1e-7, rtol=1e-6)
    with pytest.raises(ConfigError, match="needs captions to keep"):
        workshop.keep_moment([])


def test_the_instant_membrane_has_pairs_where_text_enters_and_nowhere_else(host):
    workshop = Workshop(host)
    trained = _finish(train(workshop, CONCEPT, CAPTIONS, quick("instant", num_steps=0), seed=0))
    assert set(trained.pairs) == set(workshop.text_projections())
    assert all(u.any() and v.any() for u, v in trained.pairs.values())
    assert trained.last is None


def test_the_instant_membrane_reads_the_concept_as_its_surrogate(host):
    """Keys and values of the captions come nearer to those of the surrogate, the more the higher the rank."""
    workshop = Workshop(host)
    rows = [
        pair_states(target, surrogate, host.encode(["cat"])[0].token_ids)
        for target, surrogate in zip(host.encode(CAPTIONS.targets), host.encode(CAPTIONS.surrogates), strict=True)
    ]
    x, goal = torch.cat([pairs.target for pairs in rows]), torch.cat([pairs.surrogate for pairs in rows])
    left = []
    for rank in (1, 4, 16):
        config = quick("instant", num_steps=0, rank=rank, negative_guidance=0.0, closed_form_keep=0.01)
        found = _finish(train(workshop, CONCEPT, CAPTIONS, config, seed=0)).pairs
        apart = before = 0.0
        for name, site in workshop.text_projections().items():
            u, v = found[name]
            assert u.shape[1] == rank
            wanted = (goal - x) @ site.weight.detach().T
            before += float(wanted.square().sum())
            apart += float((x @ v.T @ u.T - wanted).square().sum())
        left.append(apart / before)
    assert 1 > left[0] > left[1] > left[2]
    assert left[2] < 0.2


@pytest.mark.parametrize("num_steps", [0, 1])
def test_a_style_goes_its_own_way_beyond_its_surrogate(tiny_pipe, num_steps):
    def trained(kind, for_objects, for_styles):
        config = quick(
            num_steps=num_steps, negative_guidance=for_objects, style_negative_guidance=for_styles, warmup_steps=0
        )
        return _finish(train(Workshop(tiny_pipe), CONCEPT, replace(CAPTIONS, kind=kind), config, seed=0)).pairs

    found, same, other = trained("style", 2.0, 0.5), trained("object", 0.5, 2.0), trained("style", 0.5, 2.0)
    assert all(torch.equal(found[name][0], same[name][0]) for name in found)
    assert not all(torch.equal(found[name][0], other[name][0]) for name in found)


def test_a_shared_workshop_makes_the_membrane_of_its_own_one(tiny_pipe):
    workshop = Workshop(tiny_pipe)
    config = quick("instant", num_steps=0)
    erase(tiny_pipe, "dog", config=config, workshop=workshop, progress=False)
    shared = erase(tiny_pipe, "cat", config=config, workshop=workshop, progress=False)
    alone = erase(tiny_pipe, "cat", config=config, progress=False)
    assert shared.provenance == alone.provenance
    assert shared.gate.settings["num_negatives"] == alone.gate.settings["num_negatives"]
    for name, (u, v) in alone.pairs.items():
        assert_close(shared.pairs[name][0] @ shared.pairs[name][1], u @ v, atol=1e-5, rtol=1e-3)


def test_a_workshop_of_another_pipeline_is_refused(pipe, tiny_pipe):
    with pytest.raises(ConfigError, match="belongs to another pipeline"):
        erase(tiny_pipe, "cat", preset="instant", workshop=Workshop(make_tiny_pipe(pipe)), progress=False)


def test_null_space_is_an_option_and_an_empty_one_is_refused(host):
    free = Workshop(host).closed_form(CAPTIONS, quick("instant", num_steps=0))
    confined = Workshop(host).closed_form(CAPTIONS, quick("instant", num_steps=0, closed_form_null=1e-7))
    keep = Workshop(host).keep_moment(CAPTIONS.anchors)

    def moved(pairs):
        return sum(float(torch.einsum("oi,ij,oj->", d, keep, d)) for d in ((u @ v).double() for u, v in pairs.values()))

    assert 0 < moved(confined) < 1e-3 * moved(free)
    whole = torch.eye(keep.shape[0]).double()
    workshop = Workshop(host)
    workshop.keep_moment = lambda _: whole
    with pytest.raises(ConfigError, match="no direction is left"):
        workshop.closed_form(CAPTIONS, quick("instant", num_steps=0, closed_form_null=0.5))
    with pytest.raises(ConfigError, match=r"closed_form_null must be in \[0, 1\)"):
        TrainConfig(closed_form_null=1.0)


@pytest.mark.parametrize("num_steps", [0, 4])
def test_regulators_stay_orthogonal_to_those_of_the_bank(tiny_pipe, num_steps):
    preset = "fast" if num_steps else "instant"
    bank = [
        erase(tiny_pipe, name, config=quick(preset, num_steps=num_steps), progress=False) for name in ("dog", "car")
    ]
    config = quick(preset, num_steps=num_steps, rank=2)
    options = {"config": config, "progress": False}
    free = erase(tiny_pipe, "cat", **options)
    apart = erase(tiny_pipe, "cat", orthogonal_to=bank, **options)
    assert apart.provenance.training["orthogonal_to"] == ["dog", "car"]

    def largest(membrane):
        return max(
            float(
                (
                    torch.nn.functional.normalize(v.flatten(1), dim=1)
                    @ torch.nn.functional.normalize(other.pairs[name][1].flatten(1), dim=1).T
                )
                .abs()
                .max()
            )
            for other in bank
            for name, (_, v) in membrane.pairs.items()
        )

    assert largest(free) > 0.1
    assert largest(apart) < 1e-5
    assert any(u.any() for u, _ in apart.pairs.values())
