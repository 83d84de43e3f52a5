// Memory with its size: buffers that own it, aligned for vectors, and spans that refer to a part of one.
#pragma once
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>

#include "check.hpp"
#include "vec.hpp"

namespace fp {

// How many vectors of tokens a kernel computes at once, at most.
constexpr int kMostVectors = 4;

// How many bytes behind the last element of a Buffer may be read, and never written: whole vectors are loaded where
// only the first tokens of the last one exist. attention.hpp does so for queries; nothing else reads past an end.
constexpr size_t kOverread = kMostVectors * kBytes;

// A pointer and the number of elements behind it.
template <class E>
class Span {
  public:
    Span() = default;
    Span(E *data, size_t size) : data_(data), size_(size) {}
    template <class F, class = std::enable_if_t<std::is_convertible_v<F (*)[], E (*)[]>>>
    Span(const Span<F> &other) : data_(other.data()), size_(other.size()) {}

    E *data() const { return data_; }
    size_t size() const { return size_; }
    // The address of `count` elements that begin with number `first`.
    E *at(size_t first, size_t count) const {
        FP_CHECK(first <= size_ && count <= size_ - first);
        return data_ + first;
    }
    Span part(size_t first, size_t count) const { return {at(first, count), count}; }
    Span from(size_t first) const {
        FP_CHECK(first <= size_);
        return {data_ + first, size_ - first};
    }

  private:
    E *data_ = nullptr;
    size_t size_ = 0;
};

// The bytes of floats.
inline Span<char> bytes_of(Span<float> floats) {
    return {reinterpret_cast<char *>(floats.data()), floats.size() * sizeof(float)};
}

template <class E>
class Buffer {
  public:
    Buffer() = default;
    Buffer(Buffer &&other) noexcept { *this = std::move(other); }
    Buffer &operator=(Buffer &&other) noexcept {
        std::swap(data_, other.data_);
        std::swap(count_, other.count_);
        return *this;
    }
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;
    ~Buffer() { release(); }

    // At least `count` elements; growing loses the contents. New memory is zero, the overread part included: vectors
    // read lanes of tokens that do not exist, and zeros keep those from being slow denormals or NaN.
    void grow(size_t count) {
        if (count <= count_) return;
        if (count > (SIZE_MAX / 2) / sizeof(E)) throw std::bad_alloc();
        release();
        data_ = nullptr, count_ = 0;
        const size_t bytes = count * sizeof(E) + kOverread;
        data_ = static_cast<E *>(::operator new(bytes, std::align_val_t(kAlign)));
        std::memset(static_cast<void *>(data_), 0, bytes);
        count_ = count;
    }
    Span<E> span() { return {data_, count_}; }
    Span<const E> span() const { return {data_, count_}; }
    // From an element on, with the bytes that may only be read.
    Span<const E> overread_from(size_t first) const {
        return Span<const E>(data_, count_ + kOverread / sizeof(E)).from(first);
    }
    E &operator[](size_t i) { return *span().at(i, 1); }
    const E &operator[](size_t i) const { return *span().at(i, 1); }
    size_t bytes() const { return count_ * sizeof(E); }

  private:
    void release() { ::operator delete(data_, std::align_val_t(kAlign)); }

    E *data_ = nullptr;
    size_t count_ = 0;
};

}  // namespace fp
