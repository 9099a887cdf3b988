// The reference checkpoints: what make_reference.py computed in double with PyTorch.
#ifndef MINIMAMBA_TESTS_GOLDEN_HPP
#define MINIMAMBA_TESTS_GOLDEN_HPP

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "minimamba/io.hpp"
#include "support/support.hpp"

namespace support {

/// The folders with reference checkpoints of models with this type of configuration: the repository's own, and those
/// that the environment names.
template <class Config = minimamba::MambaConfig>
std::vector<std::filesystem::path> checkpoints() {
  std::vector<std::filesystem::path> found;
  const auto collect = [&](const std::filesystem::path& folder) {
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
      if (!std::filesystem::exists(entry.path() / "expected.safetensors")) continue;
      if (minimamba::open_checkpoint(entry.path()).config.is<Config>()) found.push_back(entry.path());
    }
  };
  collect(GOLDEN_FOLDER);
  if (const char* more = std::getenv("MINIMAMBA_TEST_DATA")) {
    collect(std::filesystem::path(more) / "reference");
    collect(std::filesystem::path(more) / "family");
  }
  std::sort(found.begin(), found.end());
  return found;
}

class Expected {
 public:
  explicit Expected(const std::filesystem::path& folder) {
    minimamba::read_safetensors(minimamba::ByteSource::open(folder / "expected.safetensors"), set_);
  }
  bool has(const std::string& name) const { return set_.find(name) != nullptr; }
  std::vector<std::uint64_t> shape(const std::string& name) const { return set_.find(name)->shape; }
  /// A tensor as a matrix: the last extent is the columns.
  HostMatrix<double> matrix(const std::string& name) const {
    const minimamba::StoredTensor& tensor = *set_.find(name);
    const std::size_t cols = tensor.shape.empty() ? 1 : static_cast<std::size_t>(tensor.shape.back());
    HostMatrix<double> values(static_cast<std::size_t>(tensor.size()) / cols, cols);
    set_.read(tensor, 0, std::span(values.values));
    return values;
  }
  /// How much a result may differ, in parts of the largest: `otherwise`, or four times as much as PyTorch in float
  /// differs from PyTorch in double, if that was stored as `name` and is more. Two errors of rounding with the same
  /// causes differ less than that.
  template <class Scalar>
  double allowed(const std::string& name, double otherwise) const {
    if (sizeof(Scalar) == 8 || !has(name)) return otherwise;
    return std::max(otherwise, 4 * matrix(name).values[0]);
  }
  std::vector<std::int32_t> tokens(const std::string& name) const {
    const minimamba::StoredTensor& tensor = *set_.find(name);
    std::vector<std::int64_t> wide(static_cast<std::size_t>(tensor.size()));
    set_.source(tensor.source).read(tensor.begin, std::as_writable_bytes(std::span(wide)));
    return {wide.begin(), wide.end()};
  }

 private:
  minimamba::TensorSet set_;
};

/// A cache with the states that the reference calls `name`.conv.i and `name`.ssm.i, or at zero where it has none.
template <class Model>
typename Model::Cache states_of(const Model& model, const Expected& expected, std::size_t batch,
                                const std::string& name) {
  using Scalar = typename Model::ScalarType;
  auto cache = model.make_cache(static_cast<std::int64_t>(batch));
  for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
    const std::string i = std::to_string(layer);
    if (!expected.has(name + ".ssm." + i)) continue;
    const auto conv = expected.matrix(name + ".conv." + i), ssm = expected.matrix(name + ".ssm." + i);
    const auto take = [&](const HostMatrix<double>& all, std::size_t first, const auto& part) {  // from column `first`
      const std::size_t channels = all.rows / batch;
      std::vector<Scalar> values(all.cols - first);
      for (std::size_t row = 0; row < all.rows; ++row) {
        for (std::size_t n = first; n < all.cols; ++n) values[n - first] = static_cast<Scalar>(all(row, n));
        model.backend().upload(values, part(row / channels).rows_from(row % channels, 1).data());
      }
    };
    take(ssm, 0, [&](std::size_t slot) { return cache.ssm(layer, slot); });
    take(conv, 1, [&](std::size_t slot) { return cache.conv(layer, slot); });
  }
  return cache;
}

/// A cache that begins where the reference began: at zero, or in its random state.
template <class Model>
typename Model::Cache start(const Model& model, const Expected& expected, std::size_t batch) {
  return states_of(model, expected, batch, "state_in");
}

}  // namespace support

#endif
