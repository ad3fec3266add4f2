// The neuron of lightning_tspike/functional.py for processors, all time steps at once; native.py compiles and calls it.
//
// Memory is seen as x[T][rows][columns] (layout.py). A block of neurons goes through all T steps while what it needs
// stays in registers and the nearest cache; a tile is the blocks that one thread takes at a time. Nothing depends on
// the number of threads: each tile sums for itself, and the caller adds the tiles up in one order.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

enum Surrogate { RECTANGULAR, TRIANGULAR, ARCTAN };

// One library for each kind of neuron: what the compiler knows it need not ask in the loops, and the first call waits
// for one kind alone.
using real = REAL;
constexpr bool soft = SOFT, detach = DETACH;
constexpr Surrogate surrogate = SURROGATE;
constexpr int levels = LEVELS;

constexpr int64_t BLOCK = 32;

struct Neuron {
    int64_t timesteps;
    int64_t x_step;  // elements from one time step of x to the next: 0 where every step has the same input
    int64_t rows, columns, tile_rows, tile_columns;
    int64_t amplitudes, thresholds, channels;  // how many there are: 1 or channels
    int32_t by_column;                         // channels are columns; else a row's channel is row % channels
    int32_t is_ternary;
    double decay;

    int64_t strips() const { return (columns + tile_columns - 1) / tile_columns; }
    int64_t tiles() const { return (rows + tile_rows - 1) / tile_rows * strips(); }
};

// Amplitude, threshold and what follows from it, for each channel.
struct Values {
    std::vector<real> a, theta, lower, inverse;

    Values(const Neuron& n, const real* amplitude, const real* threshold)
        : a(n.channels), theta(n.channels), lower(n.channels), inverse(n.channels) {
        for (int64_t c = 0; c < n.channels; ++c) {
            a[c] = amplitude[n.amplitudes == 1 ? 0 : c];
            theta[c] = threshold[n.thresholds == 1 ? 0 : c];
            lower[c] = n.is_ternary ? -theta[c] : real(NAN);  // which nothing reaches
            inverse[c] = 1 / theta[c];
        }
    }
};

// thresholds that are reached, from that of a step on: theta, 3 theta, 5 theta, ... up and down
template <int step>
static inline __attribute__((always_inline)) real reached(real u, real theta, real lower) {
    const real s = (u >= step * theta ? real(1) : real(0)) - (u <= step * lower ? real(1) : real(0));
    if constexpr (step + 2 < 2 * levels)
        return s + reached<step + 2>(u, theta, lower);
    else
        return s;
}

static inline real fired(real u, real theta, real lower) { return reached<1>(u, theta, lower); }

// what a soft reset takes for each level of a spike
static inline real taken(real theta) { return levels == 1 ? theta : 2 * theta; }

// what a spike leaves; a product, not a choice: an infinite u leaves NaN, as in the equations
static inline real after_reset(real u, real s, real theta) {
    return soft ? u - taken(theta) * s : u * (1 - std::fabs(s));
}

// the sum of the surrogate's functions over all steps, from one on; v is u (triangular: its side of 0) in thresholds
template <int step>
static inline __attribute__((always_inline)) real slopes(real v, real binary) {
    real h;
    if (surrogate == TRIANGULAR) {
        h = 1 - std::fabs(v - step);
        h = h < 0 ? real(0) : h;
    } else {
        const real pi = real(3.14159265358979323846);
        const real above = pi * (v - step), below = pi * (v + step);
        h = 1 / (1 + above * above) + (1 - binary) / (1 + below * below);
    }
    if constexpr (step + 2 < 2 * levels)
        return h + slopes<step + 2>(v, binary);
    else
        return h;
}

// ds/du, equations in surrogate.py; binary is 0 or 1. Written without branches, which would keep the loops scalar.
static inline real derivative(real u, real theta, real inverse, real binary) {
    if (surrogate == RECTANGULAR)
        return (std::fabs(u - binary * theta) < (2 * levels - binary) * theta ? real(0.5) : real(0)) * inverse;
    if (surrogate == TRIANGULAR) {
        const real mirrored = (2 * binary - 1) * u;  // -u for ternary spikes
        return slopes<1>((u < mirrored ? mirrored : u) * inverse, binary) * inverse;
    }
    return slopes<1>(u * inverse, binary) * inverse;
}

