"""H1: a pickle that would run code, in the place of a checkpoint or of ImageNet weights, is refused and never run."""

import hashlib
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from detector.checkpoint import load_checkpoint, save_checkpoint
from detector.config import BackboneConfig
from detector.data.cache import load_dataset
from detector.errors import CheckpointError, DatasetError
from runyard.runs.prepare import prepare
from runyard.spec import ExperimentSpec


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self._witness = witness

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self._witness,))


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    return tmp_path / "the-payload-was-run"


def test_the_payload_works(witness: Path) -> None:
    pickle.loads(pickle.dumps(Payload(witness)))
    assert witness.exists()


@pytest.mark.parametrize("writer", ["pickle", "torch.save"])
def test_H1_a_checkpoint_that_is_a_pickle_is_refused(witness: Path, tmp_path: Path, writer: str) -> None:
    model = nn.Linear(2, 2)
    checkpoint = save_checkpoint(tmp_path / "checkpoint", model, None, {})
    tensors = checkpoint / "tensors.safetensors"
    if writer == "pickle":
        tensors.write_bytes(pickle.dumps(Payload(witness)))
    else:
        torch.save({**model.state_dict(), "payload": Payload(witness)}, tensors)
    described = json.loads((checkpoint / "metadata.json").read_text())
    described["sha256"] = hashlib.sha256(tensors.read_bytes()).hexdigest()
    (checkpoint / "metadata.json").write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match=r"tensors\.safetensors: is not a safetensors file of ours"):
        load_checkpoint(checkpoint, model)
    assert not witness.exists()


@pytest.mark.parametrize("name", ["weights.pth", "weights.pt", "weights.safetensors", "weights"])
def test_H1_imagenet_weights_that_are_a_pickle_are_refused(
    witness: Path, tmp_path: Path, tiny_spec: ExperimentSpec, name: str
) -> None:
    file = tmp_path / name
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7), "payload": Payload(witness)}, file)
    hostile = replace(
        tiny_spec,
        model=replace(tiny_spec.model, backbone=BackboneConfig(name="resnet18", weights="imagenet")),
        source=replace(tiny_spec.source, weights_file=file),
    )
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        prepare(hostile)
    assert not witness.exists()


def test_H1_a_file_of_annotations_that_is_a_pickle_is_refused(witness: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "train.npy", np.array([Payload(witness)], dtype=object), allow_pickle=True)
    with pytest.raises(DatasetError, match="holds no data set"):
        load_dataset(tmp_path / "train.npy")
    np.savez(tmp_path / "train.npz", image_sizes=np.array([Payload(witness)], dtype=object))
    with pytest.raises(DatasetError, match="holds no data set"):
        load_dataset(tmp_path / "train.npz")
    assert not witness.exists()
