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
from semipermeable.server.library import Problem, Shelf, folded, scan, unseen
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


@dataclass(frozen=True, slots=True)
class _Reading:
    """What the policy file gave.

    Args:
        policies: its last good content.
        signature: of the file; None: it is to be read again, whatever its signature.
        problem: why `policies` is not what the file holds now, or None.
    """

    policies: PolicySet
    signature: tuple[int, int, int] | None = None
    problem: Problem | None = None


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
        self._reading = _Reading(policies) if isinstance(policies, PolicySet) else _read(policies, None)
        self.state = _assemble(1, self._reading.policies, scan(folder, Shelf(), fit), None)
        _tell(self.state)

    def refresh(self) -> bool:
        """Look at the disk; returns whether the state changed. Safe to call from any thread.

        Whatever `fit` raises beyond its refusals is raised again, after new policies came into force: a membrane that
        could not be looked at does not hold a stricter policy back, and "*" is short of something until it was.
        """
        with self._lock:
            reading = self._reading if self._file is None else _read(self._file, self._reading)
            try:
                shelf = scan(self._folder, self.state.shelf, self._fit)
            except Exception as error:
                message = f"its membranes cannot be looked at ({type(error).__name__}); the server's log says why"
                self._swap(reading, unseen(self._folder, self.state.shelf, message, lost=True))
                raise
            return self._swap(reading, shelf)

    def _swap(self, reading: _Reading, shelf: Shelf) -> bool:
        """Put what was found in force; returns whether it is anything new."""
        old, last = self.state, self._reading
        changed = shelf is not old.shelf or reading.policies is not last.policies or reading.problem != last.problem
        if changed:
            self.state = _assemble(old.number + 1, reading.policies, shelf, reading.problem)
            _tell(self.state)
        self._reading = reading
        return changed


def _read(file: Path, last: _Reading | None) -> _Reading:
    """Return what the policy file gives now; `last` itself if it did not change.

    Raises:
        PolicyError: if it is not usable and there is no last good content.
    """
    signature = None
    try:
        facts = file.stat()
        signature = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
        if last is not None and signature == last.signature:
            return last
        return _Reading(parse_policies(file.read_bytes(), file.name), signature)
    except (OSError, PolicyError) as error:
        by_system = isinstance(error, OSError)
        what = f"{file.name}: cannot be read: {error.strerror}" if by_system else str(error)
        if last is None:
            raise PolicyError(what) from error
        return _Reading(last.policies, None if by_system else signature, Problem(file.name, what, kept=True))


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
