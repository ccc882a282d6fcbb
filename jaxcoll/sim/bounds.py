"""Times that no schedule can beat on a network, whatever its algorithm and routes.

Ranks may pass on and combine data; switches only forward. n bytes as in `Timeline.nbytes`, p ranks.

==========  ========================================================================
latency     somebody's data reaches everybody who needs it: at best along the path of
            least latency, and not before enough ranks have had their turn to send
            (a message's overhead occupies its port: Karp et al., "Optimal broadcast
            and summation in the LogP model", 1993)
ports       what a rank, or all ranks together, must send and receive, through the
            capacity of their links
reduction   all ranks' reductions, shared evenly
cut NAME    what must leave (or enter) a group of endpoints, through the maximal flow
            out of (into) it
flow        up to about 100 ranks; all_to_all: the linear program of all flows at once,
            aggregated by source; all_gather and reduce_scatter: every maximal flow to
            (from) one rank (Edmonds, 1973: what is less cannot be broadcast by all)
==========  ========================================================================

Bytes bounds hold for fluid traffic, so to each is added what a last byte needs on top: one overhead
and the least latency. Overheads and latencies are in whole picoseconds, as in the engine.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from jaxcoll.sim.network import Topology
from jaxcoll.sim.timeline import Bound, Model, Stragglers, picoseconds

# More cuts are seldom tighter; each costs a maximal flow.
_MOST_CUTS: Final = 24
_MOST_FLOW_RANKS: Final = 100
# The most variables of the linear program. 62 400, a fat tree of 100 ranks, take HiGHS 10 s;
# beyond, minutes.
_MOST_LP_VARIABLES: Final = 100_000
_MOST_LP_SECONDS: Final = 30.0
_MOST_DIJKSTRA_SOURCES: Final = 64
_MOST_ROUNDS: Final = 40  # of the fixed point of a maximal flow


class Bounds:
    """Bounds of one network with one placement, for any size; what is costly is computed once."""

    def __init__(
        self,
        topology: Topology,
        hosts: Sequence[str],
        capacities_Bps: NDArray[np.float64],
        *,
        flow: bool = True,
    ) -> None:
        """Takes the capacities at the start; later failures can only make things slower.

        Args:
          topology: the network.
          hosts: by rank, its endpoint.
          capacities_Bps: by link.
          flow: also the bounds named "flow", where they apply.
        """
        self._topology, self._flow = topology, flow
        self._ranks = [topology.index[host] for host in hosts]
        self._nodes = len(topology.nodes)
        links = topology.links
        up = capacities_Bps > 0
        self._source = links.source[up].astype(np.int64)
        self._destination = links.destination[up].astype(np.int64)
        self._latency_ps = links.latency_ps[up]
        self._capacity = capacities_Bps[up]
        self._out = np.bincount(self._source, self._capacity, self._nodes)[self._ranks]
        self._in = np.bincount(self._destination, self._capacity, self._nodes)[self._ranks]
        self._links_out = int(np.bincount(self._source, minlength=self._nodes)[self._ranks].max())
        self._known: dict[Any, Any] = {}
        self._missing: dict[str, str] = {}

    def missing(self, collective: str) -> str:
        """Why the bound "flow" is not among those of a collective that has one; or "".

        Known after `of`. Empty where it was not asked for.
        """
        return self._missing.get(collective, "")

    def of(
        self,
        collective: str,
        nbytes: int,
        model: Model,
        stragglers: Stragglers,
        *,
        root: int = 0,
        permutation: Sequence[tuple[int, int]] = (),
    ) -> tuple[Bound, ...]:
        """The bounds of a collective, the highest first."""
        p, n = len(self._ranks), float(nbytes)
        if p < 2:
            return ()
        # Bounds must hold for the fastest rank: jitter may make anything free.
        ease = 0.0 if stragglers.jitter else min((1.0, *stragglers.slowdown))
        overhead_s = math.floor(picoseconds(model.overhead_s) * ease) * 1e-12
        latency_s = picoseconds(model.latency_s) * 1e-12
        reduce_s = model.reduce_s_per_byte * ease
        least_s = overhead_s + latency_s + self._path_latencies()[0]
        pairs = [(s, d) for s, d in permutation if s != d]
        if collective == "permute" and not pairs:
            return ()
        found = [
            Bound("latency", self._latency(collective, overhead_s, latency_s, root, pairs)),
            Bound("ports", self._ports(collective, n, root, pairs) + least_s),
        ]
        if reduce_s > 0 and collective in ("all_reduce", "reduce_scatter", "reduce"):
            found.append(Bound("reduction", (p - 1) / p * n * reduce_s))
        for name, seconds in self._cuts(collective, root, pairs):
            found.append(Bound(name, n * seconds + least_s))
        if self._flow:
            seconds = self._remember(("flow", collective), lambda: self._flow_bound(collective))
            if seconds > 0:
                found.append(Bound("flow", n * seconds + least_s))
        return tuple(sorted(found, key=lambda bound: -bound.time_s))

    def _remember(self, key: Any, compute: Any) -> Any:
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]

    # --- latency ---

    def _path_latencies(self) -> tuple[float, float, dict[int, NDArray[np.float64]]]:
        """Least and greatest latency between ranks; by source rank, to all nodes.

        With many ranks only some are sources: then the greatest is a lower bound, and the least
        that of a link.
        """

        def compute() -> tuple[float, float, dict[int, NDArray[np.float64]]]:
            from scipy.sparse import csr_array
            from scipy.sparse.csgraph import dijkstra

            ranks = np.array(self._ranks)
            # Parallel links: the fastest. An explicit 0 would be no edge.
            pair = self._source * self._nodes + self._destination
            order = np.lexsort((self._latency_ps, pair))
            _, first = np.unique(pair[order], return_index=True)
            best = order[first]
            graph = csr_array(
                (self._latency_ps[best] + 1e-9, (self._source[best], self._destination[best])),
                (self._nodes, self._nodes),
            )
            count = len(ranks)
            some = count > _MOST_DIJKSTRA_SOURCES
            sources = np.linspace(0, count - 1, min(count, _MOST_DIJKSTRA_SOURCES)).astype(int)
            distance = dijkstra(graph, indices=ranks[sources])
            by_rank = {int(r): np.floor(distance[i]) * 1e-12 for i, r in enumerate(sources)}
            between = np.array([by_rank[int(r)][ranks] for r in sources])
            between[np.arange(len(sources)), sources] = np.nan
            least = float(self._latency_ps.min()) * 1e-12 if some else float(np.nanmin(between))
            return least, float(np.nanmax(between)), by_rank

        result: tuple[float, float, dict[int, NDArray[np.float64]]] = self._remember(
            "latency", compute
        )
        return result

    def _latency(
        self,
        collective: str,
        overhead_s: float,
        latency_s: float,
        root: int,
        pairs: list[tuple[int, int]],
    ) -> float:
        least, greatest, by_rank = self._path_latencies()
        once = overhead_s + latency_s
        ranks = np.array(self._ranks)
        if collective == "permute":
            known = [by_rank[s][self._ranks[d]] for s, d in pairs if s in by_rank]
            return once + float(max(known, default=least))
        if collective == "reduce":
            known = [float(from_s[self._ranks[root]]) for s, from_s in by_rank.items() if s != root]
            return once + max(known, default=least)
        if collective == "broadcast":
            far = float(by_rank[root][ranks].max()) if root in by_rank else least
        else:
            far = greatest
        turns = _broadcast_turns(len(ranks), self._links_out, overhead_s, latency_s + least)
        return max(once + far, turns)

    # --- bytes through ports and cuts; seconds per byte of n ---

    def _ports(self, collective: str, n: float, root: int, pairs: list[tuple[int, int]]) -> float:
        p = len(self._ranks)
        out, into = self._out, self._in
        share = (p - 1) / p
        others = np.arange(p) != root
        with np.errstate(divide="ignore"):
            match collective:
                case "all_reduce":
                    each = max((1 / out).max(), (1 / into).max())
                    return n * float(max(each, 2 * (p - 1) / min(out.sum(), into.sum())))
                case "all_gather":
                    each = max((1 / out).max() / p, share * (1 / into).max())
                    return n * float(max(each, (p - 1) / min(out.sum(), into.sum())))
                case "reduce_scatter":
                    each = max(share * (1 / out).max(), (1 / into).max() / p)
                    return n * float(max(each, (p - 1) / min(out.sum(), into.sum())))
                case "all_to_all":
                    return n * float(share * max((1 / out).max(), (1 / into).max()))
                case "broadcast":
                    pooled = (p - 1) / min(out.sum(), into[others].sum())
                    return n * float(max(1 / out[root], (1 / into[others]).max(), pooled))
                case "reduce":
                    pooled = (p - 1) / min(out[others].sum(), into.sum())
                    return n * float(max(1 / into[root], (1 / out[others]).max(), pooled))
                case _:
                    return n * float(max(max(1 / out[s], 1 / into[d]) for s, d in pairs))

    def _cuts(
        self, collective: str, root: int, pairs: list[tuple[int, int]]
    ) -> list[tuple[str, float]]:
        found = []
        for name, members, out, into in self._remember("cuts", self._cut_capacities):
            p, inside = len(self._ranks), len(members)
            outside = p - inside
            match collective:
                case "all_reduce":
                    demand = (1.0, 1.0)
                case "all_gather":
                    demand = (inside / p, outside / p)
                case "reduce_scatter":
                    demand = (outside / p, inside / p)
                case "all_to_all":
                    demand = (inside * outside / p,) * 2
                case "broadcast":
                    demand = (1.0, 0.0) if root in members else (0.0, 1.0)
                case "reduce":
                    demand = (0.0, 1.0) if root in members else (1.0, 0.0)
                case _:
                    leave = sum(s in members and d not in members for s, d in pairs)
                    enter = sum(d in members and s not in members for s, d in pairs)
                    demand = (float(leave), float(enter))
            seconds = (
                max(
                    (bytes_ / rate if rate > 0 else math.inf)
                    for bytes_, rate in zip(demand, (out, into), strict=True)
                    if bytes_ > 0
                )
                if any(demand)
                else 0.0
            )
            if math.isfinite(seconds) and seconds > 0:
                found.append((f"cut {name}", seconds))
        return found

    def _cut_capacities(self) -> list[tuple[str, frozenset[int], float, float]]:
        """(group, its ranks, capacity out of it, into it)."""
        rank_of = {node: rank for rank, node in enumerate(self._ranks)}
        index = self._topology.index
        cuts: dict[frozenset[int], str] = {}
        for name, group in self._topology.groups.items():
            members = frozenset(rank_of[index[h]] for h in group if index[h] in rank_of)
            if 1 < len(members) < len(self._ranks) and members not in cuts:
                cuts[members] = name
        chosen = sorted(cuts.items(), key=lambda cut: -len(cut[0]))
        if len(chosen) > _MOST_CUTS:  # the largest, and some of the others
            tail = chosen[_MOST_CUTS // 2 :]
            step = len(tail) / (_MOST_CUTS // 2)
            chosen = chosen[: _MOST_CUTS // 2] + [
                tail[int(i * step)] for i in range(_MOST_CUTS // 2)
            ]
        result = []
        for members, name in chosen:
            inside = [self._ranks[r] for r in members]
            outside = [node for r, node in enumerate(self._ranks) if r not in members]
            result.append(
                (name, members, self._max_flow(inside, outside), self._max_flow(outside, inside))
            )
        return result

    def _max_flow(
        self, sources: Sequence[int], sinks: Sequence[int], each: float = math.inf
    ) -> float:
        """Bytes per second from `sources`, each able to send at most `each`, to `sinks`.

        Rounded up, so that what is divided by it stays a bound.
        """
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import maximum_flow

        total = float(self._capacity.sum())
        limit = min(each, total)
        unit = total / (1 << 30)
        up = np.ceil(self._capacity / unit).astype(np.int64)
        wide = min(int(np.ceil(limit / unit)), (1 << 30) + len(up))
        first, last = self._nodes, self._nodes + 1
        source = np.concatenate(
            [self._source, np.full(len(sources), first), np.asarray(sinks, np.int64)]
        )
        destination = np.concatenate(
            [self._destination, np.asarray(sources, np.int64), np.full(len(sinks), last)]
        )
        wide_in = np.full(len(sources), wide)
        wide_out = np.full(len(sinks), (1 << 30) + len(up))
        capacity = np.concatenate([up, wide_in, wide_out])
        graph = csr_array(
            (capacity.astype(np.int64), (source, destination)), (self._nodes + 2, self._nodes + 2)
        )
        graph.sum_duplicates()
        graph.data = np.minimum(graph.data, np.iinfo(np.int32).max)
        graph = csr_array((graph.data.astype(np.int32), graph.indices, graph.indptr), graph.shape)
        return float(maximum_flow(graph, first, last).flow_value) * unit

    # --- flow ---

    def _flow_bound(self, collective: str) -> float:
        """Seconds per byte of n, or 0."""
        if collective not in ("all_gather", "reduce_scatter", "all_to_all"):
            return 0.0
        if len(self._ranks) > _MOST_FLOW_RANKS:
            self._missing[collective] = (
                f"{len(self._ranks)} ranks; it is computed for up to {_MOST_FLOW_RANKS}"
            )
            return 0.0
        if collective == "all_to_all":
            return self._all_to_all_lp()
        return self._broadcast_rate_bound(backwards=collective == "reduce_scatter")

    def _broadcast_rate_bound(self, *, backwards: bool) -> float:
        """All ranks broadcast n / p at a rate x each: to rank v, the maximal flow must allow it.

        Say the others may send x each, and together get f(x) <= (p - 1) x to v through a cut of
        capacity C that k of them are beyond: f = k x + C. Then no rate above C / (p - 1 - k) will
        do, and f / (p - 1) is above that: so x := f / (p - 1) stays an upper limit, and converges.
        """
        p = len(self._ranks)
        flip = (self._source, self._destination)
        if backwards:  # a reduce_scatter is an all_gather on the reversed network
            self._source, self._destination = flip[1], flip[0]
        try:
            rate = math.inf
            for v in range(p):
                others = [node for r, node in enumerate(self._ranks) if r != v]
                # All others together get at most the plain maximal flow: a first guess.
                rate = min(rate, self._max_flow(others, [self._ranks[v]]) / (p - 1))
            for v in range(p):
                others = [node for r, node in enumerate(self._ranks) if r != v]
                for _ in range(_MOST_ROUNDS):
                    flow = self._max_flow(others, [self._ranks[v]], each=rate)
                    if flow >= rate * (p - 1) * (1 - 1e-6):
                        break
                    rate = flow / (p - 1)
            return 1 / (p * rate * (1 + 2e-6)) if rate > 0 else 0.0
        finally:
            self._source, self._destination = flip

    def _all_to_all_lp(self) -> float:
        """Maximises the rate x at which every rank can send to every other at once.

        f[s, e] is how much of source s's data crosses link e. Every rank keeps x of each other
        source, and links hold. The optimum is a bound up to HiGHS's tolerance, which is taken off.
        """
        from scipy.optimize import linprog
        from scipy.sparse import block_diag, coo_array, csr_array, hstack, kron

        p, links = len(self._ranks), len(self._source)
        if p * links > _MOST_LP_VARIABLES:
            self._missing["all_to_all"] = (
                f"its linear program has {p * links} variables ({p} sources x {links} links); it "
                f"is solved for up to {_MOST_LP_VARIABLES}"
            )
            return 0.0
        unit = float(self._capacity.max())
        rows = np.concatenate([self._destination, self._source])
        cols = np.concatenate([np.arange(links)] * 2)
        signs = np.concatenate([np.ones(links), -np.ones(links)])
        incidence = csr_array((signs, (rows, cols)), (self._nodes, links))  # in - out
        blocks, demands = [], []
        kept = np.zeros(self._nodes)
        kept[self._ranks] = 1
        for s in self._ranks:
            others = np.arange(self._nodes) != s  # the source's own balance follows
            blocks.append(incidence[others])
            demands.append(kept[others])
        balance = block_diag(blocks, format="csr")
        demand = np.concatenate(demands)
        a_eq = hstack([balance, coo_array(-demand[:, None])]).tocsr()
        a_ub = hstack(
            [kron(np.ones((1, p)), csr_array(np.eye(links))), coo_array((links, 1))]
        ).tocsr()
        cost = np.zeros(p * links + 1)
        cost[-1] = -1
        outcome = linprog(
            cost,
            A_ub=a_ub,
            b_ub=self._capacity / unit,
            A_eq=a_eq,
            b_eq=np.zeros(len(demand)),
            method="highs-ipm",  # ten times as fast here as the simplex method
            options={"time_limit": _MOST_LP_SECONDS},
        )
        if outcome.status != 0:
            late = outcome.status == 1
            self._missing["all_to_all"] = (
                f"its linear program of {p * links} variables was not solved in "
                f"{_MOST_LP_SECONDS:g} s"
                if late
                else f"HiGHS found no solution: {outcome.message}"
            )
            return 0.0
        rate = -float(outcome.fun) * unit
        return 1 / (p * rate * (1 + 1e-6)) if rate > 0 else 0.0


def _broadcast_turns(ranks: int, ports: int, overhead_s: float, latency_s: float) -> float:
    """When the last of `ranks` can know what one knows, if each has this many ports.

    A rank that knows sends a message by every port, and again after each overhead; a message is
    known an overhead and a latency after it began. Greedy is optimal (Karp et al., 1993).
    """
    if overhead_s <= 0:
        return latency_s
    # Next arrivals of everyone who knows: (when, how many).
    arrivals = [(overhead_s + latency_s, ports)]
    last, known = 0.0, 1
    while known < ranks:
        last, count = heapq.heappop(arrivals)
        fresh = min(count, ranks - known)
        known += fresh
        heapq.heappush(arrivals, (last + overhead_s, count))
        heapq.heappush(arrivals, (last + overhead_s + latency_s, ports * fresh))
    return last
