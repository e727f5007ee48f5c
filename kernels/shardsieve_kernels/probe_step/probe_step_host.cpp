// The arithmetic of probe_step.cu on the CPU, lanes and their tree of joins included.
#include "probe_step/probe_step.cuh"

namespace {

template <typename A, int LANES, int ITEMS, int VEC>
void step_rows(const A* logits_RK, const int* labels_B, const A* q_H, const float* weights_R,
               long long n_rows, int n_heads, int n_classes, float* loss_R, A* gradient_RK) {
    using namespace shardsieve;
    for (long long row = 0; row < n_rows; ++row) {
        const A* logits_K = logits_RK + row * n_classes;
        const int label = labels_B[row / n_heads];
        StepPart<A> parts[LANES];
        for (int lane = 0; lane < LANES; ++lane) {
            parts[lane] = no_part<A>();
            for (int first = lane * VEC; first < n_classes; first += LANES * ITEMS) {
                A values[ITEMS];
                for (int j = 0; j < ITEMS; ++j) {
                    const int column = first + j / VEC * LANES * VEC + j % VEC;
                    values[j] = column < n_classes ? logits_K[column] : A(0);
                }
                parts[lane] = join(parts[lane], step_part_of<ITEMS, VEC>(values, first, LANES * VEC,
                                                                         n_classes, label));
            }
        }
        for (int mask = LANES / 2; mask > 0; mask /= 2)
            for (int lane = 0; lane < mask; ++lane)
                parts[lane] = join(parts[lane], parts[lane ^ mask]);
        const A weight = weights_R == nullptr ? A(1) : A(weights_R[row]);
        const StepScale<A> scale = scale_of(parts[0], q_H[row % n_heads], weight);
        loss_R[row] = scale.loss;
        for (int k = 0; k < n_classes; ++k)
            gradient_RK[row * n_classes + k] =
                gradient_of(scale, logits_K[k], parts[0].top, k == label);
    }
}

}  // namespace

#define HOST_TWIN(NAME, A, LANES, ITEMS, VEC)                                                   \
    extern "C" void NAME(const A* logits_RK, const int* labels_B, const A* q_H,                 \
                         const float* weights_R, long long n_rows, int n_heads, int n_classes,  \
                         float* loss_R, A* gradient_RK) {                                       \
        step_rows<A, LANES, ITEMS, VEC>(logits_RK, labels_B, q_H, weights_R, n_rows, n_heads,   \
                                        n_classes, loss_R, gradient_RK);                        \
    }
#define HOST_TWIN_OF(TYPE, A, VEC)                                \
    HOST_TWIN(probe_step_##TYPE##_1x4x##VEC, A, 1, 4, VEC)        \
    HOST_TWIN(probe_step_##TYPE##_4x4x##VEC, A, 4, 4, VEC)        \
    HOST_TWIN(probe_step_##TYPE##_8x8x##VEC, A, 8, 8, VEC)        \
    HOST_TWIN(probe_step_##TYPE##_32x8x##VEC, A, 32, 8, VEC)      \
    HOST_TWIN(probe_step_##TYPE##_32x32x##VEC, A, 32, 32, VEC)

// Two columns at a time are for 16-bit logits on the device; here their order is what is tested.
HOST_TWIN_OF(float32, float, 1)
HOST_TWIN_OF(float32, float, 2)
HOST_TWIN_OF(float64, double, 1)
