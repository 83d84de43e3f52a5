// The kernels of float32, bfloat16 and int8: layout of a tile's rows, a step of the sparse loops, and how sums become
// floats. Width is the number of a tile's tokens that are computed.
//
// Sums<Width> is a step for one output. Shared<Width, Aligned> is one for four: words() reads the inputs of a step, as
// words that hold kGroup of them for each token, and dot() multiplies them by a weight word. Both have sums of kVectors
// vectors of B bytes, tokens in natural order.
#pragma once
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "dense.hpp"
#include "sparse.hpp"
#include "tiles.hpp"

namespace fp {

// The activations of a tile, [features][kRow bytes]; int8 has a scale and a zero point for each token.
struct Tile {
    Span<char> rows;
    Span<float> scale, zero;
};

constexpr int64_t kCache = 48 * 1024;  // a block of a tile's rows should fit the first cache

// What the forms of a part cost, in times of an element that is stored alone: measured by benchmarks/blocks.py.
struct Costs {
    float column;   // an input of four outputs
    float aligned;  // kGroup neighboring inputs of four outputs
    float group;    // to interleave kGroup inputs once for all outputs
    float four;     // to begin and end four outputs' sums together rather than one by one
    float again;    // the same if they also have elements alone, for which the sums are stored and loaded once more
};

// For activations without a scale: leaves sums as they are.
template <int B>
struct NoScale {
    NoScale(const Tile &, int) {}
    Floats<B> apply(Floats<B> sum, float, float) const { return sum; }
};

struct Float32 {
    static constexpr fp_dtype kDtype = FP_FLOAT32;
    static constexpr int kTile = kBytes == 16 ? 16 : 32;
    static constexpr int kNarrowest = kLanes;
    static constexpr int kRow = 4 * kTile, kPartial = kRow, kStep = 2, kWords = 2;
    static constexpr int64_t kBlock = kCache / kRow;
    static constexpr int kGroup = 1;  // inputs in a 32-bit word of the dense product
    // From this density of a row on the dense product is faster: BERT-base shape, 1 x 128 tokens, AVX-512.
    static constexpr float kDense = 0.5f;
    static constexpr Costs kCosts = {2.0f, 2.0f, 0, 3, 15};
    typedef FloatDot Dot;
    template <int Width>
    static constexpr int kVector = kBytes;  // bytes of the vectors that rows are handed on in

    static void encode(const float *values, float, std::vector<uint32_t> &out) {
        for (int i = 0; i < kStep; i++) {
            uint32_t word;
            std::memcpy(&word, &values[i], 4);
            out.push_back(word);
        }
    }
    static uint32_t group(const float *values, float) {
        uint32_t word;
        std::memcpy(&word, values, 4);
        return word;
    }

    template <int Width>
    struct Sums {
        static constexpr int kVectors = Width / kLanes;
        Floats<> a[kVectors], b[kVectors];  // of even and odd elements: two sums hide the latency of one
        void clear() {
            for (int j = 0; j < kVectors; j++) a[j] = b[j] = Floats<>{};
        }
        void load(const char *at) {
            for (int j = 0; j < kVectors; j++) a[j] = fp::load<Floats<>>(at + j * kBytes), b[j] = Floats<>{};
        }
        void store(char *at) const {
            for (int j = 0; j < kVectors; j++) fp::store<kBytes>(at + j * kBytes, a[j] + b[j]);
        }
        void step(const char *x, const uint16_t *offset, const uint32_t *weight) {
            float w[2];
            std::memcpy(w, weight, 8);
            const char *p = x + size_t(offset[0]) * 8, *q = x + size_t(offset[1]) * 8;
#pragma GCC unroll 8
            for (int j = 0; j < kVectors; j++) {
                a[j] += fp::load<Floats<>>(p + j * kBytes) * w[0];
                b[j] += fp::load<Floats<>>(q + j * kBytes) * w[1];
            }
        }
        Floats<> sum(int j) const { return a[j] + b[j]; }
    };
    template <int Width, bool>
    struct Shared {
        static constexpr int B = kBytes, kVectors = Width / kLanes, kOffsets = 1;
        typedef Floats<> Sum;
        static void words(const char *x, const uint16_t *offset, Words<> *out) {
            const char *p = x + size_t(*offset) * kOffsetUnit;
#pragma GCC unroll 8
            for (int j = 0; j < kVectors; j++) out[j] = fp::load<Words<>>(p + j * kBytes);
        }
        static Sum dot(Sum sum, Words<> x, uint32_t w) { return FloatDot::dot(sum, x, w); }
    };
    template <int B>
    using Scale = NoScale<B>;
};

struct BFloat16 {
    static constexpr fp_dtype kDtype = FP_BFLOAT16;
    static constexpr int kTile = kBytes / 2;
    static constexpr int kNarrowest = 8;
    static constexpr int kRow = kBytes, kPartial = 4 * kTile, kStep = 4, kWords = 2;
    static constexpr int64_t kBlock = kCache / kRow;
    static constexpr int kGroup = 2;
    static constexpr float kDense = kHasTiles ? 0.09f : 0.42f;
    static constexpr Costs kCosts = {1.7f, 2.7f, 3, 15, 40};
    typedef Bf16Dot Dot;
    template <int Width>
    static constexpr int kVector = 2 * Width;

