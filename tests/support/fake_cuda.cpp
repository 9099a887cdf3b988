// libcuda.so.1 and NVRTC in one library, for machines without a card. Memory of the card is memory of the host; kernels
// do nothing, but for send_to_host, and for add and copy if they are asked to.
#include "support/fake_cuda.hpp"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <thread>

namespace {

support::FakeCuda fake;
bool lost = false;  // after wait_error
std::map<std::uint64_t, std::size_t> blocks, pinned_blocks;
thread_local std::string code, text_log, kernels;
std::mutex compiling_mutex;
std::condition_variable compiling_changed;
bool capturing = false;
int handle = 0, sender = 0, adder = 0, copier = 0;  // what all handles point to but those of some kernels
int contexts_of_cards[16] = {};                     // and of contexts

int wait() {
  lost = lost || fake.wait_error != 0;
  return fake.wait_error;
}
int unless_lost() { return lost ? fake.wait_error : 0; }
std::mutex counting_mutex;  // of programs that are loaded at once, and of cards
int made(void** there, int& count) {
  const std::lock_guard lock(counting_mutex);
  if (lost) return fake.wait_error;
  *there = &handle;
  ++count;
  return 0;
}
int gone(int& count) {
  const std::lock_guard lock(counting_mutex);
  --count;
  return unless_lost();
}
void* taken(std::size_t bytes, std::map<std::uint64_t, std::size_t>& from, std::size_t& total) {
  void* const memory = std::calloc(1, bytes);
  const std::lock_guard lock(counting_mutex);
  from[reinterpret_cast<std::uintptr_t>(memory)] = bytes;
  total += bytes;
  return memory;
}
void given_back(void* memory, std::map<std::uint64_t, std::size_t>& to, std::size_t& total) {
  const std::lock_guard lock(counting_mutex);
  const auto found = to.find(reinterpret_cast<std::uintptr_t>(memory));
  if (found == to.end()) std::abort();  // freed twice, or never allocated
  total -= found->second;
  to.erase(found);
  std::free(memory);
}
void* pointer(std::uint64_t address) { return reinterpret_cast<void*>(static_cast<std::uintptr_t>(address)); }
/// The kernel send_to_host, unless it is lost.
void send_to_host(void** arguments) {
  if (lost || fake.wait_error != 0) return;
  std::uint64_t from = 0, to = 0, arrived = 0;
  std::uint32_t count = 0;
  const std::uint32_t one = 1;
  std::memcpy(&from, arguments[0], sizeof(from));
  std::memcpy(&count, arguments[1], sizeof(count));
  std::memcpy(&to, arguments[2], sizeof(to));
  std::memcpy(&arrived, arguments[3], sizeof(arrived));
  std::memcpy(pointer(to), pointer(from), std::size_t{4} * count);
  std::memcpy(pointer(arrived), &one, sizeof(one));
}
/// The kernels add and copy, of floats.
void add_or_copy(void** arguments, bool adds) {
  std::uint64_t x = 0, x_stride = 0, y = 0, y_stride = 0;
  std::uint32_t rows = 0, cols = 0;
  std::memcpy(&x, arguments[0], sizeof(x));
  std::memcpy(&x_stride, arguments[1], sizeof(x_stride));
  std::memcpy(&y, arguments[2], sizeof(y));
  std::memcpy(&y_stride, arguments[3], sizeof(y_stride));
  std::memcpy(&rows, arguments[4], sizeof(rows));
  std::memcpy(&cols, arguments[5], sizeof(cols));
  for (std::uint32_t i = 0; i < rows; ++i) {
    const float* const from = static_cast<const float*>(pointer(x)) + i * x_stride;
    float* const to = static_cast<float*>(pointer(y)) + i * y_stride;
    for (std::uint32_t j = 0; j < cols; ++j) to[j] = adds ? to[j] + from[j] : from[j];
  }
}

}  // namespace

