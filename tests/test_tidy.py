"""The rules of the house that neither compiler nor linter checks."""

import ast
import builtins
import graphlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxcoll import _environment

ROOT = Path(__file__).parent.parent
# Each with the layers it may include from, beside itself.
_CALL = {"base", "schedule", "transport", "engine", "call"}
CPP_LAYERS = {
    "base": set[str](),
    "schedule": {"base"},
    "transport": {"base"},
    "engine": {"base", "schedule", "transport"},
    "call": _CALL,
    "comm": _CALL,
    "gpu": _CALL,
    "sim": {"base", "schedule"},
    "xla": _CALL | {"comm", "gpu"},
    "testing": _CALL | {"comm", "gpu", "bindings"},
    # `testing` only in builds with JAXCOLL_TESTING.
    "bindings": _CALL | {"comm", "gpu", "sim", "xla", "testing"},
    "third_party": set(),
}
# The rooms of gpu/, in the same way.
GPU_LAYERS = {
    "abi": set[str](),
    "device": {"abi"},
    "proxy": {"abi"},
    "host": {"abi", "device", "proxy"},
}
# A module imports from its own layer or lower ones. A package's name stands for all of its modules
# but those that a layer names themselves. Every module there is stands here.
PYTHON_LAYERS = [
    {"_environment", "_errors", "_files", "_log", "_native", "_text", "debug"},
    {"schedule", "interop"},
    {"sim", "simulate", "topology"},
    {"_hlo"},
    {"_job"},
    {"tune"},
    {"_jax.compat", "_jax.plugin"},
    {"_job.bootstrap"},  # asks JAX for the job's store, where it was not given one
    {"tune.rank"},
    {"_job.presence", "_job.membership"},
    {"_jax"},
    {"info"},
    {"_cli"},
    {"__init__", "__main__", "examples"},
]
WITHOUT_JAX = set().union(*PYTHON_LAYERS[: PYTHON_LAYERS.index({"_jax.compat", "_jax.plugin"})])
TOP_LEVEL = {
    *("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE", "CHANGELOG.md"),
    *("CONTRIBUTING.md", "mkdocs.yml", "docs"),
    *(".ci", ".clang-format", ".clang-tidy", ".gitignore", ".pre-commit-config.yaml"),
    *("jaxcoll", "ffi", "tests", "benchmarks"),
}
LONGEST_FILE_LINES = 650
CPP_PATTERNS = ("*.cc", "*.h", "*.inc", "*.cu", "*.cuh")


def files(pattern: str, *folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob(pattern))]
    found = [path for path in found if "third_party" not in path.parts]  # not ours to format
    assert found, f"no {pattern} in {folders}"
    return found


def module_name(path: Path) -> str:
    """jaxcoll/examples/digits.py -> examples.digits; a package has its own name."""
    parts = path.relative_to(ROOT / "jaxcoll").with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


MODULES = {module_name(path): ast.parse(path.read_text()) for path in files("*.py", "jaxcoll")}


def imported(tree: ast.Module | ast.If, package: str = "jaxcoll") -> set[str]:
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
    """Those of our own modules that a module imports, for more than types."""
    names = imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            names -= imported(ast.If(node.test, node.body, []))
    ours = set()
    for name in names:
        parts = name.split(".")[1:] if name.startswith("jaxcoll.") else []
        while parts and ".".join(parts) not in MODULES:
            parts.pop()  # a name within a module
        ours |= {".".join(parts)} if parts else set()
    return ours


def layer_of(name: str) -> str:
    """The entry of PYTHON_LAYERS that a module belongs to: itself, or the package that it is in."""
    entries = set().union(*PYTHON_LAYERS)
    while name not in entries and "." in name:
        name = name.rpartition(".")[0]
    return name


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
                assert layer in ("xla", "third_party"), f"{path}: XLA's {header} outside of xla/"
            elif header.startswith(("cuda_", "cooperative_groups")):
                assert layer in ("gpu", "testing"), f"{path}: CUDA's {header} outside of gpu/"
            elif header.startswith("nanobind/") or header == "Python.h":
                assert layer in ("bindings", "testing"), f"{path}: {header} outside of bindings/"
            elif quote == '"':
                assert header.split("/")[0] in allowed, f"{path}: {header} is of a higher layer"
                assert (ROOT / "ffi" / header).exists(), f"{path}: {header} is not in ffi/"


@pytest.mark.parametrize("room", GPU_LAYERS)
def test_rooms_of_gpu_include_only_from_lower_ones(room: str) -> None:
    for path in (ROOT / "ffi/gpu" / room).iterdir():
        for other in re.findall(r'#include "gpu/(\w+)/', path.read_text()):
            assert other in GPU_LAYERS[room] | {room}, f"{path} includes from gpu/{other}"


