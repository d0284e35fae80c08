"""A candidate store that is not whole or not the expected one is refused, and nothing complete is lost."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from detector.errors import CandidateStoreError, CheckpointError, ConfigError, DatasetError
from detector.rescoring.columns import ImageRows
from detector.rescoring.store import CandidateStore, PartWriter, next_part, publish_part
from tests.detector.rescoring.store_cases import (
    IDENTITY,
    ROWS,
    assert_same,
    first_shard,
    make_header,
    make_rows,
    read_all,
    write,
)

# --- another, or not whole --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"dataset": "e" * 64}, DatasetError, "another data set"),
        ({"checkpoint": "e" * 64}, CheckpointError, "another checkpoint"),
        ({"short_side_px": 800}, ConfigError, "600 and 1000 px, not 800 and 1000"),
    ],
)
def test_a_store_of_something_else(tmp_path, change, error, said):
    write(tmp_path / "store", make_header())
    with pytest.raises(error, match=said) as caught:
        CandidateStore.open(tmp_path / "store", replace(IDENTITY, **change))
    assert str(tmp_path / "store") in str(caught.value)
    assert CandidateStore.open(tmp_path / "store").parts[0].header.identity == IDENTITY


@pytest.mark.parametrize("kept", [0, 1, 10, 0.3, 0.9, 0.999])
def test_a_truncated_shard(tmp_path, kept):
    path = first_shard(write(tmp_path / "store", make_header(), world_size=2))
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(CandidateStoreError, match=rf"{path.name}: cannot be read.*Delete it"):
        read_all(tmp_path / "store")


def test_a_flipped_bit_never_changes_what_is_read(tmp_path):
    path = first_shard(write(tmp_path / "store", make_header()))
    content = path.read_bytes()
    (whole,) = read_all(tmp_path / "store")
    noticed = 0
    for place in range(4, len(content), len(content) // 60):
        damaged = bytearray(content)
        damaged[place] ^= 16
        path.write_bytes(damaged)
        try:
            (group,) = read_all(tmp_path / "store")
        except CandidateStoreError:
            noticed += 1
        else:  # a bit of the statistics that nobody reads
            assert_same(whole.detections, group.detections)
            assert np.array_equal(whole.counts, group.counts)
    assert noticed > 20


def test_a_missing_shard(tmp_path):
    write(tmp_path / "store", make_header(), world_size=3)
    for rank in range(3):
        shutil.copytree(tmp_path / "store", tmp_path / f"without_{rank}")
        lost = tmp_path / f"without_{rank}" / "part-00000" / f"shard-{rank:05d}-of-00003.parquet"
        lost.unlink()
        with pytest.raises(CandidateStoreError, match=rf"{lost.name}: is missing: the part has 3 shards"):
            read_all(tmp_path / f"without_{rank}")


def test_shards_of_two_stores(tmp_path):
    write(tmp_path / "store", make_header(), world_size=2)
    write(tmp_path / "other", make_header(rows=ROWS[:2]), world_size=2)
    write(tmp_path / "third", make_header(), world_size=3)
    shutil.copy(first_shard(tmp_path / "third"), tmp_path / "store" / "part-00000")
    with pytest.raises(CandidateStoreError, match="side by side"):
        read_all(tmp_path / "store")
    shutil.copy(first_shard(tmp_path / "other"), tmp_path / "third" / "part-00000" / "shard-00001-of-00003.parquet")
    with pytest.raises(CandidateStoreError):
        read_all(tmp_path / "third")


@pytest.mark.parametrize("images", [[0, 1, 2, 3], [0, 1, 2, 3, 3], [0, 1, 2, 3, 5], [0, 1, 2, 3, 4, 4]])
def test_images_that_are_missing_or_there_twice(tmp_path, images):
    part = next_part(tmp_path / "store")
    with PartWriter(part, make_header()) as writer:
        for image in images:
            writer.add(ImageRows(image, (10, 10), make_rows(3)))
    publish_part(part)
    with pytest.raises(CandidateStoreError, match="each of its 5 images once"):
        read_all(tmp_path / "store")


def rewrite(path, change):
    table = pq.read_table(path)
    content = json.loads(table.schema.metadata[b"runyard.candidates"])
    change(content)
    metadata = {b"runyard.candidates": json.dumps(content).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content.update(version=1), r"unknown schema version \(found 1\)"),
        (lambda content: content.pop("identity"), "damaged header"),
        (lambda content: content.update(surprise=1), "damaged header"),
        (lambda content: content["rows"][0]["scoring"].update(alpha=1.5), "damaged header"),
    ],
)
def test_another_version_or_a_damaged_header(tmp_path, change, said):
    rewrite(first_shard(write(tmp_path / "store", make_header())), change)
    with pytest.raises(CandidateStoreError, match=said):
        read_all(tmp_path / "store")


def test_a_class_that_does_not_exist(tmp_path):
    write(tmp_path / "store", make_header(num_classes=3))
    with pytest.raises(CandidateStoreError, match="class"):
        read_all(tmp_path / "store")


def test_no_store_and_no_candidate_store(tmp_path):
    with pytest.raises(CandidateStoreError, match="expected a candidate store, found nothing"):
        CandidateStore.open(tmp_path / "nowhere")
    (tmp_path / "strange" / "part-00000").mkdir(parents=True)
    pq.write_table(pa.table({"a": np.arange(3)}), tmp_path / "strange" / "part-00000" / "shard-00000-of-00001.parquet")
    with pytest.raises(CandidateStoreError):
        CandidateStore.open(tmp_path / "strange")


# --- nothing is lost --------------------------------------------------------------------------------------------------


def test_a_store_has_no_name_before_it_is_whole(tmp_path):
    folder = tmp_path / "store"
    write(folder, make_header(), world_size=2, publish=False)
    assert not list(folder.glob("part-*"))
    publish_part(folder / "part-00000", 2)
    assert [path.name for path in folder.iterdir()] == ["part-00000"]
    assert len(read_all(folder)) == 2


def test_a_failed_attempt_leaves_the_earlier_store(tmp_path):
    folder = write(tmp_path / "store", make_header())
    part = next_part(folder)

    def attempt():
        with PartWriter(part, make_header(9)) as writer:
            writer.add(ImageRows(0, (10, 10), make_rows(4)))
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        attempt()
    with pytest.raises(CandidateStoreError, match="was not written"):
        publish_part(part)
    assert [part.header.num_images for part in CandidateStore.open(folder).parts] == [5]


def test_another_number_of_workers_leaves_no_shards_behind(tmp_path):
    folder = tmp_path / "store"
    write(folder, make_header(), world_size=3, publish=False)  # and then it was killed
    write(folder, make_header(), world_size=2)
    assert [path.name for path in folder.iterdir()] == ["part-00000"]
    assert sorted(path.name for path in (folder / "part-00000").iterdir()) == [
        "shard-00000-of-00002.parquet",
        "shard-00001-of-00002.parquet",
    ]
    assert len(read_all(folder)) == 2


def rewrite_values(path, name, value):
    """Put a value in the place of the first one of a pair's or a row's field."""
    table = pq.read_table(path)
    column, field = name.split(".")
    lists = table[column].to_pylist()
    next(items for items in lists if items)[0][field] = value
    place = table.column_names.index(column)
    kind = table.schema.field(column).type
    pq.write_table(table.set_column(place, table.schema.field(column), pa.array(lists, kind)), path)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("pairs.x1", float("inf"), "a box that is not finite"),
        ("pairs.class_score", 1.5, "a class_score that is not from 0 to 1"),
        ("pairs.iou", -0.5, "an? iou that is not from 0 to 1"),
        ("row_00.score", float("nan"), "a score that is not from 0 to 1"),
        ("row_00.pair", 1000, "a pair that is absent"),
        ("row_00.pair", -1, "a pair that is absent"),
        ("pairs.label", None, "lacks a value of 'label'"),
    ],
)
def test_values_that_no_writer_writes_are_refused(tmp_path, name, value, said):
    rewrite_values(first_shard(write(tmp_path / "store", make_header())), name, value)
    with pytest.raises(CandidateStoreError, match=said):
        read_all(tmp_path / "store")
