// class_gmm: sums over a class that do not depend on how many threads make them.
//
// The samples of a class go to SLOTS partial sums, always the same ones, and those are joined in one
// tree. A team is whoever works on a class: it calls each slot's function once, in any thread.
#pragma once
#include "common.cuh"

// Code that a team runs: for the device alone where nvcc compiles it, as its barriers are there.
// SS_CALL keeps a function that is called from many places in one piece: it compiles in a fifth of
// the time.
#ifdef __CUDACC__
#define SS_TEAM __device__ inline
#define SS_CALL __device__ __noinline__
#else
#define SS_TEAM inline
#define SS_CALL inline
#endif

namespace shardsieve {

constexpr int SLOTS = 512;
constexpr int MOST_SUMS = 7;

struct Add {
    SS_TEAM double operator()(double a, double b) const { return a + b; }
};
struct Largest {
    SS_TEAM double operator()(double a, double b) const { return a > b ? a : b; }
};
struct Smallest {
    SS_TEAM double operator()(double a, double b) const { return a < b ? a : b; }
};

// The upper levels of the tree: slots lane, lane + 32, ...; the lower ones join the 32 lanes.
template <typename Op>
SS_TEAM double lane_of_tree(const Op& op, const double* slots_S, int lane) {
    double values[SLOTS / WARP];
#pragma unroll
    for (int i = 0; i < SLOTS / WARP; ++i) values[i] = slots_S[lane + i * WARP];
#pragma unroll
    for (int width = SLOTS / WARP / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) values[i] = op(values[i], values[i + width]);
    return values[0];
}

// Replaces each value by the sum of those before it; for one thread.
SS_TEAM double sums_before(double* slots_S) {
    double total = 0;
    for (int slot = 0; slot < SLOTS; ++slot) {
        const double value = slots_S[slot];
        slots_S[slot] = total;
        total += value;
    }
    return total;
}

}  // namespace shardsieve
