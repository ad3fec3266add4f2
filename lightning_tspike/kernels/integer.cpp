// Neurons and pools of the integer runtime (lightning_tspike/inference); integer.py compiles and calls them.
//
// Tensors have channels last: element i of a time step has channel i % channels. What differs from channel to channel is
// handed over repeated to `period` elements, a multiple of the channels, so that few channels fill vectors as well. A
// spike or a sum of spikes n is the byte n + zero_point.
#include <algorithm>
#include <cstdint>

constexpr int64_t BLOCK = 64, TILE = 4096;
constexpr bool soft = SOFT;
constexpr int levels = LEVELS;  // of spikes; more than one only of ternary neurons

struct Current {
    const void* data;    // float or uint8, [T][size]
    const float* scale;  // [period], or null: 1
    int64_t step;        // elements from one time step to the next: 0 where every step has the same
    int32_t is_bytes;
    float zero_point;
};

struct Neuron {
    int64_t timesteps, size, period, count;  // size: neurons; count: currents
    const Current* currents;
    const float *shift, *threshold;  // [period]; shift may be null: 0
    const float* past;               // tau * v of the step before the first, [size], or null: 0
    float* left;                     // the same behind the last step, or null: not wanted
    uint8_t* out;                    // [T][size]
    float decay;
    int32_t is_ternary;
};

// u += scale * current, a block of it; the numbers are added one current after the other, as the network's own sums are
static inline __attribute__((always_inline)) void add(const Current& c, int64_t t, int64_t at, int64_t channel,
                                                      int64_t width, bool first, float* u) {
    const float* scale = c.scale ? c.scale + channel : nullptr;
    if (c.is_bytes) {
        const uint8_t* x = static_cast<const uint8_t*>(c.data) + t * c.step + at;
        const float zero = c.zero_point;
        if (scale)
#pragma omp simd
            for (int64_t i = 0; i < width; ++i) u[i] = (first ? 0 : u[i]) + scale[i] * (float(x[i]) - zero);
        else
#pragma omp simd
            for (int64_t i = 0; i < width; ++i) u[i] = (first ? 0 : u[i]) + (float(x[i]) - zero);
    } else {
        const float* x = static_cast<const float*>(c.data) + t * c.step + at;
        if (scale)
#pragma omp simd
            for (int64_t i = 0; i < width; ++i) u[i] = (first ? 0 : u[i]) + scale[i] * x[i];
        else
#pragma omp simd
            for (int64_t i = 0; i < width; ++i) u[i] = (first ? 0 : u[i]) + x[i];
    }
}

// the sum of all currents, a block of it
static inline __attribute__((always_inline)) void total(const Current* currents, int64_t count, const float* shift,
                                                        int64_t t, int64_t at, int64_t channel, int64_t width,
                                                        float* u) {
    for (int64_t k = 0; k < count; ++k) add(currents[k], t, at, channel, width, k == 0, u);
    if (shift)
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) u[i] += shift[channel + i];
}

// counts the thresholds beyond the first, 3 theta, 5 theta, ..., that are reached upwards and downwards
template <int step>
static inline __attribute__((always_inline)) void count_reached(float v, float theta, int32_t& up, int32_t& down) {
    if constexpr (step < 2 * levels) {
        up += v >= step * theta;
        down += v <= -step * theta;
        count_reached<step + 2>(v, theta, up, down);
    }
}

template <bool full>
static inline __attribute__((always_inline)) void run_block(const Neuron& n, int64_t at, int64_t channel,
                                                            int64_t length) {
    const int64_t width = full ? BLOCK : length;
    const float* theta = n.threshold + channel;
    const float decay = n.decay;
    const int32_t binary = !n.is_ternary;
    alignas(64) float h[BLOCK], u[BLOCK];
    if (n.past)
        std::copy(n.past + at, n.past + at + width, h);
    else
        std::fill(h, h + BLOCK, 0.0f);
    for (int64_t t = 0; t < n.timesteps; ++t) {
        total(n.currents, n.count, n.shift, t, at, channel, width, u);
        uint8_t* out = n.out + t * n.size + at;
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) {
            const float v = h[i] + u[i];
            int32_t up = v >= theta[i], down = (v <= -theta[i]) & ~binary;
            count_reached<3>(v, theta[i], up, down);
            const float spike = float(up - down), taken = levels == 1 ? theta[i] : 2 * theta[i];
            out[i] = uint8_t(levels - binary + up - down);
            h[i] = decay * (soft ? v - taken * spike : v * (1 - float(up + down)));
        }
    }
    if (n.left) std::copy(h, h + width, n.left + at);
}

