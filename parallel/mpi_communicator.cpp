#include "parallel/mpi_communicator.h"

#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
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

struct Job {
  void* data;
  std::size_t count;
  DType dtype;
  bool done = false;
  std::exception_ptr error;
};

// One thread that carries out all-reduces in the order in which they were asked for.
class ProgressThread {
 public:
  explicit ProgressThread(MPI_Comm comm) : comm_(comm), thread_([this] { run(); }) {}
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
        reduce(*job);
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

  void reduce(const Job& job) {
    for (std::size_t begin = 0; begin < job.count; begin += kMaxCount) {
      const int count = static_cast<int>(std::min(kMaxCount, job.count - begin));
      MPI_Request request = MPI_REQUEST_NULL;
      check_mpi(MPI_Iallreduce(MPI_IN_PLACE, static_cast<char*>(job.data) + begin * size_of(job.dtype), count,
                               mpi_type(job.dtype), MPI_SUM, comm_, &request),
                "MPI_Iallreduce");
      int done = 0;
      for (;;) {
        check_mpi(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "MPI_Test");
        if (done != 0) break;
        std::this_thread::sleep_for(kPoll);
      }
    }
  }

  MPI_Comm comm_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Job>> queue_;
  bool stopping_ = false;
  std::thread thread_;
};

class MpiPending final : public Pending {
 public:
  MpiPending(ProgressThread& thread, std::shared_ptr<Job> job) : thread_(thread), job_(std::move(job)) {}
  void wait() override {
    launch(current_stream(Device::cpu), "all_reduce_wait", Work{}, [&] { thread_.wait(*job_); });
  }

 private:
  ProgressThread& thread_;
  std::shared_ptr<Job> job_;
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
    if (level == MPI_THREAD_MULTIPLE && size_ > 1) progress_ = std::make_unique<ProgressThread>(async_comm_);
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
    const double bytes = 2.0 * static_cast<double>(values.count * size_of(values.dtype));
    launch(current_stream(Device::cpu), "all_reduce", Work{0, bytes}, [&] {
      for_pieces(values, [&](void* data, int count, std::size_t) {
        check_mpi(MPI_Allreduce(MPI_IN_PLACE, data, count, mpi_type(values.dtype),
                                op == Reduce::sum ? MPI_SUM : MPI_MAX, comm_),
                  "MPI_Allreduce");
      });
    });
  }
  std::unique_ptr<Pending> do_all_reduce_async(Span values) override {
    auto job = std::make_shared<Job>(Job{values.data, values.count, values.dtype, false, nullptr});
    if (progress_ == nullptr) {
      do_all_reduce(values, Reduce::sum);
      return self_communicator()->all_reduce_async(std::span<float>());
    }
    progress_->submit(job);
    return std::make_unique<MpiPending>(*progress_, std::move(job));
  }
  void do_all_gather(Span mine, Span all) override {
    check(all.count == mine.count * static_cast<std::size_t>(size_) && all.count <= kMaxCount,
          "all_gather into size() pieces");
    const int count = static_cast<int>(mine.count);
    check_mpi(
        MPI_Allgather(mine.data, count, mpi_type(mine.dtype), all.data, count, mpi_type(all.dtype), comm_),
        "MPI_Allgather");
  }
  void do_broadcast(Span values, int root) override {
    for_pieces(values, [&](void* data, int count, std::size_t) {
      check_mpi(MPI_Bcast(data, count, mpi_type(values.dtype), root, comm_), "MPI_Bcast");
    });
  }

 private:
  template <class F>
  static void for_pieces(Span values, F&& body) {
    for (std::size_t begin = 0; begin < values.count; begin += kMaxCount) {
      const int count = static_cast<int>(std::min(kMaxCount, values.count - begin));
      body(static_cast<char*>(values.data) + begin * size_of(values.dtype), count, begin);
    }
  }

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
