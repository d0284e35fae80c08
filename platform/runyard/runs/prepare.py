"""What happens once, before any worker starts: open and check the data, find the weights, claim the run's folder.

All that a user can get wrong and that can be known early is found here. Imports no ray, no mlflow and no tyro.
"""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save
from torch import Tensor

from detector.config import BackboneConfig, RetinaNetConfig
from detector.data.cache import save_dataset
from detector.data.epoch_plan import trainable_images
from detector.data.fingerprint import fingerprint
from detector.data.formats import open_splits
from detector.data.image_files import FileStatus
from detector.data.samples import Dataset
from detector.errors import ConfigError
from detector.files import write_bytes, write_json
from runyard.identity import differences
from runyard.runs.data_findings import log_mistakes
from runyard.runs.folder import RunFolder, run_name, safe_name
from runyard.runs.image_check import check_splits, require_usable
from runyard.runs.manifest import build_manifest, without_secrets
from runyard.spec import ExperimentSpec, from_dict, to_dict

_EVALUATED_ON = "validation_fingerprints"


@dataclass(frozen=True)
class PreparedRun:
    """A run that workers can start on."""

    spec: ExperimentSpec
    """With absolute paths and the run's name filled in, and without credentials."""
    folder: RunFolder
    manifest: dict[str, Any]
    train_images: int
    val_images: int
    resumed: bool
    """The folder already held this very run."""

    @property
    def inputs(self) -> tuple[Path, Path]:
        """What the run was made from: specification and manifest."""
        return self.folder.spec, self.folder.manifest

    @property
    def skipped(self) -> str:
        """How many images are left out of which split, 'train 3, val 1'; empty where none is."""
        counts = {split: len(images) for split, images in self.manifest["skipped_images"].items()}
        return ", ".join(f"{split} {count}" for split, count in counts.items() if count)


def default_storage() -> Path:
    """./runs; inside a Ray job a folder of the home directory, as the job's own directory does not last."""
    return Path.home() / "runyard" / "runs" if in_ray_job() else Path("runs").resolve()


