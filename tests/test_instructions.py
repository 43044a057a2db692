"""What the engine costs in instructions, which no noise touches: `make instructions` (instructions.py) in a test.

The budget holds for the build that it was written for; of another compiler's engine it says nothing.
"""

from __future__ import annotations

import json
import sys

import pytest
from choice import count as count_choice
from instructions import BUDGET, TOLERANCE, UNITS, build_of, count, lacking, table


@pytest.mark.slow
def test_no_unit_costs_more_than_its_budget(record_property):
    if reason := lacking():
        pytest.skip(f"INSTRUCTIONS NOT COUNTED: {reason}")
    budget = json.loads(BUDGET.read_text())
    build = build_of()
    if build["flavour"] != "release":
        pytest.skip(f"INSTRUCTIONS NOT COUNTED: this engine is of the flavour {build['flavour']}")
    costs = count()
    text = table(costs, budget["instructions"])
    print(text)
    totals = {name: cost.total for name, cost in costs.items()}
    assert list(totals) == list(UNITS)
    # Two calls into the kernel and the C library around each cannot be had for less: so something was counted.
    assert min(totals.values()) > 100
    # A count that another run does not repeat is no count. In the C library a memcpy or a memchr takes one branch or another by
    # where its arguments lie, page by page, and that is the allocator's: two instructions of a request, once in many runs.
    again = count()
    assert {name: round(cost.engine, 3) for name, cost in again.items()} == {
        name: round(cost.engine, 3) for name, cost in costs.items()
    }
    for name, cost in costs.items():
        assert again[name].library == pytest.approx(cost.library, rel=0.01), name
    # Tokens are looked for in every event.
    without = count(options=("--include-usage", "off"))["event"].total
    assert 1.01 < totals["event"] / without < 1.10
    if build != budget["build"]:
        pytest.skip(f"INSTRUCTIONS NOT COMPARED: this build is {build}, the budget is for {budget['build']}\n{text}")
    assert set(budget["instructions"]) == set(UNITS)
    over = [name for name, total in totals.items() if total > budget["instructions"][name] * (1 + TOLERANCE)]
    assert not over, f"more than {TOLERANCE:.0%} above the budget: {over}\n{text}"


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["least_in_flight", "p2c"])
def test_a_choice_among_many_backends_costs_little(policy):
    """3,000 instructions are about a microsecond, at one of them in a cycle."""
    if reason := lacking():
        pytest.skip(f"INSTRUCTIONS NOT COUNTED: {reason}")
    if (flavour := build_of()["flavour"]) != "release":
        pytest.skip(f"INSTRUCTIONS NOT COUNTED: this engine is of the flavour {flavour}")
    one = count_choice(sys.executable, 1, 1, policy).total
    many = count_choice(sys.executable, 5, 20, policy).total
    assert 200 < many - one < 3000, f"{one:.0f} with one backend, {many:.0f} with 20"
