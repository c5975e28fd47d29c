"""The training loop's events on a terminal, or in a log.

On a terminal: one bar at the bottom (loss, learned tokens per second, memory, step, time left), and above it, as they
come, held-out losses, sample answers, checkpoints and notes. Without a terminal: plain lines; of the steps the first,
the last and at most one every two seconds, of everything else every one.

    plan  1.21 GB of memory (budget 8 GB), about 5 min 8 s, 2.4 s a step
          cpu, float32, 2 threads; everything kept
    training ━━━━━━━╸━━━━━━━━━━━  48/120  loss 0.8312  412 learned tok/s  1.4 GB  2 min 10 s left

The listener only shows. It reads events, which the loop writes to events.jsonl whether anybody listens or not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from strop.cli.console import printable
from strop.cli.units import format_duration, format_size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

LINE_INTERVAL: Final = 2.0
"""Least seconds between two plain step lines."""

SHOWN_TEXT: Final = 600
"""Characters of a question or an answer that are shown; samples.jsonl holds all of it."""


class TerminalListener:
    """Shows a run's events. Use it as a context manager: leaving it takes the bar down, whatever happened.

    Args:
        console: where to print; a bar if it is a terminal, plain lines if not.
        clock: seconds, monotonic; for the rate of lines and the time left.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._steps = 0
        self._first_step = 0
        self._started = clock()
        self._last_line: float | None = None
        self._held_back = ""  # the newest step line that came too soon after another one
        self._held_out: float | None = None
        self._preparing = ""
        self._memory = ""
        self._show: dict[str, Callable[[Mapping[str, Any]], None]] = {
            "progress": self._on_progress,
            "start": self._on_start,
            "dry_run": self._on_dry_run,
            "replan": self._on_replan,
            "step": self._on_step,
            "skip": self._on_skip,
            "watch": self._on_watch,
            "answer": self._on_answer,
            "save": self._on_save,
            "save_failed": self._on_save_failed,
            "stop": self._on_stop,
            "end": self._on_end,
            "note": self._on_note,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._take_down()

    def on_event(self, event: Mapping[str, Any]) -> None:
        """Show one event; kinds that are not known are for others and pass by.

        Args:
            event: ``kind`` and the fields of that kind, as written to events.jsonl.
        """
        show = self._show.get(str(event.get("kind")))
        if show is not None:
            show(event)

    def _on_progress(self, event: Mapping[str, Any]) -> None:
        """A piece of preparation: a bar that goes when the piece is done, or one line."""
        what, done, total = str(event["what"]), int(event["done"]), int(event["total"])
        if what != self._preparing:
            self._take_down()
            self._preparing = what
            if self._console.is_terminal:
                self._bar = _bar(self._console, transient=True)
                self._task = self._bar.add_task(printable(what), total=total, status="")
                self._bar.start()
            else:
                self._line(what)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total)
            if done >= total:
                self._take_down()

    def _on_start(self, event: Mapping[str, Any]) -> None:
        self._steps, self._first_step = int(event["steps"]), int(event.get("step", 0))
        self._started = self._clock()
        self._memory = " on the GPU" if on_gpu(event.get("plan") or {}) else ""
        forecast = event.get("forecast") or {}
        if forecast:
            self._take_down()
            for line in plan_lines(event):
                self._line(line, "dim")
        if not self._console.is_terminal:
            again = f" from step {self._first_step}" if self._first_step else ""
            self._line(f"training {self._steps} steps{again}")
            return
        self._take_down()
        self._bar = _bar(self._console)
        about = f"about {format_duration(forecast['seconds'])}" if forecast.get("seconds") else ""
        self._task = self._bar.add_task("training", total=self._steps, completed=self._first_step, status=about)
        self._bar.start()

    def _on_dry_run(self, event: Mapping[str, Any]) -> None:
        self._started = self._clock()  # the time left is reckoned from the steps alone
        tokens = f"{int(event['tokens']):,} tokens"
        taken = f"{format_duration(event['seconds'])}, {format_size(event['memory_bytes'])} in use{self._memory}"
        self._line(f"step {event['step']}  tried the largest pack, {tokens}: {taken}", "dim")

    def _on_replan(self, event: Mapping[str, Any]) -> None:
        from strop.run.levers import savings

        self._line(f"step {event['step']}  memory fell short: {event['reason']}", "bold yellow")
        peak = (event.get("forecast") or {}).get("peak_bytes")
        words = f"{format_size(peak)}, {savings(event['plan'])}" if peak else savings(event["plan"])
        self._line(f"  going on under a leaner plan: {words}", "yellow")

    def _on_step(self, event: Mapping[str, Any]) -> None:
        step = int(event["step"])
        status = self._status(event, step)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, status=status)
            return
        now = self._clock()
        line = f"step {step}/{self._steps}  {status}"
        if self._last_line is None or step == self._steps or now - self._last_line >= LINE_INTERVAL:
            self._last_line, self._held_back = now, ""
            self._line(line)
        else:
            self._held_back = line

    def _on_skip(self, event: Mapping[str, Any]) -> None:
        leap = f"its loss {event['loss']:.4f} leapt above {event['bound']:.4f}"
        self._line(f"step {event['step']}  skipped: {leap}", "bold yellow")
        places = [str(place) for place in event["places"]]
        self._line(f"  samples: {', '.join(places[:8])}{' …' if len(places) > 8 else ''}", "yellow")

    def _status(self, event: Mapping[str, Any], step: int) -> str:
        """What is said of a step: ``loss 0.8312  412 learned tok/s  1.4 GB  2 min 10 s left``."""
        parts = [f"loss {event['loss']:.4f}"]
        if event.get("learned_tokens_per_s") is not None:
            parts.append(f"{event['learned_tokens_per_s']:.0f} learned tok/s")
        if event.get("memory_bytes"):
            parts.append(format_size(event["memory_bytes"]) + self._memory)
        done = step - self._first_step
        if done > 0 and step < self._steps:
            left = (self._clock() - self._started) / done * (self._steps - step)
            parts.append(f"{format_duration(left)} left")
        return "  ".join(parts)

    def _on_watch(self, event: Mapping[str, Any]) -> None:
        if event["step"] == self._first_step:
            self._started = self._clock()
        loss = event.get("held_out_loss")
        if loss is None:
            return
        before = f" (was {self._held_out:.4f})" if self._held_out is not None else ""
        self._held_out = float(loss)
        self._line(f"step {event['step']}  held-out loss {loss:.4f}{before}", "bold cyan")

    def _on_answer(self, event: Mapping[str, Any]) -> None:
        cut = "" if event.get("stopped", True) else " … (did not stop by itself)"
        self._line(f"step {event['step']}  asked: {_excerpt(str(event['question']))}", "dim")
        self._line(f"  answered: {_excerpt(str(event['answer']))}{cut}")

    def _on_save(self, event: Mapping[str, Any]) -> None:
        self._line(f"step {event['step']}  saved {event['folder']}", "dim")

    def _on_save_failed(self, event: Mapping[str, Any]) -> None:
        self._line(f"step {event['step']}  NOT SAVED: {event['reason']}", "bold red")
        self._line("  training goes on; the last checkpoint stands, and the next one is tried when it is due", "red")

    def _on_stop(self, event: Mapping[str, Any]) -> None:
        self._finish_steps()
        self._line(f"step {event['step']}  stopped: {event['reason']}", "bold yellow")

    def _on_end(self, event: Mapping[str, Any]) -> None:
        self._finish_steps()
        parts = [f"done: {event['step']} steps in {format_duration(event['seconds'])}"]
        if event.get("learned_tokens") is not None:
            parts.append(f"{event['learned_tokens']:,} learned tokens")
        if event.get("tokens_per_s") is not None:
            parts.append(f"{event['tokens_per_s']:.0f} tok/s")
        if event.get("peak_bytes"):
            parts.append(f"peak {format_size(event['peak_bytes'])}")
        losses = event.get("held_out_loss") or {}
        if losses.get("after") is not None:
            before = f"{losses['before']:.4f} → " if losses.get("before") is not None else ""
            parts.append(f"held-out loss {before}{losses['after']:.4f}")
        self._line("  ".join(parts), "bold green")

    def _on_note(self, event: Mapping[str, Any]) -> None:
        self._line(str(event["text"]))

    def _line(self, text: str, style: str = "") -> None:
        """Print above the bar. The text is data: no markup, no control characters."""
        from rich.text import Text

        self._console.print(Text(printable(text), style), soft_wrap=not self._console.is_terminal)

    def _finish_steps(self) -> None:
        """Take the bar down, or print the last step's line if it was held back."""
        self._take_down()
        if self._held_back:
            self._line(self._held_back)
        self._held_back = ""

    def _take_down(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None


def plan_lines(event: Mapping[str, Any]) -> list[str]:
    """What a start event says of the plan, in two lines, and a third where it says why.

    Args:
        event: with ``plan``, ``forecast``, and, where there are such, ``budget_bytes`` and ``reason``.
    """
    from strop.run.figures import size
    from strop.run.levers import in_words, savings

    forecast, plan = event["forecast"], event.get("plan") or {}
    budget = f" (budget {size(event['budget_bytes'])})" if event.get("budget_bytes") else ""
    memory = "a GPU's memory" if on_gpu(plan) else "memory"
    cost = f"plan  {size(forecast['peak_bytes'])} of {memory}{budget}, about {format_duration(forecast['seconds'])}"
    processor = dict(in_words(plan)).get("processor", "")
    lines = [f"{cost}, {format_duration(forecast['step_seconds'])} a step"]
    lines.append("      " + "; ".join(part for part in (processor, savings(plan)) if part))
    if event.get("reason"):
        lines.append(f"      why: {event['reason']}")
    return lines


def on_gpu(plan: Mapping[str, Any]) -> bool:
    """Whether a plan computes on a CUDA device."""
    return str(plan.get("device", "")).startswith("cuda")


def _bar(console: Console, transient: bool = False) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}", markup=False),
        console=console,
        transient=transient,
        refresh_per_second=4,  # the bar must not take a core from the training
        redirect_stdout=False,  # standard output is for the result
        redirect_stderr=False,
    )


def _excerpt(text: str) -> str:
    """At most `SHOWN_TEXT` characters, line breaks kept and indented below the first line."""
    text = text.strip()
    short = text if len(text) <= SHOWN_TEXT else text[:SHOWN_TEXT] + " …"
    return short.replace("\n", "\n    ")
