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
from pylightnix.store.build_logs import COMPRESSED, DRAFT, KeptLog, LogCatalog, Made, read_log, tail_offset
from pylightnix.store.log_packing import MEMBER_BYTES, packed_size, read_packed
from pylightnixd.logfolder import DAY_SECONDS, Keep, LogFolder, logs_to_drop, remove_logs
from pylightnixd.logs import compress_log

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


@given(logs, st.sets(st.text("ab", min_size=1, max_size=8)), st.floats(0, 20), st.integers(0, 1000), st.integers(0, 5), st.integers(0, 8))
def test_what_goes_is_what_is_beyond_the_bounds(
    kept: list[KeptLog], busy: set[str], days: float, size: int, empty: int, count: int
) -> None:
    now, keep = 1e6, Keep(days, size, empty, count)
    dropped = logs_to_drop(kept, busy, keep, now)
    assert not busy & set(dropped)
    left = [log for log in kept if log.name not in dropped]
    idle = [log for log in left if log.name not in busy]
    said = [log for log in idle if log.bytes_on_disk]
    assert all(now - log.ended <= days * DAY_SECONDS for log in idle)
    assert not said or sum(log.bytes_on_disk for log in left) <= size
    assert len(said) == len(idle) or sum(not log.bytes_on_disk for log in left) <= empty
    assert not idle or len(left) <= count

    def were_too_many(name: str) -> bool:
        return len(left) + len(dropped) - dropped.index(name) > count

    # Nothing goes without need: with the youngest of those that went for room, it would be too much again.
    by_name = {log.name: log for log in kept}
    young = [by_name[name] for name in dropped if now - by_name[name].ended <= days * DAY_SECONDS]
    if wordy := [log for log in young if log.bytes_on_disk]:
        assert sum(log.bytes_on_disk for log in left) + wordy[-1].bytes_on_disk > size or were_too_many(wordy[-1].name)
    if silent := [log for log in young if not log.bytes_on_disk]:
        assert sum(not log.bytes_on_disk for log in left) + 1 > empty or were_too_many(silent[-1].name)
        assert all(log.ended >= silent[-1].ended for log in idle if not log.bytes_on_disk)


BUILDS = ["b-one1", "b-one2", "b-two1", "b-three"]


def nobody(rref: str) -> None:
    """Know when nothing was built."""


def test_the_folder_knows_what_lies_there(tmp_path: Path) -> None:
    first = LogFolder.of(str(tmp_path))
    paths = [first.path_of(build, dref, 1e9) for build, dref in zip(BUILDS, [DREFS[0], DREFS[0], DREFS[1], DREFS[2]], strict=True)]
    for path, size in zip(paths, (100, 200_000, 300, 0), strict=True):
        Path(path).write_bytes(b"x" * size)
        first.ended(path)
    packed = first.compress(paths[1])
    assert packed is not None
    first.compressed(paths[1], packed)

    def builds(folder: LogFolder, *refs: str) -> list[str | None]:
        return [None if place is None else place.build for place in (folder.find(ref, nobody) for ref in refs)]

    asked = (DREFS[0], BUILDS[0], BUILDS[3], DREFS[2], "b-thr", "b-one", "b-four", DREFS[1].replace("2", "9"))
    expected = [BUILDS[1], BUILDS[0], BUILDS[3], BUILDS[3], BUILDS[3], None, None, None]
    assert builds(first, *asked) == expected
    # What a crash in the middle of compressing leaves.
    Path(paths[0] + COMPRESSED + DRAFT).write_bytes(b"half")
    Path(paths[2] + COMPRESSED).write_bytes(b"half")
    (tmp_path / "worker-1.log").write_bytes(b"not ours")
    second = LogFolder.of(str(tmp_path))
    assert builds(second, *asked) == expected, "names are understood by every daemon"
    left = ["worker-1.log", *map(os.path.basename, (paths[0], paths[1] + COMPRESSED, paths[2], paths[3]))]
    assert sorted(os.listdir(tmp_path)) == sorted(left)
    assert [second.find(ref, nobody) and read_log(path, 0, 5) for path, ref in zip(paths, BUILDS, strict=True)] == [b"xxxxx"] * 3 + [b""]
    assert sorted(second.excess(Keep(days=0))) == sorted(paths)
    assert second.excess(Keep(empty=0)) == paths[3:]
    assert second.excess(Keep(count=3)) == paths[:1]
    second.touch(paths[0])
    gone = second.excess(Keep(days=0))
    assert sorted(gone) == sorted(paths[1:])
    second.forget(gone)
    remove_logs(gone)
    assert sorted(os.listdir(tmp_path)) == sorted(["worker-1.log", os.path.basename(paths[0])])
    assert builds(second, DREFS[0], BUILDS[0]) == [None, BUILDS[0]], "the latest one is gone; an older one is not what was asked for"
    assert second.excess(Keep(days=30)) == []


