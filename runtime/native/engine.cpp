// The C interface over the kernels. This file is compiled once for each instruction level, into a library of its
// own, so that no code of a higher level can be reached on a processor without it.
#include "engine.h"

#include <chrono>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string_view>
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include "encoder.hpp"
#include "few_tokens.hpp"

namespace fp {
namespace {

int fail(const char *reason, char *message, size_t size) {
    std::snprintf(message, size, "%s", reason);
    return 1;
}

// Calls f. No exception may pass through the C interface: it becomes a message and the result 1.
template <class F>
int guarded(char *message, size_t size, F &&f) noexcept {
    try {
        f();
        return 0;
    } catch (const std::bad_alloc &) {
        return fail("not enough memory", message, size);
    } catch (const std::exception &error) {
        return fail(error.what(), message, size);
    } catch (...) {
        return fail("an unknown C++ exception", message, size);
    }
}

void check_between(const char *name, int64_t value, int64_t most) {
    if (value < 1 || value > most)
        throw Error(std::string(name) + " is " + std::to_string(value) + "; 1 to " + std::to_string(most) +
                    " can be run");
}

#if defined(__x86_64__)
// Whether the processor has tiles of bytes and of bfloat16, and the system lets this process use them.
bool may_use_tiles() {
#if defined(__linux__)
    constexpr unsigned kTile = 1u << 24, kBytesOf = 1u << 25, kBf16 = 1u << 22, kAll = kTile | kBytesOf | kBf16;
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kAll) != kAll) return false;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // of Linux's asm/prctl.h, since 5.16
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}
#endif

bool offers(int32_t dtype) { return dtype == FP_FLOAT32 || dtype == FP_INT8 || (dtype == FP_BFLOAT16 && kHasBf16); }

void check_settings(int32_t dtype, int32_t threads) {
    if (!offers(dtype)) throw Error("dtype " + std::to_string(dtype) + " is not offered by this library");
    if (threads < 1 || threads > FP_MOST_THREADS)
        throw Error("threads is " + std::to_string(threads) + "; 1 to " + std::to_string(FP_MOST_THREADS) +
                    " are allowed");
}

struct LinearBase {
    virtual ~LinearBase() = default;
    virtual void run(const float *x, int64_t tokens, float *out) = 0;
    virtual double time(int64_t repeats) = 0;
    virtual int64_t tile() const = 0;
    virtual size_t bytes() const = 0;
};

// A linear layer alone: tokens to tiles and back around it.
template <class Kernel>
class LinearAlone : public LinearBase {
    static constexpr int T = Kernel::kTile;

  public:
    LinearAlone(const fp_matrix &m, int32_t threads) : linear_(m, "weight"), pool_(threads), workers_(threads) {
        const bool is_small = linear_.rows() * linear_.columns() <= FewTokens::kMostElements;
        if (Kernel::kDtype == FP_FLOAT32 && linear_.is_dense() && is_small) few_ = FewTokens(Rows(m, "weight"));
    }
    size_t bytes() const override { return linear_.bytes() + few_.bytes(); }

    void run(const float *x, int64_t tokens, float *out) override {
        if (few_.takes(tokens)) {
            few_.run(x, tokens, out);
            for (int64_t i = 0; i < tokens; i++)
                if (!all_finite(x + i * linear_.columns(), linear_.columns())) make_nan(out + i * linear_.rows());
            return;
        }
        const std::lock_guard<CallLock> hold(lock_);
        const int threads = usable_threads(pool_.threads());
        const int64_t width = tile_width<Kernel>(tokens, threads), tiles = (tokens + width - 1) / width;
        grow();
        if (tokens <= 0) return;
        std::atomic<int64_t> next{0};
        pool_.run(int(std::min<int64_t>(threads, tiles)), [&](int worker) {
            for (int64_t t; (t = next.fetch_add(1)) < tiles;) {
                const int64_t first = t * width;
                one_tile(workers_[worker], x + first * linear_.columns(), int(std::min(width, tokens - first)),
                         out + first * linear_.rows());
            }
        });
    }

