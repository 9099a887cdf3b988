// The CUDA driver, opened at run time: programs need neither CUDA's headers nor its libraries to be built, and run
// without a card too. The declarations are those of the driver API as they have been since CUDA 11.
#ifndef MINIMAMBA_BACKEND_CUDA_DRIVER_HPP
#define MINIMAMBA_BACKEND_CUDA_DRIVER_HPP

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <utility>

#if defined(_WIN32)
// As <windows.h> declares them, whose macros no program should get from here.
struct HINSTANCE__;
extern "C" {
__declspec(dllimport) HINSTANCE__* __stdcall LoadLibraryA(const char*);
#if defined(_WIN64)
__declspec(dllimport) auto __stdcall GetProcAddress(HINSTANCE__*, const char*) -> long long(__stdcall*)();
#else
__declspec(dllimport) auto __stdcall GetProcAddress(HINSTANCE__*, const char*) -> int(__stdcall*)();
#endif
}
#else
#include <dlfcn.h>
#endif

#include "minimamba/core/error.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// What is missing or failed, of CudaError.
enum class CudaProblem {
  no_driver,      // there is none on this machine
  broken_driver,  // it does not start, or its library is another
  old_driver,     // it is older than CUDA 11.2, or than the kernels need
  no_device,      // no card, or not the one that was asked for
  old_device,     // a card before Ampere (compute capability below 8.0)
  no_compiler,    // NVRTC is not there, or older than CUDA 12
  compiler,       // NVRTC refused the kernels
  memory,         // too little memory on the card, or for the transfers on the host
  kernel          // a call of the driver failed, or a kernel that was queued before
};

/// An error of the card, its driver or its compiler. After CudaProblem::kernel, what was queued is lost, and so are the
/// contents of the card's memory: later calls throw too, until all that uses the card is destroyed.
class CudaError : public Error {
 public:
  CudaError(CudaProblem problem, std::string subject, std::string text)
      : Error(std::move(subject), std::move(text)), problem_(problem) {}
  CudaProblem problem() const noexcept { return problem_; }

 private:
  CudaProblem problem_;
};

namespace gpu {

using Address = std::uint64_t;
using Handle = void*;  // of a context, module, function, stream or event

/// A library that stays open to the end of the process.
class Library {
 public:
  /// Opens the first of the names that can be opened.
  template <class Names>
  static Library open_first(const Names& names) {
    for (const std::string& name : names) {
      if (Library library(name); library) return library;
    }
    return Library();
  }
  Library() = default;
#if defined(_WIN32)
  explicit Library(const std::string& name) : handle_(::LoadLibraryA(name.c_str())) {}
  void* find(const char* name) const { return reinterpret_cast<void*>(::GetProcAddress(handle_, name)); }
#else
  explicit Library(const std::string& name) : handle_(::dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL)) {}
  void* find(const char* name) const { return ::dlsym(handle_, name); }
#endif
  explicit operator bool() const { return handle_ != nullptr; }

  /// Sets a pointer to a function. Returns whether the library has it.
  template <class Function>
  bool find(const char* name, Function*& function) const {
    function = reinterpret_cast<Function*>(find(name));
    return function != nullptr;
  }

 private:
#if defined(_WIN32)
  HINSTANCE__* handle_ = nullptr;
#else
  void* handle_ = nullptr;
#endif
};

inline std::string environment(const char* name) {
  const char* const value = std::getenv(name);
  return value == nullptr ? std::string() : std::string(value);
}

/// The driver's CUlaunchAttribute and CUlaunchConfig.
struct LaunchAttribute {
  int id;
  int unused = 0;
  int value[16] = {};
};
struct LaunchConfig {
  unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared;
  Handle stream;
  const LaunchAttribute* attributes;
  unsigned attribute_count;
};

