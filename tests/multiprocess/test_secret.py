"""How a process is given the job's secret, and what it takes for one."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxcoll._job import secret as _secret

ROOT = Path(__file__).parents[2]
GOOD = base64.b64encode(bytes(range(32))) + b"\n"


@pytest.fixture(autouse=True)
def _nothing_given(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_secret, "_given", None)
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) <= before


def take(**environ: str) -> _secret.Secret:
    variables = dict(environ)
    _secret.take(variables)
    assert _secret.FD_VARIABLE not in variables
    found = _secret.given()
    assert found is not None
    return found


def written(path: Path, content: bytes = GOOD, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_private_file_is_taken(tmp_path: Path, mode: int) -> None:
    path = written(tmp_path / "secret", mode=mode)
    secret = take(JAXCOLL_SECRET_FILE=str(path))
    assert secret.content == GOOD
    assert secret.source == f"JAXCOLL_SECRET_FILE={path}"


def test_a_secret_made_by_the_command_in_the_errors_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    command = _secret.ADVICE.split(" makes")[0].replace("FILE", str(path))
    subprocess.run(["bash", "-c", command], check=True)
    assert len(take(JAXCOLL_SECRET_FILE=str(path)).content) == 45


def test_any_32_bytes_that_cannot_be_guessed_are_taken(tmp_path: Path) -> None:
    for seed in range(300):
        digest = hashlib.sha256(bytes([seed % 256, seed // 256])).digest()
        for content in (digest, digest[:16].hex().encode(), b"\r\n" + digest, digest + b"\n"):
            path = written(tmp_path / "secret", content)
            assert take(JAXCOLL_SECRET_FILE=str(path)).content == content


def test_the_end_of_the_line_does_not_count(tmp_path: Path) -> None:
    contents = [GOOD, GOOD[:-1], GOOD[:-1] + b"\r\n"]
    secrets = [
        take(JAXCOLL_SECRET_FILE=str(written(tmp_path / f"s{i}", content)))
        for i, content in enumerate(contents)
    ]
    assert len({secret.key("links") for secret in secrets}) == 1
    assert len({secret.name for secret in secrets}) == 1
    assert len({secret.key(purpose) for secret in secrets for purpose in ("links", "store")}) == 2


def test_a_secret_does_not_show_itself() -> None:
    secret = _secret.make()
    assert secret.content.decode() not in f"{secret!r} {secret}"
    assert secret.key("links").hex() not in repr(secret)
    assert _secret.make().content != secret.content


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        (GOOD, 0o640, "its mode is 0640, so others can access it; run chmod 600 on it"),
        (GOOD, 0o604, "its mode is 0604"),
        (GOOD, 0o620, "its mode is 0620"),
        (GOOD, 0o666, "its mode is 0666"),
        (GOOD, 0o610, "its mode is 0610"),
        (b"", 0o600, "it has 0 bytes"),
        (GOOD[:31], 0o600, "it has 31 bytes; a secret has 32 or more"),
        (b"0" * 100, 0o600, "it repeats itself"),
        (b"password" * 20, 0o600, "it repeats itself"),
        (b" " * 40 + b"\n", 0o600, "it repeats itself"),
        (bytes(i * i % 251 for i in range(5000)), 0o600, "more than 4096 bytes"),
    ],
)
def test_a_file_that_others_can_read_or_guess_is_refused(
    tmp_path: Path, content: bytes, mode: int, reason: str
) -> None:
    path = written(tmp_path / "secret", content, mode)
    with pytest.raises(ValueError, match="cannot be used") as caught:
        _secret.take({"JAXCOLL_SECRET_FILE": str(path)})
    assert reason in str(caught.value)
    assert str(caught.value).startswith(f"JAXCOLL_SECRET_FILE={str(path)!r} cannot be used: ")
    assert "head -c 32 /dev/urandom | base64 > FILE" in str(caught.value)
    assert not content or repr(content)[2:-1] not in str(caught.value)
    assert _secret.given() is None


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "loop").symlink_to("loop")
    for name, reason in [
        ("pipe", "not a regular file"),
        (".", "not a regular file"),
        ("", "not a regular file"),
        ("missing", "No such file or directory"),
        ("missing/secret", "No such file or directory"),
        ("loop", "Too many levels of symbolic links"),
        ("pipe/secret", "Not a directory"),
    ]:
        with pytest.raises(ValueError, match=reason):
            _secret.take({"JAXCOLL_SECRET_FILE": f"{tmp_path}/{name}"})
    with pytest.raises(ValueError, match="not a regular file"):
        _secret.take({"JAXCOLL_SECRET_FILE": "/dev/zero"})


needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root, to make another user's files"
)


@needs_root
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "secret")
    os.chown(path, 65534, 65534)
    with pytest.raises(ValueError, match="it belongs to uid 65534, this process to 0"):
        _secret.take({"JAXCOLL_SECRET_FILE": str(path)})


def test_links_of_this_user_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Kubernetes mounts it: secret -> ..data/secret, ..data -> ..2026_11_30."""
    folder = tmp_path / "..2026_11_30"
    folder.mkdir()
    written(folder / "secret", mode=0o400)
    (tmp_path / "..data").symlink_to("..2026_11_30")
    (tmp_path / "secret").symlink_to("..data/secret")
    (tmp_path / "absolute").symlink_to(tmp_path / "secret")
    (folder / "up").symlink_to("../absolute")
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "secret", tmp_path / "..data/up", "secret", "./..data/../absolute"):
        assert take(JAXCOLL_SECRET_FILE=str(path)).content == GOOD


