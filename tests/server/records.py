"""One record of a picture, and others like it."""

from dataclasses import replace

from semipermeable.server.audit import Record

ONE = Record(
    image="0" * 32,
    request="r",
    tenant="acme",
    user="u-1",
    policy="cats",
    policy_version="cats@0123456789ab",
    state=1,
    prompt="an icon of a cat",
    negative="blur",
    seed=2**63 - 1,
    steps=2,
    guidance=4.0,
    width=64,
    height=64,
    model="emoji",
    model_hash="a" * 64,
    membranes=({"concept": "cat", "gamma": 1.0, "reason": "name found: 'cat'"},),
    missing=("owl",),
    picture_hash="b" * 64,
)


def record(number, **changes):
    return replace(ONE, image=f"{number:032x}", **changes)
