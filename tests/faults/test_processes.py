"""Forked programs behave as programs of a fresh Python do."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.processes import Forked, rank_environment

pytestmark = pytest.mark.processes


def test_a_forked_program_has_its_arguments_environment_output_and_status(tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("WORD = 'imported'\n")
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, neighbour\n"
        "print(sys.argv[1:], os.environ['GIVEN'], 'HOME' in os.environ, neighbour.WORD)\n"
        "print('an error', file=sys.stderr)\n"
        "os.system('echo from a child')\n"
        "sys.exit(3 if __name__ == '__main__' else 4)\n"
    )
    program = Forked([str(script), "one", "two words"], {"GIVEN": "value", "PATH": os.environ["PATH"]})
    output, _ = program.communicate(timeout=100)
    assert program.returncode == 3
    assert "['one', 'two words'] value False imported\n" in output
    assert "an error\n" in output
    assert "from a child\n" in output


def test_a_failed_program_prints_its_traceback(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("raise RuntimeError('told')\n")
    program = Forked([str(script)], os.environ)
    output, _ = program.communicate(timeout=100)
    assert program.returncode == 1
    assert "RuntimeError: told" in output


def test_a_running_program_can_be_waited_for_and_killed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import time\ntime.sleep(100)\n")
    program = Forked([str(script)], os.environ)
    with pytest.raises(subprocess.TimeoutExpired):
        program.communicate(timeout=0.1)
    assert program.poll() is None
    program.kill()
    program.communicate(timeout=100)
    assert program.returncode == -signal.SIGKILL


def test_every_rank_has_its_number_and_the_same_address() -> None:
    first, second = rank_environment(world_size=2)
    assert (first.pop("RANK"), second.pop("RANK")) == ("0", "1")
    assert first == second
    assert first["WORLD_SIZE"] == "2"