// Calls work(row, channel, column, length, tile) for each block; channel is that of the block's first neuron.
template <typename Work>
static inline void each_block(const Neuron& n, int64_t tile, Work work) {
    const int64_t column = tile % n.strips() * n.tile_columns, first = tile / n.strips() * n.tile_rows;
    const int64_t end = std::min(column + n.tile_columns, n.columns);
    for (int64_t row = first; row < std::min(first + n.tile_rows, n.rows); ++row)
        for (int64_t i = column; i < end; i += BLOCK)
            work(row, n.by_column ? i : row % n.channels, i, std::min(BLOCK, end - i));
}

// A block that is full has a length that the compiler knows.
#define FULL_OR_NOT(call)            \
    if (length == BLOCK) {           \
        constexpr int64_t width = BLOCK; \
        call;                        \
    } else {                         \
        const int64_t width = length; \
        call;                        \
    }

template <bool by_column>
static inline __attribute__((always_inline)) void forward_block(const Neuron& n, const Values& v, int64_t channel,
                                                                int64_t width, const real* x, real* out) {
    const real *a = &v.a[channel], *theta = &v.theta[channel], *lower = &v.lower[channel];
    const real decay = real(n.decay);
    real h[BLOCK] = {};
    for (int64_t t = 0; t < n.timesteps; ++t, x += n.x_step, out += n.rows * n.columns) {
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) {
            const int64_t c = by_column ? i : 0;
            const real u = h[i] + x[i], s = fired(u, theta[c], lower[c]);
            out[i] = s * a[c];
            h[i] = decay * after_reset(u, s, theta[c]);
        }
    }
}

template <bool by_column>
static void forward(const Neuron& n, const real* x, const real* amplitude, const real* threshold, real* out) {
    const Values v(n, amplitude, threshold);
// one tile needs no threads, which a forked process would wait for in vain
#pragma omp parallel for schedule(static) if (n.tiles() > 1)
    for (int64_t tile = 0; tile < n.tiles(); ++tile)
        each_block(n, tile, [&](int64_t row, int64_t channel, int64_t column, int64_t length) {
            const int64_t at = row * n.columns + column;
            FULL_OR_NOT((forward_block<by_column>(n, v, channel, width, x + at, out + at)))
        });
}

// One time step alone: what is left of the past comes in, and what is left of it now goes out.
template <bool by_column>
static inline __attribute__((always_inline)) void step_block(const Neuron& n, const Values& v, int64_t channel,
                                                             int64_t width, const real* x, const real* past,
                                                             real* out, real* left) {
    const real *a = &v.a[channel], *theta = &v.theta[channel], *lower = &v.lower[channel];
    const real decay = real(n.decay);
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
        const int64_t c = by_column ? i : 0;
        const real u = past[i] + x[i], s = fired(u, theta[c], lower[c]);
        out[i] = s * a[c];
        left[i] = decay * after_reset(u, s, theta[c]);
    }
}

template <bool by_column>
static void step(const Neuron& n, const real* x, const real* past, const real* amplitude, const real* threshold,
                 real* out, real* left) {
    const Values v(n, amplitude, threshold);
#pragma omp parallel for schedule(static) if (n.tiles() > 1)
    for (int64_t tile = 0; tile < n.tiles(); ++tile)
        each_block(n, tile, [&](int64_t row, int64_t channel, int64_t column, int64_t length) {
            const int64_t at = row * n.columns + column;
            FULL_OR_NOT((step_block<by_column>(n, v, channel, width, x + at, past + at, out + at, left + at)))
        });
}

// One time step of one block on the way back. next: dL/du of the step after, overwritten by this step's, as is to.
template <bool by_column, bool all, bool last>
static inline __attribute__((always_inline)) void step_back(const Values& v, int64_t channel, real decay,
                                                            real binary, int64_t width, const real* now,
                                                            const real* grad_out, real* next, real* to,
                                                            real* to_amplitude, real* to_threshold, real* to_decay) {
    const real *a = &v.a[channel], *theta = &v.theta[channel], *lower = &v.lower[channel];
    const real* inverse = &v.inverse[channel];
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
        const int64_t c = by_column ? i : 0;
        const real u = now[i], s = fired(u, theta[c], lower[c]);
        real to_spike = a[c] * grad_out[i], direct = 0;
        to_amplitude[i] += grad_out[i] * s;
        if (!last) {
            const real to_rest = decay * next[i];  // dL/dv
            if (all) to_decay[i] += next[i] * after_reset(u, s, theta[c]);
            if (all && soft) to_threshold[i] -= taken(to_rest) * s;
            if (!detach) to_spike += soft ? -taken(theta[c]) * to_rest : -u * s * to_rest;
            direct = soft ? to_rest : to_rest * (1 - std::fabs(s));
        }
        const real through_spike = to_spike * derivative(u, theta[c], inverse[c], binary);
        if (all) to_threshold[i] -= through_spike * u * inverse[c];
        next[i] = to[i] = direct + through_spike;
    }
}

