// What one core can do: multiply-adds without dependencies, and loads from caches of several sizes.
// benchmarks/roofline.py compiles and runs this; it prints a line "NAME VALUE" for each, in 10^9 a second.

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr std::size_t kBytes = 64;
#define REGISTER "v"
#elif defined(__AVX__)
constexpr std::size_t kBytes = 32;
#define REGISTER "x"
#elif defined(__x86_64__)
constexpr std::size_t kBytes = 16;
#define REGISTER "x"
#else
constexpr std::size_t kBytes = 16;
#define REGISTER "w"
#endif

using Floats = float __attribute__((vector_size(kBytes)));
constexpr std::size_t kLanes = kBytes / sizeof(float);
// A latency of up to 6 cycles, and two units; without AVX-512 x86 has 16 registers for these and the factors.
constexpr int kChains = kBytes == 64 ? 16 : 12;
constexpr double kSeconds = 0.2;

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The most calls of `work` a second, over several stretches: other work on the machine only takes away.
template <class Work>
double most_a_second(Work work) {
    double best = 0;
    for (int attempt = 0; attempt < 7; ++attempt) {
        long calls = 0;
        const double begin = now();
        double end;
        do {
            work();
            ++calls;
            end = now();
        } while (end - begin < kSeconds / 7);
        const double rate = static_cast<double>(calls) / (end - begin);
        best = rate > best ? rate : best;
    }
    return best;
}

// `step(accumulator)` in independent chains. The empty asm keeps each in a register and the loop whole.
template <class Vector, class Step>
double chains(double operations, Step step) {
    constexpr int kTurns = 20000;
    const double rate = most_a_second([=] {
        Vector sums[kChains] = {};
        for (int turn = 0; turn < kTurns; ++turn) {
#pragma GCC unroll 16
            for (int chain = 0; chain < kChains; ++chain) {
                sums[chain] = step(sums[chain]);
                asm volatile("" : "+" REGISTER(sums[chain]));
            }
        }
    });
    return rate * kTurns * kChains * operations / 1e9;
}

double loads(std::size_t kilobytes) {
    const std::size_t count = kilobytes * 1024 / kBytes;
    auto *data = static_cast<Floats *>(std::aligned_alloc(kBytes, count * kBytes));
    std::memset(static_cast<void *>(data), 0, count * kBytes);
    const double rate = most_a_second([&] {
        for (std::size_t i = 0; i < count; i += 8) {
#pragma GCC unroll 8
            for (std::size_t j = 0; j < 8; ++j) {
                Floats loaded = data[i + j];
                asm volatile("" : : REGISTER(loaded));
            }
        }
    });
    std::free(data);
    return rate * static_cast<double>(count * kBytes) / 1e9;
}

int main() {
    Floats one = {}, half = {};
    for (std::size_t lane = 0; lane < kLanes; ++lane) one[lane] = 1.0F, half[lane] = 0.5F;
    asm volatile("" : "+" REGISTER(one), "+" REGISTER(half));
    std::printf("float32 %.2f\n", chains<Floats>(2.0 * kLanes, [=](Floats sum) { return sum * half + one; }));
#if defined(__AVX512BF16__)
    const __m512bh pairs = (__m512bh)_mm512_set1_epi16(0x3f80);
    const auto dot = [=](__m512 sum) { return _mm512_dpbf16_ps(sum, pairs, pairs); };
    std::printf("bfloat16 %.2f\n", chains<__m512>(64, dot));
#endif
#if defined(__AVX512VNNI__)
    const __m512i bytes = _mm512_set1_epi8(1);
    const auto dot8 = [=](__m512i sum) { return _mm512_dpbusd_epi32(sum, bytes, bytes); };
    std::printf("int8 %.2f\n", chains<__m512i>(128, dot8));
#endif
    for (std::size_t kilobytes : {16, 256, 8192}) std::printf("load%zu %.2f\n", kilobytes, loads(kilobytes));
}