def test_every_cpp_folder_is_a_layer() -> None:
    assert {path.name for path in (ROOT / "ffi").iterdir() if path.is_dir()} == set(CPP_LAYERS)


# The fields that identify a message within a schedule are written together in these files only;
# beside world.cc, which matches, they number messages, print them or send them over a wire.
NAMES_MESSAGES = {
    "schedule/op_list_builder.cc",
    "schedule/world.cc",
    "schedule/world.h",
    "bindings/schedule.cc",
    "gpu/abi/cause.cc",
    "gpu/host/device_table.cc",
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
        for pattern in CPP_PATTERNS
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
        "sends.emplace(MessageKey{op_list.rank, op.peer, op.channel, op.sequence}, id).second",
        "if (sends.find({op.peer, op.rank, op.channel,\n op.sequence}) == sends.end()) return;",
        "for (;;) out.push_back({Pack(op.peer, op.channel, op.sequence), i});",
        "uint64_t key = uint64_t(peer) << 44 | uint64_t(channel) << 32 | uint32_t(sequence);",
        "std::tie(a.peer, a.channel, a.sequence) < std::tie(b.peer, b.channel, b.sequence)",
    ],
)
def test_a_second_matcher_would_be_seen(matcher: str) -> None:
    assert keys_messages(f"int x = 1; {matcher} int y = 2;")
    assert not keys_messages("int a = op.channel; // its sequence\n int b = op.sequence;")


# A name that stands for the GPU's class where the kernels are compiled for the host.
TYPES_REPLACED_IN_TESTS = {"DeviceAccess"}
CPP_TOKEN = re.compile(
    r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])'|\\\n"
    r"|(?P<namespace>\bnamespace\b[^;{}()=]*\{)"
    r"|\b(?:enum\s+class|enum|struct|class|union)\s+(?:alignas\([^)]*\)\s*)?"
    r"(?P<type>[\w:]+)(?=[^;{}()=]*\{)|[{}]",
    re.DOTALL,
)


def types_declared(text: str) -> set[str]:
    """Types that are defined at the scope of a namespace."""
    declared, scopes = set[str](), list[str]()
    for token in CPP_TOKEN.finditer(text):
        if token["namespace"]:
            scopes.append("namespace")
        elif token["type"]:
            if set(scopes) <= {"namespace"} and ":" not in token["type"]:
                declared.add(token["type"])
        elif token[0] == "{":
            scopes.append("block")
        elif token[0] == "}" and scopes:
            scopes.pop()
    return declared


def test_types_are_found_in_namespaces_only() -> None:
    text = "namespace a { struct B; class C final : D { enum E { x }; }; void f() { struct G {}; }"
    assert types_declared(text + "enum class H : int {}; struct C::I {}; }") == {"C", "H"}


def own_constants(text: str) -> set[tuple[str, str]]:
    """The namespace and the name of each constant that a file has for itself."""
    outer = re.search(r"^namespace ([\w:]+) \{$", text, re.MULTILINE)
    found: set[tuple[str, str]] = set()
    for own in re.findall(r"^namespace \{$(.*?)^\}  // namespace$", text, re.MULTILINE | re.DOTALL):
        names = re.findall(
            r"^(?:const|constexpr)\b[^;{}()=]*?\b(k\w+)\b *[\[={]", own, re.MULTILINE
        )
        found |= {(outer[1] if outer else "", name) for name in names}
    return found


def test_constants_of_two_files_have_two_names() -> None:
    """Builds compile neighbouring files as one; which are neighbours changes with their number."""
    places: dict[tuple[str, str], list[Path]] = {}
    for path in files("*.cc", "ffi"):
        for constant in own_constants(path.read_text()):
            places.setdefault(constant, []).append(path)
    assert len(places) > 100
    twice = {name: paths for name, paths in places.items() if len(paths) > 1}
    assert not twice, f"give each a name of its own, or one a header: {twice}"


def test_a_type_has_a_name_of_its_own() -> None:
    """One noun is one thing, in whatever namespace."""
    places: dict[str, list[Path]] = {}
    for pattern in CPP_PATTERNS:
        for path in files(pattern, "ffi", "tests/cpp"):
            for name in types_declared(path.read_text()):
                places.setdefault(name, []).append(path)
    assert len(places) > 300
    twice = {name: paths for name, paths in places.items() if len(paths) > 1}
    assert set(twice) == TYPES_REPLACED_IN_TESTS, twice


