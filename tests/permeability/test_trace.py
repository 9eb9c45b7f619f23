import json
import threading

import pytest

from semipermeable.errors import PermeabilityError
from semipermeable.permeability import Decision, Trace


def filled(limit=10):
    trace = Trace(limit)
    trace.add("a cat", "cat", Decision(1.0, "name found: 'cat'", matched=("cat",)))
    trace.add("a very " + "long " * 30 + "prompt", "cat", Decision(0.0, "probe below", similarity=0.25, threshold=0.5))
    trace.add("", "neon", Decision(0.0, "empty prompt"))
    return trace


def test_is_a_sequence_of_rows():
    trace = filled()
    assert len(trace) == len(trace.rows) == 3
    assert trace[0].prompt == "a cat"
    assert [row.gamma for row in trace] == [1.0, 0.0, 0.0]
    assert trace[-1].concept == "neon"
    assert trace[1:] == trace.rows[1:]
    trace.clear()
    assert len(trace) == 0
    assert str(trace) == "(no decision yet)"


def test_drops_the_oldest_beyond_the_limit():
    trace = filled(limit=2)
    assert [row.concept for row in trace] == ["cat", "neon"]
    with pytest.raises(PermeabilityError, match="limit=0"):
        Trace(0)


def test_dicts_are_json():
    rows = json.loads(json.dumps(filled().as_dicts()))
    assert rows[0] == {
        "prompt": "a cat", "concept": "cat", "gamma": 1.0, "reason": "name found: 'cat'",
        "similarity": None, "threshold": None, "matched": ["cat"],
    }  # fmt: skip


def test_prints_an_aligned_table():
    lines = str(filled()).splitlines()
    assert len(lines) == 5
    column = lines[0].index("concept")
    assert [line[column : column + 4] for line in lines[2:]] == ["cat ", "cat ", "neon"]
    assert "…" in lines[3]
    assert "0.250" in lines[3]
    assert lines[4].startswith('""')


def test_a_prompt_is_kept_as_plain_text():
    class Text(str):
        __slots__ = ()

    trace = Trace()
    trace.add(Text("a cat"), "cat", Decision(1.0, "name found"))
    assert type(trace[0].prompt) is str


def test_it_can_be_read_while_another_thread_draws():
    trace, done = Trace(), threading.Event()
    for _ in range(2000):
        trace.add("a cat", "cat", Decision(1.0, "name found"))

    def draws():
        while not done.is_set():
            trace.add("a cat", "cat", Decision(1.0, "name found"))

    drawing = threading.Thread(target=draws)
    drawing.start()
    try:
        for _ in range(20):
            assert len(trace.as_dicts()) >= 2000
            assert str(trace).startswith("prompt")
    finally:
        done.set()
        drawing.join()
