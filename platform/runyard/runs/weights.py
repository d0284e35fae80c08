"""Initial weights of a training: their digest, which is part of the training identity, and the tensors themselves.

The published weights of a backbone are its default and have no digest of their own in the identity: naming them needs
no download. Any other file counts by its tensors, whatever it is called and in whichever form it is saved.
"""

import functools
import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from detector.config import BackboneConfig
from detector.errors import ConfigError
from runyard.spec import ExperimentSpec

# torchvision, which the backbones need, takes a second to import: only a run with weights to read waits for it.


def with_weights_digest(spec: ExperimentSpec) -> ExperimentSpec:
    """The spec with `source.weights_digest` filled in; reads `source.weights_file`, where one is named.

    Raises CheckpointError for a file that cannot be read, ConfigError for one that would not be used.
    """
    file = spec.source.weights_file
    if file is None:
        return spec
    backbone = spec.model.pretrained
    if backbone is None:
        raise ConfigError(
            "is not used by a training from scratch",
            field="source.weights_file",
            value=str(file),
            remedy="Leave it out, or set the backbone's weights to 'imagenet'",
        )
    file = file.expanduser().resolve()
    digest = _digest_of_file(file, backbone)
    if spec.source.weights_digest not in (None, digest):
        raise ConfigError("holds other weights than expected", file=file, field="source.weights_digest", value=digest)
    return replace(spec, source=replace(spec.source, weights_file=file, weights_digest=digest))


def initial_weights(spec: ExperimentSpec) -> dict[str, Tensor] | None:
    """State of the backbone with its initial weights, checked against the network; None: random weights.

    Workers on other nodes read it from the run's folder. Raises CheckpointError for a file that is missing, cannot be
    read or downloaded, or is of another network.
    """
    from detector.models.backbones import build_backbone, load_imagenet_weights

    config = spec.model.pretrained
    if config is None:
        return None
    backbone = build_backbone(config)
    load_imagenet_weights(backbone, config.name, spec.source.weights_file)
    return dict(backbone.state_dict())


def digest_of_tensors(tensors: dict[str, Tensor]) -> str:
    """64 hexadecimal digits: SHA-256 over names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _digest_of_file(file: Path, backbone: BackboneConfig) -> str | None:
    """Digest of the tensors; None for the file that is published for the backbone."""
    from detector.models.backbones import resolve_imagenet_weights

    return _digest_once(resolve_imagenet_weights(backbone.name, file), backbone, file.stat().st_mtime_ns)


@functools.cache
def _digest_once(file: Path, backbone: BackboneConfig, changed_at_ns: int) -> str | None:
    from detector.models.backbones import published_digest, read_tensors

    published = published_digest(backbone.name)
    tensors = read_tensors(file)
    return None if published and _sha256(file).startswith(published) else digest_of_tensors(tensors)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
