// Communicators with the widest freedom of one that runs beside the caller: nothing moves before wait().
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/base/error.h"
#include "parallel/communicator.h"

namespace ridge::test {

/// What was started, in order: a letter (r: all_reduce, g: all_gather, s: reduce_scatter) and the elements of
/// the whole.
using Log = std::vector<std::pair<char, std::size_t>>;

/// Passes on to another communicator. Collectives beside the caller's work begin in wait(), and `log`, where
/// given, notes them when they are started.
class LateCommunicator final : public parallel::Communicator {
 public:
  explicit LateCommunicator(parallel::Communicator& inner, Log* log = nullptr) : inner_(inner), log_(log) {}
  LateCommunicator(std::unique_ptr<parallel::Communicator> inner, Log* log)
      : owned_(std::move(inner)), inner_(*owned_), log_(log) {}

  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }
  void barrier() override { inner_.barrier(); }
  void abort(const std::string& reason, int code) noexcept override { inner_.abort(reason, code); }
  std::unique_ptr<parallel::Communicator> split(int color) override {
    auto part = inner_.split(color);
    return part ? std::make_unique<LateCommunicator>(std::move(part), log_) : nullptr;
  }

 protected:
  void do_all_reduce(Span values, parallel::Reduce op) override {
    with_type(values, [&]<class T>(std::type_identity<T>) { inner_.all_reduce(span<T>(values), op); });
  }
  std::unique_ptr<parallel::Pending> do_all_reduce_async(Span values) override {
    note('r', values);
    return late([this, values] { do_all_reduce(values, parallel::Reduce::sum); });
  }
  void do_all_gather(Span mine, Span all) override {
    with_type(all, [&]<class T>(std::type_identity<T>) {
      inner_.all_gather(parallel::DeviceSpan<const T>(span<T>(mine)), span<T>(all));
    });
  }
  std::unique_ptr<parallel::Pending> do_all_gather_async(Span mine, Span all) override {
    note('g', all);
    return late([this, mine, all] { do_all_gather(mine, all); });
  }
  std::unique_ptr<parallel::Pending> do_reduce_scatter_async(Span all, Span mine) override {
    note('s', all);
    return late([this, all, mine] {
      with_type(all, [&]<class T>(std::type_identity<T>) {
        inner_.reduce_scatter(parallel::DeviceSpan<const T>(span<T>(all)), span<T>(mine));
      });
    });
  }
  void do_broadcast(Span, int) override { fail("not used"); }
  std::unique_ptr<parallel::Pending> do_exchange_async(const std::vector<parallel::Message>&) override {
    fail("not used");
  }

 private:
  class Late final : public parallel::Pending {
   public:
    explicit Late(std::function<void()> move) : move_(std::move(move)) {}
    void wait() override {
      std::exchange(move_, [] {})();
    }

   private:
    std::function<void()> move_;
  };

  static std::unique_ptr<parallel::Pending> late(std::function<void()> move) {
    return std::make_unique<Late>(std::move(move));
  }
  template <class T>
  static parallel::DeviceSpan<T> span(const Span& s) {
    return {static_cast<T*>(s.data), s.count, s.device};
  }
  template <class F>
  static void with_type(const Span& s, const F& f) {
    switch (s.dtype) {
      case DType::f32:
        return f(std::type_identity<float>());
      case DType::f64:
        return f(std::type_identity<double>());
      case DType::bf16:
        return f(std::type_identity<bf16>());
      default:
        fail("not used");
    }
  }
  void note(char what, const Span& whole) {
    if (log_ != nullptr) log_->emplace_back(what, whole.count);
  }

  std::unique_ptr<parallel::Communicator> owned_;
  parallel::Communicator& inner_;
  Log* log_;
};

}  // namespace ridge::test
