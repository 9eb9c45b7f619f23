"""Judges made of published networks: CLIP and image classifiers of `transformers`, and TorchScript files.

TorchScript, unlike a pickle, runs no Python when it is opened. Three kinds of file are used:

- Inception for FID in the form that NVIDIA published (`inception-2015-12-05.pt`): called with uint8 pictures in
  [0, 255], shape (rows, 3, height, width), and `return_features=True`; returns (rows, 2048);
- SSCD in the form that Meta published (`sscd_disc_mixup.torchscript.pt`): called with pictures of 288 pixels a side,
  normalised with ImageNet's mean and deviation; returns descriptors (rows, width);
- LPIPS, traced: called with two batches in [−1, 1]; returns one distance for each pair.

LPIPS also comes from its authors' package `lpips`, which brings torchvision and is therefore an extra of its own.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from semipermeable.errors import ConfigError, UnknownNameError, closest

__all__ = [
    "LPIPS_BACKBONES",
    "SSCD_SIDE",
    "Classifiers",
    "HubClip",
    "ImageClassifier",
    "inception_features",
    "perceptual_network",
    "script_file",
    "sscd_descriptors",
]

SSCD_SIDE = 288
LPIPS_BACKBONES = ("alex", "vgg", "squeeze")
"""Names under which the package `lpips` has its networks."""
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _loaded(what: str, source: str, load: Callable[[], Any]) -> Any:
    """Load something, and name it where that fails."""
    try:
        return load()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ConfigError(
            f"{what} {source!r} cannot be loaded ({first}); pass a hub id, or a folder that `save_pretrained` wrote"
        ) from error


def _prepared(processor: Any, images: Tensor) -> Tensor:
    """Let a processor scale and normalise pictures in [0, 1]."""
    from PIL import Image

    pixels = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return processor(images=[Image.fromarray(rows) for rows in pixels], return_tensors="pt")["pixel_values"]


class HubClip:
    """A CLIP of `transformers`.

    Args:
        source: hub id or local folder.

    Raises:
        ConfigError: if it cannot be loaded.
    """

    def __init__(self, source: str) -> None:
        from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

        load_model: Any = CLIPModel.from_pretrained
        load_tokenizer: Any = AutoTokenizer.from_pretrained
        self.model: Any = _loaded("CLIP", source, lambda: load_model(source).eval())
        self.tokenizer: Any = _loaded("tokenizer of CLIP", source, lambda: load_tokenizer(source))
        self.processor: Any = _loaded(
            "processor of CLIP", source, lambda: CLIPImageProcessorPil.from_pretrained(source)
        )

    @torch.inference_mode()
    def image_features(self, images: Tensor) -> Tensor:
        """See `ClipLike`."""
        return _vectors(self.model.get_image_features(pixel_values=_prepared(self.processor, images)))

    @torch.inference_mode()
    def text_features(self, texts: list[str]) -> Tensor:
        """See `ClipLike`."""
        length = int(self.model.config.text_config.max_position_embeddings)
        rows = self.tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        return _vectors(
            self.model.get_text_features(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"])
        )


def _vectors(found: Any) -> Tensor:
    """Return the features of what `transformers` gives: a tensor, or since version 5 an output that holds it."""
    return found if isinstance(found, Tensor) else found.pooler_output


class ImageClassifier:
    """An image classifier of `transformers`.

    Args:
        source: hub id or local folder.
        wanted: classes that a benchmark asks for.

    Raises:
        ConfigError: if it cannot be loaded.
        UnknownNameError: if it does not know a wanted class.
    """

    def __init__(self, source: str, wanted: Sequence[str]) -> None:
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        load_model: Any = AutoModelForImageClassification.from_pretrained
        load_processor: Any = AutoImageProcessor.from_pretrained
        self.model: Any = _loaded("classifier", source, lambda: load_model(source).eval())
        self.processor: Any = _loaded("processor of classifier", source, lambda: load_processor(source))
        labels: Mapping[int, str] = self.model.config.id2label
        self.classes = _named([labels[i] for i in range(len(labels))], wanted, source)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the most likely class of each picture, shape (rows,)."""
        return self.model(pixel_values=_prepared(self.processor, images)).logits.argmax(1)


