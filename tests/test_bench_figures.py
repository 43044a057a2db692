"""The table of what is measured, and how a value of it is written."""

from __future__ import annotations

import pytest

from llmpipe._load import TIMES
from llmpipe.bench import figures, measure, report
from llmpipe.bench.histogram import PERCENTILES
from llmpipe.bench.measure import Round
from llmpipe.bench.workload import SHAPES, Workload


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (3.4e-05, "s", "34 µs"),
        (65.54e-6, "s", "65.5 µs"),
        (0.0123, "s", "12.3 ms"),
        (0.9996, "s", "1 s"),
        (2.0, "s", "2 s"),
        (90.0, "s", "90 s"),
        (150.0, "s", "2.5 min"),
        (3e-9, "s", "3 ns"),
        (0.0, "s", "0 µs"),
        (1e-17, "s", "0 µs"),  # of a difference
        (-0.0021, "s", "\u22122.1 ms"),
        (1010, "B", "1.01 KB"),
        (898, "B", "898 B"),
        (65.536, "B", "65.5 B"),
        (0, "B", "0 B"),
        (1.2e9, "B/s", "1.2 GB/s"),
        (999_700, "B/s", "1 MB/s"),
        (25012.3, "1/s", "25,012/s"),
        (6.125e6, "1/s", "6.12 M/s"),
        (0.29436, "CPUs", "0.294 CPUs"),
        (2000, "connections", "2,000 connections"),
        (11, "", "11"),
    ],
)
def test_quantities(value, unit, text):
    assert figures.quantity(value, unit) == text


def test_a_spread_is_shown_where_rounds_differ():
    figure = {"median": 2e-3, "min": 1e-3, "max": 3e-3, "unit": "s"}
    assert figures.spread(figure) == "2 ms (1 ms to 3 ms)"
    assert figures.spread(figure | {"min": 2e-3, "max": 2.0001e-3}) == "2 ms"


def test_a_share_is_never_rounded_up_to_all():
    assert figures.percentage(10**9, 10**9) == "100 %"
    assert figures.percentage(10**9 - 1, 10**9) == "99.999 %"


def test_percentiles_belong_to_their_time():
    figure = figures.of("close:body_p99.9")
    assert (figure.label, figure.percentile) == ("close to EOF p99.9, body", "p99.9")
    assert (figure.unit, figure.group, figure.better) == ("s", "Close, in the request", figures.LESS)
    assert figures.of("latency_max").label == "event latency max"
    with pytest.raises(KeyError):
        figures.of("nonsense")


def test_everything_that_is_measured_is_in_the_table():
    assert figures.TIMES.keys() == {*TIMES, "close", "grant", "leave", "place"}
    assert len(set(figures.ORDER)) == len(figures.ORDER) == len(figures.TIMES) + len(figures.FIGURES)
    assert len({figures.of(name).label for name in figures.FIGURES}) == len(figures.FIGURES)
    assert report.COLUMNS.keys() == {*SHAPES, "uploads", "queue"}
    for name in {name for columns in report.COLUMNS.values() for name in columns} | {
        *report.SERVER_COLUMNS,
        *report.USER_COLUMNS,
        *report.ATTACK_COLUMNS,
    }:
        assert figures.of(name).name == name
    for percentile in PERCENTILES:
        assert figures.of(f"ttft_{percentile}").percentile == percentile


def test_which_way_is_better():
    assert figures.of("cpu_per_event").better == figures.of("jitter_p99").better == figures.LESS
    assert figures.of("requests_per_second").better == figures.MORE
    assert figures.of("cpu_used").better is figures.of("attackers_open").better is None


def a_round(**changed: object) -> Round:
    parts = {
        "figures": {"ttft_p50": 3.42e-5, "requests_per_second": 9123.4},
        "errors": {},
        "status": {},
        "fidelity": {"events": 10},
        "warnings": [],
        "histograms": {},
        "series": [],
    }
    return Round(**(parts | changed))


def test_the_line_of_a_round_names_figures_and_errors():
    assert report.line(Workload("requests"), a_round()) == "TTFT p50 34.2 µs, request rate 9,123/s"
    failed = a_round(errors={"truncated": 1200}, warnings=["careful"])
    assert report.line(Workload("requests"), failed).endswith(", errors: 1,200 truncated, careful")


def test_a_summary_has_the_units_of_the_table():
    found = measure.summary([a_round(figures={"memory_per_stream": value, "ttft_p50": value}) for value in (1, 3, 2)])
    assert found["memory_per_stream"] == {"median": 2, "min": 1, "max": 3, "unit": "B"}
    assert found["ttft_p50"]["unit"] == "s"


def test_without_samples_a_report_keeps_medians_spreads_and_errors():
    one = {"figures": {"ttft_p50": 1e-3}, "errors": {"cut": 1}, "fidelity": {"events": 3}, "warnings": ["careful"]}
    target = {
        "name": "llmpipe",
        "rounds": [one],
        "figures": {"ttft_p50": {"median": 1e-3, "min": 1e-3, "max": 1e-3, "unit": "s"}},
        "added": {"ttft_p50": 1e-4},
        "histograms": {"ttft": {"buckets": [[1, 1]]}},
        "series": [{"at": 0.25}],
    }
    made = {"made": "now", "workloads": [{"name": "requests", "targets": [target]}]}
    left = report.without_samples(made)
    (small,) = left["workloads"][0]["targets"]
    assert small == {
        **{key: target[key] for key in ("name", "figures", "added")},
        "rounds": [{key: one[key] for key in ("errors", "fidelity", "warnings")}],
    }
    assert left["made"] == "now"
    assert "series" in target  # what was given stays as it is
