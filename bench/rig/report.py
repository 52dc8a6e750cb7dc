"""Tables and charts. Pure functions: measurements and a description of the run in, Markdown and SVG out."""

import statistics
from collections import defaultdict
from dataclasses import dataclass
from html import escape

OURS, BEFORE, REFERENCE, PEERS = "weft", "before", "envoy", ("envoy", "nginx", "haproxy")


@dataclass(frozen=True)
class Row:
    """A measure by which Weft is compared with Envoy: highest allowed ratio (must) and goal (aim). None: no limit."""

    scenario: str
    measure: str
    title: str
    unit: str
    must: float | None = None
    aim: float | None = None


ROWS = (
    Row("h1_sat", "cpu_us", "HTTP/1.1, 64 connections: CPU per request", "µs", 0.40, 0.30),
    Row("h1_rate1k", "cpu_us", "HTTP/1.1 at 1,000/s: CPU per request", "µs", 0.48, 0.38),
    Row("h1_rate1k", "added_p50_us", "HTTP/1.1 at 1,000/s: added latency, median", "µs", 0.63, 0.55),
    Row("h1_post8k", "cpu_us", "HTTP/1.1, POST of 8 KiB: CPU per request", "µs", 0.42, 0.36),
    Row("h1_close", "cpu_us", "HTTP/1.1, a connection per request: CPU", "µs", 0.50, 0.42),
    Row("h2_1x100", "cpu_us", "HTTP/2, 1 × 100 streams: CPU per request", "µs", 0.65, 0.50),
    Row("h2_10x100", "cpu_us", "HTTP/2, 10 × 100 streams: CPU per request", "µs", 0.45, 0.30),
    Row("grpc_10x10", "cpu_us", "gRPC unary, 10 × 10 streams: CPU per call", "µs", 0.32, 0.22),
    Row("grpc_rate2k", "cpu_us", "gRPC unary at 2,000/s: CPU per call", "µs", 0.45, 0.40),
    Row("tls_sat", "cpu_us", "TLS 1.3 terminated, 64 connections: CPU per request", "µs", 0.45, 0.33),
    Row("tls_hs", "cpu_us", "TLS 1.3, a full handshake per request: CPU", "µs", 0.60, 0.50),
    Row("twohop_sat", "cpu_us", "Two proxies, mutual TLS between, 64 connections: CPU per request", "µs", 0.33, 0.22),
    Row("twohop_rate1k", "cpu_us", "Two proxies, mutual TLS, at 1,000/s: CPU per request", "µs", 0.45, 0.33),
    Row("twohop_rate1k", "added_p50_us", "Two proxies, mutual TLS, at 1,000/s: added latency, median", "µs", 0.60, 0.48),
    Row("twohop_rate1k", "p99_us", "Two proxies, mutual TLS, at 1,000/s: latency, 99th percentile", "µs", 0.75, 0.60),
    Row("mtls_hs", "cpu_us", "Mutual TLS, a full handshake per request: CPU", "µs", 0.75, 0.60),
    Row("tcp_bulk", "cpu_s_per_gb", "TCP, bytes without end: CPU per GB", "s", 0.80, 0.40),
    Row("tcp_close", "cpu_us", "TCP, connect, request, close: CPU", "µs", 0.80, 0.70),
    Row("mem", "idle_kb", "Memory, idle", "KB", 0.20, 0.12),
    Row("mem", "kb_per_connection", "Memory per idle connection of 10,000", "KB", 0.60, 0.15),
    Row("tlsmem", "idle_kb", "Memory with an identity, idle", "KB", 0.14, 0.12),
    Row("tlsmem", "kb_per_connection", "Memory per idle connection of 10,000 with mutual TLS", "KB", 0.65, 0.45),
    Row("config10000", "growth_kb", "Memory for 10,000 clusters and routes", "KB", 0.10, 0.04),
    Row("config10000", "start_s", "Start with 10,000 clusters and routes", "s", 0.20, 0.05),
    Row("h1_rate5k", "cpu_us", "HTTP/1.1 at 5,000/s: CPU per request", "µs"),
    Row("h1_rate5k", "added_p50_us", "HTTP/1.1 at 5,000/s: added latency, median", "µs"),
    Row("h2_rate2k", "cpu_us", "HTTP/2 at 2,000/s: CPU per request", "µs"),
    Row("tcp_req", "cpu_us", "TCP, 64 connections: CPU per request", "µs"),
    Row("config1000", "growth_kb", "Memory for 1,000 clusters and routes", "KB"),
    Row("config1000", "start_s", "Start with 1,000 clusters and routes", "s"),
)

# The measures that `comparison` shows.
COMPARED = {row.measure for row in ROWS} | {"p50_us", "p99_us", "instructions"}


