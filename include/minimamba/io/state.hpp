// State files: what a model remembers of a text, so that another process can continue from there.
//
// All values are little-endian:
//   "MINIMAMBA STATE\n", version u32, bytes of a scalar u32, fingerprint of the model u64, rows u64
//   positions i64 of the rows; then for each row and layer the parts of the mixer's state: for S6 the window of the
//   convolution [E, K - 1] and h [E, N]
//   sections u32, each: bytes of its name u32, name, bytes of its contents u64, contents
//   checksum u64 of everything before it
#ifndef MINIMAMBA_IO_STATE_HPP
#define MINIMAMBA_IO_STATE_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "minimamba/core/hash.hpp"
#include "minimamba/io/atomic_file.hpp"
#include "minimamba/io/file.hpp"
#include "minimamba/nn/mamba.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// What a program saves along with the state of a model, by name: the sampler's state, the token that was sampled but
/// not read yet, the bytes of an incomplete character. Only the program knows what the contents mean.
using StateSections = std::map<std::string, std::string>;

/// A state as it was saved.
template <class Model>
struct SavedState {
  typename Model::Cache cache;
  StateSections sections;
};

namespace detail {

inline constexpr std::string_view state_magic = "MINIMAMBA STATE\n";
/// In version 2 the fingerprint covered only S6, in version 3 no scales but those of the norms of blocks and norm_f.
inline constexpr std::uint32_t state_version = 4, oldest_state_version = 2;
inline constexpr std::uint32_t max_state_sections = 64;
inline constexpr std::uint32_t longest_section_name = 255;

/// A hash that differs between models that would continue from a state differently: it covers their settings, and the
/// scales (the weights of all norms, and D) as floats, which every weight format leaves unchanged.
template <class Model>
std::uint64_t fingerprint(const Model& model, const StateLayout& layout, std::uint32_t version = state_version) {
  Fnv1a sum;
  for (const StatePart& part : layout.parts()) {
    if (version < 3) break;
    sum.add(std::as_bytes(std::span(part.name)));
    for (const std::size_t extent : {part.rows, part.cols}) sum.add_value(static_cast<std::uint64_t>(extent));
  }
  const auto& config = model.config();
  for (const ModelSetting& setting : layout.settings()) {
    if (!setting.is_switch) sum.add_value(setting.value);
  }
  sum.add_value(config.vocab_size);
  for (const ModelSetting& setting : layout.settings()) {
    if (setting.is_switch) sum.add_value(setting.value != 0);
  }
  sum.add_value(config.norm_epsilon);
  const auto add = [&](const auto& scale) {
    std::vector<typename Model::ScalarType> values(scale.size());
    scale.download(model.backend(), 0, View<typename Model::ScalarType>(values.data(), 1, values.size()));
    for (const auto x : values) sum.add_value(static_cast<float>(x));
  };
  if (version < 4) {
    for (const auto& layer : model.layers) add(layer.norm.weight);
    add(model.norm_f.weight);
  } else {
    for_each_parameter(
        [&](std::string_view, const auto& parameter) {
          if (parameter.role() == Role::scale) add(parameter);
        },
        model);
  }
  return sum.value();
}

/// Passes bytes to a sink and computes their checksum.
class StateWriter {
 public:
  explicit StateWriter(const ByteSink& sink) : sink_(sink) {}

  void write(std::span<const std::byte> bytes) {
    sum_.add(bytes);
    sink_(bytes);
  }
  void write(std::string_view text) { write(std::as_bytes(std::span(text.data(), text.size()))); }
  template <class T>
  requires std::is_arithmetic_v<T>
  void value(T value) { write(std::as_bytes(std::span(&value, 1))); }
  void finish() {
    const std::uint64_t sum = sum_.value();
    sink_(std::as_bytes(std::span(&sum, 1)));
  }

