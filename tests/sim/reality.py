"""The simulator against reality: schedules run over tcp between hosts with shaped links.

    python tests/sim/reality.py --json benchmarks/results/reality.json

Hosts are network namespaces (tests/multiprocess/hosts.py), their cables `tc`'s token buckets in
both directions, and ranks processes of the engine without JAX (jaxcoll/tune/ranks.py). The
simulation runs the schedule as the engine does (jaxcoll/tune/engine_model.py) on a switch with
links of those rates. Three figures are measured first, by one-way messages between two hosts, and
then kept: how long a small message takes, and from two sizes the share of a link's rate that
carries payload. Everything else is predicted: other collectives, algorithms, numbers of hosts and
sizes.

So that the links are the links of the model:

- the buckets are small (5 kB): what a link has saved up while idle is nothing beside a message;
- no queue overflows, so nothing is lost and sent again;
- what a socket may queue in front of its own link is little (tcp_limit_output_bytes, small
  segments): acknowledgements and notices must pass by there, too;
- reno, which lets the acknowledgements pace what is sent. bbr takes the shortest round trip it saw
  for the longest, and halves the rate of two hosts that send to each other.

A measured time is the median of the faster half of a few calls: what else runs on the machine only
adds to it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "multiprocess"))

from hosts import Network, NotPermitted

from jaxcoll.schedule import Collective, ScheduleSpec
from jaxcoll.sim.network import Topology
from jaxcoll.simulate import Model
from jaxcoll.tune.engine_model import predict_s
from jaxcoll.tune.ranks import Ranks, Times

KIB = 1 << 10
MBIT_BPS = 1e6 / 8
_DISCIPLINE = "tbf rate {}mbit burst 5kb latency 4s"
_TCP = {
    "tcp_congestion_control": "reno",
    "tcp_limit_output_bytes": "8192",
    "tcp_slow_start_after_idle": "0",
    "tcp_no_metrics_save": "1",
}
CALIBRATED_KIB = (1, 128, 1024)


@dataclass(frozen=True)
class Setup:
    """Hosts on a switch; their links' rate, and that of the last one's."""

    hosts: int
    mbit: int
    slow_mbit: int

    @property
    def rates_mbit(self) -> list[int]:
        return [self.mbit] * (self.hosts - 1) + [self.slow_mbit]

    def __str__(self) -> str:
        slow = "" if self.slow_mbit == self.mbit else f", one {self.slow_mbit}"
        return f"{self.hosts} hosts, {self.mbit} Mb/s{slow}"


@dataclass(frozen=True)
class Row:
    """One collective, predicted and measured."""

    setup: str
    collective: str
    algorithm: str
    nbytes: int
    predicted_s: float
    rounds_s: tuple[float, ...]
    cpu_share: float

    @property
    def measured_s(self) -> float:
        return Times(self.rounds_s, self.cpu_share).quiet_s

    @property
    def error(self) -> float:
        return self.predicted_s / self.measured_s - 1

    def __str__(self) -> str:
        return (
            f"{self.setup:28} {self.collective:12} {self.algorithm:18} {self.nbytes // KIB:6} KiB "
            f"{self.predicted_s * 1e3:9.1f} ms {self.measured_s * 1e3:9.1f} ms {self.error:+7.1%} "
            f"{self.cpu_share:5.0%}"
        )


HEAD = (
    f"{'network':28} {'collective':12} {'algorithm':18} {'size':>10} {'simulated':>12} "
    f"{'measured':>12} {'error':>7} {'CPU':>5}"
)


def topology(setup: Setup) -> Topology:
    """The network as it is modelled."""
    made = Topology(str(setup))
    switch = made.add_switch("switch")
    for index, mbit in enumerate(setup.rates_mbit):
        made.connect(made.add_host(f"host{index}"), switch, mbit * MBIT_BPS)
    return made


def shape(network: Network, setup: Setup) -> None:
    """Makes the real one so. Raises: NotPermitted where this kernel cannot."""
    settings = " && ".join(f"echo {v} > /proc/sys/net/ipv4/{k}" for k, v in _TCP.items())
    for index, mbit in enumerate(setup.rates_mbit):
        network.shape_host(index, "eth0", _DISCIPLINE.format(mbit))
        try:
            network.hosts[index].run("sh", "-c", settings)
            for option in (("gso_max_size", "3000"), ("gso_max_segs", "2")):
                network.hosts[index].run("ip", "link", "set", "eth0", *option)
        except RuntimeError as error:
            raise NotPermitted(f"tcp cannot be set up here: {error}") from None


def schedules(hosts: int, *, few: bool) -> list[ScheduleSpec]:
    """The cases that are run; `few`: one of each kind."""
    named: list[tuple[Collective, str]] = [
        ("all_reduce", "ring"),
        ("all_reduce", "direct2"),
        ("all_to_all", "direct"),
    ]
    if hosts > 2:
        named += [("all_reduce", "halving_doubling"), ("all_reduce", "double_tree")]
        named += [("all_reduce", f"hierarchical[2x{hosts // 2}]")]
    if not few:
        named += [("all_gather", "ring"), ("all_gather", "bruck"), ("broadcast", "binomial")]
        named += [("all_to_all", "bruck"), ("reduce_scatter", "ring")]
    return [ScheduleSpec(collective, hosts, algorithm) for collective, algorithm in named]


def compare(
    setup: Setup,
    sizes_kib: Sequence[int],
    *,
    rounds: int,
    few: bool = False,
    tell: Callable[[str], object] = print,
) -> list[Row]:
    """Predicts and measures on one network. Raises: NotPermitted with the reason."""
    assert not set(sizes_kib) & set(CALIBRATED_KIB)
    rows = []
    with Network(setup.hosts) as network:
        shape(network, setup)
        # Where we may, before what else this machine does; else it is as it is.
        enter = [host.command("nice", "-n", "-15") for host in network.hosts]
        # Between the first host and the second, which with two hosts may be the slow one.
        with Ranks(2, transports=["tcp"], apart=True, enter=enter[:2]) as two:
            small_s, short_s, long_s = (
                two.time("broadcast", "direct", kib * KIB, rounds=7).quiet_s
                for kib in CALIBRATED_KIB
            )
        rate_Bps = min(setup.rates_mbit[:2]) * MBIT_BPS
        least_s = (CALIBRATED_KIB[2] - CALIBRATED_KIB[1]) * KIB / rate_Bps
        efficiency = least_s / max(long_s - short_s, least_s)  # no link is faster than its bucket
        model = Model(latency_s=small_s, efficiency=efficiency, in_flight=0)
        tell(
            f"# {setup}: calibrated: {small_s * 1e6:.0f} us for a small message, "
            f"{model.efficiency:.1%} of a link's rate is payload"
        )
        with Ranks(setup.hosts, transports=["tcp"], apart=True, enter=enter) as ranks:
            for spec in schedules(setup.hosts, few=few):
                for kib in sizes_kib:
                    times = ranks.time(
                        spec.collective, spec.algorithm, kib * KIB, dims=spec.dims, rounds=rounds
                    )
                    rows.append(
                        Row(
                            str(setup),
                            spec.collective,
                            spec.algorithm,
                            kib * KIB,
                            predict_s(spec, kib * KIB, topology(setup), model),
                            times.rounds_s,
                            times.cpu_share,
                        )
                    )
                    tell(str(rows[-1]))
    return rows


def summary(rows: Iterable[Row]) -> str:
    """The line below the table."""
    errors = sorted(abs(row.error) for row in rows)
    cpu = [row.cpu_share for row in rows]
    return (
        f"# {len(errors)} sizes that were not calibrated on: median error "
        f"{statistics.median(errors):.1%}, three quarters below {errors[3 * len(errors) // 4]:.1%},"
        f" largest {errors[-1]:.1%}; CPU of all ranks: median {statistics.median(cpu):.0%} of "
        f"{len(os.sched_getaffinity(0))} cores, most {max(cpu):.0%}"
    )


WHOLE = (
    Setup(2, 200, 200),
    Setup(2, 100, 50),
    Setup(4, 100, 100),
    Setup(4, 100, 50),
    Setup(8, 50, 50),
    Setup(8, 50, 25),
)
WHOLE_KIB = (192, 768, 1536)


def main() -> None:
    """All networks, as a table and as a file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--rounds", type=int, default=4, metavar="N", help="calls of each [4]")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    print(HEAD)
    rows = []
    for setup in WHOLE:
        rows += compare(setup, WHOLE_KIB, rounds=options.rounds)
    print(summary(rows))
    if options.json:
        about = {
            "what": "simulated against measured, tcp between network namespaces",
            "summary": summary(rows),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": {
                "cores": len(os.sched_getaffinity(0)),
                "kernel": platform.release(),
                "load_1min": [load, os.getloadavg()[0]],
            },
            "links": _DISCIPLINE,
            "tcp": _TCP,
            "calibrated_KiB": CALIBRATED_KIB,
            "rows": [asdict(row) | {"measured_s": row.measured_s} for row in rows],
        }
        options.json.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
