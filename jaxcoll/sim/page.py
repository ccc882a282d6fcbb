"""The report of a sweep as one HTML page that needs no network: SVG drawn here, a few lines of
script for the legends."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, Final

import numpy as np

from jaxcoll.sim.crossovers import Ranking, label, rankings, size_text
from jaxcoll.sim.sweep import Outcome, Sweep, tail_text
from jaxcoll.sim.timeline import Timeline

# Okabe and Ito's colours, which the colour-blind tell apart, and some more; seen on white and on
# black. Where they run out they come again, dotted.
_COLOURS: Final = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#8c6bb1",
    "#7f7f7f",
    "#a6761d",
    "#66a61e",
    "#b2182b",
    "#17a2a2",
    "#e377c2",
    "#9c9c35",
    "#a05a7a",
    "#5c7cfa",
)
_MOST_TIMELINE_RANKS: Final = 64
_MOST_TIMELINE_MESSAGES: Final = 6000
_MOST_LINKS_PER_TIER: Final = 2048

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1b1f24; --dim: #68707a; --line: #d5d9de;
        --back: #ffffff; --card: #f6f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --dim: #9aa3ad; --line: #3a4048; --back: #14171a; --card: #1d2126; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back);
       max-width: 1240px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { font-size: 1.2rem; margin-top: 2.2rem }
h3 { font-size: 1rem; margin: 1rem 0 .3rem } p { max-width: 75ch } .dim { color: var(--dim) }
.simulated { background: #e69f00; color: #000; border-radius: 3px; padding: 0 .5em;
             font-weight: 600 }
.grid { display: flex; flex-wrap: wrap; gap: 1rem } .card { background: var(--card);
  border: 1px solid var(--line); border-radius: 6px; padding: .6rem .8rem; overflow-x: auto }
svg text { fill: var(--ink); font: 11px system-ui, sans-serif } svg .dim { fill: var(--dim) }
svg .axis { stroke: var(--line); fill: none } .off { opacity: .07 }
.legend span { cursor: pointer; margin-right: 1em; white-space: nowrap } .legend i {
  display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .3em }
.legend span.gone { opacity: .3 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 12px }
td, th { padding: .15rem .45rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap }
td.text, th.text { text-align: left } .legend { max-width: none } .scale { display: block }
"""

_SCRIPT: Final = """
for (const key of document.querySelectorAll('.legend span[data-key]'))
  key.onclick = () => {
    const gone = key.classList.toggle('gone');
    for (const line of document.querySelectorAll('[data-line="' + key.dataset.key + '"]'))
      line.classList.toggle('off', gone);
  };
"""