/// The functions of the driver. Each returns 0, or the number of an error.
struct Driver {
  int (*init)(unsigned flags) = nullptr;
  int (*driver_version)(int* version) = nullptr;
  int (*device_count)(int* count) = nullptr;
  int (*device_get)(int* device, int ordinal) = nullptr;
  int (*device_name)(char* name, int size, int device) = nullptr;
  int (*device_attribute)(int* value, int attribute, int device) = nullptr;
  int (*device_memory)(std::size_t* bytes, int device) = nullptr;
  int (*retain_context)(Handle* context, int device) = nullptr;
  int (*release_context)(int device) = nullptr;
  int (*push_context)(Handle context) = nullptr;
  int (*pop_context)(Handle* context) = nullptr;
  int (*memory_info)(std::size_t* free, std::size_t* total) = nullptr;
  int (*allocate)(Address* memory, std::size_t bytes) = nullptr;
  int (*release)(Address memory) = nullptr;
  int (*allocate_pinned)(void** memory, std::size_t bytes, unsigned flags) = nullptr;
  int (*release_pinned)(void* memory) = nullptr;
  int (*copy_to_device)(Address to, const void* from, std::size_t bytes, Handle stream) = nullptr;
  int (*copy_to_host)(void* to, Address from, std::size_t bytes, Handle stream) = nullptr;
  int (*set_bytes)(Address memory, unsigned char value, std::size_t bytes, Handle stream) = nullptr;
  int (*create_stream)(Handle* stream, unsigned flags) = nullptr;
  int (*destroy_stream)(Handle stream) = nullptr;
  int (*wait_for_stream)(Handle stream) = nullptr;
  int (*create_event)(Handle* event, unsigned flags) = nullptr;
  int (*destroy_event)(Handle event) = nullptr;
  int (*record_event)(Handle event, Handle stream) = nullptr;
  int (*wait_for_event)(Handle event) = nullptr;
  int (*elapsed_time)(float* milliseconds, Handle begin, Handle end) = nullptr;
  int (*load_module)(Handle* module, const void* image) = nullptr;
  int (*unload_module)(Handle module) = nullptr;
  int (*get_function)(Handle* function, Handle module, const char* name) = nullptr;
  int (*launch)(Handle function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                unsigned block_z, unsigned shared, Handle stream, void** arguments, void** extra) = nullptr;
  int (*set_function_attribute)(Handle function, int attribute, int value) = nullptr;
  int (*error_name)(int error, const char** text) = nullptr;
  int (*error_text)(int error, const char** text) = nullptr;
  // Of newer drivers; null in older ones.
  int (*launch_with)(const LaunchConfig* config, Handle function, void** arguments, void** extra) = nullptr;
  int (*launch_cooperatively)(Handle function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                              unsigned block_y, unsigned block_z, unsigned shared, Handle stream,
                              void** arguments) = nullptr;
  int (*query_event)(Handle event) = nullptr;
  int (*begin_capture)(Handle stream, int mode) = nullptr;
  int (*end_capture)(Handle stream, Handle* graph) = nullptr;
  int (*make_executable)(Handle* executable, Handle graph, unsigned long long flags) = nullptr;
  int (*launch_graph)(Handle executable, Handle stream) = nullptr;
  int (*destroy_graph)(Handle graph) = nullptr;
  int (*destroy_executable)(Handle executable) = nullptr;
  int (*device_uuid)(void* bytes16, int device) = nullptr;
  int (*wait_in_stream)(Handle stream, Handle event, unsigned flags) = nullptr;
  int (*enable_peer)(Handle context, unsigned flags) = nullptr;
  int (*copy_from_peer)(Address to, Handle to_context, Address from, Handle from_context, std::size_t bytes,
                        Handle stream) = nullptr;
  int (*make_tensor_map)(void* map, int type, unsigned rank, Address data, const std::uint64_t* sizes,
                         const std::uint64_t* strides, const std::uint32_t* box, const std::uint32_t* steps,
                         int interleave, int swizzle, int promotion, int fill) = nullptr;

  /// Whether the memory of a card can be copied to that of another.
  bool has_peers() const { return wait_in_stream != nullptr && enable_peer != nullptr && copy_from_peer != nullptr; }
  /// Whether a list of launches can be made a graph.
  bool has_graphs() const {
    return begin_capture != nullptr && end_capture != nullptr && make_executable != nullptr &&
           launch_graph != nullptr && destroy_graph != nullptr && destroy_executable != nullptr;
  }

  static constexpr int out_of_memory = 2, no_device = 100, not_ready = 600;
  static constexpr int oldest_version = 11020;

  /// Opened once in a process. Throws CudaError: no_driver, broken_driver, old_driver or no_device.
  static const Driver& get() {
    static const Driver driver = open();
    return driver;
  }

  std::string text_of(int error) const {
    const char *name = nullptr, *text = nullptr;
    error_name(error, &name);
    error_text(error, &text);
    return (text == nullptr ? "unknown error" : std::string(text)) + " (" +
           (name == nullptr ? std::to_string(error) : std::string(name)) + ")";
  }
  /// Throws CudaError for an error of a call that did `what`.
  void check(int error, const char* what) const {
    if (error == 0) return;
    const CudaProblem problem = problem_of(error);
    const char* const cure = problem == CudaProblem::old_driver
                                 ? ": the driver is older than NVRTC, which compiled the kernels; install a newer "
                                   "driver, or name an older NVRTC in the environment variable MINIMAMBA_NVRTC"
                                 : "";
    throw CudaError(problem, "CUDA", std::string(what) + " failed: " + text_of(error) + cure);
  }
  static CudaProblem problem_of(int error) {
    switch (error) {
      case out_of_memory:
        return CudaProblem::memory;
      case 200:  // an image that it cannot read,
      case 209:  // that has no code for the card,
      case 222:  // or whose PTX is too new
        return CudaProblem::old_driver;
      default:
        return CudaProblem::kernel;
    }
  }

  static std::string version_text(int version) {
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
  }

