"""The page of a benchmark: what is in it, that a report cannot break out of its text, and that its plots are drawn."""

from __future__ import annotations

import copy
import html
import importlib.resources
import json
import re
import subprocess
import sys
from typing import Any

import pytest
import tools

from llmpipe.bench import page
from llmpipe.bench.palette import KNOWN, palette
from llmpipe.bench.plots import Plots

Json = dict[str, Any]

EVIL = '</script><b x="">&amp;'


def figure(median: float, least: float | None = None, most: float | None = None, unit: str = "s") -> Json:
    return {
        "median": median,
        "min": median if least is None else least,
        "max": median if most is None else most,
        "unit": unit,
    }


def target(name: str, latency: Json, **changed: object) -> Json:
    rounds = [
        {
            "errors": {},
            "fidelity": {"events": 1000, "alone": 1000, "merged": 0, "split": 0, "altered": 0, "out_of_order": 0},
            "warnings": [],
        }
        for _ in range(2)
    ]
    parts = {
        "name": name,
        "kind": "direct" if name == "direct" else "proxy",
        "address": "127.0.0.1:1",
        "version": None,
        "about": None,
        "rounds": rounds,
        "figures": {
            "latency_p50": latency,
            "latency_p90": latency,
            "cpu_used": figure(0.5, unit="CPUs"),
            "cpu_per_event": figure(1e-5),
            "events_per_second": figure(25_000, 24_000, 25_001, "1/s"),
        },
        "histograms": {"latency": {"buckets": [[10_000, 900], [20_000, 99], [1_000_000, 1]]}},
        "series": [{"round": r, "at": at, "p50": 1e-5, "p99": 2e-5} for r in range(2) for at in (0.25, 0.5)],
    }
    return parts | changed


def report(*targets: Json, **changed: object) -> Json:
    return {
        "made": "2026-11-26T02:42:44+00:00",
        "command": "llmpipe bench",
        "complete": True,
        "machine": {
            "cpu": "A CPU",
            "cores": 2,
            "memory_bytes": 25_276_502_016,
            "kernel": "Linux",
            "congestion_control": "bbr",
            "python": "3.11.7",
            "load_cpu": 0,
        },
        "versions": {"llmpipe": "0.1.0"},
        "workloads": [
            {
                "name": "paced",
                "title": "5 streams x 2 events/s",
                "shape": "paced",
                "plan": {"streams": 5, "event_size": 2000},
                "rounds": 2,
                "settle": 0.5,
                "duration": 0.5,
                "targets": list(targets),
            }
        ],
        "goals": [],
    } | changed


FAST = target("llmpipe", figure(10e-6, 9e-6, 12e-6))
NEAR = target("nginx", figure(12e-6, 11e-6, 13e-6))
SLOW = target("haproxy", figure(30e-6, 29e-6, 31e-6))
DIRECT = target("direct", figure(2e-6))


def text(made: Json) -> str:
    """What a reader sees of the page."""
    body = page.render(made).partition("<main>")[2].partition("</main>")[0]
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", body)))


def plots(rendered: str) -> Json:
    found = re.search(r'<script type="application/json" id="plots">(.*?)</script>', rendered, re.DOTALL)
    assert found is not None
    data: Json = json.loads(found[1])
    return data


def test_what_a_report_says_cannot_become_markup():
    evil = target(EVIL, figure(1e-5), version=EVIL, about=EVIL, address=EVIL)
    evil["rounds"][0] |= {"errors": {EVIL: 1}, "warnings": [EVIL]}
    made = report(evil, FAST, command=EVIL, versions={EVIL: EVIL})
    made["machine"]["cpu"] = EVIL
    made["goals"] = [{"workload": EVIL, "title": EVIL, "text": EVIL, "measured": EVIL, "met": True}]
    made["workloads"][0] |= {"title": EVIL, "name": EVIL}
    rendered = page.render(made)
    assert "<b x=" not in rendered
    assert rendered.count("</script>") == page.render(report(FAST)).count("</script>")
    shown = text(made)
    assert shown.count(EVIL) >= 12
    # Plotly reads a little HTML, so its names are escaped once more.
    assert plots(rendered)["figures"][0]["data"][0]["name"] == html.escape(EVIL)


