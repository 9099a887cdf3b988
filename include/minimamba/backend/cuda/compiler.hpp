// NVRTC, NVIDIA's run-time compiler, opened at run time, and the kernels that it compiles.
#ifndef MINIMAMBA_BACKEND_CUDA_COMPILER_HPP
#define MINIMAMBA_BACKEND_CUDA_COMPILER_HPP

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <vector>

#include "minimamba/backend/cuda/driver.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace gpu {

/// Kernels that are compiled together.
enum class Program {
  layers,
  layers_double,
  products_tf32,
  products_fma,
  products_mma,  // of bf16
  products_q8,
  products_q4,
  products_double,
  ssd,
  ssd_double,
  layers_bf16,    // with activations of bf16
  products_wide,  // without kernels but on Hopper
  decode_f32,
  decode_f16,
  decode_bf16,
  decode_q8,
  decode_q4,
  training,
  training_double,
  training_products,
  training_products_double,
  training_ssd,
  training_ssd_double,
  training_bf16,
  training_bf16_tiles,  // without kernels but on Hopper
  training_split        // likewise
};
inline constexpr std::array program_names = {"layers",
                                             "layers_double",
                                             "products_tf32",
                                             "products_fma",
                                             "products_mma",
                                             "products_q8",
                                             "products_q4",
                                             "products_double",
                                             "ssd",
                                             "ssd_double",
                                             "layers_bf16",
                                             "products_wide",
                                             "decode_f32",
                                             "decode_f16",
                                             "decode_bf16",
                                             "decode_q8",
                                             "decode_q4",
                                             "training",
                                             "training_double",
                                             "training_products",
                                             "training_products_double",
                                             "training_ssd",
                                             "training_ssd_double",
                                             "training_bf16",
                                             "training_bf16_tiles",
                                             "training_split"};
inline constexpr std::size_t program_count = program_names.size();
static_assert(program_count == static_cast<std::size_t>(Program::training_split) + 1);

/// Programs that take long are compiled in parts, at once, or a part only when it is needed: see memory.hpp, which says
/// which kernels each part has.
inline constexpr std::size_t most_parts = 6;
constexpr std::size_t parts_of(Program program) {
  switch (program) {
    case Program::layers:
    case Program::layers_double:
      return 5;
    case Program::layers_bf16:
    case Program::products_mma:
    case Program::products_q8:
    case Program::products_q4:
    case Program::training_split:
      return 3;
    case Program::products_wide:
      return 5;
    case Program::products_tf32:
      return 6;
    default:
      return 1;
  }
}
/// A part of a program.
struct Unit {
  Program program;
  std::size_t part = 0;

  std::string name() const {
    const std::string whole = program_names[static_cast<std::size_t>(program)];
    return parts_of(program) == 1 ? whole : whole + "_" + std::to_string(part);
  }
};