@dataclass(frozen=True)
class Growth:
    """A configuration in several sizes, and the highest allowed cost of a request relative to the smallest size."""

    scenario: str
    title: str
    measure: str
    unit: str
    # None: as much as with Envoy.
    must: float | None


# The cost of a request must not grow; the limits only allow for noise. Connections to 3,000 endpoints do not fit into
# CPU caches, neither the kernel's part nor the proxy's: the instructions are the same, but take longer.
GROWTHS = (
    Growth("routes", "routes on the port", "cpu_us", "µs", 1.10),
    Growth("routes_instructions", "routes on the port", "instructions", "instructions", 1.02),
    Growth("endpoints", "endpoints", "cpu_us", "µs", None),
    Growth("endpoints_instructions", "endpoints", "instructions", "instructions", 1.02),
)


@dataclass(frozen=True)
class Spread:
    """Median and range of a measure over the repetitions."""

    median: float
    low: float
    high: float


# (scenario, size of the configuration or None, proxy, measure)
Key = tuple[str, int | None, str, str]


@dataclass(frozen=True)
class Verdict:
    """A row and its measurements. The ratio is None if Weft or Envoy was not measured."""

    row: Row
    values: dict[str, Spread]
    ratio: float | None

    @property
    def met(self) -> bool:
        """Whether the ratio is within its limit."""
        return self.row.must is None or (self.ratio is not None and self.ratio <= self.row.must)


def summarise(lines: list[dict]) -> dict[Key, Spread]:
    """Median, lowest and highest of each measure."""
    found = defaultdict(list)
    for line in lines:
        for measure, value in line.items():
            if measure not in ("scenario", "proxy", "size", "repetition", "failed"):
                found[line["scenario"], line.get("size"), line["proxy"], measure].append(value)
    return {key: Spread(statistics.median(values), min(values), max(values)) for key, values in found.items()}


def failures(lines: list[dict]) -> list[str]:
    """The failed measurements and their reasons."""
    return [f"{line['scenario']}, {line['proxy']}: {line['failed']}" for line in lines if "failed" in line]


def verdicts(summary: dict[Key, Spread]) -> list[Verdict]:
    """Each row, compared with the reference."""
    found = []
    for row in ROWS:
        values = {}
        for proxy in (OURS, *PEERS):
            if spread := summary.get((row.scenario, None, proxy, row.measure)):
                values[proxy] = spread
        ratio = None
        if OURS in values and REFERENCE in values and values[REFERENCE].median > 0:
            ratio = values[OURS].median / values[REFERENCE].median
        found.append(Verdict(row, values, ratio))
    return found


@dataclass(frozen=True)
class Size:
    """The cost of a request with a configuration of this size, and its ratio to the smallest size."""

    size: int
    cost: Spread
    ratio: float


def growth(lines: list[dict], of: Growth, proxy: str = OURS) -> list[Size]:
    """The sizes, smallest first. A ratio is the median of the ratios within each round, as rounds differ more than sizes."""
    rounds = defaultdict(dict)
    for line in lines:
        if line["scenario"] == of.scenario and line["proxy"] == proxy and of.measure in line:
            rounds[line["repetition"]][line["size"]] = line[of.measure]
    sizes = sorted({size for costs in rounds.values() for size in costs})
    found = []
    for size in sizes:
        costs = [costs[size] for costs in rounds.values() if size in costs]
        ratios = [costs[size] / costs[sizes[0]] for costs in rounds.values() if {size, sizes[0]} <= costs.keys()]
        if ratios:
            found.append(Size(size, Spread(statistics.median(costs), min(costs), max(costs)), statistics.median(ratios)))
    return found


def allowed(lines: list[dict], of: Growth, size: int) -> float | None:
    """The highest allowed ratio of a size. None: it depends on Envoy, which was not measured."""
    if of.must is not None:
        return of.must
    return next((theirs.ratio for theirs in growth(lines, of, REFERENCE) if theirs.size == size), None)


def missed(lines: list[dict]) -> list[str]:
    """The rows and growths above their limit or not measured."""
    found = []
    for verdict in verdicts(summarise(lines)):
        if not verdict.met:
            ratio = "not measured" if verdict.ratio is None else f"{verdict.ratio:.2f}"
            found.append(f"{verdict.row.title}: {ratio}, must be {verdict.row.must:.2f}")
    for of in GROWTHS:
        measured = growth(lines, of)
        if not measured:
            found.append(f"{of.scenario}: not measured")
        for size in measured:
            must = allowed(lines, of, size.size)
            if must is None:
                found.append(f"{of.scenario}: Envoy was not measured")
            elif size.ratio > must:
                found.append(f"{of.scenario}, {size.size}: {size.ratio:.2f} of the smallest, must be {must:.2f}")
    return found


