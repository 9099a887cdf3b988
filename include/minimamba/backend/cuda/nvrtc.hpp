// NVRTC, NVIDIA's run-time compiler of kernels, opened at run time.
#ifndef MINIMAMBA_BACKEND_CUDA_NVRTC_HPP
#define MINIMAMBA_BACKEND_CUDA_NVRTC_HPP

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <vector>

#include "minimamba/backend/cuda/driver.hpp"
#include "minimamba/backend/cuda/kernel_text.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace gpu {

inline constexpr int oldest_capability = 80;  // Ampere

/// The name of the target for cards of a compute capability alone (and, as a rule, later ones of its generation), and
/// of that for all later cards, whose code is PTX that the driver compiles.
inline std::string binary_target(int capability) {
  return "sm_" + std::to_string(capability) + (capability == 90 ? "a" : "");
}
inline std::string portable_target(int capability) { return "compute_" + std::to_string(capability); }

/// Options of every compilation, but for the architecture.
inline constexpr std::array<const char*, 3> compiler_options = {"--std=c++17", "--fmad=false", "-default-device"};

class Compiler {
 public:
  /// Opened once in a process. MINIMAMBA_NVRTC in the environment may name the library. Throws CudaError: no_compiler.
  static const Compiler& get() {
    static const Compiler compiler = open();
    return compiler;
  }

  int version() const { return version_; }  // 1000 * major + minor
  /// The compute capabilities that it knows, in ascending order: 80, 86, 90 ...
  const std::vector<int>& architectures() const { return architectures_; }

  /// What to compile for a card: "sm_90a", or "compute_120" for PTX, which the driver compiles for a card that is newer
  /// than this compiler.
  std::string target_for(int capability) const {
    const auto newest = std::upper_bound(architectures_.begin(), architectures_.end(), capability);
    if (newest == architectures_.begin()) return portable_target(capability);
    const int known = *(newest - 1);
    return known / 10 == capability / 10 ? binary_target(known) : portable_target(known);
  }

  /// Compiles next to nothing, so that this library has made what it makes at its first use.
  void begin() const {
    Handle handle = nullptr;
    if (create_(&handle, "extern \"C\" __global__ void nothing() {}", "nothing", 0, nullptr, nullptr) != 0) return;
    compile_(handle, static_cast<int>(compiler_options.size()), compiler_options.data());
    destroy_(&handle);
  }

  /// A cubin for sm_..., or PTX for compute_.... `log` is what the compiler says. Throws CudaError: compiler.
  std::string compile(const Unit& unit, const std::string& target, std::string& log) const {
    const std::string source = text_of(unit), name = unit.name(), architecture = "--gpu-architecture=" + target;
    std::vector<const char*> options(compiler_options.begin(), compiler_options.end());
    options.push_back(architecture.c_str());
    Handle handle = nullptr;
    if (create_(&handle, source.c_str(), name.c_str(), 0, nullptr, nullptr) != 0)
      throw refused(name, "it cannot start");
    const int error = compile_(handle, static_cast<int>(options.size()), options.data());
    std::size_t size = 0;
    log_size_(handle, &size);
    log.assign(size, '\0');
    if (size > 0) log_(handle, log.data());
    while (!log.empty() && log.back() == '\0') log.pop_back();
    std::string code;
    const bool is_binary = target.starts_with("sm_");
    if (error == 0 && (is_binary ? binary_size_ : ptx_size_)(handle, &size) == 0) {
      code.resize(size);
      (is_binary ? binary_ : ptx_)(handle, code.data());
    }
    destroy_(&handle);
    if (code.empty()) throw refused(name, log);
    return code;
  }

 private:
  static CudaError refused(const std::string& name, const std::string& log) {
    return {CudaProblem::compiler, "NVRTC", "it cannot compile the kernels \"" + name + "\": " + log};
  }

  static Compiler open() {
    std::vector<std::string> names;
    const std::string wanted = environment("MINIMAMBA_NVRTC");
    if (!wanted.empty()) {
      names = {wanted};
    } else {
#if defined(_WIN32)
      names = {"nvrtc64_130_0.dll", "nvrtc64_120_0.dll"};
#else
      names = {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"};
      for (const char* folder :
           {"/usr/local/cuda/lib64/", "/usr/local/cuda/targets/x86_64-linux/lib/", "/opt/cuda/lib64/"}) {
        for (const char* name : {"libnvrtc.so.13", "libnvrtc.so.12"}) names.push_back(std::string(folder) + name);
      }
#endif
    }
    const Library library = Library::open_first(names);
    if (!library) {
      throw CudaError(CudaProblem::no_compiler, "NVRTC",
                      "there is no NVRTC of CUDA 13 or 12, which compiles the kernels (" + names[0] +
                          " cannot be opened): install the package cuda-nvrtc, or name the library in the environment "
                          "variable MINIMAMBA_NVRTC");
    }
    Compiler c;
    int major = 0, minor = 0, count = 0;
    int (*version)(int*, int*) = nullptr;
    int (*architecture_count)(int*) = nullptr;
    int (*architectures)(int*) = nullptr;
    const bool whole =
        library.find("nvrtcVersion", version) && library.find("nvrtcGetNumSupportedArchs", architecture_count) &&
        library.find("nvrtcGetSupportedArchs", architectures) && library.find("nvrtcCreateProgram", c.create_) &&
        library.find("nvrtcDestroyProgram", c.destroy_) && library.find("nvrtcCompileProgram", c.compile_) &&
        library.find("nvrtcGetProgramLogSize", c.log_size_) && library.find("nvrtcGetProgramLog", c.log_) &&
        library.find("nvrtcGetCUBINSize", c.binary_size_) && library.find("nvrtcGetCUBIN", c.binary_) &&
        library.find("nvrtcGetPTXSize", c.ptx_size_) && library.find("nvrtcGetPTX", c.ptx_);
    if (!whole || version(&major, &minor) != 0 || architecture_count(&count) != 0) {
      throw CudaError(CudaProblem::no_compiler, "NVRTC", "expected NVRTC of CUDA 12 or 13, found another library");
    }
    c.version_ = 1000 * major + minor;
    if (major < 12) {
      throw CudaError(
          CudaProblem::no_compiler, "NVRTC",
          "expected NVRTC of CUDA 12 or 13, found that of CUDA " + std::to_string(major) + "." + std::to_string(minor));
    }
    c.architectures_.resize(static_cast<std::size_t>(count));
    architectures(c.architectures_.data());
    std::sort(c.architectures_.begin(), c.architectures_.end());
    return c;
  }

  int (*create_)(Handle*, const char*, const char*, int, const char* const*, const char* const*) = nullptr;
  int (*destroy_)(Handle*) = nullptr;
  int (*compile_)(Handle, int, const char* const*) = nullptr;
  int (*log_size_)(Handle, std::size_t*) = nullptr;
  int (*log_)(Handle, char*) = nullptr;
  int (*binary_size_)(Handle, std::size_t*) = nullptr;
  int (*binary_)(Handle, char*) = nullptr;
  int (*ptx_size_)(Handle, std::size_t*) = nullptr;
  int (*ptx_)(Handle, char*) = nullptr;
  int version_ = 0;
  std::vector<int> architectures_;
};

}  // namespace gpu
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
