// Placeholder until the norms arrive.
#include "lantern.cuh"
extern "C" __global__ void noop() {}
