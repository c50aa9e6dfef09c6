"""The figures in docs/performance.md and docs/simulation.md: filled in from the result files, so that none can drift.

    python -m benchmarks.page           write the blocks
    python -m benchmarks.page --check   exit 1 if a block says something else than the results

A block stands between `<!-- speed:<name> -->` and `<!-- speed:end -->`. Values are medians, with least and most.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, ROOT

PAGES = tuple(ROOT / "docs" / name for name in ("performance.md", "simulation.md", "deployment.md"))
_BLOCK = re.compile(r"(<!-- speed:(?!end)([a-z-]+) -->\n)(.*?)(<!-- speed:end -->)", re.DOTALL)
_MISSING = "*Not measured yet: `python -m benchmarks.{name} --sizes full`.*\n"


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _range(spread: dict[str, float] | None) -> str:
    if not spread:
        return "-"
    return f"{_number(spread['median'])} ({_number(spread['min'])} to {_number(spread['max'])})"


def _gib(entry: dict[str, Any]) -> str:
    return f"{entry['peak_bytes'] / 2**30:.2f} GiB" if "peak_bytes" in entry else "-"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)]) + "\n"


def _ratios(ratios: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')}: {_number(value)}" for name, value in ratios.items())


def _where(results: dict[str, Any]) -> str:
    """Versions and cores of each result file."""
    rows = []
    for name, result in sorted(results.items()):
        found = result["environment"]
        packages = ", ".join(f"{package} {number}" for package, number in found["packages"].items())
        cores, memory = found["cores"], f"{found['memory_gib']:.0f} GiB"
        rows.append(
            [name, result["sizes"], cores, memory, found["load_before"], f"Python {found['python']}, {packages}"]
        )
    return _table(["result", "sizes", "cores", "memory", "load before", "versions"], rows)


def _engine(results: dict[str, Any]) -> str:
    figures = results["engine"]["figures"]
    rows = [
        [
            entry["engine"],
            entry["embedding"],
            f"{entry['cohort']:,}",
            entry["threads"],
            "default" if entry.get("pairs_at_once") is None else f"{entry['pairs_at_once']:,}",
            entry.get("failed") or _range(entry.get("updates_per_second")),
            _gib(entry),
        ]
        for entry in figures["cases"]
    ]
    head = ["engine", "embedding", "cohort", "threads", "pairs at once", "client updates/s", "peak memory"]
    ratios = [f"- {name}: {_ratios(values)}" for name, values in figures["ratios"].items()]
    same = [
        f"- {entry['embedding']}: vmap {entry['vmap']:.1e}, oracle {entry['oracle']:.1e}"
        for entry in figures["same_numbers"]
        if "vmap" in entry
    ]
    return (
        _table(head, rows)
        + "\nRatios of medians, one thread, in the same run:\n\n"
        + "\n".join(ratios)
        + "\n\nLargest difference of any number from the cohort engine, in float64:\n\n"
        + "\n".join(same)
        + "\n"
    )


def _engine_parts(results: dict[str, Any]) -> str:
    entries = [entry for entry in results["engine"]["figures"]["parts"] if "share" in entry]
    parts = sorted({part for entry in entries for part in entry["share"]}, key=lambda p: -entries[0]["share"].get(p, 0))
    rows = [
        [e["embedding"], e["threads"], *(f"{100 * e['share'].get(part, 0.0):.0f} %" for part in parts)] for e in entries
    ]
    return _table(["embedding", "threads", *parts], rows)


def _clipping(results: dict[str, Any]) -> str:
    figures = results["clipping"]["figures"]
    noise = {entry["items"]: entry["seconds"] for entry in figures["noise"]}
    rows = [
        [
            f"{entry['items']:,}",
            entry["engine"],
            entry["cohort"],
            _range(entry["without"]),
            _range(entry["with"]),
            _range(entry["ratio"]),
            _range(noise[entry["items"]]),
        ]
        for entry in figures["cases"]
    ]
    head = [
        "items",
        "engine",
        "cohort",
        "seconds without",
        "seconds with",
        "ratio of a pair",
        "noise on the sum, seconds",
    ]
    return _table(head, rows)


def _stock(results: dict[str, Any]) -> str:
    figures = results["stock_flower"]["figures"]
    rows = [
        ["stock Flower", f"{entry['nodes']:,}", f"{entry['users_per_round']:,}", _or(entry, "updates_per_second")]
        for entry in figures["stock"]
    ]
    rows += [
        ["fedrec", f"{entry['nodes']:,}", f"{entry.get('users_per_round', 0):,}", _or(entry, "updates_per_second")]
        for entry in figures["fedrec"]
    ]
    ratios = ", ".join(f"{_number(value)} at {int(n):,} nodes" for n, value in figures["fedrec_over_stock"].items())
    return _table(["", "nodes", "users a round", "client updates/s"], rows) + f"\nfedrec over stock Flower: {ratios}.\n"


def _or(entry: dict[str, Any], name: str) -> str:
    return str(entry["failed"]) if "failed" in entry else _range(entry.get(name))


def _pfl(results: dict[str, Any]) -> str:
    figures = results["pfl_task"]["figures"]
    rows = [["pfl-research", e.get("threads", "-"), _or(e, "updates_per_second")] for e in figures["pfl"]]
    rows += [["cohort engine", e.get("threads", "-"), _or(e, "updates_per_second")] for e in figures["fedrec"]]
    return _table(["", "threads", "client updates/s (SGD)"], rows)


def _rounds(results: dict[str, Any]) -> str:
    figures = results["round_phases"]["figures"]
    floor = figures["floor"]
    rows = [["empty round, quick polls", "-", _range(floor.get("push_and_pull")), "-"]]
    rows += [["empty round, `send_and_receive`", "-", _range(floor.get("send_and_receive")), "-"]]
    for entry in figures["simulation"]:
        users = f"{entry.get('users_per_round', 0):,}"
        rows.append(["fedrec through Flower", users, _or(entry, "seconds"), _range(entry.get("updates_per_second"))])
    for entry in figures["in_process"]:
        if "part_seconds" not in entry and "users_per_round" in entry:
            label = f"fedrec in one process, {entry['embedding']}"
            users = f"{entry['users_per_round']:,}"
            rows.append([label, users, _range(entry["seconds"]), _range(entry["updates_per_second"])])
    text = _table(["", "users a round", "seconds a round", "client updates/s"], rows)
    ratios = ", ".join(f"{_number(v)} at {int(n):,} users" for n, v in figures["ratios"].items())
    text += f"\nMedian round over the median empty round: {ratios}.\n\n"
    starts = [
        [n + 1, _seconds(e, "superlink_seconds"), _seconds(e, "first_round_seconds"), _seconds(e, "run_seconds")]
        for n, e in enumerate(figures["starts"])
    ]
    head = ["start", "SuperLink up (s)", "`flwr run` to the first finished round (s)", "to the end of the run (s)"]
    text += _table(head, starts)
    if (long := figures.get("long_run")) and "run_seconds" in long:
        text += (
            f"\n{long['rounds']:,} rounds of P-LoRA of {long['users_per_round']:,} users, validation every 50: "
            f"{long['run_seconds']:.0f} s from `flwr run` to the end; a round {_range(long['seconds'])} s, one with "
            f"validation {_range(long.get('seconds_with_validation'))} s.\n"
        )
    return text


def _seconds(entry: dict[str, Any], name: str) -> str:
    return "-" if entry.get(name) is None else f"{entry[name]:.1f}"


def _scaling(results: dict[str, Any]) -> str:
    figures = results["scaling"]["figures"]
    text = ""
    for axis in ("users", "items", "history", "cohort"):
        rows = [[f"{e[axis]:,}", _or(e, "seconds"), _gib(e)] for e in figures[axis]]
        if rows:
            text += _table([axis, "seconds a round", "peak memory"], rows) + "\n"
    rows = []
    for name in ("few", "many"):
        for embedding, e in figures["target"][name].items():
            shape = f"{e['users']:,} x {e['items']:,}, {e['cohort']:,} a round"
            rows.append([shape, embedding, _or(e, "seconds"), _gib(e)])
    ratios = ", ".join(f"{_number(value)} ({name})" for name, value in figures["target"]["ratio"].items())
    head = ["users x items", "embedding", "seconds a round", "peak memory"]
    return text + _table(head, rows) + f"\nThe same cohort from many users over from few: {ratios}.\n"


def _evaluation(results: dict[str, Any]) -> str:
    figures = results["evaluation"]["figures"]
    rows = [
        [
            e.get("embedding", "-"),
            e.get("backbone", "-"),
            f"{e.get('users', 0):,}",
            f"{e.get('items', 0):,}",
            e.get("threads", "-"),
            _or(e, "seconds"),
            _range(e.get("scores_per_second")),
            _range(e.get("product_alone")),
            _gib(e),
        ]
        for e in [*figures["all_users"], *figures["catalogues"]]
    ]
    head = [
        "embedding",
        "backbone",
        "users",
        "items",
        "threads",
        "seconds",
        "scores/s",
        "product alone, scores/s",
        "peak memory",
    ]
    return _table(head, rows)


def _pretraining(results: dict[str, Any]) -> str:
    rows = [
        [
            e["vectors"],
            e.get("reduction", "-"),
            f"{e.get('items', 0):,} x {e.get('width', 0):,}",
            _or(e, "seconds"),
            f"{e.get('reconstruction_mse', float('nan')):.4g}",
            _gib(e),
        ]
        for e in results["pretraining"]["figures"]["cases"]
    ]
    return _table(["vectors", "reduction", "shape", "seconds", "reconstruction MSE", "peak memory"], rows)


def _many_nodes(results: dict[str, Any]) -> str:
    """Seconds of a round with one user per node, and of as many empty messages."""
    rows = [
        [
            f"{entry['nodes']:,}",
            f"{entry['users_per_round']:,}",
            _or(entry["fedrec"], "seconds"),
            _or(entry["empty_cohort"], "push_and_pull"),
            _range(entry["empty_cohort"].get("calls_per_second")),
            _or(entry["empty_everybody"], "push_and_pull"),
        ]
        for entry in results["one_user_per_node"]["figures"]["sizes"]
    ]
    head = ["nodes", "messages a round", "a round, s", "empty messages, s", "empty calls/s", "one to every node, s"]
    return _table(head, rows) + _measured_with(results["one_user_per_node"])


def _startup(results: dict[str, Any]) -> str:
    """When each stage of a start was reached."""
    figures = results["startup"]["figures"]
    ways = {name: figures[name] for name in ("fedrec_simulate", "flwr_run")}
    stages = [stage for stage in ways["fedrec_simulate"]["first_start"] if stage != "end"]
    rows = [
        [stage, *(_seconds(way[start], stage) for way in ways.values() for start in ("first_start", "second_start"))]
        for stage in stages
    ]
    head = ["reached", "`fedrec simulate`, first", "later", "`flwr run`, first", "later"]
    said = ", ".join(f"{_range(way['to_first_round'])} s by `{name.replace('_', ' ')}`" for name, way in ways.items())
    text = f"\nTo the first round of a later start: {said}.\n"
    return _table(head, rows) + text + _measured_with(results["startup"])


def _light_client(results: dict[str, Any]) -> str:
    """A device's message: seconds of one core by stage, and memory."""
    phases = results["light_client"]["figures"]
    stages = [name for name in phases["peft"]["seconds"] if name not in ("cpu", "wall")]
    rows = []
    for figures in phases.values():
        seconds = [_range(figures["seconds"][name]) for name in ("cpu", *stages, "wall")]
        rows.append([figures["trains"], *seconds, f"{figures['peak_bytes']['median'] / 1e6:.0f} MB"])
    named = [name.removeprefix("cpu_") for name in stages]
    head = ["trains", "CPU, s", *named, "wall, s", "memory"]
    return _table(head, rows) + _measured_with(results["light_client"])


