// io/any_model: the model that a name chooses is the model of that type, to the bit.
#include "minimamba/io/any_model.hpp"

#include "minimamba/nn/ssd.hpp"
#include "support/files.hpp"

namespace any_model_test {

using namespace minimamba;
using support::copy_of;
using support::Folder;
using support::random_tokens;

using Models =
    testing::Types<Mamba<float>, Mamba<float, NativeBackend, q8>, Mamba<float, EigenBackend>,
                   Mamba<float, EigenBackend, f16>, Mamba<float, ReferenceBackend>, Mamba<float, ReferenceBackend, q4>,
                   Mamba<float, NativeBackend, float, SSD>, Mamba<float, EigenBackend, bf16, SSD>>;

/// A model of the type, and the same one by name.
template <class Model>
class ModelByName : public testing::Test {
 protected:
  static AnyModelOptions options() {
    return {.weights = std::string(Format<typename Model::WeightType>::name),
            .backend = typename Model::BackendType().name(),
            .threads = 3};
  }
  static support::fs::path filled(const Folder& folder) {
    if constexpr (std::is_same_v<typename Model::Config, Mamba2Config>) {
      const Mamba2Config config{.d_model = 32, .n_layer = 2, .vocab_size = 50, .d_state = 16, .head_dim = 16};
      save(Mamba<float, NativeBackend, float, SSD>(config), folder.path());
    } else {
      save(support::trained_looking_model<support::Model>(support::small_config()), folder.path());
    }
    return folder.path();
  }

