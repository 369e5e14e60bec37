"""Engines of AOTInductor, for GPUs that TensorRT does not take."""