 private:
  const ByteSink& sink_;
  Fnv1a sum_;
};

/// Throws FormatError unless the file ends with the checksum of everything before it.
inline void check_sum(const ByteSource& source) {
  constexpr std::uint64_t sum_bytes = sizeof(std::uint64_t);
  std::string magic(state_magic.size(), '\0');
  if (source.size() >= magic.size()) source.read(0, std::as_writable_bytes(std::span(magic)));
  if (magic != state_magic) throw FormatError(source.name(), "is not a state file");
  if (source.size() < magic.size() + sum_bytes) throw FormatError(source.name(), "the state file is truncated");
  const std::uint64_t end = source.size() - sum_bytes;
  Fnv1a sum;
  std::vector<std::byte> piece(std::size_t{1} << 16);
  for (std::uint64_t at = 0; at < end; at += piece.size()) {
    piece.resize(static_cast<std::size_t>(std::min<std::uint64_t>(piece.size(), end - at)));
    source.read(at, piece);
    sum.add(piece);
  }
  if (source.read_value<std::uint64_t>(end) != sum.value()) {
    throw FormatError(source.name(), "the checksum is wrong (is the file truncated or altered?)");
  }
}

inline std::string read_section_text(const ByteSource& source, SequentialBytes& bytes, std::uint64_t size,
                                     std::uint64_t limit) {
  if (size > bytes.left() || size > limit) {
    throw FormatError(source.name(), "a section within the file", "a size of " + std::to_string(size) + " bytes");
  }
  std::string text(static_cast<std::size_t>(size), '\0');
  bytes.read(std::as_writable_bytes(std::span(text)));
  return text;
}

inline StateSections read_sections(const ByteSource& source, SequentialBytes& bytes) {
  StateSections sections;
  const auto count = bytes.value<std::uint32_t>();
  if (count > max_state_sections) {
    throw FormatError(source.name(), "at most " + std::to_string(max_state_sections) + " sections",
                      std::to_string(count));
  }
  for (std::uint32_t i = 0; i < count; ++i) {
    const auto name_size = bytes.value<std::uint32_t>();
    std::string name = read_section_text(source, bytes, name_size, longest_section_name);
    const auto size = bytes.value<std::uint64_t>();
    std::string contents = read_section_text(source, bytes, size, size);
    if (!sections.emplace(std::move(name), std::move(contents)).second) {
      throw FormatError(source.name(), "a section occurs twice");
    }
  }
  if (bytes.left() != 0) {
    throw FormatError(source.name(), "the end of the file", std::to_string(bytes.left()) + " more bytes");
  }
  return sections;
}

}  // namespace detail

/// Passes the whole value of a cache, with sections of the caller, to a sink: into memory, a database, a socket. Equal
/// values give equal bytes, whatever the backend. Throws ArgumentError for a cache of another model, more than 64
/// sections or a name of more than 255 bytes, before the first byte; and what the sink throws.
template <class Model>
void save_state(const Model& model, const typename Model::Cache& cache, const ByteSink& sink,
                const StateSections& sections = {}) {
  using Scalar = typename Model::ScalarType;
  model.check_cache(cache);
  const bool names_fit = std::all_of(sections.begin(), sections.end(), [](const auto& section) {
    return section.first.size() <= detail::longest_section_name;
  });
  if (sections.size() > detail::max_state_sections || !names_fit) {
    throw ArgumentError("sections", "at most 64, with names of at most 255 bytes", "more");
  }
  detail::StateWriter writer(sink);
  writer.write(detail::state_magic);
  writer.value(detail::state_version);
  writer.value(static_cast<std::uint32_t>(sizeof(Scalar)));
  writer.value(detail::fingerprint(model, cache.layout()));
  writer.value(std::uint64_t{cache.batch()});
  for (std::size_t row = 0; row < cache.batch(); ++row) writer.value(cache.position(row));
  std::vector<Scalar> values(cache.layout().size());
  for (std::size_t slot = 0; slot < cache.batch(); ++slot) {
    model.backend().download(cache.slot(slot).data(), values);
    writer.write(std::as_bytes(std::span(values)));
  }
  writer.value(static_cast<std::uint32_t>(sections.size()));
  for (const auto& [name, contents] : sections) {
    writer.value(static_cast<std::uint32_t>(name.size()));
    writer.write(name);
    writer.value(std::uint64_t{contents.size()});
    writer.write(contents);
  }
  writer.finish();
}
/// The same into a file. Also throws FileError; after an exception, an existing file is as before.
template <class Model>
void save_state(const Model& model, const typename Model::Cache& cache, const std::filesystem::path& path,
                const StateSections& sections = {}) {
  AtomicFile::remove_strays_beside(path);
  AtomicFile file(path);
  const ByteSink to_file = [&](std::span<const std::byte> bytes) { file.write(bytes); };
  save_state(model, cache, to_file, sections);
  file.commit();
}

