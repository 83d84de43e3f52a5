// A whole encoder over packed tokens: padding is dropped before the first layer and put back as zeros.
#pragma once
#include <array>
#include <atomic>
#include <memory>
#include <string>

#include "linear.hpp"
#include "pool.hpp"
#include "rotary.hpp"
#include "tokens.hpp"

namespace fp {

struct EncoderBase {
    virtual ~EncoderBase() = default;
    virtual void set_bias(int64_t rows, int64_t reach, const float *values) = 0;
    virtual void set_distances(int64_t count, int64_t reach, const int64_t *rows) = 0;
    virtual void add(const fp_layer &) = 0;
    virtual void run(const float *hidden, const uint8_t *mask, int64_t batch, int64_t length, float *out) = 0;
    virtual size_t bytes() const = 0;
};

// How many tokens go into a tile: as many as it can hold, or fewer if some threads would then have none. A quarter of a
// tile of bytes takes nearly as long as half of it.
template <class Kernel>
int64_t tile_width(int64_t tokens, int threads) {
    const int64_t least = std::max(16, Kernel::kDtype == FP_INT8 ? Kernel::kTile / 2 : Kernel::kNarrowest);
    int64_t width = Kernel::kTile;
    while (width / 2 >= least && (tokens + width - 1) / width < threads &&
           (tokens + width / 2 - 1) / (width / 2) > (tokens + width - 1) / width)
        width /= 2;
    return width;
}

template <class Kernel>
class Encoder : public EncoderBase {
    static constexpr int T = Kernel::kTile;
    static constexpr bool kFloats = Kernel::kDtype == FP_FLOAT32;
    typedef Attention<Kernel> Attend;

  public:
    explicit Encoder(const fp_settings &settings)
        : s_(settings), pool_(settings.threads), workers_(settings.threads), tokens_(settings.hidden) {}

    void set_bias(int64_t rows, int64_t reach, const float *values) override {
        if (!layers_.empty()) throw Error("the bias of an encoder is set before its first layer");
        if (!values) throw Error("relative bias: has no values");
        check_finite(values, rows * (2 * reach + 1), "relative bias: value");
        bias_ = DistanceBias(rows, reach, values);
    }

    void set_distances(int64_t count, int64_t reach, const int64_t *rows) override {
        if (!layers_.empty()) throw Error("the distances of an encoder are set before its first layer");
        if (!rows) throw Error("distances: have no rows");
        for (int64_t i = 0; i < 2 * reach + 1; i++)
            if (rows[i] < 0 || rows[i] >= count)
                throw Error("distance " + std::to_string(i - reach) + ": has row " + std::to_string(rows[i]) + " of " +
                            std::to_string(count));
        distances_ = {{rows, rows + 2 * reach + 1}, count};
    }

    void add(const fp_layer &given) override {
        const std::string name = "layer " + std::to_string(layers_.size()) + ", ";
        Layer layer{{given.qkv, name + "query, key and value"},
                    {given.attention_output, name + "attention output"},
                    {given.ffn_in, name + "feed-forward in"},
                    {given.ffn_out, name + "feed-forward out"},
                    {},
                    {},
                    {},
                    {},
                    -1,
                    -1,
                    {}};
        const int64_t inner = layer.output.columns(), d = s_.hidden;
        expect(name + "query, key and value", layer.qkv, 3 * inner, d);
        expect(name + "attention output", layer.output, d, inner);
        expect(name + "feed-forward in", layer.in, layer.out.columns(), d);
        expect(name + "feed-forward out", layer.out, d, layer.out.columns());
        if (given.ffn_gate) {
            layer.gate = Linear<Kernel>(*given.ffn_gate, name + "feed-forward gate");
            expect(name + "feed-forward gate", layer.gate, layer.out.columns(), d);
        }
        if (inner % s_.head_dim)
            throw Error(name + "attention output: has " + std::to_string(inner) +
                        " inputs, which are not whole heads of " + std::to_string(s_.head_dim));
        // After the matrices: only a layer of this hidden size has norms that can be read.
        layer.attention_norm = norm(given.attention_norm_weight, given.attention_norm_bias, name);
        layer.output_norm = norm(given.output_norm_weight, given.output_norm_bias, name);
        if (given.bias_rows) layer.bias_rows = bias_rows(given.bias_rows, inner / s_.head_dim, name);
        if (given.window < -1 || given.window > kFarthest)
            throw Error(name + "window is " + std::to_string(given.window) + "; -1 to " + std::to_string(kFarthest) +
                        " can be run");
        layer.window = given.window;
        if (given.rotary) layer.rotary = rotary(given.rotary, name);
        const int64_t heads = inner / s_.head_dim;
        if (given.position_keys) layer.positions.keys = projected(given.position_keys, heads, name + "position keys");
        if (given.position_queries)
            layer.positions.queries = projected(given.position_queries, heads, name + "position queries");
        layers_.push_back(std::move(layer));
    }

