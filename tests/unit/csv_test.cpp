// CSV files and texts that are larger than the memory that they may take: the same batches as in memory.
#include <cmath>
#include <string>
#include <vector>

#include "minimamba/train/csv.hpp"
#include "minimamba/train/sequence_trainer.hpp"
#include "support/files.hpp"
#include "support/measured.hpp"

namespace csv_test {

using namespace minimamba;
using support::Folder;

/// Rows of three columns, with empty lines, other ends of lines, and places where fill is needed.
std::string table_of(std::size_t rows, bool gaps) {
  std::string text = "t,x,\"y, z\"\n";
  Random random(4);
  for (std::size_t i = 0; i < rows; ++i) {
    const bool gap = gaps && i % 7 == 3;
    text += std::to_string(i) + "," + (gap ? "nan" : number_text(random.normal())) + "," +
            (gaps && i % 64 == 0 && i > 0 ? "" : number_text(random.normal())) +
            (i % 5 == 0    ? "\r\n"
             : i % 50 == 7 ? "\n\n"
                           : "\n");
  }
  return text;
}

std::vector<double> read(const CsvRows& rows, std::size_t first, std::size_t count) {
  std::vector<double> values(count * rows.columns());
  rows.read(first, values);
  return values;
}

TEST(Csv, TooSmallANumberIsZeroAndTooLargeAnOneIsRefused) {
  const auto number = [](const std::string& text) {
    const std::string file = "x\n" + text + "\n";
    return read_csv({std::as_bytes(std::span(file)), "file"}).values.at(0);
  };
  const std::string zeros(400, '0');
  for (const std::string& tiny :
       {std::string("1e-400"), std::string("+1E-400"), std::string("123456e-999999999999999999"), "0." + zeros + "1",
        "0." + zeros + "12e10", "1" + zeros + "e-1000", "." + zeros + "5"}) {
    EXPECT_EQ(number(tiny), 0) << tiny;
    EXPECT_FALSE(std::signbit(number(tiny))) << tiny;
    if (tiny[0] == '+') continue;
    EXPECT_TRUE(std::signbit(number("-" + tiny))) << tiny;
  }
  EXPECT_EQ(number("4.9406564584124654e-324"), 4.9406564584124654e-324);
  EXPECT_EQ(number("0." + zeros + "1e401"), 1);
  for (const std::string& huge : {std::string("1e400"), std::string("-1e+400"), "1" + zeros, "0." + zeros + "1e1000",
                                  std::string("1e999999999999999999"), "-1" + zeros + ".5"}) {
    EXPECT_THROW(number(huge), FormatError) << huge;
  }
}

TEST(Csv, HasQuotationMarksTwiceInQuotedFields) {
  const std::string file = "\"a \"\"b\"\", c\",d\n\"1\",2\n";
  const Table table = read_csv({std::as_bytes(std::span(file)), "file"});
  EXPECT_EQ(table.names, (std::vector<std::string>{"a \"b\", c", "d"}));
  EXPECT_EQ(table.values, (std::vector<double>{1, 2}));
}

/// A line of so many fields, each with another name.
std::string names_of(std::size_t count) {
  std::string line = "0";
  for (std::size_t i = 1; i < count; ++i) line += "," + std::to_string(i);
  return line;
}

TEST(Csv, FindsManyColumnsInASecond) {  // each of them was looked for among all
  const std::string file = names_of(50'000) + "\n" + names_of(50'000) + "\n";
  support::expect_seconds(1, [&] {
    const Table table = read_csv({std::as_bytes(std::span(file)), "file"});
    ASSERT_EQ(table.rows(), 1U);
    EXPECT_EQ(table.values[49'999], 49'999);
  });
}

TEST(Csv, RefusesALineOfMoreThanAMillionFields) {
  const std::string file(1'000'000, ',');
  try {
    read_csv({std::as_bytes(std::span(file)), "file"});
    ADD_FAILURE() << "accepted";
  } catch (const FormatError& error) {
    support::expect_words(error.what(), {"file: line 1", "1000000 fields"});
  }
}

TEST(CsvRows, AreTheSameInMemoryAndInTheFile) {
  const Folder folder;
  for (const bool gaps : {false, true}) {
    support::write_text(folder / "table.csv", table_of(10'000, gaps));
    const auto open = [&](std::uint64_t memory) {
      return CsvRows(ByteSource::open(folder / "table.csv"),
                     {.columns = {"y, z", "x"}, .fill = gaps, .memory = memory});
    };
    const CsvRows held = open(1 << 20), streamed = open(1 << 10), none = open(0);
    EXPECT_TRUE(held.in_memory());
    EXPECT_FALSE(streamed.in_memory());
    EXPECT_FALSE(none.in_memory());
    const Table table = read_csv(ByteSource::open(folder / "table.csv"), {.columns = {"y, z", "x"}, .fill = gaps});
    for (const CsvRows* rows : {&held, &streamed, &none}) {
      EXPECT_EQ(rows->names(), table.names);
      EXPECT_EQ(rows->rows(), 10'000U);
      EXPECT_EQ(rows->fingerprint(), held.fingerprint());
      EXPECT_EQ(read(*rows, 0, 10'000), table.values);
      for (const std::size_t first : {0U, 1U, 63U, 64U, 65U, 5000U, 9935U, 9999U}) {
        for (const std::size_t count : {0U, 1U, 64U}) {
          if (first + count > 10'000) continue;
          const auto begin = table.values.begin() + static_cast<std::ptrdiff_t>(2 * first);
          EXPECT_EQ(read(*rows, first, count),
                    std::vector<double>(begin, begin + static_cast<std::ptrdiff_t>(2 * count)));
        }
      }
      std::vector<double> odd(3), beyond(4);
      EXPECT_THROW(rows->read(0, odd), ArgumentError);
      EXPECT_THROW(rows->read(9999, beyond), ArgumentError);
      EXPECT_THROW(rows->read(10'001, {}), ArgumentError);
    }
  }
}

TEST(CsvRows, RefuseWhatATableRefuses) {
  const auto refused = [](const std::string& text, const CsvOptions& options, const std::string& subject) {
    try {
      CsvRows(ByteSource(std::as_bytes(std::span(text)), "data"), options);
      ADD_FAILURE() << subject;
    } catch (const FormatError& error) {
      EXPECT_EQ(error.subject(), subject) << error.what();
    }
  };
  for (const std::uint64_t memory : {0U, 1000U}) {
    refused("", {.memory = memory}, "data");
    refused("a\n1\nx\n", {.memory = memory}, "data: line 3");
    refused("a\n\nx\n", {.fill = true, .memory = memory}, "data: line 3");
    refused("a,b\n1,2\n3\n", {.memory = memory}, "data: line 3");
    refused("a\n1\n", {.columns = {"b"}, .memory = memory}, "data: line 1");
  }
}

TEST(CsvRows, NoticeThatTheirFileHasChanged) {
  const Folder folder;
  support::write_text(folder / "table.csv", "a\n1\n2\n3\n");
  const CsvRows rows(ByteSource::open(folder / "table.csv"), {.memory = 0});
  support::write_text(folder / "table.csv", "a\n\n\n\n\n2\n");
  std::vector<double> values(3);
  EXPECT_THROW(rows.read(0, values), Error);
}

/// The rows of a CSV file as a SeriesSource: x is read, and the next x is to be predicted.
struct FromFile {
  CsvRows file;

  std::size_t rows() const { return file.rows(); }
  std::uint64_t fingerprint() const { return file.fingerprint(); }
  void append(std::size_t first, std::size_t count, std::size_t ignored, SequenceBatch& batch) const {
    std::vector<double> values(std::min(count + 1, rows() - first));
    file.read(first, values);
    batch.lengths.push_back(static_cast<std::int64_t>(count));
    for (std::size_t i = 0; i < count; ++i) {
      batch.inputs.push_back(static_cast<float>(values[i]));
      const bool known = i >= ignored && i + 1 < values.size();
      batch.targets.push_back(known ? static_cast<float>(values[i + 1]) : std::nanf(""));
    }
  }
};

TEST(WindowsOfAFile, AreThoseOfASeriesInMemory) {
  const std::string text = table_of(5000, false);
  const ByteSource source(std::as_bytes(std::span(text)), "data");
  const Table table = read_csv(source, {.columns = {"x"}});
  Series series;
  for (std::size_t i = 0; i < table.rows(); ++i) {
    series.inputs.push_back(static_cast<float>(table.values[i]));
    series.targets.push_back(i + 1 < table.rows() ? static_cast<float>(table.values[i + 1]) : std::nanf(""));
  }
  const SeriesWindows held(series, 0.2, 50);
  const WindowsOf streamed(FromFile{CsvRows(source, {.columns = {"x"}, .memory = 0})}, 0.2, 50);
  EXPECT_EQ(streamed.training_rows(), held.training_rows());
  const auto expect_same = [](const SequenceBatch& a, const SequenceBatch& b) {
    EXPECT_EQ(a.lengths, b.lengths);
    EXPECT_EQ(a.inputs, b.inputs);
    ASSERT_EQ(a.targets.size(), b.targets.size());
    for (std::size_t i = 0; i < a.targets.size(); ++i) {
      EXPECT_TRUE(a.targets[i] == b.targets[i] || (std::isnan(a.targets[i]) && std::isnan(b.targets[i]))) << i;
    }
  };
  for (std::uint64_t number = 0; number < 8; ++number) {
    const BatchRequest request{.batch = 3, .length = 50, .seed = 9, .number = number};
    expect_same(held.training_batch(request), streamed.training_batch(request));
    expect_same(held.validation_batch(request), streamed.validation_batch(request));
  }
}

}  // namespace csv_test
