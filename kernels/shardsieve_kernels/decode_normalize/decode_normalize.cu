// decode_normalize on a GPU: one thread per pixel of the output. Neighbouring threads read
// neighbouring pixels, which the caches hold; nothing is written between the two axes.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "decode_normalize/decode_normalize.cuh"

namespace shardsieve {

__device__ __forceinline__ void store(float* at, float value) { *at = value; }
__device__ __forceinline__ void store(__half* at, float value) { *at = __float2half_rn(value); }
__device__ __forceinline__ void store(__nv_bfloat16* at, float value) {
    *at = __float2bfloat16_rn(value);
}

struct Shape {
    long long height, width;
};
struct Box {
    double top, left, bottom, right;
};
struct Rgb {
    float red, green, blue;
};

template <typename T, typename Filter>
__device__ void one_pixel(const unsigned char* pixels_P, const long long* starts_B,
                          const Shape* shapes_B, const Box* boxes_B, int n_rows, int n_columns,
                          int channels_last, Rgb scale, Rgb shift, T* out) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x;
    const int y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= n_columns || y >= n_rows) return;
    const long long image = blockIdx.z;
    const Shape shape = shapes_B[image];
    const Box box = boxes_B[image];
    const Taps down = taps_of<Filter>(box.top, box.bottom, int(shape.height), n_rows, y);
    const Taps across = taps_of<Filter>(box.left, box.right, int(shape.width), n_columns, x);
    float rgb[3];
    resampled<Filter>(pixels_P + starts_B[image], int(shape.width), down, across, rgb);
    const long long area = (long long)n_rows * n_columns;
    const long long pixel = (long long)y * n_columns + x;
    const long long step = channels_last ? 1 : area;
    T* at = out + 3 * image * area + (channels_last ? 3 * pixel : pixel);
    store(at, rgb[0] * scale.red + shift.red);
    store(at + step, rgb[1] * scale.green + shift.green);
    store(at + 2 * step, rgb[2] * scale.blue + shift.blue);
}

}  // namespace shardsieve

// pixels_P: (P,) u8.  starts_B: (B,) i64.  shapes_B: (B, 2) i64.  boxes_B: (B, 4) f64.
// out: (B, 3, H, W) or (B, H, W, 3), every element written.
// Launch: ceil(W / 32) by ceil(H / 8) by B blocks of 32 by 8 threads.
#define DECODE_NORMALIZE(NAME, T, FILTER)                                                       \
    extern "C" __global__ void __launch_bounds__(256)                                           \
        NAME(const unsigned char* pixels_P, const long long* starts_B,                          \
             const shardsieve::Shape* shapes_B, const shardsieve::Box* boxes_B, int n_rows,     \
             int n_columns, int channels_last, float scale_r, float scale_g, float scale_b,     \
             float shift_r, float shift_g, float shift_b, T* out) {                             \
        shardsieve::one_pixel<T, FILTER>(pixels_P, starts_B, shapes_B, boxes_B, n_rows,         \
                                         n_columns, channels_last, {scale_r, scale_g, scale_b}, \
                                         {shift_r, shift_g, shift_b}, out);                     \
    }
#define DECODE_NORMALIZE_TO(TYPE, T)                                            \
    DECODE_NORMALIZE(decode_normalize_##TYPE##_bilinear, T, shardsieve::Bilinear) \
    DECODE_NORMALIZE(decode_normalize_##TYPE##_bicubic, T, shardsieve::Bicubic)

DECODE_NORMALIZE_TO(float32, float)
DECODE_NORMALIZE_TO(float16, __half)
DECODE_NORMALIZE_TO(bfloat16, __nv_bfloat16)
