"""Where does the fastest step's time go? The profiler's heaviest operations, by the shapes they are given, so that each
layer's products can be told apart. Times are of one step, relative to the whole.
"""

from collections.abc import Iterator

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import train_step
from benchmarks.cases import Case
from benchmarks.timing import Row, Timing

STEPS, SHOWN = 5, 20


def run(quick: bool, device: str) -> Iterator[list[Row]]:
    """One table. On CUDA the time kernels run; on a CPU an operation's own time, without that of what it calls."""
    case = Case("alexnet", 1024, "cuda", "bf16") if device == "cuda" else Case("alexnet", 1 if quick else 32)
    name = "af, compiled, donated" + ", CUDA graph" * (device == "cuda")
    with torch.no_grad():
        call = train_step.call(name, case)
        call()
        call()
        activities = [ProfilerActivity.CUDA] if device == "cuda" else [ProfilerActivity.CPU]
        with profile(activities=activities, record_shapes=True) as profiler:
            for _ in range(STEPS):
                call()
            if device == "cuda":
                torch.cuda.synchronize()
    events = profiler.key_averages(group_by_input_shape=True)
    spent = {
        event: (event.self_device_time_total if device == "cuda" else event.self_cpu_time_total) / 1e6 / STEPS
        for event in events
    }
    total = sum(spent.values())
    whole = Timing(total, total, total)
    rows = [Row(f"{case.title}: {name}", "all", whole, whole)]
    for event in sorted(spent, key=spent.__getitem__, reverse=True)[:SHOWN]:
        shapes = " ".join("x".join(map(str, shape)) for shape in event.input_shapes[:2] if shape)
        once = Timing(*[spent[event]] * 3)
        rows.append(Row(rows[0].title, f"{event.key} {shapes}".strip(), once, whole))
    yield rows
