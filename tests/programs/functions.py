# mypy: ignore-errors
"""Stages of functions: defaults, dependencies by stage and by lambda, several outputs, nested values."""

from pylightnix import *

fsinit()


@autostage(name="data", file=[selfref, "data.json"])
def data(file, n=3, build=None):
    assert isinstance(build, Build)
    writejson(file, list(range(n)))


@autostage(name="train", nouts=3, data=lambda r: data(n=5, r=r), log=[selfref, "log.txt"], metrics={"loss": [selfref, "loss"]})
def train(data, log, metrics, rindex, lr=0.5):
    writestr(log, f"{sum(readjson(data.file))} {lr} of {rindex}")
    writestr(metrics["loss"], str((rindex - 1) ** 2 + lr))


@autostage(name="best", models=train, table=[selfref, "table"])
def report(models, table, always: Optional[str] = None):
    writestr(table, "\n".join(sorted(readstr(m.metrics["loss"]) for m in models)))


_, closure = instantiate(report)
rref = realize1(closure)
assert catref(rref, ["table"]) == ["0.5\n", "1.5\n", "1.5"]
assert catref(RRef(mklens(rref).models[0].rref), ["log.txt"])[0].startswith("10 0.5 of")
one = realize1(instantiate(train, lr=0.25, nouts=2, matcher=match_some(1, key=lambda S, r: -float(readstr(join(rref2path(r, S), "loss"))))))
assert catref(one, ["loss"]) == ["0.25"]
result = realizeU(instantiate(report))
assert result._rref == rref and isfile(result.table) and len(result.models) == 3
assert result.models[0].data.n == 5 and result.__source__
assert len({pyobjhash([train]), pyobjhash([report])}) == 2
