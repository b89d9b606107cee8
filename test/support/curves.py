"""What a training wrote for TensorBoard."""

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def curve(output, stage):
    """Read the loss at each step; where a run was resumed, what its last process wrote.

    TensorBoard orders a run's files by the second in their names, and two processes of a test can
    start within one: they are read here in the order in which they were written.
    """
    losses = {}
    files = (output / "logs" / stage).glob("events.out.tfevents.*")
    for path in sorted(files, key=lambda path: path.stat().st_mtime_ns):
        events = EventAccumulator(str(path))
        events.Reload()
        if "loss" in events.Tags()["scalars"]:
            losses.update((event.step, event.value) for event in events.Scalars("loss"))
    return sorted(losses.items())
