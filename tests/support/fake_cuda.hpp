// What fake_cuda.cpp, a driver and an NVRTC without a card, is asked to answer, and what it was asked.
#ifndef MINIMAMBA_TESTS_FAKE_CUDA_HPP
#define MINIMAMBA_TESTS_FAKE_CUDA_HPP

#include <atomic>
#include <cstddef>

namespace support {

struct FakeCuda {
  // Errors are numbers of the driver; 0 is none.
  int driver_version = 12040, version_error = 0, init_error = 0;
  int cards = 1, capability = 90;
  std::size_t memory = std::size_t{1} << 30;  // bytes of a card
  int load_error = 0, launch_error = 0;
  int graph_error = 0;                      // of making a graph that can be started
  bool cooperative = false;                 // whether the card can start a grid whose blocks all run at once
  int cooperative_error = 0;                // of starting one
  int wait_error = 0;                       // of the first wait, and of every call after it
  int compiler_major = 12;                  // NVRTC's version
  int newest_architecture = 120;            // that NVRTC knows, besides 80 and 90
  const char* complaint = nullptr;          // with which NVRTC refuses what begins or ends then
  bool no_uuid = false;                     // as with an old driver
  bool adds = false;                        // whether the kernels add and copy of floats do what they should
  int meeting = 0;                          // NVRTC waits for the start of so many compilations, 10 s at most
  std::atomic<const char*> held = nullptr;  // NVRTC waits before it compiles kernels whose names begin so
  std::atomic<bool> slow = false;           // it takes 100 ms

  std::size_t allocated = 0, pinned = 0;  // bytes
  int contexts = 0, streams = 0, events = 0, modules = 0, graphs = 0;
  std::atomic<int> compilations = 0, compiling = 0;  // those that have begun, and those that go on
  int launches = 0;                                  // those outside of graphs, but of send_to_host
  int peer_copies = 0;                               // from card to card
  int grids = 0;                                     // started cooperatively
  unsigned char arguments[512] = {};                 // of the last of them
  unsigned char before[512] = {};                    // of the one before that
  int cleared = 0;                                   // how often memory was set to a value
  char loaded[64] = {};                              // the target of the code that was loaded last
};

}  // namespace support

#endif
