"""The first demo of Pylightnix 0.x as its users wrote it: fetch GNU Hello, unpack it, copy it with `copytree`, configure, make, run.

``python first_demo.py URL SHA256 NAME``, where NAME is the folder in the archive.
"""

import sys
from os import chdir, getcwd, system
from os.path import join
from shutil import copytree
from tempfile import TemporaryDirectory

from pylightnix import *  # noqa: F403  # as programs of 0.x begin

URL, SHA256, NAME = sys.argv[1:4]


def hello_src(r: Registry) -> DRef:  # noqa: F405
    return fetchurl(name="hello-src", url=URL, sha256=SHA256, src=[selfref, NAME], r=r)  # noqa: F405


def hello(r: Registry) -> DRef:  # noqa: F405
    def realize(b: Build) -> None:  # noqa: F405
        source, out, cwd = build_path(b, mklens(b).src.refpath), build_outpath(b), getcwd()  # noqa: F405
        with TemporaryDirectory() as tmp:
            copytree(source, join(tmp, "src"))
            dirrw(Path(join(tmp, "src")))  # noqa: F405
            chdir(join(tmp, "src"))
            try:
                assert system("./configure --prefix=/usr >&2") == 0
                assert system("make >&2") == 0
                assert system(f"make install DESTDIR={out} >&2") == 0
            finally:
                chdir(cwd)

    config = mkconfig({"name": "hello", "src": mklens(hello_src(r), r=r).src.refpath, "bin": [selfref, "usr", "bin", "hello"]})  # noqa: F405
    return mkdrv(config, match_only(), build_wrapper(realize), r=r)  # noqa: F405


fsinit()  # noqa: F405
assert system(mklens(realize1(instantiate(hello))).bin.syspath) == 0  # noqa: F405
