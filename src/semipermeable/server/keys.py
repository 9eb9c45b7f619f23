"""API keys: made once, shown once, stored as a salted scrypt digest.

A key is `spm_<id>_<secret>`: the id (12 hex digits) is public and names the stored digest, the secret holds 256 random
bits. Only the digest is on disk. Comparison takes the same time wherever the digests differ. A key that has been found
right is remembered under a keyed digest that is made anew in every process, so that scrypt runs once per key and not
once per request; a key taken out of the file is unknown from the next reload on.
"""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import threading
from collections.abc import Mapping
from typing import NamedTuple

from semipermeable.errors import PolicyError

__all__ = ["KeyRing", "NewKey", "Remembered", "hash_secret", "make_key"]

_COST, _BLOCK, _PARALLEL = 2**14, 8, 1
"""16 MiB and some tens of milliseconds; the secret's own 256 bits are what makes guessing hopeless."""
_SHAPE = re.compile(r"spm_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_STORED = re.compile(r"scrypt:([0-9]{1,7}):([0-9]{1,2}):([0-9]{1,2}):([A-Za-z0-9+/=]{16,64}):([A-Za-z0-9+/=]{16,128})")
_MAX_REMEMBERED = 4096


class NewKey(NamedTuple):
    """A key just made: what the client gets, and what is stored."""

    key: str
    id: str
    hash: str


def make_key() -> NewKey:
    """Return a new random key with its id and the digest to store."""
    identity, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    return NewKey(f"spm_{identity}_{secret}", identity, hash_secret(secret))


def hash_secret(secret: str) -> str:
    """Return what is stored of a secret: `scrypt:N:r:p:salt:digest`, a fresh salt each time."""
    salt = secrets.token_bytes(16)
    digest = hashlib.scrypt(secret.encode(), salt=salt, n=_COST, r=_BLOCK, p=_PARALLEL, dklen=32)
    texts = (base64.b64encode(part).decode() for part in (salt, digest))
    return ":".join(("scrypt", str(_COST), str(_BLOCK), str(_PARALLEL), *texts))


class KeyRing:
    """Stored keys, and whose they are.

    Args:
        stored: key id to (stored digest, owner).

    Raises:
        PolicyError: if a stored digest is not one of ours.
    """

    def __init__(self, stored: Mapping[str, tuple[str, str]]) -> None:
        self._stored = {identity: (_parsed(identity, text), owner) for identity, (text, owner) in stored.items()}

    def recall(self, key: str, remembered: "Remembered") -> str | None:
        """Return the owner of a key that was found right before in this process, or None. Takes microseconds.

        Args:
            key: the text after "Bearer ".
            remembered: keys found right before.
        """
        found = self._find(key)
        return found.owner if found is not None and remembered.knows(key, found.stored) else None

    def verify(self, key: str, remembered: "Remembered") -> str | None:
        """Return the owner of a key, or None. Takes tens of milliseconds, but no time for ids that do not exist.

        Args:
            key: the text after "Bearer ".
            remembered: receives the key if it is right.
        """
        found = self._find(key)
        if found is None or not found.stored.matches(found.secret):
            return None
        remembered.add(key, found.stored)
        return found.owner

    def _find(self, key: str) -> "_Found | None":
        shape = _SHAPE.fullmatch(key)
        entry = self._stored.get(shape[1]) if shape else None
        return _Found(*entry, shape[2]) if shape and entry else None


class _Stored(NamedTuple):
    cost: int
    block: int
    parallel: int
    salt: bytes
    digest: bytes

    def matches(self, secret: str) -> bool:
        found = hashlib.scrypt(
            secret.encode(), salt=self.salt, n=self.cost, r=self.block, p=self.parallel, dklen=len(self.digest)
        )
        return hmac.compare_digest(found, self.digest)


class _Found(NamedTuple):
    stored: _Stored
    owner: str
    secret: str


class Remembered:
    """Keys found right, as digests under a secret of this process; safe for several threads."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)
        self._found: dict[bytes, bytes] = {}
        self._lock = threading.Lock()

    def knows(self, key: str, stored: _Stored) -> bool:
        """Whether this key was found to match this very stored digest."""
        with self._lock:
            digest = self._found.get(self._digest(key))
        return digest is not None and hmac.compare_digest(digest, stored.digest)

    def add(self, key: str, stored: _Stored) -> None:
        """Remember that a key matches a stored digest; the oldest is forgotten beyond 4,096."""
        with self._lock:
            while len(self._found) >= _MAX_REMEMBERED:
                self._found.pop(next(iter(self._found)))
            self._found[self._digest(key)] = stored.digest

    def _digest(self, key: str) -> bytes:
        return hashlib.blake2b(key.encode(), key=self._secret, digest_size=32).digest()


def _parsed(identity: str, text: str) -> _Stored:
    problem = f"the stored hash of key {identity!r} is not usable; make a key with `spm serve-key` and paste its lines"
    shape = _STORED.fullmatch(text)
    if shape is None or re.fullmatch(r"[0-9a-f]{12}", identity) is None:
        raise PolicyError(problem)
    cost, block, parallel = (int(shape[i]) for i in (1, 2, 3))
    try:
        salt, digest = (base64.b64decode(shape[i], validate=True) for i in (4, 5))
    except binascii.Error as error:
        raise PolicyError(problem) from error
    power_of_two = cost > 1 and cost & (cost - 1) == 0
    if not power_of_two or not 1 <= block <= 16 or not 1 <= parallel <= 4 or 128 * cost * block >= 32 * 2**20:
        raise PolicyError(problem)
    if len(digest) < 16:
        raise PolicyError(problem)
    return _Stored(cost, block, parallel, salt, digest)
