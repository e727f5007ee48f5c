// decode_normalize: the pixels of an image that one pixel of the output is made of.
#pragma once
#include "common.cuh"

namespace shardsieve {

// Bilinear and bicubic (Keys, a = -0.5) interpolation kernels and how far they reach.
struct Bilinear {
    static constexpr double support = 1;
    static SS_HD float at(float x) { return x < 1.0f ? 1.0f - x : 0.0f; }
};
struct Bicubic {
    static constexpr double support = 2;
    static SS_HD float at(float x) {
        if (x < 1.0f) return (1.5f * x - 2.5f) * x * x + 1.0f;
        return x < 2.0f ? ((-0.5f * x + 2.5f) * x - 4.0f) * x + 2.0f : 0.0f;
    }
};

// Along one axis: pixels first to last - 1, weighed by their distance from center.
struct Taps {
    int first, last;
    float center;  // minus first: small numbers keep their digits in f32
    float shrink;  // 1 / how far the kernel is stretched
    float total;   // sum of the weights
};

template <typename Filter>
SS_HD float weight_at(const Taps& taps, int k) {
    const float distance = (float(k - taps.first) - taps.center + 0.5f) * taps.shrink;
    return Filter::at(distance < 0.0f ? -distance : distance);
}

template <typename Filter>
SS_HD Taps taps_of(double low, double high, int n_in, int n_out, int o) {
    const double step = (high - low) / n_out;
    const double stretch = larger_of(step, 1.0);
    const double center = low + (o + 0.5) * step;
    const double reach = Filter::support * stretch;
    Taps taps;
    taps.first = int(larger_of(center - reach + 0.5, 0.0));
    const double last = center + reach + 0.5;
    taps.last = last < n_in ? int(last) : n_in;
    taps.center = float(center - taps.first);
    taps.shrink = float(1 / stretch);
    taps.total = 0.0f;
    for (int k = taps.first; k < taps.last; ++k) taps.total += weight_at<Filter>(taps, k);
    return taps;
}

SS_HD float clipped(float value) {
    return value < 0.0f ? 0.0f : (value > 255.0f ? 255.0f : value);
}

// Red, green and blue of one pixel of the output, in grey levels.
template <typename Filter>
SS_HD void resampled(const unsigned char* image, int width, const Taps& down, const Taps& across,
                     float (&rgb)[3]) {
    rgb[0] = rgb[1] = rgb[2] = 0.0f;
    for (int y = down.first; y < down.last; ++y) {
        const unsigned char* pixel = image + 3 * ((long long)y * width + across.first);
        float red = 0.0f, green = 0.0f, blue = 0.0f;
        for (int x = across.first; x < across.last; ++x, pixel += 3) {
            const float weight = weight_at<Filter>(across, x);
            red += weight * float(pixel[0]);
            green += weight * float(pixel[1]);
            blue += weight * float(pixel[2]);
        }
        const float weight = weight_at<Filter>(down, y);
        rgb[0] += weight * red;
        rgb[1] += weight * green;
        rgb[2] += weight * blue;
    }
    const float total = across.total * down.total;
    for (float& value : rgb) value = clipped(value / total);
}

}  // namespace shardsieve
