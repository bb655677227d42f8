"""The program that lives through many days, each in a fork of itself: run by `sweep`, with the library of `shim` loaded.

    runner.py ROOT            orders on standard input, reports on standard output, a JSON object a line

Orders, all of which may be left out: {"fault": text, "start_at": N, "trace": path, "mutant": name, "deaf_to": [order, …],
"patience": seconds}. The first must be empty: its report says what is right. With "start_at" the day begins where another
daemon was killed, and the fault may be met while the daemon starts. Every store is opened once more after its day, and verified.
Or {"count", "seed", "mutant"}: a day is recorded, and so many states are looked at that a power cut may leave.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import gc
import hashlib
import http.server
import json
import os
import random
import select
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Optional

from tests.faults import fake_worker, mutants
from tests.faults.power_cuts import Record, State, read_record
from tests.faults.scenario import ANSWER_SECONDS, Day, Plans, Report, live
from tests.faults.shim import Calls, Fault
from tests.faults.store_check import problems
from tests.stores import new_store

from pylightnix import StorageSettings
from pylightnix.errors import PylightnixException
from pylightnix.storage import store_layout
from pylightnix.store.access import make_folders
from pylightnix.store.durability import Durability
from pylightnix.store.store import open_store_alone
from pylightnixd import worker_builds

DAY_SECONDS: Final = 90.0
_FORK_SECONDS: Final = 1.0
"""How long a worker may take to begin a build. A thread takes no time, and nobody is to wait for the usual ten seconds."""
CONTENT: Final = b"from elsewhere\n" * 3000


def forked(body: Callable[[], bytes], seconds: float) -> tuple[Optional[bytes], str]:
    """Run `body` in a fork; return what it returned, None if it did not in time, and what it said on standard error."""
    reading, writing = os.pipe()
    said = os.memfd_create("said")
    pid = os.fork()
    if pid == 0:
        try:
            os.setpgid(0, 0)
            os.dup2(said, 2)
            os.dup2(os.open(os.devnull, os.O_RDWR), 1)
            faulthandler.register(signal.SIGUSR1, all_threads=True)
            data = body()
            os.write(writing, data)
        except BaseException:  # noqa: BLE001, ASYNC103  # a fork must not go on as its parent
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writing)
    chunks = bytearray()
    in_time = True
    while True:
        if not select.select([reading], [], [], seconds)[0]:
            in_time = False
            os.kill(pid, signal.SIGUSR1)
            select.select([reading], [], [], 0.5)
            break
        data = os.read(reading, 1 << 16)
        if not data:
            break
        chunks += data
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(reading)
    os.lseek(said, 0, os.SEEK_SET)
    with open(said, "rb") as file:
        text = file.read().decode("utf-8", "replace")
    return (bytes(chunks) if in_time else None), text


def opened(root: str, told: Sequence[str], right: Sequence[str]) -> list[str]:
    """Open a store as a daemon does, close it, and return what is wrong with it then."""

    def body() -> bytes:
        layout = store_layout(StorageSettings(root, f"{root}/store-v1", None))  # type: ignore[arg-type]  # paths
        try:
            make_folders(layout)
            with open_store_alone(layout, "daemon", f"{root}/daemon.sock", 5.0):
                pass
        except PylightnixException as error:
            return f"does not open: {error}".encode()
        return b"opened"

    data, said = forked(body, 30.0)
    if data is None:
        return [f"does not open: it takes for ever {said[-2000:]}"]
    if data != b"opened":
        return [data.decode() or f"does not open: {said[-2000:]}"]
    return problems(root, told, right)


class Runner:
    def __init__(self, root: str) -> None:
        self.root, self.calls = root, Calls(os.environ["FAULT_LIBRARY"])
        self.plans = Plans.of(new_store(f"{root}/plans"), serve_file(), hashlib.sha256(CONTENT).hexdigest())
        self.expected: Optional[Mapping[str, list[str]]] = None
        self.number = 0
        self.record: Optional[Record] = None

    def cuts(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """Record a day, cut its power at `count` moments, and open what is left; of every 50th, live another day there."""
        trace = f"{self.root}/trace"
        recorded = self.day({**order, "trace": trace})
        record = read_record(trace, recorded["root"])
        violations = [f"the day itself: {text}" for text in recorded["violations"]]
        chance = random.Random(order["seed"])
        edges = [*record.synced, *(at for at, _ in record.marks)]  # where something has just become certain, or been told
        lived = with_debris = 0
        for number in range(order["count"]):
            cut = 1 + (chance.choice(edges) if number % 2 else chance.randrange(record.length + 1))
            state, told, root = State(record, cut, order["seed"] + number), record.told(cut), f"{self.root}/cut"
            state.write_to(root)
            found = opened(root, sorted(told), recorded["right"])
            # A tree without a row was told to nobody; whoever builds it again puts it aside.
            debris = [text for text in found if text.startswith("left over: store-v1/")]
            found = [text for text in found if text not in debris]
            with_debris += bool(debris)
            if not found and (number % 50 == 0 or (debris and with_debris % 20 == 0)):
                lived += 1
                found = self._relived(root, told, recorded["right"], order.get("mutant"))
            violations += [f"cut {cut} of {record.length}, seed {order['seed'] + number}: {text}" for text in found]
            shutil.rmtree(root)
        shutil.rmtree(recorded["root"])
        return {"states": order["count"], "lived": lived, "debris": with_debris, "changes": len(record.changes), "violations": violations}

    def _killed_at(self, cut: int, root: str) -> set[str]:
        """Make the store that a daemon leaves which is killed at some moment of a day; return what clients had been told of."""
        if self.record is None:
            trace = f"{self.root}/trace-to-kill"
            self.record = read_record(trace, self.day({"trace": trace})["root"])
        at = 1 + cut % self.record.length
        State(self.record, at, 0, all_kept=True).write_to(root)
        return self.record.told(at)

    def _relived(self, root: str, told: set[str], right: Sequence[str], mutant: Optional[str]) -> list[str]:
        def body() -> bytes:
            mutants.apply(mutant)
            return live(Day(root, self.plans, self.calls, expected=self.expected)).data()

        data, said = forked(body, DAY_SECONDS)
        report = Report(violations=[f"hang: {said[-4000:]}"]) if data is None else Report.of(data)
        return [*report.violations, *problems(root, sorted(told - set(report.loose) | set(report.told)), right)]

    def day(self, order: Mapping[str, Any]) -> dict[str, Any]:
        fault = None if order.get("fault") is None else Fault.parse(order["fault"])
        self.number += 1
        root, log = f"{self.root}/{self.number}", os.memfd_create("hit")
        told: set[str] = set()
        cut = order.get("start_at")
        if cut is None:
            os.mkdir(root)
        else:
            told = self._killed_at(cut, root)

        def body() -> bytes:
            vars(worker_builds).update(FORK_SECONDS=_FORK_SECONDS)
            mutants.apply(order.get("mutant"))
            fake_worker.deaf_to.update(order.get("deaf_to", ()))
            if order.get("by_file"):
                Durability.by_file = lambda *_: True  # type: ignore[method-assign]  # as after a slow sync
            trace = None if order.get("trace") is None else os.open(order["trace"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            self.calls.begin(root, log, trace)
            patience = order.get("patience", ANSWER_SECONDS)
            day = Day(root, self.plans, self.calls, fault if cut is None else None, self.expected, patience=patience)
            return live(day, fault if cut is not None else None).data()

        data, said = forked(body, DAY_SECONDS)
        report = Report(violations=[f"hang: {said[-4000:]}"]) if data is None else Report.of(data)
        if data == b"":
            report.violations.append(said[-2000:])
        right = [rref for rrefs in (self.expected or report.matched).values() for rref in rrefs]
        told = told - set(report.loose) | set(report.told)
        report.violations += [*problems(root, sorted(told), right, settled=False), *opened(root, sorted(told), right)]
        if self.expected is None:
            self.expected = report.matched
        hit = os.pread(log, 1 << 16, 0).decode()
        os.close(log)
        if order.get("trace") is None or report.violations:
            shutil.rmtree(root, ignore_errors=True)
        return {
            "fault": order.get("fault"),
            "calls": report.calls,
            "hit": hit.splitlines()[:1],
            "errors": report.errors,
            "violations": list(dict.fromkeys(report.violations)),
            "told": report.told,
            "right": right,
            "root": root,
        }


def serve_file() -> str:
    """Serve CONTENT from a process of its own, which ends with this one; return its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base's name
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    parent = os.getpid()
    if os.fork() == 0:

        def watch() -> None:
            while os.getppid() == parent:
                select.select([], [], [], 0.5)
            os._exit(0)

        threading.Thread(target=watch, daemon=True).start()
        server.serve_forever()
    port = server.server_address[1]
    server.server_close()
    return f"http://127.0.0.1:{port}/data"


def main() -> None:
    runner = Runner(sys.argv[1])
    gc.collect()
    gc.freeze()  # or each fork would copy all that it only looks at
    say = functools.partial(print, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        say(json.dumps(runner.cuts(order) if "count" in order else runner.day(order)))


if __name__ == "__main__":
    main()
