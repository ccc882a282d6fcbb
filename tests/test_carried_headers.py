"""The headers of others that the project carries are those of their source."""

import importlib.util
import re
from importlib.metadata import version
from pathlib import Path

import pytest

CARRIED = Path(__file__).parent.parent / "ffi" / "third_party" / "xla_ffi"
CARRIED_VERSION = "0.10.2"
HEADERS = ("c_api.h", "api.h", "ffi.h")


def installed() -> Path:
    spec = importlib.util.find_spec("jaxlib")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "include"


def api_version(root: Path) -> tuple[int, int]:
    text = (root / "xla/ffi/api/c_api.h").read_text()
    found = dict(re.findall(r"#define XLA_FFI_API_(MAJOR|MINOR) (\d+)", text))
    return int(found["MAJOR"]), int(found["MINOR"])


@pytest.mark.skipif(
    version("jaxlib") != CARRIED_VERSION,
    reason=f"the headers are those of jaxlib {CARRIED_VERSION}",
)
@pytest.mark.parametrize("name", HEADERS)
def test_xla_headers_are_unchanged(name: str) -> None:
    header = f"xla/ffi/api/{name}"
    assert (CARRIED / header).read_bytes() == (installed() / header).read_bytes()


def test_every_header_is_known() -> None:
    folder = CARRIED / "xla/ffi/api"
    assert {path.name for path in folder.iterdir()} == set(HEADERS)


def test_the_installed_jaxlib_takes_what_is_built_with_them() -> None:
    """XLA refuses handlers of a newer API than its own, and of another major version."""
    ours, theirs = api_version(CARRIED), api_version(installed())
    assert ours[0] == theirs[0]
    assert ours <= theirs


def test_their_version_and_licence_are_stated() -> None:
    assert f"jaxlib {CARRIED_VERSION}" in (CARRIED / "README.md").read_text()
    assert "Apache License" in (CARRIED / "LICENSE").read_text()
