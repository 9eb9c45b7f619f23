"""Which membranes act on a request: all of its tenant's policy, and those it adds; never fewer.

A plan is made twice: when a request arrives, so that mistakes are answered at once, and when its row is drawn, from the
state in force then, so that a policy made stricter while a request waited does count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from semipermeable.errors import RefusedError, closest
from semipermeable.server.library import Shelved, folded
from semipermeable.server.policies import Rule
from semipermeable.server.state import State

__all__ = ["Acting", "Plan", "plan_for"]


@dataclass(frozen=True, slots=True)
class Acting:
    """One membrane in a plan.

    Args:
        shelved: the membrane.
        rule: a permeability, as `permeability.resolve` takes it.
        strength: factor on γ.
        source: who asked for it, "policy" or "request".
    """

    shelved: Shelved
    rule: Rule
    strength: float
    source: Literal["policy", "request"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What must be in force for one row.

    Args:
        policy: name of the policy.
        version: see `State.version_of`.
        state: number of the state.
        acting: the membranes.
        missing: what a policy with fail = "open" is drawn without.
    """

    policy: str
    version: str
    state: int
    acting: tuple[Acting, ...]
    missing: tuple[str, ...]


def plan_for(state: State, tenant: str, erase: Sequence[str]) -> Plan:
    """Return the plan of a tenant's request.

    Args:
        state: what is in force.
        tenant: name of the tenant.
        erase: concepts that the request adds; they open by "transport", with strength 1.

    Raises:
        RefusedError: 401 if the tenant is gone; 503 if a required membrane is missing and the policy fails closed; 400
            if an added concept has no membrane.
    """
    known = state.policies.tenants.get(tenant)
    policy = state.policies.policies.get(known.policy) if known else None
    if policy is None:
        raise RefusedError("this key's tenant is no longer known to the server", status=401, code="invalid_api_key")
    missing = state.missing_for(policy)
    if missing and policy.fail == "closed":
        raise RefusedError(
            f"policy {policy.name!r} requires {', '.join(map(repr, missing))}, and the server has no usable membrane "
            "for it; nothing is drawn without. Tell the operator of the server.",
            status=503,
            code="membrane_unavailable",
        )
    required = state.required_by(policy)
    acting = [
        Acting(one, policy.rule_for(one.concept), policy.strength_for(one.concept), "policy")
        for one in (state.shelf.membranes[name] for name in required)
    ]
    for name in dict.fromkeys(folded(name) for name in erase):
        if name in required:
            continue
        one = state.shelf.membranes.get(name)
        if one is None:
            concepts = [shelved.concept for shelved in state.shelf.membranes.values()]
            message = closest(name, concepts, what="membrane in 'erase'")
            raise RefusedError(message, status=400, code="unknown_membrane", param="erase")
        acting.append(Acting(one, "transport", 1.0, "request"))
    return Plan(policy.name, state.version_of(policy), state.number, tuple(acting), missing)
