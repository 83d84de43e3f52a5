// What happens to a tile between its linear layers. Rows of floats are kTile tokens apart, in natural order.
#pragma once
#include "engine.h"
#include "kernels.hpp"

namespace fp {

template <int B>
inline Floats<B> activate(int32_t activation, Floats<B> x) {
    if (activation == FP_RELU) return larger<B>(x, Floats<B>{});
    return activation == FP_GELU_TANH ? gelu_tanh<B>(x) : gelu<B>(x);
}

// The smallest and largest value of each token so far, 0 among them: then 0 is a whole byte.
struct Range {
    float *low, *high;
    void clear(int tokens) {
        for (int i = 0; i < tokens; i++) low[i] = high[i] = 0;
    }
    template <int B>
    void take(int token, Floats<B> y) {
        store<B>(low + token, smaller<B>(load<Floats<B>>(low + token), y));
        store<B>(high + token, larger<B>(load<Floats<B>>(high + token), y));
    }
};

// The bytes' scale and zero point of each token.
inline void set_scales(const Range &range, const Tile &tile, int tokens) {
    for (int i = 0; i < tokens; i++) {
        const float span = range.high[i] - range.low[i];
        const bool usable = span > 1e-30f && span < 1e30f;  // not so for NaN, and for a token of zeros
        tile.scale[i] = usable ? span / 255.0f : 1.0f;
        tile.zero[i] = usable ? float(int(-range.low[i] / tile.scale[i] + 0.5f)) : 0.0f;
    }
}

template <int B>
struct ToBytes {
    Floats<B> factor, zero;
    ToBytes(const Tile &tile, int token) : factor(1.0f / load<Floats<B>>(tile.scale + token)), zero(load<Floats<B>>(tile.zero + token)) {}
    Floats<B> operator()(Floats<B> x) const {
        const Floats<B> level = nearest<B>(smaller<B>(x * factor + zero, splat<B>(255.0f)));
        return larger<B>(level, Floats<B>{});  // 0 for NaN too
    }
};

// Floats [features][kTile] to the kernel's tile. For int8, `range` is already that of the tokens.
template <class Kernel, int Width>
void take_floats(const float *x, int64_t features, const Tile &tile, const Range &range) {
    constexpr int B = Kernel::template kVector<Width>;
    if constexpr (Kernel::kGroup == 2) {
        for (int64_t k = 0; k < features; k++, x += Kernel::kTile)
            put(tile.rows + k * Kernel::kRow, pack16<B>(load<Floats<B>>(x), load<Floats<B>>(x + B / 4)));
    } else if constexpr (Kernel::kGroup == 4) {
        set_scales(range, tile, Width);
        const ToBytes<B> bytes[4] = {{tile, 0}, {tile, B / 4}, {tile, B / 2}, {tile, 3 * B / 4}};
        for (int64_t k = 0; k < features; k++, x += Kernel::kTile) {
            Floats<B> row[4];
            for (int j = 0; j < 4; j++) row[j] = bytes[j](load<Floats<B>>(x + j * (B / 4)));
            put(tile.rows + k * Kernel::kRow, pack8<B>(row));
        }
    }
}

template <class Kernel, int Width>
void find_range(const float *x, int64_t features, Range &range) {
    range.clear(Kernel::kTile);
    constexpr int N = Width > kLanes ? Width / kLanes : 1;
    Floats<> low[N] = {}, high[N] = {};
    for (int64_t k = 0; k < features; k++, x += Kernel::kTile)
        for (int j = 0; j < N; j++) {
            const Floats<> y = load<Floats<>>(x + j * kLanes);
            low[j] = smaller<kBytes>(low[j], y), high[j] = larger<kBytes>(high[j], y);
        }
    for (int j = 0; j < N; j++) store<kBytes>(range.low + j * kLanes, low[j]), store<kBytes>(range.high + j * kLanes, high[j]);
}

// x = LayerNorm(x + y) over the features of each token, in place; also finds the result's range.
template <class Kernel, int Width>
void add_and_normalize(float *x, const float *y, int64_t features, const float *weight, const float *bias, float epsilon,
                       Range &range) {
    constexpr int N = Width > kLanes ? Width / kLanes : 1;
    constexpr int T = Kernel::kTile;
    Floats<> sum[N] = {}, square[N] = {}, low[N] = {}, high[N] = {};
    for (int64_t k = 0; k < features; k++)
        for (int j = 0; j < N; j++) {
            const Floats<> v = load<Floats<>>(x + k * T + j * kLanes) + load<Floats<>>(y + k * T + j * kLanes);
            store<kBytes>(x + k * T + j * kLanes, v);
            sum[j] += v;
        }
    Floats<> mean[N], factor[N];
    for (int j = 0; j < N; j++) mean[j] = sum[j] * (1.0f / float(features));
    for (int64_t k = 0; k < features; k++)
        for (int j = 0; j < N; j++) {
            const Floats<> v = load<Floats<>>(x + k * T + j * kLanes) - mean[j];
            square[j] += v * v;
        }
    for (int j = 0; j < N; j++)
        for (int i = 0; i < kLanes; i++) factor[j][i] = 1.0f / std::sqrt(square[j][i] / float(features) + epsilon);
    for (int64_t k = 0; k < features; k++)
        for (int j = 0; j < N; j++) {
            const Floats<> v = (load<Floats<>>(x + k * T + j * kLanes) - mean[j]) * factor[j] * weight[k] + bias[k];
            store<kBytes>(x + k * T + j * kLanes, v);
            if (Kernel::kGroup == 4) low[j] = smaller<kBytes>(low[j], v), high[j] = larger<kBytes>(high[j], v);
        }
    if (Kernel::kGroup == 4)
        for (int j = 0; j < N; j++) store<kBytes>(range.low + j * kLanes, low[j]), store<kBytes>(range.high + j * kLanes, high[j]);
}

// Tokens [width][features], each at its own address, to [features][kTile] and back.
template <class Kernel>
void gather_tokens(const float *const *tokens, int width, int64_t features, float *x) {
    for (int i = 0; i < Kernel::kTile; i++) {
        if (i < width)
            for (int64_t k = 0; k < features; k++) x[k * Kernel::kTile + i] = tokens[i][k];
        else
            for (int64_t k = 0; k < features; k++) x[k * Kernel::kTile + i] = 0;
    }
}
template <class Kernel>
void scatter_tokens(const float *x, int width, int64_t features, float *const *tokens) {
    for (int i = 0; i < width; i++)
        for (int64_t k = 0; k < features; k++) tokens[i][k] = x[k * Kernel::kTile + i];
}

}  // namespace fp
