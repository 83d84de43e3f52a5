// Vectors of this instruction level, in GCC's and clang's vector extensions; intrinsics only where those
// have no word for an instruction. Everything else is written over Floats<B>, B bytes wide.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace fp {

#if defined(__AVX512BW__) && defined(__AVX512VL__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int kLanes = kBytes / 4;  // floats in a full vector
constexpr int kAlign = 64;

// FP_EMULATE_BF16 (sanitizer build): the bfloat16 kernels run on every processor, on dot2 without its instruction.
#if defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC) || defined(FP_EMULATE_BF16)
constexpr bool kHasBf16 = true;
#else
constexpr bool kHasBf16 = false;
#endif

// Whether dot4 is one instruction.
#if defined(__AVX512VNNI__) || defined(__ARM_FEATURE_DOTPROD)
constexpr bool kHasDot4 = true;
#else
constexpr bool kHasDot4 = false;
#endif

// Whether x86 adds two products of 16-bit integers in one instruction. Every level of it does.
#if defined(__x86_64__)
constexpr bool kAddsShorts = true;
#else
constexpr bool kAddsShorts = false;
#endif

// Without VNNI, x86 multiplies bytes and adds two of the products in 16 bits.
#if defined(__x86_64__) && !defined(__AVX512VNNI__)
constexpr bool kAddsPairs = true;
#else
constexpr bool kAddsPairs = false;
#endif
constexpr int kMostLevel = kAddsPairs ? 64 : 127;  // of an int8 weight: 2 x 255 x 64 is 32,640, which 16 bits hold

// Arm without I8MM multiplies signed bytes alone: there an int8 activation is a signed one, and its zero point is as
// much lower.
#if defined(__ARM_FEATURE_DOTPROD) && !defined(__ARM_FEATURE_MATMUL_INT8)
constexpr int kLeastByte = -128;
#else
constexpr int kLeastByte = 0;
#endif
constexpr int kMostByte = kLeastByte + 255;

template <class E, int B>
struct VecOf {
    typedef E type __attribute__((vector_size(B)));
    // For loads and stores at any address, of any type of memory. (A memcpy into an array of vectors made
    // gcc 12 emit code 20 times slower.)
    typedef E loose __attribute__((vector_size(B), aligned(1), may_alias));
};
template <int B = kBytes>
using Floats = typename VecOf<float, B>::type;
template <int B = kBytes>
using Ints = typename VecOf<int32_t, B>::type;
template <int B = kBytes>
using Words = typename VecOf<uint32_t, B>::type;

template <class V>
inline V load(const void *at);
#define FP_LOADS(E, B) \
    template <> \
    inline VecOf<E, B>::type load<VecOf<E, B>::type>(const void *at) { \
        return (VecOf<E, B>::type) * (const VecOf<E, B>::loose *)at; \
    }
#define FP_LOAD_TYPES(B) FP_LOADS(float, B) FP_LOADS(int32_t, B) FP_LOADS(uint32_t, B) FP_LOADS(uint8_t, B)
FP_LOAD_TYPES(16)
#if defined(__AVX2__)
FP_LOAD_TYPES(32)
#endif
#if defined(__AVX512BW__)
FP_LOAD_TYPES(64)
#endif
#undef FP_LOADS
#undef FP_LOAD_TYPES

template <class E, int B>
inline void store_as(void *at, typename VecOf<E, B>::type v) {
    *(typename VecOf<E, B>::loose *)at = v;
}
template <int B>
inline void store(void *at, Floats<B> v) {
    store_as<float, B>(at, v);
}
template <class V>
inline void put(void *at, V v) {
    store_as<uint8_t, sizeof(V)>(at, (typename VecOf<uint8_t, sizeof(V)>::type)v);
}

template <int B>
inline Floats<B> splat(float x) {
    return x - Floats<B>{};
}  // x - 0 is x, also for -0
template <int B>
inline Words<B> splat_word(uint32_t x) {
    return x - Words<B>{};
}

