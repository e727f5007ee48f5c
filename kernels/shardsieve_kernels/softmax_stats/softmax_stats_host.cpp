// The arithmetic of softmax_stats.cu on the CPU, lanes and their tree of joins included.
#include "softmax_stats/softmax_stats.cuh"

namespace {

template <typename A, int LANES, int ITEMS>
void rows(const A* logits_NK, const int* labels_N, long long n_samples, int n_classes, A q,
          float* fields_5N, int* pred_N) {
    using namespace shardsieve;
    for (long long i = 0; i < n_samples; ++i) {
        const A* logits_K = logits_NK + i * n_classes;
        RowPart<A> parts[LANES];
        for (int lane = 0; lane < LANES; ++lane) {
            parts[lane] = no_columns<A>();
            for (int first = lane; first < n_classes; first += LANES * ITEMS) {
                A values[ITEMS];
                for (int j = 0; j < ITEMS; ++j) {
                    const int column = first + j * LANES;
                    values[j] = column < n_classes ? logits_K[column] : A(0);
                }
                parts[lane] =
                    join(parts[lane], part_of<ITEMS>(values, first, LANES, n_classes, labels_N[i]));
            }
        }
        for (int mask = LANES / 2; mask > 0; mask /= 2)
            for (int lane = 0; lane < mask; ++lane)
                parts[lane] = join(parts[lane], parts[lane ^ mask]);
        finish_row(parts[0], logits_K[labels_N[i]], q, n_samples, i, fields_5N, pred_N);
    }
}

}  // namespace

#define HOST_TWIN(NAME, A, LANES, ITEMS)                                                       \
    extern "C" void NAME(const A* logits_NK, const int* labels_N, long long n_samples,         \
                         int n_classes, A q, float* fields_5N, int* pred_N) {                  \
        rows<A, LANES, ITEMS>(logits_NK, labels_N, n_samples, n_classes, q, fields_5N, pred_N); \
    }

HOST_TWIN(softmax_stats_float32_1x4, float, 1, 4)
HOST_TWIN(softmax_stats_float32_4x4, float, 4, 4)
HOST_TWIN(softmax_stats_float32_8x8, float, 8, 8)
HOST_TWIN(softmax_stats_float32_32x8, float, 32, 8)
HOST_TWIN(softmax_stats_float32_32x32, float, 32, 32)
HOST_TWIN(softmax_stats_float64_1x4, double, 1, 4)
HOST_TWIN(softmax_stats_float64_4x4, double, 4, 4)
HOST_TWIN(softmax_stats_float64_8x8, double, 8, 8)
HOST_TWIN(softmax_stats_float64_32x8, double, 32, 8)
HOST_TWIN(softmax_stats_float64_32x32, double, 32, 32)
