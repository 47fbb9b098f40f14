"""Numbers as people read them."""


def duration(seconds: float) -> str:
    """The two largest units: `0.4 s`, `48 s`, `3 min 20 s`, `1 h 12 min`, `12 d 3 h`."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    days, hours, minutes = whole // 86_400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def count(number: float) -> str:
    """Three digits and a unit: `950`, `12.3k`, `2.10M`, `175B`, `15.6T`."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        # What would be rounded up to 1,000 of a unit is one of the next.
        if abs(number) >= size * 0.9995:
            scaled = number / size
            return f"{scaled:.{max(0, 3 - len(str(int(abs(scaled) + 0.0005))))}f}{unit}"
    return f"{number:.0f}"


def gibibytes(size_bytes: float) -> str:
    return f"{size_bytes / 2**30:.2f} GiB"