def _deployment(results: dict[str, Any]) -> str:
    """A federation of real processes beside its simulation, and what a SuperNode needs."""
    result = results["deployment"]
    figures, chosen = result["figures"], result["configuration"]
    rows = []
    for name in ("deployment", "simulation"):
        test, moved = figures[name]["test"], figures[name]["bytes_per_user"]
        cells = [f"{test['ndcg@10']:.4f}", f"{test['hr@10']:.4f}", f"{test['users']:,.0f}"]
        rows.append([name, *cells, *(f"{moved[way]:,.0f}" for way in ("up", "down", "one_time"))])
    head = ["", "NDCG@10", "HR@10", "users ranked", "up, bytes per user", "down", "once"]
    node, lost = figures["supernode"], figures["lost"]
    named = ", ".join(f"`{entry['reason']}` {entry['replies']}" for entry in lost) or "nothing"
    text = (
        f"\n{chosen['nodes']} SuperNodes and {len(figures['rounds'])} rounds, two killed after round "
        f"{chosen['killed_after']}, one of them back after round {chosen['back_after']}. Started in "
        f"{figures['start_seconds']:.0f} s, certificates and data included; the run took "
        f"{figures['run_seconds']:.0f} s, a round {_range(figures['round_seconds'])} s. Lost on the way: {named}.\n\n"
        f"A SuperNode at rest holds {node['rest_bytes'] / 1e6:.0f} MB and takes "
        f"{100 * node['rest_cpu_share']:.1f} % of a core; at work, with its clients' processes, "
        f"{node['work_bytes'] / 1e6:.0f} MB at most, and "
        f"{node['work_cpu_seconds']:.0f} s of a core for the whole run.\n"
    )
    return _table(head, rows) + text + _measured_with(result)