    int64_t tile() const override { return T; }

    double time(int64_t repeats) override {
        const std::lock_guard<CallLock> hold(lock_);
        grow();
        Worker &w = workers_[0];
        const Tile x = take<T>(w);
        const auto begin = std::chrono::steady_clock::now();
        for (int64_t i = 0; i < repeats; i++) kernel<T>(w, x);
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    }

  private:
    struct Worker {
        Buffer<float> x, y;
        Buffer<char> rows, partial, grouped;
        TokenScales<Kernel> scales;
    };

    void grow() {
        for (Worker &w : workers_) {
            w.x.grow(linear_.columns() * T);
            w.y.grow(linear_.rows() * T);
            w.rows.grow(linear_.columns() * Kernel::kRow);
            w.partial.grow(linear_.partial_bytes());
            w.grouped.grow(linear_.grouped_bytes());
        }
    }

    // The worker's floats as the kernel's rows.
    template <int W>
    Tile take(Worker &w) {
        if constexpr (Kernel::kDtype == FP_FLOAT32) {
            return {bytes_of(w.x.span()), {}, {}};
        } else {
            if constexpr (Kernel::kDtype == FP_INT8)
                find_range<Kernel, W>(w.x.span(), linear_.columns(), w.scales.range());
            const Tile tile = w.scales.tile(w.rows.span());
            take_floats<Kernel, W>(w.x.span(), linear_.columns(), tile, w.scales.range());
            return tile;
        }
    }

    template <int W>
    void kernel(Worker &w, const Tile &tile) {
        constexpr int B = Kernel::template kVector<W>;
        const Span<float> to = w.y.span();
        linear_.template run<W>(tile, w.partial.span(), w.grouped.span(), [&](uint32_t n, const auto *y) {
            float *row = to.at(size_t(n) * T, T);
            for (int j = 0; j < W * 4 / B; j++) store<B>(row + j * (B / 4), y[j]);
        });
    }

    void one_tile(Worker &w, const float *x, int tokens, float *out) {
        const float *from[T];
        float *to[T];
        bool finite[T];
        for (int i = 0; i < tokens; i++) {
            from[i] = x + i * linear_.columns(), to[i] = out + i * linear_.rows();
        }
        gather_tokens<Kernel>(from, tokens, linear_.columns(), w.x.span(), finite);
        with_width<Kernel>(tokens,
                           [&](auto width) { kernel<decltype(width)::value>(w, take<decltype(width)::value>(w)); });
        scatter_tokens<Kernel>(w.y.span(), tokens, linear_.rows(), to);
        for (int i = 0; i < tokens; i++)  // the products with zero that a sparse row leaves out would be NaN too
            if (!finite[i]) make_nan(to[i]);
    }

    void make_nan(float *out) const { std::fill_n(out, linear_.rows(), std::numeric_limits<float>::quiet_NaN()); }

    const Linear<Kernel> linear_;
    FewTokens few_;
    Pool pool_;
    std::vector<Worker> workers_;
    CallLock lock_;
};

// Base's template over the kernel of a dtype.
template <template <class> class Of, class Base, class... Arguments>
std::unique_ptr<Base> of_dtype(int32_t dtype, const Arguments &...arguments) {
    if (dtype == FP_INT8) return std::make_unique<Of<Int8>>(arguments...);
    if constexpr (kHasBf16)
        if (dtype == FP_BFLOAT16) return std::make_unique<Of<BFloat16>>(arguments...);
    return std::make_unique<Of<Float32>>(arguments...);
}