// The larger and the smaller one; b where either is NaN, as x86 does.
template <int B>
inline Floats<B> larger(Floats<B> a, Floats<B> b) {
#if defined(__AVX512F__)
    if constexpr (B == 64) return (Floats<B>)_mm512_max_ps((__m512)a, (__m512)b);
#endif
    return a > b ? a : b;
}
template <int B>
inline Floats<B> smaller(Floats<B> a, Floats<B> b) {
#if defined(__AVX512F__)
    if constexpr (B == 64) return (Floats<B>)_mm512_min_ps((__m512)a, (__m512)b);
#endif
    return a < b ? a : b;
}

// The later one in the order of the bits: as signed numbers, the larger of positive floats; as unsigned ones, the lower
// of negative floats. Infinity and NaN come after all others, so that they stay, which they do not in `larger`.
template <int B>
inline Floats<B> later_signed(Floats<B> a, Floats<B> b) {
#if defined(__AVX512F__)
    if constexpr (B == 64) return (Floats<B>)_mm512_max_epi32((__m512i)a, (__m512i)b);
#endif
    return (Floats<B>)((Ints<B>)a > (Ints<B>)b ? (Ints<B>)a : (Ints<B>)b);
}
template <int B>
inline Floats<B> later_unsigned(Floats<B> a, Floats<B> b) {
#if defined(__AVX512F__)
    if constexpr (B == 64) return (Floats<B>)_mm512_max_epu32((__m512i)a, (__m512i)b);
#endif
    return (Floats<B>)((Words<B>)a > (Words<B>)b ? (Words<B>)a : (Words<B>)b);
}

// To the nearest whole number, for |x| < 2^22: adding 1.5 x 2^23 leaves no bits for a fraction.
template <int B>
inline Floats<B> nearest(Floats<B> x) {
    const Floats<B> magic = splat<B>(12582912.0f);
    return (x + magic) - magic;
}

// e^x to 2 ulp; below -87 it stays there, above 88 too, and NaN stays NaN. Cephes' polynomial (Moshier 1992).
template <int B>
inline Floats<B> exponential(Floats<B> x) {
    x = smaller<B>(splat<B>(88.0f), larger<B>(splat<B>(-87.0f), x));
    const Floats<B> n = nearest<B>(x * 1.44269504f);
    Floats<B> r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    Floats<B> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = (p * r) * r + (r + 1.0f);
    const Ints<B> power = (__builtin_convertvector(n, Ints<B>) + 127) << 23;
    return p * (Floats<B>)power;
}

// 2^x for x up to 0; below -126 it stays there, and NaN stays NaN. To 3e-7, or Rough to 8e-5, as bfloat16 needs it.
template <int B, bool Rough>
inline Floats<B> power_of_two(Floats<B> x) {
    // As in `nearest`; the lowest bits of the sum are then the exponent with its bias.
    const Floats<B> magic = splat<B>(12582912.0f + 127.0f);
    x = larger<B>(splat<B>(-126.0f), x);
    const Floats<B> whole = x + magic;
    const Floats<B> r = x - (whole - magic);
    Floats<B> p;
    if constexpr (Rough) {  // least errors on -1/2 to 1/2
        p = r * 0.0551716243f + 0.242611119f;
        p = p * r + 0.693260994f;
        p = p * r + 0.999928074f;
    } else {
        p = r * 0.00132764669f + 0.00967554129f;
        p = p * r + 0.0555071329f;
        p = p * r + 0.240221197f;
        p = p * r + 0.693146967f;
        p = p * r + 1.00000007f;
    }
    return p * (Floats<B>)((Words<B>)whole << 23);
}

// -- 16- and 8-bit rows --------------------------------------------------------------------------
//
// A row of a bfloat16 or int8 tile is stored in "packed order": the order in which narrowing packs whole
// vectors, which interleaving undoes. pack16(a, b) and pack8(a, b, c, d) write it, and after
// interleaving two (four) such rows the 32-bit lanes hold tokens in natural order, with no permutation.

#if defined(__x86_64__)
#define FP_TWO(NAME, OP) \
    template <int B> \
    inline Words<B> NAME(Words<B> a, Words<B> b); \
    template <> \
    inline Words<16> NAME<16>(Words<16> a, Words<16> b) { \
        return (Words<16>)_mm_##OP((__m128i)a, (__m128i)b); \
    } \
    FP_TWO32(NAME, OP) FP_TWO64(NAME, OP)
