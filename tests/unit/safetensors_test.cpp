// safetensors: what is written reads back, in every type; and of what a hostile file may claim, nothing is believed.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "support/files.hpp"
#include "support/measured.hpp"

namespace safetensors_test {

namespace fs = std::filesystem;
using minimamba::bf16;
using minimamba::ByteSource;
using minimamba::CheckpointError;
using minimamba::DType;
using minimamba::Error;
using minimamba::f16;
using minimamba::FormatError;
using minimamba::StoredTensor;
using minimamba::TensorSet;
using support::Folder;

/// A file of this header and so many bytes of data.
std::string file_of(const std::string& header, std::size_t data) {
  std::string bytes(data, '\0');
  for (std::size_t i = 0; i < data; ++i) bytes[i] = static_cast<char>(i % 60);
  return support::safetensors_file(header, bytes);
}

ByteSource source_of(const std::string& file, const std::string& name = "some.safetensors") {
  return {std::as_bytes(std::span(file)), name};
}

/// What reading a file throws, or "" if it throws nothing. Throws on for an error of another kind.
template <class E = FormatError>
std::string refusal_of(const std::string& file) {
  TensorSet set;
  try {
    minimamba::read_safetensors(source_of(file), set);
  } catch (const E& error) {
    EXPECT_NE(error.subject().find("some.safetensors"), std::string::npos) << error.what();
    return error.what();
  }
  return "";
}

/// Reads a file and every number in it.
void read_all(const ByteSource& source) {
  TensorSet set;
  minimamba::read_safetensors(source, set);
  for (const auto& [name, tensor] : set.tensors()) {
    std::vector<float> values(static_cast<std::size_t>(tensor.size()));
    if (minimamba::detail::with_float_type(tensor.dtype, [](auto) {})) set.read(tensor, 0, std::span(values));
  }
}

TEST(Safetensors, ReadsNamesTypesShapesAndNumbers) {
  const std::string header = R"({"__metadata__":{"format":"pt"},"b":{"shape":[],"data_offsets":[8,12],"dtype":"F32"},)"
                             R"("none":{"dtype":"F64","shape":[3,0],"data_offsets":[8,8]},)"
                             R"("a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}   )";
  const std::string file = file_of(header, 12);
  TensorSet set;
  const std::size_t number = minimamba::read_safetensors(source_of(file), set);
  ASSERT_EQ(set.tensors().size(), 3U);
  const StoredTensor& b = *set.find("b");
  EXPECT_EQ(b.dtype, DType::F32);
  EXPECT_TRUE(b.shape.empty());
  EXPECT_EQ(b.size(), 1U);
  EXPECT_EQ(b.source, number);
  EXPECT_EQ(set.find("none")->shape, (std::vector<std::uint64_t>{3, 0}));
  EXPECT_EQ(set.find("none")->size(), 0U);
  EXPECT_EQ(set.find("c"), nullptr);
  float value = 0;
  set.read(b, 0, std::span(&value, 1));
  EXPECT_EQ(std::memcmp(&value, file.data() + 8 + header.size() + 8, 4), 0);
  EXPECT_THROW(set.read(*set.find("a"), 0, std::span(&value, 1)), CheckpointError) << "integers are no weights";
}

