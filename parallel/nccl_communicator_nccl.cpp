#include "parallel/nccl_communicator.h"

#include <unistd.h>

#include <array>
#include <exception>
#include <optional>

#include "core/base/launch.h"
#include "parallel/end_notice.h"
#include "parallel/nccl_handle.h"
#include "parallel/watchdog.h"

namespace ridge::parallel {
namespace {

constexpr int kBug = 2;  // exit code

ncclDataType_t nccl_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return ncclFloat32;
    case DType::f64:
      return ncclFloat64;
    case DType::bf16:
      return ncclBfloat16;
    case DType::f16:
      return ncclFloat16;
    case DType::i32:
      return ncclInt32;
    case DType::i64:
      return ncclInt64;
    case DType::u8:
      return ncclUint8;
    case DType::i8:
      return ncclInt8;
  }
  fail("NCCL carries no {}", name_of(dtype));
}

std::string host_name() {
  std::array<char, 256> name{};
  return ::gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "an unnamed host";
}

// Rank 0 makes it, the host communicator carries it.
ncclUniqueId shared_id(Communicator& host) {
  ncclUniqueId id{};
  if (host.rank() == 0) check_nccl(ncclGetUniqueId(&id), "ncclGetUniqueId");
  auto* bytes = reinterpret_cast<std::uint8_t*>(id.internal);
  host.broadcast(std::span<std::uint8_t>(bytes, sizeof(id.internal)), 0);
  return id;
}

class NcclPending final : public Pending {
 public:
  NcclPending(std::shared_ptr<const NcclHandle> nccl, std::shared_ptr<const cuda::Event> end, const char* op)
      : nccl_(std::move(nccl)), end_(std::move(end)), op_(op) {}
  // Memory must not be used again before the collective has ended, whether anybody waits or not.
  ~NcclPending() override {
    if (waited_) return;
    try {
      end_->hold(current_stream(Device::cuda));
    } catch (const std::exception&) {  // the device is broken: whoever waits for it next is told why
    }
  }

  void wait() override {
    nccl_->check_open();
    Stream& compute = current_stream(Device::cuda);
    launch(
        compute, op_, Work{}, [] {}, [&] { end_->hold(compute); });
    waited_ = true;
  }

 private:
  std::shared_ptr<const NcclHandle> nccl_;
  std::shared_ptr<const cuda::Event> end_;
  const char* op_;
  bool waited_ = false;
};

class NcclCommunicator final : public Communicator {
 public:
  // `own_host` is null, or holds `host`; `where` names the process.
  NcclCommunicator(Communicator& host, std::unique_ptr<Communicator> own_host, std::string where,
                   std::chrono::milliseconds timeout)
      : own_host_(std::move(own_host)),
        host_(host),
        timeout_(timeout),
        where_(std::move(where)),
        stream_(Device::cuda, "nccl", cuda::make_stream("nccl", true)),
        nccl_(std::make_shared<NcclHandle>(shared_id(host), host.rank(), host.size(), timeout)) {
    notice_.emplace(
        fmt::format("[{}] ended from outside: another rank has failed, or the job was cancelled", where_));
    watchdog_.emplace(
        Watchdog::Options{timeout}, [this] { return probe(); },
        [this](const std::string& reason) { give_up(reason); });
  }
  ~NcclCommunicator() override {
    watchdog_.reset();
    if (std::uncaught_exceptions() > exceptions_) {
      nccl_->abort();
    } else {
      nccl_->finalize(timeout_);
    }
  }

  int rank() const override { return host_.rank(); }
  int size() const override { return host_.size(); }
  void barrier() override {
    nccl_->check_open();
    host_.barrier();
  }
  void abort(const std::string& reason, int exit_code) noexcept override { host_.abort(reason, exit_code); }
  std::unique_ptr<Communicator> split(int color) override {
    nccl_->check_open();
    std::unique_ptr<Communicator> host = host_.split(color);
    if (host == nullptr) return nullptr;
    if (host->size() == 1) return self_communicator();
    Communicator& ranks = *host;
    std::string where = fmt::format("{}, {} of {} in a group", where_, host->rank(), host->size());
    return std::make_unique<NcclCommunicator>(ranks, std::move(host), std::move(where), timeout_);
  }