// The numbers of fp_constant().
struct Constant {
    const char *name;
    int64_t value;
};
#define FP_SIZE(STRUCT) {#STRUCT, sizeof(STRUCT)}
#define FP_FIELD(STRUCT, FIELD) {#STRUCT "." #FIELD, offsetof(STRUCT, FIELD)}
#define FP_NUMBER(NAME) {#NAME, NAME}
constexpr Constant kConstants[] = {
    FP_SIZE(fp_matrix),
    FP_FIELD(fp_matrix, rows),
    FP_FIELD(fp_matrix, columns),
    FP_FIELD(fp_matrix, kept),
    FP_FIELD(fp_matrix, positions),
    FP_FIELD(fp_matrix, values),
    FP_FIELD(fp_matrix, bias),
    FP_FIELD(fp_matrix, scales),
    FP_SIZE(fp_layer),
    FP_FIELD(fp_layer, qkv),
    FP_FIELD(fp_layer, attention_output),
    FP_FIELD(fp_layer, ffn_in),
    FP_FIELD(fp_layer, ffn_out),
    FP_FIELD(fp_layer, attention_norm_weight),
    FP_FIELD(fp_layer, attention_norm_bias),
    FP_FIELD(fp_layer, output_norm_weight),
    FP_FIELD(fp_layer, output_norm_bias),
    FP_FIELD(fp_layer, bias_rows),
    FP_FIELD(fp_layer, ffn_gate),
    FP_FIELD(fp_layer, rotary),
    FP_FIELD(fp_layer, window),
    FP_FIELD(fp_layer, position_keys),
    FP_FIELD(fp_layer, position_queries),
    FP_SIZE(fp_settings),
    FP_FIELD(fp_settings, hidden),
    FP_FIELD(fp_settings, head_dim),
    FP_FIELD(fp_settings, epsilon),
    FP_FIELD(fp_settings, activation),
    FP_FIELD(fp_settings, dtype),
    FP_FIELD(fp_settings, threads),
    FP_FIELD(fp_settings, pre_norm),
    FP_NUMBER(FP_MOST_ROWS),
    FP_NUMBER(FP_MOST_COLUMNS),
    FP_NUMBER(FP_MOST_THREADS),
    FP_NUMBER(FP_FLOAT32),
    FP_NUMBER(FP_BFLOAT16),
    FP_NUMBER(FP_INT8),
    FP_NUMBER(FP_GELU),
    FP_NUMBER(FP_GELU_TANH),
    FP_NUMBER(FP_RELU),
    {"FP_CHECKS", kChecks},
};
#undef FP_SIZE
#undef FP_FIELD
#undef FP_NUMBER

}  // namespace
}  // namespace fp

struct fp_encoder {
    std::unique_ptr<fp::EncoderBase> encoder;
};
struct fp_linear {
    std::unique_ptr<fp::LinearBase> linear;
};

