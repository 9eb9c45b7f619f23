"""Policies and tenants, `policies.toml`: which membranes must be in force for whom.

[[policy]]
name = "kids"
membranes = ["cat", "Van Gogh"]      # concepts; ["*"] is every membrane of the folder
permeability = "transport"           # or "open", "paper", a number, or a table {cat = 1.0}
strength = {cat = 1.5}               # or one number
fail = "closed"

[[tenant]]
name = "acme"
policy = "kids"
keys = [{id = "0123456789ab", hash = "scrypt:…"}]
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from semipermeable.errors import PermeabilityError, PolicyError, closest
from semipermeable.permeability import resolve
from semipermeable.server.config import KeyTable
from semipermeable.server.keys import KeyRing
from semipermeable.server.tables import Table, parse_table

__all__ = ["EVERYTHING", "LOCAL", "Policy", "PolicySet", "Tenant", "local_policies", "parse_policies"]

EVERYTHING = "*"
LOCAL = "local"
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Rule = str | float
Factor = Annotated[float, Field(gt=0, le=100)]


class Policy(Table):
    """A named set of membranes that must act, and how."""

    name: Name
    """Letters, digits, dot, dash, underscore."""
    membranes: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = ()
    """Concepts whose membranes are required; "*" is every membrane of the folder; empty draws bare on purpose."""
    permeability: Rule | dict[str, Rule] = "transport"
    """The rule for γ of all membranes, or a table from concept to rule; those not named follow "transport"."""
    strength: Factor | dict[str, Factor] = 1.0
    """Factor on γ of all membranes, or a table from concept to factor; those not named have 1."""
    fail: Literal["closed", "open"] = "closed"
    """What happens if a membrane is missing: "closed" refuses, "open" draws with the others and says so."""

    @field_validator("permeability")
    @classmethod
    def _usable(cls, value: Rule | dict[str, Rule]) -> Rule | dict[str, Rule]:
        for rule in value.values() if isinstance(value, dict) else (value,):
            try:
                resolve(rule)
            except PermeabilityError as error:
                raise ValueError(str(error)) from error
        return value

    @model_validator(mode="after")
    def _names_exist(self) -> "Policy":
        known = {_folded(name) for name in self.membranes}
        for field in ("permeability", "strength"):
            value = getattr(self, field)
            if isinstance(value, dict) and EVERYTHING not in known:
                for name in value:
                    if _folded(name) not in known:
                        raise ValueError(f"{field} names {name!r}, which is not in membranes")
        return self

    def rule_for(self, concept: str) -> Rule:
        """Return the rule for one concept."""
        if isinstance(self.permeability, dict):
            return _named(self.permeability).get(_folded(concept), "transport")
        return self.permeability

    def strength_for(self, concept: str) -> float:
        """Return the factor for one concept."""
        if isinstance(self.strength, dict):
            return _named(self.strength).get(_folded(concept), 1.0)
        return self.strength


class Tenant(Table):
    """Who draws, under which policy, with which keys."""

    name: Name
    """Letters, digits, dot, dash, underscore; it stands in records and metrics."""
    policy: str
    """The policy's name."""
    keys: tuple[KeyTable, ...] = ()
    """Its keys; a tenant without one cannot draw."""


class _File(Table):
    policy: tuple[Policy, ...] = ()
    tenant: tuple[Tenant, ...] = ()


N = TypeVar("N", Policy, Tenant)
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class PolicySet:
    """The content of one policy file.

    Args:
        policies: name to policy.
        tenants: name to tenant.
        keys: the tenants' keys; an owner is a tenant's name.
        digest: SHA-256 of the file.
    """

    policies: Mapping[str, Policy]
    tenants: Mapping[str, Tenant]
    keys: KeyRing
    digest: str


def parse_policies(data: bytes, name: str = "policies.toml") -> PolicySet:
    """Parse a policy file.

    Args:
        data: its content.
        name: of the file, for messages.

    Raises:
        PolicyError: naming the table and the key that is not usable.
    """
    file = parse_table(data, name, _File)
    policies = _by_name(name, "policy", file.policy)
    tenants = _by_name(name, "tenant", file.tenant)
    stored: dict[str, tuple[str, str]] = {}
    for tenant in file.tenant:
        if tenant.policy not in policies:
            raise PolicyError(f"{name}: tenant {tenant.name!r}: {closest(tenant.policy, policies, what='policy')}")
        for key in tenant.keys:
            if key.id in stored:
                raise PolicyError(f"{name}: tenant {tenant.name!r}: the key id {key.id!r} stands in the file twice")
            stored[key.id] = (key.hash, tenant.name)
    try:
        ring = KeyRing(stored)
    except PolicyError as error:
        raise PolicyError(f"{name}: {error}") from error
    return PolicySet(policies, tenants, ring, hashlib.sha256(data).hexdigest())


def local_policies(key: KeyTable) -> PolicySet:
    """Return the policies of a server without a policy file: one tenant, under every membrane of the folder."""
    policy = Policy(name=LOCAL, membranes=(EVERYTHING,))
    tenant = Tenant(name=LOCAL, policy=LOCAL, keys=(key,))
    digest = hashlib.sha256(json.dumps(policy.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
    return PolicySet({LOCAL: policy}, {LOCAL: tenant}, KeyRing({key.id: (key.hash, LOCAL)}), digest)


def _by_name(file: str, what: str, tables: Sequence[N]) -> dict[str, N]:
    found: dict[str, N] = {}
    for table in tables:
        if table.name in found:
            raise PolicyError(f"{file}: two tables describe the {what} {table.name!r}; join them")
        found[table.name] = table
    return found


def _folded(name: str) -> str:
    return " ".join(name.split()).casefold()


def _named(table: Mapping[str, T]) -> dict[str, T]:
    return {_folded(name): value for name, value in table.items()}