    static uint32_t bits(float x) {
        uint32_t u;
        std::memcpy(&u, &x, 4);
        return (u + 0x7fff + ((u >> 16) & 1)) >> 16;  // to nearest, halves to even
    }
    static uint32_t group(const float *values, float) { return bits(values[0]) | bits(values[1]) << 16; }
    static void encode(const float *values, float scale, std::vector<uint32_t> &out) {
        for (int i = 0; i < kStep; i += 2) out.push_back(group(values + i, scale));
    }

    template <int Width>
    struct Sums {
        static constexpr int B = kVector<Width>, kVectors = 2;
        Floats<B> a[2], b[2];  // of the first and second pair of a step: two sums hide the latency of one
        void clear() { a[0] = a[1] = b[0] = b[1] = Floats<B>{}; }
        void load(const char *at) {
            for (int j = 0; j < 2; j++) a[j] = fp::load<Floats<B>>(at + j * B), b[j] = Floats<B>{};
        }
        void store(char *at) const {
            for (int j = 0; j < 2; j++) fp::store<B>(at + j * B, a[j] + b[j]);
        }
        void step(const char *x, const uint16_t *offset, const uint32_t *weight) {
            pair(x, offset, weight[0], a);
            pair(x, offset + 2, weight[1], b);
        }
        static void pair(const char *x, const uint16_t *offset, uint32_t weight, Floats<B> *sum) {
            const Words<B> p = fp::load<Words<B>>(x + size_t(offset[0]) * 8);
            const Words<B> q = fp::load<Words<B>>(x + size_t(offset[1]) * 8);
            const Words<B> w = splat_word<B>(weight);
            sum[0] = dot2<B>(sum[0], low16<B>(p, q), w);
            sum[1] = dot2<B>(sum[1], high16<B>(p, q), w);
        }
        Floats<B> sum(int j) const { return a[j] + b[j]; }
    };
    template <int Width, bool Aligned>
    struct Shared {
        static constexpr int B = kVector<Width>, kVectors = 2, kOffsets = Aligned ? 1 : kGroup;
        typedef Floats<B> Sum;
        static void words(const char *x, const uint16_t *offset, Words<B> *out) {
            const char *at = x + size_t(offset[0]) * (Aligned ? kOffsetUnit * Width / kTile : kOffsetUnit);
            if constexpr (Aligned) {
                for (int j = 0; j < 2; j++) out[j] = fp::load<Words<B>>(at + j * B);
            } else {
                const Words<B> p = fp::load<Words<B>>(at);
                const Words<B> q = fp::load<Words<B>>(x + size_t(offset[1]) * kOffsetUnit);
                out[0] = low16<B>(p, q);
                out[1] = high16<B>(p, q);
            }
        }
        static Sum dot(Sum sum, Words<B> x, uint32_t w) { return dot2<B>(sum, x, splat_word<B>(w)); }
    };
    template <int B>
    using Scale = NoScale<B>;
};

// Weights: whole levels from -kMostLevel to kMostLevel times a scale of the output. Activations: bytes from kLeastByte
// to kMostByte, (byte - zero) times a scale of the token, both found from its smallest and largest value ("dynamic",
// asymmetric).
struct Int8 {
    static constexpr fp_dtype kDtype = FP_INT8;
    static constexpr int kTile = kBytes;
    static constexpr int kNarrowest = 16;
    static constexpr int kRow = kBytes, kPartial = 4 * kTile, kStep = 4, kWords = 1;
    static constexpr int64_t kBlock = kCache / kRow;
    static constexpr int kGroup = 4;
    static constexpr float kDense = kHasTiles ? 0.1f : 0.5f;
    // Without dot4 a product takes three instructions, or far longer than the loads that are saved.
    static constexpr Costs kCosts = kHasDot4     ? Costs{1.6f, 4.4f, 5, 27, 62}
                                    : kAddsPairs ? Costs{2.3f, 7.2f, 5, 50, 90}
                                                 : Costs{3.4f, 12.4f, 5, 27, 62};
    typedef Int8Dot Dot;
    template <int Width>
    static constexpr int kVector = Width;

