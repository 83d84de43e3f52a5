// Operations on a tile between its linear layers: activations, conversion to the kernel's rows, layer norm. Rows of
// floats are kTile tokens apart, in natural order.
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
    Span<float> low, high;
    void clear() {
        for (size_t i = 0; i < low.size(); i++) low.data()[i] = high.data()[i] = 0;
    }
    template <int B>
    void take(int token, Floats<B> y) {
        float *l = low.at(token, B / 4), *h = high.at(token, B / 4);
        store<B>(l, smaller<B>(load<Floats<B>>(l), y));
        store<B>(h, larger<B>(load<Floats<B>>(h), y));
    }
};

// A worker's scale, zero point and range of each token of the tile that it computes.
template <class Kernel>
struct TokenScales {
    alignas(kAlign) float scale[Kernel::kTile] = {}, zero[Kernel::kTile] = {};
    alignas(kAlign) float low[Kernel::kTile] = {}, high[Kernel::kTile] = {};
    Tile tile(Span<char> rows) { return {rows, {scale, Kernel::kTile}, {zero, Kernel::kTile}}; }
    Range range() { return {{low, Kernel::kTile}, {high, Kernel::kTile}}; }
};

// Sets the scale and zero point of each token's bytes.
inline void set_scales(const Range &range, const Tile &tile, int tokens) {
    const float *low = range.low.at(0, tokens), *high = range.high.at(0, tokens);
    float *scale = tile.scale.at(0, tokens), *zero = tile.zero.at(0, tokens);
    for (int i = 0; i < tokens; i++) {
        const float span = high[i] - low[i];
        const bool usable = span > 1e-30f && span < 1e30f;  // false for NaN and for a token of zeros
        scale[i] = usable ? span / 255.0f : 1.0f;
        zero[i] = usable ? float(int(-low[i] / scale[i] + 0.5f)) : 0.0f;
    }
}

template <int B>
struct ToBytes {
    Floats<B> factor, zero;
    ToBytes(const Tile &tile, int token)
        : factor(1.0f / load<Floats<B>>(tile.scale.at(token, B / 4))),
          zero(load<Floats<B>>(tile.zero.at(token, B / 4))) {}
    Floats<B> operator()(Floats<B> x) const {
        const Floats<B> level = nearest<B>(smaller<B>(x * factor + zero, splat<B>(255.0f)));
        return larger<B>(level, Floats<B>{});  // 0 for NaN too
    }
};

// Floats [features][kTile] to the kernel's tile. For int8, `range` is already that of the tokens.
template <class Kernel, int Width>
void take_floats(Span<const float> floats, int64_t features, const Tile &tile, const Range &range) {
    constexpr int B = Kernel::template kVector<Width>;
    const float *x = floats.at(0, features * Kernel::kTile);
    char *rows = tile.rows.at(0, features * Kernel::kRow);
    if constexpr (Kernel::kDtype == FP_BFLOAT16) {
        for (int64_t k = 0; k < features; k++, x += Kernel::kTile)
            put(rows + k * Kernel::kRow, pack16<B>(load<Floats<B>>(x), load<Floats<B>>(x + B / 4)));
    } else if constexpr (Kernel::kDtype == FP_INT8) {
        set_scales(range, tile, Width);
        const ToBytes<B> bytes[4] = {{tile, 0}, {tile, B / 4}, {tile, B / 2}, {tile, 3 * B / 4}};
        for (int64_t k = 0; k < features; k++, x += Kernel::kTile) {
            Floats<B> row[4];
            for (int j = 0; j < 4; j++) row[j] = bytes[j](load<Floats<B>>(x + j * (B / 4)));
            put(rows + k * Kernel::kRow, pack8<B>(row));
        }
    }
}

template <class Kernel, int Width>
void find_range(Span<const float> floats, int64_t features, Range range) {
    const float *x = floats.at(0, features * Kernel::kTile);
    range.clear();
    constexpr int N = Width > kLanes ? Width / kLanes : 1;
    Floats<> low[N] = {}, high[N] = {};
    for (int64_t k = 0; k < features; k++, x += Kernel::kTile)
        for (int j = 0; j < N; j++) {
            const Floats<> y = load<Floats<>>(x + j * kLanes);
            low[j] = smaller<kBytes>(low[j], y), high[j] = larger<kBytes>(high[j], y);
        }
    float *to_low = range.low.at(0, N * kLanes), *to_high = range.high.at(0, N * kLanes);
    for (int j = 0; j < N; j++)
        store<kBytes>(to_low + j * kLanes, low[j]), store<kBytes>(to_high + j * kLanes, high[j]);
}

struct Norm {
    std::vector<float> weight, bias;  // [features]
};

// x = LayerNorm(x + y) over the features of each token, in place; for int8 also finds the result's range.
template <class Kernel, int Width>
void add_and_normalize(Span<float> in_out, Span<const float> added, const Norm &norm, float epsilon, Range range) {
    constexpr int N = Width > kLanes ? Width / kLanes : 1;
    constexpr int T = Kernel::kTile;
    const int64_t features = int64_t(norm.weight.size());
    FP_CHECK(norm.bias.size() == norm.weight.size());
    float *x = in_out.at(0, features * T);
    const float *y = added.at(0, features * T), *weight = norm.weight.data(), *bias = norm.bias.data();
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
            if constexpr (Kernel::kDtype == FP_INT8)
                low[j] = smaller<kBytes>(low[j], v), high[j] = larger<kBytes>(high[j], v);
        }
    if constexpr (Kernel::kDtype == FP_INT8) {
        float *to_low = range.low.at(0, N * kLanes), *to_high = range.high.at(0, N * kLanes);
        for (int j = 0; j < N; j++)
            store<kBytes>(to_low + j * kLanes, low[j]), store<kBytes>(to_high + j * kLanes, high[j]);
    }
}

// Tokens [width][features], each at its own address, to [features][kTile] and back.
template <class Kernel>
void gather_tokens(const float *const *tokens, int width, int64_t features, Span<float> to) {
    FP_CHECK(width >= 0 && width <= Kernel::kTile);
    float *x = to.at(0, features * Kernel::kTile);
    for (int i = 0; i < Kernel::kTile; i++) {
        if (i < width)
            for (int64_t k = 0; k < features; k++) x[k * Kernel::kTile + i] = tokens[i][k];
        else
            for (int64_t k = 0; k < features; k++) x[k * Kernel::kTile + i] = 0;
    }
}
template <class Kernel>
void scatter_tokens(Span<const float> from, int width, int64_t features, float *const *tokens) {
    FP_CHECK(width >= 0 && width <= Kernel::kTile);
    const float *x = from.at(0, features * Kernel::kTile);
    for (int i = 0; i < width; i++)
        for (int64_t k = 0; k < features; k++) tokens[i][k] = x[k * Kernel::kTile + i];
}

}  // namespace fp
