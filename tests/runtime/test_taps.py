"""Standing in for a forward: only while a call needs it, once, and in the thread that asked."""

import copy
import functools
import threading
import weakref

import pytest
import torch
from torch import nn

from semipermeable.runtime.taps import Quick, Taps, is_plain


class Doubling:
    """A visitor that doubles what a module gives, and counts."""

    def __init__(self):
        self.fired = set()
        self.visits = 0

    def visit(self, module, forward, args, kwargs):
        self.visits += 1
        return 2 * forward(*args, **kwargs)


def double_quickly(about, visitor, x):
    (layer,) = about
    if x.shape[0] == 3:
        return None
    visitor.fired.add("quick")
    return 2 * torch.nn.functional.linear(x, layer.weight, layer.bias)


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return nn.Linear(4, 4).requires_grad_(False)


def taps_of(layer, quick):
    return Taps([layer], {layer: Quick(double_quickly, (layer,))} if quick else None)


@pytest.mark.parametrize("quick", [False, True])
def test_a_module_is_visited_inside_the_block_and_as_it_was_outside(layer, quick):
    x = torch.randn(2, 4)
    plain, attributes = layer(x), dict(vars(layer))
    visitor = Doubling()
    with taps_of(layer, quick).visited_by(visitor):
        assert is_plain(layer)
        assert torch.equal(layer(x), 2 * plain)
    assert torch.equal(layer(x), plain)
    assert vars(layer) == attributes
    assert (visitor.visits, visitor.fired) == ((0, {"quick"}) if quick else (1, set()))


@pytest.mark.parametrize("arguments", ["keyword", "three rows"])
def test_the_visitor_is_asked_for_what_is_not_done_quickly(layer, arguments):
    x = torch.randn(3 if arguments == "three rows" else 2, 4)
    plain, visitor = layer(x), Doubling()
    with taps_of(layer, True).visited_by(visitor):
        out = layer(input=x) if arguments == "keyword" else layer(x)
    assert torch.equal(out, 2 * plain)
    assert visitor.visits == 1


@pytest.mark.parametrize("quick", [False, True])
def test_a_bare_call_of_another_thread_goes_straight_through(layer, quick):
    x = torch.randn(2, 4)
    plain, out = layer(x), []
    with taps_of(layer, quick).visited_by(Doubling()):
        thread = threading.Thread(target=lambda: out.append(layer(x)))
        thread.start()
        thread.join()
    assert torch.equal(out[0], plain)


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("first_leaves_first", [False, True])
def test_two_calls_share_a_module_and_the_last_one_takes_the_tap_away(layer, same, first_leaves_first):
    x = torch.randn(2, 4)
    plain, attributes = layer(x), dict(vars(layer))
    taps = taps_of(layer, True)
    other = taps if same else taps_of(layer, True)
    one, two = taps.visited_by(Doubling()), other.visited_by(Doubling())
    with_both = threading.Event()
    leave = threading.Event()
    outs = []

    def second():
        with two:
            outs.append(layer(x))
            with_both.set()
            leave.wait()
            outs.append(layer(x))

    thread = threading.Thread(target=second)
    with one:
        thread.start()
        with_both.wait()
        outs.append(layer(x))
        if not first_leaves_first:
            leave.set()
            thread.join()
            assert torch.equal(layer(x), 2 * plain)
    if first_leaves_first:
        assert torch.equal(layer(x), plain)
        leave.set()
        thread.join()
    assert len(outs) == 3
    assert all(torch.equal(out, 2 * plain) for out in outs)
    assert vars(layer) == attributes


@pytest.mark.parametrize("quick", [False, True])
def test_a_wrapper_put_around_a_tap_stays_and_acts_once(layer, quick):
    x = torch.randn(2, 4)
    plain = layer(x)
    taps = taps_of(layer, quick)
    with taps.visited_by(Doubling()):
        inner = layer.forward
        # As accelerate does: a partial that carries over the attributes of what it wraps.
        layer.forward = functools.update_wrapper(functools.partial(lambda *args: inner(*args) + 1), inner)
        wrapper = layer.forward
        assert not is_plain(layer)
        assert torch.equal(layer(x), 2 * plain + 1)
    assert layer.forward is wrapper
    assert torch.equal(layer(x), plain + 1)
    visitor = Doubling()
    with taps.visited_by(visitor):
        assert torch.equal(layer(x), 2 * (plain + 1))
    assert visitor.visits == 1
    assert layer.forward is wrapper


def test_dropped_taps_hold_no_memory(layer):
    twin = copy.deepcopy(layer)
    taps = Taps([layer], {layer: Quick(double_quickly, (twin,))})
    with taps.visited_by(Doubling()):
        layer(torch.randn(2, 4))
    weight = weakref.ref(twin.weight)
    del taps, twin
    # At once, not at the next collection of cycles: plans are dropped to make room on the device.
    assert weight() is None
