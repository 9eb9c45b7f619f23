"""What making several membranes of one pipeline shares, so that it is done once.

Weight hashes live in the host. Every text is encoded once: captions of other objects are the same whichever concept is
erased. The second moment of what is kept is a sum over captions: that of another concept is the first one's, less
the captions that only the first keeps, plus those that only it keeps.

    workshop = Workshop(pipe)
    cat, dog = (erase(pipe, name, preset="instant", workshop=workshop) for name in ("cat", "dog"))
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from semipermeable.errors import ConfigError
from semipermeable.hosts import Host, host_for
from semipermeable.membrane import Membrane
from semipermeable.permeability.decisions import EncodedPrompt
from semipermeable.sites import Site, find_sites
from semipermeable.training.captions import CaptionSet, spec_of
from semipermeable.training.closed_form import (
    ClosedForm,
    StatePairs,
    complement,
    cross_attention_sites,
    null_space,
    pair_states,
    projection,
    wording_directions,
)
from semipermeable.training.config import TrainConfig

__all__ = ["Pairs", "Workshop"]

Pairs = dict[str, tuple[Tensor, Tensor]]
"""Site name to (u, v)."""
_BATCH = 64
"""Texts of one call of the text encoder."""
_MOST = 3.0
"""Largest η that is read off the text: a surrogate that is nearly the concept's synonym must not tear at everything."""


