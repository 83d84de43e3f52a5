// Memory that is aligned for vectors, and freed with its owner.
#pragma once
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include "vec.hpp"

namespace fp {

template <class E>
class Buffer {
  public:
    Buffer() = default;
    explicit Buffer(size_t count) { grow(count); }
    Buffer(Buffer &&other) noexcept { *this = std::move(other); }
    Buffer &operator=(Buffer &&other) noexcept {
        std::swap(data_, other.data_);
        std::swap(count_, other.count_);
        return *this;
    }
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;
    ~Buffer() { std::free(data_); }

    // At least `count` elements; what was in it is lost when it grows. Rows beside a tile's last token are read by
    // vectors, and never used: zeros keep them from being slow denormals or NaN.
    void grow(size_t count) {
        if (count <= count_) return;
        std::free(data_);
        count_ = 0;
        const size_t bytes = (count * sizeof(E) + kSlack + kAlign - 1) / kAlign * kAlign;
        data_ = static_cast<E *>(std::aligned_alloc(kAlign, bytes));
        if (!data_) throw std::bad_alloc();
        std::memset(static_cast<void *>(data_), 0, bytes);
        count_ = count;
    }
    E *data() { return data_; }
    const E *data() const { return data_; }
    E &operator[](size_t i) { return data_[i]; }
    const E &operator[](size_t i) const { return data_[i]; }
    size_t bytes() const { return count_ * sizeof(E); }

  private:
    static constexpr size_t kSlack = 4 * kAlign;  // whole vectors may be read from the last element on
    E *data_ = nullptr;
    size_t count_ = 0;
};

}  // namespace fp
