#include "parallel/mpi_messages.h"

#include <mpi.h>

#include <deque>
#include <exception>
#include <mutex>
#include <thread>

#include "core/base/error.h"
#include "core/base/launch.h"
#include "parallel/mpi_internal.h"

namespace ridge::parallel {
namespace {

constexpr int kTag = 0;                              // order alone tells messages apart
constexpr auto kPatience = std::chrono::seconds(5);  // of an end, for messages that nobody has taken

MPI_Datatype mpi_type(DType dtype) { return MPI_Type_f2c(mpi_type_handle(dtype)); }

class Receipts final : public MpiReceipts {
 public:
  // Begins them: messages of one communicator match in this order.
  Receipts(MPI_Comm comm, const std::vector<Message>& messages);
  ~Receipts() override { cancel(); }
  Receipts(const Receipts&) = delete;
  Receipts& operator=(const Receipts&) = delete;

  bool empty() const { return open_.empty(); }
  bool settled() noexcept override;
  void wait() override;
  void cancel() noexcept override;

 private:
  struct Receive {
    MPI_Request request;
    int from;
    int count;
    DType dtype;
  };
  static bool done(Receive& receive);

  std::mutex mutex_;
  std::deque<Receive> open_;
  std::exception_ptr error_;
};

Receipts::Receipts(MPI_Comm comm, const std::vector<Message>& messages) {
  for (const Message& m : messages) {
    if (m.way != Message::Way::receive) continue;
    for_pieces(m.values, [&](void* data, int count) {
      open_.push_back({MPI_REQUEST_NULL, m.peer, count, m.values.dtype});
      check_mpi(MPI_Irecv(data, count, mpi_type(m.values.dtype), m.peer, kTag, comm, &open_.back().request),
                "MPI_Irecv");
    });
  }
}

bool Receipts::done(Receive& receive) {
  int done = 0, count = 0;
  MPI_Status status{};
  const int code = MPI_Test(&receive.request, &done, &status);
  int kind = MPI_SUCCESS;
  MPI_Error_class(code, &kind);
  if (kind == MPI_ERR_TRUNCATE)
    fail("{} {} expected from rank {}, which sent more", receive.count, name_of(receive.dtype), receive.from);
  check_mpi(code, "MPI_Test");
  if (done == 0) return false;
  check_mpi(MPI_Get_count(&status, mpi_type(receive.dtype), &count), "MPI_Get_count");
  if (count != receive.count) {
    fail("{} {} expected from rank {}, which sent {}", receive.count, name_of(receive.dtype), receive.from,
         count);
  }
  return true;
}

bool Receipts::settled() noexcept {
  const std::lock_guard lock(mutex_);
  while (!open_.empty()) {
    try {
      if (!done(open_.front())) return false;
    } catch (...) {
      if (!error_) error_ = std::current_exception();
    }
    open_.pop_front();
  }
  return true;
}

void Receipts::wait() {
  while (!settled()) std::this_thread::sleep_for(kPoll);
  const std::lock_guard lock(mutex_);
  if (error_) std::rethrow_exception(error_);
}

void Receipts::cancel() noexcept {
  const std::lock_guard lock(mutex_);
  for (Receive& receive : open_) {
    if (receive.request == MPI_REQUEST_NULL) continue;
    MPI_Cancel(&receive.request);
    MPI_Wait(&receive.request, MPI_STATUS_IGNORE);
  }
  open_.clear();
}

}  // namespace

class MpiMessages::UnderWay {
 public:
  explicit UnderWay(MPI_Comm comm) : comm_(comm) {}
  ~UnderWay();
  UnderWay(const UnderWay&) = delete;
  UnderWay& operator=(const UnderWay&) = delete;

  std::shared_ptr<MpiReceipts> begin(const std::vector<Message>& messages);
  bool poll() noexcept;

 private:
  struct Send {
    std::vector<char> bytes;
    std::vector<MPI_Request> requests;
  };
  bool sending();

  MPI_Comm comm_;
  std::mutex mutex_;
  std::deque<Send> sends_;
  std::vector<std::weak_ptr<MpiReceipts>> receipts_;
};

MpiMessages::UnderWay::~UnderWay() {
  const auto begin = std::chrono::steady_clock::now();
  const bool unwinding = std::uncaught_exceptions() > 0;
  while (sending() && !unwinding && std::chrono::steady_clock::now() - begin < kPatience)
    std::this_thread::sleep_for(kPoll);
  if (sends_.empty()) return;
  static auto* const kept = new std::vector<std::deque<Send>>;  // MPI reads them until it ends
  kept->push_back(std::move(sends_));
}

std::shared_ptr<MpiReceipts> MpiMessages::UnderWay::begin(const std::vector<Message>& messages) {
  const std::lock_guard lock(mutex_);
  auto receipts = std::make_shared<Receipts>(comm_, messages);
  for (const Message& m : messages) {
    if (m.way != Message::Way::send || m.values.count == 0) continue;
    launch(current_stream(Device::cpu), "send", Work{0, 2.0 * static_cast<double>(m.values.bytes())}, [&] {
      const auto* data = static_cast<const char*>(m.values.data);
      Send& send = sends_.emplace_back(Send{std::vector<char>(data, data + m.values.bytes()), {}});
      AnySpan copy = m.values;
      copy.data = send.bytes.data();
      for_pieces(copy, [&](void* piece, int count) {
        send.requests.push_back(MPI_REQUEST_NULL);
        check_mpi(MPI_Isend(piece, count, mpi_type(copy.dtype), m.peer, kTag, comm_, &send.requests.back()),
                  "MPI_Isend");
      });
    });
  }
  if (receipts->empty()) return nullptr;
  receipts_.push_back(receipts);
  return receipts;
}

bool MpiMessages::UnderWay::poll() noexcept {
  std::vector<std::weak_ptr<MpiReceipts>> open;
  bool busy = false;
  {
    const std::lock_guard lock(mutex_);
    busy = sending();
    open.swap(receipts_);
  }
  std::erase_if(open, [](const std::weak_ptr<MpiReceipts>& weak) {
    const auto receipts = weak.lock();
    return receipts == nullptr || receipts->settled();
  });
  const std::lock_guard lock(mutex_);
  receipts_.insert(receipts_.end(), open.begin(), open.end());
  return busy || !receipts_.empty();
}

// Lets go of what has been sent.
bool MpiMessages::UnderWay::sending() {
  std::erase_if(sends_, [](Send& send) {
    int done = 0;
    const int count = static_cast<int>(send.requests.size());
    const int code = MPI_Testall(count, send.requests.data(), &done, MPI_STATUSES_IGNORE);
    return code == MPI_SUCCESS && done != 0;
  });
  return !sends_.empty();
}

MpiMessages::MpiMessages(int comm) : under_way_(std::make_unique<UnderWay>(MPI_Comm_f2c(comm))) {}
MpiMessages::~MpiMessages() = default;

std::shared_ptr<MpiReceipts> MpiMessages::begin(const std::vector<Message>& messages) {
  return under_way_->begin(messages);
}

bool MpiMessages::poll() noexcept { return under_way_->poll(); }

}  // namespace ridge::parallel
