#!/usr/bin/env python3
"""Tables 3 and 4: one IoU-aware RetinaNet-R50 on COCO under 12 confidences, and the baseline; two trainings.

    experiments/ablate_alpha.py --data /data/coco --workers 2
    experiments/ablate_alpha.py --checkpoint-run runs/table1-r50-iou-coco-0123456789ab

Expected (val2017 AP): baseline 34.3, none 35.4, alpha 1.0 34.5, 0.5 and 0.4 35.5, 0.1 32.5, 0 0.4. GPU hours: not
measured. Alpha only matters at inference: one forward pass stores the outputs, each row is then scored on a CPU. With
--checkpoint-run nothing is trained. Run the same command again to continue an interrupted sweep.
"""

import sys

import _bootstrap

RUNTIME_ENV = _bootstrap.bootstrap()

from dataclasses import dataclass
from pathlib import Path

from detector.errors import ConfigError
from paper_tables import TABLE3, TABLE4
from recipes import TABLE3_ROWS, smoke, table3
from runyard.commandline import command, main
from runyard.commandline.options import Options
from runyard.driver.command import run_command

TABLE = command.Table("table3", table3, TABLE3_ROWS, smoke, (TABLE3, TABLE4))


@dataclass(frozen=True)
class AlphaOptions(Options):
    """Command line of Tables 3 and 4."""

    checkpoint_run: Path | None = None
    """Folder of a finished run of an IoU-aware detector, to be scored without any training."""
    baseline_run: Path | None = None
    """With --checkpoint-run: folder of a finished run of the baseline, for its row."""


def run() -> None:
    """Parse the command line and run the sweep."""
    options, given = command.parse(TABLE, __doc__ or "", AlphaOptions)
    if options.checkpoint_run is None:
        if options.baseline_run is not None:
            raise ConfigError("needs --checkpoint-run", field="baseline_run", value=str(options.baseline_run))
        sweep = command.build(TABLE, options, given)
    else:
        runs = {row: options.baseline_run if row == "baseline" else options.checkpoint_run for row in TABLE3_ROWS}
        sweep = command.build_existing(TABLE, runs, options, given)
    run_command(TABLE, sweep, options, RUNTIME_ENV)


if __name__ == "__main__":
    sys.exit(main.main(run))
