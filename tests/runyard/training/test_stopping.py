"""SIGTERM and Ctrl-C become a request to stop; a second one, or too long a wait, ends the run at once."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from runyard.failures import Terminated, TrainingStoppedError
from runyard.runs.folder import RunFolder
from runyard.training.stopping import request_stop, stops_on_signals


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def send(signum: signal.Signals) -> None:
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize(("signum", "kind"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_asks_the_workers_and_ends_the_run_once_they_have_stopped(
    folder: RunFolder, signum: signal.Signals, kind: type[BaseException]
) -> None:
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(KeyboardInterrupt) as caught, stops_on_signals(folder):  # noqa: PT012
        assert not folder.stop_request.exists()
        send(signum)
        assert folder.stop_request.exists()
        raise TrainingStoppedError("stopped on request after step 7")
    assert type(caught.value) is kind
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers


@pytest.mark.parametrize(("signum", "kind"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_after_the_last_step_interrupts_once_the_run_has_ended(
    folder: RunFolder, signum: signal.Signals, kind: type[BaseException]
) -> None:
    ended = False
    with pytest.raises(KeyboardInterrupt) as caught, stops_on_signals(folder):  # noqa: PT012
        send(signum)
        ended = True
    assert type(caught.value) is kind
    assert ended
    assert not folder.stop_request.exists()


def test_a_request_from_elsewhere_after_the_last_step_is_withdrawn(folder: RunFolder) -> None:
    with stops_on_signals(folder):
        request_stop(folder)
    assert not folder.stop_request.exists()


def test_a_run_that_fails_after_a_signal_is_interrupted_and_the_failure_logged(
    folder: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Terminated) as caught, stops_on_signals(folder):  # noqa: PT012
        send(signal.SIGTERM)
        raise RuntimeError("DataLoader worker is killed by signal: Terminated")
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert "RuntimeError: DataLoader worker is killed" in caplog.text


def test_a_failure_without_a_signal_stays_as_it_is(folder: RunFolder) -> None:
    with pytest.raises(RuntimeError, match="a bug"), stops_on_signals(folder):
        raise RuntimeError("a bug")


def test_a_second_signal_does_not_wait(folder: RunFolder) -> None:
    with pytest.raises(Terminated), stops_on_signals(folder):  # noqa: PT012
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        pytest.fail("the second signal was swallowed")


def test_workers_that_do_not_stop_in_time_are_left(folder: RunFolder) -> None:
    started = time.monotonic()
    with pytest.raises(Terminated), stops_on_signals(folder, grace_s=0.2):  # noqa: PT012
        send(signal.SIGTERM)
        time.sleep(30)
    assert time.monotonic() - started < 20


def test_a_request_from_elsewhere_ends_the_run_as_killed(folder: RunFolder) -> None:
    with pytest.raises(Terminated), stops_on_signals(folder):  # noqa: PT012
        request_stop(folder)
        raise TrainingStoppedError("stopped on request after step 7")


def test_only_the_first_rank_withdraws_an_earlier_request(folder: RunFolder) -> None:
    request_stop(folder)
    with stops_on_signals(folder, first_rank=False):
        assert folder.stop_request.exists()
    with stops_on_signals(folder):
        assert not folder.stop_request.exists()


def test_where_the_request_cannot_be_written_the_run_ends_at_once(folder: RunFolder) -> None:
    nowhere = RunFolder(folder.root / "removed")
    with pytest.raises(Terminated), stops_on_signals(nowhere):  # noqa: PT012
        send(signal.SIGTERM)
        pytest.fail("the signal was swallowed")


def test_outside_the_main_thread_requests_work_and_signals_are_left_alone(folder: RunFolder) -> None:
    ended: list[BaseException] = []
    handler = signal.getsignal(signal.SIGTERM)

    def run() -> None:
        try:
            with stops_on_signals(folder):
                assert signal.getsignal(signal.SIGTERM) is handler
                raise TrainingStoppedError("stopped on request after step 7")
        except KeyboardInterrupt as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert isinstance(ended[0], Terminated)
