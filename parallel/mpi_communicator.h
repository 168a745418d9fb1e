// Ranks as MPI processes, for CPU tensors.
#pragma once

#include <memory>

#include "parallel/communicator.h"

namespace ridge::parallel {

/// MPI's start and end. One object in main().
class MpiSession {
 public:
  /// Starts MPI if this process was launched by mpirun or srun; else it is one rank without MPI.
  explicit MpiSession(bool launched);
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

  /// All ranks. What is split off it ends before this does.
  Communicator& world() { return *world_; }
  /// Ranks on this host, and this one's place among them.
  int local_size() const { return local_size_; }
  int local_rank() const { return local_rank_; }

 private:
  bool started_ = false;
  int local_size_ = 1;
  int local_rank_ = 0;
  std::unique_ptr<Communicator> world_;
};

}  // namespace ridge::parallel
