// io/state: the state of a model in a file.
#include "support/files.hpp"

namespace state_test {

using namespace minimamba;
using support::copy_of;
using support::Folder;
using support::random_tokens;
using support::read_text;
using support::states;
using support::write_text;

template <class K>
class State : public testing::Test {};
TYPED_TEST_SUITE(State, support::Kinds, support::KindNames);

template <class Model>
void expect_continuation() {
  const Folder folder;
  const auto model = support::trained_looking_model<Model>(support::small_config());
  auto cache = model.make_cache(3);
  const auto prompt = random_tokens(30, 20), rest = random_tokens(21, 20, 5);
  model.forward_last(prompt, cache);
  const StateSections sections{{"unread", "7"}, {"empty", ""}, {"binary", std::string("\0\xFF", 2)}};
  save_state(model, cache, folder / "state", sections);
  auto loaded = load_state(folder / "state", model);
  EXPECT_EQ(loaded.sections, sections);
  ASSERT_EQ(loaded.cache.batch(), 3U);
  EXPECT_EQ(loaded.cache.position(2), 10);
  const auto expected = copy_of(model.forward(rest, cache));
  EXPECT_TRUE(identical(copy_of(model.forward(rest, loaded.cache)), expected));
  EXPECT_EQ(loaded.cache.position(2), 17);
  save_state(model, cache, folder / "after");
  save_state(model, loaded.cache, folder / "again");
  EXPECT_TRUE(read_text(folder / "after") == read_text(folder / "again"));
}

TYPED_TEST(State, ContinuesAsIfItHadNotBeenSaved) {
  expect_continuation<typename TypeParam::Model>();
  support::for_each_reduced_format<TypeParam>(
      [](auto weight) { expect_continuation<typename TypeParam::template ModelOf<decltype(weight)>>(); });
}

TEST(State, IsReadByModelsOfOtherBackendsAndFormats) {
  const Folder folder;
  const auto model = support::trained_looking_model<support::Model>(support::small_config());
  auto cache = model.make_cache();
  model.forward_last(random_tokens(10, 20), cache);
  save_state(model, cache, folder / "state");
  const auto native = support::trained_looking_model<Mamba<float, NativeBackend, q8>>(support::small_config());
  const auto loaded = load_state(folder / "state", native);
  for (std::size_t i = 0; i < states(cache).size(); ++i) {
    EXPECT_TRUE(identical(states(cache)[i], states(loaded.cache)[i]));
  }
}

TEST(State, GoesToAnySinkWithTheBytesOfTheFile) {
  const Folder folder;
  const support::Model model(support::tiny_config());
  auto cache = model.make_cache(2);
  model.forward_last(std::vector<std::int32_t>{1, 2, 3, 4}, cache);
  const StateSections sections{{"name", "contents"}};
  std::string bytes;
  const auto sink = [&](std::span<const std::byte> piece) {
    bytes.append(reinterpret_cast<const char*>(piece.data()), piece.size());
  };
  save_state(model, cache, sink, sections);
  save_state(model, cache, folder / "state", sections);
  EXPECT_TRUE(bytes == read_text(folder / "state"));
  const auto loaded = load_state(ByteSource(std::as_bytes(std::span(bytes)), "a state"), model);
  EXPECT_EQ(loaded.sections, sections);
  EXPECT_EQ(loaded.cache.position(1), 2);
  for (std::size_t i = 0; i < states(cache).size(); ++i) {
    EXPECT_TRUE(identical(states(cache)[i], states(loaded.cache)[i]));
  }
}

TEST(State, IsNotBegunIfItIsRefusedAndAFailedSinkIsReported) {
  const support::Model model(support::tiny_config());
  const auto cache = model.make_cache();
  std::size_t count = 0;
  const auto sink = [&](std::span<const std::byte>) { ++count; };
  const auto other = support::Model(support::small_config()).make_cache();
  EXPECT_THROW(save_state(model, other, sink), ArgumentError);
  EXPECT_THROW(save_state(model, cache, sink, {{std::string(256, 'x'), ""}}), ArgumentError);
  EXPECT_EQ(count, 0U);
  const auto failing = [](std::span<const std::byte>) { throw FileError("a socket", "is closed"); };
  EXPECT_THROW(save_state(model, cache, failing), FileError);
}

/// A model and a file with its state, of a few hundred bytes.
struct Saved {
  Folder folder;
  support::Model model{{.d_model = 2, .n_layer = 1, .vocab_size = 3, .d_state = 1, .d_conv = 2, .expand = 1}};
  std::string file;

