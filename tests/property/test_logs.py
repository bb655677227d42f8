"""Laws of finished logs: pieces of any size make up the whole, and what goes is no more than is beyond the bounds."""

from __future__ import annotations

import gzip
import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylightnix import DRef
from pylightnixd.logfolder import DAY_SECONDS, Keep, KeptLog, LogFolder, logs_to_drop, remove_logs
from pylightnixd.logpacking import MEMBER_BYTES, packed_size, read_packed
from pylightnixd.logs import COMPRESSED, DRAFT, compress_log, read_log, tail_offset

DREFS = [DRef(f"dref:{digit * 32}-stage") for digit in "123"]

# --- reading ----------------------------------------------------------------------------------------------

sizes = st.integers(0, 3 * MEMBER_BYTES) | st.sampled_from([0, 1, MEMBER_BYTES - 1, MEMBER_BYTES, MEMBER_BYTES + 1, 2 * MEMBER_BYTES])


chance = random.Random(7)
WORDS = b"".join(b"step %d: ok\n" % chance.randrange(1 << 40) for _ in range(MEMBER_BYTES // 4))
few = settings(deadline=None, max_examples=40)


def words(size: int, start: int = 0) -> bytes:
    """Return a log: some of it repeats itself, some does not."""
    assert start + size <= len(WORDS)
    return WORDS[start : start + size]


@contextmanager
def finished(data: bytes, *, compressed: bool = True) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "a.log")
        Path(path).write_bytes(data)
        if compressed:
            compress_log(path)
            assert os.listdir(folder) == ["a.log.gz"]
        yield path


@few
@given(sizes, st.integers(0, 1000), st.booleans(), st.lists(st.integers(1, 2 * MEMBER_BYTES), min_size=1, max_size=20))
def test_pieces_of_any_size_make_up_the_whole(size: int, start: int, compressed: bool, limits: list[int]) -> None:
    data = words(size, start)
    with finished(data, compressed=compressed) as path:
        found = b""
        for limit in [*limits, 3 * MEMBER_BYTES]:
            piece = read_log(path, len(found), limit)
            assert len(piece) == min(limit, size - len(found))
            found += piece
        assert found == data[: len(found)]
        assert len(found) == size or len(found) >= 3 * MEMBER_BYTES


@few
@given(sizes, st.integers(0, 4 * MEMBER_BYTES), st.integers(1, 2 * MEMBER_BYTES))
def test_a_piece_is_what_a_slice_is(size: int, offset: int, limit: int) -> None:
    data = words(size)
    with finished(data) as path:
        assert read_packed(path + COMPRESSED, offset, limit) == data[offset : offset + limit]
        assert packed_size(path + COMPRESSED) == size
        assert tail_offset(path, limit) == max(0, size - limit)


@few
@given(sizes)
def test_any_gzip_reads_it(size: int) -> None:
    with finished(words(size)) as path, gzip.open(path + COMPRESSED) as file:
        assert file.read() == words(size)


@few
@given(st.data())
def test_a_damaged_file_is_an_error_or_part_of_the_log(data: st.DataObject) -> None:
    log = words(MEMBER_BYTES + 1000)
    with finished(log) as path:
        whole = bytearray(Path(path + COMPRESSED).read_bytes())
        cut = data.draw(st.integers(0, len(whole) - 1))
        Path(path + COMPRESSED).write_bytes(whole[:cut])
        try:
            found = read_packed(path + COMPRESSED, 0, len(log))
        except ValueError:
            found = b""
        assert log.startswith(found)
        assert len(found) < len(log)


# --- collecting -------------------------------------------------------------------------------------------

logs = st.lists(
    st.builds(KeptLog, name=st.text("ab", min_size=1, max_size=8), bytes_on_disk=st.integers(0, 100), ended=st.floats(0, 1e6)),
    unique_by=lambda log: log.name,
)


@given(logs, st.sets(st.text("ab", min_size=1, max_size=8)), st.floats(0, 20), st.integers(0, 1000))
def test_what_goes_is_what_is_beyond_the_bounds(kept: list[KeptLog], busy: set[str], days: float, size: int) -> None:
    now, keep = 1e6, Keep(days, size)
    dropped = logs_to_drop(kept, busy, keep, now)
    assert not busy & set(dropped)
    left = [log for log in kept if log.name not in dropped]
    idle = [log for log in left if log.name not in busy]
    assert all(now - log.ended <= days * DAY_SECONDS for log in idle)
    assert not idle or sum(log.bytes_on_disk for log in left) <= size
    # Nothing goes without need: with the youngest of those that went for room, it would be too much again.
    by_name = {log.name: log for log in kept}
    young = [by_name[name] for name in dropped if now - by_name[name].ended <= days * DAY_SECONDS]
    if young:
        assert sum(log.bytes_on_disk for log in left) + young[-1].bytes_on_disk > size
        oldest_left = min((log.ended for log in idle), default=now)
        assert all(log.ended <= oldest_left for log in young)


def test_the_folder_knows_what_lies_there(tmp_path: Path) -> None:
    first = LogFolder.of(str(tmp_path), "0123456789ab")
    paths = [first.path_of(f"b{i}", dref) for i, dref in enumerate([DREFS[0], DREFS[0], DREFS[1], DREFS[2]])]
    for path, size in zip(paths, (100, 200_000, 300, 0), strict=True):
        Path(path).write_bytes(b"x" * size)
        first.ended(path)
    packed = first.compress(paths[1])
    assert packed is not None
    first.compressed(paths[1], packed)
    found = [first.latest(DREFS[0]), first.latest("b0"), first.latest("b3"), first.latest(DREFS[2]), first.latest("b9")]
    assert [place and place.build for place in found] == ["b1", "b0", "b3", "b3", None]
    assert not os.path.exists(paths[3])
    # What a crash in the middle of compressing leaves.
    Path(paths[0] + COMPRESSED + DRAFT).write_bytes(b"half")
    Path(paths[2] + COMPRESSED).write_bytes(b"half")
    (tmp_path / "worker-1.log").write_bytes(b"not ours")
    second = LogFolder.of(str(tmp_path), "0123456789ac")
    assert sorted(os.listdir(tmp_path)) == sorted(["worker-1.log", *map(os.path.basename, (paths[0], paths[1] + COMPRESSED, paths[2]))])
    assert [second.latest(dref) and read_log(paths[i], 0, 5) for i, dref in ((1, DREFS[0]), (2, DREFS[1]))] == [b"xxxxx"] * 2
    assert second.latest("b0") is None
    gone = second.excess(Keep(days=0))
    assert sorted(gone) == sorted(paths[:3])
    second.touch(paths[0])
    gone = second.excess(Keep(days=0))
    assert sorted(gone) == sorted(paths[1:3])
    second.forget(gone)
    remove_logs(gone)
    assert sorted(os.listdir(tmp_path)) == sorted(["worker-1.log", os.path.basename(paths[0])])
    place = second.latest(DREFS[0])
    assert place is None, "the latest one is gone; an older one is not what was asked for"
    assert second.excess(Keep(days=30)) == []


@pytest.mark.slow
def test_reading_a_long_log_takes_time_in_proportion(tmp_path: Path) -> None:
    import time

    def seconds(megabytes: int) -> float:
        with finished(words(1 << 20) * megabytes) as path:
            begun, offset = time.perf_counter(), 0
            while piece := read_log(path, offset, 1 << 16):
                offset += len(piece)
            return time.perf_counter() - begun

    short, long = seconds(4), seconds(64)
    print(f"4 MiB in {short:.3f} s, 64 MiB in {long:.3f} s")
    assert long < 16 * short * 5
