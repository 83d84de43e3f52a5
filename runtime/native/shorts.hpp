// Floats as 16-bit integers that share a scale. Two products of these are one instruction of x86, where a float takes one
// for each.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>

#include "vec.hpp"

namespace fp {

// The largest magnitude of some floats; NaN or infinity if they have one.
class Magnitude {
  public:
    void take(const char *at, int64_t count) {
        int64_t i = 0;
        for (; i + kLanes <= count; i += kLanes)
            most_ = later_signed<kBytes>(most_, absolute(load<Words<>>(at + 4 * i)));
        for (; i < count; i++) {
            uint32_t bits;
            std::memcpy(&bits, at + 4 * i, 4);
            most_[0] = later_signed<kBytes>(most_, absolute(splat_word<kBytes>(bits)))[0];
        }
    }
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

}  // namespace fp
