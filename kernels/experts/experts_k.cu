// Experts in the K formats: see `experts_blocks.cuh`.
#include "experts_blocks.cuh"

EXPERTS(K2)
EXPERTS(K3)
EXPERTS(K4)
EXPERTS(K5)
EXPERTS(K6)
