// save_c_array: the weights of a Mamba as a C++ header of constants, for StaticMamba of minimamba/embedded.hpp. Opt-in.
#ifndef MINIMAMBA_IO_C_ARRAY_HPP
#define MINIMAMBA_IO_C_ARRAY_HPP

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "minimamba/core/config.hpp"
#include "minimamba/core/error.hpp"
#include "minimamba/core/formats.hpp"
#include "minimamba/io/checkpoint.hpp"
#include "minimamba/io/checkpoint_parameters.hpp"
#include "minimamba/io/dtype.hpp"
#include "minimamba/io/folders.hpp"
#include "minimamba/io/gguf_writer.hpp"
#include "minimamba/io/save.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// Comma-separated C++ constants, in lines of at most 120 characters.
class ConstantWriter {
 public:
  explicit ConstantWriter(AtomicFile& file) : file_(file) {}

  /// The shortest number that reads as the same float.
  void number(float value) {
    char text[32];
    std::string digits(text, std::to_chars(text, text + sizeof(text), value).ptr);
    if (digits.find_first_of(".e") == digits.npos) digits += ".0";
    item(digits + "F");
  }
  void bits(bf16 value) { item("b(" + std::to_string(value.bits) + ")"); }
  void block(const Format<q8>::Block& block) {
    std::string text = "{h(" + std::to_string(block.scale.bits) + "),{";
    for (const std::int8_t value : block.values) text += std::to_string(int{value}) + ',';
    text.back() = '}';
    item(text + "}");
  }
  void finish() {
    file_.write(line_ + "\n");
    line_.clear();
  }

 private:
  void item(const std::string& text) {
    if (!line_.empty() && line_.size() + text.size() >= 120) finish();
    line_ += text + ',';
  }

  AtomicFile& file_;
  std::string line_;
};

/// What has a meaning in C++ as it is: keywords, macros of compilers, and functions and types that the headers of C and
/// POSIX declare without a namespace, as far as a file may be called so. A namespace of such a name would not compile
/// in a program that includes them.
inline constexpr std::string_view taken_names =
    " alignas alignof and and_eq asm auto bitand bitor bool break case catch char char8_t char16_t char32_t class "
    "co_await co_return co_yield compl concept const const_cast consteval constexpr constinit continue decltype "
    "default delete do double dynamic_cast else enum explicit export extern false float for friend goto if inline int "
    "long main minimamba mutable namespace new noexcept not not_eq nullptr operator or or_eq private protected public "
    "register reinterpret_cast requires return short signed sizeof static static_assert static_cast std struct switch "
    "template this thread_local throw true try typedef typeid typename union unsigned using virtual void volatile "
    "wchar_t while xor xor_eq "
    "abort abs accept access acos acosh alarm asin asinh assert atan atan2 atanh atexit atof atoi atol basename bind "
    "brk bsearch calloc cbrt ceil chdir chmod chown chroot clock clone close connect copysign cos cosh creat crypt "
    "ctime daemon daylight difftime dirname div drem dup dup2 environ erf erfc errno exit exp exp10 exp2 expm1 fabs "
    "fclose fdim feof ferror fflush ffs fgetc fgets finite floor fma fmax fmin fmod fopen fork fprintf fputc fputs "
    "fread free frexp fscanf fseek fstat ftell fwrite gamma getc getchar getcwd getenv getline getopt getpid gets glob "
    "gmtime group hypot iconv ilogb index ioctl isatty isnan j0 j1 jn kill labs ldexp ldiv lgamma link linux listen "
    "localtime log log10 log1p log2 logb longjmp lrint lround lseek major malloc memchr memcmp memcpy memmove memset "
    "minor mkdir mktime mmap modf nan nice open optarg option pause perror pipe poll pow printf profil putc putchar "
    "puts qsort raise rand random read readlink realloc realpath recv remainder remove rename revoke rewind rindex "
    "rint rmdir round scalb scanf select send setbuf setenv setjmp shutdown sigaction signal significand sigset sin "
    "sincos sinh sleep socket splice sprintf sqrt srand srandom stat stderr stdin stdout strcat strchr strcmp strcpy "
    "strlen strstr strtod swab symlink sync syscall sysconf system tan tanh tee tgamma time timezone tm tolower "
    "toupper trunc truncate tzname uint ulong umask ungetc unix unlink ushort usleep utime valloc wait waitpid write "
    "y0 y1 yn ";

