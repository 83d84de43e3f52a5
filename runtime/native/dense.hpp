// A small dense product, C = A B, for attention and for matrices too dense to be run sparse.
//
// Groups of the inner dimension are one 32-bit word: a float, two bfloat16, or four int8. A word of A is
// broadcast; B is [groups][columns]. A block of C's rows stays in registers over all groups.
#pragma once
#include <cstdint>

#include "vec.hpp"

namespace fp {

// How the words of a group are multiplied, and what the sums are.
struct FloatDot {
    typedef Floats<> Sum;
    static Sum dot(Sum sum, Words<> b, uint32_t a) {
        float x;
        std::memcpy(&x, &a, 4);
        return sum + (Floats<>)b * x;
    }
};
struct Bf16Dot {
    typedef Floats<> Sum;
    static Sum dot(Sum sum, Words<> b, uint32_t a) { return dot2<kBytes>(sum, b, splat_word<kBytes>(a)); }
};
struct Int8Dot {
    typedef Ints<> Sum;
    static Sum dot(Sum sum, Words<> b, uint32_t a) { return dot4<kBytes>(sum, b, splat_word<kBytes>(a)); }
};

// A's word of row m and group g is at a + m * row + g * group, in bytes; b's group g at b + g * stride.
struct Left {
    const char *at;
    size_t row, group;
};

template <class Dot, int M, int N, class Out>
inline void product_block(Left a, const char *b, size_t stride, int64_t groups, int64_t first, Out &out) {
    typename Dot::Sum sum[M][N];
#pragma GCC unroll 16
    for (int m = 0; m < M; m++)
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) sum[m][n] = typename Dot::Sum{};
    const char *at = a.at + first * a.row;
    for (int64_t g = 0; g < groups; g++, at += a.group, b += stride) {
        Words<> right[N];
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) right[n] = load<Words<>>(b + n * kBytes);
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) {
            uint32_t left;
            std::memcpy(&left, at + m * a.row, 4);
#pragma GCC unroll 8
            for (int n = 0; n < N; n++) sum[m][n] = Dot::dot(sum[m][n], right[n], left);
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) out(first + m, sum[m]);
}

// Rows that fill registers: with 32 of them 12 x 2 or 6 x 4 sums, with 16 of them half of that.
template <int N>
constexpr int kRowsOf = (kBytes == 64 ? 24 : 8) / N > 12 ? 12 : (kBytes == 64 ? 24 : 8) / N;

// `out(row, sums)` takes each row of the product, N vectors, in any order and perhaps twice.
template <class Dot, int N, class Out>
void product(Left a, int64_t rows, const char *b, size_t stride, int64_t groups, Out &&out) {
    constexpr int M = kRowsOf<N>;
    int64_t m = 0;
    for (; m + M <= rows; m += M) product_block<Dot, M, N>(a, b, stride, groups, m, out);
    if (m == rows) return;
    if (rows >= M) return product_block<Dot, M, N>(a, b, stride, groups, rows - M, out);
    for (; m < rows; m++) product_block<Dot, 1, N>(a, b, stride, groups, m, out);
}

}  // namespace fp
