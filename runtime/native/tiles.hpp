// The dense product of dense.hpp by the processor's tile registers (AMX). A tile has 16 rows of 16 words; one instruction
// multiplies two and adds 16 x 16 sums to a third, of as many products as sixteen instructions of a vector.
//
// A tile of the left matrix has 16 outputs and 16 groups of inputs, and lies in one piece; one of the right has 16 groups
// of 16 tokens. Groups behind the last one are zeros on both sides.
#pragma once
#include <algorithm>

#include "dense.hpp"

namespace fp {

constexpr int kSide = 16;  // rows of a tile, and words in each

// FP_EMULATE_TILES (sanitizer build of level avx512): the same order of memory, multiplied by vectors.
#if defined(__AMX_INT8__) || defined(FP_EMULATE_TILES)
constexpr bool kHasTiles = true;
static_assert(kLanes == kSide);
#else
constexpr bool kHasTiles = false;
#endif

inline int64_t whole_tiles(int64_t count) { return (count + kSide - 1) / kSide * kSide; }

// Where the word of a row and a group lies in a left matrix of so many groups.
inline size_t word_in_tiles(int64_t row, int64_t group, int64_t groups) {
    const int64_t tile = row / kSide * (whole_tiles(groups) / kSide) + group / kSide;
    return size_t((tile * kSide + row % kSide) * kSide + group % kSide);
}

#if defined(__AMX_INT8__)

// Gives the thread eight whole tiles while it lives. Others that use tiles set them up anew, as oneDNN and ONNX Runtime do.
class TilesInUse {
    struct alignas(64) Setup {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };

  public:
    TilesInUse() {
        static constexpr Setup setup;
        _tile_loadconfig(&setup);
    }
    TilesInUse(const TilesInUse &) = delete;
    ~TilesInUse() { _tile_release(); }
};

// The instructions take numbers of registers in their names, so these are macros.
#define FP_DOT(SUM, LEFT, RIGHT) \
    if constexpr (Dot::kNumbers == 4) _tile_dpbsud(SUM, LEFT, RIGHT); \
    else _tile_dpbf16ps(SUM, LEFT, RIGHT)

// Sums of R x C tiles, 2 x 2, 1 x 2, 4 x 1 or 1 x 1. `left`: R rows of tiles, each of `steps` one after the other; `right`:
// lines of C tiles' words; `sums`: lines of C tiles' sums, `line` bytes apart.
template <class Dot, int R, int C>
inline void tile_block(const uint32_t *left, const char *right, size_t stride, int64_t steps, char *sums, size_t line) {
    static_assert(C == 1 ? R == 1 || R == 4 : R <= 2);
    constexpr int kTileWords = kSide * kSide;
    const int64_t row = steps * kTileWords;
    asm volatile("" ::: "memory");  // gcc's tile loads do not say that they read memory
    _tile_zero(0);
    if constexpr (C == 2) {
        _tile_zero(1);
        if constexpr (R == 2) {
            _tile_zero(2);
            _tile_zero(3);
        }
        for (int64_t s = 0; s < steps; s++, left += kTileWords, right += kSide * stride) {
            _tile_loadd(6, right, stride);
            _tile_loadd(7, right + 64, stride);
            _tile_loadd(4, left, 64);
            FP_DOT(0, 4, 6);
            FP_DOT(1, 4, 7);
            if constexpr (R == 2) {
                _tile_loadd(5, left + row, 64);
                FP_DOT(2, 5, 6);
                FP_DOT(3, 5, 7);
            }
        }
        _tile_stored(0, sums, line);
        _tile_stored(1, sums + 64, line);
        if constexpr (R == 2) {
            _tile_stored(2, sums + kSide * line, line);
            _tile_stored(3, sums + kSide * line + 64, line);
        }
    } else {
        if constexpr (R == 4) {
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
        }
        for (int64_t s = 0; s < steps; s++, left += kTileWords, right += kSide * stride) {
            _tile_loadd(4, right, stride);
            _tile_loadd(5, left, 64);
            FP_DOT(0, 5, 4);
            if constexpr (R == 4) {
                _tile_loadd(6, left + row, 64);
                FP_DOT(1, 6, 4);
                _tile_loadd(7, left + 2 * row, 64);
                FP_DOT(2, 7, 4);
                _tile_loadd(5, left + 3 * row, 64);
                FP_DOT(3, 5, 4);
            }
        }
        _tile_stored(0, sums, line);
        if constexpr (R == 4) {
            _tile_stored(1, sums + kSide * line, line);
            _tile_stored(2, sums + 2 * kSide * line, line);
            _tile_stored(3, sums + 3 * kSide * line, line);
        }
    }
}
#undef FP_DOT

#else

struct TilesInUse {
    TilesInUse() {}  // not trivial, so that a variable that is only there is no warning
};

template <class Dot, int R, int C>
void tile_block(const uint32_t *left, const char *right, size_t stride, int64_t steps, char *sums, size_t line) {
    for (int64_t m = 0; m < R * kSide; m++)
        for (int n = 0; n < C; n++) {
            typename Dot::Sum sum{};
            for (int64_t g = 0; g < steps * kSide; g++)
                sum = Dot::dot(sum, load<Words<> >(right + g * stride + n * kBytes),
                               left[word_in_tiles(m, g, steps * kSide)]);
            put(sums + m * line + n * kBytes, sum);
        }
}

#endif

// As product() of dense.hpp, in which `left` has tiles of `rows` and `groups`, both filled up to whole ones, as have the
// groups of `b`.
template <class Dot, int N, class Out>
void tile_product(Span<const uint32_t> left, int64_t rows, const Right &b, int64_t groups, Out &&out) {
    constexpr int kColumns = std::min(N, 2), kAtOnce = N == 1 ? 4 : 2;  // tiles
    static_assert(N == 1 || N % 2 == 0);
    constexpr size_t kLine = N * 64;
    const int64_t steps = whole_tiles(groups) / kSide, tiles = whole_tiles(rows) / kSide;
    FP_CHECK(left.size() >= size_t(tiles * steps * kSide * kSide));
    FP_CHECK(groups == 0 || b.words.size() >= (steps * kSide - 1) * b.stride + kLine);
    alignas(kAlign) char sums[kAtOnce * kSide * kLine];
    const TilesInUse in_use;
    for (int64_t t = 0; t < tiles;) {
        const int64_t at_once = t + kAtOnce <= tiles ? kAtOnce : 1;
        const uint32_t *from = left.at(t * steps * kSide * kSide, at_once * steps * kSide * kSide);
        for (int n = 0; n < N; n += kColumns) {
            const char *right = b.words.data() + n * 64;
            if (at_once > 1) tile_block<Dot, kAtOnce, kColumns>(from, right, b.stride, steps, sums + n * 64, kLine);
            else tile_block<Dot, 1, kColumns>(from, right, b.stride, steps, sums + n * 64, kLine);
        }
        const int64_t first = t * kSide, count = std::min(rows - first, at_once * kSide);
        for (int64_t m = 0; m < count; m++) {
            typename Dot::Sum row[N];
            for (int n = 0; n < N; n++) row[n] = load<typename Dot::Sum>(sums + m * kLine + n * 64);
            out(first + m, row);
        }
        t += at_once;
    }
}

}  // namespace fp
