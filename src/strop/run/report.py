"""The report: one HTML page that shows what a run did, from the files of its folder alone.

    RUN/recipe.yaml · manifest.json · plan.json · events.jsonl · samples.jsonl · refused.jsonl · data.json · score.json
      ──read_run──▶ RunFiles ──▶ summary, charts, answers, learned text, refusals, facts ──template──▶ RUN/report.html

The page needs no network and no script, and forbids itself both. It can be made while the run goes on, after it was
cut off, and from a stranger's folder: what cannot be read is named at the top (`strop.run.report_files`), and every
text is escaped by the template engine. Numbers are rounded for the eye; each carries its exact value as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from markupsafe import Markup

from strop.run import report_sections as sections
from strop.run.charts import Curve, line_chart, smoothed, thinned
from strop.run.figures import byte_unit, change, duration, power_unit, significant, size, whole
from strop.run.page import Chart, Value, render, write_page
from strop.run.report_files import Course, RunFiles, mapping, number, read_run
from strop.run.report_plan import plan_section

_TEMPLATE = Path(__file__).with_name("report_template.html.jinja")
_FEWEST_TO_SMOOTH = 40  # below, the window of `smoothed` holds next to nothing


@dataclass(frozen=True)
class Tile:
    """One figure of the summary: a value, or a value before and one after, with what there is to say about it."""

    title: str
    values: list[Value]
    after: str = ""
    notes: list[str] = field(default_factory=list)


def write_report(run_folder: Path) -> Path:
    """Writes ``report.html`` into a run folder, and returns its path.

    Args:
        run_folder: the folder of a run: finished, stopped, going on, or broken.

    Raises:
        InputError: the folder is no run folder.
        OSError: the page cannot be written there.
    """
    target = run_folder / "report.html"
    write_page(target, render(_TEMPLATE, _view(read_run(run_folder))))
    return target


def _view(run: RunFiles) -> dict[str, Any]:
    """Everything the template names."""
    model, data = mapping(run.manifest.get("model")), mapping(run.manifest.get("data"))
    asked, questions = sections.answers(run.samples)
    samples = sections.learned(run.data)
    wide, narrow = sections.lengths_chart(run.data, 960, 240), sections.lengths_chart(run.data, 480, 260)
    return {
        "folder": run.folder.resolve().name,
        "model": _last_parts(model.get("path"), 1) or "a model",
        "data": _data_name(data.get("train")) or "data",
        "subtitle": _subtitle(run, model, data),
        "state": _state(run.course),
        "notes": run.notes,
        "tiles": _tiles(run),
        "charts": _charts(run.course),
        "watches": [(whole(step), Value(significant(loss), repr(loss))) for step, loss in run.course.held_out()],
        "asked": asked,
        "questions": questions,
        "learned": samples,
        "lengths": Chart("Lengths", "number of samples", Markup(wide), Markup(narrow)) if wide and narrow else None,
        "refusals": sections.refusals(run.refused),
        "recipe": sections.recipe_lines(run.recipe),
        "plan": plan_section(run),
        "manifest": sections.facts(run.manifest),
    }


def _last_parts(path: object, count: int) -> str:
    """The end of a path, of whatever system it came from."""
    return "/".join([part for part in re.split(r"[\\/]", path) if part][-count:]) if isinstance(path, str) else ""


def _data_name(train: object) -> str:
    """What a run learned from: the end of its path, or of the first few of several."""
    sources = train if isinstance(train, list) else [train]
    names = [name for source in sources[:4] if (name := _last_parts(source, 2))]
    return ", ".join(names[:3]) + (" and more" if len(names) > 3 else "")


def _state(course: Course) -> tuple[str, str]:
    """The run's state as (class, text)."""
    done = f"step {whole(course.last_step)}" + (f" of {whole(course.planned)}" if course.planned is not None else "")
    if course.state == "end":
        return "finished", "Finished"
    if course.state == "stop":
        return "stopped", f"Stopped at {done}; can be resumed"
    if course.state == "start":
        return "running", f"Running, or cut off, at {done}"
    return "running", "Not started"