inline bool is_one_of(std::string_view names, std::string_view name) {  // each has a space before and after it
  return names.find(' ' + std::string(name) + ' ') != names.npos;
}

/// The name of a file as it is written in C++: "my-model.hpp" is my_model.
inline std::string identifier_of(const std::filesystem::path& path) {
  std::string name = path.stem().string();
  const auto in = [](char c, char first, char last) { return c >= first && c <= last; };
  for (char& c : name) {
    if (!in(c, 'a', 'z') && !in(c, 'A', 'Z') && !in(c, '0', '9')) c = '_';
  }
  return name;
}
/// The name of a namespace for a file. What is no name in C++, or has a meaning there, gets "model_" before it.
inline std::string namespace_of(const std::filesystem::path& path) {
  const std::string name = identifier_of(path);
  const bool usable = !name.empty() && !(name[0] >= '0' && name[0] <= '9') && !is_one_of(taken_names, name);
  return usable ? name : "model_" + name;
}

/// Throws ArgumentError for a header that a program would find in place of a standard one: `time.h` in a folder of
/// -I, or any of C++, none of which has an extension. Of C they are those of the standard, and what these include.
inline void check_header_name(const std::filesystem::path& path) {
  constexpr std::string_view of_c =
      " alloca assert complex ctype dirent endian errno fcntl features fenv float getopt inttypes iso646 libintl "
      "limits locale malloc math memory newlib pthread reent sched semaphore setjmp signal stdalign stdarg stdatomic "
      "stdbit stdbool stdckdint stddef stdint stdio stdlib stdnoreturn string strings tgmath threads time uchar "
      "unistd wchar wctype ";
  std::string name = path.filename().string();
  for (char& c : name) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;  // as some file systems do
  const std::filesystem::path lower(name);
  if (!lower.has_extension()) {
    throw ArgumentError("path", "a name with an extension, which headers of C++ lack, such as model.hpp",
                        path.filename().string());
  }
  if (lower.extension() == ".h" && is_one_of(of_c, lower.stem().string())) {
    throw ArgumentError("path", "the name of a header that hides no standard one, such as model.hpp",
                        path.filename().string());
  }
}

/// The Config and what comes before the first weights.
inline std::string c_array_head(const MambaConfig& config, bool quantised, const std::string& name) {
  const auto size = [](const char* field, std::int64_t value) {
    return "  static constexpr std::size_t " + std::string(field) + " = " + std::to_string(value) + ";\n";
  };
  const auto option = [](const char* field, bool value) {
    return "  static constexpr bool " + std::string(field) + " = " + (value ? "true" : "false") + ";\n";
  };
  const auto real = [](const char* field, double value) {
    char digits[32];
    const std::string text(digits, std::to_chars(digits, digits + sizeof(digits), value).ptr);
    return "  static constexpr double " + std::string(field) + " = " + text + ";\n";
  };
  return "// The weights of a Mamba, for minimamba::StaticMamba<" + name +
         "::Config>. Written by minimamba: do not edit.\n#pragma once\n\n#include "
         "<minimamba/embedded.hpp>\n\nnamespace " +
         name + " {\n\nstruct Config : minimamba::StaticConfig {\n" + size("d_model", config.d_model) +
         size("n_layer", config.n_layer) + size("vocab_size", config.vocab_size) + size("d_inner", config.d_inner()) +
         size("dt_rank", config.dt_rank) + size("d_state", config.d_state) + size("d_conv", config.d_conv) +
         option("conv_bias", config.conv_bias) + option("bias", config.bias) +
         option("tie_embeddings", config.tie_embeddings) + real("norm_epsilon", config.norm_epsilon) +
         option("dt_b_c_rms", config.dt_b_c_rms) + real("mixer_rms_eps", config.mixer_rms_eps) +
         "  using Weight = " + (quantised ? "minimamba::q8" : "float") +
         ";\n};\n\n/// 16-bit numbers from their bits.\ninline constexpr auto b = minimamba::bf16::from_bits;\n" +
         "inline constexpr auto h = minimamba::f16::from_bits;\n\n" +
         "inline constexpr minimamba::StaticWeights<Config> weights = {\n";
}

