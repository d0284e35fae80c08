"""A run's folder before any worker starts: data opened and checked, weights found, provenance written once.

Everything that a user can get wrong and that can be known early is found here. A folder that holds a run already is
compared, never rewritten. Imports no ray, no mlflow and no tyro.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save

from detector.config import NUMERICS_VERSION
from detector.data.cache import load_dataset, save_dataset
from detector.data.epoch_plan import trainable_images
from detector.data.fingerprint import fingerprint
from detector.data.samples import Dataset
from detector.errors import ConfigError
from detector.files import write_bytes, write_json
from runyard.locks import held
from runyard.runs.data import OpenedData, dataset_name
from runyard.runs.folder import RunFolder
from runyard.runs.manifest import build_manifest, without_secrets
from runyard.runs.names import is_run_name, run_name, safe_name
from runyard.runs.storage import FORMAT, check_format, not_writable, open_storage, require_format, storage_folder
from runyard.runs.weights import initial_weights, with_weights_digest
from runyard.spec import ExperimentSpec, from_dict, to_dict
from runyard.spec.identity import differences

_OTHER_STORAGE = "Use another --storage"
ACTIVITY = "running this experiment"
"""What the holder of a run's lock is doing, for messages."""


@dataclass(frozen=True)
class PreparedRun:
    """A run that workers can start on."""

    spec: ExperimentSpec
    """With absolute paths and the run's name filled in, and without credentials."""
    folder: RunFolder
    train_images: int
    val_images: int
    resumed: bool
    """Whether the folder already held this very run."""
    fingerprints: tuple[str, str]
    """Fingerprints of the training and of the evaluated images."""

    @property
    def manifest(self) -> dict[str, Any]:
        """Manifest that the run was begun with."""
        content: dict[str, Any] = json.loads(self.folder.manifest.read_text())
        return content


def prepare(spec: ExperimentSpec, data: OpenedData | None = None, *, write: bool = True) -> PreparedRun:
    """Open the data, check everything, and write the run's provenance or compare it with what is there.

    Args:
        data: splits that earlier calls have opened.
        write: False only checks, and touches no folder.

    Raises DatasetError, ConfigError and CheckpointError for what the user has to mend; a folder is only reused for the
    same training identity and the same data.
    """
    spec, folder = locate(spec)
    begun = begun_spec(folder, spec)
    data = data or OpenedData()
    train, val = data.splits(spec)
    trainable_images(train, spec.data)
    found = (fingerprint(train, data.status), fingerprint(val, data.status))
    prints = dict(zip(("train", "val"), found, strict=True))
    if begun is None and write:
        try:
            open_storage(folder.root.parent)
            with held(folder.lock, ACTIVITY):
                begun = begun_spec(folder, spec)  # another process may just have begun it
                if begun is None:
                    _write(spec, folder, train, val, prints)
                    return PreparedRun(spec, folder, len(train), len(val), False, found)
        except OSError as error:
            raise not_writable(folder.root, error) from error
    if begun is not None:
        _compare("train", folder.train_data, prints["train"], folder)
        _add_selection(spec, folder, val, prints["val"], write=write)
    return PreparedRun(spec, folder, len(train), len(val), begun is not None, found)


def prepare_evaluation(spec: ExperimentSpec, data: OpenedData, *, write: bool = True) -> None:
    """Open the validation images of an evaluation, alone, and write or compare their selection.

    Args:
        spec: of a run that was begun.
        write: False only checks, and touches no folder.
    """
    spec, folder = locate(spec)
    classes = load_dataset(folder.train_data).class_names
    val = data.validation(spec, classes)
    _add_selection(spec, folder, val, fingerprint(val, data.status), write=write)


def locate(spec: ExperimentSpec) -> tuple[ExperimentSpec, RunFolder]:
    """The spec with absolute paths, the weights' digest and its run's name, and that run's folder.

    Reads the file of initial weights, where one is named, and nothing else. Raises ConfigError for names and places
    that cannot be used, and for a storage folder of another format.
    """
    spec = with_weights_digest(spec)
    storage = storage_folder(spec)
    check_format(storage)
    name = spec.runtime.name or run_name(f"{spec.recipe}-{dataset_name(spec)}", spec.training_hash)
    if safe_name(name) != name and not is_run_name(name, spec.training_hash):
        remedy = f"Try {safe_name(name)}"
        raise ConfigError("cannot be the name of a folder", field="runtime.name", value=name, remedy=remedy)
    uri = spec.runtime.tracking_uri
    runtime = replace(
        spec.runtime, storage=storage, name=name, tracking_uri=None if uri is None else without_secrets(uri)
    )
    paths = ("data", "train_annotations", "train_images", "val_annotations", "val_images")
    absolute = {key: path.expanduser().resolve() for key in paths if (path := getattr(spec.source, key)) is not None}
    return replace(spec, source=replace(spec.source, **absolute), runtime=runtime), RunFolder(storage / name)


