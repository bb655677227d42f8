"""What leaves a program for another process: its environment, its realizers and matchers, and errors on their way back.

Must not know how the bytes get there, nor who runs them.
"""

from __future__ import annotations

from pylightnix.travel.environment import Environment, build_environment_key, capture_environment, worker_key
from pylightnix.travel.failures import CodeChanged, RemoteFailure, RemoteTraceback, dump_exception, load_exception
from pylightnix.travel.fetching import pack_fetch, unpack_fetch
from pylightnix.travel.packing import (
    Packed,
    PackedMatcher,
    builtin_matcher,
    pack_arguments,
    pack_claimed,
    pack_matcher,
    pack_realizer,
    unpack,
    unpack_node,
)

__all__ = [
    "CodeChanged",
    "Environment",
    "Packed",
    "PackedMatcher",
    "RemoteFailure",
    "RemoteTraceback",
    "build_environment_key",
    "builtin_matcher",
    "capture_environment",
    "dump_exception",
    "load_exception",
    "pack_arguments",
    "pack_claimed",
    "pack_fetch",
    "pack_matcher",
    "pack_realizer",
    "unpack",
    "unpack_fetch",
    "unpack_node",
    "worker_key",
]