 protected:
  void do_all_reduce(Span values, Reduce op) override {
    if (values.device == Device::cuda) return reduce(values, op)->wait();
    on_host(values, [&]<class T>(std::type_identity<T>) { host_.all_reduce(typed<T>(values), op); });
  }
  std::unique_ptr<Pending> do_all_reduce_async(Span values) override {
    if (values.device == Device::cuda) return reduce(values, Reduce::sum);
    return on_host(values,
                   [&]<class T>(std::type_identity<T>) { return host_.all_reduce_async(typed<T>(values)); });
  }
  void do_all_gather(Span mine, Span all) override { do_all_gather_async(mine, all)->wait(); }
  std::unique_ptr<Pending> do_all_gather_async(Span mine, Span all) override {
    if (mine.device == Device::cuda) {
      return start("all_gather", "all_gather_wait", mine, static_cast<double>(all.bytes()),
                   [&](ncclComm_t nccl, cudaStream_t stream) {
                     return ncclAllGather(mine.data, all.data, mine.count, nccl_type(mine.dtype), nccl,
                                          stream);
                   });
    }
    return on_host(mine, [&]<class T>(std::type_identity<T>) {
      return host_.all_gather_async(typed<const T>(mine), typed<T>(all));
    });
  }
  std::unique_ptr<Pending> do_reduce_scatter_async(Span all, Span mine) override {
    if (mine.device == Device::cuda) {
      return start("reduce_scatter", "reduce_scatter_wait", mine, static_cast<double>(all.bytes()),
                   [&](ncclComm_t nccl, cudaStream_t stream) {
                     return ncclReduceScatter(all.data, mine.data, mine.count, nccl_type(mine.dtype), ncclSum,
                                              nccl, stream);
                   });
    }
    return on_host(mine, [&]<class T>(std::type_identity<T>) {
      return host_.reduce_scatter_async(typed<const T>(all), typed<T>(mine));
    });
  }
  void do_broadcast(Span values, int root) override {
    if (values.device == Device::cuda) {
      const auto enqueue = [&](ncclComm_t nccl, cudaStream_t stream) {
        return ncclBroadcast(values.data, values.data, values.count, nccl_type(values.dtype), root, nccl,
                             stream);
      };
      return start("broadcast", "broadcast_wait", values, static_cast<double>(values.bytes()), enqueue)
          ->wait();
    }
    on_host(values, [&]<class T>(std::type_identity<T>) { host_.broadcast(typed<T>(values), root); });
  }
  std::unique_ptr<Pending> do_exchange_async(const std::vector<Message>& messages) override {
    Span all = messages.front().values;
    if (all.device != Device::cuda) {
      nccl_->check_open();
      return host_.exchange_async(messages);
    }
    all = {nullptr, 0, DType::u8, Device::cuda};
    for (const Message& m : messages) all.count += m.values.bytes();
    return start("exchange", "exchange_wait", all, static_cast<double>(all.bytes()),
                 [&](ncclComm_t nccl, cudaStream_t stream) { return move(messages, nccl, stream); });
  }

 private:
  using Enqueue = std::function<ncclResult_t(ncclComm_t, cudaStream_t)>;

  template <class T>
  static DeviceSpan<T> typed(const Span& values) {
    return {static_cast<T*>(values.data), values.count, values.device};
  }
  template <class F>
  std::invoke_result_t<F, std::type_identity<float>> on_host(const Span& values, F&& f) {
    nccl_->check_open();
    return visit_any(values.dtype, std::forward<F>(f));
  }

  std::unique_ptr<Pending> reduce(Span values, Reduce op) {
    return start("all_reduce", "all_reduce_wait", values, 2.0 * static_cast<double>(values.bytes()),
                 [&](ncclComm_t nccl, cudaStream_t stream) {
                   return ncclAllReduce(values.data, values.data, values.count, nccl_type(values.dtype),
                                        op == Reduce::sum ? ncclSum : ncclMax, nccl, stream);
                 });
  }

  // What fails within a group ends with it: the group's own answer is worth less.
  static ncclResult_t move(const std::vector<Message>& messages, ncclComm_t nccl, cudaStream_t stream) {
    ncclResult_t state = ncclGroupStart();
    if (state != ncclSuccess) return state;
    for (const Message& m : messages) {
      if (m.values.count == 0) continue;  // NCCL would still wait for the peer
      const ncclDataType_t type = nccl_type(m.values.dtype);
      state = m.way == Message::Way::send
                  ? ncclSend(m.values.data, m.values.count, type, m.peer, nccl, stream)
                  : ncclRecv(m.values.data, m.values.count, type, m.peer, nccl, stream);
      if (state != ncclSuccess && state != ncclInProgress) break;
    }
    const ncclResult_t end = ncclGroupEnd();
    return state != ncclSuccess && state != ncclInProgress ? state : end;
  }

  // Queues a collective on our stream, behind what is on the compute stream now.
  std::unique_ptr<Pending> start(const char* op, const char* wait_op, const Span& values, double bytes,
                                 const Enqueue& enqueue) {
    if (values.count == 0) return nothing_pending();
    const std::shared_ptr<Flight> flight = watchdog_->begin(op, values.count, values.dtype);
    try {
      ready_.record(current_stream(Device::cuda));
      ready_.hold(stream_);
      const auto stream = static_cast<cudaStream_t>(stream_.native());
      launch(
          stream_, op, Work{0, bytes}, [] {},
          [&] { nccl_->call([&](ncclComm_t nccl) { return enqueue(nccl, stream); }); });
      const auto end = std::make_shared<cuda::Event>();
      end->record(stream_);
      watchdog_->queued(*flight, [end] { return end->done(); });
      return std::make_unique<NcclPending>(nccl_, end, wait_op);
    } catch (const std::exception& error) {
      watchdog_->forget(*flight);
      fail("{}: {}", flight->describe(), error.what());
    }
  }

  // On the watchdog's thread, as give_up.
  std::string probe() {
    cuda::compute_stream();  // binds the thread to this process's GPU
    return nccl_->error();
  }

  void give_up(const std::string& reason) noexcept {
    EndNotice::say(fmt::format("ridge: [{}] NCCL: {}", where_, reason));
    nccl_->abort();
    host_.abort(reason, kBug);
  }

  const std::unique_ptr<Communicator> own_host_;
  Communicator& host_;
  const std::chrono::milliseconds timeout_;
  const std::string where_;
  const int exceptions_ = std::uncaught_exceptions();
  Stream stream_;
  std::shared_ptr<NcclHandle> nccl_;
  cuda::Event ready_;  // what the next collective waits for on the compute stream
  std::optional<EndNotice> notice_;
  std::optional<Watchdog> watchdog_;  // last: its thread uses the others
};

}  // namespace

std::unique_ptr<Communicator> nccl_communicator(Communicator& host, std::chrono::milliseconds timeout) {
  if (host.size() == 1) return self_communicator();
  return std::make_unique<NcclCommunicator>(
      host, nullptr, fmt::format("rank {} of {} on {}", host.rank(), host.size(), host_name()), timeout);
}

}  // namespace ridge::parallel