def test_it_needs_no_network():
    rendered = page.render(report(FAST))
    assert "default-src 'none'" in rendered
    assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=", rendered)
    assert importlib.resources.files("llmpipe.page").joinpath("base.css").read_text() in rendered
    assert importlib.resources.files("llmpipe.bench").joinpath("page.css").read_text() in rendered
    assert importlib.resources.files("llmpipe.bench").joinpath("page.js").read_text() in rendered
    assert "<h3>Percentiles</h3>\n<p>Every value is counted in a histogram" in rendered
    assert "just after the <code>recv</code>" in rendered


def test_values_have_units_ranges_and_what_is_added():
    slow = target("haproxy", figure(30e-6, 29e-6, 31e-6), added={"latency_p50": 28e-6})
    shown = text(report(DIRECT, slow))
    assert "30 µs 29\u201331 +28 µs" in shown
    assert "25,000/s 24,000\u201325,001" in shown
    assert "event size 2 KB" in shown
    assert "settles 500 ms" in shown
    assert "Memory 25.3 GB" in shown
    assert "5 streams \u00d7 2 events/s" in shown
    assert "26 November 2026, 02:42 UTC . 1 workload, 2 targets, 2 rounds each, no warnings." in shown
    assert "Last, with a sign" in shown
    assert "Last, with a sign" not in text(report(DIRECT, FAST))


def test_the_table_has_groups_and_no_percentile_too_many():
    rendered = page.render(report(FAST))
    assert '<th scope="colgroup" colspan="1" class="g">Event latency</th>' in rendered
    assert '<th scope="colgroup" colspan="2" class="g">Cost</th>' in rendered
    heads = "Target Event latency Cost Throughput p50 CPU per event CPU used event rate llmpipe 10 µs"
    assert heads in text(report(FAST))
    assert "p90" not in text(report(FAST))


def test_the_best_are_those_whose_rounds_overlap():
    rendered = page.render(report(DIRECT, FAST, NEAR, SLOW))
    assert "<strong>10 µs</strong>" in rendered
    assert "<strong>12 µs</strong>" in rendered
    assert "<strong>30 µs</strong>" not in rendered
    assert "<strong>2 µs</strong>" not in rendered  # direct takes no part
    assert "<strong>0.5 CPUs</strong>" not in rendered  # all are the same
    assert "<strong>Bold</strong>" in rendered
    assert "<strong>Bold</strong>" not in page.render(report(FAST, DIRECT))


def test_more_is_better_of_rates_and_neither_of_cpus():
    low, high = copy.deepcopy(NEAR), copy.deepcopy(SLOW)
    low["figures"] |= {"events_per_second": figure(10, unit="1/s"), "cpu_used": figure(0.1, unit="CPUs")}
    high["figures"] |= {"events_per_second": figure(20, unit="1/s"), "cpu_used": figure(0.2, unit="CPUs")}
    rendered = page.render(report(low, high))
    assert "<strong>20/s</strong>" in rendered
    assert "<strong>10/s</strong>" not in rendered
    assert not re.search(r"<strong>[\d.]+ CPUs</strong>", rendered)
    assert "more is better" in rendered


