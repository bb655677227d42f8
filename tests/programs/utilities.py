# mypy: ignore-errors
"""Files, folders, hashes and graphs, without a store."""

from pylightnix import *

folder = mkdtemp()
writestr(join(folder, "f"), "text")
assert dirhash(folder) == filehash(join(folder, "f")) == datahash([("f", b"text")]) == sha256(b"text").hexdigest()
assert len(trimhash(dirhash(folder))) == 32 and dirshash([folder]) and dirsize(folder) == 4
dirro(folder)
dircp(folder, folder + "_copy", make_rw=True)
writestr(join(folder + "_copy", "g"), "more")
assert sorted(listdir(folder + "_copy")) == ["f", "g"]
assert lstat(join(folder, "f"))[ST_MODE] & S_IWRITE == 0
dirrw(folder)
forcelink(Path("f"), Path(join(folder, "link")))
assert readlink(join(folder, "link")) == "f"
assert (
    tryread(Path(folder) / "none") is None
    and tryread_def(join(folder, "none"), "x") == "x"
    and tryreadstr_def(join(folder, "f"), "") == "text"
)
assert trywrite(join(folder, "w"), "written") and readstr(join(folder, "w")) == "written" and not trywrite(folder, "x")
writejson(join(folder, "j"), {"a": 1}, indent=2)
assert readjson(join(folder, "j")) == tryreadjson(join(folder, "j")) == {"a": 1} and tryreadjson_def(join(folder, "f"), 5) == 5
assert maybereadstr(join(folder, "none"), "3", int) == 3 and maybereadjson(join(folder, "j"), {}, len) == 1
assert abs(parsetime(timestring(1e9)) - 1e9) < 1 and parsetime("nonsense") is None and datetime.now(tzlocal())
assert kahntsort([1, 2, 3], lambda n: {1: {2}, 2: {3}, 3: set()}[n]) == [3, 2, 1] and dagroots(
    [3, 2, 1], lambda n: {1: {2}, 2: {3}, 3: set()}[n]
) == {1}
d = {"a": [1, {"b": "dref:" + "0" * 32 + "-x"}]}
assert [list(map(str, refs)) for refs in scanref_dict(d)] == [[d["a"][1]["b"]], []]
traverse_dict(d, lambda k, v: 9 if v == 1 else v)
assert d["a"][0] == 9 and encode("ž") == "ž".encode() and concat([[1], [2]]) == [1, 2]
assert dicthash({"b": 1, "_c": 2, "a": 3}) == dicthash({"a": 3, "b": 1})
assert mkdref(HashPart("0" * 32), Name("n")) == "dref:" + "0" * 32 + "-n" and isrefpath(["dref:" + "0" * 32 + "-n", "x"])
log = mklogdir("run", folder, subdirs=["a"])
assert isdir(join(log, "a")) and islink(join(folder, "_run_latest"))
dirrm(folder), dirrm(folder + "_copy")
assert not isdir(folder)