@needs_root
def test_a_link_of_another_user_is_not_followed(tmp_path: Path) -> None:
    """It could lead to a file of this one, whose contents the other knows."""
    written(tmp_path / "secret")
    for name, target in (("link", "secret"), ("folder", ".")):
        (tmp_path / name).symlink_to(target)
        os.lchown(tmp_path / name, 65534, 65534)
    for path in ("link", "folder/secret"):
        with pytest.raises(ValueError, match=r"symbolic link '.*' on its way is of uid 65534"):
            _secret.take({"JAXCOLL_SECRET_FILE": str(tmp_path / path)})


OF_ROOT = [  # owner, mode, why it is refused; of a group that the process is in
    (0, 0o440, ""),  # Kubernetes, with fsGroup, for a process that is not root
    (0, 0o400, "Permission denied"),
    (0, 0o444, "its mode is 0444"),
    (0, 0o660, "its mode is 0660"),
    (65534, 0o400, ""),
    (65534, 0o440, "its mode is 0440"),
    (1234, 0o440, "it belongs to uid 1234"),
]
# In a process of its own, for it is another user's from the fourth line on.
AS_ANOTHER_USER = """
import os, sys
from jaxcoll._job import secret as _secret
os.setgroups([65534]), os.setgid(65534), os.setuid(65534)
for path in sys.argv[1:]:
    try:
        _secret.take({"JAXCOLL_SECRET_FILE": path})
        print("taken")
    except ValueError as error:
        print(error)
"""


@needs_root
def test_a_process_that_is_not_root_may_be_given_a_file_of_root() -> None:
    # Not in the test's own folder, which is only root's.
    with tempfile.TemporaryDirectory(prefix="jaxcoll-test-") as folder:
        os.chmod(folder, 0o755)
        paths = []
        for i, (owner, mode, _) in enumerate(OF_ROOT):
            paths.append(written(Path(folder) / str(i), mode=mode))
            os.chown(paths[-1], owner, 65534)
        done = subprocess.run(
            [sys.executable, "-c", AS_ANOTHER_USER, *map(str, paths)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    said = done.stdout.splitlines()
    assert len(said) == len(OF_ROOT), done
    for (_, _, refused), text in zip(OF_ROOT, said, strict=True):
        assert (refused in text) if refused else text == "taken", done.stdout


# --- descriptors --------------------------------------------------------------------------------


def test_a_secret_that_the_launcher_hands_over_can_be_read_by_many(tmp_path: Path) -> None:
    made = _secret.make()
    kept = _secret.hand_over(made)
    assert kept >= 100
    assert not os.get_inheritable(kept)
    with pytest.raises(OSError, match="not permitted"):
        os.pwrite(kept, b"x", 0)
    for _ in range(2):
        found = take(JAXCOLL_SECRET_FD=str(os.dup(kept)))
        assert found.content == made.content
        assert found.source.endswith("of jaxcoll launch")
    os.close(kept)


@pytest.mark.parametrize("kind", ["pipe", "file", "unlinked file", "socket"])
def test_descriptors_of_every_kind_are_read_and_closed(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path / "secret")
    if kind == "pipe":
        descriptor, writer = os.pipe()
        os.write(writer, GOOD)
        os.close(writer)
    elif kind == "socket":
        ours, theirs = socket.socketpair()
        theirs.sendall(GOOD)
        theirs.close()
        descriptor = ours.detach()
    else:
        descriptor = os.open(path, os.O_RDONLY)
        if kind == "unlinked file":
            path.unlink()
    assert take(JAXCOLL_SECRET_FD=str(descriptor)).content == GOOD
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_slow_writer_is_waited_for() -> None:
    descriptor, writer = os.pipe()

    def write() -> None:
        for byte in GOOD:
            os.write(writer, bytes([byte]))
        os.close(writer)

    thread = threading.Thread(target=write)
    thread.start()
    assert take(JAXCOLL_SECRET_FD=str(descriptor)).content == GOOD
    thread.join()


def test_a_pipe_that_nobody_closes_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_secret, "_PIPE_S", 0.2)
    descriptor, writer = os.pipe()
    os.write(writer, GOOD)
    with pytest.raises(ValueError, match=r"its writer has not closed it within 0\.2 s"):
        _secret.take({"JAXCOLL_SECRET_FD": str(descriptor)})
    os.close(writer)


def test_descriptors_that_are_no_secret_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JAXCOLL_SECRET_FD=999 cannot be used: it is not open"):
        _secret.take({"JAXCOLL_SECRET_FD": "999"})
    for path, reason in [
        (tmp_path, "neither a file nor a pipe"),
        ("/dev/null", "neither a file nor a pipe"),
        (written(tmp_path / "open", mode=0o644), "its mode is 0644"),
        (written(tmp_path / "short", b"short"), "it has 5 bytes"),
    ]:
        with pytest.raises(ValueError, match=reason):
            _secret.take({"JAXCOLL_SECRET_FD": str(os.open(path, os.O_RDONLY))})


def test_two_ways_at_once_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "secret")
    with pytest.raises(ValueError, match="are both set; unset one of them"):
        _secret.take({"JAXCOLL_SECRET_FILE": str(path), "JAXCOLL_SECRET_FD": "3"})


