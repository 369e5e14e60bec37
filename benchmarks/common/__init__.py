"""What several benchmarks share: jobs, engine sets, child processes, statistics, tables and
pictures."""
