"""The candidate store: what goes in comes out, what is not whole or not declared is refused."""

import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from detector.config import ScoringConfig
from detector.errors import CandidateStoreError, CheckpointError, ConfigError, DatasetError
from detector.rescoring.header import StoreHeader, StoreIdentity
from detector.rescoring.kept_pairs import ScoringRow, Survivors
from detector.rescoring.store import IMAGES_PER_GROUP, CandidateStore, CandidateWriter, publish_store

IDENTITY = StoreIdentity(dataset="d" * 64, checkpoint="c" * 64, short_side_px=600, long_side_px=1000)
ROWS = (
    ScoringRow(ScoringConfig(confidence="none")),
    ScoringRow(ScoringConfig(alpha=1.0)),
    ScoringRow(ScoringConfig(alpha=0.3)),
    ScoringRow(ScoringConfig(), oracle=True),
)


def make_header(num_images=5, **changes):
    header = StoreHeader(IDENTITY, num_images=num_images, num_classes=7, iou_head=True, rows=ROWS, written_on="cpu")
    return replace(header, **changes)


def make_survivors(count, seed=0, *, iou_head=True, oracle=True):
    generator = torch.Generator().manual_seed(seed)
    return Survivors(
        anchor_index=torch.randint(0, 200_000, (count,), generator=generator).sort().values,
        level=torch.randint(0, 5, (count,), generator=generator).sort().values,
        labels=torch.randint(0, 7, (count,), generator=generator),
        boxes=torch.rand(count, 4, generator=generator) * 1000,
        cls_logits=torch.randn(count, generator=generator) * 5,
        iou_logits=torch.randn(count, generator=generator) if iou_head else None,
        true_ious=torch.rand(count, generator=generator) if oracle else None,
        rows=torch.randint(1, 16, (count,), generator=generator),
    )


def write(folder, header, *, world_size=1, count=20, publish=True, **kinds):
    for rank in range(world_size):
        with CandidateWriter(folder, header, rank=rank, world_size=world_size) as writer:
            for image in range(rank, header.num_images, world_size):
                writer.add(image, (100 + image, 200), make_survivors(count * (image % 3), image, **kinds))
    if publish:
        publish_store(folder, world_size)
    return folder


def assert_same(first, second):
    for name, value in vars(first).items():
        other = getattr(second, name)
        if value is None:
            assert other is None
        else:
            assert value.dtype == other.dtype
            assert torch.equal(value, other), name


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("iou_head", [True, False])
@pytest.mark.parametrize("oracle", [True, False])
def test_round_trip_to_the_bit(tmp_path, world_size, iou_head, oracle):
    header = make_header(iou_head=iou_head, rows=ROWS if oracle else ROWS[:3])
    write(tmp_path / "store", header, world_size=world_size, iou_head=iou_head, oracle=oracle)
    store = CandidateStore.open(tmp_path / "store", IDENTITY)
    assert store.header == header
    seen = []
    for group in store.groups():
        begin = 0
        for image, size, count in zip(group.images.tolist(), group.sizes.tolist(), group.counts.tolist(), strict=True):
            assert size == [100 + image, 200]
            of_image = {
                name: None if value is None else value[begin : begin + count]
                for name, value in vars(group.pairs).items()
            }
            expected = make_survivors(20 * (image % 3), image, iou_head=iou_head, oracle=oracle)
            assert_same(expected, Survivors(**of_image))
            begin += count
            seen.append(image)
        assert begin == len(group.pairs.rows)
    assert sorted(seen) == list(range(5))


def test_other_readers_find_what_the_columns_say(tmp_path):
    write(tmp_path / "store", make_header())
    table = pq.read_table(tmp_path / "store")
    assert table.column_names == ["image", "height", "width", "candidates"]
    assert table["candidates"].type.value_type.names == [
        "anchor", "level", "label", "cls_logit", "iou_logit", "true_iou", "x1", "y1", "x2", "y2", "rows",
    ]  # fmt: skip
    content = json.loads(table.schema.metadata[b"runyard.candidates"])
    assert content["version"] == 1
    assert content["identity"] == asdict(IDENTITY)
    assert [row["scoring"]["alpha"] for row in content["rows"]] == [0.5, 1.0, 0.3, 0.5]


def test_no_images_and_images_without_candidates(tmp_path):
    store = CandidateStore.open(write(tmp_path / "none", make_header(0)))
    assert list(store.groups()) == []
    (group,) = CandidateStore.open(write(tmp_path / "bare", make_header(4), count=0)).groups()
    assert group.counts.tolist() == [0, 0, 0, 0]
    assert group.pairs.boxes.shape == (0, 4)


def test_memory_is_that_of_a_group_of_images(tmp_path):
    """What Arrow holds at once does not grow with the number of images, neither in writing nor in reading."""
    found = make_survivors(400)

    def largest(num_images):
        folder = tmp_path / f"of_{num_images}"
        most = 0
        before = pa.total_allocated_bytes()
        with CandidateWriter(folder, make_header(num_images)) as writer:
            for image in range(num_images):
                writer.add(image, (10, 10), found)
                assert len(writer._waiting) < IMAGES_PER_GROUP
                most = max(most, pa.total_allocated_bytes() - before)
        publish_store(folder)
        for group in CandidateStore.open(folder).groups():
            assert len(group.images) <= IMAGES_PER_GROUP
            most = max(most, pa.total_allocated_bytes() - before)
        return most

    few, many = largest(2 * IMAGES_PER_GROUP), largest(30 * IMAGES_PER_GROUP)
    assert 0 < few < 8e6
    assert many < 1.5 * few + 1e6  # footers grow by some kilobytes a group


# --- declared or refused ----------------------------------------------------------------------------------------------


