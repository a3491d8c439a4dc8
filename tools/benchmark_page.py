"""The figures of benchmark.py as a page in Markdown: one table a size, and targets beside what was measured."""

from alternation import PEER

FRAMES = {"encode": 11, "decode": 11, "chunk": 6, "story": 65}  # that one run makes or reads
TOLD = {
    "encode": "encode a window of 11 frames",
    "decode": "decode a window of 11 frames",
    "round": "one round, guided",
    "chunk": "one chunk: 6 frames after 5",
    "story": "story of 10 prompts, 65 frames",
    "tokenizer_step": "training step, tokenizer",
    "generator_step": "training step, generator",
}
TARGETS = {  # times faster than the peer, at least
    ("small", "story"): 3.0, ("large", "chunk"): 2.5, ("small", "tokenizer_step"): 1.5, ("large", "tokenizer_step"): 1.5,
    ("small", "generator_step"): 2.0, ("large", "generator_step"): 2.0,
}  # fmt: skip
TARGET_SHARE = 0.5  # of the peer's peak memory, at most, at the sizes of TARGETS
ALIKE = {"parameters": "parameters", "width": "the named width of feed-forward layers"}  # --match


def page(results: dict) -> str:
    """The whole page. CPU seconds are of all cores together; on a GPU the ratios are of seconds on the clock."""
    lines = ["# Benchmarks", "", f"`{results['command']}` on {results['machine']};"]
    lines.append(f"device {results['device']}; load before: {results['load_before']}.")
    if results["peer"]:
        lines.append(f"The peer is {results['peer']}, random weights on both sides, both in turn in one process.")
        lines.append(f"Alike are width, layers and {ALIKE[results['match']]}.")
    lines += ["Median, and quartiles in brackets. `tools/benchmark.py` says what the cases are.", ""]
    for name, found in results["sizes"].items():
        lines += [f"## {name}", "", *_table(name, found), "", *_below(name, found, results["device"] == "cpu"), ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(size: str, found: dict) -> list[str]:
    rows = ["| | ours, CPU s | peer, CPU s | ours, s | peer, s | times faster | target |", "|---|---|---|---|---|---|---|"]
    for case, told in TOLD.items():
        for name in ("ours", "ours compiled"):
            if name in found.get(case, {}):
                rows.append(_row(told if name == "ours" else f"{told}, compiled", found[case], name, TARGETS.get((size, case))))
    return rows


def _row(told: str, figures: dict, name: str, target: float | None) -> str:
    pairs = [(side, clock) for clock in ("cpu_seconds", "wall_seconds") for side in (name, PEER)]
    cells = [_spread(figures[side][clock]) if side in figures else "not measured" for side, clock in pairs]
    faster = figures.get("times_faster")
    return f"| {told} | {' | '.join(cells)} | {_spread(faster[name]) if faster else 'not measured'} | {f'{target:g}' if target else ''} |"


def _spread(values: dict[str, float]) -> str:
    return f"{values['median']:.3g} ({values['low']:.3g}-{values['high']:.3g})"


def _below(size: str, found: dict, on_cpu: bool) -> list[str]:
    """Frames a second, memory and parameters."""
    lines = []
    clock, unit = ("cpu_seconds", "CPU second") if on_cpu else ("wall_seconds", "second")
    for case, frames in FRAMES.items():
        rates = [f"{side} {frames / found[case][side][clock]['median']:.3g}" for side in ("ours", PEER) if side in found.get(case, {})]
        if rates:
            lines.append(f"- {case}: frames a {unit}: {', '.join(rates)}.")
    if "memory" in found:
        peaks = [f"{side} {found['memory'][side]['peak_mib']} MiB" for side in ("ours", PEER) if side in found["memory"]]
        lines.append(f"- Peak memory of a process that makes the story: {', '.join(peaks)}.")
        if "share_of_peer" in found["memory"]:
            target = f", target at most {TARGET_SHARE}" if any(size == name for name, _ in TARGETS) else ""
            lines.append(f"- Its share of the peer's: {found['memory']['share_of_peer']}{target}.")
    for side, parameters in found["parameters"].items():
        lines.append(f"- Parameters, {side}: " + ", ".join(f"{network} {count / 1e6:.1f} million" for network, count in parameters.items()) + ".")
    return lines
