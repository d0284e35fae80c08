"""The one training loop, the same under Ray, torchrun and a plain process: spec and context in, trained weights out.

It imports no ray, no mlflow and no tyro. Rank 0 appends what it measures to the run's journal; nothing else leaves the
loop but checkpoints, the store of the final weights' detections, and the results of evaluations.
"""

import json
import logging
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from detector.checkpoint import load_checkpoint, save_checkpoint
from detector.data.batching import Batch
from detector.data.cache import load_dataset
from detector.data.epoch_plan import aspect_groups, epoch_batches, trainable_images
from detector.data.loaders import make_train_loader
from detector.data.samples import Dataset
from detector.engine import StepResult, TrainingEngine, autocast_dtype
from detector.errors import CandidateStoreError, CheckpointError
from detector.evaluation.metrics import score_detections
from detector.models.build import build_detector
from detector.models.detector import Detector, ScoringRow
from detector.optim import build_optimizer, learning_rate_at
from detector.predictor import Predictor
from detector.rescoring.store import CandidateStore, remove_part
from runyard.context import TrainContext, first_rank_decides, loader_processes, silent_worker
from runyard.failures import NonFiniteLossError, TrainingStoppedError
from runyard.runs.folder import RunFolder
from runyard.scoring.inference import detect, store_identity, write_candidates
from runyard.scoring.metrics import write_evaluation
from runyard.scoring.rescore import score_store
from runyard.spec import ExperimentSpec
from runyard.tracking.journal import Journal, read
from runyard.training.checkpoints import newest_good_checkpoint, prune_checkpoints
from runyard.training.machine import journal_machine
from runyard.training.throughput import Moment, Throughput

_log = logging.getLogger(__name__)


def train(
    spec: ExperimentSpec, folder: RunFolder, context: TrainContext, rows: Sequence[ScoringRow] = ()
) -> dict[str, Any] | None:
    """Train (or go on training) the run in `folder`, evaluate it, and return the final metrics on rank 0.

    One forward pass of the final weights writes the store of candidates for `spec.scoring` and `rows`; the metrics of
    `spec.scoring` are computed from the store. Called again, it does only what is missing: steps, rows of the store,
    the evaluation.

    Every rank calls it with the same arguments. Raise NonFiniteLossError, CheckpointError, DatasetError,
    CandidateStoreError, SilentWorkerError where another rank is gone, and TrainingStoppedError where the run was asked
    to stop (`runyard.training.stopping`).
    """
    with Journal(folder.journal) if context.rank == 0 else nullcontext() as journal:
        try:
            loop = _Loop(spec, folder, context, journal)
            loop.run_epochs()
            return loop.finish(rows)
        except RuntimeError as error:
            if (silent := silent_worker(error, spec.runtime.collective_timeout_s)) is not None:
                raise silent from error
            raise


def new_detector(spec: ExperimentSpec, num_classes: int, weights: Path | None) -> Detector:
    """The spec's detector with its initial weights, in training mode, on the CPU.

    Args:
        weights: the file of ImageNet weights; required unless the spec says 'none'.
    """
    torch.manual_seed(spec.seed)
    detector = build_detector(spec.model, spec.loss, num_classes)
    detector.load_initial_weights(weights)
    return detector.train()


