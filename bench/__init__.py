"""The benchmark: workloads, goals, peers, and the command that runs them. See docs/performance.md."""