/// Writes the parameters of a GgufParameters, which has A in place of A_log, in the order of StaticWeights.
template <class Parameters>
class CArrayWriter {
 public:
  using Scalar = typename Parameters::Scalar;

  CArrayWriter(const Parameters& parameters, AtomicFile& file, bool quantised)
      : parameters_(parameters), file_(file), quantised_(quantised) {}

  /// The type in which a parameter is written: in a q8 model, x_proj is bf16, as in SelectionFormat.
  static DType type_of(const SavedParameter& parameter, bool quantised) {
    if (!quantised || !parameter.is_matrix) return DType::F32;
    return parameter.name.ends_with("x_proj.weight") ? DType::BF16 : DType::Q8_0;
  }

  template <class Pieces>
  void write(const SavedParameter& parameter, const Pieces& pieces, Saturation& saturation) {
    const DType type = type_of(parameter, quantised_);
    open(parameter.name);
    ConstantWriter constants(file_);
    if (!write_stored_blocks(parameter, pieces, type, constants)) {
      const RangeCheck range(parameter.dtype, type);
      const auto write_piece = [&](std::size_t first, auto piece) {
        saturation.apply(range, piece);
        for (std::size_t i = 0; i < piece.rows() && first + i < rows_of(parameter); ++i) {
          write_row(parameter.name, std::span<const Scalar>(piece.row(i)), type, constants);
        }
      };
      pieces(write_piece);
    }
    constants.finish();
    file_.write("}},\n");
  }
  void finish() { close_layers(); }

 private:
  /// The rows of a matrix of tokens that belong to the vocabulary, and all of any other.
  std::size_t rows_of(const SavedParameter& parameter) const {
    const bool of_tokens = parameter.name == "embedding.weight" || parameter.name == "lm_head.weight";
    return of_tokens ? static_cast<std::size_t>(parameters_.config().vocab_size) : parameter.extents.rows();
  }

  /// ".in_proj_weight = {{" for layers.0.mixer.in_proj.weight
  void open(std::string_view name) {
    std::string_view part = name, layer;
    if (const auto split = in_layer(name, "layers.")) {
      layer = split->layer;
      part = split->part;
    }
    if (layer != layer_) {
      if (layer_.empty()) file_.write(".layers = {{\n");
      if (!layer_.empty()) file_.write(layer.empty() ? std::string_view("}}},\n") : std::string_view("},\n"));
      if (!layer.empty()) file_.write("{\n");
      layer_ = layer;
    }
    if (part.starts_with("mixer.")) part.remove_prefix(6);
    std::string member(part == "A_log" ? "A" : part);
    std::replace(member.begin(), member.end(), '.', '_');
    file_.write("." + member + " = {{\n");
  }
  void close_layers() {
    if (!layer_.empty()) file_.write("}}},\n");
  }

  template <class Pieces>
  bool write_stored_blocks(const SavedParameter& parameter, const Pieces& pieces, DType type,
                           ConstantWriter& constants) const {
    using Block = Format<q8>::Block;
    if (type != DType::Q8_0) return false;
    if constexpr (requires { pieces.blocks(type, [](std::span<const std::byte>) {}); }) {
      std::size_t left = rows_of(parameter) * blocks_in<q8>(parameter.extents.cols());
      return pieces.blocks(type, [&](std::span<const std::byte> bytes) {
        for (; left > 0 && !bytes.empty(); --left, bytes = bytes.subspan(sizeof(Block))) {
          Block block;
          std::memcpy(&block, bytes.data(), sizeof(block));
          check_finite(parameter.name, static_cast<float>(block.scale));
          constants.block(block);
        }
      });
    }
    return false;
  }
  void write_row(std::string_view name, std::span<const Scalar> row, DType type, ConstantWriter& constants) {
    for (const Scalar value : row) check_finite(name, static_cast<float>(value));
    if (type == DType::Q8_0) {
      blocks_.resize(blocks_in<q8>(row.size()));
      Format<q8>::pack(row.data(), row.size(), blocks_.data());
      for (const auto& block : blocks_) constants.block(block);
    } else {
      for (const Scalar value : row) {
        type == DType::BF16 ? constants.bits(bf16(value)) : constants.number(static_cast<float>(value));
      }
    }
  }
  void check_finite(std::string_view name, float value) const {
    if (std::isfinite(value)) return;
    throw CheckpointError(parameters_.subject(name), "finite values", number_text(static_cast<double>(value)));
  }