def test_every_cpp_header_is_included() -> None:
    included = {
        header
        for pattern in CPP_PATTERNS
        for path in files(pattern, "ffi", "tests/cpp")
        for header in re.findall(r'(?m)^ *# *include "([^"]+)"', path.read_text())
    }
    for pattern in ("*.h", "*.cuh", "*.inc"):
        for path in files(pattern, "ffi", "tests/cpp"):
            named = any(str(path).endswith(f"/{header}") for header in included)
            assert named, f"nobody includes {path}"


# --- Python -------------------------------------------------------------------------------------


def test_every_python_module_has_a_layer() -> None:
    layered = set().union(*PYTHON_LAYERS)
    assert {layer_of(name) for name in MODULES} == layered, "PYTHON_LAYERS has each, and no other"


# Modules that something else than an import starts: Python, JAX, a new process; or that users name.
ENTRY_POINTS = {"__init__", "__main__", "_jax.plugin", "tune.rank"}
FOR_USERS = {"interop", "simulate", "topology", "info", "debug"}


def test_every_python_module_is_imported_or_an_entry_point() -> None:
    """Packages count with their modules; commands are imported by their names."""
    imported_somewhere = ENTRY_POINTS | FOR_USERS
    for name, tree in MODULES.items():
        imported_somewhere |= modules_imported(tree) - {name}
    for name in set(MODULES) - imported_somewhere:
        package = any(other.startswith(f"{name}.") for other in MODULES)
        command = name.startswith("_cli.") and name.removeprefix("_cli.") in {
            arguments[0] for arguments in [*COMMANDS_WITHOUT_JAX, ["info"]]
        }
        example = name.startswith("examples.")
        assert package or command or example, f"nobody imports jaxcoll/{name}"


def test_python_imports_only_from_its_own_and_lower_layers() -> None:
    rank = {entry: i for i, layer in enumerate(PYTHON_LAYERS) for entry in layer}
    for name, tree in MODULES.items():
        for other in modules_imported(tree):
            higher = rank[layer_of(other)] > rank[layer_of(name)]
            assert not higher, f"jaxcoll.{name} imports {other}, of a higher layer"


def test_python_modules_do_not_import_each_other_in_a_circle() -> None:
    graphlib.TopologicalSorter(
        {name: modules_imported(tree) - {name} for name, tree in MODULES.items()}
    ).prepare()


@pytest.mark.parametrize("name", sorted(n for n in MODULES if layer_of(n) in WITHOUT_JAX))
def test_modules_below_jax_do_not_import_it(name: str) -> None:
    for other in imported(MODULES[name]):
        assert other.split(".")[0] not in ("jax", "jaxlib"), f"{name} imports {other}"
    for other in modules_imported(MODULES[name]):
        assert layer_of(other) in WITHOUT_JAX, f"{name} imports {other}"


def test_only_compat_touches_private_jax() -> None:
    for name, tree in MODULES.items():
        if name == "_jax.compat":
            continue
        private = [n for n in imported(tree) if below(n, "jax._src") or below(n, "jaxlib")]
        assert not private, f"jaxcoll/{name} imports {private}"
        for node in ast.walk(tree):
            attribute = isinstance(node, ast.Attribute) and node.attr
            assert attribute != "_src", f"jaxcoll/{name}, line {node.lineno}"
            assert attribute != "__version_info__", f"jaxcoll/{name}, line {node.lineno}"


def test_benchmarks_take_private_jax_from_compat_and_tests_from_one_file() -> None:
    """Scripts that tests start are strings, so that the text counts."""
    private = re.compile(r"^ *(?:\"[^\n]*)?\b(?:from|import) jax(?:\._src|lib)\b", re.MULTILINE)
    touching = {
        str(path.relative_to(ROOT))
        for path in files("*.py", "benchmarks", "tests")
        if private.search(path.read_text())
    }
    assert touching == {"tests/support/private_jax.py"}


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
        if any(part.startswith("_") for part in name.split(".")):
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
        "import jaxcoll, jax; "
        "jax.config.update('jax_num_cpu_devices', 3)"  # refused once there is a back end
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_import_sets_the_process_up_and_leaves_what_it_can_for_later() -> None:
    program = (
        "import os, sys, jaxcoll; loaded = set(sys.modules); "
        "assert 'jaxcoll._jax.startup' in loaded and 'PJRT_NPROC' in os.environ; "
        "assert not loaded & {'jaxcoll.sim', 'jaxcoll.simulate', 'networkx'}; "
        "assert jaxcoll.simulate.run and jaxcoll.topology.fat_tree and callable(jaxcoll.verify); "
        "assert not set(sys.modules) & {'networkx', 'yaml'}"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("PJRT_NPROC", "NPROC")}
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, env=environment)


