"""The plan as one web page: memory and time by part, the levers, and the memory–time curve with a plan at each point.

Choice ──explain──▶ rows, shares, options ──front_chart, template──▶ one HTML file, without scripts or requests
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from markupsafe import Markup

from strop.errors import UsageError
from strop.plan import explain
from strop.plan.forecast import Choice
from strop.run.figures import duration, size
from strop.run.front import front_axes, front_chart
from strop.run.levers import in_words
from strop.run.page import Chart, Value, render, shares, write_page

_TEMPLATE: Final = Path(__file__).with_name("plan_template.html.jinja")


def write_plan(choice: Choice, target: Path, *, model: str, data: str, command: str) -> None:
    """Writes the page.

    Args:
        choice: what was chosen.
        target: the file; one that is there is replaced.
        model: what is trained, as the recipe names it.
        data: what it learns from.
        command: the command line that trains under this plan.

    Raises:
        UsageError: the file cannot be written.
    """
    page = render(_TEMPLATE, _view(choice, model, data, command))
    try:
        write_page(target, page)
    except OSError as error:
        raise UsageError(
            f"the page {target} cannot be written", found=error.strerror or str(error), do="name another file"
        ) from None


def _view(choice: Choice, model: str, data: str, command: str) -> dict[str, Any]:
    """Everything the template names."""
    forecast = choice.forecast
    components = {name: float(count) for name, count in forecast.components.items()}
    return {
        "model": model,
        "data": data,
        "command": command,
        "tiles": [
            (
                "Peak memory",
                Value(size(forecast.peak_bytes), str(forecast.peak_bytes)),
                f"of {size(choice.budget_bytes)}",
            ),
            ("Whole run", Value(duration(forecast.seconds), repr(forecast.seconds)), ""),
            ("A step", Value(duration(forecast.step_seconds), repr(forecast.step_seconds)), ""),
        ],
        "budget": f"{size(choice.budget_bytes)} ({choice.budget_source})",
        "circumstances": explain.circumstances(choice),
        "chart": _chart(choice),
        "rows": explain.rows(choice),
        "size": size,
        "duration": duration,
        "components": shares(components, {name: size(count) for name, count in components.items()}),
        "step_parts": shares(
            forecast.step_parts, {name: duration(seconds) for name, seconds in forecast.step_parts.items()}
        ),
        "times": explain.time_rows(forecast),
        "levers": in_words(forecast.plan.as_dict()),
        "reason": choice.reason,
        "exact": [(name, str(value)) for name, value in forecast.plan.as_dict().items()],
    }


def _chart(choice: Choice) -> Chart:
    """The curve, wide and narrow."""
    options, budget = explain.options(choice), float(choice.budget_bytes)
    label = (
        f"Time of the whole run over memory at the peak: from {size(options[0].memory)} and "
        f"{duration(options[0].seconds)} to {size(options[-1].memory)} and {duration(options[-1].seconds)}"
    )
    legend = [("option chosen", "this plan"), ("option", "other plans"), ("budget", "the budget")]
    return Chart(
        "Time of the whole run",
        front_axes(options, budget).time_unit,
        Markup(front_chart(label, options, budget, width=960, height=360)),
        Markup(front_chart(label, options, budget, width=480, height=320)),
        legend,
    )