    size_t bytes() const override {
        size_t sum = bias_.bytes();
        for (const Rotary &r : rotaries_) sum += r.bytes();
        for (const Layer &l : layers_) {
            for (const Linear<Kernel> *m : l.matrices()) sum += m->bytes();
            sum += l.positions.bytes();
            for (const Norm *norm : {&l.attention_norm, &l.output_norm})
                sum += (norm->weight.size() + norm->bias.size()) * sizeof(float);
        }
        return sum;
    }

    void run(const float *hidden, const uint8_t *mask, int64_t batch, int64_t length, float *out) override {
        const std::lock_guard<CallLock> hold(lock_);
        const int threads = usable_threads(s_.threads);
        tokens_.pack(hidden, mask, batch, length, out);
        width_ = tile_width<Kernel>(tokens_.count(), threads);
        tiles_ = (tokens_.count() + width_ - 1) / width_;
        if (!tiles_) return;
        grow(length);
        bias_.cover(length);
        for (Rotary &r : rotaries_) r.cover(length, tiles_, T);
        // A counter for each phase: whoever is free takes the next tile, or the next head.
        phases_ = std::vector<std::atomic<int64_t>>(2 * layers_.size() + 1);
        // Most of the work is in tiles: more threads could share in the attention alone, which is short where tiles are few.
        pool_.run(int(std::min<int64_t>(threads, tiles_)), [&](int worker) { work(workers_[worker]); });
    }

  private:
    struct Layer {
        Linear<Kernel> qkv, output, in, out, gate;
        Norm attention_norm, output_norm;
        std::vector<int64_t> bias_rows;  // of each head; none: its heads have no bias
        int64_t window, rotary;          // the number of its rotation; -1: none
        Positions positions;
        int64_t inner() const { return output.columns(); }
        std::array<const Linear<Kernel> *, 5> matrices() const { return {&qkv, &output, &in, &out, &gate}; }
    };
    struct Worker {
        Attend attend;
        Buffer<char> rows, inner, partial, grouped, packed;
        Buffer<float> y, normed, gate;
        TokenScales<Kernel> scales;
    };

    static constexpr int64_t kFarthest = 1 << 30;  // of a window

    Norm norm(const float *weight, const float *bias, const std::string &name) const {
        for (const float *values : {weight, bias}) check_finite(values, s_.hidden, name + "norm: value");
        return {{weight, weight + s_.hidden}, {bias, bias + s_.hidden}};
    }

    std::vector<int64_t> bias_rows(const int64_t *rows, int64_t heads, const std::string &name) const {
        for (int64_t i = 0; i < heads; i++)
            if (rows[i] < 0 || rows[i] >= bias_.rows())
                throw Error(name + "head " + std::to_string(i) + ": adds row " + std::to_string(rows[i]) +
                            " of a relative bias that has " + std::to_string(bias_.rows()));
        return {rows, rows + heads};
    }

    Projected projected(const float *values, int64_t heads, const std::string &name) const {
        if (!distances_.count) throw Error(name + ": are given without distances");
        check_finite(values, heads * s_.head_dim * distances_.count, name + ": value");
        return {values, heads, s_.head_dim, distances_.count, Attend::kPairs};
    }

