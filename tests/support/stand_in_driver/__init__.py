"""NVIDIA's driver without a GPU: a `libcuda.so.1` whose device memory is the host's, under the real
cuda.core. driver.h says what it checks and what it cannot show."""
