"""Write the reference of the language, ``docs/reference/language/``, from the docstrings.

The pages go by concept, in the order in which the tutorial meets them. Every name of ours in `pylightnix.__all__` stands on
one page; a test demands that, and that the pages in the repository are what this writes. Signatures and the strings under
attributes are read from the source (by griffe), so that every version of Python writes the same pages.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import griffe

import pylightnix

REPOSITORY = Path(__file__).resolve().parents[1]
REFERENCE = REPOSITORY / "docs" / "reference" / "language"
PACKAGE = "pylightnix"
WIDTH = 110


class Page(NamedTuple):
    slug: str
    title: str
    about: str
    names: str
    """Names of `pylightnix`, or of one of its modules (``either.Either``), in the order in which they are shown."""


PAGES = [
    Page(
        "stores",
        "Stores",
        "Where things are kept. Every function that works on a store takes `S`; None stands for the current one.",
        """fsinit StorageSettings mkSS current_storage setstorage tlstorage fsroot fsstorage fstmpdir storagename
        assert_valid_storage PYLIGHTNIX_STORE_VERSION""",
    ),
    Page(
        "configs",
        "Configs",
        "A config says in JSON values what is to be made. Its hash is the name of what is made.",
        """mkconfig Config RConfig selfref PYLIGHTNIX_SELF_TAG mkrefpath RefPath cfgdict cfgname cfgdeps cfgsp cfgserialize cfghash
        cfgcattrs ConfigAttrs resolve assert_valid_config assert_serializable assert_valid_dict assert_rref_deps""",
    ),
    Page(
        "stages",
        "Stages, derivations, closures",
        "A stage registers derivations; `instantiate` collects what a stage needs into a closure.",
        """mknode command source fetchurl fetchurl2 fetchlocal unpack UnpackLimits mkdrv mkdrv_
        instantiate Stage StageResult InstantiateArg Derivation Closure Registry mkregistry
        current_registry setregistry tlregistry mkclosure isclosure redefine realized assert_valid_closure assert_have_realizers""",
    ),
    Page(
        "builds",
        "Realizers and builds",
        "A realizer fills folders with what a derivation describes. `build_wrapper` makes one of a function.",
        """build_wrapper build_wrapper_ Build build_outpath build_outpaths build_config build_path build_paths build_deref build_deref_
        build_name build_context build_cattrs build_environ build_markstart build_markstop build_markstop_noexcept BuildArgs mkbuildargs
        Realizer RealizerO RealizeArg Output output_realizer output_validate mkrealization Options with_options options_of""",
    ),
    Page(
        "autostage",
        "Stages of functions",
        "Decorators that make a stage of a function: its arguments are the config, and its code is part of it.",
        """autostage autodrv Attrs realizeU unroll unrollR autostage_ autodrv_ wrapsig
        pyobjhash code_manifest CodeManifest CodeEntry UnseenCode""",
    ),
    Page(
        "matchers",
        "Matchers",
        "A matcher says which of a derivation's realizations count, or demands a build.",
        """match_only match_latest match_some match_exact match_all match Matcher MatcherO output_matcher Key texthash latest exact""",
    ),
    Page(
        "realizing",
        "Realizing",
        "From a closure to realizations: what is there is used again, the rest is built.",
        """realize realize1 realizeMany realize_async evaluate Context realizeSeq RealizeSeqGen unpack_closure_arg_
        mkcontext context_deref context_derefpath context_add context_eq context_serialize assert_valid_context""",
    ),
    Page(
        "lenses",
        "Lenses",
        "Looking through configs, references and JSON artifacts with attributes.",
        """mklens Lens LensContext MissingKey traverse mutate lens_repr val2dict val2rref val2path""",
    ),
    Page(
        "inspecting",
        "Looking at a store",
        "References, what they stand for, and shell-like commands.",
        """DRef RRef isdref isrref isrefpath isselfpath rref2dref dref2path rref2path drefcfgpath path2dref path2rref rrefpath2path
        drefcfg drefcfg_ drefattrs rrefattrs rrefctx drefdeps1 drefdeps rrefdeps1 rrefdeps alldrefs allrrefs drefrrefs drefrrefsC
        rootdrefs rootrrefs rrefdata rrefbstart rrefbstop rrefbdelta reserved PYLIGHTNIX_RESERVED
        lsref catref find du diff shell shellref linkrref linkrrefs linkdref lsrref lsrref_ lsdref_ catrref_
        mkdref undref mkrref unrref trimhash mkname Name Hash HashPart PYLIGHTNIX_NAMEPAT
        assert_valid_dref assert_valid_rref assert_valid_hash assert_valid_hashpart assert_valid_name assert_valid_refpath""",
    ),
    Page(
        "removing",
        "Removing what is not needed",
        "Nothing is removed that something else was made from, or that somebody is building with.",
        """rmref store_gc gc gc_candidates gc_exceptions diskspace_h""",
    ),
    Page(
        "either",
        "Failures as realizations",
        "A failed build is stored as a LEFT realization, in place of an exception.",
        """mkdrvE realizeE realizeManyE Either either_isRight either_isLeft either_status
        either_paths either_realizer either_matcher either_loadR either_validate mkright
        mkleft ExceptionText""",
    ),
    Page(
        "repl",
        "Being the realizer",
        "A realization that pauses before a derivation, for notebooks and shells.",
        """repl_realize ReplHelper repl_continue repl_continue1 repl_continueMany repl_build repl_continueBuild repl_cancelBuild
        repl_buildargs repl_result repl_rref repl_rrefs repl_cancel ERR_INVALID_RH ERR_INACTIVE_RH""",
    ),
    Page(
        "archives",
        "From store to store",
        "Realizations go along with all that they were made from.",
        """spack sunpack copyclosure deref_""",
    ),
    Page(
        "errors",
        "Errors",
        "Every error that is raised on purpose is a `PylightnixException`. Its `code` is stable.",
        """PylightnixException Misuse InvalidConfig InvalidName InvalidReference InvalidStageCall ConflictingArguments NoRegistry
        ForeignDerivation CycleError CodeKeyError TargetNotFound BuildError PromiseException InvalidOutput InvalidTree CommandFailed
        InvalidSource SourceChanged UnpackFailed
        FetchFailed FetchUnavailable WrongChecksum InvalidChecksum InvalidURL FetchSetupError
        RemoteFailure MatcherRefused InvalidMatch AmbiguousMatch NotRealized MissingDerivation MissingRealization InUse
        InvalidStorage StoreExists StoreError StoreBusy StoreFull StoreReadOnly StoreForeign StoreTooNew StoreCorrupt StoreIOError
        InvalidArchive ArchiveIOError""",
    ),
    Page(
        "utilities",
        "Utilities",
        "Files, folders, hashes, time and graphs, for programs around stages.",
        """Path SPath __version__ readstr writestr readjson writejson tryread tryreadstr tryreadjson tryread_def tryreadstr_def
        tryreadjson_def trywrite maybereadstr maybereadjson trycatch
        filehash dirhash dirshash dirhash_iter datahash dicthash
        dirrm dircp dirrw dirro dirchmod filero filerw dirsize forcelink logdir mklogdir
        timestring parsetime tzlocal PYLIGHTNIX_TIME
        traverse_dict traverse_list traverse_tuple Mutator scanref_dict scanref_list kahntsort dagroots encode concat""",
    ),
]

INDEX = """\
What `from pylightnix import …` offers, by concept, in the order of the [tutorial](../../tutorial.md)."""

SECTION = re.compile(r"^(Args|Returns|Yields|Raises|Attributes):$")
SECTION_TITLES = {"Args": "Arguments"}
ENTRY = re.compile(r"^([\w.*`]+(?:, [\w.*`]+)*): ")
NAME_IN_TEXT = re.compile(r"(?<!`)`([A-Za-z_][\w.]*)`(?!`)")


def listed() -> Iterator[tuple[Page, str]]:
    """Yield each name with its page."""
    for page in PAGES:
        for name in page.names.split():
            yield page, name


def anchor(name: str) -> str:
    return name.lower().replace(".", "")


def definition(module: griffe.Module, name: str) -> griffe.Object:
    """Return where `name` is defined, through imports. A function that is named like its module would else be taken for that."""
    holder, _, last = name.rpartition(".")
    if holder:
        return definition(module[holder], last)
    target = module.imports.get(last)
    if target is None:
        found: griffe.Object = module[last]
        return found
    whole, _, last = target.rpartition(".")
    return definition(module.modules_collection[whole], last)


# --- signatures ---------------------------------------------------------------------------------


def value_text(value: object) -> str:
    """Return a value as Python writes it: versions of griffe differ in the quotes around text."""
    text = str(value)
    try:
        return ast.unparse(ast.parse(text, mode="eval"))
    except SyntaxError:
        return text


def parameter_text(parameter: griffe.Parameter) -> str:
    kinds = griffe.ParameterKind
    stars = "*" if parameter.kind is kinds.var_positional else "**" if parameter.kind is kinds.var_keyword else ""
    text = stars + parameter.name
    if parameter.annotation is not None:
        text += f": {parameter.annotation}"
    if parameter.default is not None and not stars:
        text += f" = {value_text(parameter.default)}" if parameter.annotation is not None else f"={value_text(parameter.default)}"
    return text


def parameters_text(function: griffe.Function) -> list[str]:
    """Return the parameters as they are written, `self` left out, with ``*`` and ``/`` where they belong."""
    parameters = list(function.parameters)
    if parameters and parameters[0].name in ("self", "cls"):
        parameters = parameters[1:]
    texts: list[str] = []
    for index, parameter in enumerate(parameters):
        before = parameters[index - 1].kind if index else None
        if before is griffe.ParameterKind.positional_only and parameter.kind is not before:
            texts.append("/")
        if parameter.kind is griffe.ParameterKind.keyword_only and before not in (parameter.kind, griffe.ParameterKind.var_positional):
            texts.append("*")
        texts.append(parameter_text(parameter))
    return texts


def call_text(head: str, parameters: list[str], tail: str) -> str:
    line = f"{head}({', '.join(parameters)}){tail}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{head}(", *(f"    {text}," for text in parameters), f"){tail}"])


def is_error(name: str) -> bool:
    found = getattr(pylightnix, name, None)
    return isinstance(found, type) and issubclass(found, pylightnix.PylightnixException)


def fields_of(item: griffe.Class) -> list[griffe.Attribute]:
    """Return the fields of a named tuple or data class."""
    attributes = [each for each in item.members.values() if isinstance(each, griffe.Attribute)]
    return [each for each in attributes if each.annotation is not None and not each.name.startswith("_")]


def signature(name: str, item: griffe.Object) -> str:
    shown = name.rpartition(".")[2]
    if isinstance(item, griffe.Function):
        head = "async def " if "async" in item.labels else "def "
        return call_text(f"{head}{shown}", parameters_text(item), f" -> {item.returns}" if item.returns is not None else "")
    if isinstance(item, griffe.Class):
        bases = ", ".join(str(base) for base in item.bases)
        if is_error(shown) or shown == "UnseenCode":
            return f"class {shown}({bases})"
        constructor = item.members.get("__init__")
        if isinstance(constructor, griffe.Function) and "dataclass" not in item.labels:
            return call_text(f"class {shown}", parameters_text(constructor), "")
        fields = fields_of(item)
        if fields:
            texts = [
                f"{each.name}: {each.annotation}" + (f" = {value_text(each.value)}" if each.value is not None else "") for each in fields
            ]
            return call_text(f"class {shown}", texts, "")
        return f"class {shown}({bases})" if bases else f"class {shown}"
    if not isinstance(item, griffe.Attribute):
        raise TypeError(f"{item.path} is a {item.kind.value}, which the reference cannot show")
    annotation = str(item.annotation) if item.annotation is not None else ""
    value = value_text(item.value) if item.value is not None else "…"
    if annotation in ("TypeAlias", "") or annotation.startswith("Final"):
        return f"{shown} = {value}"
    return f"{shown}: {annotation}"


# --- docstrings ---------------------------------------------------------------------------------


def entries(body: list[str]) -> list[str]:
    """Return the entries of a section, one line each: what is indented deeper goes on with the entry before it."""
    found: list[str] = []
    for line in textwrap.dedent("\n".join(body)).split("\n"):
        if line.startswith(" ") and found:
            found[-1] += " " + line.strip()
        elif line.strip():
            found.append(line.strip())
    return found


def section_text(title: str, body: list[str]) -> list[str]:
    lines = [f"**{SECTION_TITLES.get(title, title)}**", ""]
    if title in ("Returns", "Yields"):
        return [*lines, *textwrap.dedent("\n".join(body)).strip().split("\n"), ""]
    for entry in entries(body):
        names = ENTRY.match(entry)
        if names:
            head = ", ".join(f"`{name.strip('`')}`" for name in names[1].split(", "))
            lines.append(f"- {head}: {entry[names.end() :]}")
        else:
            lines.append(f"- {entry}")
    return [*lines, ""]


def docstring_text(docstring: str) -> str:
    """Return a docstring in Google form as Markdown."""
    lines = docstring.strip().split("\n")
    result: list[str] = []
    index = 0
    while index < len(lines):
        header = SECTION.match(lines[index])
        index += 1
        if header is None:
            result.append(lines[index - 1])
            continue
        body = []
        while index < len(lines) and (lines[index].startswith(" ") or not lines[index].strip()):
            body.append(lines[index])
            index += 1
        result += section_text(header[1], body)
    return "\n".join(result).strip()


def linked(text: str, page: Page, own: str, places: Mapping[str, Page]) -> str:
    """Return `text` with the names of the language as links to where they are described."""

    def link(match: re.Match[str]) -> str:
        name = match[1]
        place = places.get(name)
        if place is None or name == own:
            return match[0]
        return f"[`{name}`]({'' if place == page else place.slug + '.md'}#{anchor(name)})"

    return NAME_IN_TEXT.sub(link, text)


def members_text(item: griffe.Class) -> list[str]:
    """Return a list of what a class has to offer, as far as it is described."""
    lines = []
    for member in item.members.values():
        if member.name.startswith("_") or member.docstring is None:
            continue
        if isinstance(member, griffe.Function):
            lines.append(f"- `{member.name}({', '.join(parameters_text(member))})`: {one_line(member.docstring.value)}")
        else:
            lines.append(f"- `{member.name}`: {one_line(member.docstring.value)}")
    return lines


def one_line(docstring: str) -> str:
    """Return a member's description in one paragraph; what it raises is told in words."""
    text, _, raises = docstring.strip().partition("\nRaises:\n")
    told = " ".join(text.split())
    return told + (f" Raises {'; '.join(entries(raises.split(chr(10))))}" if raises else "")