def _large_catalogue(results: dict[str, Any]) -> str:
    """Rounds of a very large catalogue over the real transport."""
    result = results["large_catalogue"]
    figures, chosen = result["figures"], result["configuration"]
    rows = [
        [str(line["round"]), line["phase"], str(line["users"]), f"{line['seconds']:.0f}"]
        + [f"{line['bytes'][way] / line['users'] / 1e6:,.0f}" for way in ("up", "down")]
        for line in figures["rounds"]
    ]
    peak = figures["peak_bytes"]
    text = (
        f"\n{chosen['items']:,} items of {chosen['dim']} numbers, {chosen['sites']} sites, {chosen['users']} users. "
        f"The server's processes held {peak['server'] / 1e9:.1f} GB at most, those of a site "
        f"{peak['site'] / 1e9:.1f} GB.\n"
    )
    return (
        _table(["round", "phase", "users", "s", "MB up, a user", "MB down"], rows)
        + text
        + _measured_with(result).replace("; medians, with least and most", "")
    )


def _measured_with(result: dict[str, Any]) -> str:
    found = result["environment"]
    return f"\n{found['cores']} cores, load {found['load_before']} before; medians, with least and most.\n"


IMAGES = {
    "image-engines": "Client updates a second",
    "image-engine-parts": "Where the engine's time goes",
    "image-round-parts": "Where a round's time goes",
    "image-scaling": "How cost grows",
}
"""Pictures of `benchmarks.plot`, shown once they are there."""