def test_what_went_wrong_is_said():
    broken = copy.deepcopy(SLOW)
    broken["rounds"][0] |= {"errors": {"truncated": 1200}, "warnings": ["slow", "slow", "late"]}
    broken["rounds"][0]["fidelity"] |= {"alone": 999, "altered": 1}
    broken["rounds"][1] |= {"errors": {"truncated": 34}, "warnings": ["slow"]}
    short = copy.deepcopy(NEAR)
    short["rounds"].pop()
    goals = [
        {"workload": "paced", "title": "", "text": "a goal", "measured": "1.11 x floor", "met": met}
        for met in (True, False, None)
    ]
    made = report(broken, short, complete=False, goals=goals)
    shown = text(made)
    assert "1,234 truncated" in shown
    assert "99.950 %" in shown
    assert "haproxy , rounds 1, 2: slow" in shown
    assert "haproxy , round 1: late" in shown
    assert "nginx 1 of 2 rounds" in shown
    assert "Interrupted." in shown
    assert "2 rounds planned, 1 of 3 goals met, warnings in 1 workload." in shown
    for mark in ("✓\xa0met", "✗\xa0missed", "not measured"):
        assert html.unescape(mark).replace("\xa0", " ") in shown
    assert '<td class="n flag">1</td>' in page.render(made)


def test_a_table_of_contents_where_there_is_something_to_find():
    made = report(FAST)
    assert "<nav" not in page.render(made)
    made["workloads"] *= 3
    rendered = page.render(made)
    assert [f'href="#workload-{n}"' in rendered for n in range(4)] == [True, True, True, False]
    assert [f'id="workload-{n}"' in rendered for n in range(4)] == [True, True, True, False]


def test_an_empty_report_is_a_page():
    assert "The report has no workloads." in page.render(report() | {"workloads": []})
    assert "Nothing was measured." in page.render(report())


def test_every_place_has_its_plot_and_the_template_is_there_once():
    rendered = page.render(report(DIRECT, FAST))
    data = plots(rendered)
    places = [int(number) for number in re.findall(r'class="plot" data-figure="(\d+)"', rendered)]
    assert places == list(range(len(data["figures"])))
    assert len(places) == 1 + 2 + 2  # the curve, two over time, CPU per event, events
    assert data["template"]["layout"]["font"]["color"] == "var(--ink)"
    assert all("template" not in one["layout"] for one in data["figures"])
    assert rendered.count('"hoverlabel"') == page.render(report()).count('"hoverlabel"')


def test_lines_of_plots_are_those_of_the_legend():
    rendered = page.render(report(DIRECT, FAST, target("another", figure(1e-5))))
    legend = re.findall(r'data-target="(\d+)".*?stroke:var\((--t\d+)\).*?<span>(.*?)</span>', rendered)
    assert legend == [("0", "--t0", "direct"), ("1", "--t1", "llmpipe"), ("2", "--t2", "another")]
    curve = plots(rendered)["figures"][0]
    assert [(trace["name"], trace["meta"], trace["line"]["color"]) for trace in curve["data"]] == [
        (name, int(place), f"var({variable})") for place, variable, name in legend
    ]
    assert f"--t1: {KNOWN['llmpipe'][0]};" in rendered
    assert f"--t1: {KNOWN['llmpipe'][1]};" in rendered


def test_a_curve_reads_the_percentiles_of_a_histogram():
    made = Plots(palette(["llmpipe"]))
    made.percentiles([FAST], "latency", "a label")
    (trace,) = made.data()["figures"][0]["data"]
    points = dict(zip(trace["x"], trace["y"], strict=True))
    assert points[2.0] == points[10.0] == 10e-6
    assert points[20.0] == points[100.0] == 20e-6
    assert points[1000.0] == 1e-3
    assert trace["text"][-1] == "1 ms (largest)"
    assert made.percentiles([DIRECT | {"histograms": {}}], "latency", "nothing") is None


def test_rounds_are_drawn_behind_one_another_with_a_gap():
    made = Plots(palette(["llmpipe"]))
    made.over_time(report(FAST)["workloads"][0], "p50", "a label")
    (drawn,) = made.data()["figures"]
    assert drawn["data"][0]["x"] == [0.25, 0.5, 0.75, 0.75, 1.0]
    assert drawn["data"][0]["y"][2] is None
    assert [mark["text"] for mark in drawn["layout"]["annotations"]] == ["round 1", "round 2"]


