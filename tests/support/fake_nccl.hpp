// What fake_nccl.cpp, an NCCL between threads, is asked to answer, and what it was asked.
#ifndef MINIMAMBA_TESTS_FAKE_NCCL_HPP
#define MINIMAMBA_TESTS_FAKE_NCCL_HPP

#include <atomic>
#include <cstddef>

namespace support {

struct FakeNccl {
  // Errors are numbers of NCCL; 0 is none.
  int id_error = 0, begin_error = 0, send_error = 0;
  int state = 0;  // of links, which is asked for before each message

  std::atomic<int> links = 0, ended = 0, aborted = 0, sums = 0;
  std::atomic<std::size_t> messages = 0, bytes = 0;
};

}  // namespace support

#endif