extern "C" void integer_neuron(const Neuron* neuron) {
    const Neuron& n = *neuron;
    const int64_t strips = std::max<int64_t>(1, TILE / n.period), tile = strips * n.period;
    const int64_t tiles = (n.size + tile - 1) / tile;
#pragma omp parallel for schedule(static) if (tiles > 1)
    for (int64_t k = 0; k < tiles; ++k)
        for (int64_t start = k * tile; start < std::min((k + 1) * tile, n.size); start += n.period) {
            const int64_t length = std::min(n.period, n.size - start);
            int64_t i = 0;
            for (; i + BLOCK <= length; i += BLOCK) run_block<true>(n, start + i, i, BLOCK);
            if (i < length) run_block<false>(n, start + i, i, length - i);
        }
}

extern "C" void integer_total(const Current* currents, int64_t count, const float* shift, int64_t size, int64_t period,
                              float* out) {
    const int64_t tile = std::max<int64_t>(1, TILE / period) * period, tiles = (size + tile - 1) / tile;
#pragma omp parallel for schedule(static) if (tiles > 1)
    for (int64_t k = 0; k < tiles; ++k)
        for (int64_t start = k * tile; start < std::min((k + 1) * tile, size); start += period) {
            const int64_t length = std::min(period, size - start);
            for (int64_t i = 0; i < length; i += BLOCK) {
                const int64_t width = std::min(BLOCK, length - i);
                alignas(64) float u[BLOCK];
                total(currents, count, shift, 0, start + i, i, width, u);
                std::copy(u, u + width, out + start + i);
            }
        }
}

struct Pool {
    const uint8_t* in;  // [images][height][width][channels]
    void* out;          // uint8 or float, [images][out_height][out_width][channels]
    int64_t images, channels, height, width, out_height, out_width;
    int64_t kernel_height, kernel_width, stride_height, stride_width, padding_height, padding_width;
    float zero_point, scale;
};

// Sums over windows, where what lies outside is no spike: of the bytes, as a byte; or scale * sum of the numbers that
// they stand for.
template <bool as_bytes>
static void pool(const Pool& p) {
#pragma omp parallel for schedule(static) if (p.images * p.out_height > 1)
    for (int64_t row = 0; row < p.images * p.out_height; ++row) {
        const int64_t image = row / p.out_height, top = row % p.out_height * p.stride_height - p.padding_height;
        const uint8_t* in = p.in + image * p.height * p.width * p.channels;
        for (int64_t column = 0; column < p.out_width; ++column) {
            const int64_t left = column * p.stride_width - p.padding_width;
            const int64_t y0 = std::max<int64_t>(top, 0), y1 = std::min(top + p.kernel_height, p.height);
            const int64_t x0 = std::max<int64_t>(left, 0), x1 = std::min(left + p.kernel_width, p.width);
            const int64_t inside = (y1 - y0) * (x1 - x0), zero = int64_t(p.zero_point);
            const int64_t outside = p.kernel_height * p.kernel_width - inside;
            const int64_t at = (row * p.out_width + column) * p.channels;
            for (int64_t first = 0; first < p.channels; first += BLOCK) {
                const int64_t width = std::min(BLOCK, p.channels - first);
                int32_t sum[BLOCK] = {};
                for (int64_t y = y0; y < y1; ++y)
                    for (int64_t x = x0; x < x1; ++x) {
                        const uint8_t* from = in + (y * p.width + x) * p.channels + first;
#pragma omp simd
                        for (int64_t c = 0; c < width; ++c) sum[c] += from[c];
                    }
                for (int64_t c = 0; c < width; ++c)
                    if (as_bytes)
                        static_cast<uint8_t*>(p.out)[at + first + c] = uint8_t(sum[c] + outside * zero);
                    else
                        static_cast<float*>(p.out)[at + first + c] = p.scale * float(sum[c] - inside * zero);
            }
        }
    }
}

extern "C" void integer_pool(const Pool* p, int32_t as_bytes) { (as_bytes ? pool<true> : pool<false>)(*p); }