def _named(labels: Sequence[str], wanted: Sequence[str], source: str) -> tuple[str, ...]:
    """Return a name for each label: the wanted class that it means, else its own.

    ImageNet's labels list synonyms ("tench, Tinca tinca"); a wanted class is any of them, in any case.
    """
    names = list(labels)
    known: dict[str, int] = {}
    for index, label in enumerate(labels):
        for synonym in (label, *label.split(",")):
            known.setdefault(_plain(synonym), index)
    for name in wanted:
        if _plain(name) not in known:
            raise UnknownNameError(closest(_plain(name), known, what=f"class of the classifier {source!r}"))
        index = known[_plain(name)]
        if names[index] in wanted and names[index] != name:
            raise ConfigError(
                f"{names[index]!r} and {name!r} are one class of the classifier {source!r} ({labels[index]!r}); "
                "it cannot tell them apart, so ask for one of them"
            )
        names[index] = name
    return tuple(names)


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


class Classifiers:
    """A classifier of objects and one of styles, side by side as one judge; either may be missing.

    Args:
        objects: None sees no objects.
        styles: None sees no styles.
    """

    def __init__(self, objects: ImageClassifier | None, styles: ImageClassifier | None) -> None:
        self._of_objects, self._of_styles = objects, styles
        self.objects = () if objects is None else objects.classes
        self.styles = () if styles is None else styles.classes

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See `JudgeLike`."""
        nothing = torch.zeros(len(images), dtype=torch.long)
        of_objects = nothing if self._of_objects is None else self._of_objects(images)
        return of_objects, nothing if self._of_styles is None else self._of_styles(images)


def script_file(source: str) -> Path:
    """Return a local file: the path given, or what `OWNER/REPO/FILE` names on the hub, fetched unless it is cached.

    Raises:
        ConfigError: if there is no such file here, and the hub has none or cannot be asked.
    """
    owner, repo, file = [*source.split("/", 2), "", ""][:3]
    if Path(source).exists() or not (owner.strip(".~") and repo and file):
        return Path(source)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(f"{owner}/{repo}", file))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(
            f"there is no file {source!r} here, and the hub cannot give {file!r} of {owner}/{repo}; check the path, or "
            "name and network"
        ) from error


def _script(path: Path, what: str) -> Any:
    if not path.is_file():
        raise ConfigError(f"there is no file {str(path)!r} for {what}; check the path")
    try:
        return torch.jit.load(str(path), map_location="cpu").eval()
    except RuntimeError as error:
        raise ConfigError(f"{str(path)!r} is no TorchScript file, which {what} needs; get it again") from error


def _checked(found: Any, rows: int, source: Path | str, what: str) -> Tensor:
    if not isinstance(found, Tensor) or len(found) != rows or found.ndim > 2:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ConfigError(f"{str(source)!r} gave {shape} for {rows} pictures; {what} gives one row for each")
    return found


def inception_features(path: Path) -> Callable[[Tensor], Tensor]:
    """Return what gives Inception's features of pictures in [0, 1]; see the module for the file.

    Raises:
        ConfigError: if the file cannot be loaded.
    """
    network = _script(path, "Inception")

    @torch.inference_mode()
    def features(images: Tensor) -> Tensor:
        whole = (images.clamp(0, 1) * 255).round().byte()
        return _checked(network(whole, return_features=True), len(images), path, "Inception")

    return features


def sscd_descriptors(path: Path) -> Callable[[Tensor], Tensor]:
    """Return what gives SSCD's descriptors of pictures in [0, 1]; see the module for the file.

    Raises:
        ConfigError: if the file cannot be loaded.
    """
    network = _script(path, "SSCD")

    @torch.inference_mode()
    def descriptors(images: Tensor) -> Tensor:
        size = (SSCD_SIDE, SSCD_SIDE)
        scaled = functional.interpolate(images.float(), size, mode="bilinear", antialias=True, align_corners=False)
        mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _DEVIATION))
        return _checked(network((scaled - mean) / deviation), len(images), path, "SSCD")

    return descriptors


def perceptual_network(source: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return LPIPS: one of `LPIPS_BACKBONES` from the package `lpips`, or a traced file; see the module.

    Raises:
        ConfigError: if the package is missing, or weights or file cannot be loaded.
    """
    network = _packaged_lpips(source) if source in LPIPS_BACKBONES else _script(Path(source), "LPIPS")

    @torch.inference_mode()
    def distances(before: Tensor, after: Tensor) -> Tensor:
        return _checked(network(before, after).flatten(), len(before), source, "LPIPS")

    return distances


def _packaged_lpips(backbone: str) -> Any:
    try:
        lpips: Any = import_module("lpips")
    except ImportError as error:
        raise ConfigError(
            f"LPIPS {backbone!r} is in the package lpips: pip install 'semipermeable[lpips]', or pass a traced file"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it calls torchvision in a way that torchvision has given up
            return lpips.LPIPS(net=backbone, verbose=False).eval()
    except OSError as error:
        raise ConfigError(
            f"the weights of LPIPS {backbone!r} cannot be fetched ({error}); go online once, or pass a traced file"
        ) from error