    // The number of the rotation with these frequencies, which may be new.
    int64_t rotary(const float *frequencies, const std::string &name) {
        if (s_.head_dim % 2) throw Error(name + "heads of " + std::to_string(s_.head_dim) + " cannot be rotated");
        check_finite(frequencies, s_.head_dim / 2, name + "rotary: frequency");
        const auto known =
            std::find_if(rotaries_.begin(), rotaries_.end(), [&](const Rotary &each) { return each.has(frequencies); });
        const int64_t number = known - rotaries_.begin();
        if (known == rotaries_.end()) rotaries_.emplace_back(frequencies, s_.head_dim / 2);
        return number;
    }

    static void expect(const std::string &name, const Linear<Kernel> &m, int64_t rows, int64_t columns) {
        if (m.rows() != rows || m.columns() != columns)
            throw Error(name + ": is " + std::to_string(m.rows()) + " x " + std::to_string(m.columns()) +
                        ", expected " + std::to_string(rows) + " x " + std::to_string(columns));
    }

    void grow(int64_t length) {
        int64_t inner = 0, ffn = 0, gates = 0, longest = 0;
        size_t partial = 0, grouped = 0;
        for (const Layer &l : layers_) {
            inner = std::max(inner, l.inner());
            ffn = std::max(ffn, l.in.rows());
            gates = std::max(gates, l.gate.rows());
            for (const Linear<Kernel> *m : l.matrices()) {
                partial = std::max(partial, m->partial_bytes());
                grouped = std::max(grouped, m->grouped_bytes());
            }
        }
        for (const Sequence &s : tokens_.sequences()) longest = std::max(longest, s.count);
        x_.grow(tiles_ * s_.hidden * T);
        qkv_.grow(tiles_ * 3 * inner * Attend::kRow);
        context_.grow(tiles_ * inner * T);
        for (Worker &w : workers_) {
            w.attend.grow(longest, s_.head_dim, distances_.count ? length : 0);
            w.rows.grow(kFloats ? 0 : std::max(inner, s_.hidden) * Kernel::kRow);
            w.inner.grow(ffn * Kernel::kRow);
            w.partial.grow(kFloats ? 0 : partial);
            w.grouped.grow(grouped);
            w.packed.grow(Kernel::kDtype == FP_INT8 ? ffn * 2 * T : 0);
            w.y.grow(s_.hidden * T);
            w.normed.grow(s_.pre_norm ? s_.hidden * T : 0);
            w.gate.grow(gates * T);
        }
    }

    // Every worker runs this; the counters share the tiles and heads out.
    void work(Worker &w) {
        each(0, tiles_, [&](int64_t t) {
            const int64_t first = t * width_;
            const int tokens = int(std::min(width_, tokens_.count() - first));
            gather_tokens<Kernel>(tokens_.from(first), tokens, s_.hidden, tile(t));
            for (Rotary &r : rotaries_) r.fill(t, T, tokens_.places(first, tokens));
            with_width<Kernel>(tokens, [&](auto width) {
                constexpr int W = decltype(width)::value;
                if constexpr (Kernel::kDtype == FP_INT8) find_range<Kernel, W>(tile(t), s_.hidden, w.scales.range());
                if (!layers_.empty()) heads_of<W>(w, layers_[0], t, take<W>(w, tile(t), s_.hidden));
                else scatter_tokens<Kernel>(tile(t), tokens, s_.hidden, tokens_.to(first));
            });
        });
        pool_.barrier();
        for (size_t i = 0; i < layers_.size(); i++) {
            const Layer &l = layers_[i];
            const int64_t heads = l.inner() / s_.head_dim;
            const Heads where{qkv_.span(), 3 * l.inner(), context_.span(), heads, s_.head_dim, width_, tokens_.count()};
            each(2 * i + 1, heads * int64_t(tokens_.sequences().size()),
                 [&](int64_t item) { attend(w, l, where, item % heads, tokens_.sequences()[item / heads]); });
            pool_.barrier();
            each(2 * i + 2, tiles_, [&](int64_t t) {
                const int tokens = int(std::min(width_, tokens_.count() - t * width_));
                with_width<Kernel>(tokens, [&](auto width) { rest_of<decltype(width)::value>(w, i, t); });
            });
            if (i + 1 < layers_.size()) pool_.barrier();
        }
    }

