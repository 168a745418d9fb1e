#include "parallel/mpi_communicator.h"

#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

#include "core/base/error.h"
#include "core/base/launch.h"

namespace ridge::parallel {
namespace {

constexpr std::size_t kMaxCount = std::size_t{1} << 28;  // elements of one MPI call; its counts are ints
constexpr auto kPoll =
    std::chrono::microseconds(50);  // the progress thread leaves the core to the compute thread

void check_mpi(int code, const char* call, std::source_location where = std::source_location::current()) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  fail("{} failed at {}:{}: {}", call, where.file_name(), where.line(),
       std::string_view(text, static_cast<std::size_t>(length)));
}

MPI_Datatype mpi_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return MPI_FLOAT;
    case DType::f64:
      return MPI_DOUBLE;
    case DType::bf16:  // reduced by operations of ours
      return MPI_UINT16_T;
    case DType::i32:
      return MPI_INT32_T;
    case DType::i64:
      return MPI_INT64_T;
    case DType::u8:
      return MPI_UINT8_T;
    case DType::i8:
      return MPI_INT8_T;
    default:
      fail("MPI carries no {}", name_of(dtype));
  }
}

template <Reduce kOp>
void reduce_bf16(void* from, void* to, int* count, MPI_Datatype*) {
  const auto* other = static_cast<const bf16*>(from);
  auto* values = static_cast<bf16*>(to);
  for (int i = 0; i < *count; ++i) {
    const auto a = static_cast<float>(values[i]), b = static_cast<float>(other[i]);
    values[i] = bf16(kOp == Reduce::sum ? a + b : std::max(a, b));
  }
}

// Reductions by dtype: MPI's own, and ours of bf16.
class Operations {
 public:
  Operations() {
    check_mpi(MPI_Op_create(reduce_bf16<Reduce::sum>, 1, &bf16_sum_), "MPI_Op_create");
    check_mpi(MPI_Op_create(reduce_bf16<Reduce::max>, 1, &bf16_max_), "MPI_Op_create");
  }
  ~Operations() {
    MPI_Op_free(&bf16_sum_);
    MPI_Op_free(&bf16_max_);
  }
  Operations(const Operations&) = delete;
  Operations& operator=(const Operations&) = delete;

  MPI_Op of(DType dtype, Reduce op) const {
    if (dtype == DType::bf16) return op == Reduce::sum ? bf16_sum_ : bf16_max_;
    return op == Reduce::sum ? MPI_SUM : MPI_MAX;
  }

