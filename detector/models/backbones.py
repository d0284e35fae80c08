"""The port of a backbone, the builder of every backbone that a configuration can name, and ImageNet weights.

B images. Features C3, C4, C5 are (B, channels, H_l, W_l) with strides 8, 16, 32.
"""

import pickle
from abc import ABC, abstractmethod
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from detector.config import BackboneConfig, names
from detector.config.names import BackboneName
from detector.errors import CheckpointError

_CLASSIFIERS = ("fc.", "classifier.")
"""First parts of the names of torchvision's classifiers, which a backbone does not have."""


class Backbone(nn.Module, ABC):
    """Network up to C5, under torchvision's parameter names, so that its published weights fit."""

    channels: tuple[int, int, int]
    """Channels of C3, C4 and C5."""

    @abstractmethod
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised images (B, 3, H, W) to C3, C4, C5."""


def build_backbone(config: BackboneConfig) -> Backbone:
    """The backbone with random weights and frozen stages as `config` says; torch's random stream decides them."""
    backbone: Backbone = names.load(names.BACKBONES[config.name])(config)
    return backbone


def resolve_imagenet_weights(name: BackboneName, weights_file: Path | None) -> Path:
    """The file with ImageNet weights: the given one, else torchvision's V1 weights in torch.hub's cache, which are
    downloaded when they are missing. Raises CheckpointError that says what can be done instead."""
    if weights_file is not None:
        if not weights_file.is_file():
            raise CheckpointError("no such file", file=weights_file, field="weights file", remedy="Check the path")
        return weights_file
    url = _published_url(name)
    if url is None:
        raise CheckpointError(
            "torchvision publishes no ImageNet weights for it",
            field="backbone.name",
            value=name,
            remedy="Give a file with --weights-file, choose another backbone, or set backbone.weights to 'none'",
        )
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if not file.is_file():
        _download(url, file)
    return file


def _download(url: str, file: Path) -> None:
    digest = file.stem.rpartition("-")[2]
    try:
        # torch.hub waits for a silent network for minutes; this asks first.
        with urlopen(Request(url, method="HEAD"), timeout=15):
            pass
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), hash_prefix=digest, progress=False)  # moves it in when complete
    except (OSError, RuntimeError, HTTPException) as error:  # no network, no room; not the expected SHA-256; no HTTP
        raise CheckpointError(
            f"ImageNet weights cannot be downloaded from {url}: {error}",
            file=file,
            remedy="Put the file there yourself, give one with --weights-file, or train from scratch with "
            "backbone.weights 'none'",
        ) from error


def load_imagenet_weights(backbone: nn.Module, name: BackboneName, weights_file: Path | None) -> None:
    """Load ImageNet weights into a backbone in place; the file's classifier is ignored.

    Reads .safetensors, or anything `torch.load` reads without running code. Raises CheckpointError, with the backbone
    unchanged, where the file is missing, unreadable or of another network: keys are named.
    """
    file = resolve_imagenet_weights(name, weights_file)
    found = {key: value for key, value in read_tensors(file).items() if not key.startswith(_CLASSIFIERS)}
    wanted = backbone.state_dict()
    # A count that files from before torch 0.4.1 lack and that nothing here uses.
    for state in (found, wanted):
        for key in [key for key in state if key.endswith("num_batches_tracked")]:
            del state[key]
    problems = [
        _listing("missing", [key for key in wanted if key not in found]),
        _listing("unexpected", [key for key in found if key not in wanted]),
        _listing(
            "of another shape",
            [
                f"{key} {tuple(found[key].shape)} for {tuple(wanted[key].shape)}"
                for key in wanted
                if key in found and found[key].shape != wanted[key].shape
            ],
        ),
    ]
    if any(problems):
        raise CheckpointError(
            f"not the weights of {name}: {'; '.join(problem for problem in problems if problem)}",
            file=file,
            remedy="Give the file of this very backbone, normalised as backbone.norm says",
        )
    backbone.load_state_dict(found, strict=False)


def _listing(what: str, keys: list[str], limit: int = 5) -> str:
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return f"{len(keys)} {what} ({', '.join(keys[:limit])}{more})" if keys else ""


def published_digest(name: BackboneName) -> str | None:
    """First hexadecimal digits of the SHA-256 of torchvision's file of ImageNet V1 weights; None where it has none."""
    url = _published_url(name)
    return None if url is None else Path(urlparse(url).path).stem.rpartition("-")[2]


def _published_url(name: BackboneName) -> str | None:
    """Address of torchvision's file of ImageNet V1 weights; None where it has none."""
    try:
        url: str = get_model_weights(name).IMAGENET1K_V1.url
    except ValueError:  # not a model of torchvision's
        return None
    return url


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file, or of one that `torch.load` reads without running code; CheckpointError else."""
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: object = load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    # Damaged or hostile files surface as any of these, depending on where the reader stumbles.
    except Exception as error:
        # torch's own text advises to read the file with the right to run code.
        refused = isinstance(error, pickle.UnpicklingError)
        reason = "expected tensors and nothing else" if refused else f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckpointError(
            f"cannot be read as weights ({reason})",
            file=file,
            remedy="Delete it to have it downloaded again, or give another with --weights-file",
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError("holds no dictionary of tensors", file=file, remedy="Save a state_dict")
    return content