    void attend(Worker &w, const Layer &l, const Heads &where, int64_t head, const Sequence &s) {
        HeadBias bias{{}, bias_.middle(), l.window, tokens_.places(s.first, s.count), s.adjacent};
        if (!l.bias_rows.empty()) bias.row = bias_.row(l.bias_rows[head]);
        w.attend.run(where, head, s, bias, l.positions, distances_);
    }

    template <class F>
    void each(size_t phase, int64_t count, F &&f) {
        for (int64_t i; (i = phases_[phase].fetch_add(1, std::memory_order_relaxed)) < count;) f(i);
    }

    Span<float> tile(int64_t t) {
        FP_CHECK(t >= 0 && t < tiles_);
        return x_.span().part(t * s_.hidden * T, s_.hidden * T);
    }

    // Floats as the kernel's own rows; for int8, the worker's range is already that of x.
    template <int W>
    Tile take(Worker &w, Span<float> x, int64_t features) {
        if constexpr (kFloats) {
            return {bytes_of(x), {}, {}};
        } else {
            const Tile tile = w.scales.tile(w.rows.span());
            take_floats<Kernel, W>(x, features, tile, w.scales.range());
            return tile;
        }
    }

    // Here and below, unfinished sums are stored where the finished rows go if both have one size: that takes less of
    // the cache.
    template <int W>
    void heads_of(Worker &w, const Layer &l, int64_t t, const Tile &x) {
        constexpr int B = Kernel::template kVector<W>;
        const int64_t bytes = 3 * l.inner() * Attend::kRow;
        const Span<char> to = qkv_.span().part(t * bytes, bytes);
        l.qkv.template run<W>(x, kFloats ? to : w.partial.span(), w.grouped.span(), [&](uint32_t n, const auto *y) {
            char *row = to.at(size_t(n) * Attend::kRow, Attend::kRow);
            for (int j = 0; j < W * 4 / B; j += kFloats ? 1 : 2) {
                if constexpr (kFloats) store<B>(row + j * B, y[j]);
                else put(row + j / 2 * B, pack16<B>(y[j], y[j + 1]));
            }
        });
        if (l.rotary >= 0) rotaries_[l.rotary].template turn<Kernel, W>(to, 2 * l.inner() / s_.head_dim, t, T);
    }

    template <int W>
    void floats_of(Worker &w, const Linear<Kernel> &m, const Tile &x, Span<float> result) {
        constexpr int B = Kernel::template kVector<W>;
        const Span<char> to = bytes_of(result);
        m.template run<W>(x, to, w.grouped.span(), [&](uint32_t n, const auto *y) {
            char *row = to.at(size_t(n) * Kernel::kPartial, Kernel::kPartial);
            for (int j = 0; j < W * 4 / B; j++) store<B>(row + j * B, y[j]);
        });
    }

    // Runs the rest of layer i after its attention: output, norm, feed-forward part, norm; then query, key and value of
    // the next layer.
    template <int W>
    void rest_of(Worker &w, size_t i, int64_t t) {
        const Layer &l = layers_[i];
        const Span<float> x = tile(t), context = context_.span().part(t * l.inner() * T, l.inner() * T);
        const Span<float> normed = s_.pre_norm ? w.normed.span() : x;
        const Range range = w.scales.range();
        if constexpr (Kernel::kDtype == FP_INT8) find_range<Kernel, W>(context, l.inner(), range);
        floats_of<W>(w, l.output, take<W>(w, context, l.inner()), w.y.span());
        add_and_normalize<Kernel, W>(x, w.y.span(), l.attention_norm, s_.epsilon, range, normed);
        floats_of<W>(w, l.out, inner_rows<W>(w, l, take<W>(w, normed, s_.hidden)), w.y.span());
        add_and_normalize<Kernel, W>(x, w.y.span(), l.output_norm, s_.epsilon, range, normed);
        if (i + 1 < layers_.size()) {
            heads_of<W>(w, layers_[i + 1], t, take<W>(w, normed, s_.hidden));
        } else {
            const int64_t first = t * width_;
            scatter_tokens<Kernel>(normed, int(std::min(width_, tokens_.count() - first)), s_.hidden,
                                   tokens_.to(first));
        }
    }