 private:
  static Driver open() {
#if defined(_WIN32)
    const std::string names[] = {"nvcuda.dll"};
#else
    const std::string names[] = {"libcuda.so.1", "libcuda.so", "/usr/lib/wsl/lib/libcuda.so.1"};
#endif
    const Library library = Library::open_first(names);
    if (!library) {
      throw CudaError(CudaProblem::no_driver, "CUDA",
                      "there is no NVIDIA driver on this machine (" + names[0] +
                          " cannot be opened): install the driver of the card, or use the native backend");
    }
    Driver d;
    const bool whole =
        library.find("cuInit", d.init) && library.find("cuDriverGetVersion", d.driver_version) &&
        library.find("cuDeviceGetCount", d.device_count) && library.find("cuDeviceGet", d.device_get) &&
        library.find("cuDeviceGetName", d.device_name) && library.find("cuDeviceGetAttribute", d.device_attribute) &&
        library.find("cuDeviceTotalMem_v2", d.device_memory) &&
        library.find("cuDevicePrimaryCtxRetain", d.retain_context) &&
        library.find("cuDevicePrimaryCtxRelease_v2", d.release_context) &&
        library.find("cuCtxPushCurrent_v2", d.push_context) && library.find("cuCtxPopCurrent_v2", d.pop_context) &&
        library.find("cuMemGetInfo_v2", d.memory_info) && library.find("cuMemAlloc_v2", d.allocate) &&
        library.find("cuMemFree_v2", d.release) && library.find("cuMemHostAlloc", d.allocate_pinned) &&
        library.find("cuMemFreeHost", d.release_pinned) && library.find("cuMemcpyHtoDAsync_v2", d.copy_to_device) &&
        library.find("cuMemcpyDtoHAsync_v2", d.copy_to_host) && library.find("cuMemsetD8Async", d.set_bytes) &&
        library.find("cuStreamCreate", d.create_stream) && library.find("cuStreamDestroy_v2", d.destroy_stream) &&
        library.find("cuStreamSynchronize", d.wait_for_stream) && library.find("cuEventCreate", d.create_event) &&
        library.find("cuEventDestroy_v2", d.destroy_event) && library.find("cuEventRecord", d.record_event) &&
        library.find("cuEventSynchronize", d.wait_for_event) && library.find("cuEventElapsedTime", d.elapsed_time) &&
        library.find("cuModuleLoadData", d.load_module) && library.find("cuModuleUnload", d.unload_module) &&
        library.find("cuModuleGetFunction", d.get_function) && library.find("cuLaunchKernel", d.launch) &&
        library.find("cuFuncSetAttribute", d.set_function_attribute) && library.find("cuGetErrorName", d.error_name) &&
        library.find("cuGetErrorString", d.error_text);
    library.find("cuLaunchKernelEx", d.launch_with);
    library.find("cuLaunchCooperativeKernel", d.launch_cooperatively);
    library.find("cuEventQuery", d.query_event);
    library.find("cuStreamBeginCapture_v2", d.begin_capture);
    library.find("cuStreamEndCapture", d.end_capture);
    library.find("cuGraphInstantiateWithFlags", d.make_executable);
    library.find("cuGraphLaunch", d.launch_graph);
    library.find("cuGraphDestroy", d.destroy_graph);
    library.find("cuGraphExecDestroy", d.destroy_executable);
    library.find("cuTensorMapEncodeTiled", d.make_tensor_map);
    library.find("cuDeviceGetUuid_v2", d.device_uuid) || library.find("cuDeviceGetUuid", d.device_uuid);
    library.find("cuStreamWaitEvent", d.wait_in_stream);
    library.find("cuCtxEnablePeerAccess", d.enable_peer);
    library.find("cuMemcpyPeerAsync", d.copy_from_peer);
    int version = 0;
    if (d.driver_version == nullptr || d.driver_version(&version) != 0) {
      throw CudaError(CudaProblem::broken_driver, "CUDA",
                      names[0] + " is not a driver of NVIDIA: install that of the card");
    }
    if (version < oldest_version || !whole) {
      throw CudaError(CudaProblem::old_driver, "CUDA",
                      "expected a driver for CUDA " + version_text(oldest_version) + " or later, found one for CUDA " +
                          version_text(version) + ": install a newer driver of the card");
    }
    if (const int error = d.init(0); error == no_device) {
      throw CudaError(CudaProblem::no_device, "CUDA",
                      "the driver sees no card: " + d.text_of(error) +
                          "; a container must be given the cards (docker run --gpus all), and CUDA_VISIBLE_DEVICES may "
                          "hide them");
    } else if (error != 0) {
      throw CudaError(CudaProblem::broken_driver, "CUDA",
                      "the driver does not start: " + d.text_of(error) + "; nvidia-smi may say more");
    }
    return d;
  }
};

/// Makes a card's context current in this thread, for the calls of a scope.
class CurrentContext {
 public:
  CurrentContext(const Driver& driver, Handle context) : driver_(driver) {
    driver_.check(driver_.push_context(context), "using a card");
  }
  CurrentContext(const CurrentContext&) = delete;
  CurrentContext& operator=(const CurrentContext&) = delete;
  ~CurrentContext() {
    Handle popped = nullptr;
    driver_.pop_context(&popped);
  }

 private:
  const Driver& driver_;
};

}  // namespace gpu
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