# Each imports all that it needs before it ends.
COMMANDS_WITHOUT_JAX = [
    ["--help"],
    ["--version"],
    ["inspect", "--help"],
    ["launch", "-n", "1", "--", "true"],
    ["schedule", "show", "--collective", "broadcast", "--world-size", "2"],
    ["simulate", "--topology", "switch:4", "--bytes", "1K", "--quiet"],
    ["tune", "--show"],
    ["verify", "--collective", "broadcast", "--world-size", "2"],
]


@pytest.mark.parametrize("arguments", COMMANDS_WITHOUT_JAX, ids=lambda arguments: arguments[0])
def test_a_command_that_needs_no_jax_does_not_import_it(arguments: list[str]) -> None:
    program = (
        f"import sys; sys.argv = ['jaxcoll', *{arguments}]\n"
        "from jaxcoll.__main__ import main\n"
        "try:\n"
        "    code = main()\n"
        "except SystemExit as end:\n"  # argparse
        "    code = end.code\n"
        "print('exit code', code, 'jax' in sys.modules, 'jaxlib' in sys.modules)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert finished.stdout.splitlines()[-1:] == ["exit code 0 False False"], finished.stderr


def test_the_command_line_starts_without_jax_and_numpy() -> None:
    finished = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "jaxcoll", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    loaded = {line.rpartition("|")[2].strip() for line in finished.stderr.splitlines()}
    assert "jaxcoll._cli.main" in loaded
    assert not loaded & {"jax", "jaxlib", "numpy", "scipy"}


def test_only_info_among_the_commands_takes_jax() -> None:
    for name, tree in MODULES.items():
        if name.startswith("_cli.") and name != "_cli.info":
            for other in modules_imported(tree) - {"__main__"}:
                low = layer_of(other) in WITHOUT_JAX | {"_cli"}
                assert low, f"jaxcoll.{name} imports {other}"


def test_in_a_command_jaxcoll_is_set_up_when_it_is_asked_for() -> None:
    program = (
        "import sys; sys.argv = ['jaxcoll']\n"
        "import jaxcoll\n"
        "assert 'jax' not in sys.modules\n"
        "assert set(jaxcoll.__all__) <= set(dir(jaxcoll))\n"
        "assert all(hasattr(jaxcoll, name) for name in jaxcoll.__all__)\n"
        "assert sys.modules['jaxcoll._jax.startup'].started\n"
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
        if path.name == "plugin.py":  # runs where jaxcoll is imported only if the variable is set
            continue
        read = re.findall(r"""environ(?:\.get\(|\[)\s*["'](JAXCOLL_\w+)""", path.read_text())
        assert not read, f"{path} reads {read} itself; ask _environment.values()"


def test_the_docs_show_the_table_of_environment_variables() -> None:
    rows = [
        f"| `{v.name}` | {v.default} | {v.takes} | {v.meaning} |"
        for v in _environment.VARIABLES
        if not v.internal
    ]
    head = ["| variable | default | takes | what it does |", "|---|---|---|---|"]
    page = (ROOT / "docs/reference/environment.md").read_text()
    section = re.search(
        r"<!-- environment: begin.*?-->\n(.*?)<!-- environment: end", page, re.DOTALL
    )
    assert section is not None
    assert section[1].splitlines() == head + rows


# --- files --------------------------------------------------------------------------------------


def readme() -> str:
    return (ROOT / "README.md").read_text()


def test_top_level_holds_what_it_should_and_nothing_else() -> None:
    """The files that git tracks, or would track."""
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
        folders = ("jaxcoll", "ffi", "tests", "benchmarks")
        for path in (
            p for f in folders if list((ROOT / f).rglob(pattern)) for p in files(pattern, f)
        ):
            lines = len(path.read_text().splitlines())
            assert lines <= LONGEST_FILE_LINES, f"{path}: {lines} lines; give each idea a file"


def test_no_cpp_line_is_too_long() -> None:
    """clang-format leaves comments alone, since some are tables."""
    for path in [path for pattern in CPP_PATTERNS for path in files(pattern, "ffi", "tests")]:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert len(line) <= 100, f"{path}:{number}: {len(line)} columns"


def test_readme_has_one_line_for_each_command() -> None:
    """.ci/run takes the test command from here."""
    commands = [line for line in readme().splitlines() if line.startswith("python3 -m venv .venv")]
    assert len(commands) == 2
    assert sum("pytest" in command for command in commands) == 1
    assert sum("jaxcoll.examples.digits" in command for command in commands) == 1
