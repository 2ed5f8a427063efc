// Which tokens an expert works on, whatever its weights are stored as.
//
// A pair is a token and one of its chosen experts: pair p = token * top_k + j. ids u32 [pairs], the experts. Experts work
// either on pairs as they are, a unit of work each, or on all of an expert's pairs together: then `sorted` u32 [pairs] holds
// the pairs by expert, those of one in rising order, and `offsets` u32 [experts + 1] where each expert's begin.
#pragma once

#include "lantern.cuh"

struct Pairs {
    const uint32_t* ids;
    const uint32_t* sorted;   // null: a unit is a pair
    const uint32_t* offsets;
};

// What one unit of work is: `count` pairs of one expert.
struct Work {
    int expert, begin, count;
    const uint32_t* sorted;

    __device__ __forceinline__ Work(const Pairs& pairs, int unit) : sorted(pairs.sorted) {
        if (sorted == nullptr) {
            expert = pairs.ids[unit], begin = unit, count = 1;
        } else {
            expert = unit, begin = pairs.offsets[unit], count = pairs.offsets[unit + 1] - begin;
        }
    }

    // Pair `i` of the unit; the last one again past the end.
    __device__ __forceinline__ int pair(int i) const {
        int place = begin + min(i, count - 1);
        return sorted == nullptr ? place : (int)sorted[place];
    }
};
