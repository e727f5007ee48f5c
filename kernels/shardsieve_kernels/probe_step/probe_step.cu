// probe_step on a GPU: each row read once, into the registers of 1 to 32 threads, and its gradient
// written once. Rows of more than LANES * ITEMS columns are read twice.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "probe_step/probe_step.cuh"

namespace shardsieve {

constexpr int BLOCK = 256;

__device__ __forceinline__ float number(__half x) { return __half2float(x); }
__device__ __forceinline__ float number(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float number(float x) { return x; }
__device__ __forceinline__ double number(double x) { return x; }
__device__ __forceinline__ void rounded(float x, __half& to) { to = __float2half_rn(x); }
__device__ __forceinline__ void rounded(float x, __nv_bfloat16& to) { to = __float2bfloat16_rn(x); }
__device__ __forceinline__ void rounded(float x, float& to) { to = x; }
__device__ __forceinline__ void rounded(double x, double& to) { to = x; }

// VEC numbers that are read and written by one instruction.
template <typename T, int VEC>
struct alignas(sizeof(T) * VEC) Pack {
    T values[VEC];
};

// Parts travel between the threads of a row by exclusive-or of their numbers: a fixed tree.
template <typename A>
__device__ __forceinline__ StepPart<A> from_lane(const StepPart<A>& part, int mask) {
    StepPart<A> other;
    other.top = __shfl_xor_sync(0xffffffff, part.top, mask);
    other.others = __shfl_xor_sync(0xffffffff, part.others, mask);
    other.label = __shfl_xor_sync(0xffffffff, part.label, mask);
    other.usable = __shfl_xor_sync(0xffffffff, int(part.usable), mask);
    return other;
}

template <typename T, typename A, int LANES, int ITEMS, int VEC>
__device__ __forceinline__ void read(const T* logits_K, int first, int n_classes,
                                     A (&values)[ITEMS]) {
#pragma unroll
    for (int j = 0; j < ITEMS; j += VEC) {
        const int column = first + j * LANES;
        Pack<T, VEC> pack;
        if (column < n_classes)
            pack = *reinterpret_cast<const Pack<T, VEC>*>(logits_K + column);
#pragma unroll
        for (int v = 0; v < VEC; ++v)
            values[j + v] = column < n_classes ? A(number(pack.values[v])) : A(0);
    }
}

// The logits and the gradient may be the same memory: every element is written by the thread that
// read it, after it did.
template <typename T, typename A, int LANES, int ITEMS, int VEC>
__device__ void step_rows(const T* logits_RK, const int* labels_B, const A* q_H,
                          const float* weights_R, long long n_rows, int n_heads, int n_classes,
                          float* loss_R, T* gradient_RK) {
    constexpr int PIECE = LANES * ITEMS;
    const long long i = (long long)blockIdx.x * (BLOCK / LANES) + threadIdx.x / LANES;
    const int first = threadIdx.x % LANES * VEC;
    // Threads past the last row read it, too, and write nothing: shuffles want whole warps.
    const long long row = i < n_rows ? i : n_rows - 1;
    const T* logits_K = logits_RK + row * n_classes;
    const int label = labels_B[row / n_heads];
    A values[ITEMS];
    StepPart<A> part = no_part<A>();
    for (int start = first; start < n_classes; start += PIECE) {
        read<T, A, LANES, ITEMS, VEC>(logits_K, start, n_classes, values);
        part = join(part, step_part_of<ITEMS, VEC>(values, start, LANES * VEC, n_classes, label));
    }
#pragma unroll
    for (int mask = LANES / 2; mask > 0; mask /= 2) part = join(part, from_lane(part, mask));
    if (i >= n_rows) return;
    const A weight = weights_R == nullptr ? A(1) : A(weights_R[row]);
    const StepScale<A> scale = scale_of(part, q_H[row % n_heads], weight);
    if (threadIdx.x % LANES == 0) loss_R[row] = scale.loss;
    for (int start = first; start < n_classes; start += PIECE) {
        // A row of one piece is still in the registers.
        if (n_classes > PIECE)
            read<T, A, LANES, ITEMS, VEC>(logits_K, start, n_classes, values);
#pragma unroll
        for (int j = 0; j < ITEMS; j += VEC) {
            const int column = start + j * LANES;
            if (column >= n_classes) continue;
            Pack<T, VEC> pack;
#pragma unroll
            for (int v = 0; v < VEC; ++v)
                rounded(gradient_of(scale, values[j + v], part.top, column + v == label),
                        pack.values[v]);
            *reinterpret_cast<Pack<T, VEC>*>(gradient_RK + row * n_classes + column) = pack;
        }
    }
}

}  // namespace shardsieve

// logits_RK: (B * H, K) f16, bf16, f32 or f64, C order; for kernels of VEC 2, K is even and rows
// begin at multiples of two elements.  labels_B: (B,) i32.  q_H: (H,) f32, f64 for f64 logits.
// weights_R: (B * H,) f32, or null for 1.  loss_R: (B * H,) f32, every element written.
// gradient_RK: like logits_RK, or the logits themselves; every element written.
// Launch: ceil(B * H / (256 / LANES)) blocks of 256 threads.
#define PROBE_STEP(NAME, T, A, LANES, ITEMS, VEC)                                              \
    extern "C" __global__ void __launch_bounds__(256)                                          \
        NAME(const T* logits_RK, const int* labels_B, const A* q_H, const float* weights_R,    \
             long long n_rows, int n_heads, int n_classes, float* loss_R, T* gradient_RK) {    \
        shardsieve::step_rows<T, A, LANES, ITEMS, VEC>(logits_RK, labels_B, q_H, weights_R,    \
                                                       n_rows, n_heads, n_classes, loss_R,     \
                                                       gradient_RK);                           \
    }
#define PROBE_STEP_OF(TYPE, T, A, VEC)                             \
    PROBE_STEP(probe_step_##TYPE##_1x4x##VEC, T, A, 1, 4, VEC)     \
    PROBE_STEP(probe_step_##TYPE##_4x4x##VEC, T, A, 4, 4, VEC)     \
    PROBE_STEP(probe_step_##TYPE##_8x8x##VEC, T, A, 8, 8, VEC)     \
    PROBE_STEP(probe_step_##TYPE##_32x8x##VEC, T, A, 32, 8, VEC)   \
    PROBE_STEP(probe_step_##TYPE##_32x32x##VEC, T, A, 32, 32, VEC)

PROBE_STEP_OF(float16, __half, float, 1)
PROBE_STEP_OF(float16, __half, float, 2)
PROBE_STEP_OF(bfloat16, __nv_bfloat16, float, 1)
PROBE_STEP_OF(bfloat16, __nv_bfloat16, float, 2)
PROBE_STEP_OF(float32, float, float, 1)
PROBE_STEP_OF(float64, double, double, 1)
