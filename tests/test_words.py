"""The rules of the house for comments, docstrings and messages, which people read."""

import ast
import functools
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

ROOT = Path(__file__).parent.parent
CPP = (".cc", ".h", ".inc", ".cu", ".cuh")
# Files of other projects, and names that examples of use make up.
ELSEWHERE = {
    *("infiniband/verbs.h", "net.cc", "openssl/evp.h", "prims_simple.h"),
    *("allreduce.xml", "gpu.json", "plan.json", "script.py", "synthesized.xml", "train.py"),
    *("jaxcoll/tuning.json", "planes-quick.json"),
}
NOT_READ = {"tests/test_words.py"}  # it has examples of what it refuses


@dataclass
class Text:
    """Comments that follow each other, or literals that the language joins."""

    path: str
    line: int
    kind: Literal["comment", "docstring", "string", "prose"]
    words: str


@functools.cache
def tracked() -> list[str]:
    """The files that git tracks, or would track."""
    return subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()


def joined(line: str) -> str:
    """A line as the comment before it goes on with it; an empty one ends the paragraph."""
    return f" {line}" if line else "\n\n"


def python_texts(path: str, source: str) -> Iterator[Text]:
    text, end = None, 0  # `end`: the line of a comment that the next line may continue
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        own = token.line.strip().startswith(token.string.splitlines()[0]) if token.string else False
        if token.type == tokenize.COMMENT:
            words = token.string.lstrip("#! ")
            if text and text.kind == "comment" and own and end + 1 == token.start[0]:
                text.words += joined(words)
            else:
                yield from [text] if text else []
                text = Text(path, token.start[0], "comment", words)
            end = token.start[0] if own else 0
        elif token.type == tokenize.STRING or "FSTRING" in tokenize.tok_name[token.type]:
            try:
                words = str(ast.literal_eval(token.string))
            except (SyntaxError, ValueError):
                words = token.string  # part of a formatted literal
            if text and text.kind == "string":
                text.words += words
            else:
                yield from [text] if text else []
                kind = "docstring" if own and token.string.endswith('"""') else "string"
                text = Text(path, token.start[0], kind, words)  # type: ignore[arg-type]
        elif token.type != tokenize.NL:
            yield from [text] if text else []
            text = None
    yield from [text] if text else []


CPP_TEXT = re.compile(
    r"//+ ?(?P<comment>[^\n]*)|/\*(?P<block>.*?)\*/"
    r'|"(?P<string>(?:\\.|[^"\\\n])*)"' + r"|'(?:\\.|[^'\\\n])'",
    re.DOTALL,
)


def cpp_texts(path: str, source: str) -> Iterator[Text]:
    text, end, joins = None, 0, False
    for match in CPP_TEXT.finditer(source):
        between = source[end : match.start()]
        end = match.end()
        words = match["comment"] or match["block"] or match["string"] or ""
        kind: Literal["comment", "string"] = "string" if match["string"] is not None else "comment"
        own = not source[source.rfind("\n", 0, match.start()) + 1 : match.start()].strip()
        follows = not between.strip() and between.count("\n") <= 1
        if text and text.kind == kind and follows and joins and (own or kind == "string"):
            text.words += words if kind == "string" else joined(words.strip())
        else:
            yield from [text] if text else []
            text = Text(path, source.count("\n", 0, match.start()) + 1, kind, words.strip())
            joins = own or kind == "string"
    yield from [text] if text else []


def markdown_texts(path: str, source: str) -> Iterator[Text]:
    """Paragraphs, items of lists and cells of tables; no headings, and no code."""
    text, code = None, False
    for number, line in enumerate(source.splitlines(), 1):
        fence = line.lstrip().startswith("```")
        code ^= fence
        words = re.sub(r"^\s*(?:[-*>]|\d+\.) +", "", line)
        begins = words != line or line.startswith("|")
        if fence or code or not line.strip() or line.startswith("#") or begins:
            yield from [text] if text else []
            text = None
        if fence or code or not line.strip() or line.startswith("#"):
            continue
        if line.startswith("|"):
            yield from (Text(path, number, "prose", c.strip()) for c in line.split("|") if c)
        elif text:
            text.words += f" {words}"
        else:
            text = Text(path, number, "prose", words)
    yield from [text] if text else []


