"""Clients that keep a daemon busy, for `kills`: forked by this program on demand, each until it is killed or told to stop.

    load.py ROOT PLANS NOTES URL

A line `N SEED` on standard input forks client N; its process id is the answer. Client N appends to the file `NOTES/N` what it
was told of and what it is about to remove, and everything that a daemon must not do. It stops when `NOTES/stop` is there.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
import time
import traceback
from typing import Final

from tests.daemon import stages
from tests.daemon.wire_client import HungUp, WireClient
from tests.stores import new_store

from pylightnix import Closure, DRef, Registry, StorageSettings, fetchurl2, instantiate
from pylightnix.errors import PylightnixException
from pylightnix.protocol import messages as m
from pylightnix.protocol.errors import ProtocolError

PATIENCE_SECONDS: Final = 60.0
"""For an answer, and for a daemon to be there again."""
SALTS: Final = 40


def content(name: str) -> bytes:
    """What the server has under a name."""
    return hashlib.sha256(name.encode()).digest() * 2000


class Client:
    def __init__(self, root: str, plans: StorageSettings, notes: str, url: str, number: int, seed: int) -> None:
        self.root, self.plans, self.notes, self.url, self.number = root, plans, notes, url, number
        self.chance = random.Random(seed)
        self.file = os.open(f"{notes}/{number}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.own: list[str] = []

    def note(self, word: str, text: str) -> None:
        os.write(self.file, f"{word} {text}\n".encode())

    def run(self) -> None:
        missing_since = None
        while not os.path.exists(f"{self.notes}/stop"):
            try:
                with WireClient(f"{self.root}/daemon.sock") as client:
                    missing_since = None
                    while not os.path.exists(f"{self.notes}/stop"):
                        self._do_something(client)
            except TimeoutError:
                self.note("violation", f"hang: no answer for {PATIENCE_SECONDS:g} s")
                return
            except (HungUp, OSError):  # the daemon was killed
                missing_since = missing_since or time.monotonic()
                if time.monotonic() > missing_since + PATIENCE_SECONDS:
                    self.note("violation", "dead: there is no daemon any more")
                    return
                time.sleep(0.02)
            except (ProtocolError, PylightnixException) as error:
                self._refused(error.code, str(error))
            except Exception:  # noqa: BLE001  # it is looked at in the end
                self.note("violation", f"harness: {traceback.format_exc()!r}")
                return

    def _refused(self, code: str, text: str) -> None:
        if code == "internal" or "BUG" in text:
            self.note("violation", f"internal: {code}: {text!r}")

    def _do_something(self, client: WireClient) -> None:
        client.socket.settimeout(PATIENCE_SECONDS)
        what = self.chance.choices((self._build, self._fetch, self._own, self._remove, self._collect, self._look), (8, 2, 2, 1, 1, 2))[0]
        what(client)

    def _realize(self, client: WireClient, closure: Closure) -> list[str]:
        operation = client.submit(closure, keep_going=True)
        client.wait(operation)
        found = [str(rref) for rrefs in client.matched(operation).values() for rref in rrefs or ()]
        self.note("told", " ".join(found))
        for row in client.failed(operation):
            self._refused(row.code, row.message)
        return found

    def _build(self, client: WireClient) -> None:
        salt = self.chance.randrange(SALTS)
        self._realize(client, stages.layers(self.plans, self.chance.randrange(2, 9), 3, stages.plain, salt=salt))

    def _own(self, client: WireClient) -> None:
        """Build something that nobody else does, slowly."""
        salt = f"{self.number}-{self.chance.randrange(1 << 40)}"
        self.own += self._realize(client, stages.one(self.plans, stages.takes_a_moment, "own", seconds=0.1, salt=salt))

    def _fetch(self, client: WireClient) -> None:
        name = f"f{self.chance.randrange(SALTS)}"
        sha256 = hashlib.sha256(content(name)).hexdigest()

        def fetched(r: Registry) -> DRef:
            return fetchurl2(f"{self.url}/{name}", sha256=sha256, filename="data", name=name, r=r)

        self._realize(client, instantiate(fetched, S=self.plans)[1])

    def _remove(self, client: WireClient, only_unused: bool = False) -> None:
        going = self.own[:3]
        del self.own[:3]
        if going:
            self.note("removing", " ".join(going))
            client.call("remove", m.Remove(rrefs=going, only_unused=only_unused), m.Removed)

    def _collect(self, client: WireClient) -> None:
        self._remove(client, only_unused=True)

    def _look(self, client: WireClient) -> None:
        client.status()
        client.ps()
        page = client.call("query", m.Query(what="allrrefs", limit=50), m.Rows)
        self.note("told", " ".join(rref for rref in page.rows if not rref.endswith("-own")))


def main() -> None:
    root, plans, notes, url = sys.argv[1:]
    S = new_store(plans)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    for line in sys.stdin:
        number, seed = map(int, line.split())
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            try:
                Client(root, S, notes, url, number, seed).run()
            finally:
                os._exit(0)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
