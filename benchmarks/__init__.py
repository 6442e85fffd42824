"""Speed, measured: `python -m benchmarks`. One file a question."""
