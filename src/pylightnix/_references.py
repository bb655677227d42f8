"""What a definition refers to and changes, as names.

Must not know how it is read, nor what a name stands for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

__all__ = ["Imported", "Names", "Passed", "Reference"]


@dataclass(frozen=True, slots=True, order=True)
class Imported:
    """An import statement inside a definition."""

    level: int
    """How many dots stand before the module's name."""
    module: str
    name: str
    """What is imported from the module; empty for the module itself."""


@dataclass(frozen=True, slots=True)
class Reference:
    """One use of a name."""

    path: tuple[str, ...]
    """The name, then the attributes behind it."""
    imported: Optional[Imported] = None
    needed: bool = True
    """False if it may well stand for nothing: in annotations, and in class bodies that bind it too."""
    is_open: bool = True
    """False if all that is done with it is known: a module that is only imported, `eval` of a constant text."""
    line: int = 0
    """Where it is used first."""
    runs: bool = True
    """False if it is used only while the definition is made: by decorators, annotations, the body of a class."""

    @property
    def text(self) -> str:
        return ".".join(self.path)


@dataclass(frozen=True, slots=True, order=True)
class Passed:
    """Something that is named, as an argument of a call."""

    called: tuple[str, ...]
    position: int
    """Of the argument, -1 of one that is given by keyword."""
    keyword: str
    path: tuple[str, ...]
    is_parameter: bool
    """Whether it is a parameter of the definition itself."""


@dataclass(frozen=True, slots=True)
class Names:
    """The references of a definition."""

    references: tuple[Reference, ...]
    """Sorted, without doubles."""
    changed: frozenset[tuple[str, ...]]
    """Paths of what the definition changes when it runs."""
    indexed: frozenset[tuple[str, ...]] = frozenset()
    """Paths of what it reads items of, which changes a `defaultdict`."""
    rebound: frozenset[tuple[str, ...]] = frozenset()
    """What it binds to something else: names declared `global` or `nonlocal`, and attributes, of modules perhaps."""
    changed_parameters: frozenset[str] = frozenset()
    """Names of the definition's own parameters that it changes."""
    passed: tuple[Passed, ...] = ()
    """What it passes on to functions that may change it."""
    changed_attributes: frozenset[tuple[str, str]] = frozenset()
    """Attributes that it changes, of whatever object: ``in`` or ``to`` and the name, as what they hold or what they stand for changes."""
    own_changed_attributes: frozenset[tuple[str, str]] = frozenset()
    """Attributes that the methods of a class change of their own object, after it was made."""
    finds_subclasses: bool = False
    """Whether it asks a class which classes are built on it."""
