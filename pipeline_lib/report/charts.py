"""Charts as inline SVG: axes, lines, intervals, bars; no library, no script, a few kilobytes each.

One idea: a chart is drawn once, at the size of a phone's width, in classes instead of colours. The page's style sheet
gives the classes their colours, so a chart is dark where the page is dark, and two of them stand side by side
on a wide screen. Every mark carries its numbers in ``data-tip``, which the page's script shows on hover and focus.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

WIDTH, HEIGHT = 460, 270
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 30, 40
NUM_SERIES = 5  # colours that the style sheet knows
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: the data's range, laid on pixels.

    Args:
        title: what is measured, with its unit.
        low: data value at `start`.
        high: data value at `stop`, above `low`.
        start: pixel of `low`.
        stop: pixel of `high`.
        ticks: where the axis is labelled.
        label: from a tick to its text.
        is_log: lays the logarithm; `low` must be positive.
    """

    title: str
    low: float
    high: float
    start: float
    stop: float
    ticks: Sequence[float]
    label: Callable[[float], str]
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value; one beyond an end lies at that end."""
        low, high = (math.log(self.low), math.log(self.high)) if self.is_log else (self.low, self.high)
        laid = math.log(max(value, self.low)) if self.is_log else value
        share = min(max((laid - low) / (high - low), 0.0), 1.0)
        return round(self.start + share * (self.stop - self.start), 1)


def value_axis(title: str, low: float, high: float, *, vertical: bool = True) -> Axis:
    """An axis over [low, high], widened to round ticks."""
    ticks = nice_ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    return Axis(title, low, high, *_pixels(vertical), ticks, number_label)


def log_axis(title: str, high: float) -> Axis:
    """A vertical axis of counts from 1 to `high`; a bar of 1 still shows."""
    top = max(high, 10.0)
    ticks = [10.0**power for power in range(math.ceil(math.log10(top)) + 1) if 10.0**power <= top]
    return Axis(title, 0.7, top * 1.2, *_pixels(True), ticks, number_label, is_log=True)


def iteration_axis(last: int, *, first: int = 0) -> Axis:
    """A horizontal axis of iterations with half a step of room at both ends; 0 is called the base."""
    ticks = list(range(first, last + 1))
    return Axis("iteration", first - 0.5, last + 0.5, *_pixels(False), ticks, iteration_label)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round values that enclose [low, high].

    Example: ``nice_ticks(0.3, 4.2)`` is ``[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]``.
    """
    if high <= low:
        low, high = low - 1, high + 1
    rough = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def number_label(value: float) -> str:
    """A tick's text: ``0.25``, ``40``, ``1,000``."""
    return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}").replace("-", "−")


def iteration_label(index: float) -> str:
    """``base`` for 0, else the number."""
    return "base" if index == 0 else f"{index:g}"


