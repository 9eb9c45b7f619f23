import re
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from semipermeable import TrainConfig, erase, erase_many, zoo
from semipermeable.errors import ConfigError, SiteError
from semipermeable.files.native import to_bytes
from semipermeable.hosts import UNetHost
from semipermeable.training import Workshop, erase_each, train
from semipermeable.training.captions import captions_for, enrich
from semipermeable.training.closed_form import pair_states, second_moment

from helpers import random_membrane
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


def found_by_hand(host, captions, reach):
    """η of `Workshop.eta`, from states encoded one by one."""
    moved = [
        (a.states[row] - b.states[row + shift]).square().sum()
        for target, surrogate in zip(captions.targets, captions.surrogates, strict=True)
        for a, b in [host.encode([target, surrogate])]
        for shift in [len(b.token_ids) - len(a.token_ids)]
        for row in range(a.first + len(a.token_ids) - 1, len(a.states) - shift)
    ]
    kept = torch.cat([prompt.states for prompt in host.encode(list(captions.anchors))])
    return reach / float((torch.stack(moved).mean() / kept.square().sum(1).mean()).sqrt()) - 1


def test_a_given_eta_is_used_as_it_is(host):
    config = quick(negative_guidance=0.4, style_negative_guidance=0.2)
    assert Workshop(host).eta(CAPTIONS, config) == 0.4
    assert Workshop(host).eta(replace(CAPTIONS, kind="style"), config) == 0.2


@pytest.mark.parametrize("kind", ["object", "style"])
def test_an_eta_that_is_not_given_takes_every_concept_equally_far(host, kind):
    """(1 + η) d is the reach, d from paired states; the concept is the last word: its row and later ones pair."""
    captions = replace(CAPTIONS, surrogates=("a neon icon of a dog", "a flat icon of a dog"), kind=kind)
    config = quick(negative_guidance=None, style_negative_guidance=None, reach=1.7)
    by_hand = found_by_hand(host, captions, 1.7)
    assert 0 < by_hand < 3
    assert Workshop(host).eta(captions, config) == pytest.approx(by_hand, rel=1e-4)


def test_a_near_surrogate_asks_for_more_than_a_far_one(host):
    """The bundled model draws "a musical instrument" as a guitar, and "a food" not as a pizza."""
    spec, workshop = zoo.spec("emoji"), Workshop(host)
    near, far = (captions_for(enrich(name, spec), spec) for name in ("guitar", "pizza"))
    config = quick(negative_guidance=None, reach=1.5)
    assert workshop.eta(near, config) > 2 * workshop.eta(far, config)


def test_eta_stays_between_the_surrogate_and_three_times_beyond(host):
    assert Workshop(host).eta(CAPTIONS, quick(negative_guidance=None, reach=1e-3)) == 0
    assert Workshop(host).eta(CAPTIONS, quick(negative_guidance=None, reach=1e3)) == 3
    same = replace(CAPTIONS, surrogates=CAPTIONS.targets)
    with pytest.raises(ConfigError, match="reads 'cat' as it reads its surrogate; name another"):
        Workshop(host).eta(same, quick(negative_guidance=None))


@pytest.mark.parametrize("num_steps", [0, 2])
def test_an_eta_read_off_the_text_is_the_same_as_one_given_and_is_told(tiny_pipe, num_steps):
    read = quick(num_steps=num_steps, negative_guidance=None, style_negative_guidance=None)
    membrane = erase(tiny_pipe, "cat", config=read, progress=False)
    eta = membrane.provenance.metrics["negative_guidance"]
    assert 0 < eta < 3
    given = erase(tiny_pipe, "cat", config=quick(num_steps=num_steps, negative_guidance=eta), progress=False)
    assert "negative_guidance" not in given.provenance.metrics
    for name, (u, v) in given.pairs.items():
        assert torch.equal(u, membrane.pairs[name][0])
        assert torch.equal(v, membrane.pairs[name][1])


