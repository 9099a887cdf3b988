// The kernels as NVRTC compiles them: in programs, which have parts, each a text of its own.
#ifndef MINIMAMBA_BACKEND_CUDA_KERNEL_TEXT_HPP
#define MINIMAMBA_BACKEND_CUDA_KERNEL_TEXT_HPP

#include <array>
#include <cstddef>
#include <string>

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

}  // namespace gpu
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
