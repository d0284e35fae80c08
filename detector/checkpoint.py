"""Checkpoints: tensors in a safetensors file, everything else in JSON, checksummed, written beside and then renamed.

A checkpoint is a folder with `tensors.safetensors` and `metadata.json`; the latter holds the former's SHA-256 and is
written last. Reading never executes anything and checks names, shapes and sums before a tensor is used.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from detector.errors import CheckpointError

FORMAT = 1
_TENSORS, _METADATA = "tensors.safetensors", "metadata.json"


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None, metadata: dict[str, Any]
) -> Path:
    """Writes model, optimiser and random state to `folder` and returns it.

    `folder` appears whole or not at all; one that stands there already is replaced. `metadata` must be JSON.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    if optimizer is not None:
        for index, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                if value is not None:
                    tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
    tensors["random.torch"] = torch.get_rng_state()
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        # safetensors wants dense row-major storage; channels_last weights get their format back when they are loaded.
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, str(beside / _TENSORS))
        content = {"format": FORMAT, "sha256": _sha256(beside / _TENSORS), "metadata": metadata}
        (beside / _METADATA).write_text(json.dumps(content, indent=1))
        for path in (beside / _TENSORS, beside / _METADATA, beside):
            _sync(path)
        read_metadata(beside)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(beside, folder)
        _sync(folder.parent)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return folder


def read_metadata(folder: Path) -> dict[str, Any]:
    """The metadata of a checkpoint whose tensors have their right checksum; CheckpointError for any other."""
    path = folder / _METADATA
    try:
        content = json.loads(path.read_text())
        expected, metadata, version = content["sha256"], content["metadata"], content["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"cannot be read as a checkpoint ({error})", file=folder) from error
    if version != FORMAT:
        raise CheckpointError(f"has an unknown format, this version reads {FORMAT}", file=path, value=version)
    try:
        actual = _sha256(folder / _TENSORS)
    except OSError as error:
        raise CheckpointError(f"cannot be read ({error})", file=folder / _TENSORS) from error
    if actual != expected:
        raise CheckpointError("is damaged: its checksum differs from the recorded one", file=folder / _TENSORS)
    return dict(metadata)


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None, *, random_state: bool = False
) -> dict[str, Any]:
    """Restores a checkpoint in place and returns its metadata.

    Raises CheckpointError, before anything is changed, for a damaged checkpoint or one whose tensors do not have the
    names and shapes that this model and optimiser need.
    """
    metadata = read_metadata(folder)
    try:
        with safe_open(str(folder / _TENSORS), framework="pt") as file:
            expected = model.state_dict()
            _check_names_and_shapes(folder, file, expected)
            weights = {name: file.get_tensor(f"model.{name}") for name in expected}
            states: dict[int, dict[str, Tensor]] = {}
            for name in file.keys():  # noqa: SIM118 (not a dictionary)
                if name.startswith("optimizer."):
                    _, index, key = name.split(".", 2)
                    states.setdefault(int(index), {})[key] = file.get_tensor(name)
            random = file.get_tensor("random.torch")
    except (SafetensorError, ValueError, OSError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"is not a safetensors file of ours ({error})", file=folder / _TENSORS) from error
    model.load_state_dict(weights)
    if optimizer is not None:
        optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    if random_state:
        torch.set_rng_state(random)
    return metadata


def _check_names_and_shapes(folder: Path, file: Any, expected: dict[str, Tensor]) -> None:
    """Compares headers only, before any tensor is allocated."""
    found = {name.removeprefix("model.") for name in file.keys() if name.startswith("model.")}  # noqa: SIM118
    missing, unexpected = sorted(set(expected) - found), sorted(found - set(expected))
    wrong = [
        f"{name} {tuple(file.get_slice(f'model.{name}').get_shape())} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and list(file.get_slice(f"model.{name}").get_shape()) != list(tensor.shape)
    ]
    problems = [
        f"{len(names)} {what} ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", wrong))
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


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
