#include "parallel/pipeline_links.h"

#include <algorithm>
#include <set>

#include "core/base/error.h"
#include "parallel/tensor_span.h"

namespace ridge::parallel {
namespace {

struct Route {
  Act act;  // send_activation or send_gradient
  int stage;
  int from, to;  // ranks
};

// All links of a pipeline in rounds: within one, no rank has two. Every rank works them out alike.
std::vector<std::vector<Route>> rounds(Schedule kind, int ranks, int chunks) {
  std::vector<std::vector<Route>> result;
  std::vector<std::set<int>> busy;  // ranks, by round
  const auto add = [&](const Route& route) {
    std::size_t round = 0;
    while (round < busy.size() && (busy[round].count(route.from) != 0 || busy[round].count(route.to) != 0))
      ++round;
    if (round == busy.size()) {
      busy.emplace_back();
      result.emplace_back();
    }
    busy[round].insert({route.from, route.to});
    result[round].push_back(route);
  };
  for (int stage = 0; stage + 1 < ranks * chunks; ++stage) {
    const int here = rank_of_stage(kind, ranks, chunks, stage);
    const int next = rank_of_stage(kind, ranks, chunks, stage + 1);
    if (here == next) continue;
    add({Act::send_activation, stage, here, next});
    add({Act::send_gradient, stage + 1, next, here});
  }
  return result;
}

// A first batch that goes both ways: later ones need not wait for the peer.
void connect(Communicator& pair, Device device) {
  const Tensor out = Tensor::zeros({1}, DType::f32, device), in = Tensor::zeros({1}, DType::f32, device);
  const int peer = 1 - pair.rank();
  pair.exchange({Communicator::send_to<float>(peer, span_of<float>(out)),
                 Communicator::receive_from<float>(peer, span_of<float>(in))});
}

AnySpan whole(const Tensor& tensor) {
  check(tensor.contiguous(), "a contiguous message");
  return {tensor.data(), static_cast<std::size_t>(tensor.numel()), tensor.dtype(), tensor.device()};
}

}  // namespace

PipelineLinks::PipelineLinks(Communicator& pp, Schedule kind, int chunks, Device device) {
  for (const std::vector<Route>& round : rounds(kind, pp.size(), chunks)) {
    const auto place_of = [&](int rank) {
      const auto route = std::find_if(round.begin(), round.end(),
                                      [&](const Route& r) { return r.from == rank || r.to == rank; });
      return route == round.end() ? -1 : static_cast<int>(route - round.begin());
    };
    std::unique_ptr<Communicator> pair = pp.split_by(place_of);
    if (pair == nullptr) continue;
    connect(*pair, device);
    const Route& mine = round[static_cast<std::size_t>(place_of(pp.rank()))];
    links_[{mine.act, mine.stage}].pair = std::move(pair);
  }
}

PipelineLinks::Link& PipelineLinks::at(Act act, int stage) {
  const auto found = links_.find({act, stage});
  if (found == links_.end()) fail("no link for {} of stage {}", name_of(act), stage);
  return found->second;
}

void PipelineLinks::send(const Action& action, const Tensor& tensor) {
  Link& link = at(action.act, action.stage);
  if (link.sent.size() == static_cast<std::size_t>(kLinkWindow)) {
    link.sent.front().pending->wait();
    link.sent.pop_front();
  }
  const Message message{Message::Way::send, 1 - link.pair->rank(), whole(tensor)};
  link.sent.push_back({tensor, link.pair->exchange_async({message})});
}

std::unique_ptr<Pending> PipelineLinks::receive(const Action& action, const Tensor& tensor) {
  const bool forward = action.act == Act::receive_activation;
  Link& link = at(forward ? Act::send_activation : Act::send_gradient, action.stage + (forward ? -1 : 1));
  return link.pair->exchange_async({{Message::Way::receive, 1 - link.pair->rank(), whole(tensor)}});
}

void PipelineLinks::finish() {
  for (auto& [key, link] : links_) {
    for (const Sent& sent : link.sent) sent.pending->wait();
    link.sent.clear();
  }
}

}  // namespace ridge::parallel
