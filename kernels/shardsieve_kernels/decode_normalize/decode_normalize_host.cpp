// The arithmetic of decode_normalize.cu on the CPU, for one image.
#include "decode_normalize/decode_normalize.cuh"

namespace {

template <typename Filter>
void one_image(const unsigned char* image, int height, int width, const double* box_4, int n_rows,
               int n_columns, const float* scale_3, const float* shift_3, float* out_HWC) {
    using namespace shardsieve;
    for (int y = 0; y < n_rows; ++y) {
        const Taps down = taps_of<Filter>(box_4[0], box_4[2], height, n_rows, y);
        for (int x = 0; x < n_columns; ++x) {
            const Taps across = taps_of<Filter>(box_4[1], box_4[3], width, n_columns, x);
            float rgb[3];
            resampled<Filter>(image, width, down, across, rgb);
            for (int c = 0; c < 3; ++c) *out_HWC++ = rgb[c] * scale_3[c] + shift_3[c];
        }
    }
}

}  // namespace

#define HOST_TWIN(NAME, FILTER)                                                                  \
    extern "C" void NAME(const unsigned char* image, int height, int width, const double* box_4, \
                         int n_rows, int n_columns, const float* scale_3, const float* shift_3,  \
                         float* out_HWC) {                                                       \
        one_image<FILTER>(image, height, width, box_4, n_rows, n_columns, scale_3, shift_3,      \
                          out_HWC);                                                              \
    }

HOST_TWIN(decode_normalize_bilinear, shardsieve::Bilinear)
HOST_TWIN(decode_normalize_bicubic, shardsieve::Bicubic)
