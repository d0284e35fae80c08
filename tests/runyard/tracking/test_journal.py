"""The journal: append, crash, continue; one writer; each step once."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runyard.tracking import journal as journal_module
from runyard.tracking.journal import Journal, JournalError, JournalReader, effective_metrics, read

ROOT = Path(__file__).resolve().parents[3]


def written(path: Path, steps: range = range(1, 4)) -> Path:
    with Journal(path) as journal:
        for step in steps:
            journal.append("metrics", {"step": step, "values": {"train/loss": 1.0 / step}})
    return path


def test_records_come_back_in_order_with_number_and_time(tmp_path: Path) -> None:
    path = tmp_path / "new" / "journal.jsonl"
    before = time.time()
    with Journal(path) as journal:
        assert journal.append("params", {"model": {"classes": ["a", "b"], "path": Path("/x")}}) == 1
        assert journal.append("metrics", {"step": 5, "values": {"loss": 0.1, "AP": math.nan, "up": math.inf}}) == 2
        assert journal.append("status", {"status": "FINISHED", "message": "ünïcode \ud800 \u2028"}) == 3
    first, second, third = read(path)
    assert (first.seq, first.kind, first.payload) == (1, "params", {"model": {"classes": ["a", "b"], "path": "/x"}})
    assert second.payload["values"]["loss"] == 0.1
    assert math.isnan(second.payload["values"]["AP"])
    assert second.payload["values"]["up"] == math.inf
    assert third.payload["message"] == "ünïcode \ud800 \u2028"
    assert before - 0.01 <= first.time_s <= time.time()
    assert [record.seq for record in read(path, after_seq=2)] == [3]


def test_lines_are_strict_json(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.append("event", {"event": "x", "deep": [{"value": -math.inf}]})
    json.loads((tmp_path / "j").read_text(), parse_constant=pytest.fail)


def test_a_journal_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    assert list(read(tmp_path / "none")) == []
    assert effective_metrics(tmp_path / "none") == {}


def test_numbers_continue_after_reopening(tmp_path: Path) -> None:
    path = written(tmp_path / "j")
    written(path, range(4, 6))
    assert [record.seq for record in read(path)] == [1, 2, 3, 4, 5]


def test_torn_at_every_byte_of_the_last_record(tmp_path: Path) -> None:
    path = written(tmp_path / "j")
    whole = path.read_bytes()
    last_line = whole.rindex(b"\n", 0, -1) + 1
    for length in range(last_line, len(whole) + 1):
        path.write_bytes(whole[:length])
        survivors = 3 if length == len(whole) else 2
        assert [record.seq for record in read(path)] == list(range(1, survivors + 1))
        with Journal(path) as journal:
            assert journal.append("event", {"event": "restarted"}) == survivors + 1
        assert [record.seq for record in read(path)] == list(range(1, survivors + 2))


@given(st.binary(max_size=60))
def test_a_damaged_tail_never_stops_reading_or_appending(tmp_path_factory: pytest.TempPathFactory, tail: bytes) -> None:
    path = written(tmp_path_factory.mktemp("journal") / "j")
    with path.open("ab") as stream:
        stream.write(tail)
    assert [record.seq for record in read(path)] == [1, 2, 3]
    with Journal(path) as journal:
        journal.append("event", {"event": "restarted"})
    assert [record.seq for record in read(path)] == [1, 2, 3, 4]


def test_a_damaged_line_in_the_middle_costs_that_line_only(tmp_path: Path) -> None:
    path = written(tmp_path / "j")
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = b"\0" * (len(lines[1]) - 1) + b"\n"
    path.write_bytes(b"".join(lines))
    assert [record.seq for record in read(path)] == [1, 3]
    written(path, range(4, 5))
    assert [record.seq for record in read(path)] == [1, 3, 4]


def test_a_second_writer_is_refused_and_told_who_writes(tmp_path: Path) -> None:
    with Journal(tmp_path / "j"), pytest.raises(JournalError, match=f"process {os.getpid()} on "):
        Journal(tmp_path / "j", lock_timeout_s=0)
    Journal(tmp_path / "j", lock_timeout_s=0).close()


def test_a_killed_writer_frees_the_journal_though_its_forked_child_lives_on(tmp_path: Path) -> None:
    code = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from runyard.tracking.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "journal.append('metrics', {'step': 1, 'values': {'loss': 1}})\n"
        "child = os.fork()\n"
        "print(child, flush=True) if child else None\n"
        "time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
    command = [sys.executable, "-c", code, str(tmp_path / "j")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        with pytest.raises(JournalError, match=str(process.pid)):
            Journal(tmp_path / "j", lock_timeout_s=0)
        process.kill()
        process.wait()
        try:
            with Journal(tmp_path / "j", lock_timeout_s=1) as journal:
                assert journal.append("event", {"event": "restarted"}) == 2
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="storage path"):
        Journal(tmp_path / "file" / "j")


def test_unknown_kinds_and_statuses_are_refused(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        with pytest.raises(ValueError, match="metric"):
            journal.append("metric", {})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="DONE"):
            journal.append("status", {"status": "DONE"})
    assert list(read(tmp_path / "j")) == []


def test_a_full_disk_keeps_records_until_there_is_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_write = os.write
    space = [30]

    def write(descriptor: int, content: bytes) -> int:
        if space[0] == 0:
            raise OSError(28, "No space left on device")
        count = real_write(descriptor, bytes(content[: space[0]]))
        space[0] -= count
        return count

    path = tmp_path / "j"
    with Journal(path) as journal:
        monkeypatch.setattr(journal_module.os, "write", write)
        with pytest.warns(RuntimeWarning, match="No space left"):
            journal.append("metrics", {"step": 1, "values": {"loss": 1}})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            journal.append("metrics", {"step": 2, "values": {"loss": 1}})
        assert list(read(path)) == []
        space[0] = 10_000
        journal.append("metrics", {"step": 3, "values": {"loss": 1}})
        assert [record.payload["step"] for record in read(path)] == [1, 2, 3]


def test_artifact_paths_are_relative_to_the_run_where_they_can_be(tmp_path: Path) -> None:
    with Journal(tmp_path / "run" / "j") as journal:
        journal.append("artifact", {"path": tmp_path / "run" / "a" / "b.png", "artifact_path": "plots"})
        journal.append("artifact", {"path": tmp_path / "other.png"})
    inside, outside = read(tmp_path / "run" / "j")
    assert inside.payload == {"path": "a/b.png", "artifact_path": "plots"}
    assert outside.payload == {"path": str(tmp_path / "other.png"), "artifact_path": ""}


def test_steps_logged_again_after_a_rewind_count_once(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        for step, loss in ((10, 3.0), (20, 2.0), (30, 1.0)):
            journal.append("metrics", {"step": step, "values": {"loss": loss}})
        journal.append("metrics", {"step": 30, "values": {"AP": 0.5}})
        journal.append("rewind", {"step": 10})
        journal.append("metrics", {"step": 20, "values": {"loss": 2.5}})
    assert effective_metrics(tmp_path / "j") == {"loss": [(10, 3.0), (20, 2.5)]}


def test_a_reader_sees_only_whole_lines_and_each_once(tmp_path: Path) -> None:
    path = tmp_path / "j"
    line = b'{"seq":1,"time":1.0,"kind":"event","payload":{}}\n'
    reader = JournalReader(path)
    assert reader.poll() == []
    path.write_bytes(line[:20])
    assert reader.poll() == []
    path.write_bytes(line)
    assert [record.seq for record in reader.poll()] == [1]
    assert reader.poll() == []
    path.write_bytes(b"")
    assert reader.poll() == []
    path.write_bytes(line + line.replace(b'"seq":1', b'"seq":2'))
    assert [record.seq for record in reader.poll()] == [2]


def test_a_reader_beside_the_writer_gives_everything_once(tmp_path: Path) -> None:
    stop = threading.Event()
    seen: list[int] = []

    def tail() -> None:
        reader = JournalReader(tmp_path / "j")
        while not stop.is_set():
            seen.extend(record.seq for record in reader.poll())
        seen.extend(record.seq for record in reader.poll())

    thread = threading.Thread(target=tail)
    thread.start()
    written(tmp_path / "j", range(1, 200))
    stop.set()
    thread.join(10)
    assert seen == list(range(1, 200))


def test_importing_the_journal_imports_no_tracking_server() -> None:
    code = "import sys, runyard.tracking.journal, runyard.runs.folder, runyard.runs.manifest; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
    modules = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment).split()
    assert not {"mlflow", "ray", "torch", "matplotlib"} & set(modules)