extern "C" {

int32_t fp_version(void) { return FP_VERSION; }

int64_t fp_constant(const char *name) {
    FP_CHECK(name);
    for (const fp::Constant &constant : fp::kConstants)
        if (!std::strcmp(constant.name, name)) return constant.value;
    return -1;
}

int32_t fp_runs(const char *level) {
    const std::string_view name = level;
    if (name == "portable") return 1;  // this library is loaded
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl");
    const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
    if (name == "avx2") return avx2;
    if (name == "avx512") return avx512;
    if (name == "avx512_vnni") return vnni;
    const bool bf16 = vnni && __builtin_cpu_supports("avx512bf16");
    if (name == "avx512_bf16") return bf16;
    if (name == "amx") return bf16 && fp::may_use_tiles();
#elif defined(__aarch64__) && defined(__linux__)
    // Bits of Linux's asm/hwcap.h, which has names for the last two only since 5.7.
    constexpr unsigned long kDot = 1ul << 20, kI8mm = 1ul << 13, kBf16 = 1ul << 14;
    const unsigned long second = getauxval(AT_HWCAP2);
    const bool dot = getauxval(AT_HWCAP) & kDot;
    if (name == "neon_dot") return dot;
    if (name == "neon_i8mm") return dot && (second & kI8mm) && (second & kBf16);
#elif defined(__aarch64__) && defined(__APPLE__)
    const auto has = [](const char *feature) {
        int32_t value = 0;
        size_t size = sizeof(value);
        return sysctlbyname(feature, &value, &size, nullptr, 0) == 0 && value;
    };
    const bool dot = has("hw.optional.arm.FEAT_DotProd");
    if (name == "neon_dot") return dot;
    if (name == "neon_i8mm") return dot && has("hw.optional.arm.FEAT_I8MM") && has("hw.optional.arm.FEAT_BF16");
#endif
    return 0;
}

int32_t fp_offers(int32_t dtype) { return fp::offers(dtype); }

int fp_encoder_new(const fp_settings *settings, fp_encoder **out, char *message, size_t size) {
    return fp::guarded(message, size, [&] {
        fp::check_settings(settings->dtype, settings->threads);
        fp::check_between("hidden", settings->hidden, FP_MOST_COLUMNS);
        fp::check_between("head_dim", settings->head_dim, FP_MOST_COLUMNS);
        if (settings->activation < FP_GELU || settings->activation > FP_RELU)
            throw fp::Error("activation " + std::to_string(settings->activation) + " is not known");
        *out = new fp_encoder{fp::of_dtype<fp::Encoder, fp::EncoderBase>(settings->dtype, *settings)};
    });
}

int fp_encoder_set_bias(fp_encoder *encoder, int64_t rows, int64_t reach, const float *values, char *message,
                        size_t size) {
    return fp::guarded(message, size, [&] {
        fp::check_between("bias rows", rows, FP_MOST_COLUMNS);
        fp::check_between("bias reach", reach, FP_MOST_COLUMNS);
        encoder->encoder->set_bias(rows, reach, values);
    });
}

int fp_encoder_set_distances(fp_encoder *encoder, int64_t count, int64_t reach, const int64_t *rows, char *message,
                             size_t size) {
    return fp::guarded(message, size, [&] {
        fp::check_between("distances' rows", count, FP_MOST_COLUMNS);
        fp::check_between("distances' reach", reach, FP_MOST_COLUMNS);
        encoder->encoder->set_distances(count, reach, rows);
    });
}

int fp_encoder_add(fp_encoder *encoder, const fp_layer *layer, char *message, size_t size) {
    return fp::guarded(message, size, [&] { encoder->encoder->add(*layer); });
}

int fp_encoder_run(fp_encoder *encoder, const float *hidden, const uint8_t *mask, int64_t batch, int64_t length,
                   float *out, char *message, size_t size) {
    return fp::guarded(message, size, [&] { encoder->encoder->run(hidden, mask, batch, length, out); });
}

int64_t fp_encoder_bytes(const fp_encoder *encoder) { return int64_t(encoder->encoder->bytes()); }

void fp_encoder_free(fp_encoder *encoder) { delete encoder; }

int fp_linear_new(const fp_matrix *matrix, int32_t dtype, int32_t threads, fp_linear **out, char *message,
                  size_t size) {
    return fp::guarded(message, size, [&] {
        fp::check_settings(dtype, threads);
        *out = new fp_linear{fp::of_dtype<fp::LinearAlone, fp::LinearBase>(dtype, *matrix, threads)};
    });
}

int fp_linear_run(fp_linear *linear, const float *x, int64_t tokens, float *out, char *message, size_t size) {
    return fp::guarded(message, size, [&] { linear->linear->run(x, tokens, out); });
}

int fp_linear_time(fp_linear *linear, int64_t repeats, double *seconds, int64_t *tokens, char *message, size_t size) {
    return fp::guarded(message, size, [&] {
        *seconds = linear->linear->time(repeats);
        *tokens = linear->linear->tile();
    });
}

int64_t fp_linear_bytes(const fp_linear *linear) { return int64_t(linear->linear->bytes()); }

void fp_linear_free(fp_linear *linear) { delete linear; }

}  // extern "C"