  const Parameters& parameters_;
  AtomicFile& file_;
  bool quantised_;
  std::string layer_;  // of the last parameter
  std::vector<Format<q8>::Block> blocks_;
};

template <class Parameters>
void save_c_array_file(const Parameters& parameters, const std::filesystem::path& path, const SaveOptions& options) {
  using Writer = CArrayWriter<Parameters>;
  using Weight = typename Parameters::Weight;
  const DType matrices = options.matrices.value_or(std::is_same_v<Weight, q8> ? DType::Q8_0 : DType::F32);
  if (matrices != DType::F32 && matrices != DType::Q8_0) {
    throw ArgumentError("matrices", "F32 or Q8_0 in a C array", std::string(name_of(matrices)));
  }
  check_header_name(path);
  const bool quantised = matrices == DType::Q8_0;
  Saturation saturation(options.saturate);
  saturation.check(parameters, [&](const SavedParameter& p) { return Writer::type_of(p, quantised); });
  MadeFolders folders(path.has_parent_path() ? path.parent_path() : ".");
  AtomicFile::remove_strays_beside(path);
  AtomicFile file(path);
  const std::string name = namespace_of(path);
  file.write(c_array_head(parameters.config(), quantised, name));
  Progress progress(options.progress, path.string(), "saving", parameters.parameter_count());
  Writer writer(parameters, file, quantised);
  parameters.for_each([&](const SavedParameter& parameter, auto&& pieces) {
    writer.write(parameter, pieces, saturation);
    progress.add(parameter.extents.size());
  });
  file.write("};\n\n}  // namespace " + name + "\n");
  saturation.report(path.string(), options.on_note);
  if (options.on_note && name != identifier_of(path)) {
    options.on_note(path.string() + ": its namespace is " + name + ", as " + identifier_of(path) +
                    " cannot be one in C++");
  }
  file.commit();
  folders.keep();
}

}  // namespace detail

/// Saves the weights of a Mamba (S6) as a C++ header, which defines `Config` and `weights` in a namespace of the file's
/// name, or, if that cannot be one, of the name with "model_" before it, with a note. The six matrices are F32 or Q8_0,
/// as the options or the model's weight format say; with Q8_0, x_proj is bf16, as in every q8 model. Rows that pad the
/// vocabulary are left out. Throws FileError; CancelledError; CheckpointError for values that are not finite or do not
/// fit; ConfigError for a checkpoint of another mixer; and ArgumentError for a model that was moved from, another type,
/// or a name that is, or may be, that of a standard header: time.h, or any without an extension. An existing file is
/// then as before.
template <class Model>
void save_c_array(const Model& model, const std::filesystem::path& path, const SaveOptions& options = {}) {
  static_assert(std::is_same_v<typename Model::Config, MambaConfig>,
                "a C array holds a Mamba (S6), which minimamba/embedded.hpp runs");
  static_assert(!detail::is_lora<typename Model::WeightType>,
                "merge(model) is a model without an adapter, which can be saved");
  detail::save_c_array_file(detail::GgufParameters<detail::ModelParameters<Model>>(model), path, options);
}

/// The same for a checkpoint of any format, tensor by tensor.
inline void save_c_array(const Checkpoint& checkpoint, const std::filesystem::path& path,
                         const SaveOptions& options = {}) {
  if (!checkpoint.config.is<MambaConfig>()) {
    throw ConfigError(checkpoint.weights_name, "a Mamba (S6), which minimamba/embedded.hpp runs", "another mixer");
  }
  detail::save_c_array_file(detail::GgufParameters<CheckpointParameters<detail::S6Files>>(checkpoint), path, options);
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
