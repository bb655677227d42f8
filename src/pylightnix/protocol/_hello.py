"""Messages of the handshake between client and daemon."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, field

from pylightnix.protocol import _values as v
from pylightnix.protocol.vocabulary import Hello, Welcome

__all__ = ["CallerClass", "ClientHello", "DaemonWelcome"]

CallerClass: TypeAlias = Literal["owner", "root"]


class ClientHello(Hello, frozen=True, kw_only=True):
    """Who connects, and what it can."""

    versions: Annotated[list[int], Meta(min_length=1, max_length=100)]
    features: Annotated[list[v.Word], Meta(max_length=100)] = field(default_factory=list)
    client: v.Label


class DaemonWelcome(Welcome, frozen=True, kw_only=True):
    """Who answers, what both can, and who the caller is to it."""

    daemon: v.Label
    store: v.PathText
    storage: v.PathText
    caller: CallerClass
    pid: v.Pid
