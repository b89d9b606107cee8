"""How long something takes, for the scripts that measure."""

import statistics
import time


def median_ms(action, repeats):
    """Median of the milliseconds of `repeats` calls, after three that do not count."""
    for _ in range(3):
        action()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)