def machine(about: dict) -> str:
    """A description of the run in one line."""
    peers = ", ".join(about["versions"].values())
    return (
        f"{about['date']}, {about['cpu']}, {about['cores']} cores, Linux {about['kernel']}. "
        f"Weft {about['commit']}, {peers}. Median of {about['repetitions']} alternating runs of {about['seconds']:g} s, "
        "one worker on a core of its own."
    )


# === Markdown ===


def markdown(about: dict, lines: list[dict]) -> str:
    """The whole results page."""
    summary = summarise(lines)
    parts = ["# Measured", machine(about)]
    if any(verdict.values for verdict in verdicts(summary)):
        parts += ["![Cost relative to Envoy](latest.svg)", table(summary, full=True)]
    parts += [growth_table(lines, of) for of in GROWTHS if growth(lines, of)]
    if counted := summary.get(("instructions", None, OURS, "instructions")):
        parts.append(
            f"One HTTP/1.1 request takes {counted.median:,.0f} instructions in user space, counted by valgrind. "
            "This figure is comparable between machines."
        )
    if failed := failures(lines):
        parts.append("Not measured:\n\n" + "\n".join(f"- {failure}" for failure in failed))
    return "\n\n".join(parts) + "\n"


def table(summary: dict[Key, Spread], full: bool = False) -> str:
    """The measurements and ratios. Full: with the lowest and highest run, and with rows that have no limit."""
    head = ["", "Weft", "Envoy", "nginx", "haproxy", "Weft / Envoy", "must", "aim"]
    rows = [head, ["---"] + ["--:"] * (len(head) - 1)]
    for verdict in verdicts(summary):
        row, ratio = verdict.row, verdict.ratio
        if not verdict.values or (row.must is None and not full):
            continue
        cells = [_value(verdict.values.get(proxy), row.unit, full) for proxy in (OURS, *PEERS)]
        shown = "–" if ratio is None else f"**{ratio:.2f}**"
        rows.append([row.title, *cells, shown, _goal(row.must, ratio), _goal(row.aim, ratio)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def growth_table(lines: list[dict], of: Growth) -> str:
    """Cost of a request by the size of the configuration."""
    head = [of.title, "a request takes", "to the smallest", "must"]
    reference = {theirs.size: theirs for theirs in growth(lines, of, REFERENCE)}
    if reference:
        head += ["with Envoy", "to the smallest"]
    rows = [head, ["--:"] * len(head)]
    for size in growth(lines, of):
        goal = _goal(allowed(lines, of, size.size), size.ratio)
        row = [f"{size.size:,}", _value(size.cost, of.unit, spread=True), f"{size.ratio:.2f}", goal]
        if theirs := reference.get(size.size):
            row += [_value(theirs.cost, of.unit, spread=True), f"{theirs.ratio:.2f}"]
        rows.append(row)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _value(value: Spread | None, unit: str, spread: bool) -> str:
    if value is None:
        return "–"
    text = f"{_number(value.median)} {unit}"
    if spread and value.low != value.high:
        text += f" ({_number(value.low)}–{_number(value.high)})"
    return text


def _number(value: float) -> str:
    """A number with about three significant digits."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _goal(goal: float | None, ratio: float | None) -> str:
    if goal is None:
        return ""
    mark = "" if ratio is None else " ✓" if ratio <= goal else " ✗"
    return f"{goal:.2f}{mark}"


def comparison(lines: list[dict]) -> str:
    """Weft compared with the binary from before a change, by every measure that both have.

    The ratio is the median of the ratios within each round, with quartiles: the machine's speed varies more between
    rounds than within one.
    """
    rows = [["", "measure", "before", "Weft", "Weft / before", "quartiles"], ["---"] * 2 + ["--:"] * 4]
    rounds = defaultdict(lambda: defaultdict(dict))
    for line in lines:
        for measure in COMPARED & line.keys():
            by_proxy = rounds[line["scenario"], line.get("size"), measure][line["repetition"]]
            by_proxy[line["proxy"]] = line[measure]
    for (scenario, size, measure), found in rounds.items():
        pairs = [(of[BEFORE], of[OURS]) for of in found.values() if of.get(BEFORE) and OURS in of]
        if pairs:
            ratios = [ours / before for before, ours in pairs]
            low, _, high = statistics.quantiles(ratios, method="inclusive") if len(ratios) > 1 else ratios * 3
            medians = (_number(statistics.median(values)) for values in zip(*pairs))
            name = scenario if size is None else f"{scenario} {size}"
            rows.append([name, measure, *medians, f"{statistics.median(ratios):.3f}", f"{low:.2f}–{high:.2f}"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


# === README ===

BEGIN, END = "<!-- measured -->", "<!-- /measured -->"


def with_section(readme: str, about: dict, lines: list[dict]) -> str:
    """A README with the figures between its markers replaced."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    picture = "![Cost relative to Envoy](bench/results/latest.svg)"
    section = "\n\n".join([BEGIN, picture, table(summarise(lines)), machine(about), END])
    return before + section + after


# === SVG ===

WIDTH, LABEL, RIGHT, TOP, STEP, BAR = 900, 360, 60, 76, 28, 14
# The highest ratio on the scale. A longer bar is clipped there; its value is printed beside it.
SCALE_MAX = 1.2
# Legible on light and dark backgrounds; the text follows the reader's color scheme where it is known.
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #57606a; }
.title { font-weight: 600; font-size: 14px; }
.value { font-weight: 600; }
.label, .value { dominant-baseline: central; }
.label { text-anchor: end; }
.grid { stroke: #8b949e; stroke-width: 1; stroke-opacity: 0.35; }
.reference { stroke: #8b949e; stroke-width: 1.5; }
.weft { fill: #2f81f7; }
.missed { fill: #d1542f; }
.must { stroke: #8b949e; stroke-width: 2.5; }
.nginx { fill: #fff; stroke: #2da44e; stroke-width: 2; }
.haproxy { fill: #fff; stroke: #bf8700; stroke-width: 2; }
@media (prefers-color-scheme: dark) { text { fill: #adbac7; } }
"""


def chart(about: dict, lines: list[dict]) -> str:
    """The ratios as bars, with their limits, and marks for nginx and haproxy."""
    shown = [found for found in verdicts(summarise(lines)) if found.ratio is not None and found.row.must is not None]
    bottom = TOP + STEP * len(shown)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 48}" role="img">',
        f"<title>Cost relative to Envoy</title><style>{STYLE}</style>",
        _text(16, 22, "Cost relative to Envoy in the same run: shorter is better", "title"),
        *_legend(),
        *_grid(bottom),
    ]
    for number, verdict in enumerate(shown):
        parts += _bar(TOP + STEP * number + STEP / 2, verdict)
    first, second = machine(about).split(". ", 1)
    parts += [_text(16, bottom + 24, f"{first}."), _text(16, bottom + 40, second), "</svg>"]
    return "\n".join(parts) + "\n"


def _x(ratio: float) -> float:
    return round(LABEL + (WIDTH - LABEL - RIGHT) * min(ratio, SCALE_MAX) / SCALE_MAX, 1)


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text x="{x}" y="{y}" class="{kind}">{escape(text)}</text>'


def _legend() -> list[str]:
    y = 44
    return [
        f'<rect x="16" y="{y - 10}" width="20" height="10" class="weft"/>{_text(42, y, "Weft")}',
        f'<rect x="92" y="{y - 10}" width="20" height="10" class="missed"/>{_text(118, y, "Weft, above must")}',
        f'<path d="M240 {y - 12}v14" class="must"/>{_text(248, y, "must")}',
        f'<circle cx="302" cy="{y - 4}" r="4" class="nginx"/>{_text(312, y, "nginx")}',
        f'<rect x="364" y="{y - 8}" width="8" height="8" class="haproxy"/>{_text(378, y, "haproxy")}',
    ]


def _grid(bottom: float) -> list[str]:
    parts = []
    for fifth in range(7):
        ratio = fifth / 5
        kind = "reference" if fifth == 5 else "grid"
        parts.append(f'<path d="M{_x(ratio)} {TOP - 6}V{bottom}" class="{kind}"/>')
        label = "Envoy" if fifth == 5 else f"{ratio:.1f}"
        parts.append(f'<text x="{_x(ratio)}" y="{TOP - 12}" text-anchor="middle">{label}</text>')
    return parts


def _bar(y: float, verdict: Verdict) -> list[str]:
    row, ratio = verdict.row, verdict.ratio
    kind = "weft" if verdict.met else "missed"
    length = round(_x(ratio) - LABEL, 1)
    parts = [
        _text(LABEL - 10, y, row.title, "label"),
        f'<rect x="{LABEL}" y="{y - BAR / 2}" width="{length}" height="{BAR}" class="{kind}"/>',
        f'<path d="M{_x(row.must)} {y - BAR / 2 - 3}v{BAR + 6}" class="must"/>',
    ]
    reference = verdict.values[REFERENCE].median
    if "nginx" in verdict.values:
        parts.append(f'<circle cx="{_x(verdict.values["nginx"].median / reference)}" cy="{y}" r="4" class="nginx"/>')
    if "haproxy" in verdict.values:
        x = round(_x(verdict.values["haproxy"].median / reference) - 4, 1)
        parts.append(f'<rect x="{x}" y="{y - 4}" width="8" height="8" class="haproxy"/>')
    parts.append(_text(WIDTH - RIGHT + 12, y, f"{ratio:.2f}", "value"))
    return parts