  Saved() {
    auto cache = model.make_cache();
    model.forward_last(std::vector<std::int32_t>{0, 1, 2}, cache);
    save_state(model, cache, folder / "state", {{"name", "contents"}});
    file = read_text(folder / "state");
  }
  /// What loading other bytes says.
  std::string refusal(const std::string& bytes) const {
    try {
      load_state(ByteSource(std::as_bytes(std::span(bytes)), "some.state"), model);
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  }
  /// With a checksum that is right.
  static std::string summed(std::string bytes) {
    bytes.resize(bytes.size() - 8);
    detail::Fnv1a sum;
    sum.add(std::as_bytes(std::span(bytes)));
    const std::uint64_t value = sum.value();
    return bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  std::string with(std::size_t at, const std::string& bytes) const {
    std::string changed = file;
    return summed(changed.replace(at, bytes.size(), bytes));
  }
};

TEST(StateFile, CutAnywhereOrAlteredInAnyByteIsRefused) {
  const Saved saved;
  EXPECT_EQ(saved.refusal(saved.file), "accepted");
  for (std::size_t size = 0; size < saved.file.size(); ++size) {
    EXPECT_NE(saved.refusal(saved.file.substr(0, size)), "accepted") << size;
  }
  for (std::size_t i = 0; i < saved.file.size(); ++i) {
    for (const int bit : {0, 3, 7}) {
      std::string changed = saved.file;
      changed[i] = static_cast<char>(changed[i] ^ (1 << bit));
      EXPECT_NE(saved.refusal(changed), "accepted") << i;
    }
  }
  support::expect_words(saved.refusal(saved.file + "x"), {"some.state", "checksum"});
  support::expect_words(saved.refusal("something else"), {"some.state", "a state file"});
}

TEST(StateFile, WithFalseContentsAndARightChecksumIsRefusedToo) {
  const Saved saved;
  const std::string most(8, '\xFF'), zero(8, '\0');
  support::expect_words(saved.refusal(saved.with(16, "\1")), {"version 2 to 4", "1"});
  support::expect_words(saved.refusal(saved.with(20, "\x8")), {"scalars of 4 bytes", "8"});
  support::expect_words(saved.refusal(saved.with(24, zero)), {"d_model 2", "another"});
  support::expect_words(saved.refusal(saved.with(32, most)), {"states", "18446744073709551615"});
  support::expect_words(saved.refusal(saved.with(32, zero)), {"states", "0"});
  support::expect_words(saved.refusal(saved.with(40, most)), {"positions", "-1"});
  // The next token would be one more than a number can count.
  support::expect_words(saved.refusal(saved.with(40, most.substr(1) + '\x7F')), {"positions", "9223372036854775807"});
  const std::size_t sections = saved.file.size() - 8 - 8 - 8 - 4 - 4 - 4;
  support::expect_words(saved.refusal(saved.with(sections, most.substr(4))), {"64 sections", "4294967295"});
  support::expect_words(saved.refusal(saved.with(sections + 4, most.substr(4))), {"a section within the file"});
  support::expect_words(saved.refusal(saved.with(sections + 12, most)), {"a section within the file"});
  support::expect_words(saved.refusal(saved.with(sections + 12, zero)), {"end of the file", "8 more"});
}

TEST(StateFile, WithASectionTwiceIsRefused) {
  const Saved saved;
  save_state(saved.model, saved.model.make_cache(), saved.folder / "two", {{"a", "1"}, {"b", "2"}});
  std::string file = read_text(saved.folder / "two");
  const std::size_t second = file.size() - 8 - 1 - 8 - 1;  // its name, before the size, the contents and the checksum
  ASSERT_EQ(file[second], 'b');
  EXPECT_EQ(saved.refusal(file), "accepted");
  file[second] = 'a';
  support::expect_words(saved.refusal(Saved::summed(file)), {"a section occurs twice"});
}

TEST(StateFile, OfAnotherModelIsRefused) {
  const Saved saved;
  const ByteSource source(std::as_bytes(std::span(saved.file)), "some.state");
  MambaConfig config = saved.model.config();
  support::Model other_norms(config);
  const std::vector<float> norm{1, 2};
  other_norms.norm_f.weight.upload(other_norms.backend(), 0, View<const float>(norm.data(), 1, 2));
  EXPECT_THROW(load_state(source, other_norms), CheckpointError);
  // What is no size tells models apart too.
  const auto with = [&](auto change) {
    MambaConfig changed = config;
    change(changed);
    return support::Model(changed);
  };
  EXPECT_NO_THROW(load_state(source, with([](MambaConfig&) {})));
  EXPECT_THROW(load_state(source, with([](MambaConfig& c) { c.bias = true; })), CheckpointError);
  EXPECT_THROW(load_state(source, with([](MambaConfig& c) { c.conv_bias = false; })), CheckpointError);
  EXPECT_THROW(load_state(source, with([](MambaConfig& c) { c.tie_embeddings = false; })), CheckpointError);
  EXPECT_THROW(load_state(source, with([](MambaConfig& c) { c.vocab_size = 4; })), CheckpointError);
  EXPECT_THROW(load_state(source, with([](MambaConfig& c) { c.norm_epsilon = 1e-6; })), CheckpointError);
  EXPECT_THROW(load_state(source, with([](MambaConfig& c) { c.dt_b_c_rms = true; })), CheckpointError);
  EXPECT_NO_THROW(load_state(source, with([](MambaConfig& c) { c.mixer_rms_eps = 1e-5; })));  // which it does not use
  config.d_state = 2;
  EXPECT_THROW(load_state(source, support::Model(config)), CheckpointError);
  EXPECT_THROW(load_state(source, Mamba<double, ReferenceBackend>(saved.model.config())), CheckpointError);
  auto cache = support::Model(config).make_cache();
  EXPECT_THROW(save_state(saved.model, cache, saved.folder / "state"), ArgumentError);
  EXPECT_TRUE(read_text(saved.folder / "state") == saved.file);
}

/// Fills a parameter of a model.
template <class Model, class Parameter>
void fill(const Model& model, Parameter& parameter, float value) {
  const std::vector<float> values(parameter.size(), value);
  parameter.upload(model.backend(), 0, View<const float>(values.data(), 1, values.size()));
}

TEST(StateFile, OfAModelWithOtherScalesIsRefused) {
  const auto expect_refusal = [](auto model, const auto& parameter_of) {
    const Folder folder;
    save_state(model, model.make_cache(), folder / "state");
    EXPECT_NO_THROW(load_state(folder / "state", model));
    fill(model, parameter_of(model.layers[0].mixer), 0.5F);
    EXPECT_THROW(load_state(folder / "state", model), CheckpointError);
  };
  const auto d = [](auto& mixer) -> auto& { return mixer.D; };
  const auto norm = [](auto& mixer) -> auto& { return mixer.norm.weight; };
  expect_refusal(support::Model(support::tiny_config()), d);
  using Second = Mamba<float, NativeBackend, float, SSD>;
  const Mamba2Config config{.d_model = 8, .n_layer = 1, .vocab_size = 16, .d_state = 4, .head_dim = 4};
  expect_refusal(Second(config), d);
  expect_refusal(Second(config), norm);
}

/// The bytes of a state with the fingerprint of an older version.
template <class Model>
std::string state_of_version(const Model& model, std::uint32_t version) {
  std::string bytes;
  const auto cache = model.make_cache();
  save_state(model, cache, [&](std::span<const std::byte> piece) {
    bytes.append(reinterpret_cast<const char*>(piece.data()), piece.size());
  });
  const std::uint64_t fingerprint = detail::fingerprint(model, cache.layout(), version);
  std::memcpy(bytes.data() + 16, &version, sizeof(version));
  std::memcpy(bytes.data() + 24, &fingerprint, sizeof(fingerprint));
  return Saved::summed(bytes);
}
TEST(StateFile, OfAnOlderVersionIsReadAndOfALaterOneRefused) {
  const support::Model first(support::tiny_config());
  const Mamba<float, NativeBackend, float, SSD> second(
      {.d_model = 8, .n_layer = 1, .vocab_size = 16, .d_state = 4, .head_dim = 4});
  const auto read = [](const std::string& bytes, const auto& model) {
    return load_state(ByteSource(std::as_bytes(std::span(bytes)), "some.state"), model).cache.position();
  };
  for (const std::uint32_t version : {2U, 3U, 4U}) {
    EXPECT_EQ(read(state_of_version(first, version), first), 0) << version;
    EXPECT_EQ(read(state_of_version(second, version), second), 0) << version;
  }
  for (const std::uint32_t version : {1U, 5U}) {
    EXPECT_THROW(read(state_of_version(first, version), first), FormatError) << version;
  }
}

TEST(StateFile, OfAnS6ModelHasTheFingerprintThatItAlwaysHad) {
  MambaConfig config{
      .d_model = 6, .n_layer = 2, .vocab_size = 11, .d_state = 3, .d_conv = 2, .expand = 3, .dt_rank = 5};
  const auto fingerprints = [&] {
    const Mamba<float> model(config);
    return std::vector<std::uint64_t>{detail::fingerprint(model, model.state_layout(), 2),
                                      detail::fingerprint(model, model.state_layout(), 3),
                                      detail::fingerprint(model, model.state_layout(), 4)};
  };
  EXPECT_EQ(fingerprints(), (std::vector<std::uint64_t>{0xaa6de1648be66257, 0x58f95c366abc7b48, 0x6a2b8d0c718b9aa8}));
  config.bias = true;
  config.tie_embeddings = false;
  EXPECT_EQ(fingerprints(), (std::vector<std::uint64_t>{0xbea5f32422f4ea8b, 0x181e315889f06d74, 0xe1b1e2710b88f554}));
}

TEST(StateFile, OnAFullDiskLeavesTheOldOne) {
  const Saved saved;
  auto cache = saved.model.make_cache();
  const support::FullDisk full(50);
  EXPECT_THROW(save_state(saved.model, cache, saved.folder / "state"), FileError);
  EXPECT_TRUE(read_text(saved.folder / "state") == saved.file);
}

}  // namespace state_test
