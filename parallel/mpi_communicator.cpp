#include "parallel/mpi_communicator.h"

#include <mpi.h>

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>

#include "core/base/error.h"
#include "core/base/launch.h"
#include "parallel/mpi_internal.h"
#include "parallel/mpi_messages.h"

namespace ridge::parallel {
namespace {

MPI_Datatype mpi_type(DType dtype) { return MPI_Type_f2c(mpi_type_handle(dtype)); }

template <class T, Reduce kOp>
void reduce_half(void* from, void* to, int* count, MPI_Datatype*) {
  const auto* other = static_cast<const T*>(from);
  auto* values = static_cast<T*>(to);
  for (int i = 0; i < *count; ++i) {
    const auto a = static_cast<float>(values[i]), b = static_cast<float>(other[i]);
    values[i] = T(kOp == Reduce::sum ? a + b : std::max(a, b));
  }
}

// Reductions by dtype: MPI's own, and ours of 16-bit floats.
class Operations {
 public:
  Operations() {
    check_mpi(MPI_Op_create(reduce_half<bf16, Reduce::sum>, 1, &bf16_sum_), "MPI_Op_create");
    check_mpi(MPI_Op_create(reduce_half<bf16, Reduce::max>, 1, &bf16_max_), "MPI_Op_create");
    check_mpi(MPI_Op_create(reduce_half<f16, Reduce::sum>, 1, &f16_sum_), "MPI_Op_create");
    check_mpi(MPI_Op_create(reduce_half<f16, Reduce::max>, 1, &f16_max_), "MPI_Op_create");
  }
  ~Operations() {
    for (MPI_Op* op : {&bf16_sum_, &bf16_max_, &f16_sum_, &f16_max_}) MPI_Op_free(op);
  }
  Operations(const Operations&) = delete;
  Operations& operator=(const Operations&) = delete;

  MPI_Op of(DType dtype, Reduce op) const {
    if (dtype == DType::bf16) return op == Reduce::sum ? bf16_sum_ : bf16_max_;
    if (dtype == DType::f16) return op == Reduce::sum ? f16_sum_ : f16_max_;
    return op == Reduce::sum ? MPI_SUM : MPI_MAX;
  }

 private:
  MPI_Op bf16_sum_ = MPI_OP_NULL, bf16_max_ = MPI_OP_NULL;
  MPI_Op f16_sum_ = MPI_OP_NULL, f16_max_ = MPI_OP_NULL;
};

// Sleeps until a non-blocking call is done.
void finish(MPI_Request request) {
  for (;;) {
    int done = 0;
    check_mpi(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "MPI_Test");
    if (done != 0) return;
    std::this_thread::sleep_for(kPoll);
  }
}

struct Job {
  std::function<void()> body;
  bool done = false;
  std::exception_ptr error;
};

// One thread that carries out collectives in the order in which they were asked for, and lets messages move
// in between.
class ProgressThread {
 public:
  explicit ProgressThread(MpiMessages& messages) : messages_(messages), thread_([this] { run(); }) {}
  ~ProgressThread() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  void submit(const std::shared_ptr<Job>& job) {
    {
      const std::lock_guard lock(mutex_);
      queue_.push_back(job);
    }
    changed_.notify_all();
  }

  // Messages have begun.
  void poll() {
    {
      const std::lock_guard lock(mutex_);
      polling_ = true;
    }
    changed_.notify_all();
  }

