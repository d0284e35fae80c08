#!/usr/bin/env python3
"""Table 2: RetinaNet-R50 on COCO with different IoU prediction losses, 12 epochs at [600, 1000]; five trainings.

    experiments/ablate_iou_loss.py --data /data/coco --workers 2

Expected (val2017 AP): baseline 34.3, L2 35.1, BCE 35.4. L1, and BCE with the gradient of its target, are not in the
paper. GPU hours: not measured. Run the same command again to continue an interrupted sweep; --seeds 3 adds to it.
"""

import sys

import _bootstrap

RUNTIME_ENV = _bootstrap.bootstrap()

from paper_tables import TABLE2
from recipes import TABLE2_ROWS, smoke, table2
from runyard.commandline import command, main
from runyard.commandline.options import Options
from runyard.driver.command import run_command

TABLE = command.Table("table2", table2, TABLE2_ROWS, smoke, (TABLE2,))


def run() -> None:
    """Parse the command line and run the sweep."""
    options, given = command.parse(TABLE, __doc__ or "", Options)
    run_command(TABLE, command.build(TABLE, options, given), options, RUNTIME_ENV)


if __name__ == "__main__":
    sys.exit(main.main(run))
