// Floats as 16-bit integers that share a scale. Two products of these are one instruction of x86, where a float takes one
// for each.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>

#include "buffer.hpp"
#include "dense.hpp"
#include "vec.hpp"

namespace fp {

// The largest magnitude of some floats; NaN or infinity if they have one.
class Magnitude {
  public:
    void take(const char *at, int64_t count) {
        int64_t i = 0;
        for (; i + kLanes <= count; i += kLanes) take(load<Floats<>>(at + 4 * i));
        for (; i < count; i++) {
            uint32_t bits;
            std::memcpy(&bits, at + 4 * i, 4);
            most_[0] = later_signed<kBytes>(most_, absolute(splat_word<kBytes>(bits)))[0];
        }
    }
    void take(Floats<> x) { most_ = later_signed<kBytes>(most_, absolute((Words<>)x)); }
    Floats<> lanes() const { return most_; }
    float value() const {
        float most = 0;
        for (int i = 0; i < kLanes; i++)
            if (!(most_[i] <= most)) most = most_[i];
        return most;
    }

  private:
    static Floats<> absolute(Words<> bits) { return (Floats<>)(bits & 0x7fffffffu); }
    Floats<> most_{};
};

// Whole levels of a scale, at most `most` of them on either side of 0.
struct Levels {
    float scale = 0, inverse = 0;
    Levels() = default;
    Levels(float magnitude, int most) {
        if (magnitude < 1e-30f) return;  // its inverse may be infinite: all are level 0
        scale = magnitude / float(most);
        inverse = float(most) / magnitude;
    }
    Ints<> of(const char *at) const {
        return __builtin_convertvector(nearest<kBytes>(load<Floats<>>(at) * inverse), Ints<>);
    }
};

// How many levels two numbers may have, if `count` of their products are added in 32 bits.
inline int levels_of_products(int64_t count) {
    const int64_t most = std::numeric_limits<int32_t>::max() / std::max<int64_t>(count, 1);
    return int(std::min<int64_t>(int64_t(std::sqrt(double(most))), std::numeric_limits<int16_t>::max()));
}

// What attention copied of one head and text: rows of `line` bytes, whose tokens begin with number `at`.
struct HeadRows {
    Span<char> query, key, value;
    int64_t head_dim, line, at, tokens;
};

// Levels of two rows of `bytes` bytes side by side in words, the first in the lower half; `second` may be null. The words
// may overwrite the rows.
inline void pairs_of(const char *first, const char *second, Levels levels, int64_t bytes, char *to) {
    for (int64_t i = 0; i < bytes; i += kBytes) {
        const Words<> low = (Words<>)levels.of(first + i) & 0xffffu;
        put(to + i, second ? low | (Words<>)levels.of(second + i) << 16 : low);
    }
}

// Levels of a row one after another, which may overwrite it.
inline void shorts_of(const char *row, Levels levels, int64_t bytes, char *to) {
    typedef typename VecOf<int16_t, kBytes / 2>::type Half;
    for (int64_t i = 0; i < bytes; i += kBytes)
        store_as<int16_t, kBytes / 2>(to + i / 2, __builtin_convertvector(levels.of(row + i), Half));
}

// Floats of a head as 16-bit integers, with one scale for its queries, one for its keys, and one for each feature of its
// values.
class HeadShorts {
  public:
    typedef ShortDot Dot;
    // Levels of weights and values: the products of so many keys are added in 32 bits.
    static constexpr int64_t kMostKeys = 256;
    static constexpr int kWeightLevels = 32767, kValueLevels = 255;
    static_assert(kMostKeys * kWeightLevels * kValueLevels <= std::numeric_limits<int32_t>::max());

    void grow(int64_t, int64_t head_dim) { value_scale_.grow(head_dim); }

    // Writes words of two features over the rows of query and key, and values in natural order; returns false, and
    // leaves them, if a number of the text is not finite.
    bool convert(const HeadRows &h) {
        Magnitude query, key;
        bool finite = true;
        for (int64_t d = 0; d < h.head_dim; d++) {
            const int64_t first = d * h.line + h.at * 4;
            Magnitude value;
            query.take(h.query.at(first, h.tokens * 4), h.tokens);
            key.take(h.key.at(first, h.tokens * 4), h.tokens);
            value.take(h.value.at(first, h.tokens * 4), h.tokens);
            value_scale_[d] = value.value();
            finite = finite && std::isfinite(value_scale_[d]);
        }
        if (!finite || !std::isfinite(query.value()) || !std::isfinite(key.value())) return false;
        const int most = levels_of_products(h.head_dim);
        const Levels of_query(query.value(), most), of_key(key.value(), most);
        score_scale_ = of_query.scale * of_key.scale;
        for (auto [rows, levels] : {std::pair(h.query, of_query), std::pair(h.key, of_key)})
            for (int64_t d = 0; d < h.head_dim; d += 2)
                pairs_of(rows.at(d * h.line, h.line), d + 1 < h.head_dim ? rows.at((d + 1) * h.line, h.line) : nullptr,
                         levels, h.line, rows.at(d / 2 * h.line, h.line));
        for (int64_t d = 0; d < h.head_dim; d++) {
            const Levels of_value(value_scale_[d], kValueLevels);
            char *row = h.value.at(d * h.line, h.line);
            shorts_of(row, of_value, h.line, row);
            value_scale_[d] = of_value.scale / kWeightLevels;
        }
        return true;
    }

    Floats<> score(Ints<> sum, int64_t) const { return __builtin_convertvector(sum, Floats<>); }
    Floats<> query_scale(int64_t) const { return splat<kBytes>(score_scale_); }
    float value_scale(int64_t d) const { return value_scale_[d]; }

    // Two keys' weights as a word.
    static Words<> weights(const Floats<> *of, Floats<> &) {
        const auto level = [](Floats<> x) {  // nearest: conversion cuts off, and weights are not negative
            return (Words<>)__builtin_convertvector(x * float(kWeightLevels) + 0.5f, Ints<>);
        };
        return level(of[0]) | level(of[1]) << 16;
    }

  private:
    Buffer<float> value_scale_;
    float score_scale_ = 0;  // of levels of query and key
};

}  // namespace fp
