"""docs/explanation/glossary.md holds: a noun is one thing, and the types that carry it are those
that the page names."""

import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/explanation/glossary.md"
CPP = (".cc", ".h", ".inc", ".cu", ".cuh")
# A type's definition: neither a declaration of it alone nor a use.
TYPE = re.compile(
    r"\b(?:enum\s+class|enum|struct|class|union)\s+(?:alignas\([^)]*\)\s*)?"
    r"(?P<name>[\w:]+)(?=(?:\s+final)?\s*(?::[^:;{}()][^;{}]*)?\{)"
)
NO_CODE = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)
TERMS = re.compile(r"(?i)program order")  # of the field


def table(heading: str) -> list[list[str]]:
    """The cells of the table whose header begins with these words."""
    rows, inside = [], False
    for line in PAGE.read_text().splitlines():
        inside = line.startswith(f"| {heading} |") or (inside and line.startswith("|"))
        if inside:
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows[2:]  # without the header


def names(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


NOUNS = {row[0]: names(row[2]) for row in table("noun")}
ONLY_IN = {row[0]: names(row[1]) for row in table("word")}


@functools.cache
def words(name: str) -> list[str]:
    """`RdmaRail_x` is rdma, rail, x; plurals count as singulars."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return [part.lower().removesuffix("s") for part in parts]


def has(name: str, noun: str) -> bool:
    """Whether a name contains a noun, as words of its own."""
    wanted, there = [word.removesuffix("s") for word in noun.split()], words(name)
    starts = range(len(there) - len(wanted) + 1)
    found = [i for i in starts if there[i : i + len(wanted)] == wanted]
    # In place is no place.
    return any(noun != "place" or i == 0 or there[i - 1] != "in" for i in found)


def types_in(text: str) -> list[str]:
    """Types that are defined, nested ones too; `A::B` is B, which A declares."""
    return [match["name"].split("::")[-1] for match in TYPE.finditer(NO_CODE.sub("", text))]


@functools.cache
def sources() -> dict[str, str]:
    return {
        str(path.relative_to(ROOT)): path.read_text()
        for folder in ("ffi", "jaxcoll")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in (*CPP, ".py") and "third_party" not in path.parts
    }


@functools.cache
def types() -> dict[str, list[str]]:
    """Where each C++ type is defined."""
    found: dict[str, list[str]] = {}
    for path, text in sources().items():
        for name in types_in(text) if path.endswith(CPP) else []:
            found.setdefault(name, []).append(path)
    assert len(found) > 300
    return found


def test_the_page_has_its_tables() -> None:
    assert len(table("noun")) == len(NOUNS) > 10, "a noun has one row"
    assert len(table("word")) == len(ONLY_IN) > 3
    assert set(ONLY_IN) <= set(NOUNS)


@pytest.mark.parametrize("noun", NOUNS)
def test_types_with_a_noun_in_their_names_are_those_of_the_glossary(noun: str) -> None:
    carrying = {name for name in types() if has(name, noun)}
    assert carrying == NOUNS[noun], f"docs/explanation/glossary.md names the types of a {noun}"


@pytest.mark.parametrize("noun", NOUNS)
def test_a_type_of_the_glossary_is_declared_once(noun: str) -> None:
    """Also as part of another class."""
    twice = {name: types()[name] for name in NOUNS[noun] if len(types().get(name, [])) != 1}
    assert not twice


def misplaced(word: str, path: str, text: str) -> list[str]:
    """The identifiers and words in a file, or in its path, that contain `word` where it must not
    stand."""
    if any(path == allowed or path.startswith(f"{allowed}/") for allowed in ONLY_IN[word]):
        return []
    found = re.findall(r"[A-Za-z]\w*", f"{path}\n{TERMS.sub('', text)}")
    return sorted({name for name in found if has(name, word)})


@pytest.mark.parametrize("word", ONLY_IN)
def test_a_word_stands_only_where_the_glossary_has_it(word: str) -> None:
    found = {path: misplaced(word, path, text) for path, text in sources().items()}
    assert not {path: names for path, names in found.items() if names}


@pytest.mark.parametrize("word", ONLY_IN)
def test_the_glossary_names_no_place_without_the_word(word: str) -> None:
    for allowed in ONLY_IN[word]:
        assert any(
            has(name, word)
            for path, text in sources().items()
            if path == allowed or path.startswith(f"{allowed}/")
            for name in re.findall(r"[A-Za-z]\w*", text)
        ), allowed


def test_types_are_found_wherever_they_are_declared() -> None:
    text = """
        namespace a { struct B; class C final : public D, E { enum F : int { x }; };
        class A::G { struct alignas(32) H {}; enum class I { y }; };
        void f() { struct J {}; const struct K k = {}; }  // struct L {
        struct M f(struct N n) { return n; } template <class T> struct O { T t; } }
    """
    assert types_in(text) == ["C", "F", "G", "H", "I", "J", "O"]


@pytest.mark.parametrize(
    ("name", "noun"),
    [
        ("SegmentPlan", "segment"),
        ("own_segments", "segment"),
        ("kMaxLanes", "lane"),
        ("OpListBuilder", "op list"),
        ("op_lists", "op list"),
        ("RDMASlot", "slot"),
        ("NodePlace", "place"),
    ],
)
def test_a_noun_in_a_name_would_be_seen(name: str, noun: str) -> None:
    assert has(name, noun)


@pytest.mark.parametrize(
    ("name", "noun"),
    [("InPlace", "place"), ("Replaces", "place"), ("planes", "lane"), ("OpKind", "op list")],
)
def test_other_words_are_no_nouns(name: str, noun: str) -> None:
    assert not has(name, noun)


@pytest.mark.parametrize(
    ("word", "path", "text"),
    [
        ("segment", "ffi/engine/slices/run.h", "int32_t segment = 0;"),
        ("segment", "ffi/engine/segments/run.h", ""),
        ("program", "ffi/schedule/world.cc", "const OpList& program = Find();"),
        ("lane", "ffi/gpu/abi/layout.h", "uint32_t free_lanes_;"),
    ],
)
def test_a_misplaced_word_would_be_seen(word: str, path: str, text: str) -> None:
    assert misplaced(word, path, text)


def test_program_order_is_a_term_of_the_field() -> None:
    assert not misplaced("program", "ffi/schedule/schedule.h", "// Ops start in program order.")