    // The feed-forward part's inner activations, as the kernel's rows. Bytes need the range of all of them first: until
    // then they are kept as bfloat16.
    template <int W>
    Tile inner_rows(Worker &w, const Layer &l, const Tile &x) {
        constexpr int B = Kernel::template kVector<W>;
        constexpr int kVectors = W * 4 / B;
        const Tile inner = w.scales.tile(w.inner.span());
        const Span<char> packed = w.packed.span();
        const Span<const float> gates = w.gate.span();
        const bool gated = l.gate.rows();
        if (gated) floats_of<W>(w, l.gate, x, w.gate.span());
        Range range = w.scales.range();
        range.clear();
        l.in.template run<W>(x, kFloats ? inner.rows : w.partial.span(), w.grouped.span(),
                             [&](uint32_t n, const auto *y) {
                                 Floats<B> a[kVectors];
                                 for (int j = 0; j < kVectors; j++) a[j] = activate<B, !kFloats>(s_.activation, y[j]);
                                 if (gated) {
                                     const float *gate = gates.at(size_t(n) * T, T);
                                     for (int j = 0; j < kVectors; j++) a[j] *= load<Floats<B>>(gate + j * (B / 4));
                                 }
                                 if constexpr (kFloats) {
                                     char *row = inner.rows.at(size_t(n) * Kernel::kRow, Kernel::kRow);
                                     for (int j = 0; j < kVectors; j++) store<B>(row + j * B, a[j]);
                                 } else if constexpr (Kernel::kDtype == FP_BFLOAT16) {
                                     put(inner.rows.at(size_t(n) * Kernel::kRow, B), pack16<B>(a[0], a[1]));
                                 } else {
                                     for (int j = 0; j < 4; j++) range.take<B>(j * (B / 4), a[j]);
                                     char *row = packed.at(size_t(n) * 2 * T, 2 * B);
                                     put(row, pack16<B>(a[0], a[1]));
                                     put(row + B, pack16<B>(a[2], a[3]));
                                 }
                             });
        if constexpr (Kernel::kDtype == FP_INT8) {
            set_scales(range, inner, W);
            const ToBytes<B> bytes[4] = {{inner, 0}, {inner, B / 4}, {inner, B / 2}, {inner, 3 * B / 4}};
            for (int64_t n = 0; n < l.in.rows(); n++) {
                Floats<B> a[4];
                const char *row = packed.at(n * 2 * T, 2 * B);
                unpack16<B>(load<Words<B>>(row), a[0], a[1]);
                unpack16<B>(load<Words<B>>(row + B), a[2], a[3]);
                for (int j = 0; j < 4; j++) a[j] = bytes[j](a[j]);
                put(inner.rows.at(n * Kernel::kRow, B), pack8<B>(a));
            }
        }
        return inner;
    }

    const fp_settings s_;
    Pool pool_;
    std::vector<Worker> workers_;
    std::vector<Layer> layers_;
    DistanceBias bias_;
    std::vector<Rotary> rotaries_;
    DistanceRows distances_;
    CallLock lock_;

    // Of the call that is running.
    PackedTokens tokens_;
    std::vector<std::atomic<int64_t>> phases_;
    int64_t width_ = 0, tiles_ = 0;
    Buffer<float> x_, context_;
    Buffer<char> qkv_;
};

}  // namespace fp
