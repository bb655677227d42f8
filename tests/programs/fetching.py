# mypy: ignore-errors
"""Files from elsewhere: by HTTP, from this machine, unpacked on the way or by a stage."""

import http.server
import tarfile
import threading

from pylightnix import *

fsinit()
home = mkdtemp()
makedirs(join(home, "hello-1.0"))
writestr(join(home, "hello-1.0", "README"), "hello")
with tarfile.open(join(home, "hello.tar.gz"), "w:gz") as tar:
    tar.add(join(home, "hello-1.0"), "hello-1.0")
archive, digest = join(home, "hello.tar.gz"), filehash(join(home, "hello.tar.gz"))


class Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *args):
        super().__init__(*args, directory=home)

    def log_message(self, *args):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/hello.tar.gz"


def unpacked(r: Registry) -> DRef:
    tarball = fetchurl2(url=url, sha256=digest, out=[selfref, "hello.tar.gz"], r=r)
    return unpack(refpath=mkrefpath(tarball, ["hello.tar.gz"]), name="unpacked", src=[selfref, "hello-1.0"], r=r)


assert readstr(join(mklens(realize1(instantiate(unpacked))).src.syspath, "README")) == "hello"
rref = realize1(instantiate(fetchurl, url=url, sha256=digest, name="hello-src"))
assert catref(rref, ["hello-1.0", "README"]) == ["hello"]
rref = realize1(instantiate(fetchurl, url=url, sha256=digest, mode="as-is"))
assert mklens(rref).out_path.syspath == join(rref2path(rref), "hello.tar.gz") and dirhash(home)
rref = realize1(instantiate(fetchlocal, path=archive, sha256=digest))
assert catref(rref, ["hello-1.0", "README"]) == ["hello"]
environ["HELLO"] = archive
rref = realize1(instantiate(fetchlocal, envname="HELLO", sha256=digest, mode="as-is"))
assert filehash(mklens(rref).out_path.syspath) == digest == sha256sum(open(archive, "rb").read()).hexdigest()
try:
    realize1(instantiate(fetchurl2, url=url, sha256="0" * 64, name="wrong"))
except BuildError as error:
    assert isinstance(error.exception, AssertionError)
else:
    raise SystemExit("a wrong checksum was accepted")
server.shutdown()
rmtree(home)