extern "C" {

support::FakeCuda* fake_cuda() { return &fake; }

int cuInit(unsigned) { return fake.init_error; }
int cuDriverGetVersion(int* version) {
  *version = fake.driver_version;
  return fake.version_error;
}
int cuDeviceGetCount(int* count) {
  *count = fake.cards;
  return 0;
}
int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return 0;
}
int cuDeviceGetName(char* name, int size, int) {
  std::strncpy(name, "Fake H100", static_cast<std::size_t>(size));
  return 0;
}
int cuDeviceGetAttribute(int* value, int attribute, int) {
  constexpr int cooperative_launch = 95, most_shared_memory = 97;
  switch (attribute) {
    case 75:
      *value = fake.capability / 10;
      break;
    case 76:
      *value = fake.capability % 10;
      break;
    case cooperative_launch:
      *value = fake.cooperative ? 1 : 0;
      break;
    case most_shared_memory:
      *value = 232448;
      break;
    default:
      *value = 132;
  }
  return 0;
}
int cuDeviceTotalMem_v2(std::size_t* bytes, int) {
  *bytes = fake.memory;
  return 0;
}
int cuDevicePrimaryCtxRetain(void** context, int device) {
  const int error = made(context, fake.contexts);
  if (error == 0) *context = &contexts_of_cards[device];
  return error;
}
int cuDeviceGetUuid_v2(void* uuid, int device) {
  std::memset(uuid, fake.no_uuid ? 0 : device + 1, 16);
  return 0;
}
int cuCtxEnablePeerAccess(void*, unsigned) { return unless_lost(); }
int cuDevicePrimaryCtxRelease_v2(int) { return gone(fake.contexts); }
int cuCtxPushCurrent_v2(void*) { return 0; }
int cuCtxPopCurrent_v2(void**) { return 0; }

int cuMemGetInfo_v2(std::size_t* free, std::size_t* total) {
  *free = fake.memory - std::min(fake.memory, fake.allocated);
  *total = fake.memory;
  return unless_lost();
}
int cuMemAlloc_v2(std::uint64_t* memory, std::size_t bytes) {
  if (lost) return fake.wait_error;
  if (bytes > fake.memory - std::min(fake.memory, fake.allocated)) return 2;
  *memory = reinterpret_cast<std::uintptr_t>(taken(bytes, blocks, fake.allocated));
  return 0;
}
int cuMemFree_v2(std::uint64_t memory) {
  given_back(pointer(memory), blocks, fake.allocated);
  return unless_lost();
}
int cuMemHostAlloc(void** memory, std::size_t bytes, unsigned) {
  *memory = taken(bytes, pinned_blocks, fake.pinned);
  return unless_lost();
}
int cuMemFreeHost(void* memory) {
  given_back(memory, pinned_blocks, fake.pinned);
  return unless_lost();
}
int cuMemcpyHtoDAsync_v2(std::uint64_t to, const void* from, std::size_t bytes, void*) {
  std::memcpy(pointer(to), from, bytes);
  return unless_lost();
}
int cuMemcpyDtoHAsync_v2(void* to, std::uint64_t from, std::size_t bytes, void*) {
  std::memcpy(to, pointer(from), bytes);
  return unless_lost();
}
int cuMemsetD8Async(std::uint64_t memory, unsigned char value, std::size_t bytes, void*) {
  ++fake.cleared;
  std::memset(pointer(memory), value, bytes);
  return unless_lost();
}

int cuMemcpyPeerAsync(std::uint64_t to, void* to_context, std::uint64_t from, void* from_context, std::size_t bytes,
                      void*) {
  if (to_context == from_context) return 1;  // for the tests: cards of ranks differ
  std::memcpy(pointer(to), pointer(from), bytes);
  const std::lock_guard lock(counting_mutex);
  ++fake.peer_copies;
  return unless_lost();
}

int cuStreamCreate(void** stream, unsigned) { return made(stream, fake.streams); }
int cuStreamDestroy_v2(void*) { return gone(fake.streams); }
int cuStreamSynchronize(void*) { return wait(); }
int cuEventCreate(void** event, unsigned) { return made(event, fake.events); }
int cuEventDestroy_v2(void*) { return gone(fake.events); }
int cuEventRecord(void*, void*) { return unless_lost(); }
int cuEventSynchronize(void*) { return wait(); }
int cuStreamWaitEvent(void*, void*, unsigned) { return unless_lost(); }
int cuEventQuery(void*) { return unless_lost(); }

int cuModuleLoadData(void** module, const void* image) {
  if (fake.load_error != 0) return fake.load_error;
  std::strncpy(fake.loaded, static_cast<const char*>(image), sizeof(fake.loaded) - 1);
  return made(module, fake.modules);
}
int cuModuleUnload(void*) { return gone(fake.modules); }
int cuModuleGetFunction(void** function, void*, const char* name) {
  const bool adds = fake.adds && std::strcmp(name, "add") == 0, copies = fake.adds && std::strcmp(name, "copy") == 0;
  *function = std::strcmp(name, "send_to_host") == 0 ? &sender : adds ? &adder : copies ? &copier : &handle;
  return 0;
}
int cuFuncSetAttribute(void*, int, int) { return unless_lost(); }
int cuEventElapsedTime(float* milliseconds, void*, void*) {
  *milliseconds = 1;
  return unless_lost();
}
int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned threads, unsigned,
                   unsigned, unsigned, void*, void** arguments, void**) {
  const bool possible = grid_x > 0 && grid_x < 1U << 31 && grid_y > 0 && grid_y < 1U << 16 && grid_z > 0 &&
                        grid_z < 1U << 16 && threads > 0 && threads <= 1024;
  if (!possible) return 1;
  if (capturing) return 0;
  if (function == &sender) {
    send_to_host(arguments);
  } else {
    if (function == &adder || function == &copier) add_or_copy(arguments, function == &adder);
    const std::lock_guard lock(counting_mutex);
    ++fake.launches;
  }
  return lost ? fake.wait_error : fake.launch_error;
}

