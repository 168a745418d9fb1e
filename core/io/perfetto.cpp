#include "core/io/perfetto.h"

#include <fcntl.h>

#include <cerrno>
#include <map>
#include <utility>

#include "core/base/error.h"
#include "core/io/file.h"
#include "core/io/perfetto.pb.h"

namespace ridge {
namespace {

constexpr std::uint32_t kSequence = 1;  // of packets; any number but 0
constexpr std::uint32_t kStateCleared = 1, kNeedsState = 2;
constexpr std::size_t kBufferBytes = 1 << 20;

// Numbers for names, from 1 on, in the order of first use.
using Names = std::map<std::string, std::uint64_t, std::less<>>;

template <class Add>
std::uint64_t intern(Names& names, std::string_view name, Add add) {
  const auto found = names.find(name);
  if (found != names.end()) return found->second;
  const std::uint64_t iid = names.size() + 1;
  names.emplace(name, iid);
  perfetto::InternedName* entry = add();
  entry->set_iid(iid);
  entry->set_name(std::string(name));
  return iid;
}

}  // namespace

struct PerfettoWriter::Impl {
  std::string path;
  FileDescriptor fd;
  std::string buffer;
  Names event_names, annotation_names;
  std::uint64_t tracks = 0;
  bool first = true;

  perfetto::TracePacket packet() {
    perfetto::TracePacket packet;
    packet.set_trusted_packet_sequence_id(kSequence);
    packet.set_sequence_flags(std::exchange(first, false) ? kStateCleared | kNeedsState : kNeedsState);
    return packet;
  }

  void write(const perfetto::TracePacket& packet) {
    perfetto::Trace trace;  // a trace of one packet: traces are joined by putting their bytes together
    *trace.add_packet() = packet;
    trace.AppendToString(&buffer);
    if (buffer.size() >= kBufferBytes) flush();
  }

  void flush() {
    const std::string bytes = std::exchange(buffer, {});
    write_fully(fd, std::as_bytes(std::span(bytes)), path);
  }

  perfetto::TrackDescriptor* add_track(perfetto::TracePacket& packet) {
    perfetto::TrackDescriptor* track = packet.mutable_track_descriptor();
    track->set_uuid(++tracks);
    return track;
  }

  perfetto::TracePacket event(Track track, std::uint64_t time_ns, perfetto::TrackEvent::Type type) {
    perfetto::TracePacket made = packet();
    made.set_timestamp(time_ns);
    made.mutable_track_event()->set_type(type);
    made.mutable_track_event()->set_track_uuid(static_cast<std::uint64_t>(track));
    return made;
  }

  void name_event(perfetto::TracePacket& packet, std::string_view name,
                  std::span<const TraceAnnotation> annotations) {
    perfetto::TrackEvent& event = *packet.mutable_track_event();
    event.set_name_iid(
        intern(event_names, name, [&] { return packet.mutable_interned_data()->add_event_names(); }));
    for (const TraceAnnotation& annotation : annotations) {
      perfetto::DebugAnnotation& made = *event.add_debug_annotations();
      made.set_name_iid(intern(annotation_names, annotation.name,
                               [&] { return packet.mutable_interned_data()->add_debug_annotation_names(); }));
      if (const auto* whole = std::get_if<std::int64_t>(&annotation.value)) made.set_int_value(*whole);
      if (const auto* real = std::get_if<double>(&annotation.value)) made.set_double_value(*real);
    }
  }
};

PerfettoWriter::PerfettoWriter(const std::string& path) : impl_(std::make_unique<Impl>()) {
  impl_->path = path;
  impl_->fd = FileDescriptor(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
  require(impl_->fd.get() >= 0, "cannot create '{}': {}", path, errno_text(errno));
}

PerfettoWriter::PerfettoWriter(PerfettoWriter&&) noexcept = default;

PerfettoWriter::~PerfettoWriter() {
  try {
    if (impl_) impl_->flush();
  } catch (const UserError&) {  // whoever cares calls flush()
  }
}

PerfettoWriter::Track PerfettoWriter::process(std::int32_t pid, std::string_view name) {
  perfetto::TracePacket packet = impl_->packet();
  perfetto::TrackDescriptor* track = impl_->add_track(packet);
  track->mutable_process()->set_pid(pid);
  track->mutable_process()->set_process_name(std::string(name));
  impl_->write(packet);
  return Track{track->uuid()};
}

PerfettoWriter::Track PerfettoWriter::thread(std::int32_t pid, std::int32_t tid, std::string_view name) {
  perfetto::TracePacket packet = impl_->packet();
  perfetto::TrackDescriptor* track = impl_->add_track(packet);
  track->mutable_thread()->set_pid(pid);
  track->mutable_thread()->set_tid(tid);
  track->mutable_thread()->set_thread_name(std::string(name));
  impl_->write(packet);
  return Track{track->uuid()};
}

PerfettoWriter::Track PerfettoWriter::counter(Track parent, std::string_view name) {
  perfetto::TracePacket packet = impl_->packet();
  perfetto::TrackDescriptor* track = impl_->add_track(packet);
  track->set_name(std::string(name));
  track->set_parent_uuid(static_cast<std::uint64_t>(parent));
  track->mutable_counter();
  impl_->write(packet);
  return Track{track->uuid()};
}

void PerfettoWriter::begin(Track track, std::string_view name, std::uint64_t time_ns,
                           std::span<const TraceAnnotation> annotations) {
  perfetto::TracePacket packet = impl_->event(track, time_ns, perfetto::TrackEvent::SLICE_BEGIN);
  impl_->name_event(packet, name, annotations);
  impl_->write(packet);
}

void PerfettoWriter::end(Track track, std::uint64_t time_ns) {
  impl_->write(impl_->event(track, time_ns, perfetto::TrackEvent::SLICE_END));
}

void PerfettoWriter::instant(Track track, std::string_view name, std::uint64_t time_ns,
                             std::span<const TraceAnnotation> annotations) {
  perfetto::TracePacket packet = impl_->event(track, time_ns, perfetto::TrackEvent::INSTANT);
  impl_->name_event(packet, name, annotations);
  impl_->write(packet);
}

void PerfettoWriter::value(Track counter, std::uint64_t time_ns, double value) {
  perfetto::TracePacket packet = impl_->event(counter, time_ns, perfetto::TrackEvent::COUNTER);
  packet.mutable_track_event()->set_double_counter_value(value);
  impl_->write(packet);
}

void PerfettoWriter::flush() { impl_->flush(); }

}  // namespace ridge
