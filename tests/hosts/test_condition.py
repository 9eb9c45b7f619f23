import pytest
import torch

from semipermeable.hosts import MASK, Condition


def make(rows, length, generator=None, masked=True):
    text = torch.randn(rows, length, 3, generator=generator)
    parts = {"text": text, "pooled": text.mean(1)}
    if masked:
        parts[MASK] = torch.arange(length).expand(rows, -1) < torch.arange(1, rows + 1)[:, None]
    return Condition(parts)


def same(a, b):
    return a.parts.keys() == b.parts.keys() and all(torch.equal(part, b[name]) for name, part in a.parts.items())


@pytest.mark.parametrize("rows", [slice(1, 3), torch.tensor([1, 2]), [1, 2], torch.tensor([False, True, True])])
def test_rows_are_chosen_in_every_part(generator, rows):
    condition = make(3, 5, generator)
    chosen = condition[rows]
    assert len(chosen) == 2
    assert all(torch.equal(part, condition[name][1:]) for name, part in chosen.parts.items())


def test_cutting_and_joining_are_inverse(generator):
    condition = make(4, 5, generator)
    assert same(Condition.cat([condition[:1], condition[1:]]), condition)
    assert same(Condition.cat([condition[:0], condition]), condition)


def test_repetition_in_both_orders(generator):
    condition = make(2, 5, generator)
    assert same(condition.repeat(3), condition[[0, 1, 0, 1, 0, 1]])
    assert same(condition.repeat_each(3), condition[[0, 0, 0, 1, 1, 1]])


def test_shorter_rows_are_padded_under_the_mask_and_trimmed_again(generator):
    short, long = make(2, 2, generator), make(4, 4, generator)
    joined = Condition.cat([short, long])
    assert joined["text"].shape == (6, 4, 3)
    assert joined["pooled"].shape == (6, 3)
    assert not joined[MASK][:2, 2:].any()
    assert not joined["text"][:2, 2:].any()
    assert same(joined[:2].trimmed(), short)
    assert same(joined.trimmed(), joined)
    plain = make(2, 4, generator, masked=False)
    assert plain.trimmed() is plain


def test_only_floating_parts_change_their_dtype(generator):
    half = make(2, 3, generator).to("cpu", torch.float16)
    assert (half["text"].dtype, half["pooled"].dtype, half[MASK].dtype) == (torch.float16, torch.float16, torch.bool)


def test_what_does_not_belong_together_is_refused(generator):
    with pytest.raises(ValueError, match=r"one and the same number of rows.*text.*\(2, 3\).*pooled.*\(1, 3\)"):
        Condition({"text": torch.zeros(2, 3), "pooled": torch.zeros(1, 3)})
    with pytest.raises(ValueError, match=r"'text' has rows of different lengths \[3, 4\] and no mask"):
        Condition.cat([make(1, 3, masked=False), make(1, 4, masked=False)])
    with pytest.raises(ValueError, match="different parts"):
        Condition.cat([make(1, 3), make(1, 3, masked=False)])