 private:
  MPI_Op bf16_sum_ = MPI_OP_NULL;
  MPI_Op bf16_max_ = MPI_OP_NULL;
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

// One thread that carries out collectives in the order in which they were asked for.
class ProgressThread {
 public:
  ProgressThread() : thread_([this] { run(); }) {}
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
        changed_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
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

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Job>> queue_;
  bool stopping_ = false;
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

class MpiCommunicator final : public Communicator {
 public:
  MpiCommunicator() {
    check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &comm_), "MPI_Comm_dup");
    check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &async_comm_), "MPI_Comm_dup");
    MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
    MPI_Comm_set_errhandler(async_comm_, MPI_ERRORS_RETURN);
    MPI_Comm_rank(comm_, &rank_);
    MPI_Comm_size(comm_, &size_);
    int level = MPI_THREAD_SINGLE;
    MPI_Query_thread(&level);
    if (level == MPI_THREAD_MULTIPLE && size_ > 1) progress_ = std::make_unique<ProgressThread>();
  }
  ~MpiCommunicator() override {
    progress_.reset();
    MPI_Comm_free(&async_comm_);
    MPI_Comm_free(&comm_);
  }
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  void barrier() override { check_mpi(MPI_Barrier(comm_), "MPI_Barrier"); }
  void abort(const std::string&, int exit_code) noexcept override {
    if (size_ > 1) MPI_Abort(MPI_COMM_WORLD, exit_code);
  }

 protected:
  void do_all_reduce(Span values, Reduce op) override {
    if (!in_host_memory(values, "mpi")) return;
    launch(current_stream(Device::cpu), "all_reduce", Work{0, 2.0 * static_cast<double>(values.bytes())},
           [&] {
             for_pieces(values, [&](void* data, int count) {
               check_mpi(MPI_Allreduce(MPI_IN_PLACE, data, count, mpi_type(values.dtype),
                                       operations_.of(values.dtype, op), comm_),
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
                                 operations_.of(values.dtype, Reduce::sum), async_comm_, &request),
                  "MPI_Iallreduce");
        finish(request);
      });
    });
  }
  void do_all_gather(Span mine, Span all) override {
    if (!in_host_memory(mine, "mpi")) return;
    check(all.count <= kMaxCount, "at most 2^28 elements in one all_gather");
    launch(current_stream(Device::cpu), "all_gather", Work{0, static_cast<double>(all.bytes())}, [&] {
      check_mpi(
          MPI_Allgather(piece_or_in_place(mine, all), static_cast<int>(mine.count), mpi_type(mine.dtype),
                        all.data, static_cast<int>(mine.count), mpi_type(all.dtype), comm_),
          "MPI_Allgather");
    });
  }
  std::unique_ptr<Pending> do_all_gather_async(Span mine, Span all) override {
    if (!in_host_memory(mine, "mpi")) return nothing_pending();
    check(all.count <= kMaxCount, "at most 2^28 elements in one all_gather");
    return beside("all_gather_wait", [this, mine, all] {
      MPI_Request request = MPI_REQUEST_NULL;
      check_mpi(
          MPI_Iallgather(piece_or_in_place(mine, all), static_cast<int>(mine.count), mpi_type(mine.dtype),
                         all.data, static_cast<int>(mine.count), mpi_type(all.dtype), async_comm_, &request),
          "MPI_Iallgather");
      finish(request);
    });
  }
  std::unique_ptr<Pending> do_reduce_scatter_async(Span all, Span mine) override {
    if (!in_host_memory(mine, "mpi")) return nothing_pending();
    check(all.count <= kMaxCount, "at most 2^28 elements in one reduce_scatter");
    return beside("reduce_scatter_wait", [this, all, mine] {
      std::vector<char> sum(mine.bytes());  // MPI's in-place form leaves it in front of `all`
      MPI_Request request = MPI_REQUEST_NULL;
      check_mpi(
          MPI_Ireduce_scatter_block(all.data, sum.data(), static_cast<int>(mine.count), mpi_type(all.dtype),
                                    operations_.of(all.dtype, Reduce::sum), async_comm_, &request),
          "MPI_Ireduce_scatter_block");
      finish(request);
      std::copy(sum.begin(), sum.end(), static_cast<char*>(mine.data));
    });
  }
  void do_broadcast(Span values, int root) override {
    if (!in_host_memory(values, "mpi")) return;
    for_pieces(values, [&](void* data, int count) {
      check_mpi(MPI_Bcast(data, count, mpi_type(values.dtype), root, comm_), "MPI_Bcast");
    });
  }

 private:
  // On the progress thread; here where MPI allows one thread only.
  std::unique_ptr<Pending> beside(const char* wait_op, std::function<void()> body) {
    if (progress_ == nullptr) {
      body();
      return nothing_pending();
    }
    auto job = std::make_shared<Job>(Job{std::move(body), false, nullptr});
    progress_->submit(job);
    return std::make_unique<MpiPending>(*progress_, std::move(job), wait_op);
  }

  // MPI forbids a piece that overlaps the whole by any other means.
  void* piece_or_in_place(const Span& mine, const Span& all) const {
    const char* place = static_cast<char*>(all.data) + static_cast<std::size_t>(rank_) * mine.bytes();
    return mine.data == place ? MPI_IN_PLACE : mine.data;
  }

  template <class F>
  static void for_pieces(Span values, F&& body) {
    for (std::size_t begin = 0; begin < values.count; begin += kMaxCount) {
      const int count = static_cast<int>(std::min(kMaxCount, values.count - begin));
      body(static_cast<char*>(values.data) + begin * size_of(values.dtype), count);
    }
  }

  Operations operations_;
  MPI_Comm comm_ = MPI_COMM_NULL;
  MPI_Comm async_comm_ = MPI_COMM_NULL;  // the progress thread's own: its collectives never mix with ours
  int rank_ = 0;
  int size_ = 1;
  std::unique_ptr<ProgressThread> progress_;
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
  world_ = std::make_unique<MpiCommunicator>();
}

MpiSession::~MpiSession() {
  world_.reset();
  if (!started_) return;
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (finalized == 0) MPI_Finalize();
}

}  // namespace ridge::parallel