def test_targets_without_a_colour_of_their_own_can_be_told_apart():
    names = [f"proxy {number}" for number in range(14)]
    lines = palette(["llmpipe", *names, "llmpipe"])
    assert list(lines) == ["llmpipe", *names]
    assert len({(line.light, line.dash) for line in lines.values()}) == 15
    assert [line.place for line in lines.values()] == list(range(15))


# As much of a browser as page.js asks for: one plot, its legend with one button, and what is drawn printed.
BROWSER = """
const drawn = [];
const listeners = {};
const button = {
  dataset: {target: "0"}, pressed: "true",
  getAttribute() { return this.pressed; }, setAttribute(_, value) { this.pressed = value; },
  addEventListener(_, call) { this.click = call; }, closest: () => box,
};
const box = {
  querySelectorAll: () => button.pressed === "false" ? [button] : [],
  contains: () => true,
};
const place = {dataset: {figure: "0"}, clientWidth: 600, closest: () => box};
const colours = {"--ink": " black", "--t0": " red"};
const look = {};
globalThis.document = {
  documentElement: {}, contains: () => true,
  getElementById: () => ({textContent: process.argv[1]}),
  querySelectorAll: (selector) => ({".plot": [place], ".legend button": [button]}[selector] ?? []),
};
globalThis.getComputedStyle = () => ({getPropertyValue: (name) => colours[name]});
globalThis.matchMedia = () => ({addEventListener(_, call) { look.scheme = call; }});
globalThis.addEventListener = (name, call) => { listeners[name] = call; };
globalThis.IntersectionObserver = class { constructor(call) { look.near = call; } observe() {} };
globalThis.ResizeObserver = class { constructor(call) { look.width = call; } observe() {} };
globalThis.Plotly = {
  react: (_, data, layout) => drawn.push([data[0].line.color, data[0].visible, layout.template.layout.font.color]),
  Plots: {resize: () => drawn.push("resized")},
};
"""
SEEN = """
listeners.beforeprint();
drawn.length = 0;
delete place.dataset.drawn;
look.near([{isIntersecting: false, target: place}]);
drawn.push("far");
look.near([{isIntersecting: true, target: place}]);
look.near([{isIntersecting: true, target: place}]);
button.click();
colours["--t0"] = "pink";
look.scheme();
look.width([{target: place, contentRect: {width: 600}}]);
look.width([{target: place, contentRect: {width: 500}}]);
console.log(JSON.stringify(drawn));
"""


def test_the_script_draws_what_comes_near_in_the_colours_of_the_page():
    node = tools.tool("node", "nodejs")
    script = importlib.resources.files("llmpipe.bench").joinpath("page.js").read_text()
    data = json.dumps(
        {
            "template": {"layout": {"font": {"color": "var(--ink)"}}},
            "figures": [{"data": [{"meta": 0, "line": {"color": "var(--t0)"}}], "layout": {}}],
        }
    )
    done = subprocess.run(
        [node, "-e", BROWSER + script + SEEN, data], capture_output=True, text=True, check=False, timeout=50
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        "far",
        ["red", True, "black"],
        ["red", False, "black"],  # the legend switched it off
        ["pink", False, "black"],  # another scheme
        "resized",
    ]


@pytest.mark.parametrize("name", ["page.html.j2", "page.css", "page.js", "method.md"])
def test_the_installed_package_has_the_parts_of_the_page(name):
    assert importlib.resources.files("llmpipe.bench").joinpath(name).is_file()


@pytest.mark.parametrize("library", ["jinja2", "markdown_it", "plotly"])
def test_a_library_that_is_missing_is_named_by_its_extra(library):
    script = f"import sys; sys.modules[{library!r}] = None; from llmpipe.bench.command import load_page; load_page()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (
        "UsageError: --html needs libraries that are not installed; install them with: pip install 'llmpipe[bench]'"
        in done.stderr
    )
