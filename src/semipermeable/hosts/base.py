"""What a pipeline family tells the rest of the package, and what all families share.

A family is a subclass of `Host` in a file of its own (docs/adding-a-family.md). The abstract methods are what it must
write; the others hold for most families and are overridden where a pipeline differs.
"""

import copy
import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from semipermeable.errors import ArchitectureError, AttachError
from semipermeable.hosts.condition import Condition
from semipermeable.hosts.parts import (
    CallRows,
    EncodeResult,
    Observed,
    RowText,
    TextRows,
    row_texts,
    together,
    weights_hash,
)
from semipermeable.hosts.text import joined
from semipermeable.permeability.decisions import EncodedPrompt
from semipermeable.runtime import Role, gated_view, hand_back, pass_name
from semipermeable.runtime.view import Gate

__all__ = ["CallRows", "EncodeResult", "Host", "Observed", "TextRows", "together", "viewed", "weights_hash"]


class Host(ABC):
    """A pipeline and what this package must know about its family.

    Args:
        pipe: the pipeline.
    """

    family: ClassVar[str]
    """Short name, e.g. "unet"; stored with every membrane."""
    describes: ClassVar[str]
    """What it supports, for messages."""
    site_classes: ClassVar[tuple[str, ...]]
    """Membranes sit on the Linear and Conv2d layers inside modules of these classes."""
    denoiser_names: ClassVar[tuple[str, ...]] = ("transformer",)
    """Attributes of the pipeline that hold denoisers; one that is None or missing does not count."""
    encode_name: ClassVar[str] = "encode_prompt"
    """The pipeline method that turns prompts into embeddings."""
    encode_result: ClassVar[EncodeResult] = EncodeResult()
    """Where the embeddings are in what that method returns."""
    tokenizer_names: ClassVar[tuple[str, ...]] = ("tokenizer",)
    """Attributes of the pipeline that hold tokenizers."""
    text_encoder_names: ClassVar[tuple[str, ...]] = ("text_encoder",)
    """Attributes of the text encoders that `encode` reads; the gate is bound to their weights."""
    text_sites: tuple[str, ...] = ()
    """Endings of the names of sites that project text alone into keys and values; () where text and image are mixed."""
    layout: ClassVar[Literal["halves", "passes"]] = "halves"
    """Under classifier-free guidance: unconditional rows first, conditional ones second; or a call for each."""
    casts_text: ClassVar[bool] = False
    """Whether the pipeline casts embeddings to the denoiser's dtype after they were encoded."""

    default_negative: ClassVar[str] = ""
    """The negative prompt for "no prompt" where the pipeline does not guide unless it is given one."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self._hashes: dict[str, str] = {}
        self._private_tokenizers: dict[str, Any] = {}
        self._observed_guidance = False

    # What every family writes

    @classmethod
    @abstractmethod
    def supports(cls, pipe: Any) -> bool:
        """Whether `pipe` belongs to this family, by the classes of its components."""

    @abstractmethod
    def encode_texts(self, texts: Sequence[str], window: int) -> list[EncodedPrompt]:
        """Encode texts, at least one, for a permeability rule, on CPU in fp32.

        Args:
            texts: all read in the same window.
            window: `max_sequence_length` of the pipeline; 0 where it has none.
        """

    @abstractmethod
    def condition(self, prompts: Sequence[str]) -> Condition:
        """Return what the denoiser is told about prompts, one row each, on its device and in its dtype."""

    @abstractmethod
    def predict(self, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """Call the denoiser and return what the scheduler's `step` takes, in the shape of `latents`.

        Args:
            latents: in the pipeline's own layout, scaled by `model_input`, shape (rows, ...).
            timesteps: as the scheduler yields them, shape (rows,).
            condition: one row each.
        """

    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of the noise of one sample at the model's native size, (channels, [frames,] height, width)."""

    # What most families leave as it is

    def encode(self, prompts: Sequence[str]) -> list[EncodedPrompt]:
        """Encode prompts for a permeability rule, on CPU in fp32; no prompts give [].

        Args:
            prompts: texts, read in the usual window; or what `observe` told of rows.
        """
        rows = [prompt if isinstance(prompt, RowText) else RowText([prompt]) for prompt in prompts]
        usual, found = self.window(), dict[int, Iterator[EncodedPrompt]]()
        for window in dict.fromkeys(row.window for row in rows):
            texts = [text for row in rows if row.window == window for text in row.texts]
            found[window] = iter(self.encode_texts(texts, window or usual))
        encoded = [[next(found[row.window]) for _ in row.texts] for row in rows]
        return [
            parts[0] if len(parts) == 1 else joined(str(row), parts) for row, parts in zip(rows, encoded, strict=True)
        ]

    def window(self) -> int:
        """Return the `max_sequence_length` of a pipeline that is not told any; 0 where it cannot be told."""
        methods = (type(self.pipe).__call__, getattr(type(self.pipe), self.encode_name))
        taken = [inspect.signature(method).parameters.get("max_sequence_length") for method in methods]
        return next((int(argument.default) for argument in taken if argument is not None), 0)

    @property
    def prediction_type(self) -> str:
        """ "epsilon", "v_prediction" or "flow"."""
        kind = self.pipe.scheduler.config.get("prediction_type")
        return "flow" if kind in (None, "flow_prediction") else str(kind)

    @property
    def guidance(self) -> Literal["classifier-free", "embedded", "none"]:
        """How pictures are guided: by unconditional rows, by a scale that the denoiser reads, or not at all."""
        return "classifier-free"

    @property
    def denoisers(self) -> dict[str, nn.Module]:
        """Pipeline attribute to denoiser, as the pipeline holds them now."""
        found = {name: getattr(self.pipe, name, None) for name in self.denoiser_names}
        return {name: module for name, module in found.items() if module is not None}

    @property
    def denoiser(self) -> nn.Module:
        """The denoiser; where there are several, a module that holds them all under their attributes' names."""
        return together(self.denoisers)

    @property
    def base_model(self) -> str:
        """Hub id or bundled name; of a local folder only its last part, so that no machine path is published."""
        name = str(self.pipe.config.get("_name_or_path") or "")
        return Path(name).name if Path(name).is_dir() else name

    @property
    def device(self) -> torch.device:
        """Where the pipeline executes (offloaded models report the execution device)."""
        return self.pipe._execution_device

    @property
    def dtype(self) -> torch.dtype:
        """The denoiser's dtype."""
        denoiser: Any = next(iter(self.denoisers.values()))
        return denoiser.dtype

    def unconditional(self) -> Condition:
        """Return the one row that stands for no prompt under classifier-free guidance."""
        return self.condition([""])

    def text_inputs(self, states: Tensor) -> Tensor:
        """Return what `text_sites` read where the conditioning is `states`, shape (sequence, dim), on the CPU."""
        return states

    def make_scheduler(self, num_steps: int) -> Any:
        """Return a fresh scheduler of the pipeline's kind with `num_steps` timesteps set."""
        scheduler = type(self.pipe.scheduler).from_config(self.pipe.scheduler.config)
        scheduler.set_timesteps(**self.timestep_arguments(num_steps), device=self.device)
        return scheduler

    def timestep_arguments(self, num_steps: int) -> dict[str, Any]:
        """Return what the pipeline gives to `set_timesteps` (shifted sigmas, mu), without the device."""
        return {"num_inference_steps": num_steps}

    def initial_latents(self, scheduler: Any, rows: int, generator: torch.Generator) -> Tensor:
        """Return pure noise as the pipeline begins with it.

        Args:
            scheduler: from `make_scheduler`.
            rows: number of samples.
            generator: draws the noise, on CPU.
        """
        noise = torch.randn((rows, *self.latent_shape()), generator=generator).to(self.device, self.dtype)
        return noise * getattr(scheduler, "init_noise_sigma", 1.0)

    def model_input(self, scheduler: Any, latents: Tensor, timestep: Tensor) -> Tensor:
        """Return latents as the denoiser reads them at a timestep."""
        scale = getattr(scheduler, "scale_model_input", None)
        return latents if scale is None else scale(latents, timestep)

    def guided(self, unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
        """Return the prediction that the pipeline steps with under classifier-free guidance."""
        return unconditional + scale * (conditional - unconditional)

    def noised(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return x_t as the denoiser reads it: √ᾱ_t x + √(1−ᾱ_t) ε, or (1−σ) x + σ ε with σ = t / T in flow matching.

        Args:
            clean: x, latents of pictures, shape (rows, ...).
            noise: ε, in the shape of x.
            timesteps: t, shape (rows,); whole numbers from 0 to T − 1 where it is no flow.
        """
        signal, sigma = self._mixture(clean, timesteps)
        return signal * clean + sigma * noise

    def training_target(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return what the denoiser should predict at `noised(...)`: ε, v = √ᾱ ε − √(1−ᾱ) x, or ε − x.

        Args:
            clean: x.
            noise: ε.
            timesteps: t, all as for `noised`.

        Raises:
            ArchitectureError: if the model predicts something else.
        """
        kind = self.prediction_type
        if kind == "epsilon":
            return noise
        if kind == "flow":
            return noise - clean
        if kind == "v_prediction":
            signal, sigma = self._mixture(clean, timesteps)
            return signal * noise - sigma * clean
        raise ArchitectureError(
            f"this model's scheduler predicts {kind!r}; training on pictures knows epsilon, v_prediction and flow"
        )

    def _mixture(self, like: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Shares of signal and noise in x_t, shape (rows, 1, ...)."""
        scheduler = self.pipe.scheduler
        # In bf16 ᾱ rounds to 1 at the first timesteps, and no noise would be left.
        wide = torch.promote_types(like.dtype, torch.float32)
        if self.prediction_type == "flow":
            sigma = (timesteps / scheduler.config.num_train_timesteps).to(like.device, wide)
            shares = 1 - sigma, sigma
        else:
            kept = scheduler.alphas_cumprod.to(like.device, wide)[timesteps.to(like.device)]
            shares = kept**0.5, (1 - kept) ** 0.5
        signal, noise = (share.to(like.dtype).reshape(-1, *[1] * (like.dim() - 1)) for share in shares)
        return signal, noise

    def draw(
        self,
        prompts: Sequence[str],
        *,
        steps: int,
        guidance: float,
        generator: torch.Generator | list[torch.Generator],
        negative: str = "",
        output: Literal["pil", "pt", "latent"] = "pil",
        on_step: Callable[..., dict[str, Any]] | None = None,
    ) -> Any:
        """Draw with the pipeline as it is.

        Args:
            prompts: one picture each.
            steps: denoising steps.
            guidance: scale of the pipeline's guidance, whatever its kind; 1 or less: without.
            generator: of the noise, one for all or one per picture.
            negative: negative prompt for all; "" leaves it to the pipeline.
            output: PIL images; a tensor (rows, 3, height, width) in [0, 1]; or latents in the pipeline's layout.
            on_step: called as `callback_on_step_end`.
        """
        negative = negative or self.default_negative
        avoided = [negative] * len(prompts) if negative and guidance > 1 else None
        arguments = {**self.size_arguments(), **self.draw_arguments(guidance, avoided)}
        if on_step is not None:
            arguments["callback_on_step_end"] = on_step
        result = self.pipe(
            list(prompts), num_inference_steps=steps, generator=generator, output_type=output, **arguments
        )
        return self.drawn(result)

    def size_arguments(self) -> dict[str, Any]:
        """Return the pipeline's arguments for the size of `latent_shape`, where it would not choose that by itself."""
        return {}

    def drawn(self, result: Any) -> Any:
        """Return the pictures of what a call of the pipeline returned."""
        return result.images

    def draw_arguments(self, guidance: float, negative: list[str] | None) -> dict[str, Any]:
        """Return the pipeline's arguments that ask for guidance of a scale and, if not None, negative prompts."""
        return {"guidance_scale": guidance, "negative_prompt": negative}

    def observe(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Observed:
        """Run the pipeline's encode method and say which of the returned rows came from which text."""
        signature = inspect.signature(call)
        given = dict(signature.bind(*args, **kwargs).arguments)
        window = self._longer_window(signature, given)
        # Copied before the call: some pipelines write their chat template into the caller's own list.
        texts = row_texts(given, "prompt", window)
        avoided = row_texts(given, "negative_prompt", window) or [""]
        result = call(*args, **kwargs)
        where = self.encode_result
        observed = Observed(result, [], [])
        self._note(observed, result[where.positive], texts, given.get("prompt_embeds"), Role.PROMPT)
        if where.negative is None:
            return observed
        self._observed_guidance = bool(given.get("do_classifier_free_guidance", False))
        if self._observed_guidance:
            given_negative = given.get("negative_prompt_embeds")
            self._note(observed, result[where.negative], avoided, given_negative, Role.NEGATIVE)
        return observed

    def _longer_window(self, signature: inspect.Signature, given: dict[str, Any]) -> int:
        """The `max_sequence_length` of a call of the encode method, if it is more than usual; 0 otherwise."""
        taken = signature.parameters.get("max_sequence_length")
        window = 0 if taken is None else int(given.get(taken.name, taken.default) or 0)
        return window if window > self.window() else 0

    def _note(
        self, observed: Observed, rows: TextRows | None, texts: list[str] | None, given: TextRows | None, role: Role
    ) -> None:
        if rows is None:
            return
        read = rows.to(self.dtype) if self.casts_text and isinstance(rows, Tensor) else rows
        if given is not None:
            observed.passed.append((given, read, role))
        elif texts is not None:
            observed.known.append((read, texts, role))

    def call_rows(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CallRows:
        """Return the text rows of a denoiser call and which of them are conditional."""
        text = self.call_argument("encoder_hidden_states", args, kwargs)
        if not isinstance(text, Tensor):
            raise AttachError("the denoiser was called without encoder_hidden_states; membranes cannot be gated")
        rows = text.shape[0]
        if self.layout == "passes":
            name = pass_name()
            return CallRows(text, [name != "uncond"] * rows, named=name is not None)
        if self.is_guided() and rows % 2 == 0:
            return CallRows(text, [False] * (rows // 2) + [True] * (rows // 2))
        return CallRows(text, [True] * rows)

    def is_guided(self) -> bool:
        """Whether the pipeline's present call computes unconditional rows: as it says, or as it last encoded."""
        if hasattr(type(self.pipe), "do_classifier_free_guidance"):
            scale = getattr(self.pipe, "_guidance_scale", None)
            return scale is not None and bool(self.pipe.do_classifier_free_guidance)
        return self._observed_guidance

    def base_hash(self) -> str:
        """SHA-256 of the denoisers' weights (`weights_hash`)."""
        return self._hash(*self.denoisers)

    def text_encoder_hash(self) -> str:
        """SHA-256 of the weights of the text encoders that `encode` reads (`weights_hash`)."""
        return self._hash(*(name for name in self.text_encoder_names if getattr(self.pipe, name, None) is not None))

    # Tools for the methods of a family

    def call_argument(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return an argument of a denoiser call by its name, or None if it was not given."""
        if name in kwargs:
            return kwargs[name]
        names = list(inspect.signature(type(next(iter(self.denoisers.values()))).forward).parameters)[1:]
        position = names.index(name)
        return args[position] if position < len(args) else None

    def own_encode(self, prompts: Sequence[str], **arguments: Any) -> Any:
        """Run the pipeline's encode method, unwatched, without gradients, on private copies of its tokenizers.

        Args:
            prompts: texts.
            arguments: passed on, e.g. `do_classifier_free_guidance=False`.
        """
        twin = copy.copy(self.pipe)
        vars(twin).pop(self.encode_name, None)
        for name in self.tokenizer_names:
            vars(twin)[name] = self.tokenizer(name)
        with torch.no_grad():
            return getattr(twin, self.encode_name)(list(prompts), **arguments)

    def tokenizer(self, name: str = "tokenizer") -> Any:
        """Return a copy of one of the pipeline's tokenizers.

        A fast tokenizer keeps padding and truncation as state between setting and use: calling the pipeline's own here
        would change what a sibling in another thread is encoding at that moment.
        """
        own, copied = getattr(self.pipe, name), self._private_tokenizers.get(name)
        if copied is None or len(copied) != len(own):
            copied = self._private_tokenizers[name] = copy.deepcopy(own)
        return copied

    def _hash(self, *parts: str) -> str:
        for part in parts:
            if part not in self._hashes:
                self._hashes[part] = weights_hash(getattr(self.pipe, part))
        if len(parts) == 1:
            return self._hashes[parts[0]]
        return hashlib.sha256("".join(self._hashes[part] for part in parts).encode()).hexdigest()


@contextmanager
def viewed(host: Host, owner: object, gate: Gate) -> Generator[None, None, None]:
    """Let the pipeline call views of its denoisers inside the `with` block.

    Args:
        host: of the pipeline.
        owner: what `view_owner` shall return for the views.
        gate: given a call's arguments, returns the context in which the call runs.
    """
    own = host.denoisers
    views = {name: gated_view(module, owner, gate) for name, module in own.items()}
    try:
        for name, view in views.items():
            setattr(host.pipe, name, view)
        yield
    finally:
        for name, module in own.items():
            setattr(host.pipe, name, module)
            hand_back(views[name], module)
