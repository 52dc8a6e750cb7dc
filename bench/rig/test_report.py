"""Tests of the tables, the chart and the limits, with invented measurements."""

import unittest
import xml.etree.ElementTree as xml

from rig import report

ABOUT = {
    "date": "2026-01-02",
    "cpu": "A <fast> one",
    "cores": 2,
    "kernel": "6.1",
    "commit": "abc1234",
    "versions": {"envoy": "Envoy 1.40.0"},
    "repetitions": 3,
    "seconds": 4.0,
}


def line(scenario: str, proxy: str, repetition: int = 0, **measures: float) -> dict:
    return {"scenario": scenario, "proxy": proxy, "repetition": repetition} | measures


GOALS = [row for row in report.ROWS if row.must is not None]

# Three runs whose values differ much and whose ratios differ little. The limit (must) is 0.40, the goal (aim) 0.30.
RUNS = [
    line("h1_sat", proxy, repetition, cpu_us=cpu)
    for proxy, costs in {"weft": (20.0, 35.0, 18.0), "envoy": (58.0, 90.0, 50.0), "nginx": (21.0, 30.0, 20.0)}.items()
    for repetition, cpu in enumerate(costs)
]


def everything(share: float) -> list[dict]:
    """Each row measured, with Weft at this share of its limit, and no growth."""
    lines = []
    for row in report.ROWS:
        ours = share * (row.must or 1)
        lines += [line(row.scenario, "weft", **{row.measure: ours}), line(row.scenario, "envoy", **{row.measure: 1})]
    for of in report.GROWTHS:
        lines += [line(of.scenario, who, size=size, **{of.measure: 20.0}) for who in ("weft", "envoy") for size in (10, 1000)]
    return lines


class Verdicts(unittest.TestCase):
    def test_ratio_is_that_of_the_medians(self):
        verdict = report.verdicts(report.summarise(RUNS))[0]
        self.assertAlmostEqual(verdict.ratio, 20.0 / 58.0)
        self.assertTrue(verdict.met)

    def test_ratios_within_their_limits_miss_nothing(self):
        self.assertEqual(report.missed(everything(0.99)), [])

    def test_ratios_above_their_limits_are_missed(self):
        missed = report.missed(everything(1.01))
        self.assertEqual(len(missed), len(GOALS), missed)

    def test_unmeasured_rows_are_missed(self):
        missed = report.missed(RUNS)
        self.assertEqual(len(missed), len(GOALS) - 1 + len(report.GROWTHS), missed)
        self.assertIn("not measured", missed[0])

    def test_growing_cost_is_missed(self):
        lines = everything(0.99) + [line("routes", "weft", cpu_us=40.0, size=10_000)]
        self.assertEqual(report.missed(lines), ["routes, 10000: 2.00 of the smallest, must be 1.10"])

    def test_cost_may_grow_with_endpoints_as_much_as_with_envoy(self):
        def grown(ours: float, theirs: float) -> list[dict]:
            costs = {"weft": ours, "envoy": theirs}
            return everything(0.99) + [line("endpoints", who, cpu_us=20 * cost, size=3000) for who, cost in costs.items()]

        self.assertEqual(report.missed(grown(1.25, 1.30)), [])
        self.assertEqual(report.missed(grown(1.35, 1.30)), ["endpoints, 3000: 1.35 of the smallest, must be 1.30"])

    def test_growth_is_the_ratio_within_a_round(self):
        costs = {10: (10.0, 30.0, 20.0), 1000: (11.0, 33.0, 20.0)}
        lines = [
            line("routes", "weft", repetition, cpu_us=cpu, size=size)
            for size, of_size in costs.items()
            for repetition, cpu in enumerate(of_size)
        ]
        sizes = report.growth(lines, report.GROWTHS[0])
        self.assertEqual([(size.size, round(size.ratio, 6)) for size in sizes], [(10, 1.0), (1000, 1.1)])

    def test_failures_are_listed_and_not_counted_as_measurements(self):
        lines = RUNS + [line("h1_sat", "haproxy", failed="haproxy ended with status 1")]
        self.assertEqual(report.failures(lines), ["h1_sat, haproxy: haproxy ended with status 1"])
        self.assertNotIn("haproxy", report.verdicts(report.summarise(lines))[0].values)


class Markdown(unittest.TestCase):
    def test_row_has_values_ratio_and_marks(self):
        self.assertEqual(
            report.table(report.summarise(RUNS)).splitlines()[2:],
            [
                "| HTTP/1.1, 64 connections: CPU per request "
                "| 20.0 µs | 58.0 µs | 21.0 µs | – | **0.34** | 0.40 ✓ | 0.30 ✗ |"
            ],
        )

    def test_comparison_shows_the_ratio_to_before(self):
        lines = [line("routes", "before", cpu_us=20.0, size=10), line("routes", "weft", cpu_us=15.0, size=10)]
        table = report.comparison(lines)
        self.assertEqual(table.splitlines()[2:], ["| routes 10 | cpu_us | 20.0 | 15.0 | 0.750 | 0.75–0.75 |"])

    def test_comparison_takes_the_median_of_the_ratios_by_round(self):
        lines = [
            line("h1_sat", proxy, repetition, cpu_us=cpu)
            for proxy, costs in {"before": (20.0, 40.0, 30.0), "weft": (22.0, 40.0, 24.0)}.items()
            for repetition, cpu in enumerate(costs)
        ]
        table = report.comparison(lines)
        self.assertEqual(table.splitlines()[2:], ["| h1_sat | cpu_us | 30.0 | 24.0 | 1.000 | 0.90–1.05 |"])

    def test_page_has_machine_versions_spread_and_failures(self):
        page = report.markdown(ABOUT, RUNS + [line("h1_sat", "haproxy", failed="no port")])
        expected = ("2026-01-02", "A <fast> one", "Linux 6.1", "abc1234", "Envoy 1.40.0", "18.0–35.0", "no port")
        for text in expected:
            self.assertIn(text, page)

    def test_readme_changes_only_between_its_markers(self):
        readme = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
        changed = report.with_section(readme, ABOUT, RUNS)
        self.assertTrue(changed.startswith("before\n") and changed.endswith("after\n"))
        self.assertNotIn("old", changed)
        self.assertIn("| **0.34** |", changed)
        self.assertEqual(report.with_section(changed, ABOUT, RUNS), changed)


class Chart(unittest.TestCase):
    def test_chart_is_xml_with_a_bar_for_each_ratio(self):
        drawing = xml.fromstring(report.chart(ABOUT, everything(0.5)))
        bars = [shape for shape in drawing if shape.get("class") == "weft" and shape.get("x") != "16"]
        self.assertEqual(len(bars), len(GOALS))

    def test_long_bars_are_clipped_to_the_chart(self):
        lines = [line("h1_sat", "weft", cpu_us=500.0), line("h1_sat", "envoy", cpu_us=1.0)]
        drawing = xml.fromstring(report.chart(ABOUT, lines))
        bar = next(shape for shape in drawing if shape.get("class") == "missed" and shape.get("x") != "92")
        self.assertLessEqual(float(bar.get("x")) + float(bar.get("width")), report.WIDTH - report.RIGHT)


if __name__ == "__main__":
    unittest.main()
