"""What a machine offers: ordered streams, events, arrays, preprocessing and clocks, on the host and
on CUDA."""
