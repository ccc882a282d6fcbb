"""MSCCL XML: algorithms as msccl-tools writes them, and files that must not be accepted."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
import schedule_interpreter

from jaxcoll.interop import msccl
from jaxcoll.schedule import Schedule
from jaxcoll.schedule.verifier import ScheduleError, verify


class File:
    """Writes the format; steps are (type, src, dst, count, dependency)."""

    def __init__(self, coll: str, ranks: int, chunks: int, *, inplace: int = 0) -> None:
        self._head = (
            f'<algo name="test" proto="Simple" nchannels="1" nchunksperloop="{chunks}" '
            f'ngpus="{ranks}" coll="{coll}" inplace="{inplace}">'
        )
        self._gpus: list[str] = []

    def gpu(self, sizes: tuple[int, int, int], *blocks: str) -> None:
        i, o, s = sizes
        self._gpus.append(
            f'<gpu id="{len(self._gpus)}" i_chunks="{i}" o_chunks="{o}" s_chunks="{s}">\n'
            + "".join(blocks)
            + "</gpu>"
        )

    def text(self) -> str:
        return "\n".join([self._head, *self._gpus, "</algo>\n"])


Step = tuple[str, str, str, int, tuple[int, int] | None]


def block(number: int, send: int, recv: int, steps: list[Step], channel: int = 0) -> str:
    lines = [f'<tb id="{number}" send="{send}" recv="{recv}" chan="{channel}">']
    for s, (kind, src, dst, count, dependency) in enumerate(steps):
        depid, deps = dependency or (-1, -1)
        lines.append(
            f'<step s="{s}" type="{kind}" srcbuf="{src[0]}" srcoff="{src[1:]}" dstbuf="{dst[0]}" '
            f'dstoff="{dst[1:]}" cnt="{count}" depid="{depid}" deps="{deps}" hasdep="0"/>'
        )
    return "\n".join([*lines, "</tb>\n"])


def ring_all_reduce(p: int) -> str:
    """One thread block per rank; partial sums are kept nowhere (rrs)."""
    file = File("allreduce", p, p)
    for r in range(p):
        steps: list[Step] = [("s", f"i{(r - 1) % p}", "o0", 1, None)]
        steps += [("rrs", f"i{(r - k) % p}", "o0", 1, None) for k in range(2, p)]
        steps += [("rrcs", f"i{r}", f"o{r}", 1, None)]
        steps += [("rcs", "i0", f"o{(r - k) % p}", 1, None) for k in range(1, p - 1)]
        steps += [("r", "i0", f"o{(r + 1) % p}", 1, None)]
        file.gpu((p, p, 0), block(0, (r + 1) % p, (r - 1) % p, steps))
    return file.text()


def all_pairs_all_reduce(p: int) -> str:
    """In place: a share to each, through scratch; sums in one thread block; back to everyone."""
    file = File("allreduce", p, p, inplace=1)
    for r in range(p):
        others = [q for q in range(p) if q != r]
        blocks = []
        for k, q in enumerate(others):
            chunk = others_of(q, p).index(r)
            steps: list[Step] = [
                ("s", f"i{q}", f"s{chunk}", 1, None),
                ("r", f"i{r}", f"s{k}", 1, None),
                ("s", f"i{r}", f"i{r}", 1, (p, 2 * (p - 1) - 1)),
                ("r", f"i{q}", f"i{q}", 1, None),
            ]
            blocks.append(block(k, q, q, steps))
        waits: list[Step] = [("nop", "i-1", "o-1", 0, (k, 1)) for k in range(p - 1)]
        adds: list[Step] = [("re", f"s{k}", f"i{r}", 1, None) for k in range(p - 1)]
        blocks.append(block(p, -1, -1, waits + adds))
        file.gpu((p, 0, p - 1), *blocks)
    return file.text()


def published_all_pairs(p: int) -> str:
    """As msccl-tools' all-pairs files: shares of p chunks, whose sums are spread over all thread
    blocks, which wait for each other through nops before and after."""
    file = File("allreduce", p, p * p, inplace=1)
    for r in range(p):
        blocks = []
        for k, q in enumerate(others_of(r, p)):
            chunk = others_of(q, p).index(r) * p
            others = others_of(k, p - 1)
            own = [j for j in range(p) if j % (p - 1) == k]
            steps: list[Step] = [
                ("s", f"i{q * p}", f"s{chunk}", p, None),
                ("r", f"i{r * p}", f"s{k * p}", p, None),
            ]
            steps += [("nop", "i-1", "o-1", 0, (other, 1)) for other in others]
            steps += [
                ("re", f"s{m * p + j}", f"i{r * p + j}", 1, None) for j in own for m in range(p - 1)
            ]
            last = {
                other: 1 + (p - 2) + (p - 1) * len([j for j in range(p) if j % (p - 1) == other])
                for other in others
            }
            steps += [("nop", "i-1", "o-1", 0, (other, last[other])) for other in others]
            steps += [
                ("s", f"i{r * p}", f"i{r * p}", p, None),
                ("r", f"i{q * p}", f"i{q * p}", p, None),
            ]
            blocks.append(block(k, q, q, steps))
        file.gpu((p * p, 0, p * (p - 1)), *blocks)
    return file.text()


def others_of(rank: int, p: int) -> list[int]:
    return [q for q in range(p) if q != rank]


def ring_all_gather(p: int, chunks: int) -> str:
    file = File("allgather", p, p * chunks)
    for r in range(p):
        own = f"o{r * chunks}"
        steps: list[Step] = [("cpy", "i0", own, chunks, None), ("s", "i0", own, chunks, None)]
        steps += [("rcs", "i0", f"o{(r - k) % p * chunks}", chunks, None) for k in range(1, p - 1)]
        steps += [("r", "i0", f"o{(r + 1) % p * chunks}", chunks, None)]
        file.gpu((chunks, p * chunks, 0), block(0, (r + 1) % p, (r - 1) % p, steps))
    return file.text()


def in_place_all_gather(p: int) -> str:
    """The input is where the output has it."""
    file = File("allgather", p, p, inplace=1)
    for r in range(p):
        file.gpu(
            (1, p, 0),
            *(
                block(k, q, q, [("s", f"o{r}", f"o{r}", 1, None), ("r", "o0", f"o{q}", 1, None)])
                for k, q in enumerate(others_of(r, p))
            ),
        )
    return file.text()


def in_place_reduce_scatter(p: int) -> str:
    file = File("reducescatter", p, p, inplace=1)
    for r in range(p):
        steps: list[Step] = [("s", f"i{(r - 1) % p}", "i0", 1, None)]
        steps += [("rrcs", f"i{(r - k) % p}", f"i{(r - k) % p}", 1, None) for k in range(2, p)]
        steps += [("rrc", f"i{r}", f"i{r}", 1, None)]
        file.gpu((p, 1, 0), block(0, (r + 1) % p, (r - 1) % p, steps))
    return file.text()


def all_to_all(p: int) -> str:
    file = File("alltoall", p, p)
    for r in range(p):
        own = block(0, -1, -1, [("cpy", f"i{r}", f"o{r}", 1, None)])
        blocks = [
            block(
                k + 1,
                q,
                q,
                [("s", f"i{q}", f"o{r}", 1, None), ("r", "i0", f"o{q}", 1, None)],
                (q + r) % 2,
            )
            for k, q in enumerate(others_of(r, p))
        ]
        file.gpu((p, p, 0), own, *blocks)
    return file.text()


def checked(text: str) -> Schedule:
    schedule = msccl.parse(text)
    assert verify(schedule).reproducible
    for seed, elements in enumerate((0, 5, 60)):
        schedule_interpreter.check(schedule, elements, seed)
    return schedule


@pytest.mark.parametrize("p", [2, 3, 4, 7, 8])
def test_ring_all_reduce_is_the_ring(p: int) -> None:
    schedule = checked(ring_all_reduce(p))
    share = Fraction(p - 1, p)
    assert schedule.cost().sent == (2 * share,) * p
    assert schedule.cost().reduced == (share,) * p
    # Partial sums are kept by position: no more scratch than a block, however many ranks.
    assert schedule.programs[0].scratch_blocks == (1 if p > 2 else 0)


@pytest.mark.parametrize("p", [2, 3, 4, 6])
def test_all_pairs_in_place_with_scratch_of_any_position(p: int) -> None:
    schedule = checked(all_pairs_all_reduce(p))
    assert schedule.cost().sent == (2 * Fraction(p - 1, p),) * p
    assert schedule.programs[0].scratch_blocks == p - 1


@pytest.mark.parametrize("p", [2, 3, 4, 6])
def test_the_published_all_pairs_algorithm(p: int) -> None:
    schedule = checked(published_all_pairs(p))
    assert schedule.cost().sent == (2 * Fraction(p - 1, p),) * p
    assert schedule.cost().reduced == (Fraction(p - 1, p),) * p


def test_an_all_pairs_algorithm_that_forgets_to_wait_is_refused() -> None:
    forgotten = re.sub(r'depid="1" deps="1"', 'depid="-1" deps="-1"', published_all_pairs(4))
    with pytest.raises(msccl.MscclError, match="neither waits for the other"):
        msccl.parse(forgotten)


@pytest.mark.parametrize("p", [2, 3, 5])
def test_the_other_collectives(p: int) -> None:
    share = Fraction(p - 1, p)
    for text, collective in (
        (ring_all_gather(p, 1), "all_gather"),
        (ring_all_gather(p, 3), "all_gather"),
        (in_place_all_gather(p), "all_gather"),
        (in_place_reduce_scatter(p), "reduce_scatter"),
        (all_to_all(p), "all_to_all"),
    ):
        schedule = checked(text)
        assert schedule.collective == collective
        assert schedule.cost().sent == (share,) * p


def test_imported_schedules_survive_their_text() -> None:
    schedule = msccl.parse(all_pairs_all_reduce(4))
    assert Schedule.parse("all_reduce", schedule.serialize()) == Schedule(
        "all_reduce", schedule.programs
    )
    assert msccl.parse(all_pairs_all_reduce(4).encode()) == schedule


def two_ranks(*first: str, second: str = "", coll: str = "allreduce") -> str:
    file = File(coll, 2, 2)
    file.gpu((2, 2, 2), *first)
    file.gpu((2, 2, 2), second or block(0, -1, -1, []))
    return file.text()


ONE = '<gpu id="0" i_chunks="2" o_chunks="2" s_chunks="0">'
WITH_SCRATCH = ONE.replace('s_chunks="0"', 's_chunks="1"')
HEAD = '<algo name="x" nchunksperloop="2" ngpus="1" coll="allreduce">'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: not well-formed XML"),
        ("<algo>", "line 1: <algo> has no attribute coll"),
        ("<gpu/>", "line 1: unexpected <gpu> in the document"),
        (f"{HEAD}\n<tb/></algo>", "line 2: unexpected <tb> in <algo>"),
        (f"{HEAD}</algo>", "line 1: ngpus is 1, but there is no <gpu> with id 0"),
        (HEAD.replace('"1"', '"0"'), "line 1: ngpus is 0, but must be from 1 to"),
        (HEAD.replace('"1"', '"one"'), "ngpus is 'one', but must be a whole number"),
        (HEAD.replace('"1"', '"9999999999999"'), "but must be a whole number"),
        (HEAD.replace("allreduce", "broadcast"), "collectives that can be read: allreduce, allg"),
        (f"{HEAD}\n{ONE}</gpu>\n{ONE}</gpu></algo>", "line 3: a second <gpu> with id 0"),
        (
            f"{HEAD}{ONE}{block(0, -1, 0, [])}</gpu></algo>",
            "gpu 0 sends to or receives from itself",
        ),
        ('<!DOCTYPE a [<!ENTITY b "c">]>\n' + HEAD, "line 1: document types"),
        (
            f"{HEAD}\n{ONE}\n{block(0, -1, -1, [('cpy', 'i0', 'o2', 1, None)])}</gpu></algo>",
            "line 4: chunks 2 to 2 of buffer o, which has 2",
        ),
        (
            f"{HEAD}\n{ONE}\n{block(0, -1, -1, [('cpy', 'i0', 'o0', 0, None)])}</gpu></algo>",
            "line 4: chunks 0 to -1 of buffer i",
        ),
        (
            f"{HEAD}\n{ONE}\n{block(0, -1, -1, [('move', 'i0', 'o0', 1, None)])}</gpu></algo>",
            "line 4: type is 'move'; there are cpy, nop, r, rcs",
        ),
        (
            f"{HEAD}\n{ONE}\n{block(0, -1, -1, [('s', 'i0', 'o0', 1, None)])}</gpu></algo>",
            "line 4: type is s, but the thread block has no send peer",
        ),
        (
            f"{HEAD}\n{ONE}\n{block(0, -1, -1, [('cpy', 'x0', 'o0', 1, None)])}</gpu></algo>",
            "line 4: srcbuf is 'x'; there are i, o and s",
        ),
        (
            f"{HEAD}\n{ONE}\n{block(0, -1, -1, [('nop', 'i0', 'o0', 0, (3, 0))])}</gpu></algo>",
            "step 0 (nop) waits for step 0 of thread block 3, which does not exist",
        ),
        (
            f"{HEAD}\n{ONE}\n{block(0, -1, -1, [('nop', 'i0', 'o0', 0, (0, 0))])}</gpu></algo>",
            "step 0 (nop) waits for itself through other steps",
        ),
        (
            f"{HEAD}\n{ONE}\n{block(0, -1, -1, [('cpy', 'i0', 'i1', 1, None)])}</gpu></algo>",
            "puts what belongs to position 0 of a block into i[1], position 1",
        ),
        (
            f"{HEAD}\n{ONE}\n{block(0, -1, -1, [('cpy', 'i0', 'i0', 1, None)])}</gpu></algo>",
            "writes its input, though the algorithm is not in place",
        ),
        (
            f"{HEAD}\n{WITH_SCRATCH}\n"
            f"{block(0, -1, -1, [('cpy', 's0', 'o0', 1, None)])}</gpu></algo>",
            "line 4: gpu 0, thread block 0, step 0 (cpy) reads s[0], which nothing has written",
        ),
        (
            two_ranks(
                block(0, 1, -1, [("s", "i0", "o0", 2, None)]),
                second=block(0, -1, 0, [("r", "i0", "o0", 1, None)]),
            ),
            "receives 1 chunks, but line 4: gpu 0, thread block 0, step 0 (s) sends 2",
        ),
        (
            two_ranks(
                block(0, 1, -1, [("s", "i0", "o0", 1, None)]),
                block(1, 1, -1, [("s", "i1", "o1", 1, None)]),
            ),
            "use one connection, gpu 1 on channel 0, from two thread blocks",
        ),
        (two_ranks(block(0, 1, -1, [("s", "i0", "o0", 1, None)])), "sends what no rank receives"),
        (two_ranks(block(0, -1, 1, [("r", "i0", "o0", 1, None)])), "receives what no rank sends"),
        (
            two_ranks(coll="allgather").replace('nchunksperloop="2"', 'nchunksperloop="3"'),
            "line 1: nchunksperloop is 3, but must be a multiple of 2 for all_gather of 2 ranks",
        ),
        (
            two_ranks(
                block(0, -1, -1, [("cpy", "i0", "o0", 1, None)]),
                block(1, -1, -1, [("cpy", "i0", "o0", 1, None)]),
            ),
            "both use o[0], one of them writes it, and neither waits for the other",
        ),
    ],
)
def test_malformed_files_are_refused_with_line_and_step(text: str, message: str) -> None:
    with pytest.raises(msccl.MscclError, match=re.escape(message)):
        msccl.parse(text)


def test_an_order_between_thread_blocks_makes_a_conflict_right() -> None:
    def text(dependency: tuple[int, int] | None) -> str:
        return two_ranks(
            block(0, -1, -1, [("cpy", "i0", "s0", 2, None)]),
            block(1, -1, -1, [("cpy", "s0", "o0", 2, dependency)]),
        )

    msccl.parse(text((0, 0)))
    with pytest.raises(msccl.MscclError, match=r"both use s\[0\]"):
        msccl.parse(text(None))


def test_wrong_algorithms_are_found_by_the_verifier() -> None:
    swapped = ring_all_reduce(4).replace(
        'type="rrs" srcbuf="i" srcoff="2"', 'type="rcs" srcbuf="i" srcoff="2"'
    )
    with pytest.raises((ScheduleError, msccl.MscclError)):
        verify(msccl.parse(swapped))
    one_lost = ring_all_reduce(3).replace("rrcs", "rcs", 1)
    with pytest.raises(ScheduleError, match="should hold the contributions"):
        verify(msccl.parse(one_lost))


def test_too_long_a_file_is_refused() -> None:
    with pytest.raises(msccl.MscclError, match="at most"):
        msccl.parse(" " * (msccl.MAX_TEXT_BYTES + 1))
