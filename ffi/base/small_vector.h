// A vector of small elements that stores its first few in the object itself. Schedules have
// millions of lists of one or two; with a heap block for each, malloc dominated the time to build
// them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <iterator>
#include <type_traits>
#include <utility>
#include <vector>

namespace jaxcoll {

// As std::vector, as far as it goes. `T` is copied as bytes.
template <typename T, uint32_t kInline>
class SmallVector {
  static_assert(std::is_trivially_copyable_v<T> && std::is_trivially_destructible_v<T>);

 public:
  using value_type = T;
  using iterator = T*;
  using const_iterator = const T*;

  SmallVector() = default;
  SmallVector(std::initializer_list<T> values) { Append(values.begin(), values.end()); }
  SmallVector(const std::vector<T>& values) {  // NOLINT(google-explicit-constructor): as lists are
    Append(values.data(), values.data() + values.size());
  }
  SmallVector(const SmallVector& other) { Append(other.begin(), other.end()); }
  SmallVector(SmallVector&& other) noexcept { Take(other); }
  SmallVector& operator=(const SmallVector& other) {
    if (this != &other) {
      clear();
      Append(other.begin(), other.end());
    }
    return *this;
  }
  SmallVector& operator=(SmallVector&& other) noexcept {
    if (this != &other) {
      Free();
      Take(other);
    }
    return *this;
  }
  ~SmallVector() { Free(); }

  bool empty() const { return size_ == 0; }
  size_t size() const { return size_; }
  T* begin() { return data(); }
  T* end() { return data() + size_; }
  const T* begin() const { return data(); }
  const T* end() const { return data() + size_; }
  T& operator[](size_t i) { return data()[i]; }
  const T& operator[](size_t i) const { return data()[i]; }
  T& front() { return *data(); }
  const T& front() const { return *data(); }
  T& back() { return data()[size_ - 1]; }
  const T& back() const { return data()[size_ - 1]; }
  T* data() { return capacity_ == kInline ? here_ : there_; }
  const T* data() const { return capacity_ == kInline ? here_ : there_; }

  void push_back(const T& value) {
    const T copy = value;  // it may be one of ours, and about to move
    if (size_ == capacity_) Grow(size_ + 1);
    data()[size_++] = copy;
  }
  // [first, last) is not of this vector.
  void Append(const T* first, const T* last) {
    const auto count = static_cast<uint32_t>(last - first);
    if (size_ + count > capacity_) Grow(size_ + count);
    std::copy(first, last, data() + size_);
    size_ += count;
  }
  // Forgets what is from `first` on.
  void Truncate(const T* first) { size_ = static_cast<uint32_t>(first - data()); }
  void clear() { size_ = 0; }

  operator std::vector<T>() const { return {begin(), end()}; }
  friend bool operator==(const SmallVector& a, const SmallVector& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end());
  }

 private:
  void Grow(uint32_t least) {
    const uint32_t capacity = std::max(least, 2 * capacity_);
    T* const larger = new T[capacity];
    std::copy(begin(), end(), larger);
    Free();
    there_ = larger;
    capacity_ = capacity;
  }
  void Free() {
    if (capacity_ != kInline) delete[] there_;
  }
  void Take(SmallVector& other) {
    size_ = std::exchange(other.size_, 0);
    capacity_ = std::exchange(other.capacity_, kInline);
    if (capacity_ == kInline) {
      std::copy(other.here_, other.here_ + size_, here_);
    } else {
      there_ = other.there_;
    }
  }

  union {
    T here_[kInline] = {};  // while capacity_ is kInline
    T* there_;
  };
  uint32_t size_ = 0, capacity_ = kInline;
};

}  // namespace jaxcoll
