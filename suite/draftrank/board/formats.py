"""Numbers as a reader wants them; a figure that is unknown is a dash."""

from __future__ import annotations

from collections.abc import Callable

from draftrank.measure.statistics.estimates import Interval

UNKNOWN = "–"
_BYTES = ("B", "kB", "MB", "GB", "TB")
_COUNTS = ("", "k", "M", "B")
_HEAT_STEPS = (1.05, 1.25, 1.6, 2.2)


def times(value: float | None) -> str:
    """A speedup, e.g. `1.84×`."""
    return UNKNOWN if value is None else f"{value:.2f}×"


def span(ends: tuple[float, float] | None) -> str:
    """An interval of ratios, e.g. `1.79–1.90`, `0.93–1.003`: an end that is not 1 is not rounded to 1 (down to 0.0001)."""
    return UNKNOWN if ends is None else str(Interval(*ends))


def rank(ends: tuple[int, int] | None) -> str:
    """A rank or range of ranks, e.g. `2` or `2–4`."""
    if ends is None:
        return UNKNOWN
    return str(ends[0]) if ends[0] == ends[1] else f"{ends[0]}–{ends[1]}"


def decimal(value: float | None, digits: int = 2) -> str:
    """A plain number with a fixed number of decimals."""
    return UNKNOWN if value is None else f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    """A share, e.g. `71 %`; a share that is not all is never rounded up to all."""
    if value is None:
        return UNKNOWN
    digits = 0 if value in (0.0, 1.0) or 0.005 <= value < 0.995 else 2
    return f"{100 * value:.{digits}f}\u00a0%"


def count(value: int | None) -> str:
    """A large count, e.g. `134.5 M`."""
    return UNKNOWN if value is None else _scaled(value, 1000, _COUNTS)


def size(value: int | None) -> str:
    """Bytes in decimal units, e.g. `538 MB`."""
    return UNKNOWN if value is None else _scaled(value, 1000, _BYTES)


def duration(seconds: float | None) -> str:
    """Seconds in the unit that fits, e.g. `42 ms`, `3.1 s`, `25 min`, `2.5 h`."""
    if seconds is None:
        return UNKNOWN
    for unit, length, digits in (("h", 3600.0, 1), ("min", 60.0, 0), ("s", 1.0, 1)):
        if seconds >= (length if unit != "min" else 120.0):
            return f"{seconds / length:.{digits}f}\u00a0{unit}"
    return f"{1000 * seconds:.0f}\u00a0ms"


def milliseconds(seconds: float | None) -> str:
    """A latency in milliseconds, e.g. `8.4 ms`, `412 ms`."""
    if seconds is None:
        return UNKNOWN
    value = 1000 * seconds
    return f"{value:,.{1 if value < 100 else 0}f}\u00a0ms"


def probability(value: float | None) -> str:
    """A probability, e.g. `97 %`; next to certainty `> 99.9 %`."""
    if value is None:
        return UNKNOWN
    if value > 0.999 or value < 0.001:
        return ">\u00a099.9\u00a0%" if value > 0.5 else "<\u00a00.1\u00a0%"
    return f"{100 * value:.{1 if value > 0.99 or value < 0.01 else 0}f}\u00a0%"


def heat(value: float | None) -> str:
    """Class of a speedup's cell in a heatmap: `slow-4` … `slow-1`, `even`, `fast-1` … `fast-4`."""
    if value is None:
        return "blank"
    gains = sum(value >= step for step in _HEAT_STEPS)
    losses = sum(value <= 1 / step for step in _HEAT_STEPS)
    return f"fast-{gains}" if gains else f"slow-{losses}" if losses else "even"


def day(moment: str) -> str:
    """The date of an ISO 8601 time."""
    return moment[:10]


FILTERS: dict[str, Callable[..., str]] = {
    "times": times, "span": span, "rank": rank, "decimal": decimal, "percent": percent,
    "count_of": count, "size": size, "duration": duration, "milliseconds": milliseconds, "day": day, "probability": probability, "heat": heat,
}  # fmt: skip


def _scaled(value: int, step: int, units: tuple[str, ...]) -> str:
    scaled, index = float(value), 0
    while scaled >= step and index < len(units) - 1:
        scaled, index = scaled / step, index + 1
    digits = 1 if index and scaled < 100 else 0
    return f"{scaled:.{digits}f}\u00a0{units[index]}".rstrip("\u00a0")
