// libnccl.so.2 for ranks that are threads, whose cards are those of fake_cuda.cpp: their memory is memory of the host.
// As NCCL does, it sends and receives when a group ends, and each message needs its receiver.
#include "support/fake_nccl.hpp"

#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace {

support::FakeNccl fake;

/// All ranks of one id.
struct Team {
  std::mutex mutex;
  std::condition_variable changed;
  int ranks = 0, there = 0;
  std::map<std::pair<int, int>, std::deque<std::vector<char>>> messages;  // from rank to rank
  std::vector<double> sum;
  int added = 0, read = 0;
};
struct Links {
  std::shared_ptr<Team> team;
  int rank = 0;
};
struct Call {
  Links* links;
  const void* out;
  void* in;
  std::size_t bytes;
  int other;
};

std::mutex teams_mutex;
std::map<std::uint64_t, std::shared_ptr<Team>> teams;
std::uint64_t last_id = 0;
thread_local std::vector<Call> group;
thread_local int depth = 0;

struct Id {
  char bytes[128];
};

std::size_t size_of(int type) { return type == 8 ? 8 : type == 7 ? 4 : 1; }

void run(const std::vector<Call>& calls) {
  for (const Call& call : calls) {
    if (call.out == nullptr) continue;
    Team& team = *call.links->team;
    const auto* const from = static_cast<const char*>(call.out);
    const std::lock_guard lock(team.mutex);
    team.messages[{call.links->rank, call.other}].emplace_back(from, from + call.bytes);
    team.changed.notify_all();
    ++fake.messages;
    fake.bytes += call.bytes;
  }
  for (const Call& call : calls) {
    if (call.in == nullptr) continue;
    Team& team = *call.links->team;
    std::unique_lock lock(team.mutex);
    auto& box = team.messages[{call.other, call.links->rank}];
    team.changed.wait(lock, [&] { return !box.empty(); });
    if (box.front().size() != call.bytes) std::abort();
    std::memcpy(call.in, box.front().data(), call.bytes);
    box.pop_front();
  }
}
int add(const Call& call) {
  if (depth > 0) {
    group.push_back(call);
  } else {
    run({call});
  }
  return fake.send_error;
}

template <class T>
void sum(Team& team, T* values, std::size_t count) {
  std::unique_lock lock(team.mutex);
  team.changed.wait(lock, [&] { return team.read == 0; });  // of the last sum
  team.sum.resize(count);
  for (std::size_t i = 0; i < count; ++i) team.sum[i] += static_cast<double>(values[i]);
  ++team.added;
  team.changed.notify_all();
  team.changed.wait(lock, [&] { return team.added == team.ranks; });
  for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<T>(team.sum[i]);
  if (++team.read == team.ranks) {
    team.sum.clear();
    team.added = team.read = 0;
  }
  team.changed.notify_all();
}

}  // namespace

extern "C" {

support::FakeNccl* fake_nccl() { return &fake; }

int ncclGetVersion(int* version) {
  *version = 22809;
  return 0;
}
const char* ncclGetErrorString(int error) { return error == 2 ? "unhandled system error" : "a fake error of NCCL"; }
int ncclGetUniqueId(Id* id) {
  const std::lock_guard lock(teams_mutex);
  ++last_id;
  std::memset(id->bytes, 0x5A, sizeof(id->bytes));
  std::memcpy(id->bytes + 64, &last_id, sizeof(last_id));
  return fake.id_error;
}
int ncclCommInitRank(void** there, int ranks, Id id, int rank) {
  if (fake.begin_error != 0) return fake.begin_error;
  std::uint64_t number = 0;
  std::memcpy(&number, id.bytes + 64, sizeof(number));
  std::shared_ptr<Team> team;
  {
    const std::lock_guard lock(teams_mutex);
    std::shared_ptr<Team>& found = teams[number];
    if (!found) found = std::make_shared<Team>();
    team = found;
  }
  std::unique_lock lock(team->mutex);
  team->ranks = ranks;
  ++team->there;
  team->changed.notify_all();
  team->changed.wait(lock, [&] { return team->there == ranks; });
  *there = new Links{team, rank};
  ++fake.links;
  return 0;
}
int ncclCommDestroy(void* links) {
  delete static_cast<Links*>(links);
  ++fake.ended;
  return 0;
}
int ncclCommAbort(void* links) {
  delete static_cast<Links*>(links);
  ++fake.aborted;
  return 0;
}
int ncclCommGetAsyncError(void*, int* error) {
  *error = fake.state;
  return 0;
}
int ncclGroupStart() {
  ++depth;
  return 0;
}
int ncclGroupEnd() {
  if (--depth > 0) return 0;
  run(std::exchange(group, {}));
  return 0;
}
int ncclSend(const void* from, std::size_t count, int type, int rank, void* links, void*) {
  return add({static_cast<Links*>(links), from, nullptr, count * size_of(type), rank});
}
int ncclRecv(void* to, std::size_t count, int type, int rank, void* links, void*) {
  return add({static_cast<Links*>(links), nullptr, to, count * size_of(type), rank});
}
int ncclAllReduce(const void* from, void* to, std::size_t count, int type, int how, void* links, void*) {
  if (how != 0 || from != to || (type != 7 && type != 8)) return 4;
  Team& team = *static_cast<Links*>(links)->team;
  ++fake.sums;
  if (type == 8) {
    sum(team, static_cast<double*>(to), count);
  } else {
    sum(team, static_cast<float*>(to), count);
  }
  return 0;
}
}
