"""What a power cut may leave of a store, from the record of all that was done to it.

Each change has an inode, so a file system is played again change by change. At a cut, everything before it that a sync covered
is there. Of the rest, names (creations, renames, removals, modes) are lost from some moment on, as by a file system that keeps
a journal of them, or here and there; and data are lost or kept by file, by write or by block. Lost data leave zeros where the
size was kept, or the old end of the file. SQLite's shared memory is never there.

The journal's order is assumed between a folder's making and what lies in it, for nothing else could be reached.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Optional

_HEAD: Final = struct.Struct("<c7xQQQQ")
_BLOCK: Final = 4096
_SECTOR: Final = 512


@dataclass(slots=True, eq=False)
class Node:
    """A file, a folder or a link."""

    kind: str
    target: str = ""
    mode: int = 0o600
    names: dict[str, Node] = field(default_factory=dict)
    """Of a folder, while it is played."""
    at: Optional[tuple[Node, str]] = None


@dataclass(slots=True)
class Change:
    """One thing that was done. What it did to names is told by nodes, for paths change."""

    what: str
    node: Node
    parent: Optional[Node] = None
    name: str = ""
    number: int = 0
    """An offset, a size or a mode."""
    data: bytes = b""
    when: int = 0
    """The number of what was recorded: of a sync, of its beginning, before which all was covered."""
    safe_from: int = 1 << 60
    """From which cut on it is certain to be there."""


@dataclass(slots=True)
class Record:
    """All that was done, in order, and what clients were told meanwhile."""

    root: Node
    changes: list[Change]
    marks: list[tuple[int, str]]
    """The number of what was recorded, and what was noted."""
    synced: list[int]
    """The numbers of the ends of syncs."""
    length: int
    """How much was recorded: each sync twice, and each mark, too."""

    def told(self, cut: int) -> set[str]:
        """Return what clients had been told of by then, and had not asked to be removed."""
        found: set[str] = set()
        for index, text in self.marks:
            if index >= cut:
                break
            word, *rrefs = text.split()
            found = found | set(rrefs) if word == "told" else found - set(rrefs)
        return found


def read_record(path: str, root: str) -> Record:
    """Play a record of `calls.c` once, in full."""
    return _Player(root).play(_entries(path))


def _entries(path: str) -> Iterator[tuple[str, int, int, str, bytes]]:
    with open(path, "rb") as file:
        while head := file.read(_HEAD.size):
            what, a, b, one, two = _HEAD.unpack(head)
            yield what.decode(), a, b, os.fsdecode(file.read(one)), file.read(two)


class _Player:
    def __init__(self, root: str) -> None:
        self.top = root.rstrip("/")
        self.root = Node("d", mode=0o755)
        self.inodes: dict[int, Node] = {}
        self.syncs: dict[int, Change] = {}
        self.changes: list[Change] = []
        self.marks: list[tuple[int, str]] = []
        self.synced: list[int] = []
        self.now = 0

    def play(self, entries: Iterator[tuple[str, int, int, str, bytes]]) -> Record:
        for what, a, b, one, two in entries:
            self.now += 1
            if what == "!":
                self.marks.append((self.now, one))
            elif what == "e":
                self.synced.append(self.now)
                self._synced(self.syncs.pop(b))
            elif what in "sS":
                node = self.root if what == "S" else self._find(one)
                if node is not None:
                    self.syncs[b] = Change(what, node, when=self.now)
            elif what in "wt":
                node = self.inodes.get(a)
                if node is not None:
                    self._do(Change(what, node, number=b, data=two))
            else:
                self._name(what, a, b, one, two)
        return Record(self.root, self.changes, self.marks, self.synced, self.now)

    def _do(self, change: Change) -> None:
        change.when = self.now
        self.changes.append(change)

    def _synced(self, sync: Change) -> None:
        for change in self.changes:
            if change.when > sync.when:
                break
            ours = change.node if change.what in "wt" else (change.parent or change.node)
            # A file's or folder's own mode goes with it.
            if sync.what == "S" or ours is sync.node or (change.what == "m" and change.node is sync.node):
                change.safe_from = min(change.safe_from, self.now + 1)

    def _find(self, path: str) -> Optional[Node]:
        node: Optional[Node] = self.root
        for name in path[len(self.top) :].strip("/").split("/"):
            if name and node is not None:
                node = node.names.get(name)
        return node

    def _name(self, what: str, a: int, b: int, one: str, two: bytes) -> None:
        parent, name = self._find(os.path.dirname(one)), os.path.basename(one)
        node = self._find(one)
        if what == "m":
            if node is not None:
                self._do(Change("m", node, node.at[0] if node.at else None, number=a))
        elif what == "r":
            target = self._find(os.path.dirname(os.fsdecode(two)))
            if node is not None and target is not None:
                change = Change("r", node, target, os.path.basename(os.fsdecode(two)))
                self._do(change)
                put(node, target, change.name)
        elif what == "u":
            if node is not None and parent is not None:
                self._do(Change("u", node, parent, name))
                del parent.names[name]
                node.at = None
        elif parent is not None and what in "odl":
            if what == "o" and node is not None:
                self.inodes[a] = node
                if b & 1:
                    self._do(Change("t", node))
                return
            made = Node({"o": "f"}.get(what, what), os.fsdecode(two) if what == "l" else "", a if what == "d" else b >> 1)
            if what == "o":
                self.inodes[a] = made
            self._do(Change("c", made, parent, name))
            put(made, parent, name)


def put(node: Node, parent: Node, name: str) -> None:
    """Give a node its place, and take it from where it was."""
    if node.at is not None and node.at[0].names.get(node.at[1]) is node:
        del node.at[0].names[node.at[1]]
    parent.names[name] = node
    node.at = (parent, name)


# --- one state ----------------------------------------------------------------------------------------


class State:
    """What is left after a cut just before what was recorded as number `cut`."""

    def __init__(self, record: Record, cut: int, seed: int, all_kept: bool = False) -> None:
        """Make it; with `all_kept` it is what `kill -9` leaves at that moment."""
        self._chance = random.Random(f"{seed}/{cut}")
        self._data: dict[Node, bytearray] = {}
        self._modes: dict[Node, int] = {}
        self._root = record.root
        _reset(record)
        names_until = self._chance.randrange(cut + 1)
        in_order = self._chance.random() < 0.6
        share = self._chance.choice((0.0, 0.3, 0.7, 1.0))
        ways: dict[Node, str] = {}
        for change in record.changes:
            if change.when >= cut:
                break
            safe = all_kept or change.safe_from <= cut
            if change.what in "wt":
                way = "kept" if safe else ways.setdefault(change.node, self._chance.choice(("kept", "lost", "writes", "blocks", "zeros")))
                self._write(change, way)
            elif safe or (change.when < names_until if in_order else self._chance.random() < share):
                self._name(change)

    def _name(self, change: Change) -> None:
        node = change.node
        if change.what == "m":
            self._modes[node] = change.number
        elif change.what == "u":
            if change.parent is not None and change.parent.names.get(change.name) is node:
                del change.parent.names[change.name]
                node.at = None
        elif change.parent is not None:
            put(node, change.parent, change.name)

    def _write(self, change: Change, way: str) -> None:
        data = self._data.setdefault(change.node, bytearray())
        if way == "lost" or (way == "writes" and self._chance.random() < 0.5):
            return
        if change.what == "t":
            del data[change.number :]
            data.extend(bytes(max(0, change.number - len(data))))
            return
        end = change.number + len(change.data)
        if way != "blocks":
            data.extend(bytes(max(0, end - len(data))))
            if way != "zeros":  # what lay there before lies there still; only what was never there is zeros
                data[change.number : end] = change.data
            return
        size = self._chance.choice((_BLOCK, _SECTOR))
        for start in range(0, len(change.data), size):
            if self._chance.random() < 0.5:
                part = change.data[start : start + size]
                at = change.number + start
                data.extend(bytes(max(0, at + len(part) - len(data))))
                data[at : at + len(part)] = part

    def write_to(self, folder: str) -> None:
        """Make the state on a disk."""
        os.mkdir(folder, 0o755)
        self._write_names(self._root, folder)

    def _write_names(self, node: Node, folder: str) -> None:
        for name, each in node.names.items():
            path = f"{folder}/{name}"
            mode = self._modes.get(each, each.mode)
            if each.kind == "d":
                os.mkdir(path, 0o700)
                self._write_names(each, path)
                os.chmod(path, mode)
            elif each.kind == "l":
                os.symlink(each.target, path)
            elif not name.endswith("-shm"):
                with open(path, "wb") as file:
                    file.write(self._data.get(each, b""))
                os.chmod(path, mode)


def _reset(record: Record) -> None:
    record.root.names.clear()
    for change in record.changes:
        change.node.names.clear()
        change.node.at = None