def begun_spec(folder: RunFolder, spec: ExperimentSpec | None = None) -> ExperimentSpec | None:
    """The spec that a run was begun with; None where the folder holds no run.

    Raises ConfigError for a folder of another format, a damaged one, and, with `spec`, one of another training.
    """
    if not folder.spec.exists():
        return None
    try:
        manifest = json.loads(folder.manifest.read_text())
        require_format(manifest.get("format", 1), folder.root)
        hashes = (manifest["training_hash"], manifest["scoring_hash"])
        begun: ExperimentSpec = from_dict(json.loads(folder.spec.read_text()))
    except ConfigError as error:
        if error.file == folder.root:
            raise
        raise _unreadable(folder, error) from error
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise _unreadable(folder, error) from error
    if (begun.training_hash, begun.scoring_hash) != hashes:
        raise ConfigError("spec.json was changed after the run was begun", file=folder.root, remedy="Restore it")
    if spec is not None and begun.training_hash != spec.training_hash:
        changes = "; ".join(differences(begun, spec))
        raise ConfigError(f"holds another run: {changes}", file=folder.root, remedy="Use another name or --storage")
    return begun


def selection_of(data: Path) -> dict[str, Any]:
    """Provenance of saved data columns: 'name', 'images', 'fingerprint', 'skipped' files with reasons.

    Raises ConfigError where it is missing or damaged.
    """
    path = data.with_suffix(".json")
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        content["fingerprint"]
        return content
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"cannot be read ({error})", file=path, remedy=_OTHER_STORAGE) from error


def skipped_text(folder: RunFolder, spec: ExperimentSpec) -> str:
    """Numbers of images that are left out of each split, 'train 3, val 1'; empty where none is."""
    selections = {"train": folder.train_data, "val": folder.val_data(spec.validation_hash)}
    counts = {split: len(selection_of(path)["skipped"]) for split, path in selections.items()}
    return ", ".join(f"{split} {count}" for split, count in counts.items() if count)


def _write(spec: ExperimentSpec, folder: RunFolder, train: Dataset, val: Dataset, fingerprints: dict[str, str]) -> None:
    """Everything that a run is begun with; the spec comes last and makes it one."""
    weights = initial_weights(spec)
    manifest = build_manifest(dataset_fingerprints=fingerprints, seed=spec.seed)
    manifest["format"] = FORMAT
    manifest["numerics"] = NUMERICS_VERSION
    manifest["training_hash"] = spec.training_hash
    manifest["scoring_hash"] = spec.scoring_hash
    manifest["skipped_images"] = {"train": _skipped(train), "val": _skipped(val)}
    if weights is not None:
        from runyard.runs.weights import digest_of_tensors

        file = None if spec.source.weights_file is None else str(spec.source.weights_file)
        manifest["initial_weights"] = {"file": file, "sha256_of_tensors": digest_of_tensors(weights)}
        write_bytes(folder.initial_weights, save(weights))
    _save_selection(train, folder.train_data, fingerprints["train"])
    _save_selection(val, folder.val_data(spec.validation_hash), fingerprints["val"])
    write_json(folder.manifest, manifest, indent=2)
    write_json(folder.spec, to_dict(spec), indent=2)


def _add_selection(spec: ExperimentSpec, folder: RunFolder, val: Dataset, found: str, *, write: bool) -> None:
    """Write a selection of images that the run was not evaluated on before; compare one that it was."""
    path = folder.val_data(spec.validation_hash)
    if path.with_suffix(".json").exists():
        _compare("val", path, found, folder)
        return
    if not write:
        return
    try:
        with held(folder.lock, ACTIVITY):
            _save_selection(val, path, found)
    except OSError as error:
        raise not_writable(folder.root, error) from error


def _save_selection(dataset: Dataset, path: Path, found: str) -> None:
    save_dataset(dataset, path)
    content = {"name": dataset.name, "images": len(dataset), "fingerprint": found, "skipped": _skipped(dataset)}
    write_json(path.with_suffix(".json"), content, indent=2)


def _skipped(dataset: Dataset) -> list[dict[str, str]]:
    return [{"file": str(image.path), "reason": image.reason} for image in dataset.skipped]


def _compare(split: str, path: Path, found: str, folder: RunFolder) -> None:
    if selection_of(path)["fingerprint"] != found:
        raise ConfigError(
            f"the data set has changed since this run started ({split})",
            file=folder.root,
            remedy=f"{_OTHER_STORAGE}, or restore the data",
        )


def _unreadable(folder: RunFolder, error: Exception) -> ConfigError:
    return ConfigError(
        f"holds a run that cannot be read ({error})", file=folder.root, remedy="Move it away, or use another --storage"
    )
