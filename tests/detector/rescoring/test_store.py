"""The candidate store: detections are read as they were written, from several parts, for declared rows only."""

import json
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from detector.config import ScoringConfig
from detector.errors import CandidateStoreError, ConfigError
from detector.models.detector import Detections, ScoringRow
from detector.rescoring.columns import ImageRows
from detector.rescoring.store import IMAGES_PER_GROUP, CandidateStore, PartWriter, next_part, publish_part
from tests.detector.rescoring.store_cases import (
    IDENTITY,
    ROWS,
    assert_same,
    make_header,
    make_rows,
    write,
)


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("iou_head", [True, False])
@pytest.mark.parametrize("oracle", [True, False])
def test_round_trip_to_the_bit(tmp_path, world_size, iou_head, oracle):
    header = make_header(iou_head=iou_head, rows=(ROWS[1], ROWS[3]) if oracle else ROWS[1:2])
    write(tmp_path / "store", header, world_size=world_size, iou_head=iou_head)
    store = CandidateStore.open(tmp_path / "store", IDENTITY)
    assert [part.header for part in store.parts] == [header]
    assert store.rows == header.rows
    for number, row in enumerate(header.rows):
        seen = []
        for group in store.groups(row.scoring, row.oracle):
            begin = 0
            for image, size, count in zip(
                group.images.tolist(), group.sizes.tolist(), group.counts.tolist(), strict=True
            ):
                assert size == [100 + image, 200]
                found = vars(group.detections)
                of_image = {name: value[begin : begin + count] for name, value in found.items()}
                expected = make_rows(20 * (image % 3), image, iou_head=iou_head, rows=len(header.rows))[number]
                assert_same(expected, Detections(**of_image))
                begin += count
                seen.append(image)
            assert begin == len(group.detections.scores)
        assert sorted(seen) == list(range(5))


def test_equal_pairs_of_several_rows_are_kept_once(tmp_path):
    write(tmp_path / "store", make_header(2, rows=ROWS[:3]))
    pairs = pq.read_table(next(tmp_path.rglob("shard-*")))["pairs"].to_pylist()
    rows = make_rows(20, 1, rows=3)
    different = {tuple(box) for row in rows for box in row.boxes.tolist()}
    assert [len(of_image) for of_image in pairs] == [0, len(different)]
    assert len(different) < sum(len(row.scores) for row in rows)


def test_other_readers_find_what_the_columns_say(tmp_path):
    write(tmp_path / "store", make_header())
    table = pq.read_table(next(tmp_path.rglob("shard-*")))
    assert table.column_names == ["image", "height", "width", "pairs", "row_00", "row_01", "row_02", "row_03"]
    assert table["pairs"].type.value_type.names == ["x1", "y1", "x2", "y2", "label", "class_score", "iou"]
    assert table["row_00"].type.value_type.names == ["pair", "score"]
    content = json.loads(table.schema.metadata[b"runyard.candidates"])
    assert content["version"] == 2
    assert content["identity"] == asdict(IDENTITY)
    assert [row["scoring"]["alpha"] for row in content["rows"]] == [0.5, 1.0, 0.3, 0.5]


def test_no_images_and_images_without_candidates(tmp_path):
    store = CandidateStore.open(write(tmp_path / "none", make_header(0)))
    assert list(store.groups(ROWS[0].scoring)) == []
    (group,) = CandidateStore.open(write(tmp_path / "bare", make_header(4), count=0)).groups(ROWS[0].scoring)
    assert group.counts.tolist() == [0, 0, 0, 0]
    assert group.detections.boxes.shape == (0, 4)


def test_memory_is_that_of_a_group_of_images(tmp_path):
    """Arrow's memory does not grow with the number of images, neither in writing nor in reading."""
    found = make_rows(400)

    def largest(num_images):
        part = next_part(tmp_path / f"of_{num_images}")
        most = 0
        before = pa.total_allocated_bytes()
        with PartWriter(part, make_header(num_images)) as writer:
            for image in range(num_images):
                writer.add(ImageRows(image, (10, 10), found))
                assert len(writer._waiting) < IMAGES_PER_GROUP
                most = max(most, pa.total_allocated_bytes() - before)
        publish_part(part)
        for group in CandidateStore.open(part.parent).groups(ROWS[0].scoring):
            assert len(group.images) <= IMAGES_PER_GROUP
            most = max(most, pa.total_allocated_bytes() - before)
        return most

    few, many = largest(2 * IMAGES_PER_GROUP), largest(30 * IMAGES_PER_GROUP)
    assert 0 < few < 8e6
    assert many < 1.5 * few + 1e6  # footers grow by some kilobytes a group


# --- parts ------------------------------------------------------------------------------------------------------------