TEST(Safetensors, WritesAndReadsEveryFloatingType) {
  const Folder folder;
  std::vector<double> values{0.0,
                             -0.0,
                             1.0,
                             -2.5,
                             65504.0,
                             1e-7,
                             3.14159265358979,
                             1.00390625000001,
                             1e300,
                             std::numeric_limits<double>::infinity()};
  while (values.size() < 30'000) values.push_back(static_cast<double>(values.size()) / 7);
  const DType types[] = {DType::F16, DType::F64, DType::BF16, DType::F32};
  std::vector<StoredTensor> tensors;
  for (const DType type : types) tensors.push_back({std::string(name_of(type)), type, {values.size() / 2, 2}});
  minimamba::SafetensorsWriter writer(folder / "file", tensors);
  for (const DType type : types) {
    writer.write(std::span<const double>(values).first(7), type);
    writer.write(std::span<const double>(values).subspan(7), type);
  }
  writer.commit();

  TensorSet set;
  minimamba::read_safetensors(ByteSource::open(folder / "file"), set);
  std::vector<double> doubles(values.size() - 5);
  std::vector<float> floats(doubles.size());
  const auto expect = [&](DType type, const std::function<double(double)>& rounded) {
    const StoredTensor& tensor = *set.find(std::string(name_of(type)));
    EXPECT_EQ(tensor.dtype, type);
    EXPECT_EQ(tensor.shape, (std::vector<std::uint64_t>{values.size() / 2, 2}));
    set.read(tensor, 5, std::span(doubles));
    set.read(tensor, 5, std::span(floats));
    for (std::size_t i = 0; i < doubles.size(); ++i) {
      EXPECT_EQ(doubles[i], rounded(values[i + 5])) << name_of(type) << " " << i;
      EXPECT_EQ(floats[i], static_cast<float>(rounded(values[i + 5]))) << name_of(type) << " " << i;
    }
  };
  expect(DType::F64, [](double x) { return x; });
  expect(DType::F32, [](double x) { return static_cast<double>(static_cast<float>(x)); });
  expect(DType::F16, [](double x) { return static_cast<double>(f16(x)); });
  expect(DType::BF16, [](double x) { return static_cast<double>(bf16(x)); });
}

TEST(Safetensors, WritesAlignedFilesInAnyOrderOfTypes) {
  const Folder folder;
  minimamba::SafetensorsWriter writer(
      folder / "file",
      {{"half", DType::BF16, {3}}, {"none", DType::F32, {0}}, {"wide", DType::F64, {1}}, {"single", DType::F32, {3}}});
  const std::vector<float> values{1, 2, 3};
  const std::span<const float> span(values);
  writer.write(span, DType::BF16);
  writer.write(span.first(1), DType::F64);
  writer.write(span, DType::F32);
  writer.commit();
  TensorSet set;
  minimamba::read_safetensors(ByteSource::open(folder / "file"), set);
  for (const char* name : {"half", "wide", "single"}) {
    const StoredTensor& tensor = *set.find(name);
    EXPECT_EQ(tensor.begin % bytes_of(tensor.dtype), 0U) << name;
    std::vector<float> read(static_cast<std::size_t>(tensor.size()));
    set.read(tensor, 0, std::span(read));
    EXPECT_TRUE(std::equal(read.begin(), read.end(), values.begin())) << name;
  }
  EXPECT_NE(support::read_text(folder / "file").find(R"({"__metadata__":{"format":"pt"},)"), std::string::npos);
}

TEST(Safetensors, RefusesToWriteOtherThanWasAnnounced) {
  const Folder folder;
  support::write_text(folder / "file", "old");
  const std::vector<float> values(4);
  const std::span<const float> span(values);
  {
    minimamba::SafetensorsWriter writer(folder / "file", {{"a", DType::F32, {3}}, {"b", DType::F16, {2}}});
    EXPECT_THROW(writer.write(span, DType::F32), minimamba::ArgumentError);
    EXPECT_THROW(writer.write(span.first(1), DType::F16), minimamba::ArgumentError);
    writer.write(span.first(3), DType::F32);
    EXPECT_THROW(writer.write(span.first(1), DType::F32), minimamba::ArgumentError);
    writer.write(span.first(1), DType::F16);
    EXPECT_THROW(writer.commit(), minimamba::ArgumentError);
    writer.write(span.first(1), DType::F16);
    EXPECT_THROW(writer.write(span.first(1), DType::F16), minimamba::ArgumentError);
  }
  EXPECT_EQ(support::read_text(folder / "file"), "old");
  const std::vector<StoredTensor> impossible[] = {{{"a", DType::F32, {3}}, {"a", DType::F32, {2}}},
                                                  {{"a", DType::I32, {3}}},
                                                  {{"__metadata__", DType::F32, {3}}},
                                                  {{"a", DType::F32, {1ULL << 40, 1ULL << 40}}},
                                                  {{"a", DType::F32, {1, 1, 1, 1, 1, 1, 1, 1, 1}}},
                                                  std::vector<StoredTensor>(20'001)};
  for (auto tensors : impossible) {
    for (std::size_t i = 0; tensors.size() > 2 && i < tensors.size(); ++i) tensors[i].name = std::to_string(i);
    EXPECT_THROW(minimamba::SafetensorsWriter(folder / "file", tensors), minimamba::ArgumentError);
  }
  const std::vector<StoredTensor> long_names{{std::string(3'000'000, 'm'), DType::F32, {1}},
                                             {std::string(3'000'000, 'n'), DType::F32, {1}}};
  try {
    const minimamba::SafetensorsWriter writer(folder / "file", long_names);
    ADD_FAILURE() << "accepted";
  } catch (const minimamba::ArgumentError& error) {
    support::expect_words(error.what(), {"4 MiB", "100 MB"});
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator()), 1);
}

/// A tensor "name" of U8 with these offsets.
std::string entry(const std::string& name, std::uint64_t begin, std::uint64_t end, std::uint64_t size) {
  return "\"" + name + R"(":{"dtype":"U8","shape":[)" + std::to_string(size) + R"(],"data_offsets":[)" +
         std::to_string(begin) + "," + std::to_string(end) + "]}";
}

TEST(Safetensors, RefusesOffsetsOutsideTheData) {
  EXPECT_EQ(refusal_of(file_of("{" + entry("a", 0, 8, 8) + "}", 8)), "");
  EXPECT_NE(refusal_of(file_of("{" + entry("a", 0, 9, 9) + "}", 8)), "");
  EXPECT_NE(refusal_of(file_of("{" + entry("a", 8, 0, 8) + "}", 8)), "");
  EXPECT_NE(refusal_of(file_of("{" + entry("a", 0, ~0ULL, ~0ULL) + "}", 8)), "");
  EXPECT_NE(refusal_of(file_of("{" + entry("a", 1ULL << 63, (1ULL << 63) + 8, 8) + "}", 8)), "");
}

TEST(Safetensors, RefusesOverlappingTensors) {
  EXPECT_EQ(refusal_of(file_of("{" + entry("b", 4, 8, 4) + "," + entry("a", 0, 4, 4) + "}", 8)), "");
  EXPECT_NE(refusal_of(file_of("{" + entry("a", 0, 5, 5) + "," + entry("b", 4, 8, 4) + "}", 8))
                .find("which overlap another tensor"),
            std::string::npos);
  EXPECT_NE(refusal_of(file_of("{" + entry("a", 0, 8, 8) + "," + entry("b", 0, 8, 8) + "}", 8)), "");
}

TEST(Safetensors, RefusesGapsBetweenTensors) {
  EXPECT_NE(refusal_of(file_of("{" + entry("a", 0, 3, 3) + "," + entry("b", 4, 8, 4) + "}", 8))
                .find("with a gap before them"),
            std::string::npos);
  EXPECT_NE(refusal_of(file_of("{" + entry("a", 1, 8, 7) + "}", 8)), "");
  EXPECT_NE(refusal_of(file_of("{" + entry("a", 0, 7, 7) + "}", 8)), "");
  EXPECT_NE(refusal_of(file_of("{" + entry("a", 0, 8, 8) + "," + entry("b", 9, 9, 0) + "}", 8)), "");
}

TEST(Safetensors, RefusesOffsetsThatContradictTheShape) {
  EXPECT_NE(refusal_of(file_of("{" + entry("a", 0, 8, 7) + "}", 8)), "");
  EXPECT_NE(refusal_of(file_of(R"({"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,8]}})", 8)), "");
  for (const char* shape : {"4294967296,4294967296", "9223372036854775808,2,0", "0,4294967296,4294967296,4",
                            "18446744073709551615", "18446744073709551616"}) {
    for (const char* offsets : {"0,0", "0,8"}) {
      const std::string header =
          R"({"a":{"dtype":"F32","shape":[)" + std::string(shape) + R"(],"data_offsets":[)" + offsets + "]}}";
      EXPECT_NE(refusal_of(file_of(header, 8)), "") << header;
    }
  }
}

TEST(Safetensors, RefusesMoreThanAHeaderMayHold) {
  std::string header = "{";
  for (int i = 0; i <= 20'000; ++i) header += (i == 0 ? "" : ",") + entry(std::to_string(i), 0, 0, 0);
  EXPECT_NE(refusal_of(file_of(header + "}", 0)).find("20000"), std::string::npos);
  std::string shape = "1";
  for (int i = 0; i < 2'000'000; ++i) shape += ",1";
  EXPECT_NE(refusal_of(file_of(R"({"a":{"dtype":"U8","shape":[)" + shape + R"(],"data_offsets":[0,1]}})", 1)), "");
  std::string names = "{";
  for (int i = 0; i < 40; ++i)
    names += (i == 0 ? "" : ",") + entry(std::to_string(i) + std::string(500'000, 'n'), 0, 0, 0);
  EXPECT_NE(refusal_of(file_of(names + "}", 0)), "");
  std::string texts = R"({"__metadata__":{)";
  for (int i = 0; i <= 20'000; ++i) texts += (i == 0 ? "\"" : ",\"") + std::to_string(i) + R"(":"")";
  EXPECT_NE(refusal_of(file_of(texts + "}}", 0)).find("20000 keys"), std::string::npos);
}

TEST(Safetensors, RefusesMoreTensorsThanFilesMayHoldTogether) {
  std::string most = "{";
  for (int i = 0; i < 20'000; ++i) most += (i == 0 ? "" : ",") + entry(std::to_string(i), 0, 0, 0);
  TensorSet set;
  const std::string first = file_of(most + "}", 0), second = file_of("{" + entry("a", 0, 4, 4) + "}", 4);
  minimamba::read_safetensors(source_of(first), set);
  try {
    minimamba::read_safetensors(source_of(second, "second"), set);
    ADD_FAILURE() << "accepted";
  } catch (const FormatError& error) {
    support::expect_words(error.what(), {"second", "20000 tensors in a checkpoint"});
  }
  EXPECT_EQ(set.tensors().size(), 20'000U);
}

TEST(Safetensors, RefusesHostileHeadersQuickly) {
  support::expect_seconds(10, [] {
    for (const char byte : {'\0', '0', ' ', '{', '['}) {
      std::string header(30'000'000, byte);
      EXPECT_NE(refusal_of(file_of(header, 0)), "") << byte;
      header[0] = '{';
      EXPECT_NE(refusal_of(file_of(header, 0)), "") << byte;
    }
  });
}

/// A small file with tensors of several types.
std::string fixture() {
  return file_of(R"({"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
                 R"("h":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]},"n":{"dtype":"I64","shape":[],)"
                 R"("data_offsets":[32,40]},"d":{"dtype":"F64","shape":[1,1],"data_offsets":[40,48]}})",
                 48);
}

TEST(Safetensors, RefusesEveryTruncation) {
  const std::string file = fixture();
  EXPECT_EQ(refusal_of(file), "");
  for (std::size_t size = 0; size < file.size(); ++size) {
    const std::vector<std::byte> part(std::as_bytes(std::span(file)).begin(),
                                      std::as_bytes(std::span(file)).begin() + static_cast<std::ptrdiff_t>(size));
    EXPECT_THROW(read_all(ByteSource(part, "part")), FormatError) << size;
  }
  EXPECT_NE(refusal_of(file + "x"), "");
}

TEST(Safetensors, RefusesOrReadsEveryChangeOfAByte) {
  const std::string file = fixture();
  std::uint64_t state = 1;
  int refused = 0;
  for (int change = 0; change < 10'000; ++change) {
    std::string changed = file;
    for (int flips = change % 3; flips >= 0; --flips) {
      state = state * 6364136223846793005U + 1442695040888963407U;
      const std::size_t place = static_cast<std::size_t>(state >> 33) % file.size();
      changed[place] = static_cast<char>(static_cast<unsigned char>(changed[place]) ^ (1U << ((state >> 20) % 8)));
    }
    try {
      read_all(source_of(changed));
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 5000);
  EXPECT_LT(refused, 10'000);
}

TEST(Safetensors, LeavesTheSetAsItWasAfterARefusal) {
  const std::string first = file_of("{" + entry("b", 0, 4, 4) + "}", 4);
  const std::string second = file_of("{" + entry("a", 0, 4, 4) + "," + entry("b", 4, 8, 4) + "}", 8);
  const std::string index = R"({"weight_map":{"a":"1","b":"1"}})";
  TensorSet set;
  minimamba::read_safetensors(source_of(first), set);
  EXPECT_THROW(minimamba::read_safetensors(source_of(second), set), CheckpointError);
  const auto open = [&](const std::string&) { return source_of(second); };
  EXPECT_THROW(minimamba::read_sharded_safetensors(source_of(index), open, set), CheckpointError);
  EXPECT_EQ(set.tensors().size(), 1U);
  EXPECT_EQ(set.find("b")->size(), 4U);
}

/// Reads an index whose shards are in memory, and returns why it was refused, or "".
template <class E>
std::string index_refusal(const std::string& index, const std::map<std::string, std::string>& shards) {
  TensorSet set;
  const auto open = [&](const std::string& name) {
    const auto shard = shards.find(name);
    if (shard == shards.end()) throw minimamba::FileError(name, "a file", "none");
    return source_of(shard->second, name);
  };
  try {
    minimamba::read_sharded_safetensors(source_of(index, "some.index.json"), open, set);
  } catch (const E& error) {
    return error.what();
  }
  return "";
}

const std::map<std::string, std::string>& two_shards() {
  static const std::map<std::string, std::string> shards{
      {"1.safetensors", file_of("{" + entry("a", 0, 4, 4) + "," + entry("b", 4, 8, 4) + "}", 8)},
      {"2.safetensors", file_of("{" + entry("c", 0, 4, 4) + "}", 4)}};
  return shards;
}

TEST(SafetensorsIndex, JoinsItsShards) {
  const Folder folder;
  for (const auto& [name, file] : two_shards()) support::write_text(folder / name, file);
  support::write_text(folder / "index.json",
                      R"({"metadata":{"total_size":12},"weight_map":{"a":"1.safetensors","b":"1.safetensors",)"
                      R"("c":"2.safetensors"}})");
  TensorSet set;
  minimamba::read_sharded_safetensors(folder / "index.json", set);
  EXPECT_EQ(set.tensors().size(), 3U);
  EXPECT_EQ(set.source_name(*set.find("b")), (folder / "1.safetensors").string());
  EXPECT_EQ(set.source_name(*set.find("c")), (folder / "2.safetensors").string());
}

TEST(SafetensorsIndex, RefusesShardsThatDisagreeWithIt) {
  const std::string map = R"({"weight_map":{"a":"1.safetensors","b":"1.safetensors","c":"2.safetensors"}})";
  const auto refusal = [&](const std::string& index) { return index_refusal<CheckpointError>(index, two_shards()); };
  EXPECT_EQ(refusal(map), "");
  EXPECT_NE(refusal(R"({"weight_map":{"a":"1.safetensors","b":"1.safetensors","c":"2.safetensors",)"
                    R"("missing":"2.safetensors"}})")
                .find("missing"),
            std::string::npos);
  EXPECT_NE(refusal(R"({"weight_map":{"a":"1.safetensors","c":"2.safetensors"}})").find(": b:"), std::string::npos);
  EXPECT_NE(refusal(R"({"weight_map":{"a":"1.safetensors","b":"2.safetensors","c":"2.safetensors"}})").find(": b:"),
            std::string::npos);
  std::map<std::string, std::string> twice = two_shards();
  twice["2.safetensors"] = file_of("{" + entry("b", 0, 4, 4) + "," + entry("c", 4, 8, 4) + "}", 8);
  EXPECT_NE(index_refusal<CheckpointError>(map, twice).find("b"), std::string::npos);
  std::map<std::string, std::string> missing = two_shards();
  missing.erase("2.safetensors");
  EXPECT_NE(index_refusal<minimamba::FileError>(map, missing), "");
}

TEST(SafetensorsIndex, RefusesNamesThatLeadElsewhere) {
  for (const char* name : {"", ".", "..", "../1.safetensors", "/1.safetensors", "x/1.safetensors", "..\\\\1", "C:1",
                           "1.safetensors\\u0000", "1.safe\\ntensors"}) {
    const std::string index = R"({"weight_map":{"a":")" + std::string(name) + R"("}})";
    EXPECT_NE(index_refusal<FormatError>(index, two_shards()), "") << name;
  }
}

TEST(SafetensorsIndex, RefusesWhatIsNoIndex) {
  for (const char* index :
       {"", "[]", "1", "{}", R"({"weight_map":[]})", R"({"weight_map":{"a":1}})", R"({"weight_map":{"a":null}})",
        R"({"weight_map":{"a":{}}})", R"({"weight_map":{},"weight_map":{}})",
        R"({"weight_map":{"a":"1.safetensors","a":"2.safetensors"}})"}) {
    EXPECT_NE(index_refusal<FormatError>(index, two_shards()), "") << index;
  }
  std::string many = R"({"weight_map":{)";
  for (int i = 0; i < 2000; ++i) {
    many += (i == 0 ? "\"" : ",\"") + std::to_string(i) + "\":\"" + std::to_string(i) + "\"";
  }
  EXPECT_NE(index_refusal<FormatError>(many + "}}", two_shards()).find("shards"), std::string::npos);
}

}  // namespace safetensors_test