@functools.cache
def texts() -> list[Text]:
    """Everything that people read in our sources but the names."""
    found: list[Text] = []
    for path in tracked():
        if "third_party" in path or path in NOT_READ or not (ROOT / path).exists():
            continue
        if path.endswith(".py"):
            found += python_texts(path, (ROOT / path).read_text())
        elif path.endswith(CPP):
            found += cpp_texts(path, (ROOT / path).read_text())
        elif path.endswith(".md"):
            found += markdown_texts(path, (ROOT / path).read_text())
        elif path.endswith(("CMakeLists.txt", ".ci/run", ".sh")):
            for number, line in enumerate((ROOT / path).read_text().splitlines(), 1):
                if line.strip().startswith("#"):
                    found.append(Text(path, number, "comment", line.strip("# ")))
    assert len(found) > 10_000, "the sources have more comments than that"
    return found


# --- sentences ----------------------------------------------------------------------------------

# A relative clause or a genitive without the noun that it belongs to. A question may begin so.
NO_SUBJECT = re.compile(
    r"(?:^|[.!?:;]\)? |\n\n)(?:Who|Whoever|Whom|Whose|What|Whatever|Of) "
    r"(?:[^.?!]|[.?!](?=\w))*(?:[.!]|$)"
)
UNCLEAR = re.compile(r"\b(?:is|are|was|were|been|be) (?:through|missed)\b(?! the| by)")
# Phrases that readers take for translations, and the usual ones.
UNUSUAL = {
    r"(?<!there )\b(?:is|are|was|were) no (?!longer|more|less)(?=\w)": "is not a",
    r"\b(?:is|are|was|were) not there\b": "does not exist",
    r"\bnot known here\b": "unknown",
    r"\bso many\b": "this many",
    r"\bhow-manieth\b": "the number of",
    r"\b(?:has|have|had) become of\b": "the state of",
    r"\bfor ever\b": "forever",
    r"\bby way of\b": "through",
    r"\bat hand\b": "available, current",
    r"\bunder way\b": "in flight, in progress",
    r"\bputs? aside\b": "stores",
    r"\bin good order\b": "normally",
    r"\bstands? (?:in|beside|behind)\b": "is in, is next to, follows",
    r"\blies? (?:in|where)\b|\bwhere (?:it|they) lies?\b": "is in, in place",
}


def sentences_to_mend(words: str) -> list[str]:
    paragraphs = re.sub(r"(?<!\n)\n[ \t]*(?!\s)", " ", words.replace("\\n", "\n"))
    paragraphs = re.sub(r"\n\s*\n\s*", "\n\n", re.sub(r" +", " ", paragraphs)).strip()
    found = [match[0].strip() for match in NO_SUBJECT.finditer(paragraphs)]
    return found + [match[0] for match in UNCLEAR.finditer(paragraphs)]


def unusual_phrases(words: str) -> list[str]:
    words = re.sub(r"\s+", " ", words)
    return [
        f"{match[0]!r}: say {usual!r}"
        for phrase, usual in UNUSUAL.items()
        for match in re.finditer(phrase, words, re.IGNORECASE)
    ]


def test_every_sentence_has_a_subject() -> None:
    """No sentence begins with Who, What or Of and no noun; no write "is through"."""
    found = [
        f"{text.path}:{text.line}: {sentence}"
        for text in texts()
        for sentence in sentences_to_mend(text.words)
    ]
    assert not found, "say the subject:\n" + "\n".join(found)


@pytest.mark.parametrize(
    "words",
    [
        "Who waits for this process need not wait for its end.",
        "Ready. What comes later is dropped.",
        "Ready.\n\nWhat comes later\nis dropped. The rest stays.",
        "What comes later is dropped",
        "Of rank 0, in bytes.",
        "The window (What is free in it).  Whoever has the keys may write.",
        "What version 0.10 has, e.g. two axes.",
        "The write is through.",
        "A peer that died is missed at once.",
    ],
)
def test_a_sentence_without_a_subject_would_be_seen(words: str) -> None:
    assert sentences_to_mend(words)


def test_an_empty_line_of_a_comment_ends_a_paragraph() -> None:
    lines = ["Links, by peer", "", "What to send.", "", "Chunks."]
    for mark, texts_of in (("#", python_texts), ("//", cpp_texts)):
        source = "".join(f"{mark} {line}".rstrip() + "\n" for line in lines) + "x = 1\n"
        (text,) = texts_of("a", source)
        assert sentences_to_mend(text.words) == ["What to send."]