/// Reads what save_state has written: a cache that continues where the saved one stopped, bit for bit with the same
/// backend and weight format. Other backends and weight formats of the same model can read it too; models with another
/// scalar cannot. Throws FileError; FormatError for a file that is not a state, or is truncated or altered in any bit;
/// and CheckpointError for the state of another model.
template <class Model>
SavedState<Model> load_state(const ByteSource& source, const Model& model) {
  using Scalar = typename Model::ScalarType;
  detail::check_sum(source);
  detail::SequentialBytes bytes(source, detail::state_magic.size(), source.size() - sizeof(std::uint64_t));
  const auto found_version = bytes.value<std::uint32_t>();
  if (found_version < detail::oldest_state_version || found_version > detail::state_version) {
    throw FormatError(source.name(),
                      "a state file of version " + std::to_string(detail::oldest_state_version) + " to " +
                          std::to_string(detail::state_version),
                      "version " + std::to_string(found_version));
  }
  const auto width = bytes.value<std::uint32_t>();
  if (width != sizeof(Scalar)) {
    throw CheckpointError(source.name(),
                          "the state of a model with scalars of " + std::to_string(sizeof(Scalar)) + " bytes",
                          std::to_string(width) + " bytes");
  }
  const auto like = model.make_cache();
  if (bytes.value<std::uint64_t>() != detail::fingerprint(model, like.layout(), found_version)) {
    throw CheckpointError(
        source.name(),
        "the state of a model with " + like.layout().settings_text() + " and the same settings, norms and D",
        "the state of another model");
  }
  const auto rows = bytes.value<std::uint64_t>();
  const std::uint64_t row_bytes = sizeof(std::int64_t) + like.state_bytes();
  if (rows < 1 || rows > static_cast<std::uint64_t>(Model::Cache::largest_batch) || rows > bytes.left() / row_bytes) {
    throw FormatError(source.name(), "states within the file",
                      std::to_string(rows) + " of " + std::to_string(row_bytes) + " bytes each");
  }
  SavedState<Model> saved{model.make_cache(static_cast<std::int64_t>(rows)), {}};
  for (std::size_t row = 0; row < rows; ++row) {
    const auto position = bytes.value<std::int64_t>();
    if (position < 0 || position > Model::Cache::largest_position) {
      throw FormatError(source.name(), "positions of 0 to 2^62", std::to_string(position));
    }
    saved.cache.set_position(row, position);
  }
  std::vector<Scalar> values(saved.cache.layout().size());
  for (std::size_t slot = 0; slot < rows; ++slot) {
    bytes.read(std::as_writable_bytes(std::span(values)));
    model.backend().upload(values, saved.cache.slot(slot).data());
  }
  saved.sections = detail::read_sections(source, bytes);
  return saved;
}
template <class Model>
SavedState<Model> load_state(const std::filesystem::path& path, const Model& model) {
  return load_state(ByteSource::open(path), model);
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
