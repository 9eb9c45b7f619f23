"""Strengths given per row: two rows with one text may differ, and nothing is ever drawn bare in silence."""

import copy
import threading

import pytest
import torch

import semipermeable as spm
from semipermeable.errors import AttachError

from helpers import random_membrane


def draw(pipe, prompts, guidance=4.0):
    generators = [torch.Generator().manual_seed(row) for row in range(len(prompts))]
    return pipe(
        prompts, num_inference_steps=2, guidance_scale=guidance, generator=generators, output_type="latent"
    ).images


@pytest.fixture
def membranes(pipe):
    return [random_membrane(pipe.unet, name, scale=0.03, seed=seed) for seed, name in enumerate(("cat", "dog"), 1)]


SAME = ["an icon of a cat"] * 3


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_rows_with_one_text_each_have_their_own_strengths(pipe, membranes, guidance):
    bare = draw(pipe, SAME, guidance)
    alone = []
    for membrane in membranes:
        with spm.attach(pipe, membrane, "open"):
            alone.append(draw(pipe, SAME, guidance))
    with spm.attach(pipe, membranes, "closed") as guard:
        with guard.given(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])):
            mixed = draw(pipe, SAME, guidance)
        assert torch.equal(draw(pipe, SAME, guidance), bare)
    assert torch.equal(mixed[0], bare[0])
    torch.testing.assert_close(mixed[1], alone[0][1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mixed[2], alone[1][2], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(mixed[1], bare[1], atol=1e-2)
    assert not torch.allclose(mixed[2], bare[2], atol=1e-2)


def test_nothing_is_traced_and_the_rule_is_back_afterwards(pipe, membranes):
    with spm.attach(pipe, membranes) as guard:
        with guard.given(torch.zeros(1, 2)):
            draw(pipe, SAME[:1])
        assert len(guard.trace) == 0
        draw(pipe, SAME[:1])
        assert [row.gamma for row in guard.trace] == [1.0, 0.0]


@pytest.mark.parametrize(
    "strengths", [torch.ones(1, 1), torch.ones(1, 3), torch.ones(2), torch.full((1, 2), torch.nan)]
)
def test_a_wrong_table_is_refused_before_anything_is_drawn(pipe, membranes, strengths):
    with (
        spm.attach(pipe, membranes) as guard,
        pytest.raises(AttachError, match=r"of shape \(rows, 2\)"),
        guard.given(strengths),
    ):
        pytest.fail("the block must not run")


def test_a_wrong_number_of_rows_is_refused(pipe, membranes):
    with (
        spm.attach(pipe, membranes) as guard,
        pytest.raises(AttachError, match="2 conditional rows, and strengths were given for 3"),
        guard.given(torch.ones(3, 2)),
    ):
        draw(pipe, SAME[:2])


def test_a_pipeline_whose_denoiser_was_replaced_is_found_out(pipe, membranes):
    bare = pipe.unet

    def draw_behind_its_back(guard):
        with guard.given(torch.ones(1, 2)):
            pipe.unet = bare
            draw(pipe, SAME[:1])

    with spm.attach(pipe, membranes) as guard, pytest.raises(AttachError, match="what it drew is bare"):
        draw_behind_its_back(guard)


def test_another_thread_and_another_pipeline_do_not_see_them(pipe, membranes):
    found = []
    with spm.attach(pipe, membranes) as guard, guard.given(torch.zeros(1, 2)):
        thread = threading.Thread(target=lambda: found.append(draw(pipe, SAME[:1])))
        thread.start()
        thread.join()
        closed = draw(pipe, SAME[:1])
    assert not torch.allclose(found[0], closed, atol=1e-2)


def test_what_is_added_and_removed_inside_the_block_changes_nothing_in_it(pipe, membranes):
    cat, dog = membranes
    bare = draw(pipe, SAME[:1], 1.0)
    with spm.attach(pipe, membranes, "closed") as guard:
        with guard.given(torch.tensor([[0.0, 1.0]])):
            expected = draw(pipe, SAME[:1], 1.0)
            guard.remove("cat")
            assert torch.equal(draw(pipe, SAME[:1], 1.0), expected)
            guard.add(cat)
            guard.remove("dog")
            assert torch.equal(draw(pipe, SAME[:1], 1.0), expected)
        assert torch.equal(draw(pipe, SAME[:1], 1.0), bare)
    with spm.attach(pipe, dog, "open"):
        torch.testing.assert_close(draw(pipe, SAME[:1], 1.0), expected, atol=1e-4, rtol=1e-4)
    assert not torch.equal(expected, bare)


def test_blocks_of_two_attachments_nest(pipe, membranes):
    other = copy.copy(pipe)
    other.unet = copy.copy(pipe.unet)
    bare = draw(pipe, SAME[:1])
    with (
        spm.attach(pipe, membranes[0], "closed") as outer,
        spm.attach(other, membranes[1], "closed") as inner,
        outer.given(torch.ones(1, 1)),
    ):
        before = draw(pipe, SAME[:1])
        with inner.given(torch.ones(1, 1)):
            assert not torch.equal(draw(other, SAME[:1]), bare)
            assert torch.equal(draw(pipe, SAME[:1]), before)
        assert torch.equal(draw(other, SAME[:1]), bare)
        assert torch.equal(draw(pipe, SAME[:1]), before)
    assert not torch.equal(before, bare)