def page(sweep: Sweep, outcomes: Sequence[Outcome], report: dict[str, Any]) -> str:
    """The whole page.

    Args:
      sweep: what ran; one case per network is run again, to draw its messages.
      outcomes: what came out.
      report: what ``--json`` writes.
    """
    algorithms = list(dict.fromkeys(o.case.algorithm for o in outcomes))
    colour = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(algorithms)}
    title = "Simulated collectives"
    parts = [
        f"<h1>{title}</h1>",
        "<p><span class='simulated'>simulated</span> Every time on this page comes from a "
        f"flow-level model: the schedules that run, on networks that are described, links shared "
        f"{'unequally' if sweep.setting.model.unfairness else 'max-min fairly'}. No packet was "
        "sent. Dashed: the lower bound, which no schedule can beat.</p>",
        _origin(report),
        _facts(sweep, outcomes, report),
        "<h2>Time against size</h2>",
        _legend(colour),
        "<div class='grid'>",
        *(_chart(name, group, colour) for name, group in _panels(outcomes).items()),
        "</div>",
        "<h2>Crossover map: the fastest algorithm</h2>",
        *_crossovers(rankings(outcomes), colour),
        "<h2>Load of the links</h2>",
        "<p>The fastest algorithm at the largest size, one cell per link and direction, average "
        "over the whole run; hover for names. Crossed out: failed.</p>",
    ]
    shown = _shown(sweep, outcomes)
    parts += [_heat_map(timeline) for timeline in shown]
    parts.append("<h2>Timeline</h2>")
    parts += [_messages(timeline) for timeline in shown]
    parts += ["<h2>All results</h2>", _table(outcomes)]
    body = "\n".join(parts)
    return (
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width'>\n"
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n"
        f"<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def time_text(seconds: float) -> str:
    """1.5e-06 -> 1.5 us."""
    for scale, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")):
        if seconds >= scale:
            return f"{seconds / scale:.4g} {unit}"
    return f"{seconds * 1e12:.4g} ps"


def _origin(report: dict[str, Any]) -> str:
    """The command, version and date, so that a page that was passed on can be made again."""
    command = escape(shlex.join(report["command"]))
    return (
        f"<p class='dim'>jaxcoll {escape(report['version'])}, {escape(report['date'])}.</p>"
        f"<p class='dim'><code>{command}</code></p>"
    )


def _facts(sweep: Sweep, outcomes: Sequence[Outcome], report: dict[str, Any]) -> str:
    rows = []
    priced = any("cost" in network for network in report["topologies"])
    for network in report["topologies"]:
        counts = ", ".join(f"{count} {name}" for name, count in network["components"].items())
        cost = f"<td>{network['cost']:,.0f}</td>" if priced else ""
        rows.append(
            f"<tr><td class='text'>{escape(network['name'])}</td>"
            f"<td class='text'>{escape(counts)}</td>{cost}</tr>"
        )
    missing = {
        f"{t.collective} on {t.topology.name} has no flow bound: {t.missing_bound}"
        for outcome in outcomes
        for t in outcome.timelines
        if t.missing_bound
    }
    cut = {
        f"{label(o)}: left out {len(o.cut)} of {len(o.cut) + len(o.timelines)} seeds, whose "
        "failures cut ranks off"
        for o in outcomes
        if o.cut
    }
    notes = "".join(f"<p class='dim'>{escape(note)}.</p>" for note in sorted(missing | cut))
    model, setting = sweep.setting.model, sweep.setting
    words = [
        f"overhead {time_text(model.overhead_s)} per message, occupying the port"
        if model.overhead_s
        else "",
        f"latency {time_text(model.latency_s)} per message" if model.latency_s else "",
        f"reductions at {1e-9 / model.reduce_s_per_byte:.4g} GB/s per rank"
        if model.reduce_s_per_byte
        else "",
        f"efficiency {model.efficiency:g}" if model.efficiency != 1 else "",
        f"jitter {setting.jitter:g}" if setting.jitter else "",
        f"unfairness {model.unfairness:g}" if model.unfairness else "",
        f"background traffic {setting.background:g} of every port" if setting.background else "",
        f"{setting.seeds} seeds; {tail_text(setting.seeds)}" if setting.seeds > 1 else "",
        f"failures after {time_text(setting.fail_at_s)}" if setting.fail_at_s is not None else "",
    ]
    listed = "; ".join(word for word in words if word) or "links cost time, nothing else does"
    return (
        "<div class='card'><table><tr><th class='text'>network</th><th class='text'>components"
        f"</th>{'<th>cost</th>' if priced else ''}</tr>{''.join(rows)}</table>"
        f"<p class='dim'>Model: {escape(listed)}.</p>{notes}</div>"
    )


def _legend(colour: dict[str, str]) -> str:
    keys = "".join(
        f"<span data-key='{escape(name)}'><i style='background:{value}'></i>{escape(name)}</span>"
        for name, value in colour.items()
    )
    return f"<p class='legend'>{keys}<span class='dim'>click to hide</span></p>"


def _panels(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    panels: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        name = f"{outcome.case.spec.collective} on {label(outcome)}"
        panels.setdefault(name, []).append(outcome)
    return panels


class _LogScale:
    """Values to pixels, powers of ten or two apart."""

    def __init__(self, low: float, high: float, begin: float, end: float) -> None:
        low = max(low, 1e-12)  # a picosecond: one rank takes no time at all
        self._low, self._high = math.log(low), math.log(max(high, low * 1.0001))
        self._begin, self._end = begin, end

    def __call__(self, value: float) -> float:
        part = (math.log(max(value, 1e-12)) - self._low) / (self._high - self._low)
        return self._begin + part * (self._end - self._begin)


def _chart(name: str, outcomes: list[Outcome], colour: dict[str, str]) -> str:
    width, height, left, right, top, bottom = 540, 300, 62, 28, 8, 30
    sizes = sorted({o.median.nbytes for o in outcomes})
    times = [t for o in outcomes for t in (o.p50_s, o.p99_s)]
    times += [t.bound_s for o in outcomes for t in o.timelines if t.bound_s]
    times = [max(time, 1e-12) for time in times]
    low, high = 10 ** math.floor(math.log10(min(times))), 10 ** math.ceil(math.log10(max(times)))
    x = _LogScale(sizes[0], sizes[-1], left, width - right)
    y = _LogScale(low, high, height - bottom, top)
    svg = [f"<svg width='{width}' height='{height}' role='img'>"]
    tick = low
    while tick <= high * 1.001:
        svg.append(
            f"<path class='axis' d='M{left} {y(tick):.1f}H{width - right}'/>"
            f"<text x='{left - 6}' y='{y(tick) + 4:.1f}' text-anchor='end'>{time_text(tick)}</text>"
        )
        tick *= 10
    every = -(-len(sizes) // 7)
    for size in sizes[::every]:
        svg.append(
            f"<text x='{x(size):.1f}' y='{height - 10}' text-anchor='middle'>"
            f"{size_text(size)}</text>"
        )
    bounds: dict[int, float] = {}  # where failures are drawn, the lowest of their bounds
    for t in (t for o in outcomes for t in o.timelines if t.bound_s):
        bounds[t.nbytes] = min(t.bound_s, bounds.get(t.nbytes, math.inf))
    svg.append(
        _path(
            ((x(n), y(bounds[n])) for n in sorted(bounds)), "var(--dim)", "stroke-dasharray='5 4'"
        )
    )
    by_algorithm: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_algorithm.setdefault(outcome.case.algorithm, []).append(outcome)
    for algorithm, group in by_algorithm.items():
        group = sorted(group, key=lambda o: o.median.nbytes)
        svg.append(f"<g data-line='{escape(algorithm)}'>")
        if any(len(o.timelines) > 1 for o in group):  # the band up to p99
            upper = [(x(o.median.nbytes), y(o.p99_s)) for o in group]
            lower = [(x(o.median.nbytes), y(o.p50_s)) for o in reversed(group)]
            points = " ".join(f"{a:.1f},{b:.1f}" for a, b in upper + lower)
            svg.append(f"<polygon points='{points}' fill='{colour[algorithm]}' opacity='.15'/>")
        dots = "" if list(colour).index(algorithm) < len(_COLOURS) else "stroke-dasharray='1.5 4'"
        svg.append(
            _path(((x(o.median.nbytes), y(o.p50_s)) for o in group), colour[algorithm], dots)
        )
        for o in group:
            text = (
                f"{algorithm}, {size_text(o.median.nbytes)}: simulated {time_text(o.p50_s)}, p99 "
                f"{time_text(o.p99_s)}, busbw {o.median.busbw_GBps:.4g} GB/s"
            )
            svg.append(
                f"<circle cx='{x(o.median.nbytes):.1f}' cy='{y(o.p50_s):.1f}' r='3' "
                f"fill='{colour[algorithm]}'><title>{escape(text)}</title></circle>"
            )
        svg.append("</g>")
    svg.append("</svg>")
    return f"<div class='card'><h3>{escape(name)}</h3>{''.join(svg)}</div>"


def _path(points: Iterable[tuple[float, float]], colour: str, extra: str = "") -> str:
    steps = " L".join(f"{a:.1f} {b:.1f}" for a, b in points)
    if not steps:
        return ""
    return f"<path d='M{steps}' fill='none' stroke='{colour}' stroke-width='1.8' {extra}/>"


def _crossovers(ranked: Sequence[Ranking], colour: dict[str, str]) -> list[str]:
    maps = []
    for collective in dict.fromkeys(ranking.collective for ranking in ranked):
        here = [ranking for ranking in ranked if ranking.collective == collective]
        sizes = sorted({size for ranking in here for size, _ in ranking.fastest})
        rows = []
        for ranking in here:
            candidates = dict(ranking.fastest)
            cells = [
                _cell(candidates[size], colour) if size in candidates else "<td></td>"
                for size in sizes
            ]
            rows.append(f"<tr><td class='text'>{escape(ranking.label)}</td>{''.join(cells)}</tr>")
        head = "".join(f"<th>{size_text(size)}</th>" for size in sizes)
        maps.append(
            f"<h3>{collective}</h3><div class='card'><table class='map'><tr><th></th>{head}</tr>"
            f"{''.join(rows)}</table></div>"
        )
    return maps


def _cell(candidates: Sequence[Outcome], colour: dict[str, str]) -> str:
    name = candidates[0].case.algorithm
    all_of_them = ", ".join(f"{o.case.algorithm} {time_text(o.p50_s)}" for o in candidates)
    return (
        f"<td style='background:{colour[name]};color:{_ink_on(colour[name])}' "
        f"title='{escape(all_of_them)}'>"
        f"{escape(name)}<br>{time_text(candidates[0].p50_s)}</td>"
    )


def _ink_on(colour: str) -> str:
    """Black or white, whichever is easier to read on a colour (WCAG 2's relative luminance)."""
    red, green, blue = (
        (int(colour[i : i + 2], 16) / 255 + 0.055) ** 2.4 / 1.055**2.4 for i in (1, 3, 5)
    )
    return "#000" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 else "#fff"


def _shown(sweep: Sweep, outcomes: Sequence[Outcome]) -> list[Timeline]:
    """Per network, collective and number of ranks the fastest case of the largest size, run again
    with messages."""
    best: dict[str, Outcome] = {}
    largest = max(o.case.nbytes for o in outcomes)
    for outcome in outcomes:
        if outcome.case.nbytes != largest:
            continue
        key = f"{outcome.case.spec.collective} on {outcome.case.where}"
        if key not in best or outcome.p50_s < best[key].p50_s:
            best[key] = outcome
    return [
        sweep.run_one(
            o.case, o.median.seed, record=o.median.message_count <= 50 * _MOST_TIMELINE_MESSAGES
        )
        for o in best.values()
    ]


def _name(timeline: Timeline) -> str:
    return (
        f"{timeline.algorithm} {timeline.collective} of {size_text(timeline.nbytes)} on "
        f"{timeline.topology.name}, {timeline.routing}: simulated {time_text(timeline.time_s)}"
    )


def _heat(load: float) -> str:
    """White to red to black."""
    load = min(1.0, max(0.0, load))
    return f"hsl({48 - 48 * load:.0f} 90% {94 - 62 * load:.0f}%)"


def _heat_map(timeline: Timeline) -> str:
    topology = timeline.topology
    tiers: dict[str, list[int]] = {}
    tier_of = [node.tier for node in topology.nodes.values()]
    source, destination = topology.links.source.tolist(), topology.links.destination.tolist()
    for i, (a, b) in enumerate(zip(source, destination, strict=True)):
        tiers.setdefault(f"{tier_of[a]} to {tier_of[b]}", []).append(i)
    cell, columns = 11, 64
    rows = []
    for tier, links in tiers.items():
        shown = links[:_MOST_LINKS_PER_TIER]
        height = cell * -(-len(shown) // columns)
        squares = []
        for place, i in enumerate(shown):
            x, y = place % columns * cell, place // columns * cell
            load = float(timeline.utilisation[i])
            failed = timeline.capacities_Bps[i] == 0
            what = "failed" if failed else f"{load:.1%}, {size_text(float(timeline.link_bytes[i]))}"
            squares.append(
                f"<rect x='{x}' y='{y}' width='{cell - 1}' height='{cell - 1}' "
                f"fill='{'none' if failed else _heat(load)}' "
                "stroke='var(--line)' stroke-width='.5'>"
                f"<title>{escape(topology.links[i].name)}: {what}</title></rect>"
            )
            if failed:
                squares.append(
                    f"<path d='M{x} {y}l{cell - 1} {cell - 1}m0 {1 - cell}l{1 - cell} {cell - 1}' "
                    "stroke='#b2182b'/>"
                )
        loads = timeline.utilisation[links]
        cut = f", the first {len(shown)}" if len(shown) < len(links) else ""
        rows.append(
            f"<p class='dim' style='margin:.4rem 0 .1rem'>{escape(tier)}: {len(links)} links{cut}; "
            f"mean {loads.mean():.0%}, most {loads.max():.0%}</p>"
            f"<svg width='{columns * cell}' height='{height}'>{''.join(squares)}</svg>"
        )
    scale = "".join(f"<tspan style='fill:{_heat(i / 10)}'>&#9608;</tspan>" for i in range(11))
    return (
        f"<h3>{escape(_name(timeline))}</h3><div class='card'>{''.join(rows)}"
        "<svg class='scale' width='260' height='18'>"
        f"<text x='0' y='13'>0 {scale} 100 %</text></svg></div>"
    )


def _messages(timeline: Timeline) -> str:
    title = f"<h3>{escape(_name(timeline))}</h3>"
    if not len(timeline.messages):
        return (
            f"{title}<p class='dim'>{timeline.message_count} messages are too many to draw; "
            "--trace writes them for Perfetto.</p>"
        )
    ranks = min(timeline.world_size, _MOST_TIMELINE_RANKS)
    rows = timeline.messages[timeline.messages[:, 2] < ranks]
    order = np.argsort(rows[:, 6], kind="stable")
    rows = rows[order][:_MOST_TIMELINE_MESSAGES]
    channels = int(rows[:, 1].max(initial=0)) + 1
    bar = max(3, 8 // channels)  # one below the other within the rank's row
    width, left, right, height = 1080, 64, 32, channels * bar + 2
    scale = (width - left - right) / max(1, timeline.time_ps)
    svg = []
    for rank in range(ranks):
        middle = rank * height + height // 2 + 4
        svg.append(f"<text x='{left - 6}' y='{middle}' text-anchor='end'>{rank}</text>")
    for step, channel, source, destination, nbytes, _, sent, gone, arrived, done in rows.tolist():
        x, wide = left + sent * scale, max(0.6, (gone - sent) * scale)
        text = (
            f"{source} to {destination}, step {step}, {size_text(nbytes)}: sent from "
            f"{time_text(sent / 1e12)} to {time_text(gone / 1e12)}, "
            f"there {time_text(arrived / 1e12)}"
            + (f", reduced {time_text(done / 1e12)}" if done > arrived else "")
        )
        svg.append(
            f"<rect x='{x:.2f}' y='{source * height + 1 + channel * bar}' width='{wide:.2f}' "
            f"height='{bar}' fill='{_COLOURS[step % len(_COLOURS)]}' opacity='.8'>"
            f"<title>{escape(text)}</title></rect>"
        )
    bottom = ranks * height
    for part in range(5):
        x = left + part / 4 * (width - left - right)
        svg.append(
            f"<text x='{x:.0f}' y='{bottom + 14}' text-anchor='middle'>"
            f"{time_text(timeline.time_s * part / 4) if part else '0'}</text>"
        )
    cut = []
    if ranks < timeline.world_size:
        cut.append(f"the first {ranks} of {timeline.world_size} ranks")
    if len(rows) < int((timeline.messages[:, 2] < ranks).sum()):
        cut.append(f"their first {len(rows)} messages")
    note = f"<p class='dim'>Drawn: {', '.join(cut)}.</p>" if cut else ""
    return (
        f"{title}<div class='card'><p class='dim'>A row per rank, a bar per message it sends, "
        f"coloured by step{', channels one below the other' if channels > 1 else ''}.</p>{note}"
        f"<svg width='{width}' height='{bottom + 22}'>{''.join(svg)}</svg></div>"
    )


def _table(outcomes: Sequence[Outcome]) -> str:
    head = (
        "<tr><th class='text'>network, routing</th><th class='text'>collective</th>"
        "<th class='text'>algorithm</th><th>size</th><th>simulated time</th><th>p99</th>"
        "<th>algbw GB/s</th><th>busbw GB/s</th><th>bound</th><th>gap</th>"
        "<th class='text'>bottleneck</th></tr>"
    )
    rows = []
    for o in outcomes:
        t = o.median
        busiest = "".join(f"{escape(link)} {load:.0%}" for link, load in t.bottlenecks(1))
        bound = (
            f"<td>{time_text(t.bound_s)}</td><td>{o.p50_s / t.bound_s:.2f}</td>"
            if (t.bound_s)
            else "<td></td><td></td>"
        )
        rows.append(
            f"<tr><td class='text'>{escape(label(o))}</td>"
            f"<td class='text'>{t.collective}</td><td class='text'>{escape(t.algorithm)}</td>"
            f"<td>{size_text(t.nbytes)}</td><td>{time_text(o.p50_s)}</td>"
            f"<td>{time_text(o.p99_s)}</td><td>{t.algbw_GBps:.3f}</td><td>{t.busbw_GBps:.3f}</td>"
            f"{bound}<td class='text'>{busiest}</td></tr>"
        )
    return f"<div class='card'><table>{head}{''.join(rows)}</table></div>"
