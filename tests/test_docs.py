"""The documentation: its programs run, its commands parse, and the files that it names exist.

A ```python block runs, with those before it on its page, on eight CPU devices; pages share a
process but no names. A ```text block that follows at once is what the program prints, where `...`
stands for any text. `<!-- no-run: reason -->` before a block leaves it at compiling, and so does
`<!-- needs: module -->` where that module is not installed. A ```console block holds commands
behind `$ `, which the commands' parsers must take.
"""

import contextlib
import importlib
import importlib.util
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
FENCE = re.compile(r"^( *)```([a-z]+)?\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
# Runs pages: for each the output of each block, and the traceback that ended it.
RUNNER = """
import contextlib, io, json, sys, traceback
import jaxcoll
results = {}
for page, blocks in json.load(sys.stdin).items():
    space, outputs, failure = {"__name__": "__main__"}, [], ""
    for line, text in blocks:
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said):
                exec(compile("\\n" * line + text, page, "exec"), space)
        except BaseException:
            failure = traceback.format_exc()
            break
        outputs.append(said.getvalue())
    jaxcoll.uninstall()
    results[page] = {"outputs": outputs, "failure": failure}
json.dump(results, open(sys.argv[1], "w"))
"""


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    text: str
    line: int  # of its fence, from 1
    before: str  # the text between the block before it and this one


def blocks(name: str) -> list[Block]:
    text = (ROOT / name).read_text()
    found, end = [], 0
    for match in FENCE.finditer(text):
        lines = [line.removeprefix(match[1]) for line in match[3].splitlines()]
        line = text.count("\n", 0, match.start()) + 1
        before = text[end : match.start()].strip()
        found.append(Block(match[2] or "", "\n".join([*lines, ""]), line, before))
        end = match.end()
    return found


def runs(block: Block) -> bool:
    if block.language != "python" or re.search(r"<!-- no-run: .*-->$", block.before):
        return False
    needs = re.search(r"<!-- needs: (\w+) -->$", block.before)
    return needs is None or importlib.util.find_spec(needs[1]) is not None


def matches(wanted: str, printed: str) -> bool:
    pattern = ".*".join(re.escape(part) for part in wanted.strip().split("..."))
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


def test_the_programs_of_the_docs_run_and_print_what_they_say(tmp_path: Path) -> None:
    programs = {name: [(b.line, b.text) for b in blocks(name) if runs(b)] for name in NAMES}
    programs = {name: found for name, found in programs.items() if found}
    assert len(programs) > 5
    finished = subprocess.run(
        [sys.executable, "-c", RUNNER, str(tmp_path / "results.json")],
        input=json.dumps(programs),
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        },
    )
    assert finished.returncode == 0, finished.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    faults = [result["failure"] for result in results.values() if result["failure"]]
    assert not faults, "\n".join(faults)
    for name in programs:
        outputs = iter(results[name]["outputs"])
        previous: str | None = None  # what the block before has printed
        for block in blocks(name):
            if block.language == "text" and previous is not None and not block.before:
                where = f"{name}:{block.line}"
                assert matches(block.text, previous), f"{where}: the program prints\n{previous}"
            previous = next(outputs) if runs(block) else None


@pytest.mark.parametrize("name", NAMES)
def test_every_python_block_compiles(name: str) -> None:
    for block in blocks(name):
        if block.language == "python":
            compile("\n" * block.line + block.text, name, "exec")


def commands(name: str) -> list[tuple[int, list[str]]]:
    """The commands of a page's console blocks, as words."""
    found = []
    for block in blocks(name):
        if block.language == "console":
            for line in block.text.replace("\\\n", " ").splitlines():
                if line.startswith("$ "):
                    found.append((block.line, shlex.split(line[2:], comments=True)))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_command_parses(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for line, words in commands(name):
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        where = f"{name}:{line}: {shlex.join(words)}"
        if words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2]) is not None, where
        elif words[:1] == ["python"]:
            # A reader's own file has a name without a folder.
            assert "/" not in words[1] or (ROOT / words[1]).is_file(), where
        elif words[:1] == ["jaxcoll"]:
            command = importlib.import_module(f"jaxcoll._cli.{words[1]}")
            try:
                if words[1] == "verify" or words[1:3] == ["schedule", "show"]:  # quick ones
                    assert command.main(words[2:]) == 0, where
                else:
                    command.parser().parse_args(words[2:])
            except SystemExit as end:
                if end.code:
                    pytest.fail(f"{where}\n{capsys.readouterr().err}")


def test_the_blocks_of_the_docs_are_of_known_languages() -> None:
    """Another spelling of a language would not be tested."""
    for name in NAMES:
        for block in blocks(name):
            assert block.language in ("python", "text", "console", "sh", "yaml", "cpp", ""), (
                f"{name}:{block.line}: {block.language}"
            )


@pytest.mark.parametrize("name", [*NAMES, "ffi/README.md"])
def test_links_and_paths_lead_to_files(name: str) -> None:
    text = (ROOT / name).read_text()
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert ((ROOT / name).parent / target).exists(), f"{name} links to {target}"
    for path in re.findall(r"`((?:ffi|jaxcoll|tests|benchmarks|docs)/[\w./-]*)`", text):
        # Where users keep a table; the path is relative to their cache.
        assert path == "jaxcoll/tuning.json" or (ROOT / path).exists(), f"{name} names {path}"


MODULES = ["jaxcoll", "jaxcoll.schedule", "jaxcoll.simulate", "jaxcoll.topology"]


@pytest.mark.parametrize("name", MODULES)
def test_the_reference_lists_every_public_function_and_class(name: str) -> None:
    pages = sorted((ROOT / "docs" / "reference").glob("*.md"))
    text = "\n".join(page.read_text() for page in pages)
    listed = set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))
    module = importlib.import_module(name)
    for public in module.__all__:
        value = getattr(module, public)
        # Constants and aliases stand with what takes them; an error or `verify` has one place.
        ours = getattr(value, "__module__", "").startswith("jaxcoll")
        if ours and (inspect.isclass(value) or inspect.isfunction(value)):
            places = {f"{home}.{public}" for home in {name, "jaxcoll", "jaxcoll.schedule"}}
            assert places & listed, f"{name}.{public}"


def test_the_page_of_commands_holds_every_command() -> None:
    """mkdocs fills it by this hook."""
    spec = importlib.util.spec_from_file_location("commands", ROOT / "docs" / "commands.py")
    assert spec is not None
    assert spec.loader is not None
    hook = importlib.util.module_from_spec(spec)
    columns = os.environ.get("COLUMNS")
    spec.loader.exec_module(hook)
    try:
        page = hook.on_page_markdown((ROOT / "docs/reference/commands.md").read_text())
    finally:
        with contextlib.suppress(KeyError):
            del os.environ["COLUMNS"]
        if columns is not None:
            os.environ["COLUMNS"] = columns
    for name in ("launch", "info", "verify", "schedule show", "schedule import", "tune"):
        assert f"## jaxcoll {name}\n" in page
    assert "--topology NETWORK" in page
    assert "\x1b" not in page
