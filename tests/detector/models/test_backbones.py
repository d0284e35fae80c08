"""The backbones: shapes, names, freezing, normalisation, and reading ImageNet weights."""

import pickle
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from detector.config import BackboneConfig
from detector.errors import CheckpointError
from detector.models import backbones
from detector.models.backbones import build_backbone, load_imagenet_weights, resolve_imagenet_weights
from detector.models.resnet import FrozenStatisticsBatchNorm2d


@pytest.mark.parametrize(
    ("name", "channels"),
    [("resnet18", (128, 256, 512)), ("resnet34", (128, 256, 512)), ("resnet50", (512, 1024, 2048))],
)
def test_features(name: str, channels: tuple[int, int, int]) -> None:
    backbone = build_backbone(BackboneConfig(name=name)).eval()  # type: ignore[arg-type]
    assert backbone.channels == channels
    with torch.no_grad():
        features = backbone(torch.rand(2, 3, 64, 96))
    assert [tuple(f.shape) for f in features] == [
        (2, width, 64 // stride, 96 // stride) for width, stride in zip(channels, (8, 16, 32), strict=True)
    ]


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnext101_32x8d"])
def test_parameters_are_named_and_shaped_as_torchvisions(name: str) -> None:
    with torch.device("meta"):
        ours = build_backbone(BackboneConfig(name=name)).state_dict()  # type: ignore[arg-type]
        theirs = torchvision.models.get_model(name, weights=None).state_dict()
    wanted = {k: v.shape for k, v in theirs.items() if not k.startswith("fc.") and "num_batches" not in k}
    assert {key: value.shape for key, value in ours.items()} == wanted


def test_resnext101_32x4d_has_groups_of_four() -> None:
    with torch.device("meta"):
        backbone = build_backbone(BackboneConfig(name="resnext101_32x4d"))
    assert backbone.layer1[0].conv2.weight.shape == (128, 4, 3, 3)
    assert backbone.layer1[0].conv2.groups == 32
    assert backbone.channels == (512, 1024, 2048)


@pytest.mark.parametrize("stages", [-1, 0, 1, 4])
def test_freezing(stages: int) -> None:
    backbone = build_backbone(BackboneConfig(name="resnet18", frozen_stages=stages))
    frozen = {name.split(".")[0] for name, p in backbone.named_parameters() if not p.requires_grad}
    trained = {name.split(".")[0] for name, p in backbone.named_parameters() if p.requires_grad}
    expected = set() if stages < 0 else {"conv1", "bn1", *(f"layer{n}" for n in range(1, stages + 1))}
    assert frozen == expected
    assert not frozen & trained


def test_affine_is_trained_and_statistics_are_not() -> None:
    backbone = build_backbone(BackboneConfig(name="resnet18")).train()
    norm = backbone.layer2[0].bn1
    assert isinstance(norm, FrozenStatisticsBatchNorm2d)
    assert norm.weight.requires_grad
    assert norm.bias.requires_grad
    before = norm.running_mean.clone()
    backbone(torch.rand(2, 3, 64, 64))[2].sum().backward()
    assert torch.equal(norm.running_mean, before)
    assert norm.weight.grad is not None


def test_frozen_statistics_equal_batch_norm_in_evaluation() -> None:
    torch.manual_seed(0)
    theirs = nn.BatchNorm2d(6).eval()
    for tensor in (theirs.weight.data, theirs.bias.data, theirs.running_mean, theirs.running_var):
        assert tensor is not None
        tensor.uniform_(0.5, 2)
    ours = FrozenStatisticsBatchNorm2d(6).train()
    ours.load_state_dict(theirs.state_dict())  # num_batches_tracked is passed over
    features = torch.randn(2, 6, 5, 4)
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.testing.assert_close(ours(features.to(memory_format=layout)), theirs(features))
    scale = ours.weight * (ours.running_var + 1e-5).rsqrt()
    shift = ours.bias - ours.running_mean * scale
    torch.testing.assert_close(ours(features), features * scale[:, None, None] + shift[:, None, None])


def test_from_scratch_is_group_norm_with_nothing_frozen() -> None:
    backbone = build_backbone(BackboneConfig(name="resnet18", weights="none"))
    norms = [module for module in backbone.modules() if isinstance(module, nn.GroupNorm)]
    assert len(norms) == 20
    assert {norm.num_groups for norm in norms} == {32}
    assert not any(isinstance(module, nn.BatchNorm2d | FrozenStatisticsBatchNorm2d) for module in backbone.modules())
    assert all(parameter.requires_grad for parameter in backbone.parameters())


def test_batch_norm_warns_and_frozen_stages_keep_their_statistics() -> None:
    with pytest.warns(UserWarning, match="number of workers"):
        backbone = build_backbone(BackboneConfig(name="resnet18", norm="batch")).train()
    backbone(torch.rand(2, 3, 64, 64))
    assert backbone.bn1.running_mean.abs().sum() == 0
    assert backbone.layer1[0].bn1.running_mean.abs().sum() == 0
    assert backbone.layer2[0].bn1.running_mean.abs().sum() > 0
    assert backbone.layer2[0].training
    assert not backbone.layer1[0].training


def test_statistics_that_normalise_nothing_warn() -> None:
    with pytest.warns(UserWarning, match="normalises nothing"):
        build_backbone(BackboneConfig(name="resnet18", weights="none", norm="frozen_statistics"))


@pytest.fixture(scope="module")
def imagenet_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return torchvision.models.resnet18(weights=None).state_dict()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_file_is_loaded(suffix: str, imagenet_state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(imagenet_state, file)
    else:
        save_file(imagenet_state, file)
    backbone = build_backbone(BackboneConfig(name="resnet18"))
    load_imagenet_weights(backbone, "resnet18", file)
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, imagenet_state[key]), key


def test_weights_load_into_trained_batch_norm_too(imagenet_state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    old = {key: value for key, value in imagenet_state.items() if "num_batches_tracked" not in key}
    torch.save(old, tmp_path / "old.pth")
    with pytest.warns(UserWarning, match="number of workers"):
        backbone = build_backbone(BackboneConfig(name="resnet18", norm="batch"))
    load_imagenet_weights(backbone, "resnet18", tmp_path / "old.pth")
    assert torch.equal(backbone.layer4[1].bn2.weight, imagenet_state["layer4.1.bn2.weight"])


def test_h2_weights_of_another_network_are_refused_by_key(
    imagenet_state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    state = dict(imagenet_state)
    del state["layer1.0.conv1.weight"]
    state["head.extra"] = torch.zeros(1)
    state["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    file = tmp_path / "other.pth"
    torch.save(state, file)
    backbone = build_backbone(BackboneConfig(name="resnet18"))
    before = backbone.conv1.weight.clone()
    with pytest.raises(CheckpointError) as caught:
        load_imagenet_weights(backbone, "resnet18", file)
    message = str(caught.value)
    assert str(file) in message
    assert "1 missing (layer1.0.conv1.weight)" in message
    assert "1 unexpected (head.extra)" in message
    assert "conv1.weight (64, 3, 3, 3) for (64, 3, 7, 7)" in message
    assert torch.equal(backbone.conv1.weight, before)


class _Payload:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("payload-ran"),))


def test_h1_a_pickle_payload_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    backbone = build_backbone(BackboneConfig(name="resnet18"))
    torch.save({"conv1.weight": _Payload()}, "zip.pth")
    Path("raw.pth").write_bytes(pickle.dumps(_Payload(), protocol=2))
    for name in ("zip.pth", "raw.pth"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_imagenet_weights(backbone, "resnet18", Path(name))
    assert not Path("payload-ran").exists()


@pytest.mark.parametrize(
    ("name", "content"), [("a.pth", b""), ("b.pth", b"\x80\x02junk"), ("c.safetensors", b"\xff" * 64)]
)
def test_damaged_files_are_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        load_imagenet_weights(build_backbone(BackboneConfig(name="resnet18")), "resnet18", tmp_path / name)


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "run.pth")
    with pytest.raises(CheckpointError, match="no dictionary of tensors"):
        load_imagenet_weights(build_backbone(BackboneConfig(name="resnet18")), "resnet18", tmp_path / "run.pth")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        resolve_imagenet_weights("resnet50", tmp_path / "none.pth")


def test_32x4d_needs_a_file() -> None:
    with pytest.raises(CheckpointError, match=r"resnext101_32x4d.*--weights-file"):
        resolve_imagenet_weights("resnext101_32x4d", None)


def test_no_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(backbones, "urlopen", no_network)
    with pytest.raises(CheckpointError) as caught:
        resolve_imagenet_weights("resnet50", None)
    message = str(caught.value)
    assert str(tmp_path / "hub" / "checkpoints" / "resnet50-0676ba61.pth") in message
    assert "Name or service not known" in message
    assert "--weights-file" in message
    assert "backbone.weights 'none'" in message


def test_cached_weights_need_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / "resnet50-0676ba61.pth"
    cached.parent.mkdir(parents=True)
    cached.touch()
    assert resolve_imagenet_weights("resnet50", None) == cached


def test_a_download_must_have_its_sha256(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "resnet18-f37072fd.pth"
    source.write_bytes(b"not the weights")
    with pytest.raises(CheckpointError, match="cannot be downloaded"):
        backbones._download(source.as_uri(), tmp_path / "cache" / source.name)
    assert not (tmp_path / "cache" / source.name).exists()