namespace text {
inline constexpr char common[] =
#include "minimamba/backend/cuda/common.cuh"
    ;
inline constexpr char layers[] =
#include "minimamba/backend/cuda/layers.cuh"
    ;
inline constexpr char mixer_layers[] =
#include "minimamba/backend/cuda/mixer_layers.cuh"
    ;
inline constexpr char state_sums[] =
#include "minimamba/backend/cuda/state_sums.cuh"
    ;
inline constexpr char ssd[] =
#include "minimamba/backend/cuda/ssd.cuh"
    ;
inline constexpr char ssd_scan[] =
#include "minimamba/backend/cuda/ssd_scan.cuh"
    ;
inline constexpr char scan_one[] =
#include "minimamba/backend/cuda/scan_one.cuh"
    ;
inline constexpr char scan[] =
#include "minimamba/backend/cuda/scan.cuh"
    ;
inline constexpr char formats[] =
#include "minimamba/backend/cuda/formats.cuh"
    ;
inline constexpr char tf32[] =
#include "minimamba/backend/cuda/tf32.cuh"
    ;
inline constexpr char products_tf32[] =
#include "minimamba/backend/cuda/products_tf32.cuh"
    ;
inline constexpr char products_fma[] =
#include "minimamba/backend/cuda/products_fma.cuh"
    ;
inline constexpr char activations[] =
#include "minimamba/backend/cuda/activations.cuh"
    ;
inline constexpr char mma[] =
#include "minimamba/backend/cuda/mma.cuh"
    ;
inline constexpr char products_mma[] =
#include "minimamba/backend/cuda/products_mma.cuh"
    ;
inline constexpr char wgmma[] =
#include "minimamba/backend/cuda/wgmma.cuh"
    ;
inline constexpr char products_wide[] =
#include "minimamba/backend/cuda/products_wide.cuh"
    ;
inline constexpr char products_conv[] =
#include "minimamba/backend/cuda/products_conv.cuh"
    ;
inline constexpr char products_some[] =
#include "minimamba/backend/cuda/products_some.cuh"
    ;
inline constexpr char products_double[] =
#include "minimamba/backend/cuda/products_double.cuh"
    ;
inline constexpr char decode_exchange[] =
#include "minimamba/backend/cuda/decode_exchange.cuh"
    ;
inline constexpr char decode_units[] =
#include "minimamba/backend/cuda/decode_units.cuh"
    ;
inline constexpr char decode_products[] =
#include "minimamba/backend/cuda/decode_products.cuh"
    ;
inline constexpr char decode_block[] =
#include "minimamba/backend/cuda/decode_block.cuh"
    ;
inline constexpr char decode_parts[] =
#include "minimamba/backend/cuda/decode_parts.cuh"
    ;
inline constexpr char decode[] =
#include "minimamba/backend/cuda/decode.cuh"
    ;
inline constexpr char training_sums[] =
#include "minimamba/backend/cuda/training_sums.cuh"
    ;
inline constexpr char training[] =
#include "minimamba/backend/cuda/training.cuh"
    ;
inline constexpr char training_loss[] =
#include "minimamba/backend/cuda/training_loss.cuh"
    ;
inline constexpr char training_tiles[] =
#include "minimamba/backend/cuda/training_tiles.cuh"
    ;
inline constexpr char training_scan[] =
#include "minimamba/backend/cuda/training_scan.cuh"
    ;
inline constexpr char ssd_backward[] =
#include "minimamba/backend/cuda/ssd_backward.cuh"
    ;
inline constexpr char ssd_backward_sums[] =
#include "minimamba/backend/cuda/ssd_backward_sums.cuh"
    ;
inline constexpr char training_products[] =
#include "minimamba/backend/cuda/training_products.cuh"
    ;
inline constexpr char training_bf16[] =
#include "minimamba/backend/cuda/training_bf16.cuh"
    ;
inline constexpr char training_bf16_blocks[] =
#include "minimamba/backend/cuda/training_bf16_blocks.cuh"
    ;
inline constexpr char training_wgmma[] =
#include "minimamba/backend/cuda/training_wgmma.cuh"
    ;
inline constexpr char training_bf16_tiles[] =
#include "minimamba/backend/cuda/training_bf16_tiles.cuh"
    ;
inline constexpr char training_split[] =
#include "minimamba/backend/cuda/training_split.cuh"
    ;
inline constexpr char wgmma_tiles[] =
#include "minimamba/backend/cuda/wgmma_tiles.cuh"
    ;
}  // namespace text

/// The parts of layers: memory, mixer_layers.cuh, scans of up to 16 states and of more, and the rest.
inline std::string text_of_layers(std::size_t part) {
  const auto joined = [](auto... parts) { return (std::string() + ... + parts); };
  const std::string before = "#define MINIMAMBA_PART " + std::to_string(part) + "\n" + text::common;
  switch (part) {
    case 0:
      return joined(before, text::mixer_layers, text::layers);
    case 1:
      return joined(before, text::mixer_layers);
    case 4:
      return joined("#define MINIMAMBA_FORMATS\n", before, text::mixer_layers, text::layers, text::formats);
    default:
      return joined(before, text::state_sums, text::scan_one, text::scan);
  }
}

