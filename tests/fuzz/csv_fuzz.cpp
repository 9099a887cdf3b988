// Any bytes as a CSV file, after a byte of options: an Error, or rows of finite numbers that are the same when they are
// read from the file again.
// clang++ -std=c++20 -O1 -g -fsanitize=fuzzer,address,undefined -Iinclude tests/fuzz/csv_fuzz.cpp
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <span>
#include <vector>

#include "minimamba/io.hpp"
#include "minimamba/train/csv.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const minimamba::ByteSource source(std::as_bytes(std::span(data, size)).subspan(1), "fuzz");
  minimamba::CsvOptions options{.fill = (data[0] & 1U) != 0};
  if ((data[0] & 2U) != 0) options.columns = {"b", "a"};
  std::optional<minimamba::Table> table;
  try {
    table = minimamba::read_csv(source, options);
    for (const double value : table->values) {
      if (!std::isfinite(value)) std::abort();
    }
  } catch (const minimamba::FormatError&) {
  }
  try {
    options.memory = (data[0] & 4U) != 0 ? 1U << 20 : 0;
    const minimamba::CsvRows rows(source, options);
    if (!table || rows.rows() != table->rows() || rows.names() != table->names) std::abort();
    const std::size_t first = rows.rows() / 3, columns = rows.columns();
    std::vector<double> values((rows.rows() - first) * columns);
    rows.read(first, values);
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (values[i] != table->values[first * columns + i]) std::abort();
    }
  } catch (const minimamba::FormatError&) {
    if (table) std::abort();
  }
  return 0;
}
