"""What is in force: one policy set and one shelf of membranes, swapped as a whole.

`Keeper.refresh` looks at the disk and, if something changed, puts a new `State` in place of the old one. Readers take
`keeper.state` once and see either all of the old or all of the new. A broken file leaves the last good content in
force and appears in `State.problems`.
"""

import hashlib
import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from semipermeable.errors import PolicyError
from semipermeable.membrane import Membrane
from semipermeable.server.library import Problem, Shelf, folded, scan
from semipermeable.server.policies import EVERYTHING, Policy, PolicySet, parse_policies

__all__ = ["Keeper", "State"]

_log = logging.getLogger("semipermeable.server")


@dataclass(frozen=True, eq=False)
class State:
    """Policies and membranes at one time.

    Args:
        number: 1 at start, one more at every change.
        policies: the policy set in force.
        shelf: the membranes in force.
        problems: what is wrong on disk, or with what policies ask for.
    """

    number: int
    policies: PolicySet
    shelf: Shelf
    problems: tuple[Problem, ...]
    _versions: dict[str, str] = field(default_factory=lambda: dict[str, str]())

    def version_of(self, policy: Policy) -> str:
        """Return "NAME@12 hex digits" over everything in the policy and the bytes of its membranes."""
        if policy.name not in self._versions:
            self._versions[policy.name] = self._version(policy)
        return self._versions[policy.name]

    def missing_for(self, policy: Policy) -> tuple[str, ...]:
        """Return what a policy requires and the folder does not give: concepts, for "*" the unusable files."""
        names: list[str] = []
        for name in policy.membranes:
            if name == EVERYTHING:
                names.extend(self.shelf.lost)
            elif folded(name) not in self.shelf.membranes:
                names.append(name)
        return tuple(names)

    def required_by(self, policy: Policy) -> tuple[str, ...]:
        """Return the folded names of the membranes that are there and that a policy requires, in order."""
        names: dict[str, None] = {}
        for name in policy.membranes:
            for one in self.shelf.membranes if name == EVERYTHING else (folded(name),):
                if one in self.shelf.membranes:
                    names.setdefault(one, None)
        return tuple(names)

    def _version(self, policy: Policy) -> str:
        content = {
            "policy": policy.model_dump(mode="json"),
            "membranes": {name: self.shelf.membranes[name].sha256 for name in self.required_by(policy)},
            "missing": list(self.missing_for(policy)),
        }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return f"{policy.name}@{digest[:12]}"


class Keeper:
    """Holds the state in force and renews it from disk.

    Args:
        folder: of membranes.
        policies: the policy file, or a fixed policy set.
        fit: see `library.scan`.

    Raises:
        PolicyError: if the policy file is not usable at the start, where there is no last good content.
    """

    def __init__(self, folder: Path, policies: Path | PolicySet, fit: Callable[[Membrane], Membrane]) -> None:
        self._folder = folder
        self._file = policies if isinstance(policies, Path) else None
        self._fit = fit
        self._lock = threading.Lock()
        self._signature: tuple[int, int, int] | None = None
        self._policy_problem: Problem | None = None
        first = policies if isinstance(policies, PolicySet) else self._read_policies()
        if self._policy_problem is not None:
            raise PolicyError(self._policy_problem.message)
        if first is None:
            raise PolicyError("the policy file changed while it was read; start again")
        shelf = scan(folder, Shelf(), fit)
        self.state = _assemble(1, first, shelf, None)
        _tell(self.state)

    def refresh(self) -> bool:
        """Look at the disk; returns whether the state changed. Safe to call from any thread."""
        with self._lock:
            old, problem = self.state, self._policy_problem
            policies = (self._read_policies() if self._file is not None else None) or old.policies
            shelf = scan(self._folder, old.shelf, self._fit)
            if shelf is old.shelf and policies is old.policies and self._policy_problem == problem:
                return False
            self.state = _assemble(old.number + 1, policies, shelf, self._policy_problem)
            _tell(self.state)
            return True

    def _read_policies(self) -> PolicySet | None:
        """Return the new content of the policy file, or None if it did not change or is not usable."""
        file = self._file
        if file is None:
            return None
        signature: tuple[int, int, int] | None = None
        try:
            facts = file.stat()
            signature = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
            if signature == self._signature:
                return None
            found = parse_policies(file.read_bytes(), file.name)
        except (OSError, PolicyError) as error:
            what = f"{file.name}: cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
            self._signature, self._policy_problem = signature, Problem(file.name, what, kept=True)
            return None
        self._signature, self._policy_problem = signature, None
        return found


def _assemble(number: int, policies: PolicySet, shelf: Shelf, policy_problem: Problem | None) -> State:
    state = State(number, policies, shelf, ())
    problems = [*([policy_problem] if policy_problem else []), *shelf.problems]
    for policy in policies.policies.values():
        missing = state.missing_for(policy)
        if missing:
            what = "requests are refused" if policy.fail == "closed" else "pictures are drawn without"
            names = ", ".join(repr(name) for name in missing)
            problems.append(Problem(policy.name, f"policy {policy.name!r} misses {names}; {what}", kept=False))
    return State(number, policies, shelf, tuple(problems))


def _tell(state: State) -> None:
    _log.info(
        "state %d: %d membranes, %d policies, %d tenants",
        state.number,
        len(state.shelf.membranes),
        len(state.policies.policies),
        len(state.policies.tenants),
    )
    for problem in state.problems:
        _log.warning("state %d: %s: %s", state.number, problem.file, problem.message)