  const Folder folder_;
  const Model typed_ = load<Model>(filled(folder_), {.backend = typename Model::BackendType({.threads = 3})});
  const AnyModel any_ = AnyModel::load(folder_.path(), options());
};
TYPED_TEST_SUITE(ModelByName, Models);

template <class Model, class Cache>
std::string state_of(const Model& model, const Cache& cache) {
  std::string bytes;
  const ByteSink sink = [&](std::span<const std::byte> piece) {
    bytes.append(reinterpret_cast<const char*>(piece.data()), piece.size());
  };
  save_state(model, cache, sink, {{"name", "contents"}});
  return bytes;
}

TYPED_TEST(ModelByName, DescribesItselfAsTheModelOfThatType) {
  const auto& any = this->any_;
  const auto& typed = this->typed_;
  EXPECT_EQ(any.config().d_model, typed.config().d_model);
  EXPECT_EQ(any.parameter_count(), typed.parameter_count());
  EXPECT_EQ(any.memory_bytes(), typed.memory_bytes());
  EXPECT_EQ(any.weight_format(), this->options().weights);
  EXPECT_EQ(any.backend().name(), this->options().backend);
  EXPECT_EQ(any.backend().threads(), typed.backend().threads());  // 1 on the reference backend
  EXPECT_EQ(any.splits_exactly(), BackendTraits<typename TypeParam::BackendType>::splits_exactly);
  std::size_t at = 0;
  const std::vector<NamedSize> parameters = any.parameters();
  for_each_parameter(
      [&](std::string_view name, const auto& parameter) {
        ASSERT_LT(at, parameters.size());
        EXPECT_EQ(parameters[at].name, name);
        EXPECT_EQ(parameters[at++].size, parameter.size());
      },
      typed);
  EXPECT_EQ(at, parameters.size());
}

TYPED_TEST(ModelByName, HasTheSameLogits) {
  const auto& any = this->any_;
  const auto& typed = this->typed_;
  auto a = any.make_cache(2);
  auto b = typed.make_cache(2);
  const auto same = [](View<const float> x, View<const float> y) { return identical(copy_of(x), copy_of(y)); };
  const auto tokens = random_tokens(12, 50), more = random_tokens(3, 50, 7), rest = random_tokens(5, 50, 8);
  EXPECT_TRUE(same(any.forward(tokens, a), typed.forward(tokens, b)));
  EXPECT_TRUE(same(any.forward_last({5, 6}, a), typed.forward_last({5, 6}, b)));
  const std::vector<Run> runs{{.slot = 1, .tokens = more}, {.slot = 0, .tokens = rest}};
  EXPECT_TRUE(same(any.forward(runs, a), typed.forward(runs, b)));
  EXPECT_TRUE(same(any.forward_last(runs, a), typed.forward_last(runs, b)));
  EXPECT_TRUE(state_of(any, a) == state_of(typed, b));
  EXPECT_THROW(any.forward({50, 0}, a), ArgumentError);
  EXPECT_THROW(any.check(std::vector<std::int32_t>{1}, a), ArgumentError);
  auto one = any.make_cache();
  auto other = typed.make_cache();
  EXPECT_TRUE(same(any.forward(7, one), typed.forward(7, other)));
  EXPECT_TRUE(same(any.forward_last(8, one), typed.forward_last(8, other)));
  EXPECT_THROW(any.make_cache(0), ArgumentError);
}

TYPED_TEST(ModelByName, HasACacheOfTheSameValue) {
  const auto& any = this->any_;
  const auto& typed = this->typed_;
  auto a = any.make_cache(2);
  auto b = typed.make_cache(2);
  const auto change = [](const auto& model, auto& cache) {
    cache.keep_every(2);
    EXPECT_EQ(cache.keeps_every(), 2);
    model.forward_last(random_tokens(12, 50), cache);
    EXPECT_EQ(cache.kept_positions(1), (std::vector<std::int64_t>{0, 2, 4}));
    cache.rollback(1, 4);
    EXPECT_EQ(cache.position(1), 4);
    cache.reorder(std::vector<std::size_t>{1, 0});
    auto copy = cache.clone();
    auto three = cache.gather(std::vector<int>{1, 0, 1});
    three.reset(0);
    copy.assign(1, three, 0);
    cache.reset();
    cache.assign(copy);
    cache.release_workspace();
    return cache.gather({0, 1, 1, 0});
  };
  EXPECT_TRUE(state_of(any, change(any, a)) == state_of(typed, change(typed, b)));
  EXPECT_EQ(a.position(0), 4);
  EXPECT_EQ(a.position(1), 0);
  EXPECT_EQ(a.batch(), 2U);
  EXPECT_EQ(a.state_bytes(), b.state_bytes());
  EXPECT_GE(a.memory_bytes(), a.state_bytes());
  EXPECT_THROW(a.position(2), ArgumentError);
  EXPECT_THROW(a.gather(std::vector<int>{-1}), ArgumentError);
}

TYPED_TEST(ModelByName, ContinuesTheStatesOfTheModelOfThatType) {
  const auto& any = this->any_;
  const auto& typed = this->typed_;
  auto b = typed.make_cache();
  typed.forward_last(random_tokens(9, 50), b);
  save_state(typed, b, this->folder_ / "state", {{"name", "contents"}});
  auto saved = load_state(this->folder_ / "state", any);
  EXPECT_EQ(saved.sections, (StateSections{{"name", "contents"}}));
  EXPECT_EQ(saved.cache.position(), 9);
  EXPECT_TRUE(identical(copy_of(any.forward_last(3, saved.cache)), copy_of(typed.forward_last(3, b))));
  minimamba::save_state(any, saved.cache, this->folder_ / "any");
  minimamba::save_state(typed, b, this->folder_ / "typed");
  EXPECT_TRUE(support::read_text(this->folder_ / "any") == support::read_text(this->folder_ / "typed"));
}

TYPED_TEST(ModelByName, GeneratesAndScoresAsTheModelOfThatType) {
  const auto& any = this->any_;
  const auto& typed = this->typed_;
  const GenerateOptions options{.max_new_tokens = 8, .temperature = 1, .seed = 5, .log_probabilities = true};
  const auto prompt = random_tokens(6, 50), text = random_tokens(40, 50, 9);
  const auto generated = [&](const auto& model) {
    auto cache = model.make_cache();
    return minimamba::generate(model, cache, prompt, options).collect();
  };
  EXPECT_EQ(generated(any).tokens, generated(typed).tokens);
  EXPECT_EQ(generated(any).log_probabilities, generated(typed).log_probabilities);
  const auto together = [&](const auto& model) {
    auto cache = model.make_cache(2);
    std::vector<std::int32_t> all;
    for (const auto& row : generate_batch(model, cache, {prompt, {1, 2}}, options)) {
      all.insert(all.end(), row.tokens.begin(), row.tokens.end());
    }
    return all;
  };
  EXPECT_EQ(together(any), together(typed));
  const auto nats = [&](const auto& model) {
    Scorer scorer(model, 16);
    scorer.read(text);
    return scorer.score().nats;
  };
  EXPECT_EQ(nats(any), nats(typed));
}

TEST(AnyModel, RefusesNamesThatItDoesNotKnowBeforeItOpensFiles) {
  const auto refusal = [](const AnyModelOptions& options) -> std::string {
    try {
      AnyModel::load("no such folder", options);
    } catch (const ArgumentError& error) {
      return error.what();
    }
    return "accepted";
  };
  support::expect_words(refusal({.weights = "q5"}), {"weights", "f32, bf16, f16, q8 or q4", "\"q5\""});
  support::expect_words(refusal({.backend = "tpu"}), {"backend", "native, eigen, reference, cuda or auto", "\"tpu\""});
  support::expect_words(refusal({.weights = "q5", .backend = "auto"}), {"weights", "\"q5\""});
  EXPECT_THROW(AnyModel::load("no such folder"), FileError);
}

TEST(AnyModel, TakesTheOptionsOfLoad) {
  const Folder folder;
  save(support::Model(support::tiny_config()), folder.path());
  EXPECT_THROW(AnyModel::load(folder.path(), {.threads = -1}), ArgumentError);
  EXPECT_THROW(AnyModel::load(folder.path(), {.progress = [](double) { return false; }}), CancelledError);
  support::write_text(folder / "model.safetensors.index.json", "{}");
  std::vector<std::string> notes;
  AnyModel::load(folder.path(), {.on_note = [&](const std::string& note) { notes.push_back(note); }});
  ASSERT_EQ(notes.size(), 1U);
  support::expect_words(notes.front(), {"was not read"});
  EXPECT_EQ(AnyModel::load(open_checkpoint(folder.path())).weight_format(), "f32");
}

TEST(AnyModel, RefusesTheCacheOfAnotherBackendAndTakesThatOfAnotherFormat) {
  const Folder folder;
  save(support::Model(support::tiny_config()), folder.path());
  const auto native = AnyModel::load(folder.path()),
             reference = AnyModel::load(folder.path(), {.backend = "reference"}),
             other = AnyModel::load(folder.path(), {.weights = "bf16"});
  auto cache = native.make_cache();
  EXPECT_THROW(reference.forward_last(1, cache), ArgumentError);
  EXPECT_THROW(reference.make_cache().assign(cache), ArgumentError);
  EXPECT_THROW(save_state(reference, cache, folder / "state"), ArgumentError);
  EXPECT_EQ(cache.position(), 0);
  EXPECT_EQ(other.forward_last(1, cache).rows(), 1U);
}

TEST(AnyModel, ThatWasMovedFromIsRefusedLikeAMamba) {
  const Folder folder;
  save(support::Model(support::tiny_config()), folder.path());
  auto model = AnyModel::load(folder.path());
  auto cache = model.make_cache();
  const auto moved_cache = std::move(cache);
  EXPECT_THROW(model.forward_last(1, cache), ArgumentError);  // NOLINT: moved from
  EXPECT_THROW(cache.batch(), ArgumentError);
  EXPECT_THROW(cache.clone(), ArgumentError);
  EXPECT_THROW(save_state(model, cache, folder / "state"), ArgumentError);
  auto other = moved_cache.clone();
  EXPECT_THROW(other.assign(cache), ArgumentError);
  const auto moved = std::move(model);
  EXPECT_THROW(model.forward_last(1, other), ArgumentError);  // NOLINT: moved from
  EXPECT_THROW(model.make_cache(), ArgumentError);
  EXPECT_EQ(moved.forward_last(1, other).rows(), 1U);
  cache = moved.make_cache();  // may be used again
  EXPECT_EQ(cache.batch(), 1U);
}

}  // namespace any_model_test
