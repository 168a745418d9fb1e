// The ways between neighbouring stages of a pipeline: one a pair of stages and direction, each a communicator
// of two ranks, so that on a GPU no message waits behind another link's.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "core/tensor.h"
#include "parallel/communicator.h"
#include "parallel/schedule.h"

namespace ridge::parallel {

class PipelineLinks {
 public:
  /// Every rank of `pp` together: splits it and connects the pairs. `device`: where messages will lie.
  PipelineLinks(Communicator& pp, Schedule kind, int chunks, Device device);

  /// A send_activation or send_gradient. The tensor is kept until it was sent; where kLinkWindow messages of
  /// the link are under way, this waits for the oldest.
  void send(const Action& action, const Tensor& tensor);
  /// A receive_activation or receive_gradient into `tensor`, which must stay until wait(). Those of a link
  /// are asked for in the order in which they are sent.
  std::unique_ptr<Pending> receive(const Action& action, const Tensor& tensor);
  /// Waits until all was sent.
  void finish();

 private:
  struct Sent {
    Tensor tensor;
    std::unique_ptr<Pending> pending;
  };
  struct Link {
    std::unique_ptr<Communicator> pair;
    std::deque<Sent> sent;
  };
  Link& at(Act act, int stage);

  std::map<std::pair<Act, int>, Link> links_;  // by send_activation or send_gradient, and the sending stage
};

}  // namespace ridge::parallel
