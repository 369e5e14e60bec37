"""`vicort-eval`: how often systems answer right, on benchmarks as their users have them on disk.
One file a data set."""
