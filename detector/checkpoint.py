"""Checkpoints: tensors in a safetensors file, everything else in JSON, checksummed, written beside and then renamed.

A checkpoint is a folder with `tensors.safetensors` and `metadata.json`; the latter holds the former's SHA-256 and is
written last. Reading never executes anything and checks sum, names, shapes and types before a tensor is allocated.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from detector.errors import CheckpointError
from detector.files import encode_json, sync

FORMAT = 1
PARTIAL = ".partial"
"""Suffix of the hidden folder in which a checkpoint is written; one that a killed process left can be removed."""
_TENSORS, _METADATA = "tensors.safetensors", "metadata.json"
_LARGEST_METADATA_BYTES = 1 << 20
_DTYPE_NAMES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64", torch.uint8: "U8"}


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None, metadata: dict[str, Any]
) -> Path:
    """Writes model, optimiser and random state to `folder` and returns it.

    `folder` appears whole and verified, or not at all; one that stands there already is replaced. `metadata` must be
    JSON. Raises CheckpointError, with nothing left behind, where the disk is full or cannot be written.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    if optimizer is not None:
        for index, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                if value is not None:
                    tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
    tensors["random.torch"] = torch.get_rng_state()
    # safetensors wants dense row-major storage; channels_last tensors get their format back when they are loaded.
    content = save({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
    described = {"format": FORMAT, "sha256": hashlib.sha256(content).hexdigest(), "metadata": metadata}
    beside = folder.with_name(f".{folder.name}.{os.getpid()}{PARTIAL}")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        _write(beside / _TENSORS, content)
        _write(beside / _METADATA, encode_json(described, indent=1, non_finite="error"))
        sync(beside)
        read_metadata(beside)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(beside, folder)
        sync(folder.parent)
    except BaseException as error:
        shutil.rmtree(beside, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        raise CheckpointError(
            f"cannot be written ({error.strerror}): it needs {len(content)} bytes, {_free_bytes(folder)} are free",
            file=folder,
            remedy="Make room and run the same command again: it goes on from the checkpoint before",
        ) from error
    return folder


def read_metadata(folder: Path) -> dict[str, Any]:
    """The metadata of a checkpoint whose tensors have their right checksum; CheckpointError for any other."""
    expected, metadata = _read_content(folder)
    try:
        actual = _sha256(folder / _TENSORS)
    except OSError as error:
        raise CheckpointError(f"cannot be read ({error})", file=folder / _TENSORS) from error
    if actual != expected:
        raise CheckpointError("is damaged: its checksum differs from the recorded one", file=folder / _TENSORS)
    return metadata


def _read_content(folder: Path) -> tuple[str, dict[str, Any]]:
    """The recorded checksum and the metadata."""
    path = folder / _METADATA
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST_METADATA_BYTES + 1)
        if len(text) > _LARGEST_METADATA_BYTES:
            raise ValueError(f"{_METADATA} has more than {_LARGEST_METADATA_BYTES} bytes")
        content = json.loads(text)
        expected, metadata, version = str(content["sha256"]), dict(content["metadata"]), content["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"cannot be read as a checkpoint ({error})", file=folder) from error
    if version != FORMAT:
        raise CheckpointError(f"has an unknown format, this version reads {FORMAT}", file=path, value=version)
    return expected, metadata


def recorded_metadata(folder: Path) -> dict[str, Any]:
    """The metadata of a checkpoint, without reading its tensors.

    The tensors may be damaged: loading them checks. Raise CheckpointError for damaged metadata.
    """
    return _read_content(folder)[1]


def checkpoint_fingerprint(folder: Path) -> str:
    """64 hexadecimal digits: the SHA-256 of a checkpoint's tensors as recorded; loading checks that it holds."""
    return _read_content(folder)[0]


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None, *, random_state: bool = False
) -> dict[str, Any]:
    """Restores a checkpoint in place and returns its metadata.

    Raises CheckpointError, before anything is changed, for a damaged checkpoint or one whose tensors do not have the
    names, shapes and types that this model and optimiser need.
    """
    metadata = read_metadata(folder)
    expected = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    expected["random.torch"] = torch.get_rng_state()
    if optimizer is not None:
        expected |= _optimizer_tensors(optimizer)
    try:
        with safe_open(str(folder / _TENSORS), framework="pt") as file:
            _check_names_and_shapes(folder, file, expected, with_optimizer=optimizer is not None)
            tensors = {name: file.get_tensor(name) for name in expected}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"is not a safetensors file of ours ({error})", file=folder / _TENSORS) from error
    model.load_state_dict({name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")})
    if optimizer is not None:
        _load_optimizer(optimizer, tensors)
    if random_state:
        torch.set_rng_state(tensors["random.torch"])
    return metadata


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Names, shapes and types of the optimiser's state after its first step."""
    tensors: dict[str, Tensor] = {}
    for index, parameter in enumerate(_parameters(optimizer)):
        if isinstance(optimizer, torch.optim.AdamW):
            tensors[f"optimizer.{index}.step"] = torch.zeros(())
            tensors[f"optimizer.{index}.exp_avg"] = tensors[f"optimizer.{index}.exp_avg_sq"] = parameter
        elif optimizer.param_groups[0]["momentum"] != 0:
            tensors[f"optimizer.{index}.momentum_buffer"] = parameter
    return tensors


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            states.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    # The fused kernels walk over parameter and state in the order of memory, so both need the same format.
    for parameter in _parameters(optimizer):
        state = optimizer.state[parameter]
        for key, value in state.items():
            if value.shape == parameter.shape:
                state[key] = torch.empty_like(parameter, requires_grad=False).copy_(value)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _check_names_and_shapes(folder: Path, file: Any, expected: dict[str, Tensor], *, with_optimizer: bool) -> None:
    """Compares headers only, before any tensor is allocated."""
    found = {name for name in file.keys() if with_optimizer or not name.startswith("optimizer.")}  # noqa: SIM118
    missing, unexpected = sorted(set(expected) - found), sorted(found - set(expected))
    wrong = []
    for name in sorted(found & set(expected)):
        header, tensor = file.get_slice(name), expected[name]
        if list(header.get_shape()) != list(tensor.shape):
            wrong.append(f"{name} {tuple(header.get_shape())} instead of {tuple(tensor.shape)}")
        elif header.get_dtype() != _DTYPE_NAMES[tensor.dtype]:
            wrong.append(f"{name} {header.get_dtype()} instead of {_DTYPE_NAMES[tensor.dtype]}")
    problems = [
        f"{len(names)} {what} ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape or type", wrong))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"was made for another model: {'; '.join(problems)}",
            file=folder,
            remedy="Use the spec that stands beside the checkpoint, or start a run of another name",
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _free_bytes(folder: Path) -> int | str:
    try:
        return shutil.disk_usage(folder.parent).free
    except OSError:
        return "unknown"