class _Loop:
    """The state of one attempt."""

    def __init__(self, spec: ExperimentSpec, folder: RunFolder, context: TrainContext, journal: Journal | None) -> None:
        self.spec, self.folder, self.context, self.journal = spec, folder, context, journal
        self.interrupted_at_s = _last_sign_of_life(folder.journal) if journal is not None else None
        runtime, optim = spec.runtime, spec.optim
        self.dataset: Dataset = load_dataset(folder.train_data)
        self.steps_per_epoch = -(-len(trainable_images(self.dataset, spec.data)) // optim.batch_size)
        self.total_steps = self.steps_per_epoch * optim.epochs
        self.detector = new_detector(spec, len(self.dataset.categories), folder.initial_weights)
        dtype = autocast_dtype(optim.precision, context.device)
        # Moves the detector, so that the optimiser finds the weights in their place.
        self.predictor = Predictor(self.detector, context.device, dtype, channels_last=runtime.channels_last)
        self.optimizer = build_optimizer(self.detector, optim)
        self.step = self._restore()
        self.engine = TrainingEngine(
            self.detector,
            self.optimizer,
            optim,
            normaliser=spec.loss.normaliser,
            autocast_dtype=dtype,
            compile_network=runtime.compile,
        )
        if journal is not None:
            journal.append("rewind", {"step": self.step})
            total = {"start_step": self.step, "total_steps": self.total_steps, "steps_per_epoch": self.steps_per_epoch}
            if self.step < self.total_steps:
                journal_machine(journal, context)
            journal.append("event", {"event": "start", "workers": context.world_size, **total})
            self._log_skipped(self.dataset, "trained on")

    def run_epochs(self) -> None:
        """Train from the restored step to the last one."""
        if self.step >= self.total_steps:
            return
        if self._evaluation_is_due() and not first_rank_decides(self._is_evaluated(), self.context):
            self._evaluate()  # the attempt before ended inside of it
        runtime, optim = self.spec.runtime, self.spec.optim
        accumulation = self._micro_batches_a_step()
        processes = loader_processes(runtime.loader_workers, self.context)
        if processes == 0 and runtime.loader_workers is None and self.context.device.type == "cuda":
            self._warn(
                "the worker has one CPU, so the GPU waits while it loads images; --cpus-per-worker N with N above 1 "
                "gives it loading processes"
            )
        loader = make_train_loader(
            self.dataset,
            self.spec.data,
            seed=self.spec.seed,
            start_epoch=self.step // self.steps_per_epoch,
            start_step=self.step % self.steps_per_epoch,
            epochs=optim.epochs,
            batch_size=optim.batch_size,
            rank=self.context.rank,
            world_size=self.context.world_size,
            accumulation=accumulation,
            loader_workers=processes,
            pin_memory=self.context.device.type == "cuda",
        )
        micro_batches: list[Batch] = []
        unread: _Launched | None = None
        throughput = Throughput()
        first = self.step
        for batch in throughput.timed(loader):
            micro_batches.append(batch)
            if len(micro_batches) < accumulation:
                continue
            rate = learning_rate_at(optim, self.step, self.steps_per_epoch)
            result = self.engine.step(micro_batches, rate, stop_requested=self._stop_requested())
            # The host looks at a step only after the next one is on its way: the device never waits for it.
            stop = unread is not None and self._read(unread, throughput)
            unread = _Launched(self.step, result, throughput.now())
            micro_batches = []
            self.step += 1
            every = runtime.checkpoint_every_steps
            due = self.step % self.steps_per_epoch == 0 or (every and self.step % every == 0)
            if due or stop or self.step == first + 1:  # the first is proof that training works
                stop |= self._read(unread, throughput)
                unread = None
            if due or stop:
                self._checkpoint()
                if stop:
                    raise TrainingStoppedError(f"stopped on request after step {self.step}, where its checkpoint is")
                if self._evaluation_is_due():
                    self._evaluate()
                throughput.restart()

    def finish(self, rows: Sequence[ScoringRow]) -> dict[str, Any] | None:
        """Complete the final weights' store and evaluate `spec.scoring` from it; the metrics are returned on rank 0."""
        spec, context = self.spec, self.context
        dataset = load_dataset(self.folder.val_data(spec.validation_hash))
        checkpoint, store = self.folder.checkpoint(self.step), self.folder.candidates(spec.validation_hash)
        started = time.monotonic()
        wanted = (ScoringRow(spec.scoring), *rows)
        written = write_candidates(
            spec, lambda: self.predictor, checkpoint, dataset, store, wanted, context, self._stop_requested
        )
        seconds = time.monotonic() - started
        if self.journal is None:
            return None
        evaluation = self.folder.evaluation(spec.scoring_hash)
        if evaluation.metrics.exists():
            metrics: dict[str, Any] = json.loads(evaluation.metrics.read_text())
            return metrics
        self._log_skipped(dataset, "evaluated")
        candidates = CandidateStore.open(store, store_identity(spec, checkpoint, dataset))
        try:
            table = score_store(candidates, dataset, spec.scoring)
        except CandidateStoreError:
            remove_part(candidates.row_of(spec.scoring)[0].folder)  # damaged within: the next attempt writes it anew
            raise
        metrics = score_detections(dataset, table, spec.protocol)
        if written:
            metrics["val/images_per_s"] = len(dataset) / seconds
        self.journal.append("metrics", {"step": self.step, "values": metrics})
        write_evaluation(evaluation, dataset, table, metrics)
        return metrics

    def _evaluate(self) -> None:
        """Evaluate the present weights on the validation split, for the journal."""
        spec = self.spec
        dataset = load_dataset(self.folder.val_data(spec.validation_hash))
        started = time.monotonic()
        table = detect(
            self.predictor,
            dataset,
            spec.data,
            spec.scoring,
            self.context,
            batch_size=spec.runtime.evaluation_batch_size,
            loader_workers=loader_processes(spec.runtime.loader_workers, self.context),
            stop_requested=self._stop_requested,
        )
        if table is None or self.journal is None:
            return
        seconds = time.monotonic() - started
        self._log_skipped(dataset, "evaluated")
        metrics = score_detections(dataset, table, spec.protocol)
        metrics["val/images_per_s"] = len(dataset) / seconds
        self.journal.append("metrics", {"step": self.step, "values": metrics})

    def _evaluation_is_due(self) -> bool:
        """True where the present weights are evaluated besides the final ones."""
        interval, (epoch, rest) = self.spec.runtime.evaluate_every_epochs, divmod(self.step, self.steps_per_epoch)
        return interval > 0 and rest == 0 and 0 < epoch < self.spec.optim.epochs and epoch % interval == 0

    def _is_evaluated(self) -> bool:
        """True where the journal has metrics of the validation split at this step; rank 0 alone has it."""
        return self.journal is not None and any(
            record.kind == "metrics"
            and record.payload["step"] == self.step
            and "val/images" in record.payload["values"]
            for record in read(self.folder.journal)
        )

    def _restore(self) -> int:
        """Load the newest good checkpoint, the same on every rank; return the number of steps done."""
        choice = newest_good_checkpoint(self.folder, self._warn) if self.context.rank == 0 else None
        choice = first_rank_decides(choice, self.context)
        if choice is None:
            return 0
        metadata = load_checkpoint(choice, self.detector, self.optimizer, random_state=True)
        try:
            step, workers = int(metadata["step"]), int(metadata["workers"])
            training_hash, classes = metadata["training_hash"], list(metadata["classes"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"has incomplete metadata ({error!r})", file=choice) from error
        if training_hash != self.spec.training_hash:
            raise CheckpointError("belongs to a run with another training hash", file=choice, value=training_hash)
        if classes != list(self.dataset.class_names):
            raise CheckpointError("was trained on other classes", file=choice, value=classes)
        if not 0 < step <= self.total_steps:
            raise CheckpointError(f"is at no step of this run, which has {self.total_steps}", file=choice, value=step)
        if workers != self.context.world_size:
            self._warn(
                f"{choice.name} was written by {workers} worker(s), {self.context.world_size} go on: same images in "
                "the same order, same global batch and learning rate; equal up to rounding"
            )
        return step

    def _checkpoint(self) -> None:
        target = self.folder.checkpoint(self.step)
        if not self._weights_are_finite():
            raise NonFiniteLossError(f"the weights are not finite after step {self.step}; earlier checkpoints are kept")
        if self.context.rank == 0:
            metadata = {
                "step": self.step,
                "epoch": self.step / self.steps_per_epoch,
                "training_hash": self.spec.training_hash,
                "workers": self.context.world_size,
                "classes": list(self.dataset.class_names),
            }
            save_checkpoint(target, self.detector, self.optimizer, metadata)
            prune_checkpoints(self.folder)
        self.context.report({"step": float(self.step)}, target)

    def _micro_batches_a_step(self) -> int:
        """Micro-batches a step and worker: more where an elastic run lacks workers, so that memory stays the same."""
        runtime = self.spec.runtime
        if runtime.min_workers is None:
            return runtime.accumulation
        return -(-runtime.accumulation * runtime.workers // self.context.world_size)

    def _weights_are_finite(self) -> bool:
        """Check all weights; the answer is the same on every rank. Waits for the device: for checkpoints only."""
        norms = torch._foreach_norm([t for t in self.detector.state_dict().values() if t.is_floating_point()])
        return bool(torch.stack(list(norms)).isfinite().all())

    def _read(self, launched: "_Launched", throughput: Throughput) -> bool:
        """Check and log a step that has been launched before; return True where a worker was asked to stop by then."""
        step = launched.step
        values = launched.result.read()
        throughput.count(values["images"], launched.at)
        if values["non_finite"]:
            self._give_up(step, values)
        if self.journal is not None and self.interrupted_at_s is not None:
            seconds = max(round(time.time() - self.interrupted_at_s, 1), 0.0)  # on another machine, with another clock
            self.journal.append("event", {"event": "restored", "first_step": step + 1, "seconds": seconds})
            self.journal.append("metrics", {"step": step + 1, "values": {"restoration_time_s": seconds}})
            self.interrupted_at_s = None
        if self.journal is not None and (step % self.spec.runtime.log_every_steps == 0 or step + 1 == self.total_steps):
            record = {f"train/{name}": value for name, value in values.items() if name.startswith("loss")}
            record["train/gradient_norm"] = values["gradient_norm"]
            record["train/learning_rate"] = learning_rate_at(self.spec.optim, step, self.steps_per_epoch)
            record["train/epoch"] = (step + 1) / self.steps_per_epoch
            record |= {f"train/{name}": value for name, value in throughput.pace().items()}
            self.journal.append("metrics", {"step": step + 1, "values": record})
        return values["stop"] > 0

    def _give_up(self, step: int, values: dict[str, float]) -> NoReturn:
        """End training at a step without a finite loss, whose update no rank has made."""
        if self.journal is not None:
            images = trainable_images(self.dataset, self.spec.data)
            groups = aspect_groups(self.dataset, images, self.spec.data)
            epoch, position = divmod(step, self.steps_per_epoch)
            batch = images[epoch_batches(groups, self.spec.optim.batch_size, self.spec.seed, epoch)[position]]
            names = [str(self.dataset.image_ids[i]) for i in batch.tolist()]
            event = {"event": "non_finite", "step": step + 1, "image_ids": names}
            self.journal.append("event", {**event, **_as_text(values)})
        raise NonFiniteLossError(
            f"the loss is not finite at step {step + 1} ({json.dumps(_as_text(values))}); the weights before it are "
            "kept in the last checkpoint. Lower optim.learning_rate, or look at the images that the journal names"
        )

    def _stop_requested(self) -> bool:
        return self.folder.stop_request.exists()

    def _log_skipped(self, dataset: Dataset, done: str) -> None:
        if dataset.skipped:
            listed = f"{self.folder.manifest.name} lists them"
            self._warn(f"{len(dataset.skipped)} unusable images are not {done}, {len(dataset)} are left: {listed}")

    def _warn(self, message: str) -> None:
        """Log a warning, in the journal too: a worker's log is seldom read."""
        _log.warning(message)
        if self.journal is not None:
            self.journal.append("event", {"event": "warning", "message": message})


@dataclass(frozen=True)
class _Launched:
    """A step on its way to the device, whose result has not been read."""

    step: int
    result: StepResult
    at: Moment


def _last_sign_of_life(journal: Path) -> float | None:
    """Unix time at which an interrupted attempt last logged; None where the run starts, or was started by a person."""
    time_s: float | None = None
    for record in read(journal):
        if record.kind == "status":
            time_s = None
        elif record.kind in ("metrics", "rewind"):
            time_s = record.time_s
    return time_s


def _as_text(values: dict[str, float]) -> dict[str, float | str]:
    """The values for JSON, which lacks NaN and infinities: they become text."""
    return {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
