"""F6: a rank that hangs: the others wait for `runtime.collective_timeout_s`, no longer, and say what has happened."""

import signal
import time
from dataclasses import replace

from runyard.spec import ExperimentSpec


def test_F6_a_rank_without_answer_ends_the_attempt_in_time(
    runs, wait_until, last_step, tiny_spec: ExperimentSpec
) -> None:
    spec = replace(tiny_spec, runtime=replace(tiny_spec.runtime, collective_timeout_s=8.0))
    folder = runs.folder(spec)
    first, second = runs.ranks(spec)
    wait_until(lambda: last_step(folder) >= 4 or first.poll() is not None)
    second.send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    output, _ = first.communicate(timeout=100)
    assert first.returncode == 1, output
    assert "error: another worker did not answer for 8 s (runtime.collective_timeout_s)" in output
    assert 7 < time.monotonic() - stopped < 60
    second.kill()
    second.communicate()
    assert [path.name for path in folder.checkpoints()] == ["checkpoint-000000003"]
    runs.finish(spec)