inline std::string text_of(const Unit& unit) {
  const auto joined = [](auto... parts) { return (std::string() + ... + parts); };
  constexpr const char* in_double = "#define MINIMAMBA_DOUBLE\n";
  const std::string part = "#define MINIMAMBA_PART " + std::to_string(unit.part) + "\n";
  constexpr const char* functions_alone = "#define MINIMAMBA_DECODE\n";
  const auto decode = [&](const char* formats) {  // of all matrices but x_proj, and of x_proj
    return joined("#define MINIMAMBA_DECODE ", formats, "\n", text::common, text::mixer_layers, text::layers,
                  text::state_sums, text::scan_one, text::formats, text::tf32, text::products_tf32, text::activations,
                  text::mma, text::products_mma, text::decode_exchange, text::decode_units, text::decode_products,
                  text::decode_block, text::decode_parts, text::decode);
  };
  const std::string products =
      joined(part, text::common, text::formats, text::activations, text::mma, text::products_mma);
  switch (unit.program) {
    case Program::layers:
      return text_of_layers(unit.part);
    case Program::layers_bf16:  // those that are also of layers, but the first
      return joined("#define MINIMAMBA_NARROW\n", text_of_layers(unit.part + 1));
    case Program::layers_double:
      return joined(in_double, text_of_layers(unit.part));
    case Program::ssd:
      return joined(text::common, text::state_sums, text::ssd, text::ssd_scan);
    case Program::ssd_double:
      return joined(in_double, text_of({Program::ssd}));
    case Program::products_tf32:
      return joined(part, text::common, text::formats, text::tf32, text::products_tf32);
    case Program::products_fma:
      return joined(text::common, text::formats, text::products_fma);
    case Program::products_mma:
      return joined("#define MINIMAMBA_PRODUCTS_BF16\n", products);
    case Program::products_q8:
      return joined("#define MINIMAMBA_PRODUCTS_Q8\n", products);
    case Program::products_q4:
      return joined("#define MINIMAMBA_PRODUCTS_Q4\n", products);
    case Program::products_wide:
      return joined(part, functions_alone, text::common, text::mixer_layers, text::formats, text::activations,
                    text::mma, text::wgmma, text::products_wide, text::products_some, text::products_conv);
    case Program::decode_f32:
      return decode("F32Units, F32Units");
    case Program::decode_f16:
      return decode("F16Units, F16Units");
    case Program::decode_bf16:
      return joined("#define MINIMAMBA_NARROW\n", decode("Bf16Units, Bf16Units"));
    case Program::decode_q8:
      return decode("Q8Units, Bf16Units");
    case Program::decode_q4:
      return decode("Q4Units, Q4Units");
    case Program::training:
      return joined(text::common, text::formats, text::training_sums, text::training, text::training_loss,
                    text::training_tiles, text::training_scan);
    case Program::training_double:
      return joined(in_double, text_of({Program::training}));
    case Program::training_products:
      return joined(text::common, text::formats, text::tf32, text::training_products);
    case Program::training_products_double:
      return joined(in_double, text::common, text::formats, text::training_products);
    case Program::training_ssd:
      return joined(text::common, text::training_sums, text::ssd_backward, text::ssd_backward_sums);
    case Program::training_ssd_double:
      return joined(in_double, text_of({Program::training_ssd}));
    case Program::training_bf16:
      return joined(functions_alone, text::common, text::formats, text::training_bf16, text::training_bf16_blocks);
    case Program::training_bf16_tiles:
      return joined(functions_alone, text::common, text::formats, text::wgmma, text::wgmma_tiles, text::training_bf16,
                    text::training_wgmma, text::training_bf16_tiles);
    case Program::training_split:
      return joined(part, functions_alone, text::common, text::formats, text::wgmma, text::wgmma_tiles,
                    text::training_bf16, text::training_wgmma, text::training_split);
    case Program::products_double:
      break;
  }
  return joined(in_double, text::common, text::formats, text::products_double);
}

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
