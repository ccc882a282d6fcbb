"""The rules of the house that neither compiler nor linter checks."""

import ast
import builtins
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxcoll import _environment

ROOT = Path(__file__).parent.parent
# Each with the layers it may include from, beside itself.
CPP_LAYERS = {
    "base": set[str](),
    "schedule": {"base"},
    "transport": {"base"},
    "executor": {"base", "schedule", "transport"},
    "comm": {"base", "schedule", "transport", "executor"},
    "cuda": {"base", "schedule", "transport", "executor"},
    "sim": {"base", "schedule"},
    "xla": {"base", "schedule", "transport", "executor", "comm", "cuda"},
    "bindings": {
        *("base", "schedule", "transport", "executor", "comm", "cuda", "sim", "xla"),
    },
}
# A module imports from its own layer or lower ones. What stands here is every module there is.
PYTHON_LAYERS = [
    {"_environment", "_errors", "_files", "_handshake", "_host", "_native", "_version"},
    {"_connection", "_secret", "_store_thread"},
    {"_engine_links"},
    {"_dial", "_listener", "_loop_thread", "_reach", "_waiting"},
    {"_peer"},
    {
        *("_ir", "schedule", "_happens_before", "verify"),
        *("interop.__init__", "interop.goal", "interop.mscclpp"),
        *("interop.msccl", "interop.msccl_xml", "interop.command"),
    },
    {"_network", "_network_kinds", "topology", "_tuning"},
    {"_timeline", "_bounds"},
    {"simulate"},
    {"_engine_model", "_ranks"},
    {"_costs"},
    {"_sweep"},
    {"_crossovers", "_perfetto"},
    {"_page"},
    {"_simulate_command"},
    {"_jax_compat"},
    {"_custom_call", "_reshaping", "_shardings"},
    {"_bootstrap", "_primitive", "_program", "_select"},
    {"_rank"},
    {"_jax_plugin", "_presence", "_startup"},
    {"_communicator", "_autodiff", "_lowering"},
    {"_api"},
    {"_install"},
    {"_tuner"},
    {"debug", "info", "launch", "tune"},
    {"__init__", "__main__", "examples.__init__", "examples.digits"},
]
WITHOUT_JAX = set().union(*PYTHON_LAYERS[: PYTHON_LAYERS.index({"_jax_compat"})])
TOP_LEVEL = {
    *("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE", "CHANGELOG.md"),
    *(".ci", ".clang-format", ".clang-tidy", ".gitignore", ".pre-commit-config.yaml"),
    *("jaxcoll", "ffi", "tests", "benchmarks"),
}
LONGEST_FILE_LINES = 650


def files(pattern: str, *folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob(pattern))]
    assert found, f"no {pattern} in {folders}"
    return found


def module_name(path: Path) -> str:
    """jaxcoll/examples/digits.py -> examples.digits"""
    return ".".join(path.relative_to(ROOT / "jaxcoll").with_suffix("").parts)


MODULES = {module_name(path): ast.parse(path.read_text()) for path in files("*.py", "jaxcoll")}


def imported(tree: ast.Module, package: str = "jaxcoll") -> set[str]:
    """Dotted names of everything a module imports, wherever in it; `from a import b` gives a.b."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {package}, line {node.lineno}"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def modules_imported(tree: ast.Module) -> set[str]:
    """Those of our own modules that a module imports."""
    ours = set()
    for name in imported(tree):
        parts = name.split(".")
        if parts[0] == "jaxcoll" and len(parts) > 1:
            ours |= {known for known in (parts[1], ".".join(parts[1:3])) if known in MODULES}
    return ours


def below(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


# --- C++ ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", CPP_LAYERS)
def test_cpp_includes_only_from_its_own_and_lower_layers(layer: str) -> None:
    allowed = CPP_LAYERS[layer] | {layer}
    for path in (ROOT / "ffi" / layer).rglob("*.[chi]*"):
        for line in path.read_text().splitlines():
            match = re.match(r'\s*#\s*include\s*([<"])([^>"]+)[>"]', line)
            if not match:
                continue
            quote, header = match.groups()
            if header.startswith("xla/ffi/api/"):
                assert layer == "xla", f"{path}: XLA's {header} outside of xla/"
            elif header.startswith(("cuda_", "cooperative_groups")):
                assert layer == "cuda", f"{path}: CUDA's {header} outside of cuda/"
            elif header.startswith("nanobind/") or header == "Python.h":
                assert layer == "bindings", f"{path}: {header} outside of bindings/"
            elif quote == '"':
                assert header.split("/")[0] in allowed, f"{path}: {header} is of a higher layer"
                assert (ROOT / "ffi" / header).exists(), f"{path}: {header} is not in ffi/"


def test_every_cpp_folder_is_a_layer() -> None:
    assert {path.name for path in (ROOT / "ffi").iterdir() if path.is_dir()} == set(CPP_LAYERS)


# What identifies a message within a schedule is written together in these files only; beside
# world.cc, which matches, they number messages, print them or send them over a wire.
NAMES_MESSAGES = {
    "schedule/program_builder.cc",
    "schedule/world.cc",
    "schedule/world.h",
    "bindings/schedule.cc",
    "cuda/cause.cc",
    "cuda/device_program.cc",
    "comm/notice.h",
}


def cpp_statements(text: str) -> list[str]:
    """Text between semicolons, without comments and literals."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)
    return re.sub(r'"(\\.|[^"\\\n])*"', '""', text).split(";")