@pytest.mark.parametrize(
    "words",
    [
        "What does this rank send? Chunks.",
        "The peer says what it has, and of what it is made.",
        "The way is through the slots.",
    ],
)
def test_questions_and_relative_clauses_are_sentences(words: str) -> None:
    assert not sentences_to_mend(words)


def test_phrases_are_usual_ones() -> None:
    """In comments, docstrings and pages, and in the messages of Python."""
    found = [
        f"{text.path}:{text.line}: {phrase}"
        for text in texts()
        if text.kind != "string" or not text.path.endswith(CPP)
        for phrase in unusual_phrases(text.words)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "words",
    [
        "'1X' is no size.",
        "A rank that is not there.",
        "A call of so many\nbytes.",
        "It waits for ever.",
        "The reason stands in the store.",
        "Arrays are sent from where they lie.",
    ],
)
def test_unusual_phrases_would_be_seen(words: str) -> None:
    assert unusual_phrases(words)


@pytest.mark.parametrize(
    "words",
    [
        "There is no size.",
        "There\nare no packets.",
        "It is no longer needed.",
        "For every rank.",
        "X stands for any number.",
    ],
)
def test_usual_phrases_pass(words: str) -> None:
    assert not unusual_phrases(words)


def test_names_of_tests_have_subjects() -> None:
    """They are sentences, too."""
    name = re.compile(
        r"^ *def test_(?:who|whoever|what|of)_\w+|^TEST\w*\(\w+, *(?:Who|Whoever|What|Of)[A-Z]\w+"
        r"|^ *def test_\w+_is_(?:missed|through)\b",
        re.MULTILINE,
    )
    found = [
        f"{path}: {match[0].strip()}"
        for path in tracked()
        if path.startswith("tests/") and path.endswith((".py", ".cc")) and (ROOT / path).exists()
        for match in name.finditer((ROOT / path).read_text())
    ]
    assert not found, "\n".join(found)


# --- references ---------------------------------------------------------------------------------

FILE = re.compile(
    r"(?<![\w/.<>$}-])((?:[\w.-]+/)*[\w-]+\.(?:h|cc|py|inc|cuh?|md|json|yaml|xml))\b(?![\w/*(])"
)
MODULE = re.compile(r"(?<![\w./-])jaxcoll(?:\.\w+)+")


def test_files_that_comments_name_exist() -> None:
    """By their path from the top, or from any folder on their way."""
    there = set[str]()
    for path in tracked():
        parts = path.split("/")
        there |= {"/".join(parts[i:]) for i in range(len(parts))}
    missing = [
        f"{text.path}:{text.line}: {name}"
        for text in texts()
        for name in (FILE.findall(text.words) if text.kind in ("comment", "docstring") else [])
        if name not in there | ELSEWHERE and "DATE-COMMIT" not in name
    ]
    assert not missing, "\n".join(missing)


def defined(module: Path) -> set[str]:
    """Names at the top of a module, and those that a package's modules have."""
    names = set[str]()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)  # in __all__, or looked up when it is asked for
    return names


def names_something(dotted: str) -> bool:
    """Whether a dotted name leads to a module, or to something that a module has."""
    at = ROOT / "jaxcoll"
    for part in dotted.split(".")[1:]:
        if (at / part).is_dir() and at.is_dir():
            at = at / part
        elif (at / f"{part}.py").exists():
            at = at / f"{part}.py"
        elif at.suffix == ".py":
            return part in defined(at)
        else:
            return part in defined(at / "__init__.py") or part == "_jaxcoll"
    return True


def test_modules_that_comments_name_exist() -> None:
    missing = [
        f"{text.path}:{text.line}: {name}"
        for text in texts()
        for name in (MODULE.findall(text.words) if text.kind != "string" else [])
        if not names_something(name)
    ]
    assert not missing, "\n".join(missing)


def test_no_text_refers_to_what_readers_do_not_have() -> None:
    """Trackers and notes of the authors are not part of the project."""
    elsewhere = re.compile(r"\bissue \d+'s\b|\bissue #?\d+\b|\.\./shared\b")
    found = [
        f"{text.path}:{text.line}: {match[0]}"
        for text in texts()
        if not text.path.startswith("tests/")
        for match in elsewhere.finditer(text.words)
    ]
    assert not found, "\n".join(found)