  void wait(const Job& job) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return job.done; });
    if (job.error) std::rethrow_exception(job.error);
  }

 private:
  void run() {
    for (;;) {
      std::shared_ptr<Job> job;
      {
        std::unique_lock lock(mutex_);
        while (!stopping_ && queue_.empty()) rest(lock);
        if (queue_.empty()) return;
        job = queue_.front();
        queue_.pop_front();
      }
      try {
        job->body();
      } catch (...) {
        job->error = std::current_exception();
      }
      {
        const std::lock_guard lock(mutex_);
        job->done = true;
      }
      changed_.notify_all();
    }
  }

  void rest(std::unique_lock<std::mutex>& lock) {
    if (!polling_) {
      changed_.wait(lock);
      return;
    }
    polling_ = false;
    lock.unlock();
    const bool busy = messages_.poll();
    lock.lock();
    polling_ = polling_ || busy;
    if (busy && !stopping_ && queue_.empty()) changed_.wait_for(lock, kPoll);
  }

  MpiMessages& messages_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Job>> queue_;
  bool stopping_ = false;
  bool polling_ = false;
  std::thread thread_;
};

class MpiPending final : public Pending {
 public:
  MpiPending(ProgressThread& thread, std::shared_ptr<Job> job, const char* op)
      : thread_(thread), job_(std::move(job)), op_(op) {}
  void wait() override {
    launch(current_stream(Device::cpu), op_, Work{}, [&] { thread_.wait(*job_); });
  }

 private:
  ProgressThread& thread_;
  std::shared_ptr<Job> job_;
  const char* op_;
};

class MpiReceived final : public Pending {
 public:
  explicit MpiReceived(std::shared_ptr<MpiReceipts> receipts) : receipts_(std::move(receipts)) {}
  ~MpiReceived() override { receipts_->cancel(); }
  void wait() override {
    launch(current_stream(Device::cpu), "exchange_wait", Work{}, [&] { receipts_->wait(); });
  }

 private:
  std::shared_ptr<MpiReceipts> receipts_;
};

// An MPI communicator of our own.
class OwnComm {
 public:
  OwnComm(MPI_Comm from, int color) {
    int rank = 0;
    check_mpi(MPI_Comm_rank(from, &rank), "MPI_Comm_rank");
    check_mpi(MPI_Comm_split(from, color < 0 ? MPI_UNDEFINED : color, rank, &comm_), "MPI_Comm_split");
    if (comm_ != MPI_COMM_NULL) MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
  }
  ~OwnComm() {
    if (comm_ != MPI_COMM_NULL) MPI_Comm_free(&comm_);
  }
  OwnComm(OwnComm&& other) noexcept : comm_(std::exchange(other.comm_, MPI_COMM_NULL)) {}
  OwnComm& operator=(OwnComm&&) = delete;
  operator MPI_Comm() const { return comm_; }

 private:
  MPI_Comm comm_ = MPI_COMM_NULL;
};

class MpiCommunicator final : public Communicator {
 public:
  // Collective over `comm`.
  MpiCommunicator(OwnComm comm, std::shared_ptr<const Operations> operations)
      : operations_(std::move(operations)),
        comm_(std::move(comm)),
        async_comm_(comm_, 0),
        messages_(MPI_Comm_c2f(comm_)) {
    MPI_Comm_rank(comm_, &rank_);
    MPI_Comm_size(comm_, &size_);
    int level = MPI_THREAD_SINGLE;
    MPI_Query_thread(&level);
    may_thread_ = level == MPI_THREAD_MULTIPLE && size_ > 1;
  }
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  void barrier() override { check_mpi(MPI_Barrier(comm_), "MPI_Barrier"); }
  void abort(const std::string&, int exit_code) noexcept override {
    int all = 1;
    MPI_Comm_size(MPI_COMM_WORLD, &all);
    if (all > 1) MPI_Abort(MPI_COMM_WORLD, exit_code);
  }
  std::unique_ptr<Communicator> split(int color) override {
    OwnComm comm(comm_, color);
    if (comm == MPI_COMM_NULL) return nullptr;
    return std::make_unique<MpiCommunicator>(std::move(comm), operations_);
  }

