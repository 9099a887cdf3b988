// How many processors this process may use, by its CPU affinity and, in containers, its quota of CPU time.
#ifndef MINIMAMBA_CORE_PROCESSORS_HPP
#define MINIMAMBA_CORE_PROCESSORS_HPP

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <string_view>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

inline constexpr int no_quota = 1 << 20;  // processors

/// The first 64 KiB of a file; empty if it cannot be read.
inline std::string start_of_file(const std::string& path) {
  std::string text(std::size_t{1} << 16, '\0');
  std::FILE* const file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) return {};
  text.resize(std::fread(text.data(), 1, text.size(), file));
  std::fclose(file);
  return text;
}

/// Processors, rounded up, for a text "quota period" in microseconds. Unless both are positive numbers, there is no
/// quota: for example in "max 100000" and "-1 100000".
inline int processors_of_quota(const std::string& text) {
  char* end = nullptr;
  const long long quota = std::strtoll(text.c_str(), &end, 10), period = std::strtoll(end, nullptr, 10);
  if (quota <= 0 || period <= 0) return no_quota;
  return static_cast<int>(std::min<long long>((quota - 1) / period + 1, no_quota));
}

/// The smallest quota of a control group, "/a/b", and of its parents up to the root of `mount`. `first` and `second`
/// name the files of quota and period; `second` is empty if the first file has both. In a container the group may be
/// outside of what is mounted: then only the quota of the root is found.
inline int smallest_quota(const std::string& mount, std::string group, const char* first, const char* second) {
  for (int smallest = no_quota;;) {
    while (!group.empty() && group.back() == '/') group.pop_back();
    const std::string folder = mount + group + '/';
    std::string text = start_of_file(folder + first);
    if (*second != '\0') text += ' ' + start_of_file(folder + second);
    smallest = std::min(smallest, processors_of_quota(text));
    if (group.empty()) return smallest;
    const std::size_t slash = group.rfind('/');
    group.erase(slash == std::string::npos ? 0 : slash);
  }
}

/// Whether `name` is in a list such as "cpu,cpuacct".
inline bool contains_name(std::string_view controllers, std::string_view name) {
  for (;;) {
    const std::size_t comma = controllers.find(',');
    if (controllers.substr(0, comma) == name) return true;
    if (comma == std::string_view::npos) return false;
    controllers.remove_prefix(comma + 1);
  }
}

/// How many processors the quotas of control groups (version 1 or 2) allow a process, or no_quota. `groups` is the file
/// that lists the groups of the process, in lines "number:controllers:/path"; `mount` is where they are mounted.
inline int processors_of_groups(const std::string& groups, const std::string& mount) {
  int smallest = no_quota;
  const std::string text = start_of_file(groups);
  for (std::string_view rest = text; !rest.empty();) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(line.size() + 1, rest.size()));
    const std::size_t colon = line.find(':'), second = line.find(':', std::min(colon, line.size() - 1) + 1);
    if (second == std::string_view::npos) continue;
    const std::string_view controllers = line.substr(colon + 1, second - colon - 1);
    const std::string group(line.substr(second + 1));
    if (controllers.empty()) {
      smallest = std::min(smallest, smallest_quota(mount, group, "cpu.max", ""));
    } else if (contains_name(controllers, "cpu")) {
      for (const char* const folder : {"/cpu", "/cpu,cpuacct"}) {
        smallest = std::min(smallest, smallest_quota(mount + folder, group, "cpu.cfs_quota_us", "cpu.cfs_period_us"));
      }
    }
  }
  return smallest;
}

}  // namespace detail

/// How many processors this process may use, at least 1. On Linux it is limited by the CPU affinity and by the quotas
/// of its control groups (of a container, for example), rounded up. Each call reads them again.
inline int available_threads() {
#if defined(__linux__)
  int quota = detail::no_quota;
  try {
    quota = detail::processors_of_groups("/proc/self/cgroup", "/sys/fs/cgroup");
  } catch (const std::exception&) {
    // No memory to read the quota: ignore it.
  }
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, std::min(CPU_COUNT(&set), quota));
  return std::max(1, std::min(static_cast<int>(std::thread::hardware_concurrency()), quota));
#else
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
#endif
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
