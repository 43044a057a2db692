"""docs/http.md says what the proxy does: its column of the tables is seen on the wire again."""

from __future__ import annotations

from pathlib import Path

import http_comparison
import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "http.md").read_text()
PATIENCE = 0.5
"""Seconds of silence that count as the end where the first look, with less, saw something else: the machine may be busy."""


@pytest.mark.slow
def test_the_column_of_ours_is_true(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = PAGE.partition(http_comparison.BEGIN)[2].partition(http_comparison.END)[0].splitlines()

    def stands(probe: http_comparison.Probe, verdict: str) -> bool:
        begin = f"| {http_comparison.cell(probe.rule)} | {probe.rfc} | {verdict} |"
        return sum(line.startswith(begin) for line in lines) == 1

    server = http_comparison.Server()
    with http_comparison.running("llmpipe", server) as (_, port_of):
        probes = [probe for probes in http_comparison.PROBES.values() for probe in probes]
        assert len(probes) == sum(line.startswith("| ") for line in lines) - len(http_comparison.PROBES)
        other = [probe for probe in probes if not stands(probe, http_comparison.judge(probe, port_of(probe), server))]
        monkeypatch.setattr(http_comparison, "QUIET", PATIENCE)
        wrong = {probe.rule: http_comparison.judge(probe, port_of(probe), server) for probe in other}
        assert [probe.rule for probe in other if not stands(probe, wrong[probe.rule])] == [], wrong
