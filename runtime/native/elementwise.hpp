// Operations on a tile between its linear layers: activations, conversion to the kernel's rows, layer norm. Rows of
// floats are kTile tokens apart, in natural order.
#pragma once
#include <cmath>
#include <limits>

#include "engine.h"
#include "kernels.hpp"

namespace fp {

// x Phi(x), with the error function as a quotient of polynomials, good to 1e-7 (coefficients of Eigen's erf).
template <int B>
inline Floats<B> gelu(Floats<B> x) {
    const Floats<B> z = larger<B>(smaller<B>(x * 0.70710678118f, splat<B>(3.925f)), splat<B>(-3.925f));
    const Floats<B> u = z * z;
    Floats<B> p = u * -2.72614225801306e-10f + 2.77068142495902e-08f;
    p = p * u + -2.10102402082508e-06f;
    p = p * u + -5.69250639462346e-05f;
    p = p * u + -7.34990630326855e-04f;
    p = p * u + -2.95459980854025e-03f;
    p = p * u + -1.60960333262415e-02f;
    Floats<B> q = u * -1.45660718464996e-05f + -2.13374055278905e-04f;
    q = q * u + -1.68282697438203e-03f;
    q = q * u + -7.37332916720468e-03f;
    q = q * u + -1.42647390514189e-02f;
    const Floats<B> half = x * 0.5f;
    return half + half * (z * p / q);
}

// The same to 2e-4, without the division, for results that become bfloat16 or bytes: Phi(x) - 1/2 as an odd polynomial with
// least errors of x Phi(x) up to 3.9, where it reaches 1/2.
template <int B>
inline Floats<B> rough_gelu(Floats<B> x) {
    const Floats<B> z = larger<B>(smaller<B>(x, splat<B>(3.9f)), splat<B>(-3.9f));
    const Floats<B> u = z * z;
    Floats<B> p = u * 2.85732627e-8f + -1.89645261e-6f;
    p = p * u + 5.39619481e-5f;
    p = p * u + -8.73970275e-4f;
    p = p * u + 9.07880368e-3f;
    p = p * u + -6.53121755e-2f;
    p = p * u + 3.98512588e-1f;
    return x * 0.5f + x * (z * p);
}

// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), and 0.5 (1 + tanh(t)) = 1 / (1 + e^-2t).
template <int B>
inline Floats<B> gelu_tanh(Floats<B> x) {
    const Floats<B> t = (x * x * x * 0.044715f + x) * 1.5957691216f;
    return x / (exponential<B>(-t) + 1.0f);
}

template <int B, bool Rough>
inline Floats<B> activate(int32_t activation, Floats<B> x) {
    if (activation == FP_RELU) return larger<B>(Floats<B>{}, x);  // NaN stays
    if (activation == FP_GELU_TANH) return gelu_tanh<B>(x);
    return Rough ? rough_gelu<B>(x) : gelu<B>(x);
}

// The smallest and largest value of each token so far, 0 among them: then 0 is a whole byte. Infinity and NaN stay in
// one of the two.
struct Range {
    Span<float> low, high;
    void clear() {
        for (size_t i = 0; i < low.size(); i++) low.data()[i] = -0.0f, high.data()[i] = 0.0f;
    }
    template <int B>
    void take(int token, Floats<B> y) {
        float *l = low.at(token, B / 4), *h = high.at(token, B / 4);
        store<B>(l, later_unsigned<B>(load<Floats<B>>(l), y));
        store<B>(h, later_signed<B>(load<Floats<B>>(h), y));
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

// The ranges of N vectors of tokens, which a loop has in registers.
template <int N>
struct RangeOf {
    Floats<> low[N], high[N];
    RangeOf() {
        for (int j = 0; j < N; j++) low[j] = splat<kBytes>(-0.0f), high[j] = Floats<>{};
    }
    void take(int j, Floats<> y) {
        low[j] = later_unsigned<kBytes>(low[j], y), high[j] = later_signed<kBytes>(high[j], y);
    }
    void store_to(const Range &range) const {
        float *to_low = range.low.at(0, N * kLanes), *to_high = range.high.at(0, N * kLanes);
        for (int j = 0; j < N; j++)
            store<kBytes>(to_low + j * kLanes, low[j]), store<kBytes>(to_high + j * kLanes, high[j]);
    }
};

// Sets the scale and zero point of each token's bytes. A token with a value that is not finite has the scale NaN, and
// so have its outputs.
inline void set_scales(const Range &range, const Tile &tile, int tokens) {
    const float *low = range.low.at(0, tokens), *high = range.high.at(0, tokens);
    float *scale = tile.scale.at(0, tokens), *zero = tile.zero.at(0, tokens);
    for (int i = 0; i < tokens; i++) {
        const float span = high[i] - low[i];
        const bool is_finite = span <= std::numeric_limits<float>::max(), is_zero = span <= 1e-30f;
        scale[i] = is_zero ? 1.0f : is_finite ? span / 255.0f : std::numeric_limits<float>::quiet_NaN();
        zero[i] = is_finite && !is_zero ? float(kLeastByte + int(-low[i] / scale[i] + 0.5f)) : 0.0f;
    }
}

template <int B>
struct ToBytes {
    Floats<B> factor, zero;
    ToBytes(const Tile &tile, int token)
        : factor(1.0f / load<Floats<B>>(tile.scale.at(token, B / 4))),
          zero(load<Floats<B>>(tile.zero.at(token, B / 4))) {}
    Floats<B> operator()(Floats<B> x) const {
        const Floats<B> level = nearest<B>(smaller<B>(x * factor + zero, splat<B>(kMostByte)));
        return larger<B>(level, splat<B>(kLeastByte));  // a byte for NaN too
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
    RangeOf<N> found;
    for (int64_t k = 0; k < features; k++, x += Kernel::kTile)
        for (int j = 0; j < N; j++) found.take(j, load<Floats<>>(x + j * kLanes));
    found.store_to(range);
}

struct Norm {
    std::vector<float> weight, bias;  // [features]
};

// NaN for a variance that overflowed: 1 / infinity would make zeros of the token, which look like a result.
inline float inverse_deviation(float variance, float epsilon) {
    const bool is_finite = variance <= std::numeric_limits<float>::max();
    return is_finite ? 1.0f / std::sqrt(variance + epsilon) : std::numeric_limits<float>::quiet_NaN();
}

// x = x + y, and LayerNorm(x) over the features of each token, which may be written over x; for int8 also finds the
// result's range.
template <class Kernel, int Width>
void add_and_normalize(Span<float> sum_of, Span<const float> added, const Norm &norm, float epsilon, Range range,
                       Span<float> result) {
    constexpr int N = Width > kLanes ? Width / kLanes : 1;
    constexpr int T = Kernel::kTile;
    const int64_t features = int64_t(norm.weight.size());
    FP_CHECK(norm.bias.size() == norm.weight.size());
    float *x = sum_of.at(0, features * T), *to = result.at(0, features * T);
    const float *y = added.at(0, features * T), *weight = norm.weight.data(), *bias = norm.bias.data();
    Floats<> sum[N] = {}, square[N] = {};
    RangeOf<N> found;
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
        for (int i = 0; i < kLanes; i++) factor[j][i] = inverse_deviation(square[j][i] / float(features), epsilon);
    for (int64_t k = 0; k < features; k++)
        for (int j = 0; j < N; j++) {
            const Floats<> v = (load<Floats<>>(x + k * T + j * kLanes) - mean[j]) * factor[j] * weight[k] + bias[k];
            store<kBytes>(to + k * T + j * kLanes, v);
            if constexpr (Kernel::kDtype == FP_INT8) found.take(j, v);
        }
    if constexpr (Kernel::kDtype == FP_INT8) found.store_to(range);
}

// Whether every value is finite. An exponent of ones alone is that of infinity and NaN.
inline bool all_finite(const float *values, int64_t count) {
    constexpr uint32_t kExponent = 0x7f800000u;
    uint32_t largest = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        std::memcpy(&bits, values + i, sizeof(bits));
        largest = std::max(largest, bits & kExponent);
    }
    return largest < kExponent;
}

// Tokens [width][features], each at its own address, to [features][kTile] and back; `finite`: which of them are.
template <class Kernel>
void gather_tokens(const float *const *tokens, int width, int64_t features, Span<float> to, bool *finite = nullptr) {
    FP_CHECK(width >= 0 && width <= Kernel::kTile);
    float *x = to.at(0, features * Kernel::kTile);
    for (int i = 0; i < Kernel::kTile; i++) {
        if (finite && i < width) finite[i] = all_finite(tokens[i], features);
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
