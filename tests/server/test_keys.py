"""Keys: only a salted digest is stored, only the right key is accepted, and the second time is cheap."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semipermeable.errors import PolicyError
from semipermeable.server.keys import KeyRing, Remembered, hash_secret, make_key


def ring_of(*keys):
    return KeyRing({key.id: (key.hash, f"owner {key.id}") for key in keys})


def test_a_key_is_accepted_and_says_whose_it_is(keys):
    ring, remembered = ring_of(keys.acme, keys.zoo), Remembered()
    assert ring.verify(keys.acme.key, remembered) == f"owner {keys.acme.id}"
    assert ring.verify(keys.zoo.key, remembered) == f"owner {keys.zoo.id}"


def test_the_stored_hash_is_salted_and_holds_nothing_of_the_key(keys):
    secret = keys.acme.key.split("_", 2)[2]
    assert secret not in keys.acme.hash
    assert keys.acme.key not in keys.acme.hash
    assert hash_secret(secret) != hash_secret(secret)


@given(st.text(max_size=80))
def test_no_other_text_is_a_key(text):
    key = ONE
    assert ring_of(key).verify(text, Remembered()) is None


ONE = make_key()


def test_a_key_with_one_character_changed_is_refused(keys):
    ring = ring_of(keys.acme)
    last = "A" if keys.acme.key[-1] != "A" else "B"
    assert ring.verify(keys.acme.key[:-1] + last, Remembered()) is None
    assert ring.verify(f"spm_{keys.acme.id}_{keys.zoo.key.split('_', 2)[2]}", Remembered()) is None


def test_a_key_found_right_is_recalled_without_scrypt(keys):
    ring, remembered = ring_of(keys.acme), Remembered()
    assert ring.recall(keys.acme.key, remembered) is None
    start = time.perf_counter()
    ring.verify(keys.acme.key, remembered)
    slow = time.perf_counter() - start
    start = time.perf_counter()
    assert ring.recall(keys.acme.key, remembered) == f"owner {keys.acme.id}"
    assert time.perf_counter() - start < slow


def test_a_key_taken_out_or_replaced_is_forgotten(keys):
    remembered = Remembered()
    ring_of(keys.acme).verify(keys.acme.key, remembered)
    assert ring_of(keys.zoo).recall(keys.acme.key, remembered) is None
    replaced = KeyRing({keys.acme.id: (hash_secret("another"), "acme")})
    assert replaced.recall(keys.acme.key, remembered) is None
    assert replaced.verify(keys.acme.key, remembered) is None


def test_memory_of_keys_is_bounded(monkeypatch, keys):
    monkeypatch.setattr("semipermeable.server.keys._MAX_REMEMBERED", 1)
    ring, remembered = ring_of(keys.acme, keys.zoo), Remembered()
    ring.verify(keys.acme.key, remembered)
    ring.verify(keys.zoo.key, remembered)
    assert ring.recall(keys.acme.key, remembered) is None
    assert ring.recall(keys.zoo.key, remembered) is not None


@pytest.mark.parametrize(
    "stored",
    [
        "",
        "plain",
        "scrypt:16384:8:1:AAAAAAAAAAAAAAAAAAAAAA==",
        "scrypt:16383:8:1:AAAAAAAAAAAAAAAAAAAAAA==:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "scrypt:8388608:8:1:AAAAAAAAAAAAAAAAAAAAAA==:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "scrypt:16384:8:1:AAAAAAAAAAAAAAAAA=======:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    ],
)
def test_a_stored_hash_that_is_not_ours_is_an_error_and_is_not_shown(stored):
    with pytest.raises(PolicyError, match="stored hash of key '0123456789ab' is not usable") as caught:
        KeyRing({"0123456789ab": (stored, "acme")})
    assert not stored or stored not in str(caught.value)
