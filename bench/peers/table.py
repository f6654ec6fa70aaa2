"""The Markdown tables of a comparison (see run.py)."""

import collections
import statistics


def medians(rows):
    """(size, dtype, program) -> medians over the repeats, and the number of them."""
    groups = collections.defaultdict(list)
    for row in rows:
        if "error" not in row and not row.get("trace"):
            groups[row["size"], row["dtype"], row["program"]].append(row)
    fields = ("tokens_per_second", "first_step_seconds", "peak_rss_bytes")
    return {
        key: dict(
            {f: statistics.median(r[f] for r in group) for f in fields},
            repeats=len(group),
            first_loss=group[0]["losses"][0],
            last_loss=group[0]["losses"][-1],
        )
        for key, group in groups.items()
    }


def stage_of(program, peer_stages):
    if not program.startswith("shoal"):
        return peer_stages[program]
    name = program.removeprefix("shoal_")
    return int(name[-1]) if name.startswith("zero") else name


def best(results, key, field, better, peer_stages):
    """The best of the peers' figures at the stage, size and dtype of `key`; None without one."""
    size, dtype, program = key
    stage = stage_of(program, peer_stages)
    figures = [
        value[field]
        for (s, d, p), value in results.items()
        if (s, d) == (size, dtype) and not p.startswith("shoal") and peer_stages[p] == stage
    ]
    return better(figures) if figures else None


def ratio(value, reference):
    return f"{value / reference:.2f}" if reference else "–"


def speed_table(results, size, dtype, peer_stages):
    lines = [
        f"### Size {size}, {dtype}",
        "",
        "| stage | program | tokens/s | of the best peer | first step after (s) | of the best peer "
        "| peak memory a rank (MB) | of the best peer | loss, first → last | runs |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    keys = [key for key in results if key[:2] == (size, dtype)]
    for key in sorted(
        keys, key=lambda k: (str(stage_of(k[2], peer_stages)), not k[2].startswith("shoal"), k[2])
    ):
        r = results[key]
        ours = key[2].startswith("shoal")

        def against(field, better):
            return ratio(r[field], best(results, key, field, better, peer_stages)) if ours else ""

        name = "**Shoal**" if ours else key[2]
        lines.append(
            f"| {stage_of(key[2], peer_stages)} | {name} | {r['tokens_per_second']:,.0f} "
            f"| {against('tokens_per_second', max)} | {r['first_step_seconds']:.2f} "
            f"| {against('first_step_seconds', min)} | {r['peak_rss_bytes'] / 1e6:,.0f} "
            f"| {against('peak_rss_bytes', min)} | {r['first_loss']:.5f} → {r['last_loss']:.5f} "
            f"| {r['repeats']} |"
        )
    return lines + [""]


def trace_table(rows):
    """Largest difference of Shoal's float32 losses from PyTorch's, step by step."""
    traces = {
        (r["size"], r["program"]): r["losses"] for r in rows if r.get("trace") and "error" not in r
    }
    lines = [
        "### Losses against PyTorch's, float32",
        "",
        "| size | program | steps | largest difference | relative to the loss |",
        "|---|---|---|---|---|",
    ]
    for (size, program), losses in sorted(traces.items()):
        reference = traces.get((size, "pytorch"))
        if program == "pytorch" or not reference:
            continue
        pairs = list(zip(losses, reference))
        difference = max(abs(a - b) for a, b in pairs)
        relative = max(abs(a - b) / abs(b) for a, b in pairs)
        lines.append(f"| {size} | {program} | {len(pairs)} | {difference:.1e} | {relative:.1e} |")
    return lines + [""]


def markdown(rows, peer_stages):
    results = medians(rows)
    lines = []
    for size in sorted({key[0] for key in results}, reverse=True):
        for dtype in sorted({key[1] for key in results if key[0] == size}, reverse=True):
            lines += speed_table(results, size, dtype, peer_stages)
    if any(row.get("trace") for row in rows):
        lines += trace_table(rows)
    for row in rows:
        if "error" in row:
            lines.append(
                f"{row['program']} {row['size']} {row['dtype']} failed: "
                f"{row['error'].splitlines()[0]}"
            )
    return "\n".join(lines) + "\n"