def keys_messages(text: str) -> bool:
    """Whether a statement takes an op's channel and sequence, as the key of a message must."""
    return any(
        re.search(r"\bchannel\b", statement) and re.search(r"\bsequence\b", statement)
        for statement in cpp_statements(text)
    )


def test_a_schedule_is_matched_in_one_place() -> None:
    """schedule/world.cc: engines and the simulator ask it, and key no message themselves."""
    sources = {
        str(path.relative_to(ROOT / "ffi")): path.read_text()
        for pattern in ("*.cc", "*.h", "*.inc", "*.cu", "*.cuh")
        for path in files(pattern, "ffi")
    }
    keying = {name for name, text in sources.items() if keys_messages(text)}
    assert keying == NAMES_MESSAGES, "schedule/world.h matches sends and receives; take a World"
    named = re.compile(r"\b(?:struct|class|using|enum)\s+MessageKey\b|\bMessageKey\s*\(")
    declaring = {name for name, text in sources.items() if named.search(text)}
    assert declaring == {"schedule/world.h"}
    calling = {name for name, text in sources.items() if re.search(r"\bMatchMessages\(", text)}
    assert calling == {"schedule/world.h", "schedule/world.cc", "sim/graph.cc"}
    where = re.compile(r"std::string Where\(")
    assert [name for name, text in sources.items() if where.search(text)] == [
        "schedule/world.cc",
        "schedule/world.h",
    ]


@pytest.mark.parametrize(
    "matcher",
    [
        "sends.emplace(MessageKey{program.rank, op.peer, op.channel, op.sequence}, id).second",
        "if (sends.find({op.peer, op.rank, op.channel,\n op.sequence}) == sends.end()) return;",
        "for (;;) out.push_back({Pack(op.peer, op.channel, op.sequence), i});",
        "uint64_t key = uint64_t(peer) << 44 | uint64_t(channel) << 32 | uint32_t(sequence);",
        "std::tie(a.peer, a.channel, a.sequence) < std::tie(b.peer, b.channel, b.sequence)",
    ],
)
def test_a_second_matcher_would_be_seen(matcher: str) -> None:
    assert keys_messages(f"int x = 1; {matcher} int y = 2;")
    assert not keys_messages("int a = op.channel; // its sequence\n int b = op.sequence;")


# --- Python -------------------------------------------------------------------------------------


def test_every_python_module_has_a_layer() -> None:
    layered = set().union(*PYTHON_LAYERS)
    assert set(MODULES) <= layered, "give the new module a layer in PYTHON_LAYERS"


def test_python_imports_only_from_its_own_and_lower_layers() -> None:
    rank = {name: i for i, layer in enumerate(PYTHON_LAYERS) for name in layer}
    for name, tree in MODULES.items():
        for other in modules_imported(tree):
            assert rank[other] <= rank[name], f"jaxcoll/{name} imports {other}, of a higher layer"


@pytest.mark.parametrize("name", sorted(WITHOUT_JAX & set(MODULES)))
def test_modules_below_jax_do_not_import_it(name: str) -> None:
    for other in imported(MODULES[name]):
        assert other.split(".")[0] not in ("jax", "jaxlib"), f"{name} imports {other}"
    assert modules_imported(MODULES[name]) <= WITHOUT_JAX


def test_only_jax_compat_touches_private_jax() -> None:
    for name, tree in MODULES.items():
        if name == "_jax_compat":
            continue
        private = [n for n in imported(tree) if below(n, "jax._src") or below(n, "jaxlib")]
        assert not private, f"jaxcoll/{name} imports {private}"
        for node in ast.walk(tree):
            attribute = isinstance(node, ast.Attribute) and node.attr
            assert attribute != "_src", f"jaxcoll/{name}, line {node.lineno}"
            assert attribute != "__version_info__", f"jaxcoll/{name}, line {node.lineno}"


def test_only_native_imports_the_extension_module() -> None:
    importers = {
        name
        for name, tree in MODULES.items()
        if any(below(other, "jaxcoll._jaxcoll") for other in imported(tree))
    }
    assert importers == {"_native"}