# --- pages --------------------------------------------------------------------------------------


def entry_text(name: str, item: griffe.Object, page: Page, places: Mapping[str, Page]) -> str:
    shown = name.rpartition(".")[2]
    if item.docstring is None:
        raise ValueError(f"{item.path} has no docstring; a constant or an alias has one in a string under it")
    parts = [f"## `{name}`", f"```py\n{signature(name, item)}\n```", linked(docstring_text(item.docstring.value), page, name, places)]
    if isinstance(item, griffe.Class) and not is_error(shown):
        members = members_text(item)
        if members:
            parts.append("**Members**\n\n" + linked("\n".join(members), page, name, places))
    if is_error(shown):
        error = getattr(pylightnix, shown)
        parts.append(f"Code `{error.code}`, exit status {error.exit_status}.")
    return "\n\n".join(parts)


def page_text(page: Page, package: griffe.Module, places: Mapping[str, Page]) -> str:
    number = PAGES.index(page)
    turns = ["[All pages](README.md)"]
    if number:
        turns.append(f"before: [{PAGES[number - 1].title}]({PAGES[number - 1].slug}.md)")
    if number + 1 < len(PAGES):
        turns.append(f"next: [{PAGES[number + 1].title}]({PAGES[number + 1].slug}.md)")
    names = page.names.split()
    parts = [
        f"# {page.title}",
        linked(page.about, page, "", places),
        ", ".join(f"[`{name}`](#{anchor(name)})" for name in names),
        *(entry_text(name, definition(package, name), page, places) for name in names),
        "; ".join(turns),
    ]
    return "\n\n".join(parts) + "\n"


def index_text() -> str:
    parts = [
        "# The language",
        INDEX,
        "These pages are written by `make docs` from the docstrings.",
        "\n".join(f"{n}. [{page.title}]({page.slug}.md): {page.about}" for n, page in enumerate(PAGES, 1)),
        "## All names",
        ", ".join(
            f"[`{name}`]({page.slug}.md#{anchor(name)})" for page, name in sorted(listed(), key=lambda each: (each[1].lower(), each[1]))
        ),
    ]
    return "\n\n".join(parts) + "\n"


def reference() -> dict[str, str]:
    """Return the pages: {file name: text}."""
    package = griffe.load(PACKAGE, search_paths=[str(REPOSITORY / "src")])
    assert isinstance(package, griffe.Module)
    places = {name: page for page, name in listed()}
    return {"README.md": index_text(), **{f"{page.slug}.md": page_text(page, package, places) for page in PAGES}}


def main() -> None:
    """Write the pages, and remove those that are no more."""
    pages = reference()
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for path in REFERENCE.glob("*.md"):
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        (REFERENCE / name).write_text(text)


if __name__ == "__main__":
    main()
