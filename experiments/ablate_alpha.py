#!/usr/bin/env python3
"""Tables 3 and 4: one IoU-aware RetinaNet-R50 on COCO under 12 confidences, beside the baseline; two trainings.

    experiments/ablate_alpha.py --data /data/coco --workers 2
    experiments/ablate_alpha.py --checkpoint-run runs/table1-r50-iou-coco-0123456789ab

Expected (val2017 AP): baseline 34.3, none 35.4, alpha 1.0 34.5, 0.5 and 0.4 35.5, 0.1 32.5, 0 0.4. GPU hours: not
measured. Alpha only matters at inference: one forward pass stores candidates, each row is then scored on a CPU. With
--checkpoint-run nothing is trained. Run the same command again to continue an interrupted sweep.
"""

import sys

import _bootstrap

RUNTIME_ENV = _bootstrap.bootstrap()

from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402

from detector.errors import ConfigError  # noqa: E402
from paper_tables import TABLE3, TABLE4  # noqa: E402
from recipes import TABLE3_ROWS, smoke, table3  # noqa: E402
from runyard.commandline import entry, existing  # noqa: E402
from runyard.commandline import sweep as command  # noqa: E402


@dataclass(frozen=True)
class Options(command.SweepOptions):
    """The command line of Tables 3 and 4."""

    checkpoint_run: Path | None = None
    """Folder of a finished run of an IoU-aware detector, to be scored without any training."""
    baseline_run: Path | None = None
    """With --checkpoint-run: folder of a finished run of the baseline, for its row."""


def run() -> None:
    """Parses the command line and runs the sweep."""
    options, recipe = command.parse(table3, TABLE3_ROWS, smoke, __doc__ or "", Options)
    if options.checkpoint_run is None:
        if options.baseline_run is not None:
            raise ConfigError("goes with --checkpoint-run only", field="baseline_run", value=str(options.baseline_run))
        sweep = command.build("table3", recipe, TABLE3_ROWS, options)
    else:
        runs = {row: options.baseline_run if row == "baseline" else options.checkpoint_run for row in TABLE3_ROWS}
        sweep = existing.build("table3", table3, runs, options)
    command.run(sweep, options, RUNTIME_ENV, (TABLE3, TABLE4))


if __name__ == "__main__":
    sys.exit(entry.main(run))
