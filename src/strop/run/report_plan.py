"""The report's section on the plan: what was forecast, what came, where the memory went, and the levers in words.

The forecast that counts is the one from before the first step; where memory fell short and a leaner plan took over, the
section says so. Runs from before there were forecasts have their levers alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from strop.run.figures import duration, size, whole
from strop.run.levers import in_words
from strop.run.outcome import Facts, compare
from strop.run.page import Share, Value, shares
from strop.run.report_files import Course, RunFiles, mapping, number
from strop.run.report_sections import facts, shown

_MOST_REPLANS = 20
_MOST_PARTS = 24


@dataclass(frozen=True)
class ComparedRow:
    """One measure: as forecast, as it came, and the difference in words."""

    name: str
    forecast: Value
    fact: Value
    difference: str


@dataclass(frozen=True)
class PlanSection:
    """What the section shows; anything may be empty.

    Attributes:
        compared: forecast beside fact.
        components: forecast memory by component.
        step_parts: forecast time of a step by kind of work.
        levers: (subject, words).
        reason: why this plan.
        budget: the budget in words.
        replans: what happened where memory fell short.
        exact: plan.json as it stands, without the forecast.
    """

    compared: list[ComparedRow]
    components: list[Share]
    step_parts: list[Share]
    levers: list[tuple[str, str]]
    reason: str
    budget: str
    replans: list[str]
    exact: list[tuple[str, str]]


def plan_section(run: RunFiles) -> PlanSection:
    """The section, from plan.json and the events."""
    kept = mapping(run.plan.get("forecast"))
    forecast = run.course.forecast or kept
    budget, source = number(kept.get("budget_bytes")), kept.get("budget_source")
    words = size(budget) if budget is not None else ""
    if words and isinstance(source, str) and source:
        words += f" ({shown(source)})"
    return PlanSection(
        compared=_compared(forecast, run.course),
        components=_shares(forecast.get("components"), size),
        step_parts=_shares(forecast.get("step_parts"), lambda seconds: duration(max(seconds, 0.0))),
        levers=in_words(run.plan),
        reason=shown(kept["reason"]) if isinstance(kept.get("reason"), str) else "",
        budget=words,
        replans=[_replan(event) for event in run.course.replans[:_MOST_REPLANS]],
        exact=facts({name: value for name, value in run.plan.items() if name != "forecast"}),
    )


def facts_of(course: Course) -> Facts:
    """What happened, as a forecast is held against it."""
    memory = [value for _, value in course.values("memory_bytes")]
    ended = number(course.end.get("peak_bytes"))
    watched = (number(event.get("seconds")) for event in course.watches.values())
    return Facts(
        peak_bytes=max([*memory, *([ended] if ended is not None else [])], default=None),
        steps=len(course.steps),
        step_seconds=sum(value for _, value in course.values("seconds")),
        watch_seconds=sum(seconds for seconds in watched if seconds is not None),
        finished=course.state == "end",
    )


def _compared(forecast: Mapping[str, Any], course: Course) -> list[ComparedRow]:
    return [
        ComparedRow(
            row.name,
            Value(row.written(row.forecast), repr(row.forecast)),
            Value(row.written(row.fact), repr(row.fact)),
            row.difference,
        )
        for row in compare(forecast, facts_of(course))
    ]


def _shares(parts: object, written: Any) -> list[Share]:
    values = {
        shown(name): value
        for name, part in list(mapping(parts).items())[:_MOST_PARTS]
        if (value := number(part)) is not None and value >= 0
    }
    return shares(values, {name: written(value) for name, value in values.items()})


def _replan(event: Mapping[str, Any]) -> str:
    step, peak = number(event.get("step")), number(mapping(event.get("forecast")).get("peak_bytes"))
    words = f"At step {whole((step or 0) + 1)}: {shown(event.get('reason'))}."
    return f"{words} From there a leaner plan, {size(peak)} by forecast." if peak is not None else words
