"""Processes of a job and their tables of `jaxcoll tune`: alike, different, broken."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from processes import Job, run

from jaxcoll.tune import table as _tuning

SCRIPT = """
import re
import jaxcoll
from spmd import *

named = sys.argv[1] == "named first"
mesh = make_mesh((processes,))
x = small_integers((processes, 64))
placed = place(mesh, x)
expected = np.broadcast_to(x.sum(0), x.shape)
if named:  # links are there before anybody asks for a table
    f = per_device(mesh, lambda x: jaxcoll.all_reduce(x, "x", algorithm="ring"))
    compare(f(placed), expected, "named")
f = per_device(mesh, lambda x: jaxcoll.psum(x, "x"))
start = time.monotonic()
try:
    print("picked", re.findall(r'(?:algorithm|tuning) = "(\\w*)"', f.lower(placed).as_text()))
    compare(f(placed), expected, "auto")
    jax.clear_caches()
    compare(f(placed), expected, "auto again")
except Exception as error:
    print("refused", type(error).__name__, error)
assert time.monotonic() - start < 60, "somebody was waited for"
finished("tables")
"""


def write(path: Path, algorithm: str) -> str:
    """A table that picks one algorithm between processes; its digest."""
    entry = {
        "layout": "host",
        "collective": "all_reduce",
        "world_size": 2,
        "ranks_per_node": 1,
        "algorithms": [[None, algorithm]],
    }
    path.write_text(json.dumps({"format": 1, "picks": [entry]}))
    return _tuning.parse(path.read_text()).digest


def run_with(tables: Sequence[str], *arguments: str) -> list[str]:
    """The text that each process prints, with a JAXCOLL_TUNING of its own."""
    environments = {i: {"JAXCOLL_TUNING": table} for i, table in enumerate(tables)}
    return run(SCRIPT, *arguments, processes=len(tables), rank_environment=environments)


def test_processes_with_equal_tables_take_what_they_pick(tmp_path: Path):
    digest = write(tmp_path / "one.json", "recursive_doubling")
    assert write(tmp_path / "copy.json", "recursive_doubling") == digest
    tables = [str(tmp_path / name) for name in ("one.json", "copy.json", "one.json")]
    for text in run_with(tables, "auto only"):
        assert f"picked ['recursive_doubling', '{digest}']" in text
        assert "refused" not in text


@pytest.mark.parametrize("when", ["auto only", "named first"])
def test_processes_with_different_tables_all_hear_which(when: str, tmp_path: Path):
    digests = [write(tmp_path / "0.json", "direct2"), write(tmp_path / "1.json", "ring")]
    texts = run_with([str(tmp_path / "0.json"), str(tmp_path / "1.json")], when)
    for text in texts:
        assert "refused" in text, texts
        for process, digest in enumerate(digests):
            assert f"process {process} on host" in text, texts
            assert f"{digest} ({tmp_path / str(process)}.json)" in text, texts
        assert "Copy one file to all hosts, or set JAXCOLL_TUNING=off" in text, texts
    assert sum("refused TuningError" in text for text in texts) == 1, texts


def test_a_process_whose_table_is_broken_tells_the_others(tmp_path: Path):
    (tmp_path / "broken.json").write_text("{")
    texts = run_with(["off", str(tmp_path / "broken.json")], "auto only")
    for text in texts:
        assert "refused" in text, texts
        assert f"the tuning table {tmp_path / 'broken.json'} cannot be used" in text, texts
    assert "refused TuningError process 1" in texts[1], texts


def test_nobody_waits_for_a_process_that_never_asks(tmp_path: Path):
    """Lowering, or a program of named algorithms, needs no other process's table."""
    script = """
    import jaxcoll
    from spmd import *
    mesh = make_mesh((processes,))
    x = small_integers((processes, 4))
    if rank == 0:
        f = per_device(mesh, lambda x: jaxcoll.psum(x, "x"))
        print(f.lower(place(mesh, x)).as_text().count("tuning"))
    g = per_device(mesh, lambda x: jaxcoll.all_reduce(x, "x", algorithm="ring"))
    compare(g(place(mesh, x)), np.broadcast_to(x.sum(0), x.shape), "named")
    finished("lone")
    """
    write(tmp_path / "0.json", "direct2")
    environment = {0: {"JAXCOLL_TUNING": str(tmp_path / "0.json")}}
    with Job(script, processes=2, rank_environment=environment) as job:
        job.finish()