    static int level(float value, float scale) {
        const int level = scale > 0 ? int(std::lrint(value / scale)) : 0;
        return std::min(kMostLevel, std::max(-kMostLevel, level));  // half a level more, or subnormal scales
    }
    static uint32_t group(const float *values, float scale) {
        uint32_t word = 0;
        for (int i = 0; i < 4; i++) word |= uint32_t(level(values[i], scale) & 255) << 8 * i;
        return word;
    }
    static void encode(const float *values, float scale, std::vector<uint32_t> &out) {
        out.push_back(group(values, scale));
    }

    template <int Width>
    struct Sums {
        static constexpr int B = kVector<Width>, kVectors = 4;
        Ints<B> a[4];
        void clear() {
            for (int j = 0; j < 4; j++) a[j] = Ints<B>{};
        }
        void load(const char *at) {
            for (int j = 0; j < 4; j++) a[j] = fp::load<Ints<B>>(at + j * B);
        }
        void store(char *at) const {
            for (int j = 0; j < 4; j++) put(at + j * B, a[j]);
        }
        void step(const char *x, const uint16_t *offset, const uint32_t *weight) {
            Words<B> row[4], x4[4];
            for (int j = 0; j < 4; j++) row[j] = fp::load<Words<B>>(x + size_t(offset[j]) * 8);
            interleave4<B>(row, x4);
            const Words<B> w = splat_word<B>(*weight);
            for (int j = 0; j < 4; j++) a[j] = dot4<B>(a[j], x4[j], w);
        }
        Ints<B> sum(int j) const { return a[j]; }
    };
    template <int Width, bool Aligned>
    struct Shared {
        static constexpr int B = kVector<Width>, kVectors = 4, kOffsets = Aligned ? 1 : kGroup;
        typedef Ints<B> Sum;
        static void words(const char *x, const uint16_t *offset, Words<B> *out) {
            if constexpr (Aligned) {
                const char *at = x + size_t(*offset) * (kOffsetUnit * Width / kTile);
                for (int j = 0; j < 4; j++) out[j] = fp::load<Words<B>>(at + j * B);
            } else {
                Words<B> row[4];
                for (int j = 0; j < 4; j++) row[j] = fp::load<Words<B>>(x + size_t(offset[j]) * kOffsetUnit);
                interleave4<B>(row, out);
            }
        }
        static Sum dot(Sum sum, Words<B> x, uint32_t w) { return dot4<B>(sum, x, splat_word<B>(w)); }
    };
    template <int B>
    struct Scale {
        Floats<B> scale, zero;
        Scale(const Tile &tile, int token)
            : scale(fp::load<Floats<B>>(tile.scale.at(token, B / 4))),
              zero(fp::load<Floats<B>>(tile.zero.at(token, B / 4))) {}
        // `total` is the sum of the row's levels: every one of them was multiplied by byte, not by (byte - zero).
        Floats<B> apply(Ints<B> sum, float row, float total) const {
            return (__builtin_convertvector(sum, Floats<B>) - zero * total) * scale * row;
        }
    };
};

// Calls f with the narrowest width that holds a number of a tile's tokens, as a compile-time number.
template <class Kernel, class F>
inline void with_width(int64_t tokens, F &&f) {
    FP_CHECK(tokens >= 1 && tokens <= Kernel::kTile);
    if constexpr (Kernel::kTile / 4 >= Kernel::kNarrowest)
        if (tokens <= Kernel::kTile / 4) return f(std::integral_constant<int, Kernel::kTile / 4>());
    if constexpr (Kernel::kTile / 2 >= Kernel::kNarrowest)
        if (tokens <= Kernel::kTile / 2) return f(std::integral_constant<int, Kernel::kTile / 2>());
    f(std::integral_constant<int, Kernel::kTile>());
}

}  // namespace fp
