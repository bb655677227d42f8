"""Fetch the sources of GNU Hello, configure and compile them, and run what comes out.

Three stages, none of which needs Python to be built:

    sources --> program --> greeting

``python docs/examples/hello.py`` prints the greeting. It needs a C compiler and make, and the network once: the next
time everything is in the store. HELLO_URL names another place to fetch from, a mirror or a ``file://`` URL.
"""

import os
from pathlib import Path

from pylightnix import DRef, Registry, command, fetchurl, fsinit, instantiate, realize1, rref2path, selfref

URL = os.environ.get("HELLO_URL", "https://ftp.gnu.org/gnu/hello/hello-2.10.tar.gz")
MIRRORS = [] if "HELLO_URL" in os.environ else ["https://ftpmirror.gnu.org/hello/hello-2.10.tar.gz"]
SHA256 = "31e066137a962676e89f69d1b65382de95a7ef7d914b8cb956f41ea72e0f516b"

# Nothing of the caller's environment reaches a `command`, but for what is listed.
PATH = "/usr/local/bin:/usr/bin:/bin"

# The sources are read-only, so they are copied, with their times: all files of the store have the same, so make takes none for outdated.
COMPILE = """
set -e
cp -Rp "$sources" hello
chmod -R u+w hello
cd hello
./configure --disable-dependency-tracking --prefix=/
make
make install-exec DESTDIR="$program"
"""


def sources(r: Registry) -> DRef:
    return fetchurl(URL, SHA256, name="hello-sources", filename="hello-2.10.tar.gz", mirrors=MIRRORS, r=r)


def program(r: Registry) -> DRef:
    env = {"PATH": PATH, "LC_ALL": "C", "sources": [sources(r), "hello-2.10"], "program": [selfref, "program"]}
    return command(["sh", "-c", COMPILE], env, outputs=["program"], name="hello-program", r=r)


def main(r: Registry) -> DRef:
    env = {"hello": [program(r), "program", "bin", "hello"], "out": [selfref, "greeting.txt"]}
    return command(["/bin/sh", "-c", '"$hello" >"$out"'], env, outputs=["greeting.txt"], name="hello-greeting", r=r)


if __name__ == "__main__":
    fsinit()
    folder = Path(rref2path(realize1(instantiate(main))))
    print((folder / "greeting.txt").read_text(), end="")
