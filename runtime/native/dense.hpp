// A small dense product, C = A B, for attention and for matrices too dense to be run sparse.
//
// Groups of the inner dimension are one 32-bit word: a float, two bfloat16 or int16, or four int8. A word of A is
// broadcast; B is [groups][columns]. A block of C's rows stays in registers over all groups.
#pragma once
#include <cstdint>

#include "buffer.hpp"

namespace fp {

// How the words of a group are multiplied, and what the sums are.
struct FloatDot {
    static constexpr int kNumbers = 1;  // in a word
    typedef Floats<> Sum;
    static Sum dot(Sum sum, Words<> b, uint32_t a) {
        float x;
        std::memcpy(&x, &a, 4);
        return sum + (Floats<>)b * x;
    }
};
struct Bf16Dot {
    static constexpr int kNumbers = 2;
    typedef Floats<> Sum;
    static Sum dot(Sum sum, Words<> b, uint32_t a) { return dot2<kBytes>(sum, b, splat_word<kBytes>(a)); }
};
#if defined(__x86_64__)
struct ShortDot {
    static constexpr int kNumbers = 2;
    typedef Ints<> Sum;
    static Sum dot(Sum sum, Words<> b, uint32_t a) { return dot_pairs<kBytes>(sum, b, splat_word<kBytes>(a)); }
};
#else
typedef FloatDot ShortDot;  // nobody takes it
#endif
struct Int8Dot {
    static constexpr int kNumbers = 4;
    typedef Ints<> Sum;
    static Sum dot(Sum sum, Words<> b, uint32_t a) { return dot4<kBytes>(sum, b, splat_word<kBytes>(a)); }
};

// A: the word of row m and group g begins at byte m * row + g * group.
struct Left {
    Span<const char> words;
    size_t row, group;
};
// B: group g begins at byte g * stride.
struct Right {
    Span<const char> words;
    size_t stride;
};

template <class Dot, int M, int N, class Out>
inline void product_block(const Left &a, const Right &b, int64_t groups, int64_t first, Out &out) {
    typename Dot::Sum sum[M][N];
#pragma GCC unroll 16
    for (int m = 0; m < M; m++)
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) sum[m][n] = typename Dot::Sum{};
    const char *at = a.words.data() + first * a.row, *words = b.words.data();
    const size_t row = a.row, group = a.group, stride = b.stride;
    for (int64_t g = 0; g < groups; g++, at += group, words += stride) {
        Words<> right[N];
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) right[n] = load<Words<>>(words + n * kBytes);
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) {
            uint32_t left;
            std::memcpy(&left, at + m * row, sizeof(left));
#pragma GCC unroll 8
            for (int n = 0; n < N; n++) sum[m][n] = Dot::dot(sum[m][n], right[n], left);
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) out(first + m, sum[m]);
}

// Rows that fill registers: with 32 of them 12 x 2 or 6 x 4 sums, with 16 of them 12 x 1, 6 x 2 or 2 x 4.
template <int N>
constexpr int kSums = kBytes == 64 ? 24
                      : N <= 2     ? 12
                                   : 8;
template <int N>
constexpr int kRowsOf = kSums<N> / N > 12 ? 12 : kSums<N> / N;

// `out(row, sums)` takes each row of the product, N vectors, in any order and perhaps twice.
template <class Dot, int N, class Out>
void product(const Left &a, int64_t rows, const Right &b, int64_t groups, Out &&out) {
    constexpr int M = kRowsOf<N>;
    static_assert(N >= 1 && N <= kMostVectors);
    FP_CHECK(rows >= 0 && groups >= 0);
    FP_CHECK(rows == 0 || groups == 0 || a.words.size() >= (rows - 1) * a.row + (groups - 1) * a.group + 4);
    FP_CHECK(rows == 0 || groups == 0 || b.words.size() >= (groups - 1) * b.stride + N * kBytes);
    int64_t m = 0;
    for (; m + M <= rows; m += M) product_block<Dot, M, N>(a, b, groups, m, out);
    if (m == rows) return;
    if (rows >= M) return product_block<Dot, M, N>(a, b, groups, rows - M, out);
    for (; m < rows; m++) product_block<Dot, 1, N>(a, b, groups, m, out);
}

}  // namespace fp
