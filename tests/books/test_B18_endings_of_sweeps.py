"""B18: a sweep that failed or was interrupted says how many records are unsent, and the command that sends them."""

import io
import re
import shlex
from dataclasses import replace

import pytest
from rich.console import Console

from runyard import cli
from runyard.driver.run import run_sweep
from runyard.failures import SweepError
from runyard.grid import expand
from runyard.reports.report import Report
from runyard.spec import ExperimentSpec
from tests.runyard.conftest import Work


@pytest.mark.parametrize(
    ("error", "raised"), [(RuntimeError("boom"), SweepError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
def test_B18_the_driver_says_what_is_unsent(
    rows: dict[str, ExperimentSpec], work: Work, server, capsys, error: BaseException, raised: type
) -> None:
    specs = {
        row: replace(spec, runtime=replace(spec.runtime, tracking_uri=server.uri, experiment=f"B18 {raised.__name__}"))
        for row, spec in rows.items()
        if row in ("baseline", "none")
    }
    work.errors = {"none": error}
    server.fault = "fails"
    console = Console(file=io.StringIO(), width=60)
    with pytest.raises(raised):
        run_sweep(expand(specs), "table", launcher="local", finish=lambda result: Report(), do=work, console=console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    left = re.search(rf"^ *(\d+) records did not reach {re.escape(server.uri)}; to upload:\n(.*)$", said, re.MULTILINE)
    assert left is not None, said
    assert int(left[1]) > 0
    server.fault = None
    program, *arguments = shlex.split(left[2])
    assert program == "runyard"
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == f"{left[1]} records uploaded\n"


def test_B18_nothing_is_said_where_all_arrived(rows: dict[str, ExperimentSpec], work: Work) -> None:
    work.errors = {"none": RuntimeError("boom")}
    console = Console(file=io.StringIO())
    with pytest.raises(SweepError):
        run_sweep(expand(rows), "table", launcher="local", finish=lambda result: Report(), do=work, console=console)
    assert "did not reach" not in console.file.getvalue()  # type: ignore[attr-defined]