BLOCKS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "where": ("engine", _where),
    "engine": ("engine", _engine),
    "engine-parts": ("engine", _engine_parts),
    "clipping": ("clipping", _clipping),
    "stock-flower": ("stock_flower", _stock),
    "pfl": ("pfl_task", _pfl),
    "rounds": ("round_phases", _rounds),
    "scaling": ("scaling", _scaling),
    "evaluation": ("evaluation", _evaluation),
    "pretraining": ("pretraining", _pretraining),
    "many-nodes": ("one_user_per_node", _many_nodes),
    "startup": ("startup", _startup),
    "light-client": ("light_client", _light_client),
    "deployment": ("deployment", _deployment),
    "large-catalogue": ("large_catalogue", _large_catalogue),
}


def fill(text: str, results: dict[str, Any]) -> str:
    """The page with every block as the results have it. Raises KeyError for a block of no known name."""

    def block(found: re.Match[str]) -> str:
        if found[2] in IMAGES:
            image = f"img/{found[2].replace('image-', 'speed-', 1)}.png"
            shown = f"\n![{IMAGES[found[2]]}]({image})\n\n" if (PAGES[0].parent / image).is_file() else ""
            return f"{found[1]}{shown}{found[4]}"
        needed, make = BLOCKS[found[2]]
        body = make(results) if needed in results else _MISSING.format(name=needed)
        return f"{found[1]}\n{body}\n{found[4]}"

    return _BLOCK.sub(block, text)


def load(folder: Path = RESULTS) -> dict[str, Any]:
    """The result files by name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parsed = parser.parse_args(arguments)
    results, differ = load(parsed.results), 0
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = fill(before, results)
        if parsed.check and before != after:
            print(f"{page.name} differs from the results: python -m benchmarks.page", file=sys.stderr)
            differ = 1
        if not parsed.check:
            page.write_text(after, encoding="utf-8")
    return differ


if __name__ == "__main__":
    sys.exit(main())
