"""B2, B31: weights that a training starts from are part of its identity, by their tensors; bad files change nothing."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from detector.config import BackboneConfig
from detector.errors import CheckpointError, ConfigError
from detector.models.backbones import build_backbone
from runyard.driver.run import run_one
from runyard.reports.report import Report
from runyard.runs.prepare import locate, prepare
from runyard.runs.weights import digest_of_tensors
from runyard.spec import ExperimentSpec
from tests.runyard.conftest import Work


def with_weights(spec: ExperimentSpec, file: Path) -> ExperimentSpec:
    model = replace(spec.model, backbone=BackboneConfig(name="resnet18"))
    return replace(spec, model=model, source=replace(spec.source, weights_file=file))


def random_weights(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return dict(build_backbone(BackboneConfig(name="resnet18")).state_dict())


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """The same tensors as a.pth and a.safetensors, others of the same names as b.pth."""
    torch.save(random_weights(0), tmp_path / "a.pth")
    save_file(random_weights(0), tmp_path / "a.safetensors")
    torch.save(random_weights(1), tmp_path / "b.pth")
    return tmp_path


def test_B2_other_initial_weights_are_another_training_in_another_folder(spec: ExperimentSpec, weights: Path) -> None:
    first = prepare(with_weights(spec, weights / "a.pth"))
    other = prepare(with_weights(spec, weights / "b.pth"))
    assert first.spec.training_hash != other.spec.training_hash
    assert first.folder != other.folder
    assert not other.resumed
    same = prepare(with_weights(spec, weights / "a.safetensors"))
    assert (same.folder, same.resumed) == (first.folder, True)


def test_B2_the_digest_of_the_tensors_is_in_the_manifest(spec: ExperimentSpec, weights: Path) -> None:
    prepared = prepare(with_weights(spec, weights / "a.pth"))
    recorded = prepared.manifest["initial_weights"]
    assert recorded["file"] == str(weights / "a.pth")
    assert recorded["sha256_of_tensors"] == digest_of_tensors(load_file(prepared.folder.initial_weights))
    assert prepared.spec.source.weights_digest == digest_of_tensors(random_weights(0))


def test_B2_a_run_from_a_file_of_weights_gives_its_own_result(spec: ExperimentSpec, weights: Path, work: Work) -> None:
    for name in ("a.pth", "b.pth"):
        named = with_weights(spec, weights / name)
        result = run_one(named, "tiny", launcher="local", do=work, finish=lambda result: Report())
        assert result.metrics is not None
        assert result.spec.source.weights_file == weights / name
    assert len(work.done) == 2


def test_B2_a_file_that_changes_under_its_name_is_another_training(spec: ExperimentSpec, weights: Path) -> None:
    named = with_weights(replace(spec, runtime=replace(spec.runtime, name="mine")), weights / "a.pth")
    folder = prepare(named).folder
    before = folder.spec.read_bytes()
    torch.save(random_weights(2), weights / "a.pth")
    with pytest.raises(ConfigError, match=r"holds another run: source\.weights_digest"):
        prepare(named)
    assert folder.spec.read_bytes() == before


def test_B2_a_training_from_scratch_refuses_a_file_that_it_would_not_use(spec: ExperimentSpec, weights: Path) -> None:
    unused = replace(spec, source=replace(spec.source, weights_file=weights / "a.pth"))
    with pytest.raises(ConfigError, match="is not used by a training from scratch"):
        locate(unused)


def test_B31_after_a_bad_file_the_mended_command_uses_the_new_one(spec: ExperimentSpec, weights: Path) -> None:
    storage = spec.runtime.storage
    assert storage is not None
    before = set(storage.iterdir())
    for content in (b"no weights", b"PK\x03\x04" + bytes(100)):
        (weights / "bad.pth").write_bytes(content)
        with pytest.raises(CheckpointError, match="cannot be read as weights") as caught:
            prepare(with_weights(spec, weights / "bad.pth"))
        assert "weights_only" not in str(caught.value)
        assert set(storage.iterdir()) == before
    prepared = prepare(with_weights(spec, weights / "b.pth"))
    started_from = load_file(prepared.folder.initial_weights)
    assert torch.equal(started_from["conv1.weight"], random_weights(1)["conv1.weight"])