def test_concepts_of_a_common_run_each_have_their_own_eta(tiny_pipe):
    config = quick(num_steps=2, negative_guidance=None, style_negative_guidance=None)
    together = erase_many(tiny_pipe, ["cat", "car"], config=config, at_once=2, progress=False)
    etas = [membrane.provenance.metrics["negative_guidance"] for membrane in together]
    assert etas[0] != etas[1]
    for name, membrane in zip(("cat", "car"), together, strict=True):
        alone = erase(tiny_pipe, name, config=config, progress=False)
        assert membrane.provenance.metrics["negative_guidance"] == pytest.approx(
            alone.provenance.metrics["negative_guidance"]
        )
        for site, (u, v) in alone.pairs.items():
            assert_close(membrane.pairs[site][0] @ membrane.pairs[site][1], u @ v, atol=1e-4, rtol=1e-2)


def test_a_shared_workshop_finds_the_eta_of_its_own_one(host):
    """The kept moment of a second concept is a difference of sums; its last bits do not reach η."""
    spec, shared = zoo.spec("emoji"), Workshop(host)
    for name in ("guitar", "pizza", "cat"):
        captions = captions_for(enrich(name, spec), spec)
        assert shared.eta(captions, TrainConfig()) == Workshop(host).eta(captions, TrainConfig())


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


def test_wordings_are_spared_beyond_the_surrogate(host):
    def made(eta, spare):
        config = quick("instant", num_steps=0, rank=64, negative_guidance=eta, closed_form_spare=spare)
        return {name: (u @ v).double() for name, (u, v) in Workshop(host).closed_form(CAPTIONS, config).items()}

    plain, spared, none = made(1.0, None), made(1.0, 0.9), made(1.0, 0.0)
    surrogate, still = made(0.0, None), made(0.0, 0.9)
    for name, change in surrogate.items():
        assert_close(still[name], change, atol=1e-6, rtol=1e-4)
        assert_close(none[name], plain[name], atol=1e-6, rtol=1e-4)
        further, beyond = plain[name] - change, spared[name] - change
        assert 0.05 < float(beyond.norm() / further.norm()) < 0.95, name


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


def as_kohya(membrane):
    """The same membrane under the site names of kohya, LECO and the reference implementation."""
    pairs = {f"lora_unet_{name.replace('.', '_')}": pair for name, pair in membrane.pairs.items()}
    return replace(membrane, pairs=pairs, foreign_names=True)


@pytest.mark.parametrize("num_steps", [0, 1])
def test_an_adapter_with_foreign_names_is_avoided_as_the_same_membrane_is(gateless, tiny_pipe, num_steps):
    options = {"config": quick("fast" if num_steps else "instant", num_steps=num_steps), "progress": False}
    lion = random_membrane(tiny_pipe.unet, "lion")
    own, foreign, free = (
        erase(tiny_pipe, "cat", orthogonal_to=others, **options) for others in ([lion], [as_kohya(lion)], [])
    )
    assert to_bytes(foreign) == to_bytes(own)
    assert not all(torch.equal(own.pairs[name][1], v) for name, (_, v) in free.pairs.items())


def test_an_adapter_with_foreign_names_is_avoided_side_by_side(gateless, tiny_pipe):
    lion = random_membrane(tiny_pipe.unet, "lion")
    own, foreign = (
        erase_many(tiny_pipe, ["cat", "dog"], config=quick(num_steps=1), orthogonal_to=[one], progress=False)
        for one in (lion, as_kohya(lion))
    )
    assert list(map(to_bytes, own)) == list(map(to_bytes, foreign))


@pytest.mark.parametrize("num_steps", [0, 1])
def test_a_membrane_of_another_model_to_stay_orthogonal_to_is_refused(tiny_pipe, tmp_path, num_steps):
    options = {"config": quick("fast" if num_steps else "instant", num_steps=num_steps), "progress": False}
    lion = random_membrane(tiny_pipe.unet, "lion")
    name = next(iter(Workshop(tiny_pipe).text_projections()))
    u, v = lion.pairs[name]
    wide = replace(lion, pairs={**lion.pairs, name: (u, torch.cat([v, v], 1))})
    strange = replace(lion, pairs={"transformer.proj": (u, v)})
    for other, message in ((wide, f"site {name!r}: membrane has u"), (strange, "unknown site 'transformer.proj'")):
        with pytest.raises(SiteError, match=re.escape(message)):
            erase(tiny_pipe, "cat", orthogonal_to=[other], **options)
        with pytest.raises(SiteError, match=re.escape(message)):
            next(erase_each(tiny_pipe, ["cat", "dog"], orthogonal_to=[other], out_dir=tmp_path / "made", **options))
    assert not list(tmp_path.iterdir())