def in_ray_job() -> bool:
    """Whether this process is the driver of a job that was submitted to a cluster."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def prepare(spec: ExperimentSpec, data: tuple[Dataset, Dataset] | None = None) -> PreparedRun:
    """Checks everything, writes spec, manifest, data columns and initial weights into the run's folder.

    Args:
        data: what `open_data` gives for the spec, where the caller has opened it already.

    Raises DatasetError, ConfigError and CheckpointError for what the user has to mend; an existing folder of the same
    name is only reused for the same training hash and the same data.
    """
    train, val = data or open_data(spec)
    folder = run_folder(spec, train)
    uri = spec.runtime.tracking_uri
    spec = replace(
        spec,
        source=replace(spec.source, data=spec.source.data.resolve() if spec.source.data else None),
        runtime=replace(
            spec.runtime,
            storage=folder.root.parent,
            name=folder.root.name,
            tracking_uri=None if uri is None else without_secrets(uri),
        ),
    )
    trainable_images(train, spec.data)
    fingerprints = {"train": fingerprint(train), "val": fingerprint(val)}
    earlier = _earlier_manifest(folder, spec, fingerprints)
    weights = None if earlier is not None or spec.model.initial_weights == "none" else _imagenet_weights(spec)
    manifest = build_manifest(dataset_fingerprints=fingerprints, seed=spec.seed)
    manifest[_EVALUATED_ON] = (earlier or {}).get(_EVALUATED_ON, {}) | {spec.validation_hash: fingerprints["val"]}
    manifest["skipped_images"] = {
        name: [{"file": str(image.path), "reason": image.reason} for image in split.skipped]
        for name, split in (("train", train), ("val", val))
    }
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
        save_dataset(train, folder.train_data)
        save_dataset(val, folder.val_data(spec.validation_hash))
        if weights is not None:
            write_bytes(folder.initial_weights, save(weights))
        write_json(folder.manifest, manifest, indent=2)
        write_json(folder.spec, to_dict(spec), indent=2)
    except OSError as error:
        raise ConfigError(
            f"cannot be written ({error.strerror})", field="runtime.storage", file=folder.root,
            remedy="Name a folder with --storage that this user may write to",
        ) from error  # fmt: skip
    return PreparedRun(spec, folder, manifest, len(train), len(val), earlier is not None)


def run_folder(spec: ExperimentSpec, train: Dataset) -> RunFolder:
    """Where the run of a spec lies: the same spec and data set always give the same folder; ConfigError for bad names.

    Args:
        train: the training split.
    """
    name = spec.runtime.name or run_name(f"{spec.recipe}-{dataset_name(train)}", spec.training_hash)
    if spec.runtime.name is not None and safe_name(name) != name:
        raise ConfigError(
            "cannot be the name of a folder", field="runtime.name", value=name, remedy=f"Try {safe_name(name)}"
        )
    return RunFolder(storage_folder(spec) / name)


def storage_folder(spec: ExperimentSpec) -> Path:
    """The absolute folder of all runs; ConfigError where it is no folder."""
    storage = (spec.runtime.storage or default_storage()).expanduser()
    if "://" in str(storage) or ":/" in str(storage):
        raise ConfigError(
            "must be a folder, on a cluster one that all nodes share",
            field="runtime.storage", value=str(storage), remedy="Mount the bucket or file system, and name the folder",
        )  # fmt: skip
    return storage.resolve()


def dataset_name(split: Dataset) -> str:
    """The name of the data set that a split belongs to."""
    return split.name.partition("/")[0]


def open_data(spec: ExperimentSpec) -> tuple[Dataset, Dataset]:
    """The training and the validation split, validated; DatasetError and ConfigError for what has to be mended.

    Every image that the run would read is decoded once (`runtime.check_images`); unusable ones are an error or left
    out, as `data.unusable_images` says.
    """
    if spec.data.unusable_images == "skip" and not spec.runtime.check_images:
        raise ConfigError(
            "images that nobody looked at cannot be skipped", field="data.unusable_images", value="skip",
            remedy="Leave one of --data.unusable-images skip and --no-check-images out",
        )  # fmt: skip
    train, val = open_unchecked(spec)
    status = FileStatus()
    log_mistakes(train, val, status)
    if not spec.runtime.check_images:
        return train, val
    checked = check_splits(train, val, spec.data, storage_folder(spec), status)
    require_usable(checked, spec.data)
    return checked[0].dataset, checked[1].dataset


def open_unchecked(spec: ExperimentSpec) -> tuple[Dataset, Dataset]:
    """`open_data` by the annotations alone."""
    source = spec.source
    if source.data is None and source.train_annotations is None:
        raise ConfigError(
            "no data set was named",
            field="source.data",
            remedy="Give its folder with --data; --smoke runs on a small generated one",
        )
    train, val = open_splits(
        source.data,
        spec.data.train_split,
        spec.data.val_split,
        format=source.format,
        classes=spec.data.classes,
        train_annotations=source.train_annotations,
        train_images=source.train_images,
        val_annotations=source.val_annotations,
        val_images=source.val_images,
    )
    if spec.data.val_limit is not None:
        val = val.subset(np.arange(min(spec.data.val_limit, len(val))))
    return train, val


def _earlier_manifest(folder: RunFolder, spec: ExperimentSpec, fingerprints: dict[str, str]) -> dict[str, Any] | None:
    """The manifest of this very run, None where the folder holds none; ConfigError where it holds another one."""
    if not folder.spec.exists():
        return None
    try:
        earlier = from_dict(json.loads(folder.spec.read_text()))
        manifest: dict[str, Any] = json.loads(folder.manifest.read_text())
        manifest["dataset_fingerprints"]["train"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"holds a run that cannot be read ({error})", file=folder.root, remedy="Move it away, or use another --name"
        ) from error
    changes = differences(earlier, spec)
    if earlier.training_hash != spec.training_hash:
        raise ConfigError(f"holds another run: {'; '.join(changes)}", file=folder.root, remedy="Use another --name")
    # The same weights may be evaluated on several selections of validation images, each of which must stay what it is.
    evaluated_on = manifest.get(_EVALUATED_ON, {}).get(spec.validation_hash, fingerprints["val"])
    edited = [
        split
        for split, known in (("train", manifest["dataset_fingerprints"]["train"]), ("val", evaluated_on))
        if known != fingerprints[split]
    ]
    if edited:
        raise ConfigError(
            f"the data set has changed since this run started ({' and '.join(edited)})",
            file=folder.root,
            remedy="Use another --name, or restore the data",
        )
    return manifest


def _imagenet_weights(spec: ExperimentSpec) -> dict[str, Tensor]:
    """The backbone's weights, checked against it: workers on other nodes read them from the run's folder."""
    # Imports torchvision, for a second: what else a driver does needs none of it.
    from detector.models.backbones import build_backbone, load_imagenet_weights

    config = spec.model.backbone if isinstance(spec.model, RetinaNetConfig) else BackboneConfig(name="resnet50")
    backbone = build_backbone(config)
    load_imagenet_weights(backbone, config.name, spec.source.weights_file)
    return dict(backbone.state_dict())