@dataclass(slots=True)
class Chart:
    """A chart being drawn, from the back to the front.

    Args:
        title: the question that the chart answers.
        x: horizontal axis.
        y: vertical axis.
    """

    title: str
    x: Axis
    y: Axis
    marks: list[Markup] = field(default_factory=list)
    legend: list[tuple[str, int, str]] = field(default_factory=list)

    def name(self, text: str, series: int, look: str = "line") -> None:
        """Adds a line to the legend; `look` is line, dashed, dotted, bar or hollow."""
        self.legend.append((text, series % NUM_SERIES, look))

    def line(self, points: Sequence[Point], series: int, *, look: str = "line") -> None:
        """A line through the points."""
        path = " ".join(f"{self.x(x)},{self.y(y)}" for x, y in points)
        self._add('<polyline class="{} {}" points="{}"/>', _series(series), look, path)

    def steps(self, points: Sequence[Point], series: int, *, look: str = "dashed") -> None:
        """A level of half a step to both sides of each point."""
        for x, y in points:
            self.line([(x - 0.42, y), (x + 0.42, y)], series, look=look)

    def dot(self, point: Point, series: int, *, tip: str, interval: Point | None = None, look: str = "full") -> None:
        """A point with its numbers, and its interval as a bar behind it."""
        x, y = self.x(point[0]), self.y(point[1])
        ends = [self.y(value) for value in interval] if interval else []
        whisker = Markup('<line class="whisker" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(x, *ends) if ends else ""
        self._add(
            '<g class="mark {} {}" tabindex="0" data-tip="{}">{}<circle class="reach" cx="{x}" cy="{y}" r="11"/>'
            '<circle class="dot" cx="{x}" cy="{y}" r="4"/></g>',
            *(_series(series), look, tip, whisker),
            x=x,
            y=y,
        )

    def bar(self, ends: Point, value: float, series: int, *, tip: str) -> None:
        """A bar between two places of the horizontal axis, from 0 (or the bottom) to `value`."""
        left, right = sorted(self.x(end) for end in ends)
        top, bottom = sorted((self.y(value), self.y(max(self.y.low, min(0.0, self.y.high)))))
        self._add(
            '<rect class="mark bar {}" data-tip="{}" x="{}" y="{}" width="{}" height="{}"/>',
            *(_series(series), tip, left, top, round(max(right - left, 0.5), 1), round(max(bottom - top, 0.5), 1)),
        )

    def rule(self, value: float, text: str, *, series: int | None = None) -> None:
        """A level across the whole chart with its name at the right end."""
        look = "rule" if series is None else f"rule {_series(series)}"
        y = self.y(value)
        self._add('<line class="{}" x1="{}" x2="{}" y1="{y}" y2="{y}"/>', look, LEFT, WIDTH - RIGHT, y=y)
        self._add('<text class="note" x="{}" y="{}" text-anchor="end">{}</text>', WIDTH - RIGHT, y - 5, text)

    def render(self) -> Markup:
        """The chart as an HTML figure: title, legend, picture."""
        swatches = Markup("").join(
            Markup('<li><i class="swatch s{} {}"></i>{}</li>').format(series, look, text)
            for text, series, look in self.legend
        )
        legend = Markup('<ul class="legend">{}</ul>').format(swatches) if swatches else ""
        return Markup(
            '<figure class="chart"><figcaption>{}</figcaption>{}<svg viewBox="0 0 {} {}" role="img" aria-label="{}">'
            "{}{}</svg></figure>"
        ).format(self.title, legend, WIDTH, HEIGHT, self.title, self._axes(), Markup("").join(self.marks))

    def _axes(self) -> Markup:
        x, y, bottom = self.x, self.y, HEIGHT - BOTTOM
        rows = [
            Markup(
                '<line class="grid" x1="{}" x2="{}" y1="{h}" y2="{h}"/>'
                '<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>'
            ).format(LEFT, WIDTH - RIGHT, LEFT - 8, y(tick) + 4, y.label(tick), h=y(tick))
            for tick in y.ticks
        ]
        columns = [
            Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>').format(
                x(tick), bottom + 17, x.label(tick)
            )
            for tick in x.ticks
        ]
        titles = Markup(
            '<text class="axis" x="0" y="12">{}</text><text class="axis" x="{}" y="{}" text-anchor="end">{}</text>'
        ).format(y.title, WIDTH - RIGHT, HEIGHT - 4, x.title)
        zero = [Markup('<line class="zero" x1="{}" x2="{}" y1="{h}" y2="{h}"/>').format(LEFT, WIDTH - RIGHT, h=y(0))]
        return Markup("").join([*rows, *columns, titles, *(zero if y.low <= 0 <= y.high and not y.is_log else [])])

    def _add(self, template: str, *values: object, **named: object) -> None:
        self.marks.append(Markup(template).format(*(escape(value) for value in values), **named))


def _series(series: int) -> str:
    return f"s{series % NUM_SERIES}"


def _pixels(vertical: bool) -> tuple[float, float]:
    return (HEIGHT - BOTTOM, TOP) if vertical else (LEFT, WIDTH - RIGHT)
