// Experts in the plain formats: see `experts_blocks.cuh`.
#include "experts_blocks.cuh"

EXPERTS(Plain4)
EXPERTS(Plain5)
EXPERTS(Plain8)
EXPERTS(Float8)