 protected:
  void do_all_reduce(Span values, Reduce op) override {
    if (!in_host_memory(values, "mpi")) return;
    launch(current_stream(Device::cpu), "all_reduce", Work{0, 2.0 * static_cast<double>(values.bytes())},
           [&] {
             for_pieces(values, [&](void* data, int count) {
               check_mpi(MPI_Allreduce(MPI_IN_PLACE, data, count, mpi_type(values.dtype),
                                       operations_->of(values.dtype, op), comm_),
                         "MPI_Allreduce");
             });
           });
  }
  std::unique_ptr<Pending> do_all_reduce_async(Span values) override {
    if (!in_host_memory(values, "mpi")) return nothing_pending();
    return beside("all_reduce_wait", [this, values] {
      for_pieces(values, [&](void* data, int count) {
        MPI_Request request = MPI_REQUEST_NULL;
        check_mpi(MPI_Iallreduce(MPI_IN_PLACE, data, count, mpi_type(values.dtype),
                                 operations_->of(values.dtype, Reduce::sum), async_comm_, &request),
                  "MPI_Iallreduce");
        finish(request);
      });
    });
  }
  void do_all_gather(Span mine, Span all) override {
    if (!in_host_memory(mine, "mpi")) return;
    launch(current_stream(Device::cpu), "all_gather", Work{0, static_cast<double>(all.bytes())}, [&] {
      if (all.count > kMaxCount) return gather_in_pieces(mine, all, comm_);
      const auto count = static_cast<int>(mine.count);
      check_mpi(MPI_Allgather(piece_or_in_place(mine, all), count, mpi_type(mine.dtype), all.data, count,
                              mpi_type(all.dtype), comm_),
                "MPI_Allgather");
    });
  }
  std::unique_ptr<Pending> do_all_gather_async(Span mine, Span all) override {
    if (!in_host_memory(mine, "mpi")) return nothing_pending();
    return beside("all_gather_wait", [this, mine, all] {
      if (all.count > kMaxCount) return gather_in_pieces(mine, all, async_comm_);
      gather_into(piece_or_in_place(mine, all), all.data, mine.count, mine.dtype, async_comm_);
    });
  }
  std::unique_ptr<Pending> do_reduce_scatter_async(Span all, Span mine) override {
    if (!in_host_memory(mine, "mpi")) return nothing_pending();
    return beside("reduce_scatter_wait", [this, all, mine] {
      if (all.count > kMaxCount) return reduce_scatter_in_pieces(all, mine);
      std::vector<char> sum(mine.bytes());  // MPI's in-place form leaves it in front of `all`
      scatter_sum(all.data, sum.data(), mine.count, all.dtype);
      std::copy(sum.begin(), sum.end(), static_cast<char*>(mine.data));
    });
  }
  void do_broadcast(Span values, int root) override {
    if (!in_host_memory(values, "mpi")) return;
    for_pieces(values, [&](void* data, int count) {
      check_mpi(MPI_Bcast(data, count, mpi_type(values.dtype), root, comm_), "MPI_Bcast");
    });
  }

  std::unique_ptr<Pending> do_exchange_async(const std::vector<Message>& messages) override {
    if (!in_host_memory(messages.front().values, "mpi")) return nothing_pending();
    std::shared_ptr<MpiReceipts> receipts = messages_.begin(messages);
    if (may_thread_) progress().poll();
    if (receipts == nullptr) return nothing_pending();
    return std::make_unique<MpiReceived>(std::move(receipts));
  }

 private:
  // Started when first needed: most groups are one of several.
  ProgressThread& progress() {
    if (progress_ == nullptr) progress_ = std::make_unique<ProgressThread>(messages_);
    return *progress_;
  }

  // On the progress thread; here where MPI allows one thread only.
  std::unique_ptr<Pending> beside(const char* wait_op, std::function<void()> body) {
    if (!may_thread_) {
      body();
      return nothing_pending();
    }
    auto job = std::make_shared<Job>(Job{std::move(body), false, nullptr});
    progress().submit(job);
    return std::make_unique<MpiPending>(progress(), std::move(job), wait_op);
  }

