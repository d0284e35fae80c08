"""Where everything of a run lies: paths, run names and artifact names are built, made safe and written whole here.

Names come from strangers (class names, image ids, run names, files inside archives). `safe_name` turns any text into
one harmless file name; nothing else in the project joins such text to a path.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_to_bytes

# '~' is the escape character because URLs leave it alone: '%' would be decoded by artifact servers (and '%23' is
# refused by MLflow), '=' turns into a partition column in Parquet readers, and '_' is common in names.
_ESCAPE = "~"
_EMPTY_NAME = "~0"
_KEPT = re.compile(r"[A-Za-z0-9._-]")
_WINDOWS_DEVICE = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)")
_CUT_NAME = re.compile(r"~h[0-9a-f]{16}$")
_MAX_NAME_LENGTH = 120
_HASH_LENGTH_IN_NAMES = 12


def safe_name(text: str) -> str:
    """One file name for any text: ASCII, at most 120 characters, never '..', hidden, absolute or a device name.

    Characters other than letters, digits, '.', '_' and '-' become ~XX, the bytes of their UTF-8 form. Different texts
    get different names; `original_name` gives the text back, unless it was so long that the name was cut: then the
    name ends in ~h and 16 digits of the text's SHA-256.
    """
    if not text:
        return _EMPTY_NAME
    pieces = [character if _KEPT.fullmatch(character) else _escaped(character) for character in text]
    # A leading '-' reads as an option, a leading '.' hides the file or climbs; Windows drops a trailing '.'.
    if pieces[0] in ".-" or _WINDOWS_DEVICE.match(text):
        pieces[0] = _escaped(text[0])
    if pieces[-1] == ".":
        pieces[-1] = _escaped(text[-1])
    name = "".join(pieces)
    if len(name) <= _MAX_NAME_LENGTH:
        return name
    suffix = f"{_ESCAPE}h{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
    head = ""
    for piece in pieces:
        if len(head) + len(piece) + len(suffix) > _MAX_NAME_LENGTH:
            break
        head += piece
    return head + suffix


def original_name(name: str) -> str | None:
    """The text that `safe_name` turned into this name; None where it was cut, or where the name is not safe_name's."""
    if name == _EMPTY_NAME:
        return ""
    if _CUT_NAME.search(name):
        return None
    try:
        text = unquote_to_bytes(name.replace("%", "%25").replace(_ESCAPE, "%")).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return None
    return text if safe_name(text) == name else None


def _escaped(character: str) -> str:
    return "".join(f"{_ESCAPE}{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


def run_name(recipe: str, training_hash: str) -> str:
    """A run's name and folder: the same recipe and training hash always give the same one, no clock takes part."""
    return f"{safe_name(recipe)}-{safe_name(training_hash[:_HASH_LENGTH_IN_NAMES])}"


@dataclass(frozen=True)
class EvaluationFolder:
    """What one evaluation of one checkpoint under one scoring leaves behind."""

    root: Path

    @property
    def detections(self) -> Path:
        """COCO result JSON with the data set's own category ids."""
        return self.root / "detections.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.json"

    @property
    def resampled(self) -> Path:
        """AP on other draws of the images."""
        return self.root / "resampled.npz"

    @property
    def as_run(self) -> "RunFolder":
        """The same folder, where an evaluation keeps a journal of its own: it is tracked as a run."""
        return RunFolder(self.root)

    @property
    def correlation_plot(self) -> Path:
        return self.root / "correlation.png"

    @property
    def gallery(self) -> Path:
        """Folder of galleries."""
        return self.root / "gallery"

    def gallery_image(self, name: str) -> Path:
        return self.gallery / f"{safe_name(name)}.png"

    def galleries(self) -> list[Path]:
        """The pictures that were drawn."""
        return sorted(self.gallery.glob("*.png"))


@dataclass(frozen=True)
class RunFolder:
    """Everything one run keeps, under one folder that can be moved as a whole."""

    root: Path

    @property
    def spec(self) -> Path:
        return self.root / "spec.json"

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.json"

    @property
    def journal(self) -> Path:
        return self.root / "journal.jsonl"

    @property
    def tracking(self) -> Path:
        """Under which experiment, name and identity the run is tracked; `runyard sync` reads it."""
        return self.root / "tracking.json"

    @property
    def stop_request(self) -> Path:
        """An empty file that asks the workers to write a checkpoint and end; they look for it at every step."""
        return self.root / "stop-requested"

    @property
    def plots(self) -> Path:
        return self.root / "plots"

    @property
    def initial_weights(self) -> Path:
        """The ImageNet weights that training starts from, copied here so that every worker finds the same file."""
        return self.root / "initial_weights.safetensors"

    def checkpoint(self, step: int) -> Path:
        """The checkpoint after `step` optimiser steps; a folder, direct child of the run's because Ray wants it so."""
        return self.root / f"checkpoint-{step:09d}"

    def checkpoints(self) -> list[Path]:
        """All complete checkpoints, newest first."""
        return sorted(self.root.glob("checkpoint-*"), reverse=True)

    @property
    def train_data(self) -> Path:
        """The validated annotations of the training split in the form that workers read."""
        return self.root / "data" / "train.npz"

    def val_data(self, validation_hash: str) -> Path:
        """The same of a selection of validation images; the same weights may be evaluated on several."""
        return self.root / "data" / f"val-{safe_name(validation_hash[:_HASH_LENGTH_IN_NAMES])}.npz"

    def evaluation(self, scoring_hash: str) -> EvaluationFolder:
        """Folder of the final weights' evaluation under one scoring."""
        return EvaluationFolder(self.root / "evaluation" / safe_name(scoring_hash[:_HASH_LENGTH_IN_NAMES]))

    def candidates(self, validation_hash: str) -> Path:
        """The store of the final weights' raw candidates on a selection of validation images, for rescoring."""
        return self.root / f"candidates-{safe_name(validation_hash[:_HASH_LENGTH_IN_NAMES])}"

    @property
    def oracle(self) -> EvaluationFolder:
        """Parent folder of the rows that rank by the true IoU; none of them is an evaluation of the run."""
        return EvaluationFolder(self.root / "oracle")

    def evaluations(self) -> list[EvaluationFolder]:
        """All finished evaluations."""
        return [EvaluationFolder(path.parent) for path in sorted(self.root.glob("evaluation/*/metrics.json"))]


@dataclass(frozen=True)
class SweepFolder:
    """What a sweep keeps besides the folders of its runs."""

    root: Path

    @classmethod
    def of(cls, storage: Path, name: str) -> "SweepFolder":
        return cls(storage / "sweeps" / safe_name(name))

    @property
    def trials(self) -> Path:
        """Every trial of the sweep: spec, row, and where its results lie."""
        return self.root / "trials.json"

    @property
    def results(self) -> Path:
        """Folder of tables and plots."""
        return self.root / "results"

    @property
    def tune(self) -> Path:
        """Ray Tune's own files; nothing in there outlives the sweep's process."""
        return self.root / ".tune"

    @property
    def as_run(self) -> RunFolder:
        """The same folder as a tracked run: the parent of the trials' runs."""
        return RunFolder(self.root)
