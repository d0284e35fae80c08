"""`runyard detect` refuses a batch size that holds no image."""

from pathlib import Path

import pytest

from detector.errors import ConfigError
from runyard import cli
from runyard.scoring.detect import detect_images


@pytest.mark.parametrize("size", ["0", "-3"])
def test_B25_a_batch_size_below_1_names_the_option(
    tmp_path: Path, size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(tmp_path), "--annotations", "a.json", "--images", "images", "--out", str(tmp_path / "out.json")]
    assert cli.main(["detect", *paths, "--batch-size", size]) == 2
    assert f"--batch-size: must be at least 1 (found {size})" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="--batch-size"):
        detect_images(tmp_path, Path("a.json"), Path("images"), tmp_path / "out.json", batch_size=int(size))
