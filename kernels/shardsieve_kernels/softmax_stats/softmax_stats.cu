// softmax_stats on a GPU: each row read once, into the registers of 1 to 32 threads.
#include <cuda_fp16.h>

#include "softmax_stats/softmax_stats.cuh"

namespace shardsieve {

constexpr int BLOCK = 256;

// Parts travel between the threads of a row by exclusive-or of their numbers: a fixed tree.
template <typename A>
__device__ __forceinline__ RowPart<A> from_lane(const RowPart<A>& part, int mask) {
    RowPart<A> other;
    other.top = __shfl_xor_sync(0xffffffff, part.top, mask);
    other.pred = __shfl_xor_sync(0xffffffff, part.pred, mask);
    other.others = __shfl_xor_sync(0xffffffff, part.others, mask);
    other.weighted = __shfl_xor_sync(0xffffffff, part.weighted, mask);
    other.rival = __shfl_xor_sync(0xffffffff, part.rival, mask);
    other.usable = __shfl_xor_sync(0xffffffff, int(part.usable), mask);
    return other;
}

// Rows of more than LANES * ITEMS columns are read in as many pieces.
template <typename T, typename A, int LANES, int ITEMS>
__device__ void rows(const T* __restrict__ logits_NK, const int* __restrict__ labels_N,
                     long long n_samples, int n_classes, A q, float* fields_5N, int* pred_N) {
    const long long i = (long long)blockIdx.x * (BLOCK / LANES) + threadIdx.x / LANES;
    const int lane = threadIdx.x % LANES;
    // Threads past the last row work on it, too, and write nothing: shuffles want whole warps.
    const long long row = i < n_samples ? i : n_samples - 1;
    const T* logits_K = logits_NK + row * n_classes;
    const int label = labels_N[row];
    RowPart<A> part = no_columns<A>();
    for (int first = lane; first < n_classes; first += LANES * ITEMS) {
        A values[ITEMS];
#pragma unroll
        for (int j = 0; j < ITEMS; ++j) {
            const int column = first + j * LANES;
            values[j] = column < n_classes ? A(logits_K[column]) : A(0);
        }
        part = join(part, part_of<ITEMS>(values, first, LANES, n_classes, label));
    }
#pragma unroll
    for (int mask = LANES / 2; mask > 0; mask /= 2) part = join(part, from_lane(part, mask));
    if (lane == 0 && i < n_samples)
        finish_row(part, A(logits_K[label]), q, n_samples, i, fields_5N, pred_N);
}

}  // namespace shardsieve

// logits_NK: (N, K) f16, f32 or f64, C order.  labels_N: (N,) i32.
// fields_5N: (5, N) f32, every element written.  pred_N: (N,) i32, every element written.
// Launch: ceil(N / (256 / LANES)) blocks of 256 threads.
#define SOFTMAX_STATS(NAME, T, A, LANES, ITEMS)                                                \
    extern "C" __global__ void __launch_bounds__(256)                                          \
        NAME(const T* logits_NK, const int* labels_N, long long n_samples, int n_classes, A q, \
             float* fields_5N, int* pred_N) {                                                  \
        shardsieve::rows<T, A, LANES, ITEMS>(logits_NK, labels_N, n_samples, n_classes, q,     \
                                             fields_5N, pred_N);                               \
    }
#define SOFTMAX_STATS_OF(TYPE, T, A)                            \
    SOFTMAX_STATS(softmax_stats_##TYPE##_1x4, T, A, 1, 4)       \
    SOFTMAX_STATS(softmax_stats_##TYPE##_4x4, T, A, 4, 4)       \
    SOFTMAX_STATS(softmax_stats_##TYPE##_8x8, T, A, 8, 8)       \
    SOFTMAX_STATS(softmax_stats_##TYPE##_32x8, T, A, 32, 8)     \
    SOFTMAX_STATS(softmax_stats_##TYPE##_32x32, T, A, 32, 32)

SOFTMAX_STATS_OF(float16, __half, float)
SOFTMAX_STATS_OF(float32, float, float)
SOFTMAX_STATS_OF(float64, double, double)