  void gather_into(void* mine, void* all, std::size_t count, DType dtype, MPI_Comm comm) {
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(MPI_Iallgather(mine, static_cast<int>(count), mpi_type(dtype), all, static_cast<int>(count),
                             mpi_type(dtype), comm, &request),
              "MPI_Iallgather");
    finish(request);
  }

  void scatter_sum(void* all, void* sum, std::size_t count, DType dtype) {
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(MPI_Ireduce_scatter_block(all, sum, static_cast<int>(count), mpi_type(dtype),
                                        operations_->of(dtype, Reduce::sum), async_comm_, &request),
              "MPI_Ireduce_scatter_block");
    finish(request);
  }

  // body(first byte of a rank's piece, bytes, elements) for runs that are small in all ranks together.
  template <class Body>
  void for_runs(const Span& mine, Body&& body) {
    const std::size_t width = size_of(mine.dtype), most = kMaxCount / static_cast<std::size_t>(size_) / 8;
    for (std::size_t done = 0; done < mine.count; done += most) {
      const std::size_t count = std::min(most, mine.count - done);
      body(done * width, count * width, count);
    }
  }

  // MPI's counts are ints; ranks' runs lie apart in the whole, so they pass through a buffer.
  void gather_in_pieces(const Span& mine, const Span& all, MPI_Comm comm) {
    std::vector<char> buffer;
    for_runs(mine, [&](std::size_t at, std::size_t bytes, std::size_t count) {
      buffer.resize(bytes * static_cast<std::size_t>(size_));
      gather_into(static_cast<char*>(mine.data) + at, buffer.data(), count, mine.dtype, comm);
      for (std::size_t r = 0; r < static_cast<std::size_t>(size_); ++r)
        std::memcpy(static_cast<char*>(all.data) + r * mine.bytes() + at, buffer.data() + r * bytes, bytes);
    });
  }

  void reduce_scatter_in_pieces(const Span& all, const Span& mine) {
    std::vector<char> buffer;
    for_runs(mine, [&](std::size_t at, std::size_t bytes, std::size_t count) {
      buffer.resize(bytes * static_cast<std::size_t>(size_ + 1));
      for (std::size_t r = 0; r < static_cast<std::size_t>(size_); ++r)
        std::memcpy(buffer.data() + r * bytes, static_cast<char*>(all.data) + r * mine.bytes() + at, bytes);
      char* sum = buffer.data() + bytes * static_cast<std::size_t>(size_);
      scatter_sum(buffer.data(), sum, count, mine.dtype);
      std::memcpy(static_cast<char*>(mine.data) + at, sum, bytes);
    });
  }

  // MPI forbids a piece that overlaps the whole by any other means.
  void* piece_or_in_place(const Span& mine, const Span& all) const {
    const char* place = static_cast<char*>(all.data) + static_cast<std::size_t>(rank_) * mine.bytes();
    return mine.data == place ? MPI_IN_PLACE : mine.data;
  }

  std::shared_ptr<const Operations> operations_;
  OwnComm comm_;
  OwnComm async_comm_;  // the progress thread's own: its collectives never mix with ours
  int rank_ = 0;
  int size_ = 1;
  bool may_thread_ = false;
  MpiMessages messages_;
  std::unique_ptr<ProgressThread> progress_;  // last: its thread uses the others
};

}  // namespace

MpiSession::MpiSession(bool launched) {
  if (!launched) {
    world_ = self_communicator();
    return;
  }
  int provided = 0;
  check_mpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided), "MPI_Init_thread");
  started_ = true;
  MPI_Comm host = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host),
            "MPI_Comm_split_type");
  MPI_Comm_size(host, &local_size_);
  MPI_Comm_rank(host, &local_rank_);
  MPI_Comm_free(&host);
  world_ = std::make_unique<MpiCommunicator>(OwnComm(MPI_COMM_WORLD, 0), std::make_shared<Operations>());
}

MpiSession::~MpiSession() {
  world_.reset();
  if (!started_) return;
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (finalized == 0) MPI_Finalize();
}

}  // namespace ridge::parallel