template <bool by_column, bool all>
static inline __attribute__((always_inline)) void backward_block(const Neuron& n, const Values& v,
                                                                 int64_t channel, int64_t width, const real* x,
                                                                 const real* grad_out, real* grad_x, real* u,
                                                                 real* const* sums) {
    const real *theta = &v.theta[channel], *lower = &v.lower[channel];
    const real decay = real(n.decay), binary = n.is_ternary ? 0 : 1;
    const int64_t step = n.rows * n.columns, last = n.timesteps - 1;
    real h[BLOCK] = {}, next[BLOCK];
    for (int64_t t = 0; t <= last; ++t) {
        const real* in = x + t * n.x_step;
        real* now = u + t * BLOCK;
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) {
            const int64_t c = by_column ? i : 0;
            now[i] = h[i] + in[i];
            h[i] = decay * after_reset(now[i], fired(now[i], theta[c], lower[c]), theta[c]);
        }
    }
    real spare[BLOCK];
    const bool is_static = n.x_step == 0;
    step_back<by_column, all, true>(v, channel, decay, binary, width, u + last * BLOCK, grad_out + last * step, next,
                                    grad_x + last * n.x_step, sums[0], sums[1], sums[2]);
    for (int64_t t = last - 1; t >= 0; --t) {
        step_back<by_column, all, false>(v, channel, decay, binary, width, u + t * BLOCK, grad_out + t * step, next,
                                         is_static ? spare : grad_x + t * n.x_step, sums[0], sums[1], sums[2]);
        if (is_static)  // every step has read the same input
            for (int64_t i = 0; i < width; ++i) grad_x[i] += spare[i];
    }
}

// sums: towards amplitude, threshold and decay; of each, one for every tile, or a row of columns for every row of tiles
template <bool by_column, bool all>
static void backward(const Neuron& n, const real* x, const real* amplitude, const real* threshold,
                     const real* grad_out, real* grad_x, double* sums) {
    const Values v(n, amplitude, threshold);
    const int64_t width = by_column ? n.tile_columns + BLOCK : BLOCK, kinds = all ? 3 : 1;
    const int64_t sums_each = by_column ? n.tiles() / n.strips() * n.columns : n.tiles();
#pragma omp parallel if (n.tiles() > 1)
    {
        std::vector<real> u(n.timesteps * BLOCK), sum(3 * width);
#pragma omp for schedule(static)
        for (int64_t tile = 0; tile < n.tiles(); ++tile) {
            const int64_t start = tile % n.strips() * n.tile_columns;
            std::fill(sum.begin(), sum.end(), real(0));
            each_block(n, tile, [&](int64_t row, int64_t channel, int64_t column, int64_t length) {
                const int64_t at = row * n.columns + column;
                real* to = sum.data() + (by_column ? column - start : 0);
                real* const to_kinds[3] = {to, to + width, to + 2 * width};
                FULL_OR_NOT((backward_block<by_column, all>(
                    n, v, channel, width, x + at, grad_out + at, grad_x + at, u.data(), to_kinds)))
            });
            for (int64_t kind = 0; kind < kinds; ++kind) {
                const real* from = sum.data() + kind * width;
                double* to = sums + kind * sums_each;
                if (by_column)
                    std::copy(from, from + std::min(n.tile_columns, n.columns - start),
                              to + tile / n.strips() * n.columns + start);
                else
                    for (int64_t i = 0; i < BLOCK; ++i) to[tile] += from[i];
            }
        }
    }
}

extern "C" void neuron_forward(const Neuron* n, const real* x, const real* amplitude, const real* threshold,
                               real* out) {
    (n->by_column ? forward<true> : forward<false>)(*n, x, amplitude, threshold, out);
}

extern "C" void neuron_step(const Neuron* n, const real* x, const real* past, const real* amplitude,
                            const real* threshold, real* out, real* left) {
    (n->by_column ? step<true> : step<false>)(*n, x, past, amplitude, threshold, out, left);
}

extern "C" void neuron_backward(const Neuron* n, const real* x, const real* amplitude, const real* threshold,
                                const real* grad_out, real* grad_x, double* sums, int32_t all) {
    (n->by_column ? all ? backward<true, true> : backward<true, false>
     : all        ? backward<false, true>
                  : backward<false, false>)(*n, x, amplitude, threshold, grad_out, grad_x, sums);
}
