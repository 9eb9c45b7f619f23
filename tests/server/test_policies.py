"""The policy file: what it means, and every way it can be wrong."""

import contextlib

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from semipermeable.errors import PolicyError
from semipermeable.server.keys import Remembered
from semipermeable.server.policies import parse_policies

BASE = """
[[policy]]
name = "kids"
membranes = ["cat", "Van Gogh"]
permeability = {cat = "open"}
strength = {"van  gogh" = 1.5}

[[tenant]]
name = "acme"
policy = "kids"
"""


def parsed(text):
    return parse_policies(text.encode())


def test_a_policy_says_rule_and_strength_of_every_concept():
    policy = parsed(BASE).policies["kids"]
    assert policy.membranes == ("cat", "Van Gogh")
    assert (policy.rule_for("cat"), policy.rule_for("Van Gogh")) == ("open", "transport")
    assert (policy.strength_for("CAT"), policy.strength_for("Van Gogh")) == (1.0, 1.5)
    assert policy.fail == "closed"


def test_keys_belong_to_tenants(keys):
    text = BASE + f'keys = [{{id = "{keys.acme.id}", hash = "{keys.acme.hash}"}}]'
    assert parsed(text).keys.verify(keys.acme.key, Remembered()) == "acme"


def test_the_same_bytes_have_the_same_digest_and_others_do_not():
    assert parsed(BASE).digest == parsed(BASE).digest
    assert parsed(BASE).digest != parsed(BASE + "\n").digest


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[[policy]]", "[[policy]", "policies.toml: is not valid TOML"),
        ("[[policy]]", "[[polcy]]", "unknown key 'polcy'; did you mean 'policy'"),
        ('name = "kids"', 'nam = "kids"', r"policy\.1\.(name: Field required|nam: unknown key)"),
        ('name = "kids"', 'name = "../etc"', r"policy\.1\.name: String should match"),
        ('policy = "kids"', 'policy = "kid"', "tenant 'acme': unknown policy 'kid'; did you mean 'kids'"),
        ('{cat = "open"}', '{dog = "open"}', "permeability names 'dog', which is not in membranes"),
        ('{cat = "open"}', '"opne"', "unknown permeability 'opne'; did you mean 'open'"),
        ('{cat = "open"}', "1.5", "γ lies in"),
        ('{"van  gogh" = 1.5}', "0", "strength"),
        ('{"van  gogh" = 1.5}', "nan", "strength"),
        ('{"van  gogh" = 1.5}', "-1.0", "strength"),
        ('["cat", "Van Gogh"]', '"cat"', r"policy\.1\.membranes: Input should be a valid tuple"),
        ("[[tenant]]", 'fail = "ajar"\n[[tenant]]', "fail: Input should be 'closed' or 'open'"),
        ("[[tenant]]", '[[policy]]\nname = "kids"\n[[tenant]]', "two tables describe the policy 'kids'; join them"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_key(old, new, message):
    assert old in BASE
    with pytest.raises(PolicyError, match=message) as caught:
        parsed(BASE.replace(old, new))
    assert str(caught.value).startswith("policies.toml: ")


def test_one_key_cannot_belong_to_two_tenants(keys):
    line = f'keys = [{{id = "{keys.acme.id}", hash = "{keys.acme.hash}"}}]\n'
    text = BASE + line + '[[tenant]]\nname = "zoo"\npolicy = "kids"\n' + line
    with pytest.raises(PolicyError, match="stands in the file twice"):
        parsed(text)


def test_a_secret_in_the_wrong_place_is_not_repeated(keys):
    text = BASE + f'keys = [{{id = "{keys.acme.key}", hash = "{keys.acme.key}"}}]'
    with pytest.raises(PolicyError) as caught:
        parsed(text)
    assert keys.acme.key not in str(caught.value)


def test_a_huge_file_is_refused():
    with pytest.raises(PolicyError, match="has at most"):
        parse_policies(b"#" * (4 * 1024 * 1024 + 1))


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_any_bytes_parse_or_are_refused(data):
    for content in (data, BASE.encode() + data):
        with contextlib.suppress(PolicyError):
            assert parse_policies(content).policies.keys() <= {"kids"}


scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=20)
tables = st.dictionaries(
    st.sampled_from(["name", "membranes", "permeability", "strength", "fail", "policy", "keys", "id", "hash", "x"]),
    st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner)),
    max_size=6,
)


def without_none(value):
    if isinstance(value, dict):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_none(item) for item in value if item is not None]
    return value


@given(st.lists(tables, max_size=3), st.lists(tables, max_size=3))
@settings(max_examples=60)
def test_any_tables_parse_or_are_refused(policies, tenants):
    try:
        text = tomli_w.dumps(without_none({"policy": policies, "tenant": tenants})).encode()
    except UnicodeEncodeError:
        return
    try:
        found = parse_policies(text)
    except PolicyError:
        return
    for policy in found.policies.values():
        assert all(policy.strength_for(name) > 0 for name in policy.membranes)
    assert all(tenant.policy in found.policies for tenant in found.tenants.values())