int cuLaunchCooperativeKernel(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*,
                              void** arguments) {
  if (lost || fake.cooperative_error != 0) return lost ? fake.wait_error : fake.cooperative_error;
  ++fake.grids;
  std::memcpy(fake.before, fake.arguments, sizeof(fake.before));
  std::memcpy(fake.arguments, arguments[0], 392);  // DecodeArguments
  return 0;
}

// A stream that captures, and the graphs made of it.
int cuStreamBeginCapture_v2(void*, int) {
  if (lost) return fake.wait_error;
  capturing = true;
  return 0;
}
int cuStreamEndCapture(void*, void** graph) {
  capturing = false;
  return made(graph, fake.graphs);
}
int cuGraphDestroy(void*) { return gone(fake.graphs); }
int cuGraphInstantiateWithFlags(void** executable, void*, unsigned long long) {
  return fake.graph_error != 0 ? fake.graph_error : made(executable, fake.graphs);
}
int cuGraphExecDestroy(void*) { return gone(fake.graphs); }
int cuGraphLaunch(void*, void*) { return lost ? fake.wait_error : fake.launch_error; }

int cuGetErrorName(int error, const char** text) {
  *text = error == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR_FAKE";
  return 0;
}
int cuGetErrorString(int error, const char** text) {
  *text = error == 700 ? "an illegal memory access was encountered" : "a fake error";
  return 0;
}

int nvrtcVersion(int* major, int* minor) {
  *major = fake.compiler_major;
  *minor = 9;
  return 0;
}
int nvrtcGetNumSupportedArchs(int* count) {
  *count = 3;
  return 0;
}
int nvrtcGetSupportedArchs(int* architectures) {
  architectures[0] = 80;
  architectures[1] = 90;
  architectures[2] = fake.newest_architecture;
  return 0;
}
int nvrtcCreateProgram(void** program, const char*, const char* name, int, const char* const*, const char* const*) {
  *program = &handle;
  kernels = name;
  return 0;
}
int nvrtcDestroyProgram(void**) { return 0; }
int nvrtcCompileProgram(void*, int count, const char* const* options) {
  if (kernels == "nothing") return 0;  // see Compiler::begin
  const char* const at_once = fake.complaint;
  ++fake.compiling;
  {
    std::unique_lock lock(compiling_mutex);
    ++fake.compilations;
    compiling_changed.notify_all();
    const bool met =
        compiling_changed.wait_for(lock, std::chrono::seconds(10), [] { return fake.compilations >= fake.meeting; });
    if (!met) fake.complaint = "the others did not come";
  }
  const auto is_held = [] {
    const char* const held = fake.held;
    return held != nullptr && kernels.starts_with(held);
  };
  while (is_held()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  if (fake.slow) std::this_thread::sleep_for(std::chrono::milliseconds(100));
  const char* const complaint = at_once != nullptr ? at_once : fake.complaint;
  --fake.compiling;
  text_log = complaint == nullptr ? "" : complaint;
  code.clear();
  for (int i = 0; i < count; ++i) {
    const std::string option = options[i], architecture = "--gpu-architecture=";
    if (option.starts_with(architecture)) code = option.substr(architecture.size());
  }
  return complaint == nullptr ? 0 : 6;
}
int nvrtcGetProgramLogSize(void*, std::size_t* size) {
  *size = text_log.size() + 1;
  return 0;
}
int nvrtcGetProgramLog(void*, char* log) {
  std::memcpy(log, text_log.c_str(), text_log.size() + 1);
  return 0;
}
int nvrtcGetCUBINSize(void*, std::size_t* size) {
  *size = code.size() + 1;
  return 0;
}
int nvrtcGetCUBIN(void*, char* there) {
  std::memcpy(there, code.c_str(), code.size() + 1);
  return 0;
}
int nvrtcGetPTXSize(void* program, std::size_t* size) { return nvrtcGetCUBINSize(program, size); }
int nvrtcGetPTX(void* program, char* there) { return nvrtcGetCUBIN(program, there); }
}