@given(st.floats(0, 1e11))
def test_names_are_understood_whatever_the_clock_says(began: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        logs = LogFolder.of(folder)
        path = logs.path_of("b-0123456789", DREFS[0], began)
        Path(path).touch()
        logs.ended(path)
        for known in (logs, LogFolder.of(folder)):
            found = known.find("b-0123456789", nobody)
            assert found is not None
            assert found.path == path


def test_the_log_of_a_realization_is_that_of_the_build_which_made_it(tmp_path: Path) -> None:
    folder, epoch = LogFolder.of(str(tmp_path)), 1.6e9
    rref = f"rref:{'4' * 32}-{DREFS[0][5:]}"
    for build, began in [("b-early", 1000.0), ("b-late", 2000.0), ("b-latest", 3000.0)]:
        path = Path(folder.path_of(build, DREFS[0], epoch + began))
        path.write_bytes(build.encode())
        os.utime(path, (epoch + began + 10,) * 2)
    catalog = LogCatalog.of(str(tmp_path))
    cases = [(1000.0, "b-early"), (1000.0005, "b-early"), (2005.5, "b-late"), (3010.0, "b-latest"), (999.0, None), (1500.0, None)]
    for started, expected in cases:
        found = catalog.find(rref, {rref: Made(None, epoch + started)}.get)
        assert (None if found is None else found.build) == expected, started
    assert catalog.find(rref, nobody) is None
    for build, expected in [("b-late", "b-late"), ("b-gone", None)]:  # where it is recorded, no time matters
        found = catalog.find(rref, {rref: Made(build, epoch + 1000.0)}.get)
        assert (None if found is None else found.build) == expected
    latest = catalog.find(DREFS[0], nobody)
    assert latest is not None
    assert latest.build == "b-latest"


def test_logs_of_earlier_versions_are_read_by_names_that_are_theirs_alone(tmp_path: Path) -> None:
    epoch, rref = 1_600_000_000, f"rref:{'4' * 32}-{DREFS[0][5:]}"
    lives = [f"{epoch + began:x}ab12" for began in (1000, 5000)]
    for life in lives:
        path = tmp_path / f"{life}-b1-{'1' * 32}.log"
        path.write_bytes(life.encode())
        os.utime(path, (int(life[:-4], 16) + 50,) * 2)
    catalog = LogCatalog.of(str(tmp_path))
    assert catalog.find("b1", nobody) is None
    for life in lives:
        found = catalog.find(f"{life}-b1", nobody)
        assert found is not None
        assert (found.build, read_log(found.path, 0, 99)) == (f"{life}-b1", life.encode())
    latest, made = catalog.find(DREFS[0], nobody), catalog.find(rref, {rref: Made(None, epoch + 1020.0)}.get)
    assert latest is not None
    assert made is not None
    assert (latest.build, made.build) == (f"{lives[1]}-b1", f"{lives[0]}-b1")


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
