"""B18: how many records have not reached the server, and the command that sends them, for any ending of a run."""

import shlex
from pathlib import Path

from runyard import cli
from runyard.runs.folder import RunFolder
from runyard.tracking.journal import Journal
from runyard.tracking.mlflow_tracker import MlflowTracker
from runyard.tracking.replay import JournalReplayer
from runyard.tracking.runs import TrackedRun
from runyard.tracking.sync import remember_run, unsent_notice


def test_B18_the_command_of_a_failed_runs_notice_uploads_exactly_what_is_left(server, tmp_path: Path, capsys) -> None:
    folder = RunFolder(tmp_path / "a run's folder")
    run = TrackedRun("run-0123", "run")
    remember_run(folder, "B18", run)
    with Journal(folder.journal) as journal:
        journal.append("metrics", {"step": 1, "values": {"train/loss": 1.0}})
        journal.append("status", {"status": "FAILED", "message": "worker lost"})
    server.fault = "fails"
    replayer = JournalReplayer(lambda: MlflowTracker(server.uri, "B18"), poll_s=0.05, first_retry_s=0.05)
    replayer.follow(folder.journal, run)
    left = replayer.close()
    given = server.uri.replace("//", "//me:opensesame@")
    first, second = unsent_notice(left, folder.root, given, given).splitlines()
    assert first.strip() == f"2 records did not reach {server.uri}; to upload:"
    assert "opensesame" not in first + second
    server.fault = None
    program, *arguments = shlex.split(second)
    assert program == "runyard"
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == f"{left} records uploaded\n"


def test_B18_no_notice_without_unsent_records() -> None:
    assert unsent_notice(0, Path("/runs/x"), "http://host:5000", None) == ""
    assert unsent_notice(1, Path("/runs/x"), "sqlite:////runs/mlflow.db", None).splitlines() == [
        "  1 record did not reach sqlite:////runs/mlflow.db; to upload:",
        "  runyard sync /runs/x",
    ]