class Workshop:
    """A pipeline's host with everything that membranes made of it have in common.

    Args:
        pipe: a loaded diffusers pipeline of a supported family; or its host.

    Raises:
        ArchitectureError: if no host supports the pipeline.
    """

    def __init__(self, pipe: Any) -> None:
        self.host: Host = pipe if isinstance(pipe, Host) else host_for(pipe)
        self.spec = spec_of(self.host.pipe)
        self._whole: dict[str, EncodedPrompt] = {}
        self._words: dict[str, EncodedPrompt] = {}
        self._first: tuple[frozenset[str], Tensor, int] | None = None

    def encode(self, texts: Sequence[str]) -> list[EncodedPrompt]:
        """Return encoded texts, each computed once, with all states that the denoiser reads."""
        self._fill(self._whole, texts, lambda prompt: prompt)
        return [self._whole[text] for text in texts]

    def encode_words(self, texts: Sequence[str]) -> list[EncodedPrompt]:
        """Return encoded texts, each computed once, whose states end one row after their own tokens.

        That is all a gate reads; the many prompts that it is fitted on stay small so.
        """
        self._fill(self._words, texts, _without_padding)
        return [self._words[text] for text in texts]

    def _fill(
        self, known: dict[str, EncodedPrompt], texts: Sequence[str], kept: Callable[[EncodedPrompt], EncodedPrompt]
    ) -> None:
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        if known is self._words:
            known.update({text: kept(self._whole[text]) for text in missing if text in self._whole})
            missing = [text for text in missing if text not in known]
        for start in range(0, len(missing), _BATCH):
            for prompt in self.host.encode(missing[start : start + _BATCH]):
                known[prompt.text] = kept(prompt)

    def restart_moment(self) -> None:
        """Sum the kept moment anew the next time: the last bits of a difference tell from which sum it was taken.

        What is made from here on is the same, bit for bit, whatever was made before.
        """
        self._first = None

    def keep_moment(self, captions: Sequence[str]) -> Tensor:
        """Return E[x xᵀ] over all text states of captions as the projections read them, shape (dim, dim), float64.

        Args:
            captions: what is kept; a caption that is named twice counts once.

        Raises:
            ConfigError: if there is none: without anything to keep the least squares are not bounded.
        """
        wanted = frozenset(captions)
        if not wanted:
            raise ConfigError("the closed form needs captions to keep, found none; name neighbours in the concept")
        if self._first is None:
            self._first = (wanted, *self._sum(dict.fromkeys(captions)))
        first, total, rows = self._first
        added, removed = wanted - first, first - wanted
        if len(added) + len(removed) >= len(wanted):
            alone, count = self._sum(dict.fromkeys(captions))
            return alone / count
        more, num_more = self._sum(text for text in dict.fromkeys(captions) if text in added)
        less, num_less = self._sum(sorted(removed))
        return (total + more - less) / (rows + num_more - num_less)

    def _sum(self, captions: Iterable[str]) -> tuple[Any, int]:
        prompts = self.encode(list(captions))
        if not prompts:
            return 0.0, 0
        states = torch.cat([self.host.text_inputs(prompt.states) for prompt in prompts]).double()
        return states.T @ states, states.shape[0]

    def text_projections(self) -> dict[str, Site]:
        """Return the sites where text alone enters the denoiser (`cross_attention_sites`), by name."""
        return cross_attention_sites(find_sites(self.host.denoiser, ()), self.host.text_sites)

    def eta(self, captions: CaptionSet, config: TrainConfig) -> float:
        """Return η of Eq. 4: the given one, or the one that takes every concept equally far.

        A surrogate may be near the concept ("a musical instrument" is drawn as a guitar) or far from it ("a food" as a
        pizza). One η for all leaves the first behind and goes past the second, whose pictures then lose their style.
        With d² = E‖x_s − x_t‖² / E‖x‖² over paired text states of the captions and over those of what is kept,

            η = reach / d − 1, in [0, 3], rounded to six decimals

        Rounded, because the last bits of the kept moment depend on what else was made in this workshop. Under
        `sibling_surrogate` a surrogate that is a thing of its own asks for nothing beyond it: η = 0.

        Args:
            captions: of the concept.
            config: gives η, or `reach` and `sibling_surrogate`.

        Raises:
            ConfigError: if η is to be found and no text tells concept and surrogate apart, or nothing is kept.
        """
        given = config.eta(captions.kind)
        if given is not None:
            return given
        if config.sibling_surrogate and captions.specific:
            return 0.0
        distance = float((self._moved(captions) / self.keep_moment(captions.anchors).trace()).sqrt())
        if not distance:
            raise ConfigError(
                f"the text encoder reads {captions.names[0]!r} as it reads its surrogate; name another surrogate"
            )
        return round(min(max(config.reach / distance - 1, 0.0), _MOST), 6)

    def distance(self, captions: CaptionSet) -> float:
        """Return √E‖x_s − x_t‖² over paired text states of captions: how differently their surrogates are read.

        Args:
            captions: with the concept, and with the surrogate in its place; no anchors are needed.
        """
        return float(self._moved(captions).sqrt())

    def _moved(self, captions: CaptionSet) -> Tensor:
        pairs = _joined(self._paired(captions))
        return (pairs.surrogate - pairs.target).double().square().sum(1).mean()

    def closed_form(self, captions: CaptionSet, config: TrainConfig, others: Sequence[Membrane] = ()) -> Pairs:
        """Return the closed-form pairs of all sites where text alone enters; no other site is named.

        Args:
            captions: with the concept, with the surrogate in its place, and what is kept.
            config: gives λ, η, k and the null space.
            others: membranes under the denoiser's own site names, to whose regulators each v shall be orthogonal.

        Raises:
            ConfigError: if no direction is left, naming the site.
        """
        projections = self.text_projections()
        if not projections:
            return {}
        paired, keep = self._paired(captions), self.keep_moment(captions.anchors)
        eta, spare = self.eta(captions, config), None
        if config.closed_form_spare is not None:
            places = min(len(pairs.surrogate) for pairs in paired)
            states = torch.stack([pairs.surrogate[:places] for pairs in paired])
            spare = wording_directions(states, config.closed_form_spare)
        problem = partial(ClosedForm, _joined(paired), keep, keep_weight=config.closed_form_keep, spare=spare)
        shared = None if others else problem(within=_span(keep, config, (), ""))
        found: Pairs = {}
        for name, site in projections.items():
            taken = [membrane.pairs[name][1].flatten(1) for membrane in others if name in membrane.pairs]
            solvable = shared or problem(within=_span(keep, config, taken, name))
            weight = projection(site, self.host.dtype)
            found[name] = solvable.solve(weight, negative_guidance=eta, rank=config.rank)
        return found

    def _paired(self, captions: CaptionSet) -> list[StatePairs]:
        targets, surrogates = self.encode(captions.targets), self.encode(captions.surrogates)
        spans = {text: self.encode([text])[0].token_ids for text in dict.fromkeys(captions.spans)}
        return [
            pair_states(target, surrogate, spans[span]).mapped(self.host.text_inputs)
            for target, surrogate, span in zip(targets, surrogates, captions.spans, strict=True)
        ]


def _joined(pairs: Sequence[StatePairs]) -> StatePairs:
    return StatePairs(torch.cat([p.target for p in pairs]), torch.cat([p.surrogate for p in pairs]))


def _span(keep: Tensor, config: TrainConfig, taken: Sequence[Tensor], name: str) -> Tensor | None:
    """Return an orthonormal basis of the directions that v may have at a site; None is all."""
    within = complement(taken, keep.shape[0]) if taken else None
    if config.closed_form_null is not None:
        within = null_space(keep, config.closed_form_null, within)
    if within is not None and not within.shape[1]:
        where = f"at site {name!r} " if name else ""
        raise ConfigError(
            f"{where}no direction is left for the closed form among {keep.shape[0]}: {len(taken)} membranes to be "
            f"orthogonal to, closed_form_null {config.closed_form_null}; take fewer, or a higher threshold"
        )
    return within


def _without_padding(prompt: EncodedPrompt) -> EncodedPrompt:
    end = prompt.first + len(prompt.token_ids) + 1
    return prompt if prompt.states.shape[0] <= end else replace(prompt, states=prompt.states[:end].clone())