def test_declared_rows_are_found():
    header = make_header()
    assert [header.row_of(row.scoring, row.oracle) for row in ROWS] == [0, 1, 2, 3]
    assert header.row_of(ScoringConfig(confidence="none", alpha=0.9)) == 0  # alpha plays no part
    assert header.row_of(ScoringConfig(confidence="class")) == 1
    stricter = ScoringConfig(alpha=0.3, score_threshold=0.4, max_detections=10)
    assert header.row_of(stricter) == 2


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
def test_undeclared_rows_are_refused(scoring):
    with pytest.raises(ConfigError, match=r"not complete for alpha 0\.[35].*It is for confidence 'none'"):
        make_header().row_of(scoring)


def test_the_oracle_is_a_row_of_its_own():
    with pytest.raises(ConfigError, match=r"oracle alpha 0\.3"):
        make_header().row_of(ScoringConfig(alpha=0.3), oracle=True)
    with pytest.raises(ConfigError, match=r"not complete for alpha 0\.5"):
        make_header().row_of(ScoringConfig())


def test_without_an_iou_head_every_confidence_is_the_class_score_but_the_oracles():
    header = make_header(iou_head=False, rows=(ROWS[0], ROWS[3]))
    assert header.row_of(ScoringConfig(alpha=0.77)) == 0
    assert header.row_of(ScoringConfig(), oracle=True) == 1
    with pytest.raises(ConfigError, match="oracle"):
        header.row_of(ScoringConfig(alpha=0.77), oracle=True)


@pytest.mark.parametrize("count", [0, 64])
def test_the_number_of_rows_is_bounded(count):
    with pytest.raises(ConfigError, match="1 to 63"):
        make_header(rows=(ROWS[0],) * count)


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
    assert CandidateStore.open(tmp_path / "store").header.identity == IDENTITY


def first_shard(folder):
    return min(folder.glob("shard-*"))


def read_all(folder):
    return list(CandidateStore.open(folder).groups())


@pytest.mark.parametrize("kept", [0, 1, 10, 0.3, 0.9, 0.999])
def test_a_truncated_shard(tmp_path, kept):
    path = first_shard(write(tmp_path / "store", make_header(), world_size=2))
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(CandidateStoreError, match=rf"{path.name}: cannot be read.*Delete the store"):
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
            assert_same(whole.pairs, group.pairs)
            assert np.array_equal(whole.counts, group.counts)
    assert noticed > 20


def test_a_missing_shard(tmp_path):
    write(tmp_path / "store", make_header(), world_size=3)
    for rank in range(3):
        shutil.copytree(tmp_path / "store", tmp_path / f"without_{rank}")
        lost = tmp_path / f"without_{rank}" / f"shard-{rank:05d}-of-00003.parquet"
        lost.unlink()
        with pytest.raises(CandidateStoreError, match=rf"{lost.name}: is missing: the store has 3 shards"):
            read_all(tmp_path / f"without_{rank}")


def test_shards_of_two_stores(tmp_path):
    write(tmp_path / "store", make_header(), world_size=2)
    write(tmp_path / "other", make_header(rows=ROWS[:2]), world_size=2)
    write(tmp_path / "third", make_header(), world_size=3)
    shutil.copy(first_shard(tmp_path / "third"), tmp_path / "store")
    with pytest.raises(CandidateStoreError, match="side by side"):
        read_all(tmp_path / "store")
    shutil.copy(first_shard(tmp_path / "other"), tmp_path / "third" / "shard-00001-of-00003.parquet")
    with pytest.raises(CandidateStoreError):
        read_all(tmp_path / "third")


@pytest.mark.parametrize("images", [[0, 1, 2, 3], [0, 1, 2, 3, 3], [0, 1, 2, 3, 5], [0, 1, 2, 3, 4, 4]])
def test_images_that_are_missing_or_there_twice(tmp_path, images):
    with CandidateWriter(tmp_path / "store", make_header()) as writer:
        for image in images:
            writer.add(image, (10, 10), make_survivors(3))
    publish_store(tmp_path / "store")
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
        (lambda content: content.update(version=2), r"unknown schema version \(found 2\)"),
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
    with pytest.raises(CandidateStoreError, match="there is no candidate store"):
        CandidateStore.open(tmp_path / "nowhere")
    (tmp_path / "strange").mkdir()
    pq.write_table(pa.table({"a": np.arange(3)}), tmp_path / "strange" / "shard-00000-of-00001.parquet")
    with pytest.raises(CandidateStoreError):
        CandidateStore.open(tmp_path / "strange")


# --- nothing is lost --------------------------------------------------------------------------------------------------


def test_a_store_has_no_name_before_it_is_whole(tmp_path):
    folder = tmp_path / "store"
    write(folder, make_header(), world_size=2, publish=False)
    assert not folder.exists()
    publish_store(folder, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert len(read_all(folder)) == 2


def test_a_failed_attempt_leaves_the_earlier_store(tmp_path):
    folder = write(tmp_path / "store", make_header())

    def attempt():
        with CandidateWriter(folder, make_header(9)) as writer:
            writer.add(0, (10, 10), make_survivors(4))
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        attempt()
    with pytest.raises(CandidateStoreError, match="was not written"):
        publish_store(folder)
    assert CandidateStore.open(folder).header.num_images == 5


def test_another_number_of_workers_leaves_no_shards_behind(tmp_path):
    folder = tmp_path / "store"
    write(folder, make_header(), world_size=3, publish=False)  # and then it was killed
    write(folder, make_header(), world_size=2)
    assert sorted(path.name for path in folder.iterdir()) == [
        "shard-00000-of-00002.parquet",
        "shard-00001-of-00002.parquet",
    ]
    write(folder, make_header(), world_size=1)
    assert len(read_all(folder)) == 1