def _subtitle(run: RunFiles, model: dict[str, Any], data: dict[str, Any]) -> list[str]:
    """The facts under the title, as far as the manifest has them."""
    parts = []
    if isinstance(model.get("family"), str):
        parts.append(sections.shown(model["family"]))
    total, trained = number(model.get("parameters")), number(model.get("trainable"))
    if total:
        parts.append(f"{_rough(total)} parameters")
        if trained is not None:
            parts.append(f"adapter of {_rough(trained)} ({significant(trained / total * 100, 2)} %)")
    quantised = mapping(model.get("nf4"))
    weights, bits = number(quantised.get("weights")), number(quantised.get("bits_per_weight"))
    if weights and bits:
        parts.append(f"{_rough(weights)} of them in NF4, {significant(bits)} bits each")
    counts = [(name, number(data.get(name))) for name in ("read", "learned", "held_out", "refused")]
    known = [f"{whole(count)} {name.replace('_', ' ')}" for name, count in counts if count is not None]
    if known:
        parts.append("records: " + ", ".join(known))
    if isinstance(run.manifest.get("created"), str):
        parts.append(_moment(run.manifest["created"]))
    return parts


def _moment(written: str) -> str:
    """A time in ISO 8601 to the minute, as the clock showed it there; anything else as it stands."""
    try:
        moment = datetime.fromisoformat(written)
    except ValueError:
        return sections.shown(written)
    return f"{moment:%Y-%m-%d %H:%M} {moment.tzname() or ''}".rstrip()


def _rough(count: float) -> str:
    """A large count in millions or thousand millions: ``134.5 M``, ``7.321 B``."""
    for divisor, unit in ((1e9, "B"), (1e6, "M")):
        if count >= divisor:
            return f"{significant(count / divisor)} {unit}"
    return whole(count)


def _tiles(run: RunFiles) -> list[Tile]:
    """The figures of the summary, each only if its files have it."""
    course = run.course
    found = [_loss_tile(run), _right_tile(run.score), _time_tile(course), _speed_tile(course)]
    peak = number(course.end.get("peak_bytes"))
    memory = course.values("memory_bytes")
    if peak is not None:
        found.append(Tile("Peak memory", [Value(size(peak), repr(int(peak)))]))
    elif memory:
        largest = max(value for _, value in memory)
        found.append(Tile("Peak memory", [Value(size(largest), repr(int(largest)))], notes=["so far"]))
    found.append(_tokens_tile(course))
    return [tile for tile in found if tile is not None]


def _loss_tile(run: RunFiles) -> Tile | None:
    course = run.course
    ends, watched = mapping(course.end.get("held_out_loss")), course.held_out()
    before, after = number(ends.get("before")), number(ends.get("after"))
    if before is None and watched and watched[0][0] == 0:
        before = watched[0][1]
    if after is None and watched and watched[-1][0] > 0:
        after = watched[-1][1]
    values = [Value(significant(loss), repr(loss)) for loss in (before, after) if loss is not None]
    if not values:
        return None
    notes = []
    if before is not None and after is not None:
        notes.append(change(before, after))
        lowest = min(watched, key=lambda point: point[1], default=(0, after))
        # Two per cent is more than rounding; a rise beyond it is what over-fitting looks like.
        if lowest[1] < after * 0.98 and lowest[0] > 0:
            notes.append(f"lowest at step {whole(lowest[0])}: {significant(lowest[1])}")
    else:
        notes.append("before tuning" if after is None else "so far")
    return Tile("Held-out loss", values, notes=[note for note in notes if note])


def _right_tile(score: dict[str, Any]) -> Tile | None:
    base, tuned, asked = mapping(score.get("base")), mapping(score.get("tuned")), number(score.get("asked"))
    right = [number(side.get("right")) for side in (base, tuned)]
    loose = [number(side.get("loose")) for side in (base, tuned)]
    values = [Value(whole(count), repr(int(count))) for count in right if count is not None]
    if len(values) != 2:
        return None
    counts = [whole(count) for count in loose if count is not None]
    notes = [f"in whatever form: {' → '.join(counts)}"] if len(counts) == 2 else []
    return Tile("Right answers", values, after=f"of {whole(asked)}" if asked is not None else "", notes=notes)


