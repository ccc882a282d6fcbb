"""An independent evaluator of dependency graphs over a network: slow, simple, exact.

Written from what the IR and `jaxcoll.simulate` promise, without a line of the engine: fractions
instead of rounded integers, and all rates computed anew after every event by textbook progressive
filling. Single paths only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from jaxcoll.schedule import Op, Schedule

Key = tuple[int, int]  # rank, index of the op


@dataclass
class Network:
    """The links that messages cross.

    Attributes:
      path: (source rank, destination rank, channel) -> links.
      capacity: by link, bytes per second.
      latency: by path of the same arguments, seconds.
    """

    path: Callable[[int, int, int], tuple[int, ...]]
    capacity: dict[int, Fraction]
    latency: Callable[[int, int, int], Fraction]


@dataclass
class _Flow:
    send: Key
    links: tuple[int, ...]
    overhead: bool
    left: Fraction  # bytes
    rate: Fraction = Fraction(0)


def evaluate(
    schedule: Schedule,
    nbytes: int,
    network: Network,
    *,
    itemsize: int,
    overhead: Fraction,
    latency: Fraction,
    reduce: Fraction,
) -> Fraction:
    """When the last op completes, in seconds."""
    return _Evaluation(schedule, nbytes, network, itemsize, overhead, latency, reduce).run()


class _Evaluation:
    def __init__(
        self,
        schedule: Schedule,
        nbytes: int,
        network: Network,
        itemsize: int,
        overhead: Fraction,
        latency: Fraction,
        reduce: Fraction,
    ) -> None:
        self._network = network
        self._overhead, self._latency, self._reduce = overhead, latency, reduce
        layout = schedule.programs[0]
        self._per_block, self._itemsize = layout.chunks_per_block, itemsize
        blocks = max(layout.input_blocks, layout.output_blocks)
        self._elements = max(1, nbytes // (blocks * itemsize))
        self._ops: dict[Key, Op] = {
            (program.rank, i): op
            for program in schedule.programs
            for i, op in enumerate(program.ops)
        }
        self._mate: dict[Key, Key] = {}
        self._before: dict[Key, Key | None] = {}  # on the same channel
        ends: dict[tuple[int, ...], Key] = {}
        last: dict[Key, Key] = {}
        for key, op in self._ops.items():
            self._before[key] = last.get((key[0], op.channel))
            last[key[0], op.channel] = key
            if op.is_transfer:
                pair = (key[0], op.peer) if op.kind == "send" else (op.peer, key[0])
                name = (*pair, op.channel, op.sequence)
                if name in ends:
                    self._mate[key], self._mate[ends[name]] = ends[name], key
                ends[name] = key

    def size(self, op: Op) -> int:
        """Bytes of what an op moves."""
        elements = 0
        for chunk in op.destination.indices():
            position = chunk % self._per_block
            begin = position * self._elements // self._per_block
            elements += (position + 1) * self._elements // self._per_block - begin
        return elements * self._itemsize

    def run(self) -> Fraction:
        now = Fraction(0)
        started: set[Key] = set()
        completed: set[Key] = set()
        unit_free: dict[int, Fraction] = defaultdict(Fraction)
        flows: list[_Flow] = []
        busy: set[tuple[int, int, int]] = set()  # ports: rank, channel, first link
        waiting: list[Key] = []  # sends
        later: list[tuple[Fraction, str, Key]] = []
        to_compute: list[tuple[Key, Fraction]] = []

        def compute(key: Key, work: Fraction) -> None:
            if work == 0:
                later.append((now, "done", key))
            else:
                to_compute.append((key, work))

        def by_channel(item: tuple[Key, Fraction]) -> tuple[int, int]:
            return self._ops[item[0]].channel, item[0][1]

        def port(send: Key) -> tuple[int, int, int]:
            op = self._ops[send]
            return send[0], op.channel, self._network.path(send[0], op.peer, op.channel)[0]

        def finish(flow: _Flow) -> None:
            op = self._ops[flow.send]
            if flow.overhead:
                begin_data(flow.send)
                return
            busy.discard(port(flow.send))
            completed.add(flow.send)
            path_latency = self._network.latency(flow.send[0], op.peer, op.channel)
            later.append((now + self._latency + path_latency, "arrived", self._mate[flow.send]))

        def begin_data(send: Key) -> None:
            op = self._ops[send]
            links = self._network.path(send[0], op.peer, op.channel)
            flows.append(_Flow(send, links, False, Fraction(self.size(op))))

        while len(completed) < len(self._ops):
            progress = True
            while progress:
                progress = False
                for flow in [flow for flow in flows if flow.left == 0]:
                    flows.remove(flow)
                    finish(flow)
                    progress = True
                for event in sorted(event for event in later if event[0] == now):
                    later.remove(event)
                    _, what, key = event
                    if what == "arrived" and self._ops[key].kind == "recv_reduce":
                        compute(key, self._reduce * self.size(self._ops[key]))
                    else:
                        completed.add(key)
                    progress = True
                for key, op in self._ops.items():
                    before = self._before[key]
                    if key in started or (before is not None and before not in started):
                        continue
                    if any((key[0], d) not in completed for d in op.depends_on):
                        continue
                    started.add(key)
                    progress = True
                    if op.kind == "copy":
                        compute(key, Fraction(0))
                    elif op.kind == "reduce":
                        compute(key, self._reduce * self.size(op) * (len(op.sources) - 1))
                    elif self._mate[key] in started:
                        waiting.append(key if op.kind == "send" else self._mate[key])
                if progress:
                    continue
                for send in sorted(waiting):
                    if port(send) not in busy:
                        busy.add(port(send))
                        waiting.remove(send)
                        progress = True
                        if self._overhead == 0:
                            begin_data(send)
                            continue
                        link = port(send)[2]
                        work = self._overhead * self._network.capacity[link]
                        flows.append(_Flow(send, (link,), True, work))
            if len(completed) == len(self._ops):
                return now
            # Messages that came together wait for a rank's unit in order of channel and program.
            for key, work in sorted(to_compute, key=by_channel):
                unit_free[key[0]] = max(unit_free[key[0]], now) + work
                later.append((unit_free[key[0]], "done", key))
            to_compute.clear()
            self._share(flows)
            ends = [now + flow.left / flow.rate for flow in flows] + [event[0] for event in later]
            if not ends:
                raise AssertionError(f"deadlock: {len(self._ops) - len(completed)} ops are left")
            then = min(ends)
            for flow in flows:
                flow.left -= flow.rate * (then - now)
            now = then
        return now

    def _share(self, flows: list[_Flow]) -> None:
        """Max-min fair: raise all rates together; who meets a full link stays where it is."""
        free = dict(self._network.capacity)
        rising = list(flows)
        while rising:
            users = defaultdict(int)
            for flow in rising:
                for link in flow.links:
                    users[link] += 1
            level, full = min((free[link] / count, link) for link, count in users.items())
            held = [flow for flow in rising if full in flow.links]
            for flow in held:
                flow.rate = level
                for link in flow.links:
                    free[link] -= level
            rising = [flow for flow in rising if full not in flow.links]
