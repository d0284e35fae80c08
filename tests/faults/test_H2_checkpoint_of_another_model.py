"""H2: a checkpoint of another model, or with an absurd header, is refused before it is allocated; keys are named."""

import hashlib
import json
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from detector.checkpoint import load_checkpoint, save_checkpoint
from detector.errors import CheckpointError
from runyard.runs.folder import RunFolder
from runyard.runs.prepare import prepare
from runyard.spec import ExperimentSpec
from runyard.training.local import launch


@pytest.fixture(scope="module")
def trained(
    make_tiny_spec: Callable[[Path], ExperimentSpec], tmp_path_factory: pytest.TempPathFactory
) -> tuple[ExperimentSpec, RunFolder]:
    """A run of one step that has ended, and its spec."""
    tiny = make_tiny_spec(tmp_path_factory.mktemp("H2"))
    spec = replace(tiny, optim=replace(tiny.optim, epochs=1), data=replace(tiny.data, train_limit=4))
    prepared = prepare(spec)
    launch(prepared.spec, prepared.folder)
    return prepared.spec, prepared.folder


def tamper(
    checkpoint: Path, change_tensors: Callable[[dict[str, Tensor]], object], change: Callable[[dict], object]
) -> None:
    """Changes a checkpoint as someone would who knows how to make its checksum right again."""
    tensors = load_file(checkpoint / "tensors.safetensors")
    change_tensors(tensors)
    save_file(tensors, checkpoint / "tensors.safetensors")
    described = json.loads((checkpoint / "metadata.json").read_text())
    described["sha256"] = hashlib.sha256((checkpoint / "tensors.safetensors").read_bytes()).hexdigest()
    change(described["metadata"])
    (checkpoint / "metadata.json").write_text(json.dumps(described))


def keep(_: dict) -> None:
    """Changes nothing."""


BIAS = "model.heads.cls_out.bias"


@pytest.mark.parametrize(
    ("change_tensors", "change", "message"),
    [
        (lambda t: t.pop("model.fpn.lateral.0.weight"), keep, r"1 missing \(model\.fpn\.lateral\.0\.weight\)"),
        (lambda t: t.update(extra=torch.zeros(1)), keep, r"1 unexpected \(extra\)"),
        (
            lambda t: t.update({"model.backbone.conv1.weight": torch.zeros(64, 3, 7, 8)}),
            keep,
            r"model\.backbone\.conv1\.weight \(64, 3, 7, 8\) instead of \(64, 3, 7, 7\)",
        ),
        (lambda t: t.pop("optimizer.3.momentum_buffer"), keep, r"1 missing \(optimizer\.3\.momentum_buffer\)"),
        (keep, lambda m: m.update(classes=["person"]), r"was trained on other classes \(found \['person'\]\)"),
        (keep, lambda m: m.update(training_hash="0" * 16), "another training hash"),
        (keep, lambda m: m.update(step=10**9), "is at no step of this run, which has 1"),
        (keep, lambda m: m.pop("step"), "incomplete metadata"),
        (keep, lambda m: m.update(step="many"), "incomplete metadata"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_H2_a_run_refuses_a_checkpoint_that_is_not_its_own(
    trained: tuple[ExperimentSpec, RunFolder], tmp_path: Path, change_tensors, change, message: str
) -> None:
    spec, folder = trained
    copy = RunFolder(tmp_path / folder.root.name)
    shutil.copytree(folder.root, copy.root)
    tamper(copy.checkpoints()[0], change_tensors, change)
    with pytest.raises(CheckpointError, match=message):
        launch(spec, copy)


@pytest.mark.parametrize("length", [10 * 1024**3, 2**63, 90_000_000])
def test_H2_an_absurd_header_is_refused_without_allocating_it(tmp_path: Path, length: int) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", nn.Linear(2, 2), None, {})
    content = length.to_bytes(8, "little") + b'{"a":' + b" " * 1000
    (checkpoint / "tensors.safetensors").write_bytes(content)
    described = json.loads((checkpoint / "metadata.json").read_text())
    described["sha256"] = hashlib.sha256(content).hexdigest()
    (checkpoint / "metadata.json").write_text(json.dumps(described))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"tensors\.safetensors: is not a safetensors file of ours"):
            load_checkpoint(checkpoint, nn.Linear(2, 2))
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_H2_a_shape_that_no_memory_holds_is_refused_without_allocating_it(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", nn.Linear(2, 2), None, {})
    header = json.dumps({"model.weight": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}})
    content = len(header).to_bytes(8, "little") + header.encode()
    (checkpoint / "tensors.safetensors").write_bytes(content)
    described = json.loads((checkpoint / "metadata.json").read_text())
    described["sha256"] = hashlib.sha256(content).hexdigest()
    (checkpoint / "metadata.json").write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match="is not a safetensors file of ours"):
        load_checkpoint(checkpoint, nn.Linear(2, 2))


@pytest.mark.parametrize(
    "text", ["[]", "null", "3", "{", "[" * 100_000, '{"format": 1, "sha256": "0", "metadata": 3}', " " * (2 << 20)]
)
def test_H2_metadata_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", nn.Linear(2, 2), None, {})
    (checkpoint / "metadata.json").write_text(text)
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        load_checkpoint(checkpoint, nn.Linear(2, 2))