#if defined(__AVX2__)
#define FP_TWO32(NAME, OP) \
    template <> \
    inline Words<32> NAME<32>(Words<32> a, Words<32> b) { \
        return (Words<32>)_mm256_##OP((__m256i)a, (__m256i)b); \
    }
#else
#define FP_TWO32(NAME, OP)
#endif
#if defined(__AVX512BW__)
#define FP_TWO64(NAME, OP) \
    template <> \
    inline Words<64> NAME<64>(Words<64> a, Words<64> b) { \
        return (Words<64>)_mm512_##OP((__m512i)a, (__m512i)b); \
    }
#else
#define FP_TWO64(NAME, OP)
#endif
FP_TWO(low16, unpacklo_epi16)
FP_TWO(high16, unpackhi_epi16)
FP_TWO(low8, unpacklo_epi8)
FP_TWO(high8, unpackhi_epi8)
FP_TWO(narrow32, packus_epi32)    // two vectors of 32 bits, each at most 65,535, to one of 16
FP_TWO(narrow16, packus_epi16)    // two vectors of 16 bits, each at most 255, to one of 8
FP_TWO(dot_bytes, maddubs_epi16)  // unsigned bytes times signed ones, two products added in 16 bits
FP_TWO(dot_shorts, madd_epi16)    // the same of signed 16 bits, in 32
#undef FP_TWO
#undef FP_TWO32
#undef FP_TWO64
#else  // one 128-bit lane: packed order is natural order
typedef VecOf<uint16_t, 16>::type Shorts;
typedef VecOf<uint8_t, 16>::type Octets;
template <int B>
inline Words<B> low16(Words<B> a, Words<B> b) {
    return (Words<B>)__builtin_shufflevector((Shorts)a, (Shorts)b, 0, 8, 1, 9, 2, 10, 3, 11);
}
template <int B>
inline Words<B> high16(Words<B> a, Words<B> b) {
    return (Words<B>)__builtin_shufflevector((Shorts)a, (Shorts)b, 4, 12, 5, 13, 6, 14, 7, 15);
}
template <int B>
inline Words<B> low8(Words<B> a, Words<B> b) {
    return (Words<B>)__builtin_shufflevector((Octets)a, (Octets)b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7,
                                             23);
}
template <int B>
inline Words<B> high8(Words<B> a, Words<B> b) {
    return (Words<B>)__builtin_shufflevector((Octets)a, (Octets)b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30,
                                             15, 31);
}
template <int B>
inline Words<B> narrow32(Words<B> a, Words<B> b) {
    return (Words<B>)__builtin_shufflevector((Shorts)a, (Shorts)b, 0, 2, 4, 6, 8, 10, 12, 14);
}
template <int B>
inline Words<B> narrow16(Words<B> a, Words<B> b) {
    return (Words<B>)__builtin_shufflevector((Octets)a, (Octets)b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26,
                                             28, 30);
}
#endif

// The upper half of each float, rounded to nearest (halves away from zero), as the lower half of a word.
template <int B>
inline Words<B> bf16_bits(Floats<B> x) {
    return ((Words<B>)x + 0x8000u) >> 16;
}
template <int B>
inline Words<B> pack16(Floats<B> a, Floats<B> b) {
    return narrow32<B>(bf16_bits<B>(a), bf16_bits<B>(b));
}
// Back to floats: bfloat16 is the upper half of one.
template <int B>
inline void unpack16(Words<B> row, Floats<B> &a, Floats<B> &b) {
    a = (Floats<B>)low16<B>(Words<B>{}, row);
    b = (Floats<B>)high16<B>(Words<B>{}, row);
}
// Two rows' values of a token side by side in one word, the first in its lower half.
template <int B>
inline Words<B> pair(Floats<B> first, Floats<B> second) {
    return bf16_bits<B>(first) | (((Words<B>)second + 0x8000u) & 0xffff0000u);
}

