"""All checks and comparisons that need a GPU, within ten minutes: correctness first, then the comparisons.

    python benchmarks/gpu.py --out DIR

Needs torch, torchvision, numpy, pyarrow, safetensors, rich and Pillow, and no installation: it is run where it lies.
What has been found is in DIR/gpu.json and DIR/gpu.txt after every comparison, so that nothing is lost to a time limit.
Without a GPU, or with --quick, sizes are reduced, and say so.
"""

import argparse
import io
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[:1] = [str(ROOT / "platform"), str(ROOT)]  # in place of this folder

import torch  # noqa: E402
from rich.console import Console  # noqa: E402

from benchmarks import machine  # noqa: E402
from benchmarks.correctness import Check, run_checks  # noqa: E402
from benchmarks.rows import AnyRow, NotRun, print_table  # noqa: E402
from benchmarks.runner import has_failed, run, title, write_json  # noqa: E402
from benchmarks.settings import Settings  # noqa: E402

KEYS = ("P8", "P11", "P6", "P1", "P7", "P2", "P14", "P3")
"""The short ones first, and of the long ones those whose goals matter most."""
COMPILED_KEYS = ("P6", "P1", "P7")
"""Once more at the end with a compiled network: compiling is slow, and may fail."""
BUDGET_S = 470.0
"""No comparison begins later than this, so that the last one ends within ten minutes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status is 1 where a check does not hold or a comparison failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json and gpu.txt")
    parser.add_argument("--only", default=",".join(KEYS), help="which comparisons, as P8,P11 (default: all)")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, two repeats: it proves that all runs, no more"
    )
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help="no comparison begins later than this")
    options = parser.parse_args(arguments)
    keys = options.only.upper().split(",")
    if unknown := [key for key in keys if key not in KEYS]:
        parser.error(f"--only: no comparison {', '.join(unknown)}; there are {', '.join(KEYS)}")
    started = time.monotonic()
    eager = Settings(torch.device("cuda" if torch.cuda.is_available() else "cpu"), quick=options.quick)
    stages = [(eager, keys)]
    if eager.on_gpu and not options.quick:
        stages.append((replace(eager, variants=(True,)), [key for key in COMPILED_KEYS if key in keys]))
    command = shlex.join(["python", "benchmarks/gpu.py", *(sys.argv[1:] if arguments is None else arguments)])
    report = _Report(options.out, command)
    for settings, chosen in stages:
        if settings is eager or time.monotonic() - started <= options.budget_s:
            report.checks += run_checks(settings)
            report.write(time.monotonic() - started)
        for key in chosen:
            if time.monotonic() - started > options.budget_s:
                what = title(key) + (", compiled" if settings.variants == (True,) else "")
                report.rows.append(NotRun(key, what, f"{options.budget_s:.0f} s were over"))
            else:
                report.rows += run(key, settings)
                if settings.on_gpu:
                    torch.cuda.empty_cache()
            report.write(time.monotonic() - started)
    print(report.text)
    return int(has_failed(report.rows) or not all(check.passed for check in report.checks))


class _Report:
    """Results so far, in files."""

    def __init__(self, folder: Path, command: str) -> None:
        self._folder = folder
        self._command = command
        self._machine: dict[str, Any] = machine.describe()
        self.checks: list[Check] = []
        self.rows: list[AnyRow] = []
        self.text = ""

    def write(self, elapsed_s: float) -> None:
        """Write both files anew."""
        checks = [vars(check) for check in self.checks]
        write_json(
            self._folder / "gpu.json",
            self._machine,
            self.rows,
            command=self._command,
            seconds=round(elapsed_s, 1),
            correctness=checks,
        )
        stream = io.StringIO()
        console = Console(file=stream, width=140)
        for check in self.checks:
            console.print(f"{'holds' if check.passed else 'FAILS'}: {check.name}: {check.found}", highlight=False)
        print_table(self.rows, self._machine, console)
        console.print(f"{self._command}: {elapsed_s:.0f} s")
        self.text = stream.getvalue()
        (self._folder / "gpu.txt").write_text(self.text)


if __name__ == "__main__":
    sys.exit(main())