def _time_tile(course: Course) -> Tile | None:
    seconds = number(course.end.get("seconds"))
    taken = whole(course.last_step) + (f" of {whole(course.planned)}" if course.planned is not None else "")
    if seconds is not None:
        return Tile("Time", [Value(duration(max(seconds, 0)), repr(seconds))], notes=[f"{taken} steps"])
    spent = sum(value for _, value in course.values("seconds"))
    if not course.steps or spent < 0:
        return None
    return Tile("Time", [Value(duration(spent), repr(spent))], notes=[f"in steps so far; {taken} steps"])


def _speed_tile(course: Course) -> Tile | None:
    speed = number(course.end.get("tokens_per_s"))
    spent, tokens = (sum(value for _, value in course.values(name)) for name in ("seconds", "tokens"))
    if speed is None and spent > 0:
        speed = tokens / spent
    if speed is None:
        return None
    return Tile("Speed", [Value(significant(speed, 3), repr(speed))], after="tokens/s")


def _tokens_tile(course: Course) -> Tile | None:
    total = number(course.end.get("learned_tokens"))
    if total is None and course.steps:
        total = sum(value for _, value in course.values("learned_tokens"))
    if total is None:
        return None
    read = sum(value for _, value in course.values("tokens"))
    epochs = course.values("epoch")
    notes = [f"of {whole(read)} tokens read"] if read >= total > 0 else []
    if epochs:
        passes = significant(epochs[-1][1], 3)
        notes.append(f"{passes} epoch" if passes == "1" else f"{passes} epochs")
    return Tile("Learned tokens", [Value(whole(total), repr(int(total)))], notes=notes)


def _charts(course: Course) -> list[Chart]:
    """The charts of the course: loss first and wide, then what the steps say of themselves."""
    charts = [_loss_chart(course)]
    rates = course.values("lr")
    divisor, unit = power_unit(max((rate for _, rate in rates), default=0.0))
    charts.append(_step_chart("Learning rate", unit, rates, "learning rate", divisor))
    charts.append(_step_chart("Gradient norm", "before clipping", course.values("grad_norm"), "gradient norm"))
    memory = course.values("memory_bytes")
    divisor, unit = byte_unit(max((value for _, value in memory), default=0.0))
    charts.append(_step_chart("Memory", unit, memory, "memory", divisor, written=size, together=max))
    charts.append(_step_chart("Speed", "tokens/s", course.values("tokens_per_s"), "tokens/s"))
    return [chart for chart in charts if chart is not None]


def _loss_chart(course: Course) -> Chart | None:
    losses, held_out = course.values("loss"), course.held_out()
    curves, legend = [], []
    if losses:
        curves.append(Curve("training", "faint", thinned(losses, "training loss")))
        legend.append(("training", "training, each step"))
    if len(losses) >= _FEWEST_TO_SMOOTH:
        curves.append(Curve("training", "line", thinned(smoothed(losses), "smoothed training loss")))
        legend.append(("training strong", "training, smoothed"))
    if held_out:
        curves.append(Curve("held-out", "dots", thinned(held_out, "held-out loss")))
        legend.append(("held-out", "held out"))
    if not curves:
        return None
    label = "Loss per learned token over the steps"
    for name, points in (("training", losses), ("held-out", held_out)):
        if points:
            label += f"; {name} from {significant(points[0][1])} to {significant(points[-1][1])}"
    return Chart(
        "Loss",
        "nats per learned token",
        Markup(line_chart(label, curves, from_zero=False, width=960, height=320, about=8)),
        Markup(line_chart(label, curves, from_zero=False, height=300)),
        legend,
    )


def _step_chart(
    title: str,
    unit: str,
    values: Sequence[tuple[int, float]],
    what: str,
    divisor: float = 1.0,
    written: Callable[[float], str] = significant,
    together: Callable[[Sequence[float]], float] = fmean,
) -> Chart | None:
    """A chart of one field of the steps, drawn in units of `divisor`, its marks' texts in the field's own unit."""
    if not values:
        return None
    scaled = [replace(mark, value=mark.value / divisor) for mark in thinned(values, what, written, together)]
    label = f"{title} over the steps, from {written(values[0][1])} to {written(values[-1][1])}"
    return Chart(title, unit, Markup(line_chart(label, [Curve("plain", "faint", scaled)], from_zero=True)))