def test_a_new_row_adds_a_part_and_leaves_the_others_as_they_are(tmp_path):
    folder = write(tmp_path / "store", make_header(rows=ROWS[:2]))
    (first,) = folder.rglob("shard-*")
    before = (first.read_bytes(), first.stat().st_mtime_ns, first.stat().st_ino)
    store = CandidateStore.open(folder, IDENTITY)
    assert store.missing(ROWS) == ROWS[2:]
    assert [store.holds(row) for row in ROWS] == [True, True, False, False]
    write(folder, make_header(rows=ROWS[2:]))
    assert sorted(path.name for path in folder.iterdir()) == ["part-00000", "part-00001"]
    store = CandidateStore.open(folder, IDENTITY)
    assert store.missing((*ROWS, ROWS[0])) == ()
    assert store.rows == ROWS
    assert [(part.folder.name, number) for part, number in (store.row_of(r.scoring, r.oracle) for r in ROWS)] == [
        ("part-00000", 0),
        ("part-00000", 1),
        ("part-00001", 0),
        ("part-00001", 1),
    ]
    assert (first.read_bytes(), first.stat().st_mtime_ns, first.stat().st_ino) == before


def test_a_damaged_part_leaves_the_rows_of_the_others_readable(tmp_path):
    folder = write(write(tmp_path / "store", make_header(rows=ROWS[:2])), make_header(rows=ROWS[2:]))
    (damaged,) = (folder / "part-00000").iterdir()
    damaged.write_bytes(damaged.read_bytes()[:1000])
    store = CandidateStore.open(folder, IDENTITY)
    assert len(list(store.groups(ROWS[2].scoring))) == 1
    assert store.missing(ROWS) == ROWS[:2]
    with pytest.raises(CandidateStoreError, match="cut off"):
        store.row_of(ROWS[0].scoring)
    store.remove_unusable()
    assert [path.name for path in folder.iterdir()] == ["part-00001"]
    assert next_part(folder).name == "part-00002"


def test_a_store_of_version_1_is_refused_and_replaced(tmp_path):
    folder = tmp_path / "store"
    folder.mkdir()
    pq.write_table(pa.table({"image": np.arange(3)}), folder / "shard-00000-of-00001.parquet")
    with pytest.raises(CandidateStoreError, match="another version"):
        CandidateStore.open(folder)
    write(folder, make_header())
    CandidateStore.open(folder).remove_unusable()
    assert [path.name for path in folder.iterdir()] == ["part-00000"]


# --- declared or refused ----------------------------------------------------------------------------------------------


def test_declared_rows_are_found():
    header = make_header()
    assert [header.row_of(row) for row in ROWS] == [0, 1, 2, 3]
    assert header.row_of(ScoringRow(ScoringConfig(confidence="none", alpha=0.9))) == 0  # alpha plays no part
    assert header.row_of(ScoringRow(ScoringConfig(confidence="class"))) == 1
    stricter = ScoringConfig(alpha=0.3, score_threshold=0.4, max_detections=10)
    assert header.row_of(ScoringRow(stricter)) == 2


@pytest.mark.parametrize(
    "scoring",
    [
        ScoringConfig(alpha=0.5),
        ScoringConfig(alpha=0.30000001),
        ScoringConfig(alpha=0.3, top_k=500),
        ScoringConfig(alpha=0.3, top_k=2000),
        ScoringConfig(alpha=0.3, nms_iou=0.6),
        ScoringConfig(alpha=0.3, score_threshold=0.01),
        ScoringConfig(alpha=0.3, max_detections=101),
    ],
)
def test_undeclared_rows_are_refused(tmp_path, scoring):
    store = CandidateStore.open(write(tmp_path / "store", make_header(1)))
    with pytest.raises(ConfigError, match=r"not complete for alpha 0\.[35].*It is for confidence 'none'"):
        store.row_of(scoring)
    assert not store.holds(ScoringRow(scoring))


def test_the_oracle_is_a_row_of_its_own(tmp_path):
    store = CandidateStore.open(write(tmp_path / "store", make_header(1)))
    with pytest.raises(ConfigError, match=r"oracle alpha 0\.3"):
        store.row_of(ScoringConfig(alpha=0.3), oracle=True)
    with pytest.raises(ConfigError, match=r"not complete for alpha 0\.5"):
        store.row_of(ScoringConfig())


def test_without_an_iou_head_every_confidence_is_the_class_score_but_the_oracles():
    header = make_header(iou_head=False, rows=(ROWS[0], ROWS[3]))
    assert header.row_of(ScoringRow(ScoringConfig(alpha=0.77))) == 0
    assert header.row_of(ScoringRow(ScoringConfig(), oracle=True)) == 1
    assert header.row_of(ScoringRow(ScoringConfig(alpha=0.77), oracle=True)) is None


@pytest.mark.parametrize("count", [0, 64])
def test_the_number_of_rows_is_bounded(count):
    with pytest.raises(ConfigError, match="1 to 63"):
        make_header(rows=(ROWS[0],) * count)
