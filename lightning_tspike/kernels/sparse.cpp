// A convolution of spikes that skips silence, on processors with AVX512_VNNI; sparse.py compiles and calls it.
//
// VNNI multiplies 4 bytes of neighbouring input channels at a time with those of 16 output channels and adds the products
// up in 32 bits. Where all 4 are silent nothing is done. It takes a byte with a sign and one without: spikes have signs,
// weights are kept as w + 128, and 128 times the sum of the spikes is taken off in the end, which is the same for all
// output channels. All sums are exact, and so is the result the dense layer's, bit for bit.
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

struct Convolution {
    const uint8_t* spikes;   // n + zero_point, [images][height][width][channels], channels a multiple of 64
    const uint8_t* weights;  // w + 128, [parts of output channels][rows of a window][its columns * channels / 4][part][4]
    const float *scale, *bias;
    float* out;  // [images][out_height][out_width][out_channels]
    int64_t images, channels, height, width, out_channels, out_height, out_width;
    int64_t kernel_height, kernel_width, stride_height, stride_width, padding_height, padding_width;
    int32_t zero_point;
};

constexpr int64_t PIXELS = 64, LANES = 16;  // output pixels that share weights in the cache; output channels of a vector

// Adds what some blocks of 64 input channels spike to the output channels of a pixel, VECTORS * 16 of them.
template <int VECTORS, int BLOCKS>
static inline __attribute__((always_inline)) void add(const uint8_t* spikes, const bool* inside, __m512i zero,
                                                      const uint8_t* weights, int32_t* sums) {
    alignas(64) int32_t fours[BLOCKS * LANES];
    uint64_t active = 0;
#pragma GCC unroll 4
    for (int b = 0; b < BLOCKS; ++b)
        if (inside[b]) {
            const __m512i signed_spikes = _mm512_sub_epi8(_mm512_loadu_si512(spikes + b * 64), zero);
            active |= uint64_t(_mm512_test_epi32_mask(signed_spikes, signed_spikes)) << (b * LANES);
            _mm512_store_si512(fours + b * LANES, signed_spikes);
        }
    if (!active) return;
    __m512i sum[VECTORS];
#pragma GCC unroll 16
    for (int v = 0; v < VECTORS; ++v) sum[v] = _mm512_load_si512(sums + v * LANES);
    for (; active; active &= active - 1) {
        const int four = __builtin_ctzll(active);
        const __m512i repeated = _mm512_set1_epi32(fours[four]);
        const uint8_t* row = weights + four * VECTORS * 64;
#pragma GCC unroll 16
        for (int v = 0; v < VECTORS; ++v)  // the intrinsic has gcc copy every sum into another register
            asm("vpdpbusd %2, %1, %0" : "+v"(sum[v]) : "v"(_mm512_loadu_si512(row + v * 64)), "v"(repeated));
    }
#pragma GCC unroll 16
    for (int v = 0; v < VECTORS; ++v) _mm512_store_si512(sums + v * LANES, sum[v]);
}

// The sum of the spikes of every input pixel.
static std::vector<int32_t> sums_of_pixels(const Convolution& c) {
    std::vector<int32_t> sums(c.images * c.height * c.width);
    const __m512i ones = _mm512_set1_epi8(1);
#pragma omp parallel for schedule(static)
    for (int64_t pixel = 0; pixel < int64_t(sums.size()); ++pixel) {
        __m512i sum = _mm512_setzero_si512();
        for (int64_t channel = 0; channel < c.channels; channel += 64)
            sum = _mm512_dpbusd_epi32(sum, _mm512_loadu_si512(c.spikes + pixel * c.channels + channel), ones);
        sums[pixel] = _mm512_reduce_add_epi32(sum) - int32_t(c.channels) * c.zero_point;
    }
    return sums;
}

// BLOCKS: how many blocks of 64 input channels are taken at a time, as many as let their weights stay in the cache.
template <int VECTORS, int BLOCKS>
static void convolve(const Convolution& c) {
    constexpr int64_t part_size = VECTORS * LANES;
    const int64_t parts = c.out_channels / part_size, pixels = c.images * c.out_height * c.out_width;
    const int64_t tiles = (pixels + PIXELS - 1) / PIXELS;
    const int64_t of_pixel = c.channels / 64, of_row = c.kernel_width * of_pixel;  // blocks of 64 input channels
    const std::vector<int32_t> sums_of = sums_of_pixels(c);
    const __m512i zero = _mm512_set1_epi8(char(c.zero_point));
#pragma omp parallel for collapse(2) schedule(static) if (tiles * parts > 1)
    for (int64_t tile = 0; tile < tiles; ++tile)
        for (int64_t part = 0; part < parts; ++part) {
            const int64_t first = tile * PIXELS, count = std::min(PIXELS, pixels - first);
            int64_t image[PIXELS], top[PIXELS], left[PIXELS];
            for (int64_t i = 0; i < count; ++i) {
                const int64_t row = (first + i) / c.out_width;
                image[i] = row / c.out_height * c.height * c.width;
                top[i] = row % c.out_height * c.stride_height - c.padding_height;
                left[i] = (first + i) % c.out_width * c.stride_width - c.padding_width;
            }
            alignas(64) int32_t sums[PIXELS * part_size];
            int32_t spikes[PIXELS] = {};  // their sum in an output pixel's window
            std::memset(sums, 0, count * part_size * sizeof(int32_t));
            for (int64_t down = 0; down < c.kernel_height; ++down) {
                const uint8_t* weights = c.weights + (part * c.kernel_height + down) * of_row * 64 * part_size;
                for (int64_t i = 0; i < count; ++i)
                    for (int64_t x = left[i]; x < left[i] + c.kernel_width; ++x)
                        if (top[i] + down >= 0 && top[i] + down < c.height && x >= 0 && x < c.width)
                            spikes[i] += sums_of[image[i] + (top[i] + down) * c.width + x];
                for (int64_t block = 0; block < of_row; block += BLOCKS) {
                    int64_t right[BLOCKS];  // the column of the window that a block is in
                    for (int64_t b = 0; b < BLOCKS; ++b) right[b] = (block + b) / of_pixel;
                    for (int64_t i = 0; i < count; ++i) {
                        const int64_t y = top[i] + down;
                        if (y < 0 || y >= c.height) continue;
                        bool inside[BLOCKS];
                        for (int64_t b = 0; b < BLOCKS; ++b) {
                            const int64_t x = left[i] + right[b];
                            inside[b] = right[b] < c.kernel_width && x >= 0 && x < c.width;
                        }
                        // a row of the window is one piece of memory
                        const uint8_t* row = c.spikes + (image[i] + y * c.width + left[i]) * c.channels;
                        add<VECTORS, BLOCKS>(row + block * 64, inside, zero, weights + block * 64 * part_size,
                                             sums + i * part_size);
                    }
                }
            }
            for (int64_t i = 0; i < count; ++i)
                for (int64_t k = 0; k < part_size; ++k) {
                    const int64_t channel = part * part_size + k;
                    c.out[(first + i) * c.out_channels + channel] =
                        float(sums[i * part_size + k] - 128 * spikes[i]) * c.scale[channel] + c.bias[channel];
                }
        }
}

extern "C" void sparse_convolution(const Convolution* c, int32_t vectors) {
    (vectors == 16 ? convolve<16, 2> : vectors == 8 ? convolve<8, 2> : convolve<4, 4>)(*c);
}