// Four vectors of whole numbers from kLeastByte to kMostByte, to bytes in packed order.
template <int B>
inline Words<B> pack8(const Floats<B> *x) {
    Words<B> w[4];
    for (int i = 0; i < 4; i++) w[i] = (Words<B>)__builtin_convertvector(x[i], Ints<B>);
    return narrow16<B>(narrow32<B>(w[0], w[1]), narrow32<B>(w[2], w[3]));
}
// Four rows of bytes to four vectors whose words hold the four rows' values of a token.
template <int B>
inline void interleave4(const Words<B> *row, Words<B> *out) {
    const Words<B> a = low8<B>(row[0], row[1]), b = high8<B>(row[0], row[1]);
    const Words<B> c = low8<B>(row[2], row[3]), d = high8<B>(row[2], row[3]);
    out[0] = low16<B>(a, c);
    out[1] = high16<B>(a, c);
    out[2] = low16<B>(b, d);
    out[3] = high16<B>(b, d);
}

// sum + x.lower * w.lower + x.upper * w.upper, of bfloat16.
template <int B>
inline Floats<B> dot2(Floats<B> sum, Words<B> x, Words<B> w) {
#if defined(__AVX512BF16__)
    if constexpr (B == 64) return (Floats<B>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)w);
    if constexpr (B == 32) return (Floats<B>)_mm256_dpbf16_ps((__m256)sum, (__m256bh)x, (__m256bh)w);
    if constexpr (B == 16) return (Floats<B>)_mm_dpbf16_ps((__m128)sum, (__m128bh)x, (__m128bh)w);
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
    if constexpr (B == 16) return (Floats<B>)vbfdotq_f32((float32x4_t)sum, (bfloat16x8_t)x, (bfloat16x8_t)w);
#endif
    sum += (Floats<B>)(x << 16) * (Floats<B>)(w << 16);
    return sum + (Floats<B>)(x & 0xffff0000u) * (Floats<B>)(w & 0xffff0000u);
}

#if defined(__x86_64__)
// sum + x.lower * w.lower + x.upper * w.upper, of signed 16-bit integers.
template <int B>
inline Ints<B> dot_pairs(Ints<B> sum, Words<B> x, Words<B> w) {
#if defined(__AVX512VNNI__)
    if constexpr (B == 64) return (Ints<B>)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)x, (__m512i)w);
#endif
    return sum + (Ints<B>)dot_shorts<B>(x, w);
}
#endif

// sum + the four products of bytes of x, signed ones if kLeastByte is, with signed bytes of w, none of which is beyond
// kMostLevel.
template <int B>
inline Ints<B> dot4(Ints<B> sum, Words<B> x, Words<B> w) {
#if defined(__AVX512VNNI__)
    if constexpr (B == 64) return (Ints<B>)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)w);
    if constexpr (B == 32) return (Ints<B>)_mm256_dpbusd_epi32((__m256i)sum, (__m256i)x, (__m256i)w);
    if constexpr (B == 16) return (Ints<B>)_mm_dpbusd_epi32((__m128i)sum, (__m128i)x, (__m128i)w);
#elif defined(__ARM_FEATURE_MATMUL_INT8)
    return (Ints<B>)vusdotq_s32((int32x4_t)sum, (uint8x16_t)x, (int8x16_t)w);
#elif defined(__ARM_FEATURE_DOTPROD)
    return (Ints<B>)vdotq_s32((int32x4_t)sum, (int8x16_t)x, (int8x16_t)w);
#elif defined(__x86_64__)
    return sum + (Ints<B>)dot_shorts<B>(dot_bytes<B>(x, w), splat_word<B>(0x00010001u));
#else
    const Ints<B> v = (Ints<B>)w;
    sum += (Ints<B>)(x & 255u) * ((v << 24) >> 24);
    sum += (Ints<B>)((x >> 8) & 255u) * ((v << 16) >> 24);
    sum += (Ints<B>)((x >> 16) & 255u) * ((v << 8) >> 24);
    return sum + (Ints<B>)(x >> 24) * (v >> 24);
#endif
}

}  // namespace fp