# --- from the launcher to the program -----------------------------------------------------------

SAYS = """
import os, subprocess, sys
import jaxcoll
from jaxcoll._job import secret as _secret
found = _secret.given()
assert "JAXCOLL_SECRET_FD" not in os.environ
links = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
         if os.path.lexists(f"/proc/self/fd/{fd}")]
assert not any("jaxcoll-secret" in link for link in links), links
for name in ("environ", "cmdline"):
    with open(f"/proc/self/{name}", "rb") as file:
        assert found is None or found.content not in file.read()
print("secret", found and found.name, found and found.source)
"""


def launched(*arguments: str, **environment: str) -> list[str]:
    """Names of the secrets that the processes have, and their sources."""
    done = subprocess.run(
        [sys.executable, "-m", "jaxcoll", "launch", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [line.split("secret ", 1)[1] for line in done.stdout.splitlines() if "] secret " in line]


WRAPPERS = {
    "none": [],
    "bash": ["bash", "-c", '"$@"; exit $?', "bash"],
    "exec": ["bash", "-c", 'exec env A=b "$@"', "bash"],
    "closes": [
        sys.executable,
        "-c",
        "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode)",
    ],
    "twice": ["bash", "-c", '"$@" && "$@"', "bash"],
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_processes_of_a_launcher_have_one_secret_that_no_other_job_has(wrapper: str) -> None:
    command = ["--", *WRAPPERS[wrapper], sys.executable, "-c", SAYS]
    found = launched("-n", "2", *command)
    assert len(found) == (4 if wrapper == "twice" else 2)
    (name,) = {line.split()[0] for line in found}
    assert all(line.endswith("of jaxcoll launch") for line in found)
    if wrapper == "none":
        assert name not in "".join(launched("-n", "1", *command))


def test_launchers_of_several_hosts_pass_on_what_they_are_given(tmp_path: Path) -> None:
    path = written(tmp_path / "secret")
    name = take(JAXCOLL_SECRET_FILE=str(path)).name
    command = ["--coordinator", "127.0.0.1:1", "--", sys.executable, "-c", SAYS]
    parts = ["-n", "2", "--total", "4", "--first", "2"]
    by_file = launched(*parts, *command, JAXCOLL_SECRET_FILE=str(path))
    assert by_file == [f"{name} JAXCOLL_SECRET_FILE={path}"] * 2
    assert launched(*parts, *command) == ["None None"] * 2  # several launchers, several secrets


def test_a_launcher_hands_a_descriptor_on(tmp_path: Path) -> None:
    path = written(tmp_path / "secret")
    name = take(JAXCOLL_SECRET_FILE=str(path)).name
    shell = 'JAXCOLL_SECRET_FD=7 "$0" -m jaxcoll launch -n 1 -- "$0" -c "$1" 7<"$2"'
    done = subprocess.run(
        ["bash", "-c", shell, sys.executable, SAYS, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert f"[0] secret {name} " in done.stdout, done.stderr


@pytest.mark.parametrize("variable", ["JAXCOLL_SECRET_FILE=/nowhere", "JAXCOLL_SECRET_FD=77"])
def test_a_secret_that_cannot_be_read_ends_the_program_before_it_begins(variable: str) -> None:
    name, value = variable.split("=")
    done = subprocess.run(
        [sys.executable, "-c", "import jaxcoll; print('began')"],
        env={**os.environ, "PYTHONPATH": str(ROOT), name: value},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert "began" not in done.stdout
    assert "cannot be used" in done.stderr.splitlines()[-1]
