"""Throughput and latency beside the naive loop of each, measured in the same run. `python -m benchmarks.run`."""
