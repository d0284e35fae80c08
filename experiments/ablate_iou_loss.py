#!/usr/bin/env python3
"""Table 2: RetinaNet-R50 on COCO with different IoU prediction losses, 12 epochs at [600, 1000]; five trainings.

    experiments/ablate_iou_loss.py --data /data/coco --workers 2

Expected (val2017 AP): baseline 34.3, L2 35.1, BCE 35.4. L1, and BCE with the gradient of its target, are not in the
paper. GPU hours: not measured. Run the same command again to continue an interrupted sweep; --seeds 3 adds to it.
"""

import sys

import _bootstrap

RUNTIME_ENV = _bootstrap.bootstrap()

from paper_tables import TABLE2  # noqa: E402
from recipes import TABLE2_ROWS, smoke, table2  # noqa: E402
from runyard.commandline import entry  # noqa: E402
from runyard.commandline import sweep as command  # noqa: E402


def run() -> None:
    """Parses the command line and runs the sweep."""
    options, recipe = command.parse(table2, TABLE2_ROWS, smoke, __doc__ or "", command.SweepOptions)
    command.run(command.build("table2", recipe, TABLE2_ROWS, options), options, RUNTIME_ENV, (TABLE2,))


if __name__ == "__main__":
    sys.exit(entry.main(run))