def test_every_exception_is_a_jaxcoll_error() -> None:
    """Those that users meet are defined in one module; all derive from JaxcollError."""
    builtin = {
        name
        for name, value in vars(builtins).items()
        if isinstance(value, type) and issubclass(value, BaseException)
    }
    bases = {
        node.name: {ast.unparse(base) for base in node.bases}
        for tree in MODULES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }

    def ancestors(name: str) -> set[str]:
        return {name}.union(*(ancestors(base) for base in bases.get(name, ())))

    for name in bases:
        if name != "JaxcollError" and ancestors(name) & builtin:
            assert "JaxcollError" in ancestors(name), name


def test_every_public_name_has_a_docstring() -> None:
    """Functions and classes of public modules, and the private definitions they re-export."""
    import jaxcoll

    missing = [
        f"jaxcoll.{name}"
        for name in jaxcoll.__all__
        if callable(getattr(jaxcoll, name)) and not getattr(jaxcoll, name).__doc__
    ]
    for name, tree in MODULES.items():
        assert ast.get_docstring(tree), f"jaxcoll/{name} has no docstring"
        if name.startswith("_"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node in tree.body:
                public = not node.name.startswith("_")
                if public and not ast.get_docstring(node):
                    missing.append(f"jaxcoll.{name}.{node.name}")
    assert not missing


def test_import_starts_no_back_end() -> None:
    """jax.distributed.initialize must still be possible after `import jaxcoll`."""
    program = (
        "import jaxcoll, jax; from jax._src import xla_bridge; "
        "assert not xla_bridge.backends_are_initialized()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# --- environment variables ----------------------------------------------------------------------


def variables_read() -> set[str]:
    """Every JAXCOLL_ name that is a string of its own in the Python source, or handed to C++."""
    names = {variable.name for variable in _environment.VARIABLES if variable.engine}
    for name, tree in MODULES.items():
        if name != "_environment":
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    names |= {node.value} if re.fullmatch("JAXCOLL_[A-Z_]+", node.value) else set()
    return names


def test_the_table_of_environment_variables_is_complete() -> None:
    assert variables_read() == {variable.name for variable in _environment.VARIABLES}


def test_cpp_reads_no_environment_variables() -> None:
    """jaxcoll/_environment.py parses them for both languages."""
    for path in files("*.cc", "ffi") + files("*.h", "ffi") + files("*.cu*", "ffi"):
        assert not re.search(r"\b(secure_)?getenv\b|\benviron\b", path.read_text()), path


def test_only_one_module_reads_jaxcolls_variables_from_the_environment() -> None:
    for path in files("*.py", "jaxcoll"):
        read = re.findall(r"""environ(?:\.get\(|\[)\s*["'](JAXCOLL_\w+)""", path.read_text())
        assert not read, f"{path} reads {read} itself; ask _environment.values()"


def test_readme_shows_the_table_of_environment_variables() -> None:
    rows = [
        f"| `{v.name}` | {v.default} | {v.takes} | {v.meaning} |"
        for v in _environment.VARIABLES
        if not v.internal
    ]
    head = ["| variable | default | takes | what it does |", "|---|---|---|---|"]
    section = re.search(
        r"<!-- environment: begin.*?-->\n(.*?)<!-- environment: end", readme(), re.DOTALL
    )
    assert section is not None
    assert section[1].splitlines() == head + rows


# --- files --------------------------------------------------------------------------------------


def readme() -> str:
    return (ROOT / "README.md").read_text()


def test_top_level_holds_what_it_should_and_nothing_else() -> None:
    """What git tracks, or would track."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert {name.split("/")[0] for name in listed} == TOP_LEVEL


def test_no_source_file_is_too_long() -> None:
    for pattern in ("*.py", "*.cc", "*.h", "*.inc", "*.cu", "*.cuh"):
        for path in (
            p for f in ("jaxcoll", "ffi", "tests", "benchmarks") for p in (ROOT / f).rglob(pattern)
        ):
            lines = len(path.read_text().splitlines())
            assert lines <= LONGEST_FILE_LINES, f"{path}: {lines} lines; give each idea a file"


def test_no_cpp_line_is_too_long() -> None:
    """clang-format leaves comments alone, since some are tables."""
    patterns = ("*.cc", "*.h", "*.inc", "*.cu", "*.cuh")
    for path in [path for pattern in patterns for path in files(pattern, "ffi")] + files(
        "*.cc", "tests"
    ):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert len(line) <= 100, f"{path}:{number}: {len(line)} columns"


def test_readme_has_one_line_for_each_command() -> None:
    """.ci/run takes the test command from here."""
    commands = [line for line in readme().splitlines() if line.startswith("python3 -m venv .venv")]
    assert len(commands) == 2
    assert sum("pytest" in command for command in commands) == 1
    assert sum("jaxcoll.examples.digits" in command for command in commands) == 1
