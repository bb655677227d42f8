"""Stores of Pylightnix 0.x, written by hand: `store-v0`, its hashes, and its contexts that have everything at any distance."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Optional, Union


@dataclass(frozen=True)
class Link:
    target: str


Content = Union[str, bytes, None, Link]
"""Of a file; None is a folder."""


def old_hash(folder: str, order: Callable[[list[str]], Any] = list.sort) -> str:
    """The old rule, folders beside each other in the given order."""
    digest = hashlib.sha256()
    for top, folders, files in os.walk(folder):
        order(folders)
        for name in sorted(files):
            path = os.path.join(top, name)
            if not name.startswith("_"):
                if os.path.islink(path):
                    digest.update(os.readlink(path).encode())
                with open(path, "rb") as file:
                    digest.update(file.read())
    return digest.hexdigest()


@dataclass
class OldStore:
    """A store under a root. Objects are known by their old references."""

    root: str
    contexts: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """Realization -> its context."""
    configs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        os.makedirs(self.storage)
        os.makedirs(f"{self.root}/tmp")

    @property
    def storage(self) -> str:
        return f"{self.root}/store-v0"

    def derivation(self, **config: Any) -> str:
        text = json.dumps(config, indent=4)
        name = f"{hashlib.sha256(text.encode()).hexdigest()[:32]}-{config.get('name', 'unnamed')}"
        os.makedirs(f"{self.storage}/{name}", mode=0o700)
        with open(f"{self.storage}/{name}/config.json", "w") as file:
            file.write(text)
        os.chmod(f"{self.storage}/{name}/config.json", 0o444)
        self.configs[f"dref:{name}"] = config
        return f"dref:{name}"

    def realization(
        self,
        dref: str,
        files: Mapping[str, Content],
        of: tuple[str, ...] = (),
        *,
        start: Optional[str] = "251231-23:59:58:000000+0300",
        order: Callable[[list[str]], Any] = list.sort,
        context: Optional[dict[str, Any]] = None,
    ) -> str:
        """Add a realization made from the realizations `of`, one or more of each direct dependency."""
        folder = f"{self.storage}/{dref[5:]}/new"
        os.makedirs(folder)
        write_tree(folder, files)
        found: dict[str, set[str]] = {}
        for rref in of:
            found.setdefault(f"dref:{rref[5 + 33 :]}", set()).add(rref)
            for below, rrefs in self.contexts[rref].items():
                found.setdefault(below, set()).update(rrefs)
        mine = {below: sorted(rrefs) for below, rrefs in sorted(found.items())} if context is None else context
        with open(f"{folder}/context.json", "w") as file:
            json.dump(mine, file, indent=4)
        if start is not None:
            for name in ("__buildstart__.txt", "__buildstop__.txt"):
                with open(f"{folder}/{name}", "w") as file:
                    file.write(start)
        rhash = old_hash(folder, order)[:32]
        os.rename(folder, f"{self.storage}/{dref[5:]}/{rhash}")
        os.chmod(f"{self.storage}/{dref[5:]}/{rhash}", 0o500)
        rref = f"rref:{rhash}-{dref[5:]}"
        self.contexts[rref] = mine
        return rref

    def folder(self, ref: str) -> str:
        if ref.startswith("dref:"):
            return f"{self.storage}/{ref[5:]}"
        return f"{self.storage}/{ref[5 + 33 :]}/{ref[5 : 5 + 32]}"


def write_tree(folder: str, files: Mapping[str, Content]) -> None:
    for name, content in files.items():
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if content is None:
            os.makedirs(path, exist_ok=True)
        elif isinstance(content, Link):
            os.symlink(content.target, path)
        else:
            with open(path, "wb") as file:
                file.write(content if isinstance(content, bytes) else content.encode())
            os.chmod(path, 0o755 if name.endswith(".sh") else 0o644)
